/** The viewer of the ShowAttention node: the prompt's words, and where in the picture each of them acts. */

import { element, rangeSlider } from "../elements.js";
import { spoken } from "../spoken.js";
import { loadAtlas } from "./atlas_file.js";
import { blend, css, freeColour, PALETTE, readableOn } from "./colours.js";
import { byDepth, clamped, layerNames, lowest, peak, resized, sizes } from "./maps.js";
import { indexOf, maskText, nameOf, restored } from "./state.js";
import { placed } from "./tags.js";
import { WordList } from "./words.js";

const SIDE = 320; // cells of the longer side that maps are drawn with
const ALL_SIZES = "all";

/** The name of a layer group, such as "16 x 16, down 2", in the page's language. */
function inWords(name) {
  const parts = { down: spoken("down"), middle: spoken("middle"), up: spoken("up") };
  return name.replace(/down|middle|up/, (part) => parts[part]);
}

/**
 * `address(file)` gives the URL of { filename, subfolder, type }; `keep(state)` is called whenever a choice is made;
 * `maskWords`, where there is one, is the node's input of that name: { get, set }. `viewer.element` is what to show.
 */
export class AttentionViewer {
  constructor({ address, keep, maskWords = null }) {
    Object.assign(this, { address, keep, maskWords, state: restored(null), report: null, atlas: null, asked: 0 });
    this.words = new WordList({
      look: () => this.draw(),
      pin: (word) => this.togglePin(word),
      clear: () => this.choose({ pins: [] }),
    });
    this.build();
    this.say(spoken("Queue the graph, then point at a word to see where it acts."));
  }

  /** Takes up what was kept before. */
  restore(kept) {
    this.state = restored(kept);
    if (this.atlas) this.refresh();
  }

  /** Shows a report. Says so where its files are gone. */
  async show(report) {
    const asked = ++this.asked;
    if (report?.version !== 1) return this.fail(spoken("These maps come from another version of the pack. Queue again."));
    try {
      const atlas = await loadAtlas(report, this.address(report.atlas));
      if (asked !== this.asked) return;
      Object.assign(this, { report, atlas });
    } catch (error) {
      console.warn("Contextual Inversion:", error);
      if (asked === this.asked) this.fail(spoken("The maps of the last run are gone. Queue again to see them."));
      return;
    }
    this.say("");
    this.words.set(report.words);
    this.refresh();
  }

  /** A line in place of the maps. */
  fail(text) {
    Object.assign(this, { report: null, atlas: null });
    this.say(text);
  }

  build() {
    this.message = element("p", { class: "ci-message", role: "status" });
    this.picture = element("img", { alt: "", draggable: "false", error: () => this.pictureGone() });
    this.overlay = element("canvas", { role: "img" });
    this.tags = element("div", { class: "ci-tags", "aria-hidden": "true" });
    this.frame = element(
      "div",
      { class: "ci-frame", pointermove: (event) => this.point(event), pointerleave: () => this.words.share(null) },
      this.picture,
      this.overlay,
      this.tags,
    );
    new ResizeObserver(() => this.atlas && this.drawTags(this.shown())).observe(this.frame);
    const settled = () => this.keep(this.state);
    const moved = (part) => (range) => this.choose({ [part]: range }, false);
    const slider = (label, part, describe) => rangeSlider({ label, describe, moved: moved(part), settled });
    this.layers = slider(spoken("Layers"), "layers", (...ends) => this.sayLayers(ends));
    this.steps = slider(spoken("Steps"), "steps", (...ends) => this.saySteps(ends));
    this.body = element(
      "div",
      // Nodes 2.0 does not say when an input is changed.
      { class: "ci-body", pointerenter: () => this.drawMask(), focusin: () => this.drawMask() },
      this.words.element,
      element("div", { class: "ci-stage" }, this.frame),
      element("div", { class: "ci-controls" }, this.layers.element, this.steps.element, this.buildButtons()),
    );
    this.element = element("div", { class: "ci-view ci-attention", role: "group", "aria-label": spoken("Attention of each word") });
    this.element.append(this.message, this.body);
  }

  buildButtons() {
    const button = (text, title, click) => element("button", { type: "button", class: "ci-button", text, title, click });
    const turn = (by) => () => this.choose({ image: this.image() + by });
    const oneScale = spoken("Measure all words with one scale instead of each with its own");
    this.common = button(spoken("Same scale"), oneScale, () => this.choose({ common: !this.state.common }));
    const others = spoken("Show the start, end and padding tokens too");
    this.special = button(spoken("Special tokens"), others, () => this.choose({ special: !this.state.special }));
    this.unpin = button(spoken("Clear"), spoken("Let go of all pinned words (Escape)"), () => this.choose({ pins: [] }));
    const forMask = spoken("Make the mask of the pinned words: writes them to mask_words. Run again for the mask");
    this.mask = button(spoken("Use as mask"), forMask, () => this.useAsMask());
    const turner = (sign, name, by) => {
      const made = button(sign, name, turn(by));
      made.setAttribute("aria-label", name);
      return made;
    };
    this.before = turner("‹", spoken("Image before"), -1);
    this.after = turner("›", spoken("Image after"), 1);
    this.which = element("output", { class: "ci-said" });
    this.turner = element("span", { class: "ci-turner" }, this.before, this.which, this.after);
    this.size = element("select", {
      class: "ci-button",
      title: spoken("Cells of the maps. The coarsest layers hardly tell one place from another"),
      "aria-label": spoken("Size of maps"),
      change: () => this.choose({ size: this.size.value, layers: null }),
    });
    return element("div", { class: "ci-buttons" }, this.size, this.common, this.special, this.mask, this.unpin, this.turner);
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
    this.body.hidden = Boolean(text);
  }

  choose(change, settled = true) {
    Object.assign(this.state, change);
    this.refresh();
    if (settled) this.keep(this.state);
  }

  togglePin(word) {
    const pinned = this.pins();
    const name = nameOf(this.report.words, word);
    const others = pinned.filter((pin) => pin.word !== word);
    const pins = others.map(({ word: other, colour }) => ({ ...nameOf(this.report.words, other), colour }));
    if (others.length === pinned.length) pins.push({ ...name, colour: freeColour(pins.map((pin) => pin.colour)) });
    this.choose({ pins });
  }

  /** What mask_words would be for the pinned words. */
  maskText() {
    return maskText(
      this.report.words,
      this.pins().map(({ word }) => word),
    );
  }

  useAsMask() {
    this.maskWords.set(this.maskText());
    this.refresh();
  }

  /** The button is pressed where mask_words says what is pinned, and not to be used where a link says it. */
  drawMask() {
    if (!this.report) return;
    const [now, wanted] = [this.maskWords?.get() ?? null, this.maskText()];
    this.mask.hidden = !this.maskWords;
    this.mask.disabled = now === null || !wanted;
    this.mask.setAttribute("aria-pressed", Boolean(wanted) && now === wanted);
  }

  /** The pinned words that this prompt has: { word, colour }. */
  pins() {
    return this.state.pins
      .map((pin) => ({ word: indexOf(this.report.words, pin), colour: pin.colour % PALETTE.length }))
      .filter((pin) => pin.word >= 0);
  }

  image() {
    return Math.min(this.state.image, this.report.images - 1);
  }

  choice() {
    return { image: this.image(), size: this.chosenSize(), layers: this.state.layers, steps: this.state.steps };
  }

  /** The size of maps that was chosen, else the node's own choice; null for all. */
  chosenSize() {
    const { groups, size = null } = this.report;
    if (this.state.size === ALL_SIZES) return null;
    return sizes(groups).find((one) => one === this.state.size) ?? size;
  }

  drawSizes() {
    const found = sizes(this.report.groups);
    const option = (value, text) => element("option", { value, text });
    const each = found.map((size) => option(size, spoken("{size} cells", { size })));
    this.size.replaceChildren(...each, option(ALL_SIZES, spoken("All sizes")));
    this.size.value = this.chosenSize() ?? ALL_SIZES;
    this.size.hidden = found.length < 2;
  }

  /** The words that are looked at: the one pointed at alone, else all that are pinned. */
  shown() {
    const pins = this.pins();
    const word = this.words.lookedAt;
    if (word === null) return pins;
    return [pins.find((pin) => pin.word === word) ?? { word, colour: freeColour(pins.map((pin) => pin.colour)) }];
  }

  refresh() {
    if (!this.report) return;
    const { report, state } = this;
    this.words.draw(this.pins(), state.special);
    this.drawSizes();
    const layers = byDepth(report.groups, this.chosenSize()).length;
    this.layers.set(layers, clamped(state.layers, layers));
    this.steps.set(report.bins.length, clamped(state.steps, report.bins.length));
    this.common.setAttribute("aria-pressed", state.common);
    this.special.setAttribute("aria-pressed", state.special);
    this.special.hidden = report.words.every((word) => word.kind === "word");
    this.unpin.disabled = this.pins().length === 0;
    this.drawMask();
    this.turner.hidden = report.images < 2;
    this.which.textContent = spoken("{image} of {images}", { image: this.image() + 1, images: report.images });
    this.before.disabled = this.image() === 0;
    this.after.disabled = this.image() === report.images - 1;
    this.showPicture();
    this.draw();
  }

  showPicture() {
    const { pictures } = this.report;
    const file = pictures[Math.min(this.image(), pictures.length - 1)];
    this.picture.hidden = !file;
    if (!file) return this.shape();
    const address = this.address(file);
    if (this.picture.getAttribute("src") === address) return;
    this.picture.onload = () => {
      this.shape();
      this.draw();
    };
    this.picture.src = address;
  }

  pictureGone() {
    // The maps are still worth seeing.
    this.picture.hidden = true;
    this.shape();
    this.draw();
  }

  /** Gives frame and overlay the picture's proportions, or the maps' where there is no picture. */
  shape() {
    const shown = !this.picture.hidden && this.picture.naturalWidth > 0;
    const [width, height] = shown
      ? [this.picture.naturalWidth, this.picture.naturalHeight]
      : [Math.max(...this.report.groups.map((g) => g.width)), Math.max(...this.report.groups.map((g) => g.height))];
    const unit = SIDE / Math.max(width, height);
    this.frame.style.setProperty("--ratio", width / height);
    this.overlay.width = Math.max(1, Math.round(width * unit));
    this.overlay.height = Math.max(1, Math.round(height * unit));
  }

  draw() {
    if (!this.atlas) return;
    const shown = this.shown();
    const { width, height } = this.overlay;
    const context = this.overlay.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (shown.length > 0) {
      const layers = shown.map(({ word, colour }) => ({ data: this.scaled(word, width, height), rgb: PALETTE[colour].rgb }));
      context.putImageData(new ImageData(blend(layers, width * height), width, height), 0, 0);
    }
    this.drawTags(shown);
    const names = shown.map(({ word }) => this.report.words[word].text);
    const shownOver = spoken("Attention of {words} over the picture", { words: names.join(", ") });
    this.overlay.setAttribute("aria-label", names.length ? shownOver : spoken("The picture"));
  }

  /** A word's map at that size: from its weakest cell to its strongest or, on the common scale, of all words' strongest. */
  scaled(word, width, height) {
    const map = this.atlas.map(word, this.choice());
    const [low, high] = this.state.common ? [0, this.strongest()] : [lowest(map), peak(map).value];
    const { data } = resized(map, width, height);
    return data.map((value) => (high > low ? (value - low) / (high - low) : 0));
  }

  strongest() {
    const words = this.report.words.flatMap((word, index) => (word.kind === "word" ? [index] : []));
    return this.atlas.strongest(words, this.choice());
  }

  /** Names every shown word beside its strongest cell, which has a dot. */
  drawTags(shown) {
    const places = shown.map(({ word }) => peak(this.atlas.map(word, this.choice())));
    const tags = shown.map(({ word, colour }) => {
      const { rgb } = PALETTE[colour];
      const tag = element("span", { class: "ci-tag", text: this.report.words[word].text });
      Object.assign(tag.style, { background: css(rgb), color: readableOn(rgb) });
      return tag;
    });
    const dots = shown.map(({ colour }, index) => {
      const dot = element("span", { class: "ci-peak" });
      const { x, y } = places[index];
      Object.assign(dot.style, { left: `${100 * x}%`, top: `${100 * y}%`, background: css(PALETTE[colour].rgb) });
      return dot;
    });
    this.tags.replaceChildren(...dots, ...tags);
    const [width, height] = [this.frame.clientWidth, this.frame.clientHeight];
    const boxes = tags.map(({ offsetWidth, offsetHeight }, index) => {
      const { x, y } = places[index];
      return { x: x * width, y: y * height, width: offsetWidth, height: offsetHeight };
    });
    placed(boxes, { width, height }).forEach(({ left, top }, index) => {
      Object.assign(tags[index].style, { left: `${left}px`, top: `${top}px` });
    });
  }

  /** Shows on every chip how much of the attention under the pointer is its word's. */
  point(event) {
    if (!this.atlas) return;
    const box = this.frame.getBoundingClientRect();
    const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const values = this.report.words.map((word, index) => {
      if (word.kind !== "word") return 0;
      const map = this.atlas.map(index, this.choice());
      const [x, y] = [Math.floor(place[0] * map.width), Math.floor(place[1] * map.height)];
      return map.data[Math.min(map.height - 1, Math.max(0, y)) * map.width + Math.min(map.width - 1, Math.max(0, x))];
    });
    const most = Math.max(...values);
    this.words.share(values.map((value) => (most > 0 ? value / most : 0)));
  }

  sayLayers([first, last]) {
    if (!this.report) return "";
    const names = layerNames(this.report.groups, this.chosenSize());
    if (first === 0 && last === names.length - 1) return spoken("all");
    const [from, to] = [inWords(names[first]), inWords(names[last])];
    return first === last ? from : `${from} – ${to}`;
  }

  saySteps([first, last]) {
    if (!this.report) return "";
    const { bins } = this.report;
    if (first === 0 && last === bins.length - 1) return spoken("all");
    return `${Math.round(100 * bins[first].from)} – ${Math.round(100 * bins[last].to)} %`;
  }
}
