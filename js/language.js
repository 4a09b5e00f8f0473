/**
 * The page's language where ComfyUI itself does not see to it: our views, the options of our nodes, and notes and titles
 * of the shipped graphs. Those are saved in English, whatever is shown, so that a graph opens in anyone's language.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { speak } from "./spoken.js";

const LOCALE = "Comfy.Locale";
const ENGLISH = "en";
const SHIPPED = "contextual_inversion_graph"; // in a graph's `extra`: which of ours it is
const NOTE = "contextual_inversion_note"; // in a note's properties: its key in js/notes/<language>.json

let titles = {};
let nodes = {};
const files = new Map();

const language = () => app.extensionManager.setting.get(LOCALE) ?? ENGLISH;

/** What js/<kind>/<language>.json says; nothing where there is no such file. */
function saidBy(kind, of) {
  const file = new URL(`./${kind}/${of}.json`, import.meta.url);
  if (!files.has(file.href)) files.set(file.href, asked(fetch(file)));
  return files.get(file.href);
}

const asked = (answer) => answer.then((found) => (found.ok ? found.json() : {})).catch(() => ({}));

async function learn(of) {
  const inEnglish = of === ENGLISH;
  titles = inEnglish ? {} : await saidBy("texts", of);
  nodes = inEnglish ? {} : ((await asked(api.fetchApi("/i18n")))[of]?.nodeDefs ?? {});
  speak(titles);
}

/** Options as people read them; what is sent stays what it is. */
function labelOptions(node) {
  for (const widget of node.widgets ?? []) {
    const labels = nodes[node.comfyClass]?.inputs?.[widget.name.replaceAll(".", "_")]?.options;
    if (labels && widget.type === "combo") widget.options.getOptionLabel = (value) => labels[value] ?? value ?? "";
  }
}

/** Has `mend` put right what a node or group is saved as. */
function savedAs(part, mend) {
  const { serialize } = part;
  part.serialize = function (...given) {
    const saved = serialize.apply(this, given);
    mend(saved);
    return saved;
  };
}

/** A title in the page's language, unless somebody wrote another. */
function translateTitle(part) {
  const [english, shown] = [part.title, titles[part.title]];
  if (!shown) return;
  part.title = shown;
  savedAs(part, (saved) => part.title === shown && (saved.title = english));
}

/** A note in the page's language, unless somebody wrote in it. */
async function translateNote(node) {
  const key = node.properties?.[NOTE];
  const of = language();
  if (!key || of === ENGLISH) return;
  const [english, shown] = (await Promise.all([saidBy("notes", ENGLISH), saidBy("notes", of)])).map((notes) => notes[key]);
  const text = node.widgets?.[0];
  if (!shown || text?.value !== english) return;
  text.value = shown;
  savedAs(node, (saved) => text.value === shown && (saved.widgets_values[0] = english));
}

app.registerExtension({
  name: "contextual_inversion.language",
  init() {
    // The event comes before the setting has its new value.
    app.ui.settings.addEventListener(`${LOCALE}.change`, ({ detail }) => learn(detail.value));
    return learn(language());
  },
  nodeCreated: labelOptions,
  loadedGraphNode: translateNote,
  afterConfigureGraph() {
    const { extra, nodes: own, groups } = app.rootGraph;
    if (extra?.[SHIPPED]) [...own, ...groups].forEach(translateTitle);
  },
});
