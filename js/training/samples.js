/** The samples of a training: the chosen one large beside a training picture, all of them in a strip, any of them enlarged. */

import { element } from "../elements.js";
import { spoken } from "../spoken.js";

/** `address(file)` gives the URL of a picture. `changed()` is called when there are other samples. */
export class Samples {
  constructor(address, changed) {
    Object.assign(this, { address, changed, files: [], chosen: null, beside: null });
    this.large = this.figure("ci-sample");
    this.picture = this.figure("ci-picture");
    this.pair = element("div", { class: "ci-pair" }, this.large.figure, this.picture.figure);
    const label = spoken("Samples during training. Arrow keys choose, Enter enlarges.");
    this.strip = element("div", { class: "ci-strip", role: "group", "aria-label": label, keydown: (event) => this.walk(event) });
  }

  figure(name) {
    const image = element("img", { alt: "" });
    const enlarge = element("button", { type: "button", title: spoken("Enlarge"), click: () => this.enlarge() }, image);
    const caption = element("figcaption");
    return { image, caption, enlarge, figure: element("figure", { class: name }, enlarge, caption) };
  }

  get empty() {
    return this.files.length === 0;
  }

  clear() {
    [this.files, this.chosen, this.beside] = [[], null, null];
    this.strip.replaceChildren();
    this.draw();
  }

  /** The training picture that samples are shown beside. */
  put(file) {
    this.beside = file ?? null;
    this.draw();
  }

  /** One more sample; unless somebody looks at an earlier one, it is shown. */
  add(file) {
    const newest = this.chosen === null || this.chosen === this.files.at(-1);
    this.files.push(file);
    const label = said(file);
    const image = element("img", { src: this.address(file), alt: label, error: () => this.drop(file) });
    const button = element("button", { type: "button", title: label, click: () => this.choose(file), dblclick: () => this.enlarge() }, image);
    this.strip.append(element("figure", {}, button, element("figcaption", { text: String(file.step) })));
    if (newest) this.choose(file);
    else this.draw();
  }

  /** A file that is gone is no picture. */
  drop(file) {
    const at = this.files.indexOf(file);
    if (at < 0) return;
    this.files.splice(at, 1);
    this.strip.children[at].remove();
    if (this.chosen === file) this.chosen = this.files.at(-1) ?? null;
    this.draw();
  }

  choose(file) {
    this.chosen = file;
    this.draw();
    const shown = this.buttons[this.files.indexOf(file)]?.parentElement;
    if (shown) this.strip.scrollLeft = shown.offsetLeft - (this.strip.clientWidth - shown.offsetWidth) / 2;
  }

  get buttons() {
    return [...this.strip.querySelectorAll("button")];
  }

  walk(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || this.empty) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(move);
    this.buttons[this.files.indexOf(this.chosen)].focus();
  }

  move(by) {
    const at = Math.min(this.files.length - 1, Math.max(0, this.files.indexOf(this.chosen) + by));
    this.choose(this.files[at]);
  }

  draw() {
    this.pair.hidden = this.empty;
    this.strip.hidden = this.files.length < 2;
    this.buttons.forEach((button, at) => {
      const chosen = this.files[at] === this.chosen;
      button.setAttribute("aria-pressed", chosen);
      button.tabIndex = chosen ? 0 : -1;
    });
    fill(this.large, this.chosen && this.address(this.chosen), this.chosen && said(this.chosen));
    fill(this.picture, this.beside && this.address(this.beside), spoken("training picture"));
    this.changed();
  }

  /** Both pictures as large as the window has room for; arrow keys go to other samples, Escape goes back. */
  enlarge() {
    const copies = [this.large, this.picture].filter(({ figure }) => !figure.hidden).map(() => element("figure", {}, element("img"), element("figcaption")));
    const close = element("button", { type: "button", class: "ci-button", text: spoken("Close"), click: () => dialog.close() });
    const shown = element("div", { class: "ci-pair" }, ...copies);
    const dialog = element("dialog", { class: "ci-view ci-large", "aria-label": spoken("Sample beside a training picture") }, shown, close);
    const draw = () =>
      copies.forEach((copy, at) => {
        const { image, caption } = [this.large, this.picture][at];
        Object.assign(copy.children[0], { src: image.src, alt: image.alt });
        copy.children[1].textContent = caption.textContent;
      });
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation(); // ComfyUI has shortcuts of its own
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) this.move(by), draw();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    draw();
    document.body.append(dialog);
    dialog.showModal();
    close.focus();
  }
}

const said = ({ step }) => spoken("step {step}", { step });

function fill({ image, caption, figure, enlarge }, address, text) {
  figure.hidden = !address;
  if (!address) return image.removeAttribute("src");
  if (image.src !== new URL(address, location.href).href) image.src = address;
  image.alt = caption.textContent = text;
  enlarge.setAttribute("aria-label", spoken("{picture}: enlarge", { picture: text }));
}
