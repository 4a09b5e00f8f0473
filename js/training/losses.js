/** The names of losses in plain words. */

import { spoken } from "../spoken.js";

const PLAIN = {
  diffusion: "picture error",
  "core/embedding": "shift of other words",
  "core/attention": "shift of where they look",
  "nearest/contrastive": "distance from real words",
  "nearest/norm": "length of the word",
  "prior/diffusion": "class picture error",
  contrastive: "distance from real words",
  l2: "length of the word",
  loss: "guessing error",
  "masked accuracy": "hidden words guessed right",
};
const MLM = /^mlm\/(.+)$/;

/** A loss in words; its own name where nobody knows it. Of several text encoders each is named. */
export function plainly(name, all = [name]) {
  const encoder = MLM.exec(name)?.[1];
  if (!encoder) return PLAIN[name] ? spoken(PLAIN[name]) : name;
  const said = spoken("other words misguessed");
  return all.filter((one) => MLM.test(one)).length > 1 ? `${said} (${encoder})` : said;
}
