// ---- the data -----------------------------------------------------------------------------------

/** The numbers behind all views, of the frame that is shown. Decoded when they are first needed. */
class Data {
  constructor(model) {
    this.model = model;
    this.stale = true;
    this.version = 0; // counts what is shown: another frame, other numbers
  }

  /** Whether all traits fit together: they travel together, but arrive one after the other. */
  get ready() {
    if (this.stale) this.decode();
    return this.fits;
  }

  decode() {
    const read = (name, type = Float32Array) => numbers(type, this.model.get(name));
    this.coordinates = read("coordinates", Int32Array); // module, A|B, rank, tile, layer
    this.count = this.coordinates.length / 5;
    this.columns = this.model.get("num_vectors");
    this.steps = this.model.get("steps");
    this.frames = Math.max(1, this.steps.length);
    const allWeights = read("weights");
    const view = this.model.get("indices");
    const narrow = view && view.byteLength === 2 * allWeights.length;
    this.stacks = {
      indices: numbers(narrow ? Uint16Array : Uint32Array, view), weights: allWeights,
      usage: read("usage"), entropy: read("entropy"), layer_entropy: read("layer_entropy"),
      sharing: read("sharing"), churn: read("churn"), spread: read("spread"),
    };
    const before = this.model.get("start_indices");
    const weights = read("start_weights");
    this.start = { weights, spread: read("start_spread"),
      indices: numbers(before && before.byteLength === 2 * weights.length ? Uint16Array : Uint32Array, before) };
    this.topk = this.count ? allWeights.length / this.frames / this.count : 0;
    this.layers = this.model.get("layers");
    this.rowAt = read("row_order", Int32Array);
    this.columnAt = read("column_order", Int32Array);
    this.placeOfRow = Data.inverse(this.rowAt);
    this.placeOfColumn = Data.inverse(this.columnAt);
    const lengths = {
      indices: this.count * this.topk, weights: this.count * this.topk, usage: this.columns,
      entropy: this.count, layer_entropy: this.layers.length, sharing: this.layers.length ** 2, churn: 2,
      spread: (this.model.get("grouped_by") === "layer" ? this.layers : this.model.get("modules")).length,
    };
    this.lengths = lengths;
    this.fits = this.count > 0 && Number.isInteger(this.topk) &&
      this.rowAt.length === this.count && this.columnAt.length === this.columns &&
      Object.keys(lengths).every((name) => this.stacks[name].length === this.frames * lengths[name]) &&
      [0, this.count * this.topk].includes(this.start.indices.length) &&
      [0, lengths.spread].includes(this.start.spread.length);
    this.stale = false;
    this.show();
  }

  static inverse(order) {
    const places = new Int32Array(order.length);
    order.forEach((number, place) => { places[number] = place; });
    return places;
  }

  /** Point the numbers at the frame that the model names. */
  show() {
    if (this.stale) return;
    this.frame = bound(this.model.get("frame"), 0, this.frames - 1);
    for (const name of Object.keys(this.stacks)) this[name] = this.of(this.frame, name);
    this.version += 1;
  }

  of(frame, name) {
    const length = this.lengths[name];
    return this.stacks[name].subarray(frame * length, (frame + 1) * length);
  }

  /** The bank vectors that a row mixes, best first, with their weights. */
  mixture(row) {
    return Array.from({ length: this.topk }, (_, j) => {
      const at = row * this.topk + j;
      return { column: this.indices[at], weight: this.weights[at] };
    });
  }

  sharers(column) {
    const rows = [];
    for (let at = 0; at < this.indices.length; at++)
      if (this.indices[at] === column) rows.push(Math.floor(at / this.topk));
    return rows;
  }

  /** The rows that are lit: all that share the chosen bank vector, the pinned one, or those selected. */
  lit() {
    const [vector, pinned] = [this.model.get("lit_vector"), this.model.get("pinned_row")];
    if (vector >= 0) return this.sharers(vector);
    return pinned >= 0 && pinned < this.count ? [pinned] : this.model.get("selected");
  }

  /** Those of them that stand out while others fade: a pinned row alone lets none fade. */
  standingOut() {
    const rows = this.lit();
    const onlyPinned = rows.length === 1 && rows[0] === this.model.get("pinned_row");
    return new Set(onlyPinned && this.model.get("lit_vector") < 0 ? [] : rows);
  }

  coordinate(row) {
    const [module, matrix, rank, tile, layer] = this.coordinates.subarray(5 * row, 5 * row + 5);
    return { module, matrix, rank, tile, layer };
  }

  place(row) {
    const { module, matrix, rank, tile } = this.coordinate(row);
    return [`${this.model.get("modules")[module]} · ${"AB"[matrix]}`, `rank ${rank} · tile ${tile}`];
  }

  sentence({ row, column }) {
    if (row < 0) {
      const share = `${this.sharers(column).length} of ${this.count} sub-vectors`;
      return `bank vector ${column}: chosen by ${share}, summed weight ${this.usage[column].toFixed(2)}`;
    }
    const mixture = this.mixture(row);
    const parts = mixture.map((m) => `${m.weight.toFixed(3)} of bank vector ${m.column}`);
    const chosen = column < 0 || mixture.some((m) => m.column === column);
    const absent = chosen ? "" : ` (bank vector ${column} is not chosen)`;
    return `${this.place(row).join(" · ")}: ${parts.join(" + ")}; ` +
      `entropy ${this.entropy[row].toFixed(3)} nats${absent}`;
  }
}
