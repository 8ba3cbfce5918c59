/** Zoomed out: every sub-vector of the layer is a row, as in the map of a model; one is this one. */
class RowsView {
  constructor(parent, state) {
    Object.assign(this, { state });
    this.title = make(parent, "h4", "vblora-sub-title");
    this.body = make(parent, "div", "vblora-sub-body");
    this.body.addEventListener("click", (event) => {
      const row = event.target.dataset?.row;
      if (row !== undefined) this.zoomIn(Number(row));
    });
    this.body.addEventListener("keydown", (event) => this.key(event));
  }

  draw() {
    const { state } = this;
    const { layer, pass } = state;
    const { num_vectors: h, topk } = layer.shape;
    const held = this.body.contains(document.activeElement);
    this.title.textContent =
      `All ${layer.count} sub-vectors of the layer, a row each: ${topk} of ${h} bank vectors are chosen in every row`;
    const { svg, width } = canvasIn(this.body, 330);
    const left = 62;
    this.tall = Math.min(20, 290 / layer.count);
    const each = (width - left - 6) / h;
    const dark = theme(this.body.closest(".vblora-chart")).dark;
    for (let row = 0; row < layer.count; row++) {
      const y = 22 + row * this.tall + (row >= layer.inA ? 6 : 0);
      const { indices, weights } = pass.mixtures[row];
      if (row === state.row)
        shape(svg, "rect", "vblora-sub-row-here", { x: left - 2, y: y - 1, width: h * each + 4, height: this.tall + 1, rx: 3 });
      indices.forEach((i, n) => shape(svg, "rect", row === state.row ? `vblora-mix-${state.colours.get(i) % COLOURS}` : "vblora-sub-cell", {
        x: left + i * each + 1, y: y + 1, width: each - 2, height: this.tall - 3,
        "fill-opacity": row === state.row ? 1 : (dark ? 0.25 : 0.18) + 0.8 * weights[n],
      }));
      this.drawRowLabel(svg, row, y);
      const handle = shape(svg, "rect", "vblora-sub-handle vblora-sub-row", {
        x: 0, y, width: width - 6, height: this.tall, role: "button", "data-row": row,
        tabindex: row === state.row ? 0 : -1, "aria-label": `zoom in on ${state.nameOf(row)}: ${this.words(row)}`,
      });
      shape(handle, "title", "", {}, `${state.nameOf(row)}: ${this.words(row)}`);
    }
    const every = Math.ceil((h * 20) / (width - left));
    for (let i = 0; i < h; i += every) label(svg, left + (i + 0.5) * each, 14, String(i), "middle", "vblora-svg-faint");
    label(svg, 0, 14, "bank vector", "start", "vblora-svg-faint");
    if (held) this.body.querySelector(`[data-row="${state.row}"]`).focus();
  }

  zoomIn(row) {
    this.state.show(row);
    this.state.zoom(false);
  }

  words(row) {
    const { indices, weights } = this.state.pass.mixtures[row];
    return indices.map((i, n) => `${weights[n].toFixed(2)} of vector ${i}`).join(" + ");
  }

  drawRowLabel(svg, row, y) {
    if (this.tall < 11 && row !== this.state.row) return;
    const { matrix, rank, tile } = this.state.layer.place(row);
    const classes = row === this.state.row ? "vblora-sub-strong" : "vblora-svg-faint";
    label(svg, 0, y + this.tall / 2 + 4, `${matrix} · ${rank} · ${tile}`, "start", classes);
  }

  key(event) {
    const { state } = this;
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by !== undefined) state.show(bounded(state.row + by, 0, state.layer.count - 1));
    else if (event.key === "Enter" || event.key === " ") this.zoomIn(state.row);
    else return;
    event.preventDefault();
  }
}
