/** Gives our nodes their views and tells the views what the server says. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { AttentionViewer } from "./attention/viewer.js";
import { address, addView, inputOf, isHere, keep, kept, lastOutput, nodeOf } from "./comfy.js";
import { addStyle, element } from "./elements.js";
import { SAVED, savedButtons } from "./saved.js";
import { TrainingPanel } from "./training/panel.js";

const OURS = "ContextualInversion";
const ATTENTION = "contextual_inversion_attention";
const TRAINING = "contextual_inversion_training";
const VERDICT = "contextual_inversion_verdict";
const TRAINING_EVENT = "contextual_inversion.training";
const TEXT = "text"; // ComfyUI's key of lines for people, which it shows on nodes of its own alone
const SHOWS_ATTENTION = "ContextualInversionShowAttention";
const PROGRESS_TEXT = "$$node-text-preview"; // ComfyUI's name of the line of text on a node

const panels = new WeakMap();
const texts = new WeakMap();
const executionIds = new WeakMap(); // what the server calls a node that trains

/** Calls `more` after whatever the node does on that occasion already. */
function also(node, occasion, more) {
  const before = node[occasion];
  node[occasion] = function (...given) {
    const result = before?.apply(this, given);
    more(...given);
    return result;
  };
}

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

/** Whether a node trains, and so has a panel. */
const trains = (node) => node.comfyClass?.startsWith(OURS) && node.constructor.nodeData?.output?.includes("LOSS_MAP");

/** The panel of a node that trains; it comes when there is something to show. */
function panelOf(node) {
  if (!panels.has(node)) {
    const stop = () => stopTraining(node);
    const panel = new TrainingPanel({ address, stop, keep: (state) => keep(node, state) });
    panel.restore(kept(node));
    addView(node, "training", panel.element, 280);
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, node.size[0], 360), Math.max(height, node.size[1])]);
    panels.set(node, panel);
  }
  return panels.get(node);
}

function followTraining(node) {
  also(node, "onConfigure", async () => {
    const now = Object.values(await running()).find(({ node_id, workflow }) => isHere(workflow) && nodeOf(node_id) === node);
    const whole = now ?? (await lastOutput(node, TRAINING))?.[TRAINING][0];
    if (now) executionIds.set(node, now.node_id);
    if (whole) panelOf(node).show(whole);
  });
  also(node, "onExecuted", (output) => output?.[TRAINING] && panelOf(node).show(output[TRAINING][0]));
}

/** What a node says about its result: its verdict or, where it shows no pictures, its text, such as where a file is. */
function showText(node, output) {
  const said = output?.[VERDICT]?.map(({ text }) => text) ?? (output?.images ? null : output?.[TEXT]);
  if (!said) return;
  if (!texts.has(node)) {
    const view = element("div", { class: "ci-view ci-text", role: "status", tabindex: 0 });
    addView(node, "says", view, output[SAVED] ? 104 : 72); // a widget called text would be drawn as an input
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

async function stopTraining(node) {
  const node_id = executionIds.get(node) ?? String(node.id);
  const answer = await api.fetchApi("/contextual_inversion/stop", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ node_id }),
  });
  return answer.ok;
}

let asked = null;

/** Every training that runs now, by node id; from now on this page gets the news of them, whichever page queued them. */
function running() {
  asked ??= connected()
    .then((client) => api.fetchApi(`/contextual_inversion/training?${new URLSearchParams({ client })}`))
    .then((answer) => (answer.ok ? answer.json() : {}))
    .catch(() => ({}))
    .finally(() => setTimeout(() => (asked = null), 1000));
  return asked;
}

/** The id of this page at the server, once it has one. */
async function connected() {
  while (!api.clientId) await new Promise((resolve) => api.addEventListener("status", resolve, { once: true }));
  return api.clientId;
}

function onNews({ detail }) {
  const node = nodeOf(detail.node_id);
  if (!node || !trains(node) || !isHere(detail.workflow)) return;
  executionIds.set(node, detail.node_id);
  panelOf(node).add(detail);
}

/** The panel says what ComfyUI's line of text says: it is not shown twice. */
function hideText({ detail }) {
  const node = nodeOf(detail.nodeId);
  if (!node || !panels.has(node)) return;
  const line = node.widgets?.find((widget) => widget.name === PROGRESS_TEXT);
  if (line) line.hidden = line.options.hidden = true;
}

app.registerExtension({
  name: "contextual_inversion.views",
  setup() {
    addStyle();
    api.addEventListener(TRAINING_EVENT, onNews);
    api.addEventListener("progress_text", hideText);
  },
  nodeCreated(node) {
    if (node.comfyClass === SHOWS_ATTENTION) addAttentionViewer(node);
    else if (trains(node)) followTraining(node);
    else if (node.comfyClass?.startsWith(OURS)) followText(node);
  },
});
