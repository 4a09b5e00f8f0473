/** A button that puts a text where a person can paste it from. */

import { element } from "./elements.js";
import { spoken } from "./spoken.js";

const SHOWN = 1500; // milliseconds that the button says so

/** Puts `text` on the clipboard. Browsers give it to pages of this machine and of https alone; else by way of a selection. */
async function copied(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text).then(() => true);
  const field = element("textarea", { style: "position: fixed; opacity: 0", readonly: true });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}

/** A button that copies what `text()` gives at that time, and says whether it did. */
export function copyButton(text) {
  const name = spoken("Copy");
  const says = (now) => {
    button.textContent = now;
    setTimeout(() => (button.textContent = name), SHOWN);
  };
  const copy = async () => says((await copied(text()).catch(() => false)) ? spoken("Copied") : spoken("Not copied"));
  const button = element("button", { type: "button", class: "ci-button", text: name, "aria-live": "polite", click: copy });
  return button;
}
