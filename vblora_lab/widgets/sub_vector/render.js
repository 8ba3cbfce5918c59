// One sub-vector to play with: its logits, what they choose and how much of it, the mixture, its place
// in A or B, and the layer's output; a training step in three parts; and the way out to the map.

const PHASES = { forward: "1 Forward", gradient: "2 Gradients", update: "3 Update" };
const RUN_STEPS = 30;
const RUN_EVERY = 160; // milliseconds

class SubVectorView {
  constructor(model, el) {
    this.model = model;
    this.state = new State(model);
    this.root = make(el, "div", "vblora-chart vblora-sub");
    keepKeys(this.root);
    const head = make(this.root, "div", "vblora-chart-head");
    this.title = make(head, "div", "vblora-chart-title");
    this.zoom = this.button(head, "", () => this.state.zoom(!model.get("zoomed_out")));
    this.buildControls(make(this.root, "div", "vblora-sub-controls"));
    this.words = make(this.root, "div", "vblora-sub-words");
    this.words.setAttribute("role", "status");
    const grid = make(this.root, "div", "vblora-sub-grid");
    const panel = () => make(grid, "section", "vblora-sub-panel");
    const [first, second] = [panel(), panel()];
    this.bars = new LogitBars(make(first, "div"), this.state);
    this.rows = new RowsView(make(first, "div"), this.state);
    const mixed = [new MixtureView(make(second, "div"), this.state), new PlaceView(make(second, "div"), this.state)];
    const below = [new OutputView(panel(), this.state), new HistoryView(panel(), this.state)];
    this.parts = [...mixed, ...below];
    this.draw = oncePerFrame(() => this.drawNow());
    this.listen();
    this.drawNow();
  }

  button(parent, text, act, className = "vblora-sub-button") {
    const made = make(parent, "button", className, text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  // ---- controls -------------------------------------------------------------------------------

  buildControls(bar) {
    const phases = make(bar, "span", "vblora-sub-phases");
    phases.setAttribute("role", "group");
    phases.setAttribute("aria-label", "One training step");
    const acts = {
      forward: () => this.toPhase("forward"), gradient: () => this.toPhase("gradient"),
      update: () => { this.stop(); this.state.step(); },
    };
    this.phases = Object.entries(PHASES).map(([phase, text]) => [phase, this.button(phases, text, acts[phase], "vblora-sub-phase")]);
    this.run = this.button(bar, "", () => (this.timer ? this.stop() : this.start()));
    this.again = this.button(bar, "Start again", () => { this.stop(); this.state.startAgain(); });
    const h = this.model.get("shape").num_vectors;
    const ks = Array.from({ length: Math.min(h, 4) }, (_, i) => i + 1);
    if (!ks.includes(this.model.get("topk"))) ks.push(this.model.get("topk"));
    this.selects = {
      topk: this.select(bar, "k, how many are chosen", ks.map((k) => [k, String(k)]), Number),
      moves: this.select(bar, "a step moves", [["logits", "these logits"], ["everything", "all logits and the bank"]], String),
    };
  }

  select(bar, text, options, kind) {
    const field = make(bar, "label", "vblora-sub-field", text);
    const select = make(field, "select");
    for (const [value, name] of options) make(select, "option", "", name).value = value;
    return [select, kind];
  }

  toPhase(phase) {
    this.stop();
    this.state.said = "";
    this.state.before = null;
    this.state.set("phase", phase);
    this.draw();
  }

  start() {
    let left = RUN_STEPS;
    this.timer = setInterval(() => {
      if (!this.root.isConnected || left-- === 0) this.stop();
      else this.state.step();
    }, RUN_EVERY);
    this.draw();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.draw();
  }

  // ---- what is drawn --------------------------------------------------------------------------

  listen() {
    const { model, state } = this;
    for (const [name, [select, kind]] of Object.entries(this.selects))
      select.addEventListener("change", () => { state.said = ""; state.set(name, kind(select.value)); });
    const read = () => { state.read(); this.draw(); };
    const watched = ["logits", "bank", "x", "base", "wanted", "shape", "topk", "row"].map((name) => [name, read]);
    for (const name of ["phase", "rate", "moves", "zoomed_out"]) watched.push([name, this.draw]);
    watched.push(["start_logits", () => { state.read(); state.forget(); this.draw(); }]);
    for (const [name, listener] of watched) model.on(`change:${name}`, listener);
    const unwatch = onAppearance(this.root, this.draw);
    this.leave = () => {
      this.stop();
      unwatch();
      for (const [name, listener] of watched) model.off(`change:${name}`, listener);
    };
  }

  drawNow() {
    if (this.root.clientWidth === 0) return;
    const { model, state } = this;
    const out = model.get("zoomed_out");
    this.title.textContent = `${out ? "The sub-vectors of one layer" : `One sub-vector: ${state.nameOf(state.row)}`}`;
    this.zoom.textContent = out ? "Zoom in" : `Zoom out: one of ${state.layer.count} rows`;
    this.zoom.setAttribute("aria-pressed", String(out));
    for (const [phase, button] of this.phases) button.setAttribute("aria-pressed", String(phase === state.phase));
    this.run.textContent = this.timer ? "❚❚ Pause" : `▶ Run ${RUN_STEPS} steps`;
    for (const [name, [select]] of Object.entries(this.selects)) select.value = String(model.get(name));
    this.words.textContent = wordsOf(state);
    this.bars.body.parentElement.hidden = out;
    this.rows.body.parentElement.hidden = !out;
    (out ? this.rows : this.bars).draw();
    for (const part of this.parts) part.draw();
  }
}

function render({ model, el }) {
  const view = new SubVectorView(model, el);
  return () => view.leave();
}

export default { render };
