/** What the layer makes of its input: without the adapter, with it, and what is wanted. */
class OutputView {
  constructor(parent, state) {
    this.state = state;
    this.title = make(parent, "h4", "vblora-sub-title");
    this.body = make(parent, "div", "vblora-sub-body");
  }

  draw() {
    const { layer, row, pass } = this.state;
    const { matrix, tile } = layer.place(row);
    const b = layer.shape.vector_length;
    this.title.textContent =
      `The layer's output: loss ${lossText(pass.loss)}, without the adapter ${lossText(this.state.lossOfBase)}`;
    const { svg, width } = canvasIn(this.body, 190);
    const [left, top, bottom] = [38, 10, 152];
    const count = pass.output.length;
    const each = (width - left - 6) / count;
    const most = 1.1 * Math.max(this.state.mostOfOutput, largest(pass.output));
    const y = (value) => (top + bottom) / 2 - (value / most) * ((bottom - top) / 2);
    if (matrix === "B")
      shape(svg, "rect", "vblora-sub-band", { x: left + tile * b * each, y: top, width: b * each, height: bottom - top });
    for (const mark of ticks(-most, most, 4)) {
      line(svg, mark === 0 ? "vblora-svg-zero" : "vblora-svg-grid", left, y(mark), width - 6, y(mark));
      label(svg, left - 6, y(mark) + 4, number(mark, most < 2 ? 1 : 0), "end", "vblora-svg-faint");
    }
    for (let i = 0; i < count; i++) {
      const x = left + (i + 0.5) * each;
      bar(svg, "vblora-sub-added", x - 0.22 * each, y(layer.base[i]), y(pass.output[i]), 0.44 * each);
      line(svg, "vblora-sub-base", x - 0.36 * each, y(layer.base[i]), x + 0.36 * each, y(layer.base[i]));
      shape(svg, "circle", "vblora-sub-wanted", { cx: x, cy: y(layer.wanted[i]), r: Math.min(3.5, 0.3 * each) });
    }
    label(svg, left, 168, `output, 0 to ${count - 1}`, "start", "vblora-svg-faint");
    this.drawLegend(svg, left);
  }

  drawLegend(svg, left) {
    line(svg, "vblora-sub-base", left, 182, left + 14, 182);
    label(svg, left + 19, 186, "W x, frozen", "start", "vblora-svg-faint");
    bar(svg, "vblora-sub-added", left + 96, 177, 187, 8);
    label(svg, left + 109, 186, "+ B A x", "start", "vblora-svg-faint");
    shape(svg, "circle", "vblora-sub-wanted", { cx: left + 170, cy: 182, r: 3.5 });
    label(svg, left + 179, 186, "wanted", "start", "vblora-svg-faint");
  }
}

/** The logits over the steps that were made: a line is strong while its vector is chosen. */
class HistoryView {
  constructor(parent, state) {
    this.state = state;
    this.title = make(parent, "h4", "vblora-sub-title");
    this.body = make(parent, "div", "vblora-sub-body");
  }

  draw() {
    const { state } = this;
    const { history, row } = state;
    const { num_vectors: h, topk } = state.layer.shape;
    const steps = history.length - 1;
    this.title.textContent = steps
      ? `Its logits over ${steps} ${steps === 1 ? "step" : "steps"}: flat while not chosen`
      : "Its logits over the steps: press Update or Run";
    const { svg, width } = canvasIn(this.body, 190);
    const path = history.map((rows) => rows.subarray(row * h, (row + 1) * h));
    const chosen = path.map((logits) => new Set(choose(logits, topk).indices));
    const [left, right, top, bottom] = [38, width - 26, 10, 166];
    const x = (step) => left + (step / Math.max(steps, 12)) * (right - left);
    const all = path.flatMap((logits) => [...logits]);
    const [low, high] = [Math.min(...all) - 0.1, Math.max(...all) + 0.1];
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    for (const mark of ticks(low, high, 4)) {
      line(svg, "vblora-svg-grid", left, y(mark), right, y(mark));
      label(svg, left - 6, y(mark) + 4, number(mark, high - low < 3 ? 1 : 0), "end", "vblora-svg-faint");
    }
    for (const mark of ticks(0, Math.max(steps, 12), 6)) label(svg, x(mark), 180, String(mark), "middle", "vblora-svg-faint");
    label(svg, left - 6, 180, "step", "end", "vblora-svg-faint");
    for (let i = 0; i < h; i++) this.drawLine(svg, i, path, chosen, x, y);
    this.drawNames(svg, path.at(-1), chosen, x(steps) + 6, y);
  }

  /** The number of each vector that was chosen at some time, beside the end of its line. */
  drawNames(svg, now, chosen, x, y) {
    const named = [...now.keys()].filter((i) => chosen.some((set) => set.has(i)));
    let last = -Infinity;
    for (const i of named.sort((a, b) => now[b] - now[a])) {
      last = Math.max(y(now[i]) + 4, last + 12); // none stands on another
      const colour = this.state.colours.get(i);
      label(svg, x, last, String(i), "start", colour === undefined ? "vblora-svg-faint" : `vblora-mix-${colour % COLOURS}-text`);
    }
  }

  drawLine(svg, i, path, chosen, x, y) {
    const colour = this.state.colours.get(i);
    const strong = colour === undefined ? "vblora-sub-was" : `vblora-mix-${colour % COLOURS}-line`;
    for (let step = 1; step < path.length; step++)
      line(svg, chosen[step - 1].has(i) ? strong : "vblora-sub-flat",
        x(step - 1), y(path[step - 1][i]), x(step), y(path[step][i]));
    const end = path.length - 1;
    if (end === 0) shape(svg, "circle", chosen[0].has(i) ? `vblora-mix-${colour % COLOURS}` : "vblora-sub-flat-dot",
      { cx: x(0), cy: y(path[0][i]), r: 3 });
  }
}
