// A recorded run with play, pause and a slider. The loss chart and the heatmap draw it, each with a
// model of its own: here it is cut where the shown step is.

const SECONDS = 15; // a whole run, played
const FRAMES = 20; // a second, at most
const STATES = { playing: "▶ playing", paused: "‖ paused", over: "✓ the end" };
const STATE_CLASSES = { playing: "vblora-running", paused: "", over: "vblora-completed" };

/** The first `count` numbers of a list of float32, as a trait. */
const first = (values, count) => new DataView(values.slice(0, count).buffer);

class RecordedTrainingView {
  constructor(model, el) {
    this.model = model;
    this.timer = null;
    this.root = make(el, "div", "vblora-panel vblora-replay");
    keepKeys(this.root);
    const head = make(this.root, "div", "vblora-header");
    make(head, "span", "vblora-title", model.get("title"));
    make(head, "span", "vblora-subtitle", model.get("about"));
    this.state = make(head, "span", "vblora-status");
    this.state.setAttribute("role", "status");
    const views = make(this.root, "div", "vblora-views vblora-replay-views");
    this.buildTransport(make(views, "div", "vblora-replay-transport"));
    const now = make(views, "div", "vblora-numbers-now");
    this.buildTiles(make(now, "div", "vblora-tiles"));
    this.buildParts(make(now, "div"), views);
    this.samples = make(this.root, "div", "vblora-replay-samples");
    this.shown = {}; // what is shown already: frame, samples
    this.draw = oncePerFrame(() => this.drawNow());
    model.on("change:step", this.draw);
    this.drawNow();
  }

  buildParts(chart, views) {
    const loss = this.model.get("loss");
    const read = (name) => numbers(Float32Array, StoredModel.decode(loss[name]));
    this.line = read("opened"); // step, loss, mean; and again
    this.evaluations = read("evaluations"); // step, loss; and again
    this.steps = [0];
    for (let i = 0; i < this.line.length; i += 3) this.steps.push(this.line[i]);
    this.slider.max = String(this.steps.length - 1);
    this.chart = new StoredModel(loss, {});
    this.leaving = [lossChart.render({ model: this.chart, el: chart })];
    const map = this.model.get("map");
    if (!map.steps) return;
    this.map = new StoredModel(map, {});
    this.leaving.push(bankMap.render({ model: this.map, el: make(views, "div") }));
  }

  // ---- what a person does ---------------------------------------------------------------------

  buildTransport(bar) {
    this.button = make(bar, "button", "vblora-replay-play");
    this.button.type = "button";
    this.button.addEventListener("click", () => this.toggle());
    this.slider = make(bar, "input", "vblora-replay-slider");
    Object.assign(this.slider, { type: "range", min: "0", step: "1" });
    this.slider.setAttribute("aria-label", "training step");
    this.slider.addEventListener("input", () => {
      this.pause();
      this.show(Number(this.slider.value));
    });
    this.slider.addEventListener("keydown", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      this.toggle();
    });
    this.text = make(bar, "span", "vblora-replay-step");
  }

  /** Where the shown step is among the steps. */
  get place() { return Math.max(0, this.steps.findLastIndex((step) => step <= this.model.get("step"))); }

  get last() { return this.steps.length - 1; }

  show(place) {
    this.model.set("step", this.steps[place]);
    this.model.save_changes();
  }

  toggle() {
    if (this.timer) this.pause();
    else this.play();
  }

  play() {
    if (this.place === this.last) this.show(0);
    const ticks = Math.min(this.last, SECONDS * FRAMES);
    const each = Math.ceil(this.last / ticks);
    this.timer = setInterval(() => {
      const next = Math.min(this.place + each, this.last);
      if (next === this.last) this.pause();
      this.show(next);
    }, (1000 * SECONDS) / ticks);
    this.draw();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.draw();
  }

  // ---- what is shown --------------------------------------------------------------------------

  drawNow() {
    const { place, last } = this;
    const step = this.steps[place];
    this.slider.value = String(place);
    this.slider.setAttribute("aria-valuetext", `step ${step} of ${this.steps[last]}`);
    this.slider.style.setProperty("--vblora-done", `${(100 * place) / last}%`);
    this.text.textContent = `step ${step} of ${this.steps[last]}`;
    this.button.textContent = this.timer ? "❚❚ Pause" : "▶ Play";
    const state = this.timer ? "playing" : place === last ? "over" : "paused";
    if (this.shown.state !== state) {
      this.shown.state = state;
      this.state.textContent = STATES[state];
      this.state.className = `vblora-status ${STATE_CLASSES[state]}`;
    }
    this.drawTiles(place);
    this.drawChart(place, step);
    this.drawMap(step);
    this.drawSamples(step);
  }

  buildTiles(box) {
    const changes = this.model.get("numbers");
    this.tiles = Object.fromEntries(Object.keys(changes[0]).map((name) => {
      const tile = make(box, "div", "vblora-tile");
      make(tile, "div", "vblora-tile-name", name);
      return [name, [make(tile, "div", "vblora-tile-number"), make(tile, "div", "vblora-tile-note")]];
    }));
    const now = {}; // for each step all that stands in the tiles
    this.numbers = changes.map((change) => ({ ...Object.assign(now, change) }));
  }

  drawTiles(place) {
    for (const [name, parts] of Object.entries(this.numbers[place]))
      parts.forEach((text, i) => { this.tiles[name][i].textContent = text; });
  }

  drawChart(place, step) {
    if (this.shown.place === place) return;
    this.shown.place = place;
    let told = 0;
    while (told < this.evaluations.length && this.evaluations[told] <= step) told += 2;
    this.chart.set("evaluations", first(this.evaluations, told));
    this.chart.set("opened", first(this.line, 3 * place));
  }

  drawMap(step) {
    if (!this.map) return;
    const frame = Math.max(0, this.map.get("steps").findLastIndex((recorded) => recorded <= step));
    if (this.shown.frame === frame) return;
    this.shown.frame = frame;
    this.map.set("frame", frame);
  }

  drawSamples(step) {
    const at = this.model.get("samples").findLastIndex(([recorded]) => recorded <= step);
    if (at < 0 || this.shown.samples === at) return;
    this.shown.samples = at;
    this.samples.innerHTML = this.model.get("samples")[at][1]; // escaped, as for a panel
  }

  leave() {
    clearInterval(this.timer);
    this.model.off("change:step", this.draw);
    for (const leave of this.leaving) leave();
  }
}

function render({ model, el }) {
  const view = new RecordedTrainingView(model, el);
  return () => view.leave();
}

export default { render };
