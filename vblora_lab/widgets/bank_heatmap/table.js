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
      if (pin.textContent === held) pin.focus(); // the focus stays on the button that was pressed
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
