/** Small parts that pages are made of. */

import { spoken } from "./spoken.js";

/** An element with attributes (functions become listeners, `text` its text), and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Has a style sheet in the page, once. */
export function addStyle({ href }) {
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(element("link", { rel: "stylesheet", href }));
}

/**
 * A slider with two ends. `describe(low, high)` says what is chosen; `moved(range)` is called while it moves,
 * `settled()` when it is let go. Returns { element, set(length, range) }; nothing to choose from is not shown.
 */
export function rangeSlider({ label, describe, moved, settled }) {
  const end = (name, said) => {
    const [type, input, change] = ["range", () => slid(name), settled];
    return element("input", { type, min: 0, step: 1, "aria-label": `${label}: ${said}`, input, change });
  };
  const ends = { first: end("first", spoken("first")), last: end("last", spoken("last")) };
  const said = element("output", { class: "ci-said" });
  const track = element("div", { class: "ci-track" }, ends.first, ends.last);
  const whole = element("div", { class: "ci-range", role: "group", "aria-label": label });
  whole.append(element("span", { class: "ci-label", text: label }), track, said);

  const values = () => [Number(ends.first.value), Number(ends.last.value)];

  function slid(name) {
    const [first, last] = values();
    // One end pushes the other along.
    if (first > last) ends[name === "first" ? "last" : "first"].value = ends[name].value;
    draw();
    moved(values());
  }

  function draw() {
    const [first, last] = values();
    const most = Math.max(1, Number(ends.last.max));
    track.style.setProperty("--from", first / most);
    track.style.setProperty("--to", last / most);
    // At the far end both thumbs lie on each other: the one that can still move is on top.
    ends.first.style.zIndex = first === most ? 2 : 1;
    said.textContent = said.title = describe(first, last);
    for (const end of Object.values(ends)) end.setAttribute("aria-valuetext", said.textContent);
  }

  return {
    element: whole,
    set(length, range) {
      whole.hidden = length < 2;
      ends.first.max = ends.last.max = length - 1;
      [ends.first.value, ends.last.value] = range;
      draw();
    },
  };
}
