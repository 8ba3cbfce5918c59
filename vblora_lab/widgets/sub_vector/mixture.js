/** The chosen vectors times their weights, and their sum: the sub-vector. */
class MixtureView {
  constructor(parent, state) {
    this.state = state;
    this.title = make(parent, "h4", "vblora-sub-title");
    this.shares = make(parent, "div", "vblora-sub-shares");
    this.shares.setAttribute("aria-hidden", "true"); // the title and the sliders say it
    this.body = make(parent, "div", "vblora-sub-body");
  }

  draw() {
    const { state } = this;
    const { layer, row, pass } = state;
    const { indices, weights, u } = pass.mixtures[row];
    this.title.textContent =
      `The sub-vector = ${indices.map((i, n) => `${weights[n].toFixed(2)} × vector ${i}`).join(" + ")}`;
    this.shares.replaceChildren();
    indices.forEach((i, n) => {
      const share = make(this.shares, "span", `vblora-mix-${state.colours.get(i) % COLOURS}-fill`,
        weights[n] > 0.12 ? `${Math.round(100 * weights[n])}%` : "");
      share.style.flexGrow = weights[n];
    });
    const { svg, width } = canvasIn(this.body, 172);
    const [left, top, bottom] = [38, 10, 148];
    const each = (width - left - 6) / u.length;
    const most = 1.05 * state.mostOfBank;
    const y = (value) => (top + bottom) / 2 - (value / most) * ((bottom - top) / 2);
    for (const mark of ticks(-most, most, 4)) {
      line(svg, mark === 0 ? "vblora-svg-zero" : "vblora-svg-grid", left, y(mark), width - 6, y(mark));
      label(svg, left - 6, y(mark) + 4, number(mark, 1), "end", "vblora-svg-faint");
    }
    u.forEach((sum, j) => {
      const x = left + j * each;
      const ends = { up: 0, down: 0 }; // parts of one sign stand on each other
      indices.forEach((i, n) => {
        const part = weights[n] * layer.vector(i)[j];
        const side = part > 0 ? "up" : "down";
        bar(svg, `vblora-mix-${state.colours.get(i) % COLOURS}`, x + 0.16 * each, y(ends[side]), y(ends[side] + part), 0.68 * each);
        ends[side] += part;
      });
      line(svg, "vblora-sub-sum", x + 0.06 * each, y(sum), x + 0.94 * each, y(sum));
      if (state.phase === "gradient") this.drawPull(svg, x + each / 2, y, sum, j);
    });
    this.drawLegend(svg, width);
  }

  /** Which way the loss wants a value of the sub-vector to go; the longest arrow has 26 pixels. */
  drawPull(svg, x, y, sum, j) {
    const pull = this.state.gradient.ofU[this.state.row];
    arrow(svg, "vblora-sub-pull", x, y(sum), y(sum) + (26 * pull[j]) / largest(pull), 4);
  }

  drawLegend(svg, width) {
    label(svg, 38, 166, "place in the sub-vector", "start", "vblora-svg-faint");
    line(svg, "vblora-sub-sum", width - 76, 162, width - 58, 162);
    label(svg, width - 6, 166, "the sum", "end", "vblora-svg-faint");
  }
}
