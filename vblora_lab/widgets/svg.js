// Drawings of vector graphics that several widgets share. Lengths are CSS pixels.

const SVG = "http://www.w3.org/2000/svg";

function shape(parent, tag, className, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  if (className) element.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

/** An empty drawing as wide as its parent. */
function canvasIn(parent, height) {
  parent.replaceChildren();
  const width = Math.max(parent.clientWidth, 180);
  const svg = shape(parent, "svg", "", { width, height, viewBox: `0 0 ${width} ${height}` });
  return { svg, width };
}

const label = (svg, x, y, text, anchor = "middle", className = "") =>
  shape(svg, "text", `vblora-svg-label ${className}`, { x, y, "text-anchor": anchor }, text);

const line = (svg, className, x1, y1, x2, y2) => shape(svg, "line", className, { x1, y1, x2, y2 });

/** A bar from y0 to y1, whichever is higher on the screen. */
const bar = (svg, className, x, y0, y1, width) =>
  shape(svg, "rect", className, { x, y: Math.min(y0, y1), width, height: Math.abs(y1 - y0) });

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes in the largest binary unit of which there is one, as `tables.readable` writes them. */
function readable(bytes) {
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), UNITS.length - 1);
  return `${(bytes / 1024 ** power).toFixed(power ? 1 : 0)} ${UNITS[power]}`;
}
