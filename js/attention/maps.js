/**
 * Attention maps as numbers: where a map lies in the atlas, and how maps become one. No page is needed here.
 *
 * A report is what the ShowAttention node sends (see ARCHITECTURE.md, "How the page talks to nodes"). A map is
 * { data: Float32Array, width, height }, row by row.
 */

/** The number of a tile: images outermost, then step bins, groups of layers, words. */
export function tileIndex(report, image, bin, group, word) {
  const { bins, groups, words } = report;
  return ((image * bins.length + bin) * groups.length + group) * words.length + word;
}

/** How many tiles an atlas of this report has. */
export function tileCount(report) {
  return report.images * report.bins.length * report.groups.length * report.words.length;
}

/** The map of one tile. Its group's cells are the tile's upper left corner; `pixels` is the atlas, a byte each. */
export function tileMap(report, pixels, atlasWidth, image, bin, group, word) {
  const index = tileIndex(report, image, bin, group, word);
  const { width, height } = report.groups[group];
  const left = (index % report.tile.columns) * report.tile.width;
  const top = Math.floor(index / report.tile.columns) * report.tile.height;
  const unit = report.scale[index] / 255;
  const data = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = (top + y) * atlasWidth + left;
    for (let x = 0; x < width; x++) data[y * width + x] = pixels[row + x] * unit;
  }
  return { data, width, height };
}

/** The map at another size: linear between the centres of its cells, constant beyond the outermost. */
export function resized(map, width, height) {
  if (map.width === width && map.height === height) return map;
  const data = new Float32Array(width * height);
  const across = between(map.width, width);
  const down = between(map.height, height);
  for (let y = 0; y < height; y++) {
    const [top, bottom, v] = [down.low[y] * map.width, down.high[y] * map.width, down.part[y]];
    for (let x = 0; x < width; x++) {
      const [left, right, u] = [across.low[x], across.high[x], across.part[x]];
      const above = map.data[top + left] * (1 - u) + map.data[top + right] * u;
      const below = map.data[bottom + left] * (1 - u) + map.data[bottom + right] * u;
      data[y * width + x] = above * (1 - v) + below * v;
    }
  }
  return { data, width, height };
}

/** For every cell of the new size: the two old cells that it lies between, and how far it is on the way. */
function between(from, to) {
  const low = new Int32Array(to);
  const high = new Int32Array(to);
  const part = new Float32Array(to);
  for (let cell = 0; cell < to; cell++) {
    const place = Math.min(from - 1, Math.max(0, ((cell + 0.5) * from) / to - 0.5));
    low[cell] = Math.floor(place);
    high[cell] = Math.min(from - 1, low[cell] + 1);
    part[cell] = place - low[cell];
  }
  return { low, high, part };
}

/** The mean of maps, at the size of the largest. */
export function mean(maps) {
  const width = Math.max(...maps.map((map) => map.width));
  const height = Math.max(...maps.map((map) => map.height));
  const data = new Float32Array(width * height);
  for (const map of maps) {
    const { data: values } = resized(map, width, height);
    for (let i = 0; i < data.length; i++) data[i] += values[i] / maps.length;
  }
  return { data, width, height };
}

/** The largest value of a map and its cell, as { value, x, y } with x and y in [0, 1]. */
export function peak(map) {
  let best = 0;
  for (let i = 1; i < map.data.length; i++) if (map.data[i] > map.data[best]) best = i;
  const [x, y] = [best % map.width, Math.floor(best / map.width)];
  return { value: map.data[best], x: (x + 0.5) / map.width, y: (y + 0.5) / map.height };
}

/** The smallest value of a map. */
export const lowest = (map) => map.data.reduce((one, other) => Math.min(one, other), Infinity);

/** The indices of groups of layers in the order in which the network runs them: those of one size, or all (null). */
export function byDepth(groups, size = null) {
  const indices = groups.map((_, index) => index).sort((a, b) => groups[a].depth - groups[b].depth || a - b);
  return size === null ? indices : indices.filter((index) => groups[index].size === size);
}

/**
 * What to call the groups of `byDepth`: "down", or "16 x 16, down" where they are of all sizes (null); with a number
 * where several are alike.
 */
export function layerNames(groups, size = null) {
  const labels = byDepth(groups, size).map((index) => groups[index].label);
  const names = size === null ? labels : labels.map((label) => label.split(", ").at(-1));
  const seen = new Map();
  return names.map((name) => {
    seen.set(name, (seen.get(name) ?? 0) + 1);
    return names.filter((other) => other === name).length > 1 ? `${name} ${seen.get(name)}` : name;
  });
}

/** The sizes of maps that there are, the finest first. */
export function sizes(groups) {
  const finer = (one, other) => other.height * other.width - one.height * one.width;
  return [...new Set([...groups].sort(finer).flatMap(({ size }) => size ?? []))];
}

/** The indices low..high, both within the length; everything where the range is null. */
export function span(range, length) {
  const [low, high] = clamped(range, length);
  return Array.from({ length: high - low + 1 }, (_, index) => low + index);
}

/** A range [low, high] of a list of that length; a wider or missing one is the whole list. */
export function clamped(range, length) {
  const last = Math.max(0, length - 1);
  if (!Array.isArray(range)) return [0, last];
  const [low, high] = range.map((value) => Math.min(last, Math.max(0, Math.round(Number(value) || 0))));
  return low <= high ? [low, high] : [high, low];
}

/**
 * The decoded atlas: gives the mean map of a word over chosen layers and steps, and remembers it.
 *
 * `choice` is { image, size, layers, steps }: `layers` a range in the order of `byDepth` for that size, `steps` a range
 * of bins.
 */
export class Atlas {
  constructor(report, pixels, width) {
    if (!(pixels.length >= report.tile.width * report.tile.height * tileCount(report)))
      throw new Error("the atlas is smaller than its tiles");
    Object.assign(this, { report, pixels, width, known: new Map() });
  }

  map(word, choice) {
    const order = byDepth(this.report.groups, choice.size);
    const layers = span(choice.layers, order.length).map((place) => order[place]);
    const steps = span(choice.steps, this.report.bins.length);
    const key = JSON.stringify([word, choice.image, layers, steps]);
    if (!this.known.has(key)) {
      // Old choices are not worth their memory: a slider passes through many.
      if (this.known.size > 512) this.known.clear();
      const tiles = layers.flatMap((group) =>
        steps.map((bin) => tileMap(this.report, this.pixels, this.width, choice.image, bin, group, word)),
      );
      this.known.set(key, mean(tiles));
    }
    return this.known.get(key);
  }

  /** What the strongest cell of any of these words is: the common measure of their maps. */
  strongest(words, choice) {
    return Math.max(0, ...words.map((word) => peak(this.map(word, choice)).value));
  }
}
