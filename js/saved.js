/** What a node says that has saved files: what to type and a button that copies it, and every file to take along. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { copyButton } from "./copying.js";
import { element } from "./elements.js";
import { spoken } from "./spoken.js";

export const SAVED = "contextual_inversion_saved";
const LOADS = "ContextualInversionLoad"; // how nodes that load files begin

/** Has the browser keep a file, where the server still has it. */
async function download({ file, name }, button) {
  const place = `/contextual_inversion/saved/${file}`;
  const there = await api.fetchApi(place, { method: "HEAD" }).catch(() => ({ ok: false }));
  if (there.ok) return element("a", { href: api.apiURL(place), download: name }).click();
  button.disabled = true;
  button.textContent = spoken("{name} is not there any more", { name });
}

/** What the buttons call the kinds of files; a LoRA is the same bundle in another folder. */
const called = (kind) => ({ bundle: spoken("Bundle"), embedding: spoken("Embedding"), LoRA: spoken("LoRA") })[kind] ?? spoken("File");

/** A row of buttons for a node's output under SAVED, null where that has none. */
export function savedButtons([output] = []) {
  if (!output) return null;
  const typed = output.typed && element("code", { class: "ci-typed", text: output.typed });
  const files = output.files.map((file) =>
    element("button", {
      type: "button",
      class: "ci-button",
      text: `${called(file.kind)} ↓`,
      title: spoken("Download {name}", { name: file.name }),
      "aria-label": spoken("Download {name}", { name: `${called(file.kind)}, ${file.name}` }),
      click: (event) => download(file, event.currentTarget),
    }),
  );
  const copy = typed ? [typed, copyButton(() => output.typed)] : [];
  return element("div", { class: "ci-buttons ci-saved" }, ...copy, ...files);
}

/** The nodes of ours that load files, also those inside subgraphs. */
function loaders() {
  const graphs = [app.rootGraph, ...(app.rootGraph?.subgraphs?.values() ?? [])];
  return graphs.flatMap((graph) => graph?.nodes ?? []).filter((node) => node.comfyClass?.startsWith(LOADS));
}

const offered = (widget) => (Array.isArray(widget.options.values) ? widget.options.values : []);

/** Has every list of files as it is now, as the key R does; a node that had nothing to choose takes what is new. */
async function refreshLists() {
  const lists = loaders().flatMap((node) => (node.widgets ?? []).filter(({ type }) => type === "combo"));
  const before = new Map(lists.map((widget) => [widget, offered(widget)]));
  await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);
  for (const [widget, known] of before) {
    const now = offered(widget);
    const none = /^\(.*\)$/.test(widget.value) && !now.includes(widget.value); // "(nothing saved yet)"
    if (none && now.length > 0) widget.value = now.find((file) => !known.includes(file)) ?? now[0];
  }
  app.canvas?.setDirty(true, true);
}

app.registerExtension({
  name: "contextual_inversion.saved",
  setup() {
    api.addEventListener("executed", ({ detail }) => detail?.output?.[SAVED] && refreshLists());
  },
});
