/** Gives nodes that train their panels, and tells the panels what the server and ComfyUI say. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { address, addView, also, isHere, keep, kept, lastEnd, nodeOf } from "../comfy.js";
import { addStyle } from "../elements.js";
import { spoken } from "../spoken.js";
import { failure } from "./ending.js";
import { TrainingPanel } from "./panel.js";

const OURS = "ContextualInversion";
const OUTPUT = "contextual_inversion_training";
const EVENT = "contextual_inversion.training";
const PROGRESS_TEXT = "$$node-text-preview"; // ComfyUI's name of the line of text on a node
const [LEAST, USUAL] = [280, 420]; // heights of a panel: what a node has room for, and what a new one gets
const PAUSE = 400; // milliseconds without a change of the graph until the server is asked what it will do

const panels = new Map(); // of nodes that are, or were, in a graph
const executionIds = new WeakMap(); // what the server calls a node that trains
let run = null; // the id of the one that is now
const workflows = new Map(); // of the runs of this page: the id of the workflow, once it is known

/** Whether a node trains, and so has a panel. */
export const trains = (node) => node.comfyClass?.startsWith(OURS) && node.constructor.nodeData?.output?.includes("LOSS_MAP");

/** A node that was just made, by hand or from a file. */
export function followTraining(node) {
  const stop = () => stopTraining(node);
  const panel = new TrainingPanel({ address, stop, keep: (state) => keep(node, state) });
  let runs = 0; // what came while ComfyUI's history was asked for is newer than what that says
  panels.set(node, panel);
  addView(node, "training", panel.element, LEAST);
  enlarge(node, USUAL - LEAST);
  also(node, "onConfigure", async () => {
    panel.restore(kept(node));
    enlarge(node, 0);
    const before = runs;
    const now = Object.values(await running()).find(({ node_id, workflow }) => isHere(workflow) && nodeOf(node_id) === node);
    if (now) executionIds.set(node, now.node_id);
    const last = now ? null : await lastEnd(node, OUTPUT);
    if (runs !== before || !panels.has(node)) return;
    if (now) panel.show(now);
    else if (last?.error) panel.fail(failure(last.error), earlier(last.error.timestamp));
    else if (last) panel.show(last.output[0], earlier(1000 * last.output[0].ended_at));
  });
  also(node, "onExecuted", (output) => {
    if (!output?.[OUTPUT]) return;
    runs += 1;
    panel.show(output[OUTPUT][0], panel.cached ? UNCHANGED() : "");
  });
  also(node, "onRemoved", () => panels.delete(node));
  askSoon();
}

const UNCHANGED = () => spoken("Earlier result: nothing had changed");

function enlarge(node, more) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, node.size[0], 360), Math.max(height + more, node.size[1])]);
}

/** "Earlier run, 14:02", with the day where it was another one. */
function earlier(milliseconds) {
  if (!milliseconds) return spoken("Earlier run");
  const [then, now] = [new Date(milliseconds), new Date()];
  const day = then.toDateString() === now.toDateString() ? {} : { month: "short", day: "numeric" };
  const time = then.toLocaleString(undefined, { ...day, hour: "2-digit", minute: "2-digit" });
  return spoken("Earlier run, {time}", { time });
}

async function stopTraining(node) {
  const node_id = executionIds.get(node) ?? String(node.id);
  return (await post("/contextual_inversion/stop", { node_id })).ok;
}

const post = (route, content) =>
  api.fetchApi(route, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

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
  if (!panels.has(node) || !isHere(detail.workflow)) return;
  executionIds.set(node, detail.node_id);
  const panel = panels.get(node);
  panel.cached = false;
  panel.add(detail);
}

/** The panel of a node that a run of this page is about, where that is of the workflow that is open. */
async function panelIn(run, id) {
  const panel = panels.get(nodeOf(id));
  return panel && isHere(await workflows.get(run)) ? panel : undefined;
}

/** What is shown from now on is of an earlier run, until there is something of this one. */
function onStart({ detail }) {
  run = detail.prompt_id;
  workflows.set(detail.prompt_id, runningWorkflow(detail.prompt_id));
  for (const panel of panels.values()) {
    panel.cached = false;
    if (panel.facts?.ended && panel.badge.hidden) panel.label(earlier(1000 * panel.facts.ended_at));
  }
}

async function runningWorkflow(run) {
  const queue = await api.fetchApi("/queue").then((answer) => answer.json()).catch(() => ({}));
  const item = queue.queue_running?.find(([, id]) => id === run);
  return item?.[3]?.extra_pnginfo?.workflow?.id;
}

async function onCached({ detail }) {
  for (const id of detail.nodes ?? []) {
    const panel = await panelIn(detail.prompt_id, id);
    if (!panel?.facts?.ended) continue;
    panel.cached = true;
    panel.label(UNCHANGED());
  }
}

/** A node's turn has come. */
async function onTurn({ detail: id }) {
  const shown = id && panels.get(nodeOf(id))?.facts;
  const panel = id && (await panelIn(run, id));
  // What came of it meanwhile is more than that it is its turn.
  if (panel && panel.facts === shown) panel.prepare();
}

const onError = async ({ detail }) => (await panelIn(detail.prompt_id, detail.node_id))?.fail(failure(detail));
const onCancel = async ({ detail }) => (await panelIn(detail.prompt_id, detail.node_id))?.cancel();

/** The panel says what ComfyUI's line of text says: it is not shown twice. */
function onText({ detail }) {
  const node = nodeOf(detail.nodeId);
  const panel = panels.get(node);
  if (!panel) return;
  if (panel.facts?.preparing) panel.prepare(detail.text);
  const line = node.widgets?.find((widget) => widget.name === PROGRESS_TEXT);
  if (line) line.hidden = line.options.hidden = true;
}

let waiting = null;

/** Has the panels say what their nodes will do, once the graph rests. */
function askSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(askOutlook, PAUSE);
}

async function askOutlook() {
  if (panels.size === 0) return;
  const graph = await app.graphToPrompt().then(({ output }) => output).catch(() => ({}));
  const nodes = Object.keys(graph).filter((id) => panels.has(nodeOf(id)));
  const answer = nodes.length ? await post("/contextual_inversion/outlook", { nodes, graph }).catch(() => null) : null;
  const said = answer?.ok ? await answer.json() : {};
  for (const [node, panel] of panels) panel.expect(said[nodes.find((id) => nodeOf(id) === node)] ?? null);
}

let values = "";

/** Widgets that were changed in another way than ComfyUI's undo history notices. */
function onInput() {
  const now = JSON.stringify([...panels.keys()].map((node) => node.widgets?.map(({ value }) => value)));
  if (now !== values) askSoon();
  values = now;
}

/** Called once, when the page is there. */
export function followTrainings() {
  addStyle(new URL("./panel.css", import.meta.url));
  const heard = { [EVENT]: onNews, progress_text: onText, graphChanged: askSoon, executing: onTurn };
  const runs = { execution_start: onStart, execution_cached: onCached, execution_error: onError, execution_interrupted: onCancel };
  for (const [name, listener] of Object.entries({ ...heard, ...runs })) api.addEventListener(name, listener);
  for (const name of ["executed", "execution_success"]) api.addEventListener(name, askSoon);
  for (const name of ["keyup", "pointerup", "change"]) document.addEventListener(name, () => setTimeout(onInput, 50), true);
}
