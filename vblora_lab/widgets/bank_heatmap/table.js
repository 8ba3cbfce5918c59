// ---- the table ----------------------------------------------------------------------------------

class Table {
  constructor(root, model, data, map) {
    Object.assign(this, { model, data, map, open: false, page: 0 });
    this.box = make(root, "div", "vblora-table");
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
    if (this.map.grouped) return this.drawModules();
    const [first, end] = this.map.window ?? this.map.all;
    const [from, to] = this.turned(end - first).map((at) => first + at);
    const held = this.body.querySelector(":focus")?.textContent;
    const body = this.begin(
      `Sub-vectors ${from + 1} to ${to} of ${data.count}, by ${ROWS_BY[model.get("rows_by")]}`,
      ["sub-vector", "module", "matrix", "rank", "tile", "mixture: weight of bank vector", "entropy (nats)"]);
    for (let place = from; place < to; place++) {
      const pin = this.line(body, data.rowAt[place]);
      if (pin.textContent === held) pin.focus(); // the focus stays on the button that was pressed
    }
  }

  /** [first, end) of the lines on this page, of so many. */
  turned(count) {
    const pages = Math.max(1, Math.ceil(count / PAGE));
    this.page = bound(this.page, 0, pages - 1);
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page >= pages - 1;
    return [this.page * PAGE, Math.min((this.page + 1) * PAGE, count)];
  }

  begin(caption, heads) {
    this.body.replaceChildren();
    const table = make(this.body, "table");
    make(table, "caption", "", caption);
    const line = make(make(table, "thead"), "tr");
    for (const text of heads) make(line, "th", "", text).scope = "col";
    return make(table, "tbody");
  }

  /** The cells that stand out, strongest first. */
  drawModules() {
    const { modules } = this.map;
    modules.refresh();
    const found = modules.outstanding();
    const [from, to] = this.turned(found.length);
    const body = this.begin(`Cells ${Math.min(from + 1, to)} to ${to} of the ${found.length} that stand out`,
      ["module", "bank vector", "weight", "by chance", "standard deviations above", "at the start"]);
    for (const { module, column, excess } of found.slice(from, to)) {
      const line = make(body, "tr");
      const head = make(line, "th");
      head.scope = "row";
      button(head, modules.names[module], () => this.map.open(module)).setAttribute(
        "aria-label", `open ${modules.names[module]}`);
      const at = module * this.data.columns + column;
      const before = modules.start ? modules.start.taken[at].toFixed(2) : "";
      for (const text of [column, modules.now.taken[at].toFixed(2), modules.expected(module).toFixed(2), excess.toFixed(1), before])
        make(line, "td", "", String(text));
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
