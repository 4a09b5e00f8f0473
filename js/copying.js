/** A button that puts a text where a person can paste it from. */

import { element } from "./elements.js";
import { spoken } from "./spoken.js";

const AGAIN = 1500; // milliseconds until the button says Copy again

/** A button that copies what `text()` gives at that time, and says whether it did. */
export function copyButton(text) {
  const button = element("button", { type: "button", class: "ci-button", text: spoken("Copy"), "aria-live": "polite", click: copy });

  async function copy() {
    const done = await toClipboard(text(), button);
    button.textContent = done ? spoken("Copied") : spoken("Select it and press Ctrl+C");
    setTimeout(() => (button.textContent = spoken("Copy")), AGAIN);
  }

  return button;
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
