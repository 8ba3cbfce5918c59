// What a newcomer's eyes would find wrong in an open notebook; called from tools/watched/lab.py.

(() => {
const SHORT = 60; // letters of a text that stand for it

function visible(element) {
  return element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
}

function named(element) {
  const text = (element.textContent ?? "").trim().replace(/\s+/g, " ").slice(0, SHORT);
  const kind = typeof element.className === "string" && element.className ? `.${element.className.split(" ")[0]}` : "";
  return `${element.tagName.toLowerCase()}${kind} "${text}"`;
}

/** The notebook of this page; whatever else JupyterLab may have in front. */
function notebook() {
  for (const panel of jupyterapp.shell.widgets("main")) if (panel.context?.isReady && panel.content.model?.cells.length) return panel.content;
  throw new Error("no notebook is open");
}

const cells = () => notebook().widgets;

const names = {}; // of cells that were made here

const cellOf = (id) => {
  const found = cells().find((cell) => cell.model.id === (names[id] ?? id));
  if (!found) throw new Error(`there is no cell ${id}`);
  return found;
};

/** How often each cell has been begun and ended, counted from here on. */
const runs = {};
function countRunsOf(model) {
  const count = { begun: 0, ended: 0 };
  model.sharedModel.changed.connect((_, { executionStateChange: change }) => {
    if (change?.newValue === "running") count.begun += 1;
    if (change?.newValue === "idle" && count.ended < count.begun) count.ended += 1;
  });
  return count;
}

function countRuns() {
  for (const { model } of cells()) if (model.type === "code") runs[model.id] = countRunsOf(model);
}

/** The cells with what they show: [id, element] of each. */
function* outputs() {
  for (const cell of cells()) {
    for (const element of cell.node.querySelectorAll(".jp-OutputArea-output, .jp-RenderedMarkdown")) {
      if (visible(element)) yield [cell.model.id, element];
    }
  }
}

// ---- what is wider than its place, or cut off

const mayScroll = (element) => /auto|scroll/.test(getComputedStyle(element).overflowX);

function wide(output) {
  if (output.scrollWidth > output.clientWidth + 1) return [`is ${output.scrollWidth} wide in ${output.clientWidth}`];
  return [];
}

function cut(output) {
  const found = [];
  for (const element of output.querySelectorAll("[class*=vblora], [class*=vblora] *, .vblora-table *")) {
    if (!visible(element) || element.title || element.closest("svg, canvas, select, .vblora-table, .vblora-screen-reader")) continue;
    const style = getComputedStyle(element);
    const hides = /hidden|clip/.test(style.overflowX) && element.scrollWidth > element.clientWidth + 1;
    if (hides && element.textContent.trim()) found.push(`cuts ${named(element)}`);
  }
  for (const svg of output.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const out = box.left < frame.left - 1.5 || box.right > frame.right + 1.5 || box.top < frame.top - 1.5 || box.bottom > frame.bottom + 1.5;
      if (out && visible(text) && text.textContent.trim()) found.push(`cuts ${named(text)} at the edge of its drawing`);
    }
  }
  for (const button of output.querySelectorAll("button")) {
    if (visible(button) && button.scrollWidth > button.clientWidth + 1) found.push(`cuts ${named(button)}`);
  }
  return found;
}

/** Printed lines that are broken because they are longer than the page is wide: tables fall apart. */
function wrapped(output) {
  const found = [];
  for (const pre of output.querySelectorAll("pre")) {
    const range = document.createRange();
    range.selectNodeContents(pre);
    const lines = pre.textContent.replace(/\n+$/, "").split("\n");
    const height = parseFloat(getComputedStyle(pre).lineHeight);
    const shown = Math.round(range.getBoundingClientRect().height / height);
    if (shown > lines.length) {
      const longest = lines.reduce((a, b) => (a.length > b.length ? a : b));
      found.push(`breaks lines of up to ${longest.length} letters: "${longest.trim().slice(0, SHORT)}"`);
    }
  }
  return found;
}

// ---- contrast

const LEAST = 4.5, LEAST_LARGE = 3; // of WCAG 2, level AA; a sign alone counts as large

function rgba(text) {
  const canvas = (rgba.canvas ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true }));
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return { rgb: [r, g, b], a: a / 255 };
}

function over(top, below) {
  return top.rgb.map((value, i) => value * top.a + below[i] * (1 - top.a));
}

function background(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour.a > 0) layers.push(colour);
    if (colour.a === 1) break;
  }
  return [...layers.reverse(), ...boxesUnder(element)].reduce((below, top) => over(top, below), [255, 255, 255]);
}

/** The colours of the boxes of a drawing that a text of it lies on, the lowest first. */
function boxesUnder(text) {
  const drawing = text.closest("svg");
  if (!drawing) return [];
  const { left, right, top, bottom } = text.getBoundingClientRect();
  const [x, y] = [(left + right) / 2, (top + bottom) / 2];
  return [...drawing.querySelectorAll("rect")].filter((rect) => {
    const box = rect.getBoundingClientRect();
    const isBefore = rect.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING;
    return isBefore && visible(rect) && box.left <= x && x <= box.right && box.top <= y && y <= box.bottom;
  }).map((rect) => {
    const { fill, fillOpacity, opacity } = getComputedStyle(rect);
    const { rgb, a } = fill === "none" ? { rgb: [0, 0, 0], a: 0 } : rgba(fill);
    return { rgb, a: a * fillOpacity * opacity };
  });
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const c = value / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

function faint(output) {
  const found = [];
  const walker = document.createTreeWalker(output, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.closest("[class*=vblora], .jp-RenderedHTMLCommon")) continue;
    if (!visible(element) || element.closest(":disabled, script, style, option, .mjx-container, mjx-container, noscript")) continue;
    const style = getComputedStyle(element);
    const below = background(element);
    const ink = rgba(element.closest("svg") ? style.fill : style.color);
    if (ink.a === 0) continue;
    const ratio = contrast(over(ink, below), below);
    const size = parseFloat(style.fontSize), large = walker.currentNode.textContent.trim().length === 1 || size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? LEAST_LARGE : LEAST) - 0.05) found.push(`has a contrast of ${ratio.toFixed(1)} in ${named(element)}`);
  }
  return found;
}

// ---- widgets

function lost(output) {
  const text = output.textContent;
  const found = [];
  if (/Error displaying widget|model not found|Error creating widget|Loading widget/.test(text)) found.push(`shows "${text.trim().slice(0, SHORT)}"`);
  return found;
}

/** All that is wrong with what the cells show now: lines of text, each with its cell. */
function faults(kinds) {
  const checks = { wide, cut, wrapped, faint, lost };
  const found = new Set();
  for (const [id, output] of outputs()) {
    for (const kind of kinds) for (const text of checks[kind](output)) found.add(`${id}: ${kind}: ${text}`);
  }
  return [...found];
}

/** A number for all that a cell's output shows: texts, values, states and drawings. */
function look(cell) {
  const root = cell.outputArea.node;
  const parts = [root.innerText];
  for (const e of root.querySelectorAll("input, select, textarea")) parts.push(e.value, e.checked);
  for (const e of root.querySelectorAll("[aria-pressed], [aria-expanded], [aria-valuenow]")) {
    parts.push(e.ariaPressed, e.ariaExpanded, e.getAttribute("aria-valuenow"));
  }
  for (const e of root.querySelectorAll("details")) parts.push(e.open);
  for (const e of root.querySelectorAll("canvas")) parts.push(e.toDataURL());
  for (const e of root.querySelectorAll("svg")) parts.push(e.innerHTML);
  let hash = 0;
  for (const letter of parts.join("\n")) hash = (hash * 31 + letter.codePointAt(0)) | 0;
  return hash;
}

/** Widgets and panels that each cell shows. */
function widgets() {
  const found = {};
  for (const cell of cells()) {
    const count = cell.outputArea?.node.querySelectorAll(".vblora-panel, .vblora-chart").length ?? 0;
    if (count) found[cell.model.id] = count;
  }
  return found;
}

/** Notes when a panel looks different, from now on: seconds since now, and the words in its head. */
function watchPanel(cell) {
  const panel = cell.outputArea.node.querySelector(".vblora-panel");
  const began = performance.now();
  const seen = (window.watchedPanel = []);
  let before = null;
  const note = () => {
    const words = [".vblora-status", ".vblora-doing", ".vblora-steps"].map((part) => panel.querySelector(part)?.textContent ?? "");
    const drawn = [...panel.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL()).join();
    const now = words.join("|") + panel.innerText + drawn;
    if (before !== null && now !== before) seen.push([(performance.now() - began) / 1000, ...words]);
    before = now;
  };
  note();
  const timer = setInterval(() => {
    note();
    if (!panel.isConnected || seen.length > 4000) clearInterval(timer);
  }, 40);
  window.stopWatching = () => clearInterval(timer);
}

/** Name the cell that is chosen. */
function call(name) {
  const { model } = notebook().activeCell;
  names[name] = model.id;
  runs[name] = countRunsOf(model);
}

window.watched = { runs, countRuns, call, notebook, cells, cellOf, faults, look, widgets, watchPanel };
})();
