// One row for each sub-vector, one column for each bank vector; the bank's usage above the columns.
// Below: a slider over the steps of a trace, linked views, a table, and a bench to change mixtures.
//
// A row is a sub-vector's number, a column a bank vector's. Where they stand on the screen is their
// place: `rowAt[place]` is the row there, `placeOfRow[row]` its place, and so for columns.

// Weight 0 to 1, pale to strong against the page: the same colours as plots.py, reversed when dark.
const RAMP = ["#aadeb7", "#7accbc", "#41b6c4", "#1f92c0", "#2260aa", "#263698", "#0a1e5c"];
const DARK_RAMP = ["#2b4fa3", "#2474b4", "#2397c1", "#45b8c4", "#7fcfbc", "#c2e7b6", "#f7fcc9"];
// Chosen only at the start, only at the end, or at both: different in hue and in lightness.
const FOOTPRINT = ["#c2570c", "#5aa9d6", "#0a1e5c"];
const DARK_FOOTPRINT = ["#d9822b", "#3d7fc4", "#f7fcc9"];
const TIMES = ["first choice only", "final choice only", "both"];
const USAGE = 46; // height of the bars, in CSS pixels like all lengths here
const GAP = 8; // between bars and cells
const AXIS = 34; // tick labels and the axis label
const NARROW = 520; // a stage less wide than this leaves the modules' names out
const LABELS = 0.24; // of the stage's width: what a name beside the rows may take at most
const PAGE = 20; // rows of the table at a time
const ROWS_BY = {
  layer: "layer", module: "module", matrix: "matrix A, B", strongest: "strongest bank vector",
  entropy: "entropy", similarity: "similarity",
};
const COLUMNS_BY = { number: "number", usage: "usage", similarity: "similarity" };
const MODULE_ORDERS = ["layer", "module"]; // in which a module's sub-vectors lie together
const VIEWS = { modules: "modules", weights: "sub-vectors", footprint: "first against last" };
const KEPT = 76; // width of the bars beside the rows
const KEPT_GAP = 18; // room for arrows between cells and those bars
const QUESTION = "Which bank vectors does each module use more than chance would?";
const TITLE = "What each sub-vector takes from the bank";
const MODULE_HINT = "Point at a cell, or use the arrow keys. A click (or enter) opens a module's sub-vectors.";
const HINT =
  "Point at a cell, or use the arrow keys. A click pins a row; a click on a bar lights all that share it.";
const LABEL =
  "Map of modules, or of sub-vectors, by bank vectors. Arrow keys move the cell cursor, control with " +
  "left or right goes to the next cell that is chosen or stands out. Enter opens a module, backspace " +
  "closes it; among sub-vectors, enter pins the row. Space lights all that share the bank vector, z " +
  "shows one layer alone, plus and minus zoom, escape clears. The button Table shows the same as a table.";

function rampColour(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const channel = (stop, i) => parseInt(stops[stop].slice(1 + 2 * i, 3 + 2 * i), 16);
  const mix = [0, 1, 2].map((i) =>
    Math.round(channel(low, i) + (at - low) * (channel(low + 1, i) - channel(low, i))));
  return `rgb(${mix.join(" ")})`;
}

const SHADES = 64;
const shades = (stops) => Array.from({ length: SHADES }, (_, i) => rampColour(stops, i / (SHADES - 1)));
const LIGHT_SHADES = shades(RAMP);
const DARK_SHADES = shades(DARK_RAMP);
const shadeOf = (all, share) => all[Math.round(Math.min(Math.max(share, 0), 1) * (SHADES - 1))];

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
const bound = (value, low, high) => Math.min(Math.max(value, low), high);
