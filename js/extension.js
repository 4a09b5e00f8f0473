/** Gives our nodes their views. */

import { app } from "../../scripts/app.js";
import { AttentionViewer } from "./attention/viewer.js";
import { address, addView, also, keep, kept, lastOutput } from "./comfy.js";
import { addStyle, element } from "./elements.js";
import { followTraining, followTrainings, trains } from "./training/follow.js";

const OURS = "ContextualInversion";
const ATTENTION = "contextual_inversion_attention";
const TEXT = "text"; // ComfyUI's key of lines for people, which it shows on nodes of its own alone
const SHOWS_ATTENTION = "ContextualInversionShowAttention";

const texts = new WeakMap();

function addAttentionViewer(node) {
  const viewer = new AttentionViewer({ address, keep: (state) => keep(node, state) });
  addView(node, "attention", viewer.element, 340);
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
    const view = element("div", { class: "ci-view ci-text", role: "status" });
    addView(node, "says", view, 72); // a widget called text would be drawn as an input
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
    texts.set(node, view);
  }
  texts.get(node).textContent = output[TEXT].join("\n");
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
