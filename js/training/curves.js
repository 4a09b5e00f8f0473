/** A training's curves as numbers: collecting them, their scale, and how to write them. No page is needed here. */

const SMOOTHING = 0.9;
const MOST = 1200; // points of a curve that are kept; more are joined two by two

/** The curves so far: { steps: [..], losses: { name: [number or null, ..] } }, grown by news of the same form. */
export function joined(curves, news) {
  const steps = [...curves.steps, ...news.steps];
  const losses = {};
  for (const name of new Set([...Object.keys(curves.losses), ...Object.keys(news.losses)])) {
    const missing = (part) => Array(part.steps.length).fill(null);
    losses[name] = [...(curves.losses[name] ?? missing(curves)), ...(news.losses[name] ?? missing(news))];
  }
  return steps.length > MOST ? halved({ steps, losses }) : { steps, losses };
}

function halved({ steps, losses }) {
  const finite = (values) => values.filter((value) => value !== null);
  const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
  const firsts = (values) => values.map((_, i) => i).filter((i) => i % 2 === 0);
  const pairs = (values) => firsts(values).map((i) => values.slice(i, i + 2));
  const means = (values) => pairs(values).map((two) => mean(finite(two)));
  return {
    steps: pairs(steps).map((two) => two.at(-1)),
    losses: Object.fromEntries(Object.entries(losses).map(([name, values]) => [name, means(values)])),
  };
}

/** Running average without the pull towards 0 that a plain one has at its start; a missing value repeats it. */
export function smoothed(values, decay = SMOOTHING) {
  let [average, weight] = [0, 0];
  return values.map((value) => {
    if (Number.isFinite(value)) [average, weight] = [decay * average + (1 - decay) * value, decay * weight + 1 - decay];
    return weight > 0 ? average / weight : null;
  });
}

/** The scale of all values: { low, high, logarithmic, place(value) in [0, 1], marks }. Null where there is nothing. */
export function scaleOf(curves, logarithmic) {
  const values = curves.flat().filter((value) => Number.isFinite(value) && (!logarithmic || value > 0));
  if (values.length === 0) return null;
  // No spreading of arguments: there can be too many.
  let low = values.reduce((a, b) => Math.min(a, b));
  let high = values.reduce((a, b) => Math.max(a, b));
  if (!logarithmic) low = Math.min(0, low);
  if (!(high > low)) [low, high] = logarithmic ? [low / 2, high * 2] : [low, low + 1];
  const bend = logarithmic ? Math.log10 : (value) => value;
  const place = (value) => (bend(value) - bend(low)) / (bend(high) - bend(low));
  return { low, high, logarithmic, place, marks: logarithmic ? decades(low, high) : evenMarks(low, high) };
}

function decades(low, high) {
  const marks = [];
  for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power++) marks.push(10 ** power);
  // Within one power of ten its ends say more.
  return marks.length >= 2 ? marks.filter((_, i) => i % Math.ceil(marks.length / 5) === 0) : [low, high];
}

function evenMarks(low, high) {
  const rough = (high - low) / 3;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * unit >= rough) * unit;
  const marks = [];
  for (let mark = Math.ceil(low / step) * step; mark <= high * 1.0001; mark += step) marks.push(Number(mark.toPrecision(6)));
  return marks;
}

/** A number short enough for a label. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** "1 h 5 min", "3 min 20 s", "12 s". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}
