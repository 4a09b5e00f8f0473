/** What a training will do, in one sentence. No page is needed here. */

import { spoken } from "../spoken.js";
import { duration } from "./curves.js";

/** A rate as people write it: 0.5, 1e-2, 5e-6, 1.5e-4. */
export function rateInWords(rate) {
  const rounded = Number(rate.toPrecision(3));
  return rounded === 0 || rounded >= 0.1 ? String(rounded) : rounded.toExponential();
}

/** "about 50 s": no finer than an estimate can be. */
export function roughly(seconds) {
  const [, grain] = [[10, 1], [60, 5], [600, 10], [3600, 60], [Infinity, 300]].find(([end]) => seconds < end);
  const time = duration(Math.max(1, Math.round(seconds / grain) * grain)).replace(/ 0 (s|min)$/, "");
  return spoken("about {time}", { time });
}

/** How often the word is learned, by what each has its own. */
const VECTORS = {
  "": (count) => (count === 1 ? spoken("1 vector") : spoken("{count} vectors", { count })),
  layer: (count) => (count === 1 ? spoken("1 vector for every layer") : spoken("{count} vectors for every layer", { count })),
  block: (count) => (count === 1 ? spoken("1 vector for every block") : spoken("{count} vectors for every block", { count })),
};

/** The parts of the sentence, in their order: what is said of a number that is known, and what of one along a link. */
const PARTS = [
  ["steps", (count) => (count === 1 ? spoken("1 step") : spoken("{count} steps", { count })), () => spoken("steps as connected")],
  ["rate", (value) => spoken("rate {rate}", { rate: rateInWords(value) }), () => spoken("rate as connected")],
  ["weight_rate", (value) => spoken("weights at {rate}", { rate: rateInWords(value) }), () => spoken("rate of the weights as connected")],
  ["batch", (batch) => spoken("batch {batch}", { batch }), () => spoken("batch as connected")],
  ["vectors", (count, { each }) => VECTORS[each](count), () => spoken("vectors as connected")],
  ["rank", (rank) => (rank > 0 ? spoken("rank {rank}", { rank }) : spoken("whole weights")), () => spoken("rank as connected")],
  ["class_pictures", (count) => count > 0 && spoken("pictures of the class first: {count}", { count }), () => spoken("pictures of the class as connected")],
];

/** Such as "Demo model recipe: 200 steps, rate 1e-2, batch 4, 3 vectors; about 50 s". */
export function sentence(plan) {
  const said = PARTS.map(([name, say, unknown]) => {
    if (plan.connected.includes(name)) return unknown();
    return plan[name] === null ? null : say(plan[name], plan);
  });
  const numbers = said.filter(Boolean).join(", ");
  const whole = plan.recipe ? spoken("{recipe} recipe: {numbers}", { recipe: plan.recipe, numbers }) : numbers;
  return plan.seconds ? `${whole}; ${roughly(plan.seconds)}` : whole;
}

/** What the server answers of a node that is not run yet, in words. */
export function outlookInWords({ plan, plans, refused, connected }) {
  if (refused) return spoken("Cannot run so: {why}", { why: refused });
  if (connected) return spoken("What is trained depends on what is connected to {names}.", { names: connected.join(", ") });
  if (plan) return sentence(plan);
  const [demo, other] = [plans.demo, plans["stable diffusion"]].map(sentence);
  return spoken("It depends on the model. Stable Diffusion: {other}. The demo model: {demo}.", { demo, other });
}
