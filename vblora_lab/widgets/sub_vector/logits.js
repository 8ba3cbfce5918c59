/** The logits of one sub-vector as bars to drag, with weights, gradients and bank vectors below. */
class LogitBars {
  constructor(parent, state) {
    Object.assign(this, { state, at: 0, dragged: -1 });
    this.title = make(parent, "h4", "vblora-sub-title");
    this.body = make(parent, "div", "vblora-sub-body");
    this.body.addEventListener("pointerdown", (event) => this.grab(event));
    this.body.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"])
      this.body.addEventListener(end, () => { this.dragged = -1; });
    this.body.addEventListener("keydown", (event) => this.key(event));
  }

  draw() {
    const { layer, row, pass } = this.state;
    const held = this.body.contains(document.activeElement);
    const { indices, weights } = pass.mixtures[row];
    const logits = layer.logits(row);
    const h = logits.length;
    this.title.textContent = `Its ${h} logits: how much it likes each vector of the bank`;
    const { svg, width } = canvasIn(this.body, 330);
    this.setScale(width, h, logits);
    this.drawAxis(svg, width, h);
    const threshold = logits[indices.at(-1)];
    line(svg, "vblora-sub-threshold", this.left, this.y(threshold), width - 6, this.y(threshold));
    label(svg, width - 6, this.y(threshold) - 4, `chosen: the ${indices.length} largest`, "end", "vblora-svg-faint");
    logits.forEach((value, i) => this.drawColumn(svg, i, value, weights[indices.indexOf(i)]));
    if (held) this.focus();
  }

  setScale(width, h, logits) {
    this.left = 62;
    this.each = (width - this.left - 6) / h;
    const { top, bottom } = { top: 14, bottom: 204 };
    if (this.dragged < 0) { // a scale that moves under the pointer could not be dragged on
      this.high = Math.max(2.5, ...logits) + 0.3;
      this.low = Math.min(-1.5, ...logits) - 0.3;
    }
    const { high, low } = this;
    this.y = (value) => top + ((high - value) / (high - low)) * (bottom - top);
    this.valueAt = (y) => high - ((y - top) / (bottom - top)) * (high - low);
    this.x = (i) => this.left + i * this.each;
  }

  drawAxis(svg, width, h) {
    const marks = ticks(this.low, this.high, 5);
    for (const mark of marks) {
      line(svg, mark === 0 ? "vblora-svg-zero" : "vblora-svg-grid", this.left, this.y(mark), width - 6, this.y(mark));
      label(svg, this.left - 6, this.y(mark) + 4, number(mark, 0), "end", "vblora-svg-faint");
    }
    const names = ["bank vector", "its weight", "gradient", "its values"];
    [222, 242, 262, 302].forEach((y, i) => label(svg, 0, y, names[i], "start", "vblora-svg-faint"));
    label(svg, 0, 10, "logit", "start", "vblora-svg-faint");
    this.every = Math.ceil((h * 20) / (width - this.left)); // of numbers, where columns are narrow
  }

  drawColumn(svg, i, value, weight) {
    const { state } = this;
    const chosen = weight !== undefined;
    const colour = chosen ? `vblora-mix-${state.colours.get(i) % COLOURS}` : "vblora-sub-unchosen";
    const [x, wide] = [this.x(i) + 0.14 * this.each, 0.72 * this.each];
    const middle = this.x(i) + this.each / 2;
    const before = state.before && state.before[i];
    bar(svg, `vblora-sub-bar ${colour}`, x, this.y(0), this.y(value), wide);
    if (before !== null && Math.abs(before - value) > 1e-9)
      bar(svg, "vblora-sub-ghost", x, this.y(0), this.y(before), wide);
    const bold = chosen ? ` ${colour}-text` : " vblora-svg-faint";
    const roomy = this.each >= 30;
    if (chosen || i % this.every === 0) label(svg, middle, 222, String(i), "middle", bold);
    if (roomy) label(svg, middle, 242, chosen ? weight.toFixed(2) : "–", "middle", bold);
    if (state.phase === "gradient") this.drawGradient(svg, i, value, middle, bold, roomy);
    else if (roomy) label(svg, middle, 262, "·", "middle", "vblora-svg-faint");
    if (this.each >= 18) {
      const box = { x: this.x(i) + 2, y: 272, width: this.each - 4, height: 56, most: state.mostOfBank };
      drawValues(svg, state.layer.vector(i), box, `vblora-sub-value ${colour}`);
    }
    this.drawHandle(svg, i, value, weight);
  }

  drawGradient(svg, i, value, middle, bold, roomy) {
    const gradient = this.state.gradientOf(i);
    const moved = value - this.state.rate * gradient;
    arrow(svg, "vblora-sub-arrow", middle, this.y(value), this.y(moved));
    const text = gradient === 0 ? "0" : signed(gradient);
    if (roomy) label(svg, middle, 262, text, "middle", gradient === 0 ? "vblora-svg-faint" : bold);
  }

  /** What a pointer or a keyboard holds of a column: a slider. */
  drawHandle(svg, i, value, weight) {
    const handle = shape(svg, "rect", "vblora-sub-handle", {
      x: this.x(i), y: 4, width: this.each, height: 208, rx: 3, role: "slider",
      tabindex: i === this.at ? 0 : -1, "data-at": i, "aria-orientation": "vertical",
      "aria-label": `logit of bank vector ${i}`, "aria-valuemin": -LIMIT, "aria-valuemax": LIMIT,
      "aria-valuenow": value.toFixed(2),
      "aria-valuetext": `${number(value)}, ${weight === undefined ? "not chosen" : `weight ${weight.toFixed(2)}`}`,
    });
    handle.addEventListener("focus", () => { this.at = i; });
  }

  focus() { this.body.querySelector(`[data-at="${this.at}"]`)?.focus(); }

  grab(event) {
    const at = event.target.dataset?.at;
    if (at === undefined || event.button) return;
    event.preventDefault();
    this.dragged = this.at = Number(at);
    this.choiceBefore = this.state.choice();
    this.focus();
    this.body.setPointerCapture(event.pointerId);
    this.drag(event);
  }

  drag(event) {
    if (this.dragged < 0) return;
    const y = event.clientY - this.body.getBoundingClientRect().top;
    this.state.setLogit(this.dragged, this.valueAt(y), this.choiceBefore);
  }

  key(event) {
    const h = this.state.layer.shape.num_vectors;
    const size = event.shiftKey ? 0.5 : 0.1;
    const by = { ArrowUp: size, ArrowDown: -size, PageUp: 0.5, PageDown: -0.5 }[event.key];
    const to = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: h - 1 }[event.key];
    if (by === undefined && to === undefined) return;
    event.preventDefault();
    if (by !== undefined) {
      this.state.setLogit(this.at, this.state.layer.logits(this.state.row)[this.at] + by);
    } else {
      this.at = bounded(to, 0, h - 1);
      this.focus();
      for (const handle of this.body.querySelectorAll("[data-at]"))
        handle.setAttribute("tabindex", Number(handle.dataset.at) === this.at ? 0 : -1);
    }
  }
}
