/** The losses of a training as lines. Each line has a colour, a dash of its own and a line of text. */

import { css, PALETTE } from "../attention/colours.js";
import { element } from "../elements.js";
import { spoken } from "../spoken.js";
import { scaleOf, short, smoothed } from "./curves.js";
import { plainly } from "./losses.js";

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "12 4", "4 2", "1 2"];
const [LEFT, RIGHT, TOP, BOTTOM] = [44, 8, 8, 16];
const LINE = 11; // pixels that a number is high

export const style = (index) => ({
  stroke: css(PALETTE[index % PALETTE.length].rgb),
  "stroke-dasharray": DASHES[index % DASHES.length],
});

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Draws { steps, losses } into an <svg> as large as it is in the page. */
export function drawChart(svg, { steps, losses }, totalSteps, logarithmic) {
  const [width, height] = [svg.clientWidth || 360, svg.clientHeight || 120];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const names = Object.keys(losses);
  const curves = names.map((name) => smoothed(losses[name]));
  const scale = scaleOf(curves, logarithmic);
  if (scale === null) return svg.replaceChildren();
  const x = (step) => LEFT + ((width - LEFT - RIGHT) * step) / Math.max(1, totalSteps);
  const y = (value) => TOP + (height - TOP - BOTTOM) * (1 - scale.place(value));
  const parts = apart(scale.marks, y).flatMap((mark) => [
    shape("line", { class: "ci-grid", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) }),
    shape("text", { x: LEFT - 5, y: y(mark) + 3, "text-anchor": "end" }, short(mark)),
  ]);
  parts.push(shape("text", { x: LEFT, y: height - 4 }, spoken("step {step}", { step: 0 })));
  parts.push(shape("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, String(totalSteps)));
  curves.forEach((values, index) => {
    const drawn = values.flatMap((value, i) => (value === null || (logarithmic && value <= 0) ? [] : [[x(steps[i]), y(value)]]));
    // A single point has no length: it is drawn as a short line.
    if (drawn.length === 1) drawn.push([drawn[0][0] + 2, drawn[0][1]]);
    parts.push(shape("polyline", { ...style(index), points: drawn.map((point) => point.join(",")).join(" ") }));
  });
  return svg.replaceChildren(...parts);
}

/** Those of the marks that have room for their numbers, from the lowest on. */
function apart(marks, y) {
  const kept = [];
  for (const mark of marks) if (kept.length === 0 || y(kept.at(-1)) - y(mark) >= LINE) kept.push(mark);
  return kept;
}

/** One <li> a loss: its line, its name and its value now. */
export function legend({ losses }) {
  const names = Object.keys(losses);
  return names.map((name, index) => {
    const sample = shape("svg", { "aria-hidden": "true" });
    sample.append(shape("line", { ...style(index), x1: 0, x2: 18, y1: 4, y2: 4, "stroke-width": 2 }));
    const value = smoothed(losses[name]).at(-1);
    return element("li", { title: name }, sample, `${plainly(name, names)} ${short(value)}`);
  });
}

export { SVG };
