// ---- the map: drawing ------------------------------------------------------------------------------------

class MapDrawing {
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
}
