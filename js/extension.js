/** Gives our nodes their views. */

import { app } from "../../scripts/app.js";
import { AttentionViewer } from "./attention/viewer.js";
import { address, addView, also, inputOf, keep, kept, lastOutput } from "./comfy.js";
import { addStyle, element } from "./elements.js";
import { SAVED, savedButtons } from "./saved.js";
import { followTraining, followTrainings, trains } from "./training/follow.js";

const OURS = "ContextualInversion";
const ATTENTION = "contextual_inversion_attention";
const TEXT = "text"; // ComfyUI's key of lines for people, which it shows on nodes of its own alone
const SHOWS_ATTENTION = "ContextualInversionShowAttention";

const texts = new WeakMap();

function addAttentionViewer(node) {
  const maskWords = inputOf(node, "mask_words");
  const viewer = new AttentionViewer({ address, keep: (state) => keep(node, state), maskWords });
  addView(node, "attention", viewer.element, 340);
  also(node, "onWidgetChanged", () => viewer.refresh());
  also(node, "onConnectionsChange", () => viewer.refresh());
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, 440), height + 100]);
  let runs = 0;
  also(node, "onConfigure", async () => {
    viewer.restore(kept(node));
    const before = runs;
    const output = await lastOutput(node, ATTENTION);
    // What the node gave while ComfyUI's history was asked for is newer than what that says.
    if (output && runs === before) viewer.show(output[ATTENTION][0]);
  });
  also(node, "onExecuted", (output) => {
    if (!output?.[ATTENTION]) return;
    runs += 1;
    viewer.show(output[ATTENTION][0]);
  });
}

/** What a node that shows no pictures says about its result, such as where a file is. */
function showText(node, output) {
  if (!output?.[TEXT] || output.images) return;
  if (!texts.has(node)) {
    const view = element("div", { class: "ci-view ci-text", role: "status", tabindex: 0 });
    addView(node, "says", view, output[SAVED] ? 104 : 72); // a widget called text would be drawn as an input
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
    texts.set(node, view);
  }
  const lines = element("div", { class: "ci-lines", text: output[TEXT].join("\n") });
  texts.get(node).replaceChildren(...[savedButtons(output[SAVED]), lines].filter(Boolean));
}

function followText(node) {
  also(node, "onConfigure", async () => showText(node, await lastOutput(node, TEXT)));
  also(node, "onExecuted", (output) => showText(node, output));
}

app.registerExtension({
  name: "contextual_inversion.views",
  setup() {
    addStyle(new URL("./style.css", import.meta.url));
    followTrainings();
  },
  nodeCreated(node) {
    if (node.comfyClass === SHOWS_ATTENTION) addAttentionViewer(node);
    else if (trains(node)) followTraining(node);
    else if (node.comfyClass?.startsWith(OURS)) followText(node);
  },
});
