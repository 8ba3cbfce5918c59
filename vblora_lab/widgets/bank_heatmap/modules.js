// ---- modules against chance ---------------------------------------------------------------------

/**
 * The rows of the map when each is a module (or a layer, where modules are too many). Like `Data`, it
 * says where they stand: `count` places, `rowAt[place]` a module's first sub-vector, and
 * `placeOfRow[row]` the place of the module that a sub-vector is in.
 */
class Modules {
  constructor(model, data) {
    Object.assign(this, { model, data, version: -1 });
  }

  /** Whether the rows can be modules: in the orders in which a module's sub-vectors lie together. */
  get possible() {
    return MODULE_ORDERS.includes(this.model.get("rows_by"));
  }

  /** Bring the numbers up to the frame that the data shows. */
  refresh() {
    const { data, model } = this;
    if (!data.ready || this.version === data.version) return;
    this.version = data.version;
    const part = model.get("grouped_by") === "module" ? 0 : 4; // of a coordinate
    this.names = model.get(part ? "layers" : "modules");
    this.moduleOf = Int32Array.from({ length: data.count }, (_, row) => data.coordinates[5 * row + part]);
    this.arrange();
    const spread = data.spread;
    const sizes = new Float32Array(this.names.length);
    for (const module of this.moduleOf) sizes[module] += 1;
    this.now = { ...this.sum(data.indices, data.weights), spread };
    const { indices, weights, spread: before } = data.start;
    this.start = indices.length ? { ...this.sum(indices, weights), spread: before } : null;
    this.sizes = sizes;
    this.kept = this.keptChoices(indices);
  }

  arrange() {
    const { data } = this;
    const [rowAt, placeOf] = [[], new Int32Array(this.names.length).fill(-1)];
    this.placeOfRow = new Int32Array(data.count);
    for (const row of data.rowAt) {
      const module = this.moduleOf[row];
      if (placeOf[module] < 0) {
        placeOf[module] = rowAt.length;
        rowAt.push(row);
      }
      this.placeOfRow[row] = placeOf[module];
    }
    Object.assign(this, { rowAt, count: rowAt.length });
  }

  /** What each module takes from each bank vector, and how many of its sub-vectors mix it. */
  sum(indices, weights) {
    const { columns, topk } = this.data;
    const size = this.names.length * columns;
    const [taken, mixing] = [new Float32Array(size), new Uint32Array(size)];
    for (let at = 0; at < indices.length; at++) {
      const cell = this.moduleOf[Math.floor(at / topk)] * columns + indices[at];
      taken[cell] += weights[at];
      mixing[cell] += 1;
    }
    return { taken, mixing };
  }

  /** For each module, the part of its choices at the start that are still choices. */
  keptChoices(before) {
    const { data } = this;
    const kept = new Float32Array(this.names.length);
    if (!before.length) return kept;
    for (let row = 0; row < data.count; row++) {
      const now = data.indices.subarray(row * data.topk, (row + 1) * data.topk);
      for (const column of before.subarray(row * data.topk, (row + 1) * data.topk))
        if (now.includes(column)) kept[this.moduleOf[row]] += 1;
    }
    return kept.map((count, module) => count / (this.sizes[module] * data.topk || 1));
  }

  /** What chance gives each cell of a module's row, on average. */
  expected(module) { return this.sizes[module] / this.data.columns; }

  /** How many standard deviations a cell lies above chance, now or at the start. */
  excess(module, column, when = this.now) {
    const spread = when.spread[module];
    const above = when.taken[module * this.data.columns + column] - this.expected(module);
    return spread > 0 ? above / spread : 0;
  }

  standsOut(module, column) {
    return this.excess(module, column) > this.model.get("stands_out");
  }

  /** Whether it stands out now and did not at the start. */
  isNew(module, column) {
    const limit = this.model.get("stands_out");
    return this.start !== null && this.standsOut(module, column) &&
      this.excess(module, column, this.start) <= limit;
  }

  /** Whether anything has changed since the start. */
  get changed() {
    return this.start !== null && this.kept.some((kept, module) => this.sizes[module] > 0 && kept < 1);
  }

  /** The cells that stand out, strongest first: { module, column, excess }. */
  outstanding() {
    const found = [];
    for (const row of this.rowAt)
      for (let column = 0; column < this.data.columns; column++) {
        const module = this.moduleOf[row];
        if (this.standsOut(module, column)) found.push({ module, column, excess: this.excess(module, column) });
      }
    return found.sort((a, b) => b.excess - a.excess);
  }

  facts(module, column) {
    const cell = module * this.data.columns + column;
    const by = `by chance ${this.expected(module).toFixed(2)} ± ${this.now.spread[module].toFixed(2)}`;
    const mixing = `${this.now.mixing[cell]} of ${this.sizes[module]} sub-vectors mix it`;
    const before = this.changed ? `at the start ${this.start.taken[cell].toFixed(2)}` : "";
    return { weight: this.now.taken[cell].toFixed(2), by, mixing, before };
  }

  sentence({ row, column }) {
    const module = this.moduleOf[row];
    if (column < 0) return `${this.names[module]}: ${this.sizes[module]} sub-vectors`;
    const { weight, by, mixing, before } = this.facts(module, column);
    return `${this.names[module]} takes ${weight} of bank vector ${column}, ${by}; ` +
      [mixing, before].filter(Boolean).join("; ");
  }

  /** What the opened module's rows are, beside chance. */
  sentenceOfOpened(module) {
    const { columns, topk } = this.data;
    const mixing = this.now.mixing.subarray(module * columns, (module + 1) * columns);
    const most = mixing.reduce((best, count, column) => (count > mixing[best] ? column : best), 0);
    const by = (this.sizes[module] * topk) / columns;
    return [`${this.names[module]}: ${this.sizes[module]} sub-vectors, each mixes ${topk} bank vectors.`,
      `Most of them, ${mixing[most]}, mix ${most}; one vector is in ${by.toFixed(1)} of them by chance, on average.`];
  }
}

/** The map's drawing of modules: grey for what chance does, colour for what exceeds it. */
class ModuleCells {
  constructor(modules) {
    this.modules = modules;
    this.image = document.createElement("canvas");
  }

  draw(context, map) {
    const { modules } = this;
    const limit = modules.model.get("stands_out");
    const lit = modules.model.get("lit_vector");
    this.drawChance(context, map, limit);
    const marks = [];
    for (let place = map.first; place < map.end; place++) {
      const module = modules.moduleOf[modules.rowAt[place]];
      for (let column = 0; column < modules.data.columns; column++) {
        const excess = modules.excess(module, column);
        if (excess <= limit) continue;
        const [x, y] = [map.centre(column), map.y(place + 0.5)];
        const [wide, tall] = [Math.max(map.cellWidth, 3), Math.max(map.cellHeight - 1, 2)];
        context.globalAlpha = lit < 0 || lit === column ? 1 : 0.25;
        context.fillStyle = shadeOf(map.shades, outstandingShade(excess, limit));
        context.fillRect(x - wide / 2, y - tall / 2, wide, tall);
        if (modules.isNew(module, column)) marks.push([x, y]);
      }
    }
    context.globalAlpha = 1;
    const room = Math.min(map.cellWidth, map.cellHeight);
    if (room >= 4.5) for (const [x, y] of marks) drawTriangle(context, x, y, bound(0.3 * room, 2.4, 4), map.colours);
    if (map.keptWidth) this.drawKept(context, map);
  }

  /** All cells at once, one pixel of a small picture each. */
  drawChance(context, map, limit) {
    const { modules } = this;
    const { columns, columnAt } = modules.data;
    const count = map.end - map.first;
    Object.assign(this.image, { width: columns, height: count });
    const small = this.image.getContext("2d");
    const pixels = small.createImageData(columns, count);
    const [red, green, blue] = map.colours.dark ? [150, 162, 175] : [110, 125, 140];
    for (let i = 0; i < count; i++) {
      const module = modules.moduleOf[modules.rowAt[map.first + i]];
      for (let place = 0; place < columns; place++) {
        const share = bound(modules.excess(module, columnAt[place]) / limit, 0, 1);
        pixels.data.set([red, green, blue, 8 + 90 * share], 4 * (i * columns + place));
      }
    }
    small.putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, map.left, map.top, map.width, map.height);
  }

  /** Bars beside the rows: the part of the choices at the start that are still choices. */
  drawKept(context, map) {
    const { modules } = this;
    const [left, wide] = [map.left + map.width + KEPT_GAP, map.keptWidth];
    context.textAlign = "left";
    context.fillStyle = map.colours.faint;
    context.fillText("choices kept", left, USAGE - 14);
    context.fillText("0", left, USAGE);
    context.textAlign = "right";
    context.fillText("100%", left + wide, USAGE);
    for (let place = map.first; place < map.end; place++) {
      const module = modules.moduleOf[modules.rowAt[place]];
      const tall = Math.max(map.cellHeight * 0.6, 1);
      const y = map.y(place + 0.5) - tall / 2;
      context.fillStyle = map.colours.rule;
      context.globalAlpha = 0.6;
      context.fillRect(left, y, wide, tall);
      context.globalAlpha = 1;
      context.fillStyle = map.colours.line;
      context.fillRect(left, y, wide * modules.kept[module], tall);
    }
  }
}

/** Where on the colour scale a cell stands: from the limit to three times that. */
function outstandingShade(excess, limit) {
  return bound(0.12 + (0.88 * (excess - limit)) / (2 * limit), 0, 1);
}

function drawTriangle(context, x, y, size, colours) {
  context.beginPath();
  context.moveTo(x, y - size);
  context.lineTo(x + size, y + 0.8 * size);
  context.lineTo(x - size, y + 0.8 * size);
  context.closePath();
  context.fillStyle = colours.accent;
  context.fill();
  if (size < 3) return;
  context.strokeStyle = colours.paper;
  context.lineWidth = 0.8;
  context.stroke();
}
