/**
 * Colours of our own sockets and their links, in both canvases. ComfyUI asks a theme for the colours of the sockets that it
 * knows, and draws all others alike; a theme that names one of ours has the last word.
 */

import { app } from "../../scripts/app.js";
import { element } from "./elements.js";

/** Told apart from each other, from ComfyUI's own and from what they lie on, also with the common kinds of colour blindness. */
export const COLOURS = {
  CONCEPT: { dark: "#cf4fbf", light: "#bd105d" },
  PROMPTS: { dark: "#82e54f", light: "#2e4b00" },
  REGULARIZER: { dark: "#15ac7b", light: "#006d8e" },
  CONTEXTUALIZER: { dark: "#6e85ff", light: "#2a32de" },
  TUNING_ENCODER: { dark: "#fac4dd", light: "#491027" },
};
const DARK = "dark-theme"; // ComfyUI's class of the whole page

const theme = () => (document.documentElement.classList.contains(DARK) ? "dark" : "light");

/** Nodes 2.0 takes them from the style sheets. */
function forNodes2() {
  const rules = (of) => Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour[of]};`);
  const [light, dark] = [rules("light").join(" "), rules("dark").join(" ")];
  document.head.append(element("style", { text: `:root { ${light} } :root.${DARK} { ${dark} }` }));
}

/** The classic canvas has a table, which ComfyUI writes anew with every theme, empty where that has no colour. */
function forClassic(table) {
  for (const [type, colour] of Object.entries(COLOURS)) {
    let own = table[type];
    const get = () => own || colour[theme()];
    Object.defineProperty(table, type, { get, set: (value) => (own = value), configurable: true, enumerable: true });
  }
}

app.registerExtension({
  name: "contextual_inversion.sockets",
  setup() {
    forNodes2();
    forClassic(app.canvas.default_connection_color_byType);
    forClassic(app.canvas.constructor.link_type_colors);
  },
});
