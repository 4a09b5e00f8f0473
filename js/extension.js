/** Gives our nodes their views. */

import { app } from "../../scripts/app.js";
import { AttentionViewer } from "./attention/viewer.js";
import { address, addView, also, inputOf, keep, kept, lastOutput } from "./comfy.js";
import { addStyle, element } from "./elements.js";
import { SAVED, savedButtons } from "./saved.js";
import { followTraining, followTrainings, trains } from "./training/follow.js";

const OURS = "ContextualInversion";
const ATTENTION = "contextual_inversion_attention";
const VERDICT = "contextual_inversion_verdict";
const TEXT = "text"; // ComfyUI's key of lines for people, which it shows on nodes of its own alone
const SHOWS_ATTENTION = "ContextualInversionShowAttention";

const texts = new WeakMap();

function addAttentionViewer(node) {
  const maskWords = inputOf(node, "mask_words");
  const viewer = new AttentionViewer({ address, keep: (state) => keep(node, state), maskWords });
  addView(node, "attention", viewer.element, 340);
  also(node, "onWidgetChanged", () => viewer.drawMask());
  also(node, "onConnectionsChange", () => viewer.drawMask());
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

/** What a node says about its result: its verdict or, where it shows no pictures, its text, such as where a file is. */
function showText(node, output) {
  const said = output?.[VERDICT]?.map(({ text }) => text) ?? (output?.images ? null : output?.[TEXT]);
  if (!said) return;
  if (!texts.has(node)) {
    const beside = output.images ? " ci-beside" : ""; // the pictures get the room
    const view = element("div", { class: `ci-view ci-text${beside}`, role: "status", tabindex: 0 });
    // A widget called text would be drawn as an input.
    addView(node, "says", view, 72, beside ? 72 : undefined);
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
    texts.set(node, view);
  }
  const lines = element("div", { class: "ci-lines", text: said.join("\n") });
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
