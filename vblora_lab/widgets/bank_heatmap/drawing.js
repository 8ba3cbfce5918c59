// ---- the map: drawing ------------------------------------------------------------------------------------

class MapDrawing {
  constructor(model, data, parts) {
    Object.assign(this, parts, { model, data });
    this.modules = new Modules(model, data);
    this.moduleCells = new ModuleCells(this.modules);
    this.title = this.root.querySelector(".vblora-chart-title");
    this.notice = new Notice(this.stage);
    this.cursor = null; // { row, column, keys }: a row or column of -1 is none; keys: moved by keyboard
    this.window = null; // [first, end) of the places shown, when not all are
    this.legend = new Legend(parts.legend);
    this.redraw = oncePerFrame(() => this.draw());
  }

  get footprint() {
    return this.model.get("view") === "footprint" && this.data.frames > 1;
  }

  /** The module whose sub-vectors are shown alone; -1 for none. */
  get opened() {
    const opened = this.model.get("opened");
    const shown = this.model.get("view") === "modules" && this.modules.possible;
    return shown && opened < (this.modules.names?.length ?? 0) ? opened : -1;
  }

  /** Whether each row is a module. */
  get grouped() {
    return this.model.get("view") === "modules" && this.modules.possible && this.opened < 0;
  }

  /** What the rows are, and where each stands: modules, or sub-vectors. */
  get rows() { return this.grouped ? this.modules : this.data; }

  /** [first, end) of the places there are: all, or those of the opened module. */
  get all() {
    if (this.opened < 0) return [0, this.rows.count];
    const of = (row) => this.modules.moduleOf[row] === this.opened;
    const first = this.data.rowAt.findIndex(of);
    return [first, first + this.modules.sizes[this.opened]];
  }

  /** The labels beside the rows, in places of this map. */
  get groups() {
    const groups = this.model.get("groups");
    if (!this.grouped) return groups;
    const place = (at) => this.modules.placeOfRow[this.data.rowAt[at]];
    return groups.filter(([level]) => level < 2).map(([level, start, count, text]) => {
      const [from, to] = [place(start), place(start + count - 1) + 1];
      return [level, from, to - from, text];
    });
  }

  forget() {
    this.window = this.cursor = null;
  }

  layout(context) {
    const wide = this.stage.clientWidth;
    const groups = this.groups;
    const levels = wide < NARROW ? [0] : [0, 1, 2];
    const most = wide * LABELS; // a name that is longer is cut off: the read-out has it whole
    const widest = (level) => !levels.includes(level) ? 0 : Math.ceil(groups
      .filter((g) => g[0] === level)
      .reduce((all, g) => Math.max(all, Math.min(most, context.measureText(g[3]).width)), 0));
    const secondAt = widest(0) + 12;
    const thirdAt = secondAt + widest(1) + 10;
    const [first, end] = this.window ?? this.all;
    const labels = groups.length === 0 ? 0 : wide < NARROW ? secondAt : thirdAt + widest(2) + 8;
    const [left, top] = [Math.max(labels, Math.ceil(context.measureText("summed weight").width) + 12), USAGE + GAP];
    const keptWidth = this.grouped && this.modules.changed && wide >= NARROW ? KEPT : 0;
    const right = keptWidth ? keptWidth + KEPT_GAP : 14;
    const [width, height] = [wide - left - right, this.model.get("height") - top - AXIS];
    Object.assign(this, {
      labels: groups, levels, most, keptWidth, levelAt: [0, secondAt, thirdAt], first, end, left, top, width, height,
      cellWidth: width / this.data.columns, cellHeight: height / (end - first),
    });
  }

  x(place) { return this.left + place * this.cellWidth; }
  y(place) { return this.top + (place - this.first) * this.cellHeight; }
  middle(row) { return this.y(this.rows.placeOfRow[row] + 0.5); }
  centre(column) { return this.x(this.data.placeOfColumn[column] + 0.5); }
  shows(place) { return place >= this.first && place < this.end; }

  draw() {
    if (this.stage.clientWidth === 0) return; // hidden, or already taken away
    const colours = (this.colours = theme(this.root));
    this.shades = colours.dark ? DARK_SHADES : LIGHT_SHADES;
    this.modules.refresh();
    this.title.textContent = this.grouped ? QUESTION : TITLE;
    this.legend.draw(this);
    this.notice.draw(this);
    const context = pen(this.canvas, this.stage.clientWidth, this.model.get("height"));
    context.font = `12px ${colours.font}`;
    context.textBaseline = "middle";
    if (!this.data.ready) return this.drawEmpty(context);
    this.layout(context);
    context.fillStyle = colours.paper;
    context.fillRect(this.left, this.top, this.width, this.height);
    this.drawGroups(context);
    this.drawMarkedBands(context);
    if (this.grouped) this.moduleCells.draw(context, this);
    else if (this.footprint) this.drawFootprint(context);
    else this.drawCells(context);
    this.drawArrows(context, this.marked());
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
    for (const [level, start, count, text] of this.labels) {
      const [from, to] = [Math.max(start, this.first), Math.min(start + count, this.end)];
      if (from >= to || !this.levels.includes(level)) continue;
      const tall = (to - from) * this.cellHeight;
      const y = this.y(from);
      if (from > this.first && (level === 0 || (level === 1 && tall > 12))) {
        const at = level === 0 ? 0 : this.levelAt[1];
        context.fillStyle = this.colours.rule;
        context.fillRect(at, Math.round(y) - 0.5, this.left + this.width - at, 1);
      }
      if (tall < (level === 0 ? 14 : 9.5)) continue; // no room for its name
      context.font = `${level === 0 ? 12 : Math.min(11, 0.92 * tall)}px ${this.colours.font}`;
      context.fillStyle = level === 0 ? this.colours.ink : this.colours.faint;
      context.fillText(shortened(context, text, this.most), this.levelAt[level], y + tall / 2);
    }
    context.font = `12px ${this.colours.font}`;
    if (this.labels.length > 0) return;
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
    if (pinned >= 0 && pinned < this.data.count && this.shows(this.rows.placeOfRow[pinned])) {
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
    if (this.marksStart) this.drawStart(context);
  }

  /** Whether single rows are tall enough to show beside each choice what it was at the start. */
  get marksStart() {
    if (this.footprint || this.grouped || !this.data.ready || !this.modules.changed) return false;
    const { tall } = this.cellHeight === undefined ? { tall: 0 } : this.cellSize();
    return tall >= 4;
  }

  /** A frame where a bank vector was chosen at the start only, a dot where it still is. */
  drawStart(context) {
    const { data } = this;
    const { tall, wide } = this.cellSize();
    const before = data.start.indices;
    context.strokeStyle = context.fillStyle = this.colours.accent;
    context.lineWidth = 1;
    for (let place = this.first; place < this.end; place++) {
      const row = data.rowAt[place];
      const now = data.indices.subarray(row * data.topk, (row + 1) * data.topk);
      for (const column of before.subarray(row * data.topk, (row + 1) * data.topk)) {
        const [x, y] = [this.centre(column), this.y(place + 0.5)];
        if (!now.includes(column)) context.strokeRect(x - wide / 2 + 0.5, y - tall / 2 + 0.5, wide - 1, tall - 1);
        else {
          context.beginPath();
          context.arc(x, y, bound(Math.min(wide, tall) / 5, 1.2, 3), 0, 2 * Math.PI);
          context.fill();
        }
      }
    }
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
      context.fillStyle = (this.colours.dark ? DARK_FOOTPRINT : FOOTPRINT)[kind];
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
  }

  /** The rows that get an arrow: those that are lit; of modules, those in which the lit vector stands out. */
  marked() {
    const [lit, { data, modules }] = [this.model.get("lit_vector"), this];
    if (!this.grouped || lit < 0 || lit >= data.columns) return data.lit();
    return modules.rowAt.filter((row) => modules.standsOut(modules.moduleOf[row], lit));
  }

  /** Arrows at the right edge beside the rows that are lit: not by colour alone. */
  drawArrows(context, rows) {
    context.fillStyle = this.colours.accent;
    for (const row of rows) {
      if (!this.shows(this.rows.placeOfRow[row])) continue;
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
    const expected = data.count / data.columns; // by chance, as in inspection/chance.py
    const spread = Math.hypot(...data.spread);
    const most = data.usage.reduce((a, b) => Math.max(a, b), expected + 2 * spread);
    const height = (weight) => (Math.max(weight, 0) / most) * (USAGE - 8);
    const [low, high] = [height(expected - 2 * spread), height(expected + 2 * spread)];
    context.fillStyle = this.colours.accent;
    context.globalAlpha = 0.25; // where chance leaves 19 of 20
    context.fillRect(this.left, USAGE - high, this.width, high - low);
    context.globalAlpha = 1;
    const lit = this.model.get("lit_vector");
    const hovered = this.cursor?.column ?? -1;
    for (let place = 0; place < data.columns; place++) {
      const column = data.columnAt[place];
      const tall = height(data.usage[column]);
      context.fillStyle = column === lit ? this.colours.accent
        : column === hovered ? this.colours.ink : this.colours.line;
      context.fillRect(this.x(place), USAGE - tall, Math.max(this.cellWidth - 0.6, 1), tall);
    }
    context.fillStyle = this.colours.accent;
    context.fillRect(this.left, USAGE - height(expected), this.width, 1);
    context.fillStyle = this.colours.rule;
    context.fillRect(this.left, USAGE, this.width, 1);
    context.textAlign = "right";
    context.fillStyle = this.colours.faint;
    context.fillText("summed weight", this.left - 8, 7);
    context.fillText("0", this.left - 8, USAGE - 3);
    context.fillStyle = this.colours.accent;
    context.fillText(`chance ${expected.toFixed(1)}`, this.left - 8, bound(USAGE - height(expected), 20, USAGE - 15));
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
    context.fillText(text, this.left + this.width / 2, bottom + (by === "number" ? 27 : 16));
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
}
