// What both canvas widgets share. Python puts this file before each widget's own, as one module.

/** A bytes trait (a DataView into a larger buffer, or nothing yet) as an array of numbers. */
function numbers(ArrayType, view) {
  if (!view) return new ArrayType(0);
  return new ArrayType(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/** Begins the ids in a widget: each widget of a page has a copy of this file, and so another one. */
const PREFIX = `vblora-${Math.random().toString(36).slice(2)}`;

/** A new element inside `parent`. */
function make(parent, tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

/**
 * Keys pressed in here belong to the widget, not to the notebook's shortcuts. JupyterLab's look for
 * the attribute above the element in focus alone, and would take the arrows from a slider. Escape
 * gives the focus back to the cell around the widget.
 */
function keepKeys(root) {
  root.dataset.lmSuppressShortcuts = "true";
  root.addEventListener("keydown", (event) => event.stopPropagation());
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") root.parentElement.closest("[tabindex]")?.focus();
  }, true); // before those in here, of which some let no key out
}

/** A canvas with its heading, legend, tooltip and spoken read-out: the frame of both widgets. */
function frame(el, title, label) {
  const root = make(el, "div", "vblora-chart");
  keepKeys(root);
  const head = make(root, "div", "vblora-chart-head");
  make(head, "div", "vblora-chart-title", title);
  const legend = make(head, "div", "vblora-legend");
  const stage = make(root, "div", "vblora-stage");
  const canvas = make(stage, "canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", label);
  const tip = make(stage, "div", "vblora-tip");
  tip.setAttribute("aria-hidden", "true"); // the read-out says the same
  tip.hidden = true;
  const readout = make(root, "div", "vblora-readout");
  readout.setAttribute("role", "status");
  return { root, legend, stage, canvas, tip, readout };
}

/** The theme's colours as CSS strings, and whether ink is light on dark. */
function theme(root) {
  const style = getComputedStyle(root);
  const read = (name) => style.getPropertyValue(`--vblora-${name}`).trim();
  const [red, green, blue] = style.color.match(/[\d.]+/g).map(Number);
  return {
    dark: 0.3 * red + 0.59 * green + 0.11 * blue > 128,
    ink: read("ink"), faint: read("faint"), rule: read("rule"), paper: read("paper"),
    line: read("line"), accent: read("accent"), font: style.fontFamily,
  };
}

/** Size a canvas to its box in device pixels; returns a context that draws in CSS pixels. */
function pen(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** `draw`, at most once for each frame the screen shows, however often it is asked for. */
function oncePerFrame(draw) {
  let asked = 0;
  return () => {
    if (!asked) asked = requestAnimationFrame(() => { asked = 0; draw(); });
  };
}

/** Call `redraw` when the box, the zoom or the theme changes; returns a function that stops it. */
function onAppearance(element, redraw) {
  const box = new ResizeObserver(redraw);
  box.observe(element);
  const themes = new MutationObserver(redraw);
  for (const node of [document.documentElement, document.body])
    themes.observe(node, { attributes: true });
  window.addEventListener("resize", redraw);
  return () => {
    box.disconnect();
    themes.disconnect();
    window.removeEventListener("resize", redraw);
  };
}

/** Round numbers from `low` to `high`, about `count` of them, on steps of 1, 2 or 5 times 10^n. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => (first + i) * step);
}

/** A number as a label: as many decimals as the distance between ticks needs. */
function tickText(value, step) {
  return value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
}

/** Show `tip` beside the point (x, y) of the stage, on the side where there is room. */
function placeTip(tip, stage, x, y) {
  tip.hidden = false;
  const right = x + 16 + tip.offsetWidth <= stage.clientWidth;
  tip.style.left = `${right ? x + 16 : Math.max(0, x - 16 - tip.offsetWidth)}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 12, stage.clientHeight - tip.offsetHeight))}px`;
}

/** Write the read-out. Screen readers hear it only if a person asked: not at every new step. */
function say(readout, text, spoken) {
  if (readout.textContent === text) return;
  readout.setAttribute("aria-live", spoken ? "polite" : "off");
  readout.textContent = text;
}

/** Where a key leads from the point `at` of 0 to `last`, -1 for none; undefined if it leads nowhere. */
function pointByKey(key, at, last) {
  return {
    ArrowLeft: at < 0 ? last : Math.max(0, at - 1),
    ArrowRight: at < 0 ? 0 : Math.min(last, at + 1),
    Home: 0, End: last, Escape: -1,
  }[key];
}

/** Let a chart hear pointer, keys and its model; returns a function that ends it. */
function listen(chart, model, watched, changed) {
  for (const trait of watched) model.on(`change:${trait}`, changed);
  chart.canvas.addEventListener("pointermove", (event) => chart.hover(event));
  chart.canvas.addEventListener("pointerleave", () => chart.leave());
  chart.canvas.addEventListener("blur", () => chart.leave());
  chart.canvas.addEventListener("keydown", (event) => chart.key(event));
  const stop = onAppearance(chart.stage, chart.redraw);
  chart.redraw();
  return () => {
    stop();
    for (const trait of watched) model.off(`change:${trait}`, changed);
  };
}
