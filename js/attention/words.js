/** The prompt as a row of chips. One of them is in the tab order; the arrow keys walk, Enter pins, Escape lets go. */

import { element } from "../elements.js";
import { spoken } from "../spoken.js";
import { css, PALETTE, readableOn } from "./colours.js";

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** `look()` is called when another word is looked at, `pin(index)` and `clear()` when that is wanted. */
export class WordList {
  constructor({ look, pin, clear }) {
    Object.assign(this, { look, pin, clear, lookedAt: null, chips: [] });
    this.element = element("div", {
      class: "ci-words",
      role: "listbox",
      "aria-label": spoken("Words of the prompt. Arrow keys walk, Enter pins, Escape lets go."),
      "aria-multiselectable": "true",
      "aria-orientation": "horizontal",
      keydown: (event) => this.key(event),
    });
  }

  set(words) {
    this.lookedAt = null;
    this.chips = words.map((word, index) => this.chip(word, index));
    this.element.replaceChildren(...this.chips);
  }

  chip({ text, kind, positions }, index) {
    const [first, last] = [positions[0], positions.at(-1)];
    const tokens = first === last ? spoken("token {first}", { first }) : spoken("tokens {first} to {last}", { first, last });
    return element("span", {
      class: `ci-chip ci-${kind}`,
      role: "option",
      tabindex: "-1",
      title: `${text}: ${tokens}`,
      "aria-selected": "false",
      text,
      pointerenter: () => this.lookAt(index),
      pointerleave: () => this.lookAt(null),
      focus: (event) => {
        this.rove(index);
        // A click focuses too; then the pointer says what is looked at.
        if (event.target.matches(":focus-visible")) this.lookAt(index);
      },
      blur: () => this.lookAt(null),
      click: () => this.take(index),
    });
  }

  take(index) {
    this.lookedAt = null;
    this.pin(index);
  }

  lookAt(index) {
    if (this.lookedAt === index) return;
    this.lookedAt = index;
    this.look();
  }

  rove(index) {
    for (const [place, chip] of this.chips.entries()) chip.tabIndex = place === index ? 0 : -1;
  }

  key(event) {
    const visible = this.chips.filter((chip) => !chip.hidden);
    const here = visible.indexOf(event.target);
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const places = { Home: 0, End: visible.length - 1 };
    if (event.key in STEPS) visible[(here + STEPS[event.key] + visible.length) % visible.length].focus();
    else if (event.key in places) visible[places[event.key]].focus();
    else if (event.key === "Enter" || event.key === " ") this.take(this.chips.indexOf(event.target));
    else if (event.key === "Escape") {
      this.lookedAt = null;
      this.clear();
    } else return;
    // The canvas has shortcuts of its own on these keys.
    event.preventDefault();
    event.stopPropagation();
  }

  /** Colours the pinned chips and shows or hides the special ones. */
  draw(pins, special) {
    for (const [index, chip] of this.chips.entries()) {
      const pin = pins.find(({ word }) => word === index);
      chip.setAttribute("aria-selected", Boolean(pin));
      const rgb = pin && PALETTE[pin.colour].rgb;
      chip.style.setProperty("--pin", rgb ? css(rgb) : "");
      chip.style.setProperty("--on-pin", rgb ? readableOn(rgb) : "");
      chip.hidden = !special && !pin && chip.matches(".ci-special, .ci-padding");
    }
    if (!this.chips.some((chip) => chip.tabIndex === 0 && !chip.hidden)) {
      this.rove(this.chips.findIndex((chip) => !chip.hidden));
    }
  }

  /** A bar in every chip, each value in [0, 1]; none where `values` is null. */
  share(values) {
    for (const [index, chip] of this.chips.entries()) chip.style.setProperty("--share", values ? values[index] : 0);
  }
}
