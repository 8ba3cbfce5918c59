// One row for each sub-vector, one column for each bank vector; the bank's usage above the columns.

// Weight 0 to 1, pale to strong against the page: the same colours as plots.py, turned round when dark.
const RAMP = ["#aadeb7", "#7accbc", "#41b6c4", "#1f92c0", "#2260aa", "#263698", "#0a1e5c"];
const DARK_RAMP = ["#2b4fa3", "#2474b4", "#2397c1", "#45b8c4", "#7fcfbc", "#c2e7b6", "#f7fcc9"];
const USAGE = 46; // height of the bars, in CSS pixels like all lengths here
const GAP = 8; // between bars and cells
const AXIS = 40; // tick labels and the axis label
const HINT =
  "Point at a cell, or use the arrow keys. A click pins a row; a click on a bar lights all that share it.";
const LABEL =
  "Heatmap of sub-vectors by bank vectors. Arrow keys move the cell cursor, control with left or " +
  "right goes to the next chosen cell, enter pins the row, space lights all sub-vectors that share " +
  "the bank vector, z shows one layer alone, escape clears.";

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

class Heatmap {
  constructor(model, el) {
    this.model = model;
    Object.assign(this, frame(el, "What each sub-vector takes from the bank", LABEL));
    this.legendBar = this.buildLegend();
    this.cursor = null; // { row, column, keys }: a row or column of -1 is none; keys: moved by keyboard
    this.rows = null; // [first, end) of the rows shown, when one layer is shown alone
    this.redraw = oncePerFrame(() => this.draw());
    this.decodeCoordinates();
    this.decodeValues();
  }

  buildLegend() {
    const key = make(this.legend, "span", "vblora-key");
    make(key, "span", "", "weight");
    const scale = make(key, "span", "vblora-scale");
    const bar = make(scale, "span", "vblora-ramp");
    const values = make(scale, "span", "vblora-ramp-values");
    for (const value of ["0", "0.25", "0.5", "0.75", "1"]) make(values, "span", "", value);
    const none = make(this.legend, "span", "vblora-key");
    make(none, "span", "vblora-blank");
    make(none, "span", "", "not chosen");
    return bar;
  }

  // ---- the data -------------------------------------------------------------------------------

  decodeCoordinates() {
    this.coordinates = numbers(Int32Array, this.model.get("coordinates")); // module, A|B, rank, tile
    this.count = this.coordinates.length / 4;
    this.rows = null;
    this.cursor = null;
  }

  decodeValues() {
    this.columns = this.model.get("num_vectors");
    const view = this.model.get("indices");
    this.weights = numbers(Float32Array, this.model.get("weights"));
    const narrow = view && view.byteLength === 2 * this.weights.length;
    this.indices = numbers(narrow ? Uint16Array : Uint32Array, view);
    this.usage = numbers(Float32Array, this.model.get("usage"));
    this.topk = this.count ? this.weights.length / this.count : 0;
    // Coordinates and values travel together, but are told one after the other.
    this.ready = this.count > 0 && Number.isInteger(this.topk) &&
      this.indices.length === this.weights.length && this.usage.length === this.columns;
  }

  /** The bank vectors that a row mixes, best first, with their weights. */
  mixture(row) {
    return Array.from({ length: this.topk }, (_, j) => {
      const at = row * this.topk + j;
      return { column: this.indices[at], weight: this.weights[at] };
    });
  }

  sharers(column) {
    const rows = [];
    for (let at = 0; at < this.indices.length; at++)
      if (this.indices[at] === column) rows.push(Math.floor(at / this.topk));
    return rows;
  }

  place(row) {
    const [module, matrix, rank, tile] = this.coordinates.subarray(4 * row, 4 * row + 4);
    return [`${this.model.get("modules")[module]} · ${"AB"[matrix]}`, `rank ${rank} · tile ${tile}`];
  }

  sentence({ row, column }) {
    if (row < 0) {
      const share = `${this.sharers(column).length} of ${this.count} sub-vectors`;
      return `bank vector ${column}: chosen by ${share}, summed weight ${this.usage[column].toFixed(2)}`;
    }
    const mixture = this.mixture(row);
    const parts = mixture.map((m) => `${m.weight.toFixed(3)} of bank vector ${m.column}`);
    const chosen = column < 0 || mixture.some((m) => m.column === column);
    const absent = chosen ? "" : ` (bank vector ${column} is not chosen)`;
    return `${this.place(row).join(" · ")}: ${parts.join(" + ")}${absent}`;
  }

  // ---- the picture ----------------------------------------------------------------------------

  layout(context) {
    const groups = this.model.get("groups");
    const widest = (level) => Math.ceil(Math.max(0, ...groups.filter((g) => g[0] === level)
      .map((g) => context.measureText(g[3]).width)));
    const moduleAt = widest(0) + 12;
    const matrixAt = moduleAt + widest(1) + 10;
    const [first, end] = this.rows ?? [0, this.count];
    const [left, top] = [Math.max(matrixAt + 16, 96), USAGE + GAP];
    const [width, height] = [this.stage.clientWidth - left - 14, this.model.get("height") - top - AXIS];
    Object.assign(this, {
      groups, levelAt: [0, moduleAt, matrixAt], first, end, left, top, width, height,
      cellWidth: width / this.columns, cellHeight: height / (end - first),
    });
  }

  x(column) { return this.left + column * this.cellWidth; }
  y(row) { return this.top + (row - this.first) * this.cellHeight; }

  draw() {
    if (this.stage.clientWidth === 0) return; // hidden, or already taken away
    const colours = (this.colours = theme(this.root));
    this.shades = colours.dark ? DARK_SHADES : LIGHT_SHADES;
    const stops = colours.dark ? DARK_RAMP : RAMP;
    this.legendBar.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
    const context = pen(this.canvas, this.stage.clientWidth, this.model.get("height"));
    context.font = `12px ${colours.font}`;
    context.textBaseline = "middle";
    if (!this.ready) return this.drawEmpty(context);
    this.layout(context);
    context.fillStyle = colours.paper;
    context.fillRect(this.left, this.top, this.width, this.height);
    this.drawGroups(context);
    this.drawMarkedBands(context);
    this.drawCells(context);
    this.drawUsage(context);
    this.drawAxis(context);
    this.drawCursor(context);
    this.tell();
  }

  drawEmpty(context) {
    const [wide, tall] = [this.stage.clientWidth, this.model.get("height")];
    context.fillStyle = this.colours.paper;
    context.fillRect(0, 0, wide, tall);
    context.strokeStyle = this.colours.rule;
    context.strokeRect(0.5, 0.5, wide - 1, tall - 1);
    context.fillStyle = this.colours.faint;
    context.textAlign = "center";
    context.fillText("The choices of every sub-vector appear here once there is an adapter.",
      wide / 2, tall / 2);
    this.tip.hidden = true;
    say(this.readout, "", false);
  }

  drawGroups(context) {
    context.textAlign = "left";
    for (const [level, start, count, text] of this.groups) {
      if (start < this.first || start >= this.end) continue;
      const tall = count * this.cellHeight;
      const y = this.y(start);
      if (start > this.first && (level === 0 || (level === 1 && tall > 12))) {
        const from = level === 0 ? 0 : this.levelAt[1];
        context.fillStyle = this.colours.rule;
        context.fillRect(from, Math.round(y) - 0.5, this.left + this.width - from, 1);
      }
      if (tall < 12) continue; // no room for its name
      context.fillStyle = level === 0 ? this.colours.ink : this.colours.faint;
      context.fillText(text, this.levelAt[level], y + tall / 2);
    }
  }

  drawMarkedBands(context) {
    const [pinned, lit] = [this.model.get("pinned_row"), this.model.get("lit_vector")];
    context.fillStyle = this.colours.accent;
    context.globalAlpha = 0.16;
    if (lit >= 0) {
      const wide = Math.max(this.cellWidth, 5);
      context.fillRect(this.x(lit + 0.5) - wide / 2, this.top - GAP, wide, this.height + GAP);
    }
    if (pinned >= this.first && pinned < this.end) {
      const tall = Math.max(this.cellHeight, 5);
      context.fillRect(this.left - 6, this.y(pinned + 0.5) - tall / 2, this.width + 6, tall);
    }
    context.globalAlpha = 1;
  }

  drawCells(context) {
    const lit = this.model.get("lit_vector");
    const litRows = new Set(lit < 0 ? [] : this.sharers(lit));
    const gap = this.cellWidth > 6 && this.cellHeight > 6 ? 1 : 0;
    const tall = Math.max(this.cellHeight, 2) - gap; // never thinner than an eye can see
    const wide = Math.max(this.cellWidth, Math.min(tall, 5), 3) - gap;
    for (let j = this.topk - 1; j >= 0; j--) { // best last, so that it lies on top
      for (let row = this.first; row < this.end; row++) {
        const at = row * this.topk + j;
        context.globalAlpha = lit < 0 || litRows.has(row) ? 1 : 0.18;
        context.fillStyle = this.shades[Math.round(this.weights[at] * (SHADES - 1))];
        const x = this.x(this.indices[at] + 0.5) - wide / 2;
        const y = this.y(row + 0.5) - tall / 2;
        context.fillRect(Math.round(x), y, Math.round(x + wide) - Math.round(x), tall);
      }
    }
    context.globalAlpha = 1;
    context.fillStyle = this.colours.accent;
    for (const row of litRows) // an arrow at the right edge: not by colour alone
      if (row >= this.first && row < this.end) this.drawArrow(context, this.y(row + 0.5));
  }

  drawArrow(context, y) {
    const x = this.left + this.width + 3;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + 7, y - 3.5);
    context.lineTo(x + 7, y + 3.5);
    context.fill();
  }

  drawUsage(context) {
    const most = Math.max(...this.usage, 1e-9);
    const lit = this.model.get("lit_vector");
    const hovered = this.cursor?.column ?? -1;
    for (let column = 0; column < this.columns; column++) {
      const tall = (this.usage[column] / most) * (USAGE - 8);
      context.fillStyle = column === lit ? this.colours.accent
        : column === hovered ? this.colours.ink : this.colours.line;
      context.fillRect(this.x(column), USAGE - tall, Math.max(this.cellWidth - 0.6, 1), tall);
    }
    context.fillStyle = this.colours.rule;
    context.fillRect(this.left, USAGE, this.width, 1);
    context.textAlign = "right";
    context.fillStyle = this.colours.faint;
    context.fillText(most.toFixed(1), this.left - 8, 10);
    context.fillText("summed weight", this.left - 8, 25);
    context.fillText("0", this.left - 8, USAGE - 3);
  }

  drawAxis(context) {
    const bottom = this.top + this.height;
    context.fillStyle = this.colours.rule;
    context.fillRect(this.left, bottom, this.width, 1);
    context.fillRect(this.left - 1, this.top, 1, this.height + 1);
    context.fillStyle = this.colours.faint;
    context.textAlign = "center";
    // Steps of a power of two: so are most banks.
    const room = (this.columns * 44) / this.width;
    const step = 2 ** Math.max(0, Math.ceil(Math.log2(room)));
    for (let column = 0; column < this.columns; column += step) {
      const x = this.x(column + 0.5);
      context.fillRect(Math.round(x), bottom, 1, 4);
      context.fillText(String(column), x, bottom + 12);
    }
    context.fillText("bank vector", this.left + this.width / 2, bottom + 30);
  }

  drawCursor(context) {
    if (!this.cursor) return;
    const { row, column } = this.cursor;
    context.fillStyle = this.colours.ink;
    context.globalAlpha = 0.35;
    const [middleX, middleY] = [this.x(column + 0.5), this.y(row + 0.5)];
    if (row >= 0) context.fillRect(this.left, middleY - 0.5, this.width, 1);
    if (column >= 0) context.fillRect(middleX - 0.5, this.top, 1, this.height);
    context.globalAlpha = 1;
    if (row < 0 || column < 0) return;
    const [wide, tall] = [Math.max(this.cellWidth, 5) + 4, Math.max(this.cellHeight, 5) + 4];
    context.strokeStyle = this.colours.ink;
    context.lineWidth = 1.5;
    context.strokeRect(middleX - wide / 2, middleY - tall / 2, wide, tall);
  }

  // ---- what it says ---------------------------------------------------------------------------

  tell() {
    const [pinned, lit] = [this.model.get("pinned_row"), this.model.get("lit_vector")];
    const cursor = this.cursor;
    if (cursor) say(this.readout, this.sentence(cursor), this.asked);
    else if (pinned >= 0) say(this.readout, `pinned: ${this.sentence({ row: pinned, column: -1 })}`, this.asked);
    else if (lit >= 0) say(this.readout, `lit: ${this.sentence({ row: -1, column: lit })}`, this.asked);
    else say(this.readout, HINT, false);
    this.asked = false;
    if (!cursor) this.tip.hidden = true;
    else this.fillTip(cursor);
  }

  fillTip({ row, column }) {
    this.tip.replaceChildren();
    if (row < 0) {
      const [name, rest] = this.sentence({ row, column }).split(": ");
      make(make(this.tip, "div"), "b", "", name);
      make(this.tip, "div", "", rest);
    } else {
      const [name, within] = this.place(row);
      make(make(this.tip, "div"), "b", "", name);
      make(this.tip, "div", "vblora-tip-within", within);
      for (const choice of this.mixture(row)) {
        const line = make(this.tip, "div", "vblora-key");
        const swatch = make(line, "span", "vblora-swatch");
        swatch.style.background = this.shades[Math.round(choice.weight * (SHADES - 1))];
        const text = `${choice.weight.toFixed(3)} of bank vector ${choice.column}`;
        make(line, choice.column === column ? "b" : "span", "", text);
        make(this.tip, "br");
      }
    }
    const y = row < 0 ? USAGE : this.y(row + 0.5);
    placeTip(this.tip, this.stage, this.x((column < 0 ? this.columns / 2 : column) + 0.5), y);
  }

  // ---- the hand and the keyboard --------------------------------------------------------------

  /** What lies under the pointer: a cell, a column (above or below the cells), or a row's group. */
  hit(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const bound = (value, low, high) => Math.min(Math.max(Math.floor(value), low), high);
    const row = bound(this.first + (y - this.top) / this.cellHeight, this.first, this.end - 1);
    const column = bound((x - this.left) / this.cellWidth, 0, this.columns - 1);
    const inBody = y >= this.top && y <= this.top + this.height;
    if (x < this.left) return inBody ? { row, column: -1, gutter: true } : null;
    return inBody ? this.nearestChosen(x, y) ?? { row, column } : { row: -1, column };
  }

  /** The chosen cell within 4 pixels of a point: cells may be smaller than a hand can aim at. */
  nearestChosen(x, y) {
    let [best, distance] = [null, 4];
    for (let at = this.first * this.topk; at < this.end * this.topk; at++) {
      const row = Math.floor(at / this.topk);
      const far = Math.max(
        Math.abs(this.x(this.indices[at] + 0.5) - x) - this.cellWidth / 2,
        Math.abs(this.y(row + 0.5) - y) - this.cellHeight / 2);
      if (far < distance) [best, distance] = [{ row, column: this.indices[at] }, far];
    }
    return best;
  }

  point(event) {
    if (!this.ready || this.end === undefined) return;
    const at = this.hit(event);
    this.canvas.style.cursor = at?.gutter ? "zoom-in" : "crosshair";
    this.cursor = at && !at.gutter ? at : null;
    this.redraw();
  }

  click(event) {
    if (!this.ready || this.end === undefined) return;
    const at = this.hit(event);
    if (!at) return;
    this.asked = true;
    if (at.gutter) return this.toggleLayer(at.row);
    const chosen = at.row >= 0 && this.mixture(at.row).some((m) => m.column === at.column);
    if (at.row >= 0) this.toggle("pinned_row", at.row);
    if (at.row < 0 || chosen) this.toggle("lit_vector", at.column);
  }

  toggle(trait, value) {
    this.model.set(trait, this.model.get(trait) === value ? -1 : value);
    this.model.save_changes();
    this.redraw();
  }

  /** Show the rows of this row's layer alone, or all rows again. */
  toggleLayer(row) {
    const inside = (g) => g[0] === 0 && row >= g[1] && row < g[1] + g[2];
    const [, start, count] = this.model.get("groups").find(inside);
    this.rows = this.rows ? null : [start, start + count];
    this.redraw();
  }

  key(event) {
    if (!this.ready || this.end === undefined || event.altKey || event.metaKey) return;
    const { row, column } = this.cursor?.row >= 0 ? this.cursor : { row: this.first, column: 0 };
    const chosen = this.mixture(row).map((m) => m.column).sort((a, b) => a - b);
    const move = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      PageUp: [row - 10, column], PageDown: [row + 10, column],
      ArrowLeft: [row, event.ctrlKey ? chosen.findLast((c) => c < column) ?? column : column - 1],
      ArrowRight: [row, event.ctrlKey ? chosen.find((c) => c > column) ?? column : column + 1],
      Home: [row, 0], End: [row, this.columns - 1],
    }[event.key];
    const act = {
      Enter: () => this.toggle("pinned_row", row),
      " ": () => this.toggle("lit_vector", column),
      z: () => this.toggleLayer(row),
      Escape: () => this.clear(),
    }[event.key];
    if (!move && !act) return;
    event.preventDefault();
    event.stopPropagation();
    this.asked = true;
    if (act) act();
    else if (!this.cursor) this.cursor = { row, column }; // the first press shows where it is
    else {
      const within = (value, low, end) => Math.min(Math.max(value, low), end - 1);
      this.cursor = { row: within(move[0], this.first, this.end), column: within(move[1], 0, this.columns) };
    }
    this.redraw();
  }

  clear() {
    this.cursor = this.rows = null;
    this.model.set("pinned_row", -1);
    this.model.set("lit_vector", -1);
    this.model.save_changes();
  }

  leave() {
    this.cursor = null;
    this.redraw();
  }
}

function render({ model, el }) {
  const map = new Heatmap(model, el);
  const changed = (decode) => () => { decode(); map.redraw(); };
  const values = changed(() => map.decodeValues());
  const coordinates = changed(() => { map.decodeCoordinates(); map.decodeValues(); });
  const watched = {
    coordinates, indices: values, weights: values, usage: values, num_vectors: values,
    groups: map.redraw, pinned_row: map.redraw, lit_vector: map.redraw, height: map.redraw,
  };
  for (const [trait, listener] of Object.entries(watched)) model.on(`change:${trait}`, listener);
  map.canvas.addEventListener("pointermove", (event) => map.point(event));
  map.canvas.addEventListener("pointerleave", () => map.leave());
  map.canvas.addEventListener("blur", () => map.leave());
  map.canvas.addEventListener("click", (event) => map.click(event));
  map.canvas.addEventListener("keydown", (event) => map.key(event));
  const stop = onAppearance(map.stage, map.redraw);
  map.redraw();
  return () => {
    stop();
    for (const [trait, listener] of Object.entries(watched)) model.off(`change:${trait}`, listener);
  };
}

export default { render };
