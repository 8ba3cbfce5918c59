// The trials of a search: a dot each, bytes against loss. A line joins those that no other beats.

const MARGIN = { left: 62, right: 18, top: 14, bottom: 42 };
const NEAR = 26; // pixels: how far from a dot the pointer may be
const ABOVE = 1.6; // losses higher than this many ranges of the completed ones stand at the top edge
const FRONT_HINT =
  "Point at a dot, or use the left and right arrow keys, to read a trial; click or press Enter to choose it.";
const FRONT_LABEL =
  "Chart of trials, file size against validation loss. Left and right arrow keys go from one to the " +
  "next by size, home and end to the smallest and largest, enter chooses, escape leaves. Table, " +
  "below, has the numbers.";
const PLACES = { best: "the best", front: "best for its size" };
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** Bytes in the largest binary unit of which there is one. */
function sizeText(bytes) {
  const unit = Math.min(UNITS.length - 1, Math.max(0, Math.floor(Math.log2(bytes) / 10)));
  const amount = bytes / 1024 ** unit;
  return `${Number.isInteger(amount) || !unit ? amount.toFixed(0) : amount.toFixed(1)} ${UNITS[unit]}`;
}

/** Powers of two from low to high; round numbers where there are too few of them. */
function sizeTicks(low, high) {
  const powers = [];
  for (let p = Math.ceil(Math.log2(low)); 2 ** p <= high; p++) powers.push(2 ** p);
  if (powers.length > 9) return powers.filter((_, i) => i % Math.ceil(powers.length / 9) === 0);
  return powers.length > 2 ? powers : ticks(low / 1024, high / 1024, 5).map((kib) => kib * 1024);
}

class Front {
  constructor(model, el) {
    this.model = model;
    Object.assign(this, frame(el, "Loss by size", FRONT_LABEL));
    this.at = -1; // which trial is read out
    this.redraw = oncePerFrame(() => this.draw());
    this.table = make(this.root, "details", "vblora-table vblora-numbers");
    this.table.addEventListener("toggle", () => this.fillTable());
    make(this.table, "summary", "", "Table");
    this.read();
  }

  read() {
    const name = this.trials?.[this.at]?.name;
    const drawn = (trial) => trial.last_loss !== null;
    this.trials = this.model.get("trials").filter(drawn).sort((a, b) => a.bytes - b.bytes);
    this.at = this.trials.findIndex((trial) => trial.name === name);
    this.writeLegend();
    this.fillTable();
  }

  writeLegend() {
    const methods = new Map(this.trials.map((trial) => [trial.method, trial.label]));
    const byName = [...methods].sort().reverse(); // this package's own first
    const keys = byName.map(([method, label]) => [`dot-${method}`, label]);
    if (this.trials.some((trial) => trial.state === "cut short")) keys.push(["dot-cut", "cut short"]);
    if (this.trials.length) keys.push(["front", "best for its size"], ["budget", "budget"]);
    const drawn = JSON.stringify(keys);
    if (drawn === this.drawnLegend) return; // a legend is read: it isn't made anew at every trial
    this.drawnLegend = drawn;
    this.legend.replaceChildren();
    for (const [mark, text] of keys) {
      const key = make(this.legend, "span", "vblora-key");
      make(key, "span", `vblora-mark-${mark}`);
      make(key, "span", "", text);
    }
  }

  // ---- the picture ----------------------------------------------------------------------------

  layout() {
    const sizes = [this.model.get("budget"), ...this.trials.map((trial) => trial.bytes)].filter((n) => n > 0);
    const [small, large] = sizes.length ? [Math.min(...sizes), Math.max(...sizes)] : [1024, 1024];
    const room = Math.max((large / small) ** 0.08, 1.08);
    this.small = (this.trials.length ? small : small / 16) / room;
    this.large = large * room;
    const done = this.trials.filter((trial) => trial.loss !== null).map((trial) => trial.loss);
    const losses = done.length ? done : this.trials.map((trial) => trial.last_loss);
    const [low, best] = losses.length ? [Math.min(...losses), Math.max(...losses)] : [0, 1];
    const range = Math.max(best - low, 0.02);
    const seen = this.trials.map((trial) => trial.last_loss).filter((loss) => loss <= low + ABOVE * range);
    this.low = low - 0.08 * range;
    this.high = Math.max(best, ...seen) + 0.12 * range;
    this.width = this.stage.clientWidth - MARGIN.left - MARGIN.right;
    this.height = this.model.get("height") - MARGIN.top - MARGIN.bottom;
  }

  x(bytes) {
    return MARGIN.left + (Math.log(bytes / this.small) / Math.log(this.large / this.small)) * this.width;
  }
  y(loss) {
    const y = MARGIN.top + ((this.high - loss) / (this.high - this.low)) * this.height;
    return Math.max(MARGIN.top + 12, y);
  }

  draw() {
    if (this.stage.clientWidth === 0) return;
    const colours = (this.colours = theme(this.root));
    const context = pen(this.canvas, this.stage.clientWidth, this.model.get("height"));
    context.font = `12px ${colours.font}`;
    context.textBaseline = "middle";
    this.layout();
    this.drawAxes(context);
    this.drawBudget(context);
    this.drawFront(context);
    for (const trial of this.trials) this.drawTrial(context, trial);
    this.drawCursor(context);
    this.tell();
  }

  drawAxes(context) {
    const { faint, rule, paper } = this.colours;
    const bottom = MARGIN.top + this.height;
    context.fillStyle = paper;
    context.fillRect(MARGIN.left, MARGIN.top, this.width, this.height);
    context.textAlign = "right";
    const losses = ticks(this.low, this.high, Math.max(2, this.height / 38));
    for (const loss of losses) {
      const y = Math.round(MARGIN.top + ((this.high - loss) / (this.high - this.low)) * this.height);
      context.fillStyle = rule;
      context.fillRect(MARGIN.left, y, this.width, 1);
      if (!this.trials.length) continue; // no scale yet
      context.fillStyle = faint;
      context.fillText(tickText(loss, losses[1] - losses[0] || 1), MARGIN.left - 8, y);
    }
    context.textAlign = "center";
    for (const bytes of sizeTicks(this.small, this.large)) {
      context.fillStyle = rule;
      context.fillRect(Math.round(this.x(bytes)), bottom, 1, 4);
      context.fillStyle = faint;
      context.fillText(sizeText(bytes), this.x(bytes), bottom + 13);
    }
    context.fillStyle = rule;
    context.fillRect(MARGIN.left, bottom, this.width, 1);
    context.fillStyle = faint;
    context.fillText("size of the adapter's file (log scale)", MARGIN.left + this.width / 2, bottom + 32);
    context.save();
    context.translate(9, MARGIN.top + this.height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("validation loss, nats per token", 0, 0);
    context.restore();
    if (this.trials.length) return;
    context.fillText("Each trial that ends appears here as a dot.", MARGIN.left + this.width / 2,
      MARGIN.top + this.height / 2 - 12);
  }

  drawBudget(context) {
    const budget = this.model.get("budget");
    if (!(budget > 0)) return;
    context.strokeStyle = this.colours.faint;
    context.lineWidth = 1.4;
    context.setLineDash([6, 4]);
    context.beginPath();
    context.moveTo(this.x(budget), MARGIN.top);
    context.lineTo(this.x(budget), MARGIN.top + this.height);
    context.stroke();
    context.setLineDash([]);
  }

  drawFront(context) {
    context.strokeStyle = this.colours.ink;
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    context.beginPath();
    for (const trial of this.trials)
      if (trial.place) context.lineTo(this.x(trial.bytes), this.y(trial.loss));
    context.stroke();
  }

  /** A filled dot for a trial that ran to its end, a hollow one for one that was cut short. */
  drawTrial(context, trial) {
    const [x, y] = [this.x(trial.bytes), this.y(trial.last_loss)];
    const colour = trial.method === "vblora" ? this.colours.line : this.colours.accent;
    this.outline(context, trial.method, x, y, trial.place === "best" ? 7 : 5);
    context.fillStyle = trial.loss === null ? this.colours.paper : colour;
    context.fill();
    context.strokeStyle = trial.loss === null ? colour : this.colours.paper;
    context.lineWidth = 1.5;
    context.stroke();
    if (trial.last_loss > this.high) { // an arrow: it is further up
      context.beginPath();
      for (const [dx, dy] of [[-4, -7], [0, -12], [4, -7]]) context.lineTo(x + dx, y + dy);
      context.strokeStyle = colour;
      context.stroke();
    }
    if (trial.name !== this.model.get("chosen")) return;
    this.outline(context, trial.method, x, y, 10);
    context.strokeStyle = this.colours.ink;
    context.lineWidth = 2;
    context.stroke();
  }

  outline(context, method, x, y, radius) {
    context.beginPath();
    if (method === "vblora") context.arc(x, y, radius, 0, 2 * Math.PI);
    else context.rect(x - 0.9 * radius, y - 0.9 * radius, 1.8 * radius, 1.8 * radius);
  }

  drawCursor(context) {
    const trial = this.trials[this.at];
    if (!trial) return;
    const [x, y] = [this.x(trial.bytes), this.y(trial.last_loss)];
    context.beginPath();
    context.arc(x, y, 12, 0, 2 * Math.PI);
    context.strokeStyle = this.colours.ink;
    context.globalAlpha = 0.5;
    context.lineWidth = 1;
    context.stroke();
    context.globalAlpha = 1;
  }

  // ---- what it says ----------------------------------------------------------------------------

  tell() {
    this.tip.hidden = true;
    this.canvas.style.cursor = this.at < 0 ? "default" : "pointer";
    const trial = this.trials[this.at];
    if (!trial) return say(this.readout, this.trials.length ? FRONT_HINT : "", false);
    const lines = [this.loss(trial), trial.size, ...trial.facts];
    say(this.readout, `${trial.name} · ${lines.join(" · ")}`, this.asked);
    this.asked = false;
    this.tip.replaceChildren();
    make(make(this.tip, "div"), "b", "", trial.name);
    for (const line of lines) make(this.tip, "div", "", line);
    placeTip(this.tip, this.stage, this.x(trial.bytes), this.y(trial.last_loss));
  }

  loss(trial) {
    const text = `validation loss ${trial.last_loss.toFixed(4)}`;
    if (trial.loss === null) return `${text}, ${trial.state}`;
    return trial.place ? `${text}, ${PLACES[trial.place]}` : text;
  }

  fillTable() {
    this.table.hidden = !this.model.get("trials").length;
    this.table.querySelector("table")?.remove();
    if (!this.table.open || this.table.hidden) return;
    const table = make(this.table, "table");
    make(table, "caption", "", "Trials that have ended, in their order");
    const heads = make(make(table, "thead"), "tr");
    for (const text of ["trial", "file", "validation loss", "state", "config"]) make(heads, "th", "", text).scope = "col";
    const body = make(table, "tbody");
    for (const trial of this.model.get("trials")) {
      const line = make(body, "tr");
      make(line, "th", "", trial.name).scope = "row";
      const loss = trial.last_loss === null ? "" : trial.last_loss.toFixed(4);
      for (const value of [trial.size, loss, PLACES[trial.place] ?? trial.state, trial.facts.join(" · ")])
        make(line, "td", "", value);
    }
  }

  // ---- pointer and keyboard --------------------------------------------------------------

  /** The trial whose dot is nearest to the pointer, if one is near. */
  nearest(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const away = this.trials.map((trial) => Math.hypot(this.x(trial.bytes) - x, this.y(trial.last_loss) - y));
    const best = away.indexOf(Math.min(...away));
    return away[best] <= NEAR ? best : -1;
  }

  hover(event) {
    this.at = this.nearest(event);
    this.redraw();
  }

  choose(at) {
    if (!this.trials[at]) return;
    this.model.set("chosen", this.trials[at].name);
    this.model.save_changes();
    this.redraw();
  }

  key(event) {
    const last = this.trials.length - 1;
    if (last < 0 || event.altKey || event.metaKey || event.ctrlKey) return;
    const chooses = event.key === "Enter" || event.key === " ";
    const to = chooses ? this.at : pointByKey(event.key, this.at, last);
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (chooses) return this.choose(this.at);
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
  const chart = new Front(model, el);
  const changed = () => { chart.read(); chart.redraw(); };
  const watched = ["trials", "budget", "chosen", "height"];
  chart.canvas.addEventListener("click", (event) => chart.choose(chart.nearest(event)));
  return listen(chart, model, watched, changed);
}

export default { render };
