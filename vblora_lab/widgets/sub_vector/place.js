/** A and B cut into sub-vectors, with this one filled: a click shows another. */
class PlaceView {
  constructor(parent, state) {
    this.state = state;
    this.title = make(parent, "h4", "vblora-sub-title");
    this.body = make(parent, "div", "vblora-sub-body");
    this.body.addEventListener("click", (event) => {
      const row = event.target.dataset?.row;
      if (row !== undefined) state.show(Number(row));
    });
  }

  draw() {
    const { layer, row, pass } = this.state;
    const { r, in_tiles, out_tiles, vector_length: b } = layer.shape;
    const { matrix, rank, tile } = layer.place(row);
    const [from, to] = [tile * b, tile * b + b - 1];
    this.title.textContent = matrix === "A"
      ? `Its place: row ${rank} of A, inputs ${from} to ${to}`
      : `Its place: column ${rank} of B, outputs ${from} to ${to}`;
    const { svg, width } = canvasIn(this.body, 156);
    const thick = Math.min(18, 60 / r);
    const tall = 156 - 30 - r * thick - 6;
    const left = 62 + r * thick + 8;
    const wide = Math.min(width - left - 8, 3.2 * tall);
    const top = 22 + r * thick + 8;
    shape(svg, "rect", "vblora-sub-product", { x: left, y: top, width: wide, height: tall });
    label(svg, left + wide / 2, top + tall / 2 + 4, "B A, added to W", "middle", "vblora-svg-faint");
    label(svg, left + wide / 2, 12, `A: ${r} × ${in_tiles * b}`);
    label(svg, 0, top + 12, `B: ${out_tiles * b} × ${r}`, "start");
    const chosen = new Set(pass.mixtures[row].indices);
    for (let other = 0; other < layer.count; other++) {
      const at = layer.place(other);
      const box = at.matrix === "A"
        ? { x: left + (at.tile * wide) / in_tiles, y: 20 + at.rank * thick, width: wide / in_tiles, height: thick }
        : { x: 62 + at.rank * thick, y: top + (at.tile * tall) / out_tiles, width: thick, height: tall / out_tiles };
      this.drawTile(svg, other, box, chosen);
    }
    if (width - left - wide > 190) this.drawLegend(svg, left + wide + 22, top);
  }

  /** How many others take from the same bank vectors. */
  drawLegend(svg, x, top) {
    const { layer, pass, row, colours } = this.state;
    label(svg, x, top + 4, "The bank serves all of them:", "start", "vblora-svg-faint");
    pass.mixtures[row].indices.slice(0, 4).forEach((i, n) => {
      const others = pass.mixtures.filter((m, other) => other !== row && m.indices.includes(i)).length;
      const y = top + 24 + 18 * n;
      shape(svg, "circle", `vblora-mix-${colours.get(i) % COLOURS}`, { cx: x + 5, cy: y - 4, r: 3.6 });
      label(svg, x + 15, y, `vector ${i}: in ${others} of ${layer.count - 1} others`, "start");
    });
  }

  drawTile(svg, other, box, chosen) {
    const { state } = this;
    const tile = shape(svg, "rect", `vblora-sub-tile${other === state.row ? " vblora-sub-here" : ""}`,
      { ...box, "data-row": other });
    shape(tile, "title", "", {}, state.nameOf(other));
    const shared = state.pass.mixtures[other].indices.filter((i) => chosen.has(i));
    shared.forEach((i, n) => shape(svg, "circle", `vblora-mix-${state.colours.get(i) % COLOURS} vblora-sub-dot`, {
      cx: box.x + box.width / 2 + (box.width > box.height ? 10 * (n - (shared.length - 1) / 2) : 0),
      cy: box.y + box.height / 2 + (box.width > box.height ? 0 : 10 * (n - (shared.length - 1) / 2)),
      r: 3.2,
    }));
  }
}
