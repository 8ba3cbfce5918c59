// The loss of each step (thin), its mean over the last steps (thick), evaluations (diamonds), and
// the means of other runs (dashed).

const MARGIN = { left: 58, right: 18, top: 10, bottom: 42 };
const CHART_HINT = "Point at the line, or use arrow keys.";
const CHART_LABEL =
  "Line chart of the training loss by step. Left and right arrow keys read one step after another, " +
  "home and end go to the first and last, escape leaves. Table, below, has the numbers.";

// Other runs: four dashes and three colours make twelve that differ.
const DASHES = [[7, 4], [2, 3], [10, 3, 2, 3], [14, 4]];
const COLOURS = 3;
const TABLE_ROWS = 20; // and one for each evaluation

class Chart {
  constructor(model, el) {
    this.model = model;
    Object.assign(this, frame(el, "Loss", CHART_LABEL));
    this.at = -1; // which point is read out
    this.redraw = oncePerFrame(() => this.draw());
    this.table = make(this.root, "details", "vblora-table vblora-numbers");
    this.table.addEventListener("toggle", () => this.fillTable());
    make(this.table, "summary", "", "Table");
    this.decode();
  }

  decode() {
    const [closed, opened] = ["closed", "opened"].map((t) => numbers(Float32Array, this.model.get(t)));
    this.points = new Float32Array(closed.length + opened.length); // step, loss, mean; and again
    this.points.set(closed);
    this.points.set(opened, closed.length);
    this.count = this.points.length / 3;
    this.evaluations = numbers(Float32Array, this.model.get("evaluations"));
    this.at = Math.min(this.at, this.count - 1);
    const others = numbers(Float32Array, this.model.get("other_points"));
    let start = 0;
    this.others = this.model.get("other_names").map((name, i) => {
      const end = start + 2 * this.model.get("other_lengths")[i];
      const points = others.subarray(start, end); // step, mean; and again
      start = end;
      return { name, points, dash: DASHES[i % DASHES.length], colour: 1 + (i % COLOURS) };
    });
    this.writeLegend();
    this.fillTable();
  }

  writeLegend() {
    const over = this.model.get("smooth_over");
    const drawn = JSON.stringify([over, this.model.get("other_names")]);
    if (drawn === this.drawnLegend) return; // a legend is read: it isn't made anew at every step
    this.drawnLegend = drawn;
    this.legend.replaceChildren();
    for (const [mark, text] of [
      ["thin", "each batch"],
      ["thick", `mean of the last ${over}`],
      ["diamond", "validation"],
    ]) {
      const key = make(this.legend, "span", "vblora-key");
      make(key, "span", `vblora-mark-${mark}`);
      make(key, "span", "", text);
    }
    for (const { name, dash, colour } of this.others) {
      const key = make(this.legend, "span", "vblora-key");
      const [svg, line] = ["svg", "line"].map((tag) =>
        document.createElementNS("http://www.w3.org/2000/svg", tag));
      svg.setAttribute("class", "vblora-mark-other");
      for (const [attribute, value] of Object.entries({
        x2: 28, y1: 4, y2: 4, "stroke-dasharray": dash.join(" "),
        style: `stroke: var(--vblora-other-${colour})`,
      })) line.setAttribute(attribute, value);
      svg.append(line);
      key.append(svg);
      make(key, "span", "", name);
    }
  }

  otherAt({ points }, step) {
    for (let i = 0; i < points.length; i += 2) if (points[i] === step) return points[i + 1];
    return null;
  }

  point(i) {
    const [step, loss, mean] = this.points.subarray(3 * i, 3 * i + 3);
    return { step, loss, mean };
  }

  evaluationAt(step) {
    for (let i = 0; i < this.evaluations.length; i += 2)
      if (this.evaluations[i] === step) return this.evaluations[i + 1];
    return null;
  }

  // ---- the picture ----------------------------------------------------------------------------

  layout() {
    const losses = [];
    for (let i = 0; i < this.count; i++) losses.push(this.points[3 * i + 1]);
    for (let i = 1; i < this.evaluations.length; i += 2) losses.push(this.evaluations[i]);
    for (const { points } of this.others)
      for (let i = 1; i < points.length; i += 2) losses.push(points[i]);
    const finite = losses.filter(Number.isFinite);
    let [low, high] = finite.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    if (!finite.length) [low, high] = [0, 1];
    const pad = Math.max((high - low) * 0.06, 0.02);
    this.low = low >= 0 ? Math.max(0, low - pad) : low - pad;
    this.high = high + pad;
    const last = this.count ? this.point(this.count - 1).step : 0;
    const othersEnd = this.others.map(({ points }) => points.at(-2) ?? 0);
    this.end = Math.max(this.model.get("total_steps"), last, 1, ...othersEnd);
    this.width = this.stage.clientWidth - MARGIN.left - MARGIN.right;
    this.height = this.model.get("height") - MARGIN.top - MARGIN.bottom;
  }

  x(step) { return MARGIN.left + (step / this.end) * this.width; }
  y(loss) { return MARGIN.top + ((this.high - loss) / (this.high - this.low)) * this.height; }

  draw() {
    if (this.stage.clientWidth === 0) return;
    const colours = (this.colours = theme(this.root));
    const context = pen(this.canvas, this.stage.clientWidth, this.model.get("height"));
    context.font = `12px ${colours.font}`;
    context.textBaseline = "middle";
    this.layout();
    this.drawAxes(context);
    this.drawOthers(context);
    this.drawLine(context, 1, 1.2, 0.4);
    this.drawLine(context, 2, 2.4, 1);
    this.drawEvaluations(context);
    this.drawCursor(context);
    this.tell();
  }

  drawAxes(context) {
    const { faint, rule, paper } = this.colours;
    const empty = !this.count && !this.evaluations.length && !this.others.length;
    const [right, bottom] = [MARGIN.left + this.width, MARGIN.top + this.height];
    context.fillStyle = paper;
    context.fillRect(MARGIN.left, MARGIN.top, this.width, this.height);
    context.textAlign = "right";
    const losses = ticks(this.low, this.high, Math.max(2, this.height / 32));
    for (const loss of losses) {
      const y = Math.round(this.y(loss));
      context.fillStyle = rule;
      context.fillRect(MARGIN.left, y, this.width, 1);
      if (empty) continue; // no scale yet
      context.fillStyle = faint;
      context.fillText(tickText(loss, losses[1] - losses[0] || 1), MARGIN.left - 8, y);
    }
    context.textAlign = "center";
    const known = this.model.get("total_steps") > 0 || !empty;
    const steps = known ? ticks(0, this.end, Math.max(2, this.width / 80)).filter(Number.isInteger) : [];
    for (const step of steps) {
      context.fillStyle = rule;
      context.fillRect(Math.round(this.x(step)), bottom, 1, 4);
      context.fillStyle = faint;
      context.fillText(String(step), this.x(step), bottom + 13);
    }
    context.fillStyle = rule;
    context.fillRect(MARGIN.left, bottom, right - MARGIN.left, 1);
    context.fillStyle = faint;
    context.fillText("training step", MARGIN.left + this.width / 2, bottom + 32);
    context.save();
    context.translate(9, MARGIN.top + this.height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("nats per token", 0, 0);
    context.restore();
    if (!empty) return;
    context.fillText("The loss appears here, step by step.", MARGIN.left + this.width / 2,
      MARGIN.top + this.height / 2 - 12);
  }

  /**
   * Begin a path through points of `size` numbers: a step, and the height at `part`. Of all points in
   * a pixel's column only the first, lowest, highest and last: tens of thousands take seconds to draw.
   */
  trace(context, points, size, part) {
    context.beginPath();
    const height = (at) => points[at + part];
    for (let at = 0; at < points.length;) {
      const [first, column] = [at, Math.floor(this.x(points[at]))];
      let [low, high] = [at, at];
      for (; at < points.length && Math.floor(this.x(points[at])) === column; at += size) {
        if (height(at) < height(low)) low = at;
        if (height(at) > height(high)) high = at;
      }
      for (const kept of new Set([first, Math.min(low, high), Math.max(low, high), at - size]))
        context.lineTo(this.x(points[kept]), this.y(height(kept)));
    }
  }

  drawLine(context, part, width, alpha) {
    this.trace(context, this.points, 3, part);
    context.strokeStyle = this.colours.line;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.globalAlpha = alpha;
    context.stroke();
    context.globalAlpha = 1;
  }

  drawOthers(context) {
    const style = getComputedStyle(this.root);
    for (const { points, dash, colour } of this.others) {
      this.trace(context, points, 2, 1);
      context.strokeStyle = style.getPropertyValue(`--vblora-other-${colour}`);
      context.lineWidth = 2;
      context.setLineDash(dash);
      context.stroke();
      context.setLineDash([]);
    }
  }

  drawEvaluations(context) {
    for (let i = 0; i < this.evaluations.length; i += 2) {
      const [x, y] = [this.x(this.evaluations[i]), this.y(this.evaluations[i + 1])];
      context.beginPath();
      for (const [dx, dy] of [[0, -6], [6, 0], [0, 6], [-6, 0]]) context.lineTo(x + dx, y + dy);
      context.closePath();
      context.fillStyle = this.colours.accent;
      context.fill();
      context.strokeStyle = this.colours.paper;
      context.lineWidth = 1.5;
      context.stroke();
    }
  }

  drawCursor(context) {
    if (this.at < 0) return;
    const { step, mean } = this.point(this.at);
    context.fillStyle = this.colours.ink;
    context.globalAlpha = 0.35;
    context.fillRect(this.x(step) - 0.5, MARGIN.top, 1, this.height);
    context.globalAlpha = 1;
    context.beginPath();
    context.arc(this.x(step), this.y(mean), 4, 0, 2 * Math.PI);
    context.fill();
  }

  // ---- what it says ----------------------------------------------------------------------------

  tell() {
    this.tip.hidden = true;
    if (this.at < 0) return say(this.readout, this.count ? CHART_HINT : "", false);
    const { step, loss, mean } = this.point(this.at);
    const evaluation = this.evaluationAt(step);
    const lines = [`loss ${loss.toFixed(3)}`, `mean of the last ${this.model.get("smooth_over")}: ${mean.toFixed(3)}`];
    if (evaluation !== null) lines.push(`validation ${evaluation.toFixed(3)}`);
    for (const other of this.others) {
      const theirs = this.otherAt(other, step);
      if (theirs !== null) lines.push(`${other.name} ${theirs.toFixed(3)}`);
    }
    say(this.readout, `step ${step} · ${lines.join(" · ")}`, this.asked);
    this.asked = false;
    this.tip.replaceChildren();
    make(make(this.tip, "div"), "b", "", `step ${step}`);
    for (const line of lines) make(this.tip, "div", "", line);
    placeTip(this.tip, this.stage, this.x(step), this.y(mean));
  }

  // ---- the same as a table --------------------------------------------------------------------

  /** Which points stand in it: evenly spaced, first and last among them. */
  tableRows() {
    const rows = new Map(); // step -> place of its point, -1 for an evaluation without one
    for (let i = 0; i < this.evaluations.length; i += 2) rows.set(this.evaluations[i], -1);
    const every = Math.max(1, (this.count - 1) / (TABLE_ROWS - 1));
    for (let at = 0; at < this.count; at++) {
      const step = this.points[3 * at];
      const chosen = Math.round(Math.round(at / every) * every) === at;
      if (chosen || rows.has(step)) rows.set(step, at);
    }
    return [...rows].sort(([a], [b]) => a - b);
  }

  fillTable() {
    this.table.hidden = !this.count && !this.evaluations.length;
    this.table.querySelector("table")?.remove();
    if (!this.table.open || this.table.hidden) return;
    const table = make(this.table, "table");
    make(table, "caption", "", `Losses in nats per token, ${this.count} steps`);
    const heads = make(make(table, "thead"), "tr");
    const names = this.others.map(({ name }) => name);
    const mean = `mean of the last ${this.model.get("smooth_over")}`;
    for (const text of ["step", "batch", mean, "validation", ...names]) make(heads, "th", "", text).scope = "col";
    const body = make(table, "tbody");
    const number = (value) => (value === null || value === undefined ? "" : value.toFixed(3));
    for (const [step, at] of this.tableRows()) {
      const line = make(body, "tr");
      make(line, "th", "", String(step)).scope = "row";
      const { loss, mean } = at < 0 ? {} : this.point(at);
      const theirs = this.others.map((other) => this.otherAt(other, step));
      for (const value of [loss, mean, this.evaluationAt(step), ...theirs]) make(line, "td", "", number(value));
    }
  }

  // ---- pointer and keyboard --------------------------------------------------------------

  /** The point whose step is nearest to the pointer. */
  hover(event) {
    if (!this.count || !this.width) return;
    const left = this.canvas.getBoundingClientRect().left;
    const step = ((event.clientX - left - MARGIN.left) / this.width) * this.end;
    let best = 0;
    for (let i = 1; i < this.count; i++)
      if (Math.abs(this.points[3 * i] - step) < Math.abs(this.points[3 * best] - step)) best = i;
    this.at = best;
    this.redraw();
  }

  key(event) {
    const last = this.count - 1;
    const to = pointByKey(event.key, this.at, last);
    if (to === undefined || last < 0 || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.at = to;
    this.asked = true;
    this.redraw();
  }

  leave() {
    this.at = -1;
    this.redraw();
  }
}

function render({ model, el }) {
  const chart = new Chart(model, el);
  const changed = () => { chart.decode(); chart.redraw(); };
  const watched = ["closed", "opened", "evaluations", "total_steps", "height", "smooth_over",
    "other_names", "other_lengths", "other_points"];
  return listen(chart, model, watched, changed);
}

export default { render };
