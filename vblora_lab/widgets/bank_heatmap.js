// One row for each sub-vector, one column for each bank vector; the bank's usage above the columns.
// Below: a slider over the steps of a trace, linked views, a table, and a bench to change mixtures.
//
// A row is a sub-vector's number, a column a bank vector's. Where they stand on the screen is their
// place: `rowAt[place]` is the row there, `placeOfRow[row]` its place, and so for columns.

// Weight 0 to 1, pale to strong against the page: the same colours as plots.py, turned round when dark.
const RAMP = ["#aadeb7", "#7accbc", "#41b6c4", "#1f92c0", "#2260aa", "#263698", "#0a1e5c"];
const DARK_RAMP = ["#2b4fa3", "#2474b4", "#2397c1", "#45b8c4", "#7fcfbc", "#c2e7b6", "#f7fcc9"];
// Chosen at first only, in the end only, both times: apart in hue and in lightness.
const FOOTPRINT = ["#c2570c", "#5aa9d6", "#0a1e5c"];
const DARK_FOOTPRINT = ["#d9822b", "#3d7fc4", "#f7fcc9"];
const TIMES = ["first choice only", "final choice only", "both"];
const USAGE = 46; // height of the bars, in CSS pixels like all lengths here
const GAP = 8; // between bars and cells
const AXIS = 40; // tick labels and the axis label
const NARROW = 520; // a stage less wide than this leaves the modules' names out
const LABELS = 0.24; // of the stage's width: what a name beside the rows may take at most
const PAGE = 20; // rows of the table at a time
const ROWS_BY = {
  layer: "layer", module: "module", matrix: "matrix A, B", strongest: "strongest bank vector",
  entropy: "entropy", similarity: "similarity",
};
const COLUMNS_BY = { number: "number", usage: "usage", similarity: "similarity" };
const VIEWS = { weights: "weights", footprint: "first against last" };
const HINT =
  "Point at a cell, or use the arrow keys. A click pins a row; a click on a bar lights all that share it.";
const LABEL =
  "Heatmap of sub-vectors by bank vectors. Arrow keys move the cell cursor, control with left or " +
  "right goes to the next chosen cell, enter pins the row, space lights all sub-vectors that share " +
  "the bank vector, z shows one layer alone, plus and minus zoom, escape clears. The button " +
  "Table shows the same as a table.";

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

// ---- the data -----------------------------------------------------------------------------------

/** The numbers behind all views, of the frame that is shown. Decoded when they are first needed. */
class Data {
  constructor(model) {
    this.model = model;
    this.stale = true;
  }

  /** Whether all traits fit together: they travel together, but are told one after the other. */
  get ready() {
    if (this.stale) this.decode();
    return this.fits;
  }

  decode() {
    const read = (name, type = Float32Array) => numbers(type, this.model.get(name));
    this.coordinates = read("coordinates", Int32Array); // module, A|B, rank, tile, layer
    this.count = this.coordinates.length / 5;
    this.columns = this.model.get("num_vectors");
    this.steps = this.model.get("steps");
    this.frames = Math.max(1, this.steps.length);
    const allWeights = read("weights");
    const view = this.model.get("indices");
    const narrow = view && view.byteLength === 2 * allWeights.length;
    this.stacks = {
      indices: numbers(narrow ? Uint16Array : Uint32Array, view), weights: allWeights,
      usage: read("usage"), entropy: read("entropy"), layer_entropy: read("layer_entropy"),
      sharing: read("sharing"), churn: read("churn"),
    };
    this.topk = this.count ? allWeights.length / this.frames / this.count : 0;
    this.layers = this.model.get("layers");
    this.rowAt = read("row_order", Int32Array);
    this.columnAt = read("column_order", Int32Array);
    this.placeOfRow = Data.inverse(this.rowAt);
    this.placeOfColumn = Data.inverse(this.columnAt);
    const lengths = {
      indices: this.count * this.topk, weights: this.count * this.topk, usage: this.columns,
      entropy: this.count, layer_entropy: this.layers.length, sharing: this.layers.length ** 2, churn: 2,
    };
    this.lengths = lengths;
    this.fits = this.count > 0 && Number.isInteger(this.topk) &&
      this.rowAt.length === this.count && this.columnAt.length === this.columns &&
      Object.keys(lengths).every((name) => this.stacks[name].length === this.frames * lengths[name]);
    this.stale = false;
    this.show();
  }

  static inverse(order) {
    const places = new Int32Array(order.length);
    order.forEach((number, place) => { places[number] = place; });
    return places;
  }

  /** Point the numbers at the frame that the model names. */
  show() {
    if (this.stale) return;
    this.frame = bound(this.model.get("frame"), 0, this.frames - 1);
    for (const name of Object.keys(this.stacks)) this[name] = this.of(this.frame, name);
  }

  of(frame, name) {
    const length = this.lengths[name];
    return this.stacks[name].subarray(frame * length, (frame + 1) * length);
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

  /** The rows that are lit: all that share the chosen bank vector, the pinned one, or those selected. */
  lit() {
    const [vector, pinned] = [this.model.get("lit_vector"), this.model.get("pinned_row")];
    if (vector >= 0) return this.sharers(vector);
    return pinned >= 0 && pinned < this.count ? [pinned] : this.model.get("selected");
  }

  /** Those of them that stand out while others fade: a pinned row alone lets none fade. */
  standingOut() {
    const rows = this.lit();
    const onlyPinned = rows.length === 1 && rows[0] === this.model.get("pinned_row");
    return new Set(onlyPinned && this.model.get("lit_vector") < 0 ? [] : rows);
  }

  coordinate(row) {
    const [module, matrix, rank, tile, layer] = this.coordinates.subarray(5 * row, 5 * row + 5);
    return { module, matrix, rank, tile, layer };
  }

  place(row) {
    const { module, matrix, rank, tile } = this.coordinate(row);
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
    return `${this.place(row).join(" · ")}: ${parts.join(" + ")}; ` +
      `entropy ${this.entropy[row].toFixed(3)} nats${absent}`;
  }
}

// ---- the map ------------------------------------------------------------------------------------

class Heatmap {
  constructor(model, data, parts) {
    Object.assign(this, parts, { model, data });
    this.cursor = null; // { row, column, keys }: a row or column of -1 is none; keys: moved by keyboard
    this.window = null; // [first, end) of the places shown, when not all are
    this.buildLegend();
    this.redraw = oncePerFrame(() => this.draw());
  }

  buildLegend() {
    this.weightKey = make(this.legend, "span", "vblora-key");
    make(this.weightKey, "span", "", "weight");
    const scale = make(this.weightKey, "span", "vblora-scale");
    this.legendBar = make(scale, "span", "vblora-ramp");
    const values = make(scale, "span", "vblora-ramp-values");
    for (const value of ["0", "0.25", "0.5", "0.75", "1"]) make(values, "span", "", value);
    this.timeKeys = TIMES.map((text) => {
      const key = make(this.legend, "span", "vblora-key");
      const swatch = make(key, "span", "vblora-swatch");
      make(key, "span", "", text);
      return { key, swatch };
    });
    const none = make(this.legend, "span", "vblora-key");
    make(none, "span", "vblora-blank");
    make(none, "span", "", "not chosen");
    this.base = make(this.legend, "span", "vblora-key");
  }

  get footprint() {
    return this.model.get("view") === "footprint" && this.data.frames > 1;
  }

  forget() {
    this.window = this.cursor = null;
  }

  layout(context) {
    const wide = this.stage.clientWidth;
    const groups = this.model.get("groups");
    const levels = wide < NARROW ? [0] : [0, 1, 2];
    const most = wide * LABELS; // a name that is longer is cut off: the read-out has it whole
    const widest = (level) => !levels.includes(level) ? 0 : Math.ceil(groups
      .filter((g) => g[0] === level)
      .reduce((all, g) => Math.max(all, Math.min(most, context.measureText(g[3]).width)), 0));
    const secondAt = widest(0) + 12;
    const thirdAt = secondAt + widest(1) + 10;
    const [first, end] = this.window ?? [0, this.data.count];
    const labels = groups.length === 0 ? 0 : wide < NARROW ? secondAt : thirdAt + widest(2) + 8;
    const [left, top] = [Math.max(labels, Math.ceil(context.measureText("summed weight").width) + 12), USAGE + GAP];
    const [width, height] = [wide - left - 14, this.model.get("height") - top - AXIS];
    Object.assign(this, {
      groups, levels, most, levelAt: [0, secondAt, thirdAt], first, end, left, top, width, height,
      cellWidth: width / this.data.columns, cellHeight: height / (end - first),
    });
  }

  x(place) { return this.left + place * this.cellWidth; }
  y(place) { return this.top + (place - this.first) * this.cellHeight; }
  middle(row) { return this.y(this.data.placeOfRow[row] + 0.5); }
  centre(column) { return this.x(this.data.placeOfColumn[column] + 0.5); }
  shows(place) { return place >= this.first && place < this.end; }

  draw() {
    if (this.stage.clientWidth === 0) return; // hidden, or already taken away
    const colours = (this.colours = theme(this.root));
    this.shades = colours.dark ? DARK_SHADES : LIGHT_SHADES;
    this.drawLegend();
    const context = pen(this.canvas, this.stage.clientWidth, this.model.get("height"));
    context.font = `12px ${colours.font}`;
    context.textBaseline = "middle";
    if (!this.data.ready) return this.drawEmpty(context);
    this.layout(context);
    context.fillStyle = colours.paper;
    context.fillRect(this.left, this.top, this.width, this.height);
    this.drawGroups(context);
    this.drawMarkedBands(context);
    if (this.footprint) this.drawFootprint(context);
    else this.drawCells(context);
    this.drawUsage(context);
    this.drawAxis(context);
    this.drawCursor(context);
    this.tell();
  }

  drawLegend() {
    const stops = this.colours.dark ? DARK_RAMP : RAMP;
    this.legendBar.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
    this.times = this.colours.dark ? DARK_FOOTPRINT : FOOTPRINT;
    this.weightKey.hidden = this.footprint;
    const base = this.model.get("base");
    this.base.textContent = base && `base model ${base}`;
    this.timeKeys.forEach(({ key, swatch }, i) => {
      key.hidden = !this.footprint;
      swatch.style.background = this.times[i];
    });
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
      const [from, to] = [Math.max(start, this.first), Math.min(start + count, this.end)];
      if (from >= to || !this.levels.includes(level)) continue;
      const tall = (to - from) * this.cellHeight;
      const y = this.y(from);
      if (from > this.first && (level === 0 || (level === 1 && tall > 12))) {
        const at = level === 0 ? 0 : this.levelAt[1];
        context.fillStyle = this.colours.rule;
        context.fillRect(at, Math.round(y) - 0.5, this.left + this.width - at, 1);
      }
      if (tall < (level === 0 ? 14 : 11.5)) continue; // no room for its name
      context.font = `${level === 0 ? 12 : 11}px ${this.colours.font}`;
      context.fillStyle = level === 0 ? this.colours.ink : this.colours.faint;
      context.fillText(shortened(context, text, this.most), this.levelAt[level], y + tall / 2);
    }
    context.font = `12px ${this.colours.font}`;
    if (this.groups.length > 0) return;
    // An order that doesn't follow the model: say along the edge which it is.
    const text = `sub-vectors by ${ROWS_BY[this.model.get("rows_by")]}`;
    context.save();
    context.translate(this.left - 14, this.top + this.height / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillStyle = this.colours.faint;
    context.fillText(text, 0, 0);
    context.restore();
  }

  drawMarkedBands(context) {
    const [pinned, lit] = [this.model.get("pinned_row"), this.model.get("lit_vector")];
    context.fillStyle = this.colours.accent;
    context.globalAlpha = 0.16;
    if (lit >= 0 && lit < this.data.columns) {
      const wide = Math.max(this.cellWidth, 5);
      context.fillRect(this.centre(lit) - wide / 2, this.top - GAP, wide, this.height + GAP);
    }
    if (pinned >= 0 && pinned < this.data.count && this.shows(this.data.placeOfRow[pinned])) {
      const tall = Math.max(this.cellHeight, 5);
      context.fillRect(this.left - 6, this.middle(pinned) - tall / 2, this.width + 6, tall);
    }
    context.globalAlpha = 1;
  }

  /** How large a cell is drawn: never smaller than an eye can see. */
  cellSize() {
    const gap = this.cellWidth > 6 && this.cellHeight > 6 ? 1 : 0;
    const tall = Math.max(this.cellHeight, 2) - gap;
    return { tall, wide: Math.max(this.cellWidth, Math.min(tall, 5), 3) - gap };
  }

  drawCells(context) {
    const { data } = this;
    const litRows = data.standingOut();
    const { tall, wide } = this.cellSize();
    for (let j = data.topk - 1; j >= 0; j--) { // best last, so that it lies on top
      for (let place = this.first; place < this.end; place++) {
        const row = data.rowAt[place];
        const at = row * data.topk + j;
        context.globalAlpha = litRows.size === 0 || litRows.has(row) ? 1 : 0.18;
        context.fillStyle = shadeOf(this.shades, data.weights[at]);
        this.drawCell(context, data.indices[at], place, wide, tall);
      }
    }
    context.globalAlpha = 1;
    this.drawArrows(context, data.lit());
  }

  drawCell(context, column, place, wide, tall) {
    const x = this.centre(column) - wide / 2;
    const y = this.y(place + 0.5) - tall / 2;
    context.fillRect(Math.round(x), y, Math.round(x + wide) - Math.round(x), tall);
  }

  drawFootprint(context) {
    const { data } = this;
    const [before, after] = [data.of(0, "indices"), data.of(data.frames - 1, "indices")];
    const litRows = data.standingOut();
    const { tall, wide } = this.cellSize();
    const chosen = (all, row) => all.subarray(row * data.topk, (row + 1) * data.topk);
    for (let kind = 0; kind < 3; kind++) { // what stayed last, so that it lies on top
      context.fillStyle = this.times[kind];
      for (let place = this.first; place < this.end; place++) {
        const row = data.rowAt[place];
        const [old, now] = [chosen(before, row), chosen(after, row)];
        context.globalAlpha = litRows.size === 0 || litRows.has(row) ? 1 : 0.18;
        for (const column of kind === 0 ? old : now) {
          const both = old.includes(column) && now.includes(column);
          if (both === (kind === 2)) this.drawCell(context, column, place, wide, tall);
        }
      }
    }
    context.globalAlpha = 1;
    this.drawArrows(context, data.lit());
  }

  /** Arrows at the right edge beside the rows that are lit: not by colour alone. */
  drawArrows(context, rows) {
    context.fillStyle = this.colours.accent;
    for (const row of rows) {
      if (!this.shows(this.data.placeOfRow[row])) continue;
      const [x, y] = [this.left + this.width + 3, this.middle(row)];
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + 7, y - 3.5);
      context.lineTo(x + 7, y + 3.5);
      context.fill();
    }
  }

  drawUsage(context) {
    const { data } = this;
    const most = data.usage.reduce((a, b) => Math.max(a, b), 1e-9);
    const lit = this.model.get("lit_vector");
    const hovered = this.cursor?.column ?? -1;
    for (let place = 0; place < data.columns; place++) {
      const column = data.columnAt[place];
      const tall = (data.usage[column] / most) * (USAGE - 8);
      context.fillStyle = column === lit ? this.colours.accent
        : column === hovered ? this.colours.ink : this.colours.line;
      context.fillRect(this.x(place), USAGE - tall, Math.max(this.cellWidth - 0.6, 1), tall);
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
    const by = this.model.get("columns_by");
    if (by === "number") {
      // Steps of a power of two: so are most banks.
      const room = (this.data.columns * 44) / this.width;
      const step = 2 ** Math.max(0, Math.ceil(Math.log2(room)));
      for (let column = 0; column < this.data.columns; column += step) {
        const x = this.x(column + 0.5);
        context.fillRect(Math.round(x), bottom, 1, 4);
        context.fillText(String(column), x, bottom + 12);
      }
    }
    const text = { number: "bank vector", usage: "bank vectors, most used first",
      similarity: "bank vectors, those mixed together side by side" }[by];
    context.fillText(text, this.left + this.width / 2, bottom + (by === "number" ? 30 : 16));
  }

  drawCursor(context) {
    if (!this.cursor) return;
    const { row, column } = this.cursor;
    context.fillStyle = this.colours.ink;
    context.globalAlpha = 0.35;
    const [middleX, middleY] = [this.centre(column), row < 0 ? 0 : this.middle(row)];
    if (row >= 0) context.fillRect(this.left, middleY - 0.5, this.width, 1);
    if (column >= 0) context.fillRect(middleX - 0.5, this.top, 1, this.height);
    context.globalAlpha = 1;
    if (row < 0 || column < 0) return;
    const [wide, tall] = [Math.max(this.cellWidth, 5) + 4, Math.max(this.cellHeight, 5) + 4];
    context.strokeStyle = this.colours.ink;
    context.lineWidth = 1.5;
    context.strokeRect(middleX - wide / 2, middleY - tall / 2, wide, tall);
  }

  // ---- what it says

  tell() {
    const [pinned, lit] = [this.model.get("pinned_row"), this.model.get("lit_vector")];
    const selected = this.model.get("selected");
    const { cursor, data } = this;
    let text = HINT;
    if (cursor) text = data.sentence(cursor);
    else if (pinned >= 0 && pinned < data.count) text = `pinned: ${data.sentence({ row: pinned, column: -1 })}`;
    else if (lit >= 0 && lit < data.columns) text = `lit: ${data.sentence({ row: -1, column: lit })}`;
    else if (selected.length) text = `${selected.length} of ${data.count} sub-vectors are selected`;
    say(this.readout, text, text !== HINT && this.asked);
    this.asked = false;
    if (!cursor) this.tip.hidden = true;
    else this.fillTip(cursor);
  }

  fillTip({ row, column }) {
    const { data } = this;
    this.tip.replaceChildren();
    if (row < 0) {
      const [name, rest] = data.sentence({ row, column }).split(": ");
      make(make(this.tip, "div"), "b", "", name);
      make(this.tip, "div", "", rest);
    } else {
      const [name, within] = data.place(row);
      make(make(this.tip, "div"), "b", "", name);
      make(this.tip, "div", "vblora-tip-within", within);
      for (const choice of data.mixture(row)) {
        const line = make(this.tip, "div", "vblora-key");
        const swatch = make(line, "span", "vblora-swatch");
        swatch.style.background = shadeOf(this.shades, choice.weight);
        const text = `${choice.weight.toFixed(3)} of bank vector ${choice.column}`;
        make(line, choice.column === column ? "b" : "span", "", text);
        make(this.tip, "br");
      }
      if (this.footprint) {
        const first = data.of(0, "indices").subarray(row * data.topk, (row + 1) * data.topk);
        make(this.tip, "div", "", `at step ${data.steps[0]}: bank vectors ${Array.from(first).join(", ")}`);
      }
      make(this.tip, "div", "vblora-tip-entropy", `entropy ${data.entropy[row].toFixed(3)} nats`);
    }
    const x = column < 0 ? this.left + this.width / 2 : this.centre(column);
    placeTip(this.tip, this.stage, x, row < 0 ? USAGE : this.middle(row));
  }

  // ---- the hand and the keyboard

  get usable() { return this.data.ready && this.end !== undefined; }

  /** What lies under the pointer: a cell, a column (above or below the cells), or a row's group. */
  hit(event) {
    const { data } = this;
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const place = bound(Math.floor(this.first + (y - this.top) / this.cellHeight), this.first, this.end - 1);
    const column = data.columnAt[bound(Math.floor((x - this.left) / this.cellWidth), 0, data.columns - 1)];
    const row = data.rowAt[place];
    const inBody = y >= this.top && y <= this.top + this.height;
    if (x < this.left) return inBody ? { row, column: -1, gutter: true } : null;
    return inBody ? this.nearestChosen(x, y) ?? { row, column } : { row: -1, column };
  }

  /** The chosen cell within 4 pixels of a point: cells may be smaller than a hand can aim at. */
  nearestChosen(x, y) {
    const { data } = this;
    let [best, distance] = [null, 4];
    for (let place = this.first; place < this.end; place++) {
      const row = data.rowAt[place];
      const below = Math.abs(this.y(place + 0.5) - y) - this.cellHeight / 2;
      if (below >= distance) continue;
      for (let at = row * data.topk; at < (row + 1) * data.topk; at++) {
        const far = Math.max(below, Math.abs(this.centre(data.indices[at]) - x) - this.cellWidth / 2);
        if (far < distance) [best, distance] = [{ row, column: data.indices[at] }, far];
      }
    }
    return best;
  }

  point(event) {
    if (!this.usable) return;
    const at = this.hit(event);
    this.canvas.style.cursor = at?.gutter ? "zoom-in" : "crosshair";
    this.cursor = at && !at.gutter ? at : null;
    this.redraw();
  }

  click(event) {
    if (!this.usable) return;
    const at = this.hit(event);
    if (!at) return;
    this.asked = true;
    if (at.gutter) return this.toggleGroup(at.row);
    const chosen = at.row >= 0 && this.data.mixture(at.row).some((m) => m.column === at.column);
    if (at.row >= 0) toggle(this.model, "pinned_row", at.row);
    if (at.row < 0 || chosen) toggle(this.model, "lit_vector", at.column);
  }

  /** Show the rows of this row's widest group alone, or all rows again. */
  toggleGroup(row) {
    const place = this.data.placeOfRow[row];
    const inside = (g) => g[0] === 0 && place >= g[1] && place < g[1] + g[2];
    const group = this.model.get("groups").find(inside);
    this.look(this.window || !group ? null : [group[1], group[1] + group[2]]);
  }

  /** Show fewer places (factor below 1) or more, about one that stays where it is. */
  zoom(factor, place) {
    const { count } = this.data;
    const size = bound(Math.round((this.end - this.first) * factor), Math.min(4, count), count);
    const share = (place - this.first) / (this.end - this.first);
    const first = bound(Math.round(place - share * size), 0, count - size);
    this.look(size === count ? null : [first, first + size]);
  }

  look(window) {
    this.window = window;
    [this.first, this.end] = window ?? [0, this.data.count]; // before the next frame draws them
    if (window && this.cursor && !(this.data.placeOfRow[this.cursor.row] >= window[0] &&
      this.data.placeOfRow[this.cursor.row] < window[1])) this.cursor = null;
    this.onLook?.(window);
    this.redraw();
  }

  wheel(event) {
    if (!event.ctrlKey || !this.usable) return; // a page scrolls; with control it zooms
    event.preventDefault();
    const y = event.clientY - this.canvas.getBoundingClientRect().top;
    const place = bound(this.first + (y - this.top) / this.cellHeight, this.first, this.end - 1);
    this.zoom(event.deltaY < 0 ? 0.8 : 1.25, place);
  }

  key(event) {
    if (!this.usable || event.altKey || event.metaKey) return;
    const { data } = this;
    const { row, column } = this.cursor?.row >= 0 ? this.cursor
      : { row: data.rowAt[this.first], column: data.columnAt[0] };
    const at = { row: data.placeOfRow[row], column: column < 0 ? 0 : data.placeOfColumn[column] };
    const chosen = data.mixture(row).map((m) => data.placeOfColumn[m.column]).sort((a, b) => a - b);
    const move = {
      ArrowUp: [at.row - 1, at.column], ArrowDown: [at.row + 1, at.column],
      PageUp: [at.row - 10, at.column], PageDown: [at.row + 10, at.column],
      ArrowLeft: [at.row, event.ctrlKey ? chosen.findLast((c) => c < at.column) ?? at.column : at.column - 1],
      ArrowRight: [at.row, event.ctrlKey ? chosen.find((c) => c > at.column) ?? at.column : at.column + 1],
      Home: [at.row, 0], End: [at.row, data.columns - 1],
    }[event.key];
    const act = {
      Enter: () => toggle(this.model, "pinned_row", row),
      " ": () => toggle(this.model, "lit_vector", column),
      z: () => this.toggleGroup(row),
      "+": () => this.zoom(0.5, at.row),
      "=": () => this.zoom(0.5, at.row),
      "-": () => this.zoom(2, at.row),
      Escape: () => this.clear(),
    }[event.key];
    if (!move && !act) return;
    event.preventDefault();
    event.stopPropagation();
    this.asked = true;
    if (act) act();
    else if (!this.cursor) this.cursor = { row, column }; // the first press shows where it is
    else {
      this.cursor = {
        row: data.rowAt[bound(move[0], this.first, this.end - 1)],
        column: data.columnAt[bound(move[1], 0, data.columns - 1)],
      };
    }
    this.redraw();
  }

  clear() {
    this.cursor = null;
    for (const trait of ["pinned_row", "lit_vector"]) this.model.set(trait, -1);
    this.model.set("selected", []);
    this.model.save_changes();
    this.look(null);
  }

  leave() {
    this.cursor = null;
    this.redraw();
  }
}

/** The text, or as much of its end as has room: names of modules differ there. */
function shortened(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let from = 1;
  while (from < text.length && context.measureText(`…${text.slice(from)}`).width > room) from++;
  return `…${text.slice(from)}`;
}

function choose(model, trait, value) {
  model.set(trait, value);
  model.save_changes();
}

function toggle(model, trait, value) {
  choose(model, trait, model.get(trait) === value ? -1 : value);
}

// ---- controls -----------------------------------------------------------------------------------

let controls = 0; // so that each label has a control of its own

function labelled(parent, text, tag, type = "") {
  const field = make(parent, "span", "vblora-map-field");
  const label = make(field, "label", "", text);
  const control = make(field, tag);
  if (type) control.type = type;
  control.id = `${PREFIX}-${controls++}`;
  label.htmlFor = control.id;
  return { field, control };
}

function fillSelect(select, options) {
  const before = select.value;
  select.replaceChildren();
  for (const [value, text] of Object.entries(options)) make(select, "option", "", text).value = value;
  if (before in options) select.value = before;
}

function button(parent, text, act) {
  const made = make(parent, "button", "vblora-button", text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

class Toolbar {
  constructor(root, model, data, map, table) {
    Object.assign(this, { model, data });
    this.box = make(root, "div", "vblora-toolbar");
    this.selects = { rows_by: ["rows by", ROWS_BY], columns_by: ["columns by", COLUMNS_BY], view: ["show", VIEWS] };
    for (const [trait, [text, options]] of Object.entries(this.selects)) {
      const { field, control } = labelled(this.box, text, "select");
      fillSelect(control, options);
      control.addEventListener("change", () => choose(model, trait, control.value));
      this.selects[trait] = { field, control };
    }
    this.all = button(this.box, "All rows", () => map.look(null));
    map.onLook = (window) => { this.all.hidden = window === null; };
    this.all.hidden = true;
    this.tableButton = button(this.box, "Table", () => {
      table.toggle();
      this.tableButton.setAttribute("aria-expanded", String(table.open));
    });
    this.tableButton.setAttribute("aria-expanded", "false");
  }

  draw() {
    for (const [trait, { control }] of Object.entries(this.selects)) control.value = this.model.get(trait);
    this.selects.view.field.hidden = this.data.frames < 2;
    this.box.hidden = !this.data.ready;
  }
}

/** A slider over the steps of a trace, below a curve of how much the selection changes. */
class Scrubber {
  constructor(root, model, data) {
    Object.assign(this, { model, data, timer: null });
    this.box = make(root, "div", "vblora-scrubber");
    this.play = button(this.box, "▶ Play", () => (this.timer ? this.stop() : this.start()));
    const middle = make(this.box, "div", "vblora-map-track");
    this.curve = make(middle, "div", "vblora-curve");
    this.slider = make(middle, "input");
    this.slider.type = "range";
    this.slider.min = "0";
    this.slider.setAttribute("aria-label", "training step");
    this.slider.addEventListener("input", () => {
      this.stop();
      choose(model, "frame", Number(this.slider.value));
    });
    this.text = make(this.box, "div", "vblora-scrub-text");
  }

  start() {
    const last = this.data.frames - 1;
    if (this.data.frame >= last) choose(this.model, "frame", 0);
    this.timer = setInterval(() => {
      const next = this.data.frame + 1;
      if (next >= last) this.stop();
      choose(this.model, "frame", Math.min(next, last));
    }, Math.max(40, 6000 / this.data.frames)); // a whole trace in six seconds or so
    this.play.textContent = "❚❚ Pause";
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "▶ Play";
  }

  draw() {
    const { data } = this;
    this.box.hidden = !data.ready || data.frames < 2;
    if (this.box.hidden) return this.stop();
    const { frame, steps } = data;
    this.slider.max = String(data.frames - 1);
    this.slider.value = String(frame);
    this.slider.setAttribute("aria-valuetext", `step ${steps[frame]}`);
    const recorded = this.model.get("recorded");
    const part = recorded > data.frames ? ` (${data.frames} of ${recorded} recorded steps)` : "";
    const [latest, since] = data.churn;
    this.text.replaceChildren();
    make(this.text, "b", "", `step ${steps[frame]}`);
    make(this.text, "span", "", ` of ${steps.at(-1)}${part}`);
    make(this.text, "div", "", frame === 0 ? "the start" :
      `${percent(latest)} of the sets changed since step ${steps[frame - 1]}, ${percent(since)} since step ${steps[0]}`);
    this.drawCurve();
  }

  drawCurve() {
    const { data } = this;
    const plot = new Plot(this.curve, 46, { left: 8, right: 8, top: 12, bottom: 2 },
      "share of sub-vectors with another set than at the step before");
    const churn = data.stacks.churn;
    const latest = Array.from({ length: data.frames }, (_, i) => churn[2 * i]);
    const most = Math.max(...latest, 0.01);
    plot.scale([0, data.frames - 1], [0, most]);
    plot.area(latest.map((y, x) => [x, y]), "vblora-area");
    plot.line([[data.frame, 0], [data.frame, most]], "vblora-now");
    plot.text(plot.left, 8, `churn a step, up to ${percent(most)}`, "start");
  }
}

// ---- plots --------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

/** A small drawing of vector graphics, made anew each time. */
class Plot {
  constructor(parent, height, margins, label) {
    parent.replaceChildren();
    this.width = Math.max(parent.clientWidth, 160);
    this.height = height;
    this.left = margins.left;
    this.right = this.width - margins.right;
    this.top = margins.top;
    this.bottom = height - margins.bottom;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("width", "100%");
    this.svg.setAttribute("height", String(height));
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", label);
    parent.append(this.svg);
  }

  add(tag, className, attributes) {
    const element = document.createElementNS(SVG, tag);
    element.setAttribute("class", className);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
    this.svg.append(element);
    return element;
  }

  scale([x0, x1], [y0, y1]) {
    const [wide, tall] = [this.right - this.left, this.bottom - this.top];
    this.x = (x) => this.left + ((x - x0) / (x1 - x0 || 1)) * wide;
    this.y = (y) => this.bottom - ((y - y0) / (y1 - y0 || 1)) * tall;
    this.unX = (px) => x0 + ((px - this.left) / wide) * (x1 - x0);
    this.unY = (py) => y0 + ((this.bottom - py) / tall) * (y1 - y0);
  }

  path(points) {
    return points.map(([x, y], i) => `${i ? "L" : "M"}${this.x(x).toFixed(2)} ${this.y(y).toFixed(2)}`).join("");
  }

  line(points, className) { return this.add("path", className, { d: this.path(points) }); }

  area(points, className) {
    const [first, last] = [points[0][0], points.at(-1)[0]];
    return this.add("path", className, { d: `${this.path([[first, 0], ...points, [last, 0]])}Z` });
  }

  /** Many dots as one path: points of no length with round ends. */
  dots(points, className) {
    const d = points.map(([x, y]) => `M${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}h0`).join("");
    return this.add("path", className, { d });
  }

  text(px, py, words, anchor = "middle", className = "vblora-label") {
    const element = this.add("text", className, { x: px, y: py, "text-anchor": anchor });
    element.textContent = words;
    return element;
  }

  axes(xLabel, yLabel, yTicks, step) {
    this.add("path", "vblora-map-axis", { d: `M${this.left} ${this.top}V${this.bottom}H${this.right}` });
    for (const tick of yTicks) this.text(this.left - 5, this.y(tick) + 4, tickText(tick, step), "end");
    this.text((this.left + this.right) / 2, this.height - 4, xLabel);
    this.text(0, 11, yLabel, "start");
  }

  /** Where the pointer is, in the units of the scale; null outside the axes. */
  under(event) {
    const box = this.svg.getBoundingClientRect();
    const [px, py] = [
      ((event.clientX - box.left) * this.width) / box.width, event.clientY - box.top];
    const inside = px >= this.left && px <= this.right && py >= this.top && py <= this.bottom;
    return inside ? { x: this.unX(px), y: this.unY(py) } : null;
  }
}

/** One linked view: a title that says what is seen, a drawing, and a line for what is pointed at. */
class View {
  constructor(parent, className) {
    this.box = make(parent, "section", `vblora-view ${className}`);
    this.title = make(this.box, "h4", "vblora-view-title");
    this.controls = make(this.box, "div", "vblora-view-controls");
    this.body = make(this.box, "div", "vblora-view-body");
    this.caption = make(this.box, "div", "vblora-caption");
  }

  /** Say something of what is under the pointer, and do something at a click. */
  points(plot, words, rest, act) {
    this.caption.textContent = rest;
    plot.svg.addEventListener("pointermove", (event) => {
      const at = plot.under(event);
      this.caption.textContent = at ? words(at) : rest;
    });
    plot.svg.addEventListener("pointerleave", () => { this.caption.textContent = rest; });
    if (!act) return;
    plot.svg.classList.add("vblora-clickable");
    plot.svg.addEventListener("click", (event) => {
      const at = plot.under(event);
      if (at) act(at);
    });
  }
}

class Views {
  constructor(root, model, data) {
    Object.assign(this, { model, data });
    this.box = make(root, "div", "vblora-linked");
    this.usage = new View(this.box, "vblora-view-usage");
    this.entropy = new View(this.box, "vblora-view-entropy");
    this.sharing = new View(this.box, "vblora-view-sharing");
    this.mixture = new View(this.box, "vblora-view-mixture");
    this.delta = new View(this.box, "vblora-view-delta");
    const { control } = labelled(this.delta.controls, "module", "select");
    control.addEventListener("change", () => choose(model, "module_shown", Number(control.value)));
    this.module = control;
  }

  draw() {
    this.box.hidden = !this.data.ready || this.model.get("compact");
    if (this.box.hidden || this.box.clientWidth === 0) return;
    this.colours = theme(this.box);
    this.shades = this.colours.dark ? DARK_SHADES : LIGHT_SHADES;
    this.drawUsage();
    this.drawEntropy();
    this.drawSharing();
    this.drawMixture();
    this.drawDelta();
  }

  drawUsage() {
    const { data, usage: view } = this;
    const order = Array.from({ length: data.columns }, (_, i) => i).sort((a, b) => data.usage[b] - data.usage[a]);
    const used = order.filter((column) => data.usage[column] > 0).length;
    const most = data.usage[order[0]];
    view.title.textContent = `${used} of ${data.columns} bank vectors are in use`;
    const plot = new Plot(view.body, 230, { left: 38, right: 8, top: 20, bottom: 34 }, view.title.textContent);
    plot.scale([0, data.columns], [0, most * 1.05]);
    const steps = order.flatMap((column, i) => [[i, data.usage[column]], [i + 1, data.usage[column]]]);
    plot.area(steps, "vblora-area");
    const even = data.count / data.columns;
    plot.line([[0, even], [data.columns, even]], "vblora-even");
    plot.text(plot.right, plot.y(even) - 4, `all alike: ${even.toFixed(2)}`, "end", "vblora-label vblora-accent");
    const lit = order.indexOf(this.model.get("lit_vector"));
    if (lit >= 0) {
      const wide = Math.max(2, plot.x(1) - plot.x(0));
      plot.add("rect", "vblora-lit", { x: plot.x(lit + 0.5) - wide / 2, y: plot.y(most), width: wide,
        height: plot.bottom - plot.y(most) });
    }
    const yTicks = ticks(0, most, 3);
    plot.axes("bank vectors, most used first", "summed weight", yTicks, yTicks[1] ?? 1);
    plot.text(plot.left, plot.bottom + 13, "1");
    plot.text(plot.right, plot.bottom + 13, String(data.columns), "end");
    const at = ({ x }) => bound(Math.floor(x), 0, data.columns - 1);
    view.points(plot, (point) => `${at(point) + 1}: ${data.sentence({ row: -1, column: order[at(point)] })}`,
      "Click one to light every sub-vector that mixes it.",
      (point) => toggle(this.model, "lit_vector", order[at(point)]));
  }

  drawEntropy() {
    const { data, entropy: view } = this;
    const most = Math.log(data.topk);
    view.title.textContent = "How even the mixtures are";
    const plot = new Plot(view.body, 230, { left: 38, right: 8, top: 20, bottom: 34 },
      "entropy of each sub-vector's mixture, by layer");
    plot.scale([-0.5, data.layers.length - 0.5], [0, (most || 1) * 1.08]);
    const lit = new Set(data.lit());
    const dots = { A: [], B: [], lit: [] };
    for (let row = 0; row < data.count; row++) {
      const { matrix, layer } = data.coordinate(row);
      const spread = 0.06 + 0.28 * (((row * 0.618034) % 1)); // spread out, the same every time
      const point = [layer + (matrix ? spread : -spread), data.entropy[row]];
      dots["AB"[matrix]].push(point);
      if (lit.has(row)) dots.lit.push(point);
    }
    for (const [name, points] of Object.entries(dots)) plot.dots(points, `vblora-dots vblora-dots-${name}`);
    data.layer_entropy.forEach((mean, i) => plot.line([[i - 0.4, mean], [i + 0.4, mean]], "vblora-mean"));
    plot.line([[-0.5, most], [data.layers.length - 0.5, most]], "vblora-even");
    const yTicks = ticks(0, most || 1, 3);
    plot.axes("layer: dots left A, right B; bar the mean", "entropy (nats); dashed: equal shares", yTicks, yTicks[1] ?? 1);
    this.layerTicks(plot);
    const at = ({ x }) => bound(Math.round(x), 0, data.layers.length - 1);
    view.points(plot, (point) => `${data.layers[at(point)]}: mean entropy ${data.layer_entropy[at(point)].toFixed(3)} nats`,
      `0 nats: one vector alone. ${most.toFixed(3)} nats: equal shares of ${data.topk}.`);
  }

  layerTicks(plot) {
    const names = this.data.layers.map((name) => name.replace(/^layer /, ""));
    const every = Math.ceil((names.length * 22) / (plot.right - plot.left));
    names.forEach((name, i) => { if (i % every === 0) plot.text(plot.x(i), plot.bottom + 13, name); });
    return { names, every };
  }

  drawSharing() {
    const { data, sharing: view } = this;
    const count = data.layers.length;
    view.title.textContent = "What layers share";
    const space = Math.min(view.body.clientWidth - 120, 230 - 20 - 34);
    const size = Math.max(60, space);
    const plot = new Plot(view.body, size + 20 + 34, { left: 38, right: Math.max(view.body.clientWidth - 38 - size, 8), top: 20, bottom: 34 },
      "share of what two layers take that comes from the same bank vectors");
    plot.scale([-0.5, count - 0.5], [count - 0.5, -0.5]);
    const cell = (plot.right - plot.left) / count;
    for (let a = 0; a < count; a++)
      for (let b = 0; b < count; b++)
        plot.add("rect", "", { x: plot.left + b * cell, y: plot.top + a * cell, width: cell + 0.3, height: cell + 0.3,
          fill: shadeOf(this.shades, data.sharing[a * count + b]) });
    const { names, every } = this.layerTicks(plot);
    names.forEach((name, i) => { if (i % every === 0) plot.text(plot.left - 5, plot.y(i) + 4, name, "end"); });
    plot.text((plot.left + plot.right) / 2, plot.height - 4, "layer");
    plot.text(0, 11, "layer", "start");
    this.colourBar(plot, plot.right + 16);
    const at = (value) => bound(Math.round(value), 0, count - 1);
    view.points(plot, ({ x, y }) => {
      const [a, b] = [at(y), at(x)];
      return `${data.layers[a]} and ${data.layers[b]}: ${percent(data.sharing[a * count + b])} from the same bank vectors`;
    }, "Point at two layers: how much they take from the same bank vectors.");
  }

  colourBar(plot, x) {
    const tall = plot.bottom - plot.top;
    for (let i = 0; i < SHADES; i++)
      plot.add("rect", "", { x, y: plot.bottom - ((i + 1) / SHADES) * tall, width: 10, height: tall / SHADES + 0.4, fill: this.shades[i] });
    for (const [share, text] of [[0, "0%"], [0.5, "50%"], [1, "100%"]])
      plot.text(x + 15, plot.bottom - share * tall + (share === 1 ? 9 : share === 0 ? 0 : 4), text, "start");
  }

  /** The bank vectors of the pinned row as bars, with their values where a model is behind. */
  drawMixture() {
    const { data, mixture: view } = this;
    const [pinned, lit] = [this.model.get("pinned_row"), this.model.get("lit_vector")];
    const bank = numbers(Float32Array, this.model.get("bank"));
    const length = bank.length / data.columns;
    view.body.replaceChildren();
    view.caption.textContent = "";
    const values = (column) => bank.subarray(column * length, (column + 1) * length);
    if (pinned >= 0 && pinned < data.count) {
      const mixture = data.mixture(pinned);
      view.title.textContent = `Sub-vector ${pinned} is a mixture`;
      make(view.body, "div", "vblora-caption", data.place(pinned).join(" · "));
      const most = this.largest(mixture.map((m) => values(m.column)));
      mixture.forEach(({ column, weight }) => this.drawShare(view.body, column, weight, values(column), most));
      if (length) this.drawSum(view.body, mixture, values, length, most);
    } else if (lit >= 0 && lit < data.columns) {
      const rows = data.sharers(lit);
      view.title.textContent = `Bank vector ${lit} is in ${rows.length} mixtures`;
      if (length) this.drawValues(view.body, values(lit), this.largest([values(lit)]), `values of bank vector ${lit}`);
      const layers = [...new Set(rows.map((row) => data.layers[data.coordinate(row).layer]))];
      view.caption.textContent = layers.length ? `It is used in ${layers.join(", ")}.` : "No sub-vector mixes it.";
    } else {
      view.title.textContent = "What a sub-vector is mixed from";
      view.caption.textContent = "Click a row of the map to see the bank vectors it mixes.";
    }
  }

  largest(arrays) {
    return arrays.reduce((most, array) => array.reduce((a, b) => Math.max(a, Math.abs(b)), most), 1e-12);
  }

  drawShare(parent, column, weight, values, most) {
    const line = make(parent, "div", "vblora-share");
    const light = button(line, `bank vector ${column}`, () => toggle(this.model, "lit_vector", column));
    light.setAttribute("aria-pressed", String(this.model.get("lit_vector") === column));
    const track = make(line, "span", "vblora-share-track");
    const bar = make(track, "span", "vblora-share-bar");
    bar.style.width = `${100 * weight}%`;
    bar.style.background = shadeOf(this.shades, weight);
    make(line, "span", "vblora-share-number", weight.toFixed(3));
    if (values.length) this.drawValues(parent, values, most, `values of bank vector ${column}`);
  }

  drawSum(parent, mixture, values, length, most) {
    const sum = new Float32Array(length);
    for (const { column, weight } of mixture) values(column).forEach((value, i) => { sum[i] += weight * value; });
    make(parent, "div", "vblora-share-name", "= the sub-vector");
    this.drawValues(parent, sum, most, "values of the sub-vector");
  }

  drawValues(parent, values, most, label) {
    const plot = new Plot(make(parent, "div", "vblora-values"), 40, { left: 46, right: 4, top: 3, bottom: 3 }, label);
    plot.scale([0, values.length], [-most, most]);
    const d = Array.from(values, (value, i) => `M${plot.x(i + 0.5).toFixed(2)} ${plot.y(0)}V${plot.y(value).toFixed(2)}`).join("");
    const stroke = Math.max(0.6, (0.8 * (plot.right - plot.left)) / values.length);
    plot.add("path", "vblora-map-bars", { d, "stroke-width": stroke });
    plot.add("path", "vblora-map-axis", { d: `M${plot.left} ${plot.y(0)}H${plot.right}` });
    plot.text(plot.left - 5, plot.top + 8, most.toPrecision(2), "end");
    plot.text(plot.left - 5, plot.bottom, `−${most.toPrecision(2)}`, "end");
  }

  drawDelta() {
    const { delta: view } = this;
    const facts = this.model.get("delta");
    const blocks = numbers(Float32Array, this.model.get("delta_blocks"));
    view.box.hidden = facts.grid === undefined || blocks.length !== facts.grid[0] * facts.grid[1];
    if (view.box.hidden) return;
    const names = this.model.get("modules");
    if (this.module.options.length !== names.length || this.named !== names) {
      fillSelect(this.module, Object.fromEntries(names.map((name, i) => [i, name])));
      this.named = names;
    }
    this.module.value = String(this.model.get("module_shown"));
    view.title.textContent = "The update of a module, ΔW = B A";
    view.body.replaceChildren();
    const pair = make(view.body, "div", "vblora-delta");
    const most = this.drawBlocks(make(pair, "div", "vblora-delta-map"), facts, blocks);
    this.drawSingular(make(pair, "div", "vblora-delta-values"), facts.singular_values);
    view.caption.textContent = `‖ΔW‖ = ${facts.norm.toPrecision(3)}, ` +
      `${percent(facts.norm / facts.base_norm)} of ‖W‖; darkest block: root mean square ${most.toPrecision(2)}`
        .replace("darkest", this.colours.dark ? "lightest" : "darkest");
  }

  drawBlocks(parent, facts, blocks) {
    const [tall, wide] = facts.grid;
    const most = blocks.reduce((a, b) => Math.max(a, b), 1e-30);
    make(parent, "div", "vblora-label-text", `${facts.shape[0]} output features ↓`);
    const canvas = make(parent, "canvas", "vblora-blocks");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `root mean square of the update in ${tall} by ${wide} blocks`);
    Object.assign(canvas, { width: wide, height: tall });
    const context = canvas.getContext("2d");
    blocks.forEach((value, i) => {
      context.fillStyle = shadeOf(this.shades, value / most);
      context.fillRect(i % wide, Math.floor(i / wide), 1, 1);
    });
    make(parent, "div", "vblora-label-text", `${facts.shape[1]} input features →`);
    return most;
  }

  drawSingular(parent, values) {
    const plot = new Plot(parent, 230, { left: 44, right: 4, top: 20, bottom: 34 }, "singular values of the update");
    const most = Math.max(...values, 1e-30);
    plot.scale([0, values.length], [0, most * 1.05]);
    values.forEach((value, i) => {
      const [x, y] = [plot.x(i + 0.15), plot.y(value)];
      const bar = plot.add("rect", "vblora-map-bar", { x, y, width: plot.x(i + 0.85) - x, height: plot.bottom - y });
      const title = document.createElementNS(SVG, "title");
      title.textContent = value.toPrecision(4);
      bar.append(title);
      if (values.length <= 12) plot.text(plot.x(i + 0.5), plot.bottom + 13, String(i + 1));
    });
    const yTicks = ticks(0, most, 3);
    plot.axes("rank", "singular value", yTicks, yTicks[1] ?? 1);
  }
}

// ---- the table ----------------------------------------------------------------------------------

class Table {
  constructor(root, model, data, map) {
    Object.assign(this, { model, data, map, open: false, page: 0 });
    this.box = make(root, "div", "vblora-table");
    this.box.hidden = true;
    const bar = make(this.box, "div", "vblora-toolbar");
    this.previous = button(bar, "Previous", () => this.turn(-1));
    this.next = button(bar, "Next", () => this.turn(1));
    this.body = make(this.box, "div");
  }

  turn(by) {
    this.page += by;
    this.draw();
  }

  toggle() {
    this.open = !this.open;
    this.draw();
  }

  draw() {
    const { data, model } = this;
    this.box.hidden = !this.open || !data.ready;
    if (this.box.hidden) return;
    const [first, end] = this.map.window ?? [0, data.count];
    const pages = Math.ceil((end - first) / PAGE);
    this.page = bound(this.page, 0, pages - 1);
    const from = first + this.page * PAGE;
    const to = Math.min(from + PAGE, end);
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page >= pages - 1;
    const held = this.body.querySelector(":focus")?.textContent;
    this.body.replaceChildren();
    const table = make(this.body, "table");
    make(table, "caption", "", `Sub-vectors ${from + 1} to ${to} of ${data.count}, by ${ROWS_BY[model.get("rows_by")]}`);
    const heads = make(make(table, "thead"), "tr");
    for (const text of ["sub-vector", "module", "matrix", "rank", "tile", "mixture: weight of bank vector", "entropy (nats)"])
      make(heads, "th", "", text).scope = "col";
    const body = make(table, "tbody");
    for (let place = from; place < to; place++) {
      const pin = this.line(body, data.rowAt[place]);
      if (pin.textContent === held) pin.focus(); // who presses a button keeps it
    }
  }

  line(body, row) {
    const { data, model } = this;
    const line = make(body, "tr", row === model.get("pinned_row") ? "vblora-pinned" : "");
    const head = make(line, "th");
    head.scope = "row";
    const pin = button(head, String(row), () => toggle(model, "pinned_row", row));
    pin.setAttribute("aria-pressed", String(row === model.get("pinned_row")));
    pin.setAttribute("aria-label", `pin sub-vector ${row}`);
    const { module, matrix, rank, tile } = data.coordinate(row);
    const mixture = data.mixture(row).map((m) => `${m.weight.toFixed(3)} of ${m.column}`).join(" + ");
    const cells = [model.get("modules")[module], "AB"[matrix], rank, tile, mixture, data.entropy[row].toFixed(3)];
    for (const text of cells) make(line, "td", "", String(text));
    return pin;
  }
}

// ---- the bench ----------------------------------------------------------------------------------

/** Changes to the live model: the kernel makes and measures them, this asks and shows. */
class Bench {
  constructor(root, model, data) {
    Object.assign(this, { model, data });
    this.box = make(root, "section", "vblora-bench");
    make(this.box, "h4", "vblora-view-title", "What if? Change a mixture, measure, undo");
    this.where = make(this.box, "div", "vblora-caption");
    const forms = make(this.box, "div", "vblora-forms");
    this.buildSwap(this.form(forms, "Swap a bank vector"));
    this.buildWeight(this.form(forms, "Change a weight"));
    this.buildOff(this.form(forms, "Switch one off everywhere"));
    const bar = make(this.box, "div", "vblora-toolbar");
    this.undo = button(bar, "Undo", () => this.ask({ bench: "undo" }));
    this.restore = button(bar, "Undo all", () => this.ask({ bench: "restore" }));
    this.state = make(bar, "span", "vblora-bench-state");
    this.state.setAttribute("role", "status");
    this.changes = make(this.box, "ol", "vblora-changes");
    this.result = make(this.box, "div", "vblora-result");
  }

  form(parent, title) {
    const set = make(parent, "fieldset", "vblora-form");
    make(set, "legend", "", title);
    return set;
  }

  /** A box for the number of a bank vector. */
  number(set, text) {
    const { control } = labelled(set, text, "input", "number");
    return Object.assign(control, { min: "0", value: "0", required: true });
  }

  /** A button; the browser says what is wrong with the number, and asks for another. */
  tryButton(set, number, question) {
    return button(set, "Try", () => { if (number.reportValidity()) this.ask(question(number.valueAsNumber)); });
  }

  buildSwap(set) {
    this.old = labelled(set, "instead of bank vector", "select").control;
    this.new = this.number(set, "take");
    this.swap = this.tryButton(set, this.new, (vector) => ({
      bench: "swap", row: this.row, old: Number(this.old.value), new: vector }));
  }

  buildWeight(set) {
    this.vector = labelled(set, "of bank vector", "select").control;
    const { field, control } = labelled(set, "to", "input", "range");
    Object.assign(control, { min: "0", max: "1", step: "0.01", value: "0.5" });
    const shown = make(field, "output", "", "0.50");
    control.addEventListener("input", () => { shown.textContent = Number(control.value).toFixed(2); });
    this.weight = control;
    this.reweight = button(set, "Try", () => this.ask({
      bench: "reweight", row: this.row, vector: Number(this.vector.value), weight: Number(control.value) }));
  }

  buildOff(set) {
    this.off = this.number(set, "bank vector");
    this.instead = labelled(set, "and", "select").control;
    fillSelect(this.instead, { nothing: "put nothing in its place", next: "take the next best" });
    this.switchOff = this.tryButton(set, this.off, (vector) => ({
      bench: "switch_off", vector, next_best: this.instead.value === "next" }));
  }

  get row() { return this.model.get("pinned_row"); }

  ask(question) { this.model.send(question); }

  draw() {
    const { data, model } = this;
    const told = model.get("bench");
    this.box.hidden = told.changes === undefined || !data.ready;
    if (this.box.hidden) return;
    const pinned = this.row >= 0 && this.row < data.count;
    this.where.textContent = pinned
      ? `Sub-vector ${this.row}: ${data.sentence({ row: this.row, column: -1 })}`
      : "Pin a row of the map (click it) to change its mixture.";
    const mixed = pinned ? Object.fromEntries(data.mixture(this.row).map((m) => [m.column, String(m.column)])) : {};
    for (const select of [this.old, this.vector]) fillSelect(select, mixed);
    const lit = model.get("lit_vector");
    if (lit >= 0 && this.lastLit !== lit) this.off.value = String(lit);
    this.lastLit = lit;
    for (const input of [this.new, this.off]) input.max = String(data.columns - 1);
    for (const control of [this.old, this.new, this.swap, this.vector, this.weight, this.reweight])
      control.disabled = told.busy || !pinned;
    this.switchOff.disabled = told.busy;
    this.undo.disabled = this.restore.disabled = told.busy || told.changes.length === 0;
    this.state.textContent = told.busy ? "measuring…" : told.error ? `✕ ${told.error}` : "";
    this.state.classList.toggle("vblora-problem", Boolean(told.error));
    this.changes.replaceChildren();
    for (const change of told.changes) make(this.changes, "li", "", change);
    this.drawResult(told);
  }

  drawResult({ before, after, changes }) {
    this.result.replaceChildren();
    if (!before) return;
    const change = after.loss - before.loss;
    const sign = Math.abs(change) < 5e-5 ? "no change" : change > 0 ? `▲ ${change.toFixed(4)} worse` : `▼ ${(-change).toFixed(4)} better`;
    const loss = make(this.result, "div", "vblora-loss");
    make(loss, "span", "vblora-loss-name", "loss (nats per token)");
    make(loss, "span", "vblora-loss-number", `${before.loss.toFixed(4)} → ${after.loss.toFixed(4)}`);
    const kind = sign === "no change" ? "" : change > 0 ? "vblora-problem" : "vblora-better";
    make(loss, "span", `vblora-loss-change ${kind}`, sign);
    if (before.prompt) make(this.result, "div", "vblora-prompt", before.prompt);
    const texts = make(this.result, "div", "vblora-texts");
    const title = changes.length === 1 ? "With the change" : `With ${changes.length} changes`;
    this.drawText(texts, "Without changes", before, after);
    this.drawText(texts, changes.length ? title : "After undoing", after, before);
  }

  drawText(parent, title, outcome, other) {
    const box = make(parent, "div", "vblora-map-text");
    make(box, "div", "vblora-label-text", title);
    const text = make(box, "p");
    const there = new Set(other.text.split(/\s+/));
    for (const word of outcome.text.split(/(\s+)/))
      if (word.trim() === "" || there.has(word)) text.append(word);
      else make(text, "mark", "", word); // a word that the other text hasn't
    if (outcome.text === "") make(text, "em", "", "(nothing)");
    for (const mistake of outcome.mistakes) make(box, "div", "vblora-problem", `✕ ${mistake}`);
  }
}

// ---- all of it ----------------------------------------------------------------------------------

function render({ model, el }) {
  const parts = frame(el, "What each sub-vector takes from the bank", LABEL);
  const data = new Data(model);
  const map = new Heatmap(model, data, parts);
  const table = new Table(parts.root, model, data, map);
  const toolbar = new Toolbar(parts.root, model, data, map, table);
  parts.stage.before(toolbar.box);
  const scrubber = new Scrubber(parts.root, model, data);
  parts.stage.after(scrubber.box);
  const views = new Views(parts.root, model, data);
  const bench = new Bench(parts.root, model, data);
  parts.root.append(table.box);
  // What is around the map changes with the data, not with the pointer.
  const around = oncePerFrame(() => { for (const part of [toolbar, scrubber, views, bench, table]) part.draw(); });
  const all = () => { map.redraw(); around(); };
  const onData = () => { data.stale = true; all(); };
  const onRows = () => { map.forget(); onData(); };
  const onFrame = () => { data.show(); all(); };
  const onOrder = () => { map.look(null); onData(); };
  const watched = { coordinates: onRows, row_order: onOrder, groups: all, frame: onFrame };
  for (const trait of ["indices", "weights", "usage", "entropy", "layer_entropy", "sharing", "churn",
    "steps", "layers", "num_vectors", "column_order"]) watched[trait] = onData;
  for (const trait of ["pinned_row", "lit_vector", "selected", "height", "view", "rows_by", "columns_by",
    "compact", "base", "bank", "delta", "delta_blocks", "bench", "modules", "module_shown"]) watched[trait] = all;
  for (const [trait, listener] of Object.entries(watched)) model.on(`change:${trait}`, listener);
  map.onLook = ((told) => (window) => { told(window); around(); })(map.onLook);
  map.canvas.addEventListener("pointermove", (event) => map.point(event));
  map.canvas.addEventListener("pointerleave", () => map.leave());
  map.canvas.addEventListener("blur", () => map.leave());
  map.canvas.addEventListener("click", (event) => map.click(event));
  map.canvas.addEventListener("keydown", (event) => map.key(event));
  map.canvas.addEventListener("wheel", (event) => map.wheel(event), { passive: false });
  const stop = onAppearance(map.stage, all);
  all();
  return () => {
    stop();
    scrubber.stop();
    for (const [trait, listener] of Object.entries(watched)) model.off(`change:${trait}`, listener);
  };
}

export default { render };
