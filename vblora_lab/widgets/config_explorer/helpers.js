// The form on the left, and what the kernel says the config would do on the right.
// Every text goes in through textContent: names of modules are shown, whatever they hold.

const SVG = "http://www.w3.org/2000/svg";
const ALL_LINEAR = "all-linear";
const MOST_OPTIONS = 60; // in a list of names; of more, only their number is given
const POWERS = (high) => [1, 1.5].flatMap((f) => Array.from({ length: 21 }, (_, i) => f * 2 ** i))
  .filter((v) => Number.isInteger(v) && v <= high).sort((a, b) => a - b);
const ONE_TWO_FIVE = [-4, -3, -2, -1, 0].flatMap((e) => [1, 2, 5].map((f) => Number(`${f}e${e}`)))
  .filter((v) => v <= 1);
const MARKS = { // sign in the rows -> class and meaning
  A: ["adapted", "adapted"], S: ["saved", "trained whole"], X: ["misfit", "named, but doesn't fit"],
  "~": ["mixed", "some of them"], "-": ["left", "left as it is"],
};
let views = 0; // ids and radio buttons need names of their own in each view

function draw(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

function button(parent, text, className, onClick) {
  const element = make(parent, "button", className, text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const ending = (name) => name.slice(name.lastIndexOf(".") + 1);
const isNamedBy = (full, name) => full === name || full.endsWith(`.${name}`);
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** Ascending numbers as ranges: "0-4, 7". */
function ranges(numbers) {
  const runs = [];
  for (const n of numbers) {
    if (runs.length && n === runs.at(-1)[1] + 1) runs.at(-1)[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(", ");
}

/** 1000 -> "1 k", 1000000 -> "1 M". */
function decimal(value) {
  const power = Math.floor(Math.log10(value) / 3 + 1e-9);
  return `${Math.round(value / 1000 ** power)}${["", " k", " M", " G", " T"][power] ?? ""}`;
}

function binary(value) {
  const power = Math.floor(Math.log2(value) / 10 + 1e-9);
  return `${Math.round(value / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}
