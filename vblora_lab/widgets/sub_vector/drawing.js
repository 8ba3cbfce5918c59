// Small parts of the drawings. Lengths are CSS pixels.

const COLOURS = 4; // of mixed vectors; a fifth looks like the first

/** An arrow that ends at (x, y1); none for a move too small to see. */
function arrow(svg, className, x, y0, y1, size = 5) {
  const up = y1 < y0 ? 1 : -1;
  if (Math.abs(y1 - y0) < 1.5) return;
  const tall = Math.min(size, Math.abs(y1 - y0));
  line(svg, className, x, y0, x, y1 + up * tall * 0.8);
  shape(svg, "path", `${className} vblora-sub-head`,
    { d: `M${x} ${y1}L${x - size * 0.8} ${y1 + up * tall}H${x + size * 0.8}Z` });
}

/** The values of a vector as small bars around a line, in a box. */
function drawValues(svg, values, { x, y, width, height, most }, className) {
  const each = width / values.length;
  const middle = y + height / 2;
  line(svg, "vblora-svg-zero", x, middle, x + width, middle);
  values.forEach((value, i) => bar(svg, className, x + (i + 0.12) * each, middle,
    middle - (value / most) * (height / 2), 0.76 * each));
}

const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
const signed = (value, digits = 2) =>
  (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const number = (value, digits = 2) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
const lossText = (loss) => (loss >= 0.01 || loss === 0 ? loss.toFixed(3) : loss.toPrecision(2));
const listed = (words) =>
  words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
const bounded = (value, low, high) => Math.min(Math.max(value, low), high);

/** Which colour each mixed vector has: one that stays keeps its own, a new one takes a free one. */
function coloursOf(indices, before) {
  const kept = new Map(indices.filter((i) => before.has(i)).map((i) => [i, before.get(i)]));
  const free = Array.from({ length: Math.max(COLOURS, indices.length) }, (_, i) => i)
    .filter((colour) => ![...kept.values()].includes(colour));
  for (const i of indices) if (!kept.has(i)) kept.set(i, free.shift());
  return kept;
}
