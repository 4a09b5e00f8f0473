/** What a person chose in the viewer, in a form that survives a new prompt and a reload of the page. */

/** The choice as kept in a node's properties, with the defaults for whatever is missing or not what it should be. */
export function restored(kept) {
  const given = kept && typeof kept === "object" ? kept : {};
  const range = (value) => (Array.isArray(value) && value.length === 2 && value.every(Number.isFinite) ? value : null);
  const pin = (value) => typeof value?.text === "string" && Number.isInteger(value.nth) && Number.isInteger(value.colour);
  return {
    pins: Array.isArray(given.pins) ? given.pins.filter(pin) : [],
    size: typeof given.size === "string" ? given.size : null,
    layers: range(given.layers),
    steps: range(given.steps),
    image: Number.isInteger(given.image) && given.image > 0 ? given.image : 0,
    common: given.common === true,
    special: given.special === true,
  };
}

/** A word's name in a prompt that may change around it: its text and which of the equal ones it is. */
export function nameOf(words, index) {
  const { text } = words[index];
  return { text, nth: words.slice(0, index).filter((word) => word.text === text).length };
}

/** The index of a named word, -1 where the prompt no longer has it. */
export function indexOf(words, { text, nth }) {
  let seen = 0;
  return words.findIndex((word) => word.text === text && seen++ === nth);
}

/**
 * What the node's mask_words says for these words, in the prompt's order. There a word is known by its text alone, between
 * commas and whatever its case: the start and end tokens, a comma, and a word like one before it have no such name.
 */
export function maskText(words, indices) {
  const plain = ({ text }) => text.toLowerCase();
  const first = (index) => words.findIndex((word) => plain(word) === plain(words[index])) === index;
  const named = (index) => words[index].kind === "word" && !words[index].text.includes(",") && first(index);
  const found = [...indices].sort((one, other) => one - other).filter(named);
  return found.map((index) => words[index].text).join(", ");
}
