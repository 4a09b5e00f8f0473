/** A training on its node: its losses, its samples, how long it still takes, and Stop and keep. */

import { element } from "../elements.js";
import { spoken } from "../spoken.js";
import { drawChart, legend, SVG } from "./chart.js";
import { duration, joined } from "./curves.js";

const NOTHING = { steps: [], losses: {} };

/** `address(file)` gives the URL of a sample, `stop()` asks the server to stop and keep, `keep(state)` keeps a choice. */
export class TrainingPanel {
  constructor({ address, stop, keep }) {
    Object.assign(this, { address, stop, keep, curves: NOTHING, facts: null, logarithmic: true });
    this.status = element("span", { role: "status" });
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
    this.strip = element("div", { class: "ci-strip", tabindex: "0", role: "group", "aria-label": spoken("Samples during training") });
    this.element = element(
      "div",
      { class: "ci-view ci-training", role: "group", "aria-label": spoken("Training") },
      element("div", { class: "ci-status" }, this.status, element("span", { class: "ci-turner" }, this.scale, this.halt)),
      this.chart,
      this.legend,
      this.strip,
    );
    new ResizeObserver(() => this.draw()).observe(this.chart);
    this.restore({});
  }

  button(text, title, click) {
    return element("button", { type: "button", class: "ci-button", text, title, click });
  }

  restore(kept) {
    this.logarithmic = kept?.linear !== true;
    this.scale.setAttribute("aria-pressed", this.logarithmic);
    this.draw();
  }

  /** The whole of a training: from the server, or from ComfyUI's history. */
  show(whole) {
    if (whole?.version !== 1) return;
    this.curves = { steps: whole.steps, losses: whole.losses };
    this.strip.replaceChildren();
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

  take(facts) {
    this.facts = facts;
    for (const sample of facts.samples) this.addSample(sample);
    const { step, total_steps: total, seconds_left: left, ended, text } = facts;
    const progress = spoken("Step {step} of {total}", { step, total });
    const running = left === null ? progress : `${progress} · ${spoken("{time} left", { time: duration(left) })}`;
    this.status.textContent = ended ? text || progress : running;
    this.halt.hidden = ended || facts.stoppable === false;
    if (ended || facts.begins) [this.halt.disabled, this.halt.textContent] = [false, spoken("Stop and keep")];
    this.draw();
  }

  addSample({ step, ...file }) {
    const label = spoken("step {step}", { step });
    const image = element("img", { src: this.address(file), alt: spoken("Sample at {label}", { label }), error: () => figure.remove() });
    const figure = element("figure", {}, image, element("figcaption", { text: label }));
    this.strip.append(figure);
    this.strip.scrollLeft = this.strip.scrollWidth;
  }

  async stopNow() {
    [this.halt.disabled, this.halt.textContent] = [true, spoken("Stopping …")];
    if (!(await this.stop())) [this.halt.disabled, this.halt.textContent] = [false, spoken("Stop and keep")];
  }

  draw() {
    this.strip.hidden = this.strip.childElementCount === 0;
    if (!this.facts) return;
    drawChart(this.chart, this.curves, this.facts.total_steps, this.logarithmic);
    this.legend.replaceChildren(...legend(this.curves));
    const losses = [...this.legend.children].map((line) => line.textContent).join(", ");
    const { step, total_steps: total } = this.facts;
    this.chart.setAttribute("aria-label", spoken("Losses at step {step} of {total}: {losses}", { step, total, losses }));
  }
}
