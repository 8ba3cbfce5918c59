// ---- the map: pointer and keyboard -------------------------------------------------------------

/** The map that is drawn, and what hovering, clicking, zooming and keys do on it. */
class Heatmap extends MapDrawing {
  tell() {
    const [pinned, lit] = [this.model.get("pinned_row"), this.model.get("lit_vector")];
    const selected = this.model.get("selected");
    const { cursor, data } = this;
    const hint = this.grouped ? MODULE_HINT : HINT;
    let text = hint;
    if (cursor) text = this.sentence(cursor);
    else if (pinned >= 0 && pinned < data.count) text = `pinned: ${data.sentence({ row: pinned, column: -1 })}`;
    else if (lit >= 0 && lit < data.columns) text = `lit: ${data.sentence({ row: -1, column: lit })}`;
    else if (selected.length) text = `${selected.length} of ${data.count} sub-vectors are selected`;
    say(this.readout, text, text !== hint && this.asked);
    this.asked = false;
    if (!cursor) this.tip.hidden = true;
    else this.fillTip(cursor);
  }

  sentence(cursor) {
    return this.grouped && cursor.row >= 0 ? this.modules.sentence(cursor) : this.data.sentence(cursor);
  }

  fillTip({ row, column }) {
    const { data, modules } = this;
    this.tip.replaceChildren();
    if (row < 0) {
      const [name, rest] = data.sentence({ row, column }).split(": ");
      make(make(this.tip, "div"), "b", "", name);
      make(this.tip, "div", "", rest);
    } else if (this.grouped) {
      const module = modules.moduleOf[row];
      make(make(this.tip, "div"), "b", "", modules.names[module]);
      if (column >= 0) {
        const { weight, by, mixing, before } = modules.facts(module, column);
        make(this.tip, "div", "", `${weight} of bank vector ${column}; ${by}`);
        for (const text of [mixing, before].filter(Boolean)) make(this.tip, "div", "vblora-tip-entropy", text);
      }
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

  // ---- pointer and keyboard

  get usable() { return this.data.ready && this.end !== undefined; }

  /** What lies under the pointer: a cell, a column (above or below the cells), or a row's group. */
  hit(event) {
    const { data } = this;
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const place = bound(Math.floor(this.first + (y - this.top) / this.cellHeight), this.first, this.end - 1);
    const column = data.columnAt[bound(Math.floor((x - this.left) / this.cellWidth), 0, data.columns - 1)];
    const row = this.rows.rowAt[place];
    const inBody = y >= this.top && y <= this.top + this.height;
    if (x < this.left) return inBody ? { row, column: -1, gutter: true } : null;
    if (!inBody) return { row: -1, column };
    return (!this.grouped && this.nearestChosen(x, y)) || { row, column };
  }

  /** The chosen cell within 4 pixels of a point: cells may be too small to aim at. */
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
    if (at.gutter && !this.grouped) return this.opened < 0 ? this.toggleGroup(at.row) : this.open(-1);
    if (this.grouped && at.row >= 0) return this.open(this.modules.moduleOf[at.row]);
    const chosen = at.row >= 0 && this.data.mixture(at.row).some((m) => m.column === at.column);
    if (at.row >= 0) toggle(this.model, "pinned_row", at.row);
    if (at.row < 0 || chosen) toggle(this.model, "lit_vector", at.column);
  }

  /** Show the sub-vectors of a module alone; -1: all modules again. */
  open(module) {
    this.window = null;
    choose(this.model, "opened", module);
  }

  /** Show the rows of this row's widest group alone, or all rows again. */
  toggleGroup(row) {
    const place = this.rows.placeOfRow[row];
    const inside = (g) => g[0] === 0 && place >= g[1] && place < g[1] + g[2];
    const group = this.groups.find(inside);
    this.look(this.window || !group ? null : [group[1], group[1] + group[2]]);
  }

  /** Show fewer places (factor below 1) or more, about one that stays where it is. */
  zoom(factor, place) {
    const [from, to] = this.all;
    const count = to - from;
    const size = bound(Math.round((this.end - this.first) * factor), Math.min(4, count), count);
    const share = (place - this.first) / (this.end - this.first);
    const first = bound(Math.round(place - share * size), from, to - size);
    this.look(size === count ? null : [first, first + size]);
  }

  look(window) {
    this.window = window;
    if (this.data.ready) this.modules.refresh();
    [this.first, this.end] = window ?? this.all; // before the next frame draws them
    const place = this.rows.placeOfRow?.[this.cursor?.row];
    if (this.cursor && !(place >= this.first && place < this.end)) this.cursor = null;
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
    const { rows } = this;
    const { row, column } = this.cursor?.row >= 0 ? this.cursor
      : { row: rows.rowAt[this.first], column: data.columnAt[0] };
    const at = { row: rows.placeOfRow[row], column: column < 0 ? 0 : data.placeOfColumn[column] };
    const chosen = this.worthReading(row).map((c) => data.placeOfColumn[c]).sort((a, b) => a - b);
    const move = {
      ArrowUp: [at.row - 1, at.column], ArrowDown: [at.row + 1, at.column],
      PageUp: [at.row - 10, at.column], PageDown: [at.row + 10, at.column],
      ArrowLeft: [at.row, event.ctrlKey ? chosen.findLast((c) => c < at.column) ?? at.column : at.column - 1],
      ArrowRight: [at.row, event.ctrlKey ? chosen.find((c) => c > at.column) ?? at.column : at.column + 1],
      Home: [at.row, 0], End: [at.row, data.columns - 1],
    }[event.key];
    const act = {
      Enter: () => (this.grouped ? this.open(this.modules.moduleOf[row]) : toggle(this.model, "pinned_row", row)),
      Backspace: () => this.open(-1),
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
        row: rows.rowAt[bound(move[0], this.first, this.end - 1)],
        column: data.columnAt[bound(move[1], 0, data.columns - 1)],
      };
    }
    this.redraw();
  }

  /** The bank vectors that control and an arrow key go to: those of the mixture, or those that stand out. */
  worthReading(row) {
    if (!this.grouped) return this.data.mixture(row).map((m) => m.column);
    const module = this.modules.moduleOf[row];
    return [...this.data.columnAt].filter((column) => this.modules.standsOut(module, column));
  }

  clear() {
    this.cursor = null;
    for (const trait of ["pinned_row", "lit_vector", "opened"]) this.model.set(trait, -1);
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
