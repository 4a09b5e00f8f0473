/** The names of losses in plain words. */

import { spoken } from "../spoken.js";

const PLAIN = {
  diffusion: () => spoken("picture error"),
  "core/embedding": () => spoken("shift of other words"),
  "core/attention": () => spoken("shift of where they look"),
  "nearest/contrastive": () => spoken("distance from real words"),
  "nearest/norm": () => spoken("length of the word"),
  "prior/diffusion": () => spoken("class picture error"),
  contrastive: () => spoken("distance from real words"),
  l2: () => spoken("length of the word"),
  loss: () => spoken("guessing error"),
  "masked accuracy": () => spoken("hidden words guessed right"),
};
const MLM = /^mlm\/(.+)$/;

/** A loss in words; its own name where nobody knows it. Of several text encoders each is named. */
export function plainly(name, all = [name]) {
  const encoder = MLM.exec(name)?.[1];
  if (!encoder) return PLAIN[name]?.() ?? name;
  const said = spoken("other words misguessed");
  return all.filter((one) => MLM.test(one)).length > 1 ? `${said} (${encoder})` : said;
}
