/** What to type for a learned word, with a button that copies it. */

import { element } from "../elements.js";
import { spoken } from "../spoken.js";

const AGAIN = 1500; // milliseconds until the button says Copy again
const HERE = "\u0000";

/** { element, say(word) }: the line is hidden where there is no word. */
export function copyLine() {
  const typed = element("code");
  const button = element("button", { type: "button", class: "ci-button", text: spoken("Copy"), click: copy });
  const [before, after] = spoken("Type {word} in a prompt", { word: HERE }).split(HERE);
  const line = element("span", { class: "ci-type", hidden: true }, before, typed, after, " ", button);

  async function copy() {
    const done = await toClipboard(typed.textContent, button);
    button.textContent = done ? spoken("Copied") : spoken("Select it and press Ctrl+C");
    setTimeout(() => (button.textContent = spoken("Copy")), AGAIN);
  }

  function say(word) {
    typed.textContent = word ? `<${word}>` : "";
    line.hidden = !word;
  }

  return { element: line, say };
}

/** Whether it was copied. Pages that are not served securely, as those of another machine, have the old way alone. */
async function toClipboard(text, near) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { class: "ci-off-screen", "aria-hidden": "true" });
    field.value = text;
    near.after(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    near.focus();
    return done;
  }
}
