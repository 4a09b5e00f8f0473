/** A training on its node: what it will do, its losses and samples, how it ended, and Stop and keep. */

import { copyButton } from "../copying.js";
import { element } from "../elements.js";
import { spoken } from "../spoken.js";
import { drawChart, legend, SVG } from "./chart.js";
import { joined } from "./curves.js";
import { standing, trouble } from "./ending.js";
import { Samples } from "./samples.js";
import { outlookInWords, sentence } from "./sentence.js";

const NOTHING = { steps: [], losses: {} };
const HERE = "\u0000"; // where the word goes in a sentence that is taken apart
const LEARNED = ["learned", "stopped", "early"];

/** `address(file)` gives the URL of a sample, `stop()` asks the server to stop and keep, `keep(state)` keeps a choice. */
export class TrainingPanel {
  constructor({ address, stop, keep }) {
    Object.assign(this, { address, stop, keep, curves: NOTHING, facts: null, outlook: null, logarithmic: true });
    this.makeParts();
    this.element = element(
      "div",
      { class: "ci-view ci-training", role: "group", "aria-label": spoken("Training") },
      element("div", { class: "ci-status" }, this.badge, this.status, this.typing, element("span", { class: "ci-turner" }, this.halt)),
      this.sentence,
      this.alert,
      this.message,
      element("div", { class: "ci-run" }, this.samples.pair, this.samples.strip, this.losses),
      this.remark,
    );
    new ResizeObserver(() => this.draw()).observe(this.chart);
    this.restore({});
    this.empty();
  }

  makeParts() {
    this.badge = element("span", { class: "ci-badge", hidden: true });
    this.status = element("span", { role: "status" });
    this.sentence = element("p", { class: "ci-sentence" });
    this.alert = element("p", { class: "ci-alert", role: "alert", tabindex: "0", hidden: true });
    this.message = element("p", { class: "ci-message", text: spoken("Press Run. The losses and pictures of the training appear here.") });
    this.remark = element("p", { class: "ci-remark" });
    this.typed = element("code", { class: "ci-typed" });
    const [before, after] = spoken("Type {word} in a prompt", { word: HERE }).split(HERE);
    this.typing = element("span", { class: "ci-type", hidden: true }, before, this.typed, after, " ", copyButton(() => this.typed.textContent));
    this.scale = this.button(spoken("Log"), spoken("Logarithmic or linear scale"), () => {
      this.restore({ linear: this.logarithmic });
      this.keep({ linear: !this.logarithmic });
    });
    const halting = spoken("End the training now; the graph goes on with what was learned so far");
    this.halt = this.button(spoken("Stop and keep"), halting, () => this.stopNow());
    this.chart = document.createElementNS(SVG, "svg");
    this.chart.setAttribute("class", "ci-chart");
    this.chart.setAttribute("role", "img");
    this.legend = element("ul", { class: "ci-legend", "aria-label": spoken("Losses") });
    this.losses = element("div", { class: "ci-losses" }, element("div", { class: "ci-charted" }, this.chart, this.scale), this.legend);
    this.samples = new Samples(this.address, () => this.element?.classList.toggle("ci-sampled", !this.samples.empty));
  }

  button(text, title, click) {
    return element("button", { type: "button", class: "ci-button", text, title, click });
  }

  restore(kept) {
    this.logarithmic = kept?.linear !== true;
    this.scale.setAttribute("aria-pressed", this.logarithmic);
    this.draw();
  }

  /** Nothing was run, as far as anybody knows. */
  empty() {
    [this.facts, this.curves] = [null, NOTHING];
    this.samples.clear();
    this.label("");
    this.say("");
  }

  /** What the node will do when Run is pressed; null where nobody knows. */
  expect(outlook) {
    this.outlook = outlook;
    this.saySentence();
  }

  /** The node's turn has come, but there is nothing to see of it yet. */
  prepare(text = "") {
    if (this.facts && !this.facts.ended && !this.facts.preparing) return;
    this.empty();
    this.facts = { preparing: true, ended: false, stoppable: false };
    this.say(text || spoken("Getting ready …"));
  }

  /** The whole of a training: from the server, or from ComfyUI's history. `label` says where an old one is from. */
  show(whole, label = "") {
    if (whole?.version !== 1) return;
    this.curves = { steps: whole.steps, losses: whole.losses };
    this.facts = null;
    this.samples.clear();
    this.samples.put(whole.picture);
    this.label(label);
    this.take(whole);
  }

  /** What is new since the last news. */
  add(news) {
    if (news?.version !== 1) return;
    if (news.begins) return this.show(news);
    // The end brings the whole history again, where it went on from an earlier one.
    this.curves = joined(this.curves, news);
    this.take(news);
  }

  /** The training came to nothing: `error` says why. What was seen of it stays. */
  fail(error, label = "") {
    if (this.facts?.end === "failed" && this.facts.error) return; // the server has said so, and what is kept
    const { preparing, ...before } = this.facts ?? { preparing: true };
    // What was learned before, and cannot be used after all, is not called learned.
    if (preparing || !this.isRun()) this.empty();
    this.facts = { ...before, ended: true, end: "failed", error, kept: 0, word: "" };
    this.label(label);
    this.say("");
  }

  /** Somebody pressed Cancel before the training itself could hear it. */
  cancel() {
    if (this.facts && this.facts.ended) return;
    this.facts = { ...this.facts, preparing: false, ended: true, end: "cancelled", kept: 0, error: "" };
    this.say("");
  }

  /** Whatever is shown is of an earlier run: `text` says so. */
  label(text) {
    [this.badge.textContent, this.badge.hidden] = [text, !text];
  }

  isRun() {
    return Boolean(this.facts) && this.badge.hidden;
  }

  take(facts) {
    this.facts = { ...this.facts, preparing: false, ...facts };
    for (const sample of facts.samples) this.samples.add(sample);
    if (facts.ended || facts.begins) [this.halt.disabled, this.halt.textContent] = [false, spoken("Stop and keep")];
    this.say("");
  }

  /** Everything that is text. */
  say(preparing) {
    const facts = this.facts;
    const wrong = facts ? trouble(facts) : "";
    this.status.textContent = !facts ? spoken("Not run yet") : facts.preparing ? preparing : standing(facts);
    [this.alert.textContent, this.alert.hidden] = [wrong, !wrong];
    const over = facts?.ended && !wrong && LEARNED.concat("done").includes(facts.end);
    [this.remark.textContent, this.remark.title, this.remark.hidden] = over ? [facts.text, facts.text, false] : ["", "", true];
    const word = LEARNED.includes(facts?.end) && facts.word;
    [this.typed.textContent, this.typing.hidden] = [word ? `<${word}>` : "", !word];
    this.halt.hidden = !facts || facts.ended || facts.stoppable === false;
    this.saySentence();
    this.draw();
  }

  saySentence() {
    const now = this.facts && !this.facts.ended && this.facts.plan;
    this.sentence.textContent = now ? sentence(now) : this.outlook ? outlookInWords(this.outlook) : "";
    this.sentence.hidden = !this.sentence.textContent;
    this.sentence.title = this.sentence.textContent;
    this.sentence.classList.toggle("ci-refused", !now && Boolean(this.outlook?.refused));
  }

  async stopNow() {
    [this.halt.disabled, this.halt.textContent] = [true, spoken("Stopping …")];
    if (!(await this.stop())) [this.halt.disabled, this.halt.textContent] = [false, spoken("Stop and keep")];
  }

  draw() {
    const drawn = this.curves.steps.length > 0;
    this.message.hidden = Boolean(this.facts);
    this.losses.hidden = !drawn;
    if (!drawn) return this.chart.replaceChildren();
    drawChart(this.chart, this.curves, this.facts.total_steps, this.logarithmic);
    this.legend.replaceChildren(...legend(this.curves));
    const losses = [...this.legend.children].map((line) => line.textContent).join(", ");
    const { step, total_steps: total } = this.facts;
    this.chart.setAttribute("aria-label", spoken("Losses at step {step} of {total}: {losses}", { step, total, losses }));
  }
}
