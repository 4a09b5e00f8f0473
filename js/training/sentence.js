/** What a training will do, in one sentence. No page is needed here. */

import { spoken } from "../spoken.js";
import { duration } from "./curves.js";

/** A rate as people write it: 1e-2, 5e-6, 1.5e-4. */
export function rateInWords(rate) {
  return Number(rate.toPrecision(3)).toExponential().replace("e+0", "").replace("e+", "e");
}

/** "about 50 s": no finer than an estimate can be. */
export function roughly(seconds) {
  const [, grain] = [[10, 1], [60, 5], [600, 10], [3600, 60], [Infinity, 300]].find(([end]) => seconds < end);
  return spoken("about {time}", { time: duration(Math.max(1, Math.round(seconds / grain) * grain)) });
}

const counted = (count, one, more) => spoken(count === 1 ? one : more, { count });

const VECTORS = {
  "": (count) => counted(count, "{count} vector", "{count} vectors"),
  layer: (count) => counted(count, "{count} vector for every layer", "{count} vectors for every layer"),
  block: (count) => counted(count, "{count} vector for every block", "{count} vectors for every block"),
};

/** The parts of the sentence, in their order: what is said of a number that is known, and its name. */
const PARTS = [
  ["steps", (count) => counted(count, "{count} step", "{count} steps"), "steps"],
  ["rate", (value) => spoken("rate {rate}", { rate: rateInWords(value) }), "rate"],
  ["weight_rate", (value) => spoken("rate of the weights {rate}", { rate: rateInWords(value) }), "rate of the weights"],
  ["batch", (value) => spoken("batch {batch}", { batch: value }), "batch"],
  ["vectors", (count, { each }) => VECTORS[each](count), "vectors"],
  ["rank", (value) => (value > 0 ? spoken("rank {rank}", { rank: value }) : spoken("whole weights")), "rank"],
  ["class_pictures", (count) => count > 0 && counted(count, "{count} picture of the class first", "{count} pictures of the class first"), "pictures of the class"],
];

/** Such as "Demo model recipe: 200 steps, rate 1e-2, batch 4, 3 vectors; about 50 s". */
export function sentence(plan) {
  const said = PARTS.map(([name, say, called]) => {
    if (plan.connected.includes(name)) return spoken("{name} as connected", { name: spoken(called) });
    return plan[name] === null ? null : say(plan[name], plan);
  });
  const numbers = said.filter(Boolean).join(", ");
  const whole = plan.recipe ? spoken("{recipe} recipe: {numbers}", { recipe: spoken(plan.recipe), numbers }) : numbers;
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
