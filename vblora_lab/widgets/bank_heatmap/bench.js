// ---- the bench ----------------------------------------------------------------------------------

/** Changes to the live model: the kernel makes and measures them, this asks and shows. */
class Bench {
  constructor(root, model, data) {
    Object.assign(this, { model, data });
    this.box = make(root, "section", "vblora-bench");
    make(this.box, "h4", "vblora-view-title", "What if? Change a mixture, measure, undo");
    this.where = make(this.box, "div", "vblora-caption");
    const forms = make(this.box, "div", "vblora-forms");
    this.buildSwap(this.form(forms, "Swap a bank vector"));
    this.buildWeight(this.form(forms, "Change a weight"));
    this.buildOff(this.form(forms, "Switch one off everywhere"));
    const bar = make(this.box, "div", "vblora-toolbar");
    this.undo = button(bar, "Undo", () => this.ask({ bench: "undo" }));
    this.restore = button(bar, "Undo all", () => this.ask({ bench: "restore" }));
    this.state = make(bar, "span", "vblora-bench-state");
    this.state.setAttribute("role", "status");
    this.changes = make(this.box, "ol", "vblora-changes");
    this.result = make(this.box, "div", "vblora-result");
  }

  form(parent, title) {
    const set = make(parent, "fieldset", "vblora-form");
    make(set, "legend", "", title);
    return set;
  }

  /** A box for the number of a bank vector. */
  number(set, text) {
    const { control } = labelled(set, text, "input", "number");
    return Object.assign(control, { min: "0", value: "0", required: true });
  }

  /** A button; the browser says what is wrong with the number, and asks for another. */
  tryButton(set, number, question) {
    return button(set, "Try", () => { if (number.reportValidity()) this.ask(question(number.valueAsNumber)); });
  }

  buildSwap(set) {
    this.old = labelled(set, "instead of bank vector", "select").control;
    this.new = this.number(set, "take");
    this.swap = this.tryButton(set, this.new, (vector) => ({
      bench: "swap", row: this.row, old: Number(this.old.value), new: vector }));
  }

  buildWeight(set) {
    this.vector = labelled(set, "of bank vector", "select").control;
    const { field, control } = labelled(set, "to", "input", "range");
    Object.assign(control, { min: "0", max: "1", step: "0.01", value: "0.5" });
    const shown = make(field, "output", "", "0.50");
    control.addEventListener("input", () => { shown.textContent = Number(control.value).toFixed(2); });
    this.weight = control;
    this.reweight = button(set, "Try", () => this.ask({
      bench: "reweight", row: this.row, vector: Number(this.vector.value), weight: Number(control.value) }));
  }

  buildOff(set) {
    this.off = this.number(set, "bank vector");
    this.instead = labelled(set, "and", "select").control;
    fillSelect(this.instead, { nothing: "put nothing in its place", next: "take the next best" });
    this.switchOff = this.tryButton(set, this.off, (vector) => ({
      bench: "switch_off", vector, next_best: this.instead.value === "next" }));
  }

  get row() { return this.model.get("pinned_row"); }

  ask(question) { this.model.send(question); }

  draw() {
    const { data, model } = this;
    const state = model.get("bench");
    this.box.hidden = state.changes === undefined || !data.ready;
    if (this.box.hidden) return;
    const pinned = this.row >= 0 && this.row < data.count;
    this.where.textContent = pinned
      ? `Sub-vector ${this.row}: ${data.sentence({ row: this.row, column: -1 })}`
      : "Pin a row of the map (click it) to change its mixture.";
    const mixed = pinned ? Object.fromEntries(data.mixture(this.row).map((m) => [m.column, String(m.column)])) : {};
    for (const select of [this.old, this.vector]) fillSelect(select, mixed);
    const lit = model.get("lit_vector");
    if (lit >= 0 && this.lastLit !== lit) this.off.value = String(lit);
    this.lastLit = lit;
    for (const input of [this.new, this.off]) input.max = String(data.columns - 1);
    for (const control of [this.old, this.new, this.swap, this.vector, this.weight, this.reweight])
      control.disabled = state.busy || !pinned;
    this.switchOff.disabled = state.busy;
    this.undo.disabled = this.restore.disabled = state.busy || state.changes.length === 0;
    this.state.textContent = state.busy ? "measuring…" : state.error ? `✕ ${state.error}` : "";
    this.state.classList.toggle("vblora-problem", Boolean(state.error));
    this.changes.replaceChildren();
    for (const change of state.changes) make(this.changes, "li", "", change);
    this.drawResult(state);
  }

  drawResult({ before, after, changes }) {
    this.result.replaceChildren();
    if (!before) return;
    const change = after.loss - before.loss;
    const sign = Math.abs(change) < 5e-5 ? "no change" : change > 0 ? `▲ ${change.toFixed(4)} worse` : `▼ ${(-change).toFixed(4)} better`;
    const loss = make(this.result, "div", "vblora-loss");
    make(loss, "span", "vblora-loss-name", "loss (nats per token)");
    make(loss, "span", "vblora-loss-number", `${before.loss.toFixed(4)} → ${after.loss.toFixed(4)}`);
    const kind = sign === "no change" ? "" : change > 0 ? "vblora-problem" : "vblora-better";
    make(loss, "span", `vblora-loss-change ${kind}`, sign);
    if (before.prompt) make(this.result, "div", "vblora-prompt", before.prompt);
    const texts = make(this.result, "div", "vblora-texts");
    const title = changes.length === 1 ? "With the change" : `With ${changes.length} changes`;
    this.drawText(texts, "Without changes", before, after);
    this.drawText(texts, changes.length ? title : "After undoing", after, before);
  }

  drawText(parent, title, outcome, other) {
    const box = make(parent, "div", "vblora-map-text");
    make(box, "div", "vblora-label-text", title);
    const text = make(box, "p");
    const there = new Set(other.text.split(/\s+/));
    for (const word of outcome.text.split(/(\s+)/))
      if (word.trim() === "" || there.has(word)) text.append(word);
      else make(text, "mark", "", word); // a word that the other text hasn't
    if (outcome.text === "") make(text, "em", "", "(nothing)");
    for (const mistake of outcome.mistakes) make(box, "div", "vblora-problem", `✕ ${mistake}`);
  }
}
