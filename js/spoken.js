/** The views' texts in the page's language. English is what the modules say; js/texts/<language>.json has the others. */

let texts = {};

/** From now on texts are said as `table` has them: English to the other language. */
export function speak(table) {
  texts = table;
}

/** A text in the page's language, or as it stands where that has none; {name} stands for one of `values`. */
export function spoken(english, values = {}) {
  return (texts[english] ?? english).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
