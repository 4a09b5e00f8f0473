/** What to type for a learned word, with a button that copies it. */

import { copyButton } from "../copying.js";
import { element } from "../elements.js";
import { spoken } from "../spoken.js";

const HERE = "\u0000";

/** { element, say(word) }: the line is hidden where there is no word. */
export function copyLine() {
  const typed = element("code");
  const [before, after] = spoken("Type {word} in a prompt", { word: HERE }).split(HERE);
  const button = copyButton(() => typed.textContent);
  const line = element("span", { class: "ci-type", hidden: true }, before, typed, after, " ", button);

  function say(word) {
    typed.textContent = word ? `<${word}>` : "";
    line.hidden = !word;
  }

  return { element: line, say };
}
