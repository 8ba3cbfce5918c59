const LIMIT = 4; // of a logit that is dragged: beyond, one weight is nearly 1
const MOST_LOSS = 1e6;
const MOST_STEPS = 200; // that are kept

/** What is shown: the layer as the traits have it, and what was done to it here. */
class State {
  constructor(model) {
    Object.assign(this, { model, colours: new Map(), before: null, said: "" });
    this.read();
    this.forget();
  }

  get row() { return this.model.get("row"); }
  get phase() { return this.model.get("phase"); }
  get rate() { return this.model.get("rate"); }
  get gradient() { return (this.gradientNow ??= this.layer.gradients(this.pass)); }
  gradientOf(i) { return this.gradient.rows[this.row * this.layer.shape.num_vectors + i]; }

  /** Follow the traits. */
  read() {
    const { model } = this;
    const values = (name) => Float64Array.from(numbers(Float32Array, model.get(name)));
    const shape = { ...model.get("shape"), topk: model.get("topk") };
    this.layer = new Layer(shape, values("logits"), values("bank"), values("x"), values("base"), values("wanted"));
    this.pass = this.layer.forward();
    this.gradientNow = null;
    this.colours = coloursOf(this.pass.mixtures[this.row].indices, this.colours);
    this.mostOfBank = largest(this.layer.bank); // of a scale that all drawings of vectors share
    const { base, wanted } = this.layer;
    this.mostOfOutput = Math.max(largest(base), largest(wanted));
    this.lossOfBase = base.reduce((sum, value, i) => sum + (value - wanted[i]) ** 2, 0) / base.length;
  }

  /** Tell the traits, which tell everybody. */
  write(more = {}) {
    const bytes = (values) => new DataView(Float32Array.from(values).buffer);
    const { rows, bank } = this.layer;
    for (const [name, value] of Object.entries({ logits: bytes(rows), bank: bytes(bank), ...more }))
      this.model.set(name, value);
    this.model.save_changes();
  }

  forget() {
    this.history = [Float64Array.from(this.layer.rows)];
    this.before = null;
  }

  choice() { return new Set(this.pass.mixtures[this.row].indices); }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  show(row) {
    if (row === this.row) return;
    this.before = null;
    this.said = "";
    this.set("row", row);
  }

  zoom(out) {
    this.said = "";
    this.set("zoomed_out", out);
  }

  /** before: what was chosen when a drag began. */
  setLogit(i, value, before = this.choice()) {
    this.layer.logits(this.row)[i] = bounded(Math.round(value * 100) / 100, -LIMIT, LIMIT);
    this.pass = this.layer.forward();
    this.said = afterDrag(i, before, this.choice());
    this.forget();
    this.write({ phase: "forward" });
  }

  step() {
    const { rate, row, layer } = this;
    const before = { choice: this.choice(), loss: this.pass.loss, logits: layer.logits(row).slice() };
    layer.step(rate, this.model.get("moves") === "everything" ? null : row);
    this.pass = layer.forward();
    if (!(this.pass.loss < MOST_LOSS)) {
      this.read(); // the traits still have what was before
      this.said = "This step is too large: the loss would explode. Start again, or set a smaller rate.";
      this.set("phase", "forward");
      return;
    }
    if (this.history.length > MOST_STEPS) this.history.shift();
    this.history.push(Float64Array.from(layer.rows));
    this.before = before.logits;
    this.said = afterStep(this, before);
    this.write({ phase: "update" });
  }

  startAgain() {
    for (const name of ["logits", "bank"]) this.model.set(name, this.model.get(`start_${name}`));
    this.model.set("phase", "forward");
    this.model.save_changes();
    this.read();
    this.forget();
    this.said = "";
  }

  nameOf(row) {
    const { matrix, rank, tile } = this.layer.place(row);
    return `${matrix} · rank ${rank} · tile ${tile}`;
  }
}

// ---- what to notice, in words -------------------------------------------------------------------

function afterDrag(i, before, now) {
  const left = [...before].filter((other) => !now.has(other));
  const came = [...now].filter((other) => !before.has(other));
  if (came.length) return `Vector ${came[0]} has overtaken vector ${left[0]}: it is in the mixture now.`;
  if (now.has(i)) return now.size > 1
    ? `A chosen logit: all weights change with it, and the sub-vector, and the layer's output.`
    : "The only chosen one has weight 1, whatever its logit is.";
  return `Vector ${i} isn't chosen, so its logit moves and nothing else does: a gradient of exactly 0.`;
}

function afterStep(state, before) {
  const now = state.choice();
  const fall = `The loss went from ${lossText(before.loss)} to ${lossText(state.pass.loss)}. `;
  const came = [...now].filter((i) => !before.choice.has(i));
  if (came.length) {
    const left = [...before.choice].filter((i) => !now.has(i));
    return `${fall}Vector ${left[0]} fell below vector ${came[0]}, which has not moved, ` +
      `and so ${came[0]} is chosen now.`;
  }
  const logits = state.layer.logits(state.row);
  const moved = [...before.choice].filter((i) => Math.abs(logits[i] - before.logits[i]) > 5e-5);
  const words = moved.map((i) => `${logits[i] > before.logits[i] ? "rose" : "fell"} for vector ${i}`);
  if (!moved.length) return `${fall}No logit of this sub-vector moved.`;
  return `${fall}The logit ${listed(words)}; the others stayed where they were.`;
}

function wordsOf(state) {
  const { layer, pass, row, phase } = state;
  const { indices, weights } = pass.mixtures[row];
  const { num_vectors: h, topk } = layer.shape;
  if (phase === "gradient") {
    if (topk === 1) return "With one vector alone its weight is 1, whatever its logit: every gradient " +
      "is 0, and the choice can never change.";
    return `${indices.length} of ${h} logits have a gradient, and these add up to 0. The others ` +
      "could move a little and nothing would change: theirs is exactly 0. An arrow shows where a step goes.";
  }
  if (state.said) return state.said;
  if (state.model.get("zoomed_out")) return "The same as rows of a map, stronger for more weight. " +
    "Look down a column: sub-vectors of A and of B take from the same bank vector. Click a row to zoom in.";
  return `The ${indices.length === 1 ? "largest logit chooses" : `${indices.length} largest logits choose`} ` +
    `${indices.length === 1 ? "vector" : "vectors"} ${listed(indices.map(String))}; softmax makes of them ` +
    `${listed(weights.map((w) => w.toFixed(2)))}. Drag a bar (or use the arrow keys), chosen or not, and see what changes.`;
}
