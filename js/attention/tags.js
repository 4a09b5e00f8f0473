/** Where the names of words lie over a picture. No page is needed here. */

const GAP = 4; // pixels between a tag and its place, and the least between two tags

/**
 * The upper left corners { left, top } of tags { x, y, width, height }, each beside its place (x, y): above it, else
 * below, else as near as there is room. None leaves the frame, and no two lie on each other while the frame has room
 * above or below them.
 */
export function placed(tags, frame) {
  const boxes = [];
  for (const { x, y, width, height } of tags) {
    const left = Math.max(0, Math.min(frame.width - width, x - width / 2));
    const lowest = Math.max(0, frame.height - height);
    const wanted = [y - GAP - height, y + GAP];
    const beside = boxes.flatMap((box) => [box.top - GAP - height, box.top + box.height + GAP]);
    const free = [...wanted, ...beside, 0, lowest].filter(
      (top) => top >= 0 && top <= lowest && !boxes.some((box) => meet({ left, top, width, height }, box)),
    );
    // Above its place, below it, or wherever its middle is nearest to it.
    const near = wanted.find((top) => free.includes(top));
    const distance = (top) => Math.abs(top + height / 2 - y);
    const top = near ?? free.sort((one, other) => distance(one) - distance(other))[0] ?? Math.min(lowest, Math.max(0, wanted[0]));
    boxes.push({ left, top, width, height });
  }
  return boxes.map(({ left, top }) => ({ left, top }));
}

function meet(one, other) {
  const apart = (near, size) => one[near] + one[size] + GAP <= other[near] || other[near] + other[size] + GAP <= one[near];
  return !apart("left", "width") && !apart("top", "height");
}
