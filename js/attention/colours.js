/** Colours of pinned words, and how coloured maps are laid over a picture. */

/** Okabe and Ito's palette, without black: told apart with every common kind of colour vision. */
export const PALETTE = [
  { name: "orange", rgb: [230, 159, 0] },
  { name: "sky blue", rgb: [86, 180, 233] },
  { name: "green", rgb: [0, 158, 115] },
  { name: "yellow", rgb: [240, 228, 66] },
  { name: "purple", rgb: [204, 121, 167] },
  { name: "vermilion", rgb: [213, 94, 0] },
  { name: "blue", rgb: [0, 114, 178] },
];

const INK = 0.78; // how much of the picture a map's strongest cell covers
const SHADE = 0.55; // how dark the picture is where no map is

export const css = (rgb) => `rgb(${rgb.join(" ")})`;

/** Black or white, whichever is easier to read on the colour (WCAG relative luminance). */
export function readableOn(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

/** The first colour that nothing uses yet; after the last they begin again. */
export function freeColour(used) {
  const free = PALETTE.findIndex((_, index) => !used.includes(index));
  return free >= 0 ? free : used.length % PALETTE.length;
}

/**
 * RGBA bytes to lay over a picture: each layer { data (values in [0, 1]), rgb } in its colour, mixed where they meet,
 * and shade where none is.
 */
export function blend(layers, length) {
  const bytes = new Uint8ClampedArray(length * 4);
  for (let i = 0; i < length; i++) {
    let [red, green, blue, sum, clear, most] = [0, 0, 0, 0, 1, 0];
    for (const { data, rgb } of layers) {
      const value = Math.min(1, Math.max(0, data[i]));
      const ink = INK * value;
      [red, green, blue, sum] = [red + ink * rgb[0], green + ink * rgb[1], blue + ink * rgb[2], sum + ink];
      clear *= 1 - ink;
      most = Math.max(most, value);
    }
    const cover = 1 - clear;
    const alpha = 1 - clear * (1 - SHADE * (1 - most));
    const strength = sum > 0 && alpha > 0 ? cover / alpha / sum : 0;
    bytes.set([red * strength, green * strength, blue * strength, 255 * alpha], 4 * i);
  }
  return bytes;
}
