// The mathematics of one layer, as `admixture.py` has it, so that the widget needs no kernel. A test
// compares every number here with PyTorch's.

/** The k largest of some logits, the largest first, and their softmax. */
function choose(logits, k) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const indices = order.slice(0, k);
  const powers = indices.map((i) => Math.exp(logits[i] - logits[indices[0]]));
  const sum = powers.reduce((a, b) => a + b, 0);
  return { indices, weights: powers.map((power) => power / sum) };
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

const BANK_RATE = 0.1; // of the logits' rate, as in `LearningRates` of most runs here

/** A layer W x + B A x whose A and B are mixed from a bank, with one input and what is wanted. */
class Layer {
  /**
   * shape: { r, in_tiles, out_tiles, num_vectors, vector_length, topk }.
   * rows: (N, num_vectors) logits, those of A by rank and tile, then those of B by tile and rank.
   */
  constructor(shape, rows, bank, x, base, wanted) {
    Object.assign(this, { shape, rows, bank, x, base, wanted });
    this.inA = shape.r * shape.in_tiles;
    this.count = this.inA + shape.out_tiles * shape.r;
  }

  logits(row) {
    const h = this.shape.num_vectors;
    return this.rows.subarray(row * h, (row + 1) * h);
  }

  vector(i) {
    const b = this.shape.vector_length;
    return this.bank.subarray(i * b, (i + 1) * b);
  }

  /** Where a sub-vector is: its matrix, its rank, and which tile of the input or output it is. */
  place(row) {
    const { r, in_tiles } = this.shape;
    const at = row - this.inA;
    return row < this.inA
      ? { matrix: "A", rank: Math.floor(row / in_tiles), tile: row % in_tiles }
      : { matrix: "B", rank: at % r, tile: Math.floor(at / r) };
  }

  mixture(row) {
    const { indices, weights } = choose(this.logits(row), this.shape.topk);
    const u = new Float64Array(this.shape.vector_length);
    indices.forEach((i, n) => this.vector(i).forEach((value, j) => { u[j] += weights[n] * value; }));
    return { indices, weights, u };
  }

  /** All mixtures, A x, the output W x + B A x and the loss: its mean squared distance. */
  forward() {
    const { r, vector_length: b } = this.shape;
    const mixtures = Array.from({ length: this.count }, (_, row) => this.mixture(row));
    const inner = new Float64Array(r); // A x
    const output = Float64Array.from(this.base);
    mixtures.forEach(({ u }, row) => {
      const { matrix, rank, tile } = this.place(row);
      const from = tile * b;
      if (matrix === "A") inner[rank] += dot(u, this.x.subarray(from, from + b));
      else u.forEach((value, j) => { output[from + j] += value * inner[rank]; });
    });
    const off = output.map((value, i) => value - this.wanted[i]);
    return { mixtures, inner, output, off, loss: dot(off, off) / off.length };
  }

  /** The gradient of the loss: of each sub-vector, of all logits, and of the bank. */
  gradients(pass = this.forward()) {
    const { r, vector_length: b, num_vectors: h } = this.shape;
    const ofOutput = pass.off.map((value) => (2 * value) / pass.off.length);
    const ofInner = new Float64Array(r);
    const ofU = new Array(this.count);
    for (let row = this.count - 1; row >= 0; row--) { // B first: A's gradient needs it
      const { matrix, rank, tile } = this.place(row);
      const part = (matrix === "A" ? this.x : ofOutput).slice(tile * b, (tile + 1) * b);
      if (matrix === "B") ofInner[rank] += dot(part, pass.mixtures[row].u);
      ofU[row] = part.map((value) => value * (matrix === "A" ? ofInner : pass.inner)[rank]);
    }
    const rows = new Float64Array(this.count * h);
    const bank = new Float64Array(h * b);
    pass.mixtures.forEach(({ indices, weights, u }, row) => indices.forEach((i, n) => {
      const away = this.vector(i).map((value, j) => value - u[j]);
      rows[row * h + i] = weights[n] * dot(ofU[row], away);
      ofU[row].forEach((value, j) => { bank[i * b + j] += weights[n] * value; });
    }));
    return { ofU, rows, bank };
  }

  /** Gradient descent by one step, on one row's logits alone or, for null, on all there is. */
  step(rate, row = null) {
    const { rows, bank } = this.gradients();
    const h = this.shape.num_vectors;
    const moves = (i) => row === null || Math.floor(i / h) === row;
    rows.forEach((value, i) => { if (moves(i)) this.rows[i] -= rate * value; });
    if (row === null) bank.forEach((value, i) => { this.bank[i] -= BANK_RATE * rate * value; });
  }
}
