/** What the views ask of ComfyUI's page: widgets, addresses of files, what nodes gave before, and keeping choices. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const KEPT = "contextual_inversion"; // our key among a node's properties
const ENTRIES = 64; // of the history that are looked through

/** The URL of { filename, subfolder, type } among ComfyUI's files. */
export function address({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Puts a view's element into a node, in the classic canvas and in Nodes 2.0; one without `maxHeight` takes what is free. */
export function addView(node, name, view, minHeight, maxHeight = undefined) {
  const heights = { getMinHeight: () => minHeight, getMaxHeight: () => maxHeight };
  const options = { serialize: false, hideOnZoom: false, ...heights, getValue: () => "", setValue: () => {} };
  const widget = node.addDOMWidget(name, name, view, options);
  widget.serialize = false;
  // ComfyUI gives a view its place when it draws the canvas next, also that of a node out of sight.
  node.setDirtyCanvas?.(true, true);
  passOn(view);
  return widget;
}

/** In the classic canvas a view lies above the canvas: wheel and middle button are meant for what is below. */
function passOn(view) {
  const classic = () => !window.LiteGraph?.vueNodesMode;
  const middle = (event) => classic() && (event.button === 1 || (event.buttons & 4) !== 0);
  const long = (part) => part.scrollHeight > part.clientHeight + 1 && getComputedStyle(part).overflowY === "auto";
  const scrolls = (event) => event.composedPath().some((part) => view.contains(part) && long(part));
  view.addEventListener("wheel", (event) => classic() && !scrolls(event) && app.canvas.processMouseWheel(event));
  view.addEventListener("pointerdown", (event) => middle(event) && app.canvas.processMouseDown(event));
  view.addEventListener("pointermove", (event) => middle(event) && app.canvas.processMouseMove(event));
  view.addEventListener("pointerup", (event) => middle(event) && app.canvas.processMouseUp(event));
}

/** Calls `more` after whatever the node does on that occasion already. */
export function also(node, occasion, more) {
  const before = node[occasion];
  node[occasion] = function (...given) {
    const result = before?.apply(this, given);
    more(...given);
    return result;
  };
}

/** What was kept in a node's properties. */
export const kept = (node) => node.properties?.[KEPT];

/** Keeps a choice in the workflow, as one step of its undo history. */
export function keep(node, state) {
  app.canvas?.emitBeforeChange?.();
  node.properties[KEPT] = structuredClone(state);
  app.canvas?.emitAfterChange?.();
}

/**
 * A node's input as a view uses it: `get()` gives its value, null where a link does; `set(value)` sets it, as one step of
 * the workflow's undo history.
 */
export function inputOf(node, name) {
  const widget = () => node.widgets?.find((one) => one.name === name);
  const linked = () => node.inputs?.some((input) => input.widget?.name === name && input.link != null);
  return {
    get: () => (linked() ? null : (widget()?.value ?? null)),
    set(value) {
      app.canvas?.emitBeforeChange?.();
      widget().value = value;
      widget().callback?.(value);
      app.canvas?.emitAfterChange?.();
      node.setDirtyCanvas?.(true, true);
    },
  };
}

/** Whether a graph with this workflow's id is the one on the page. Graphs that programs send have none. */
export const isHere = (workflow) => !workflow || !app.rootGraph?.id || workflow === app.rootGraph.id;

/** What ComfyUI's page calls a node where it keeps outputs. */
const place = (node) => (node.graph === app.rootGraph || !node.graph?.id ? String(node.id) : `${node.graph.id}:${node.id}`);

/** What the node gave when it last gave something under `key`, as far as this page or ComfyUI's history knows. */
export async function lastOutput(node, key) {
  const known = app.nodeOutputs?.[place(node)];
  return known?.[key] ? known : found(await history(), node, key);
}

/** The newest entry of this workflow in which a node of that id and kind gave something. */
function found(entries, node, key) {
  for (const { prompt, outputs } of entries) {
    if (!isHere(prompt[3]?.extra_pnginfo?.workflow?.id)) continue;
    for (const [id, output] of Object.entries(outputs)) if (isOf(node, id, prompt[2]) && output?.[key]) return output;
  }
  return undefined;
}

/** Whether `id`, in a graph that was queued, stands for the node: inside a subgraph it has the ids of the nodes around
 * it in front. */
const isOf = (node, id, queued) => id.split(":").at(-1) === String(node.id) && queued[id]?.class_type === node.comfyClass;

/** How the node's last run of this workflow ended: { output } with what it gave under `key`, or { error } as ComfyUI
 * tells it. Undefined where nobody knows of one. */
export async function lastEnd(node, key) {
  for (const entry of await history()) {
    if (!isHere(entry.prompt[3]?.extra_pnginfo?.workflow?.id)) continue;
    const errors = entry.status?.messages?.filter(([kind]) => kind === "execution_error") ?? [];
    const error = errors.map(([, told]) => told).find(({ node_id }) => isOf(node, String(node_id), entry.prompt[2]));
    if (error) return { error };
    const output = found([entry], node, key);
    if (output) return { output: output[key] };
  }
  const known = app.nodeOutputs?.[place(node)];
  return known?.[key] ? { output: known[key] } : undefined;
}

let asked = null;

/** ComfyUI's history, newest first; asked for once by all nodes of a graph that is being loaded. */
function history() {
  asked ??= api
    .fetchApi(`/history?max_items=${ENTRIES}`)
    .then((answer) => answer.json())
    .then((entries) => Object.values(entries).reverse())
    .catch(() => [])
    .finally(() => setTimeout(() => (asked = null), 1000));
  return asked;
}

/** The node of the graph with the id that the server knows, such as "4" or, inside a subgraph, "2:4". */
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  const path = String(id).split(":");
  const last = path.pop();
  for (const part of path) graph = graph?.getNodeById(Number(part))?.subgraph;
  return graph?.getNodeById(Number(last)) ?? graph?.getNodeById(last) ?? null;
}
