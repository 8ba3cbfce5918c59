// ---- linked views --------------------------------------------------------------------------------

class Views {
  constructor(root, model, data) {
    Object.assign(this, { model, data });
    this.box = make(root, "div", "vblora-linked");
    this.usage = new View(this.box, "vblora-view-usage");
    this.entropy = new View(this.box, "vblora-view-entropy");
    this.sharing = new View(this.box, "vblora-view-sharing");
    this.mixture = new View(this.box, "vblora-view-mixture");
    this.delta = new View(this.box, "vblora-view-delta");
    const { control } = labelled(this.delta.controls, "module", "select");
    control.addEventListener("change", () => choose(model, "module_shown", Number(control.value)));
    this.module = control;
  }

  draw() {
    this.box.hidden = !this.data.ready || this.model.get("compact");
    if (this.box.hidden || this.box.clientWidth === 0) return;
    this.colours = theme(this.box);
    this.shades = this.colours.dark ? DARK_SHADES : LIGHT_SHADES;
    this.drawUsage();
    this.drawEntropy();
    this.drawSharing();
    this.drawMixture();
    this.drawDelta();
  }

  drawUsage() {
    const { data, usage: view } = this;
    const order = Array.from({ length: data.columns }, (_, i) => i).sort((a, b) => data.usage[b] - data.usage[a]);
    const used = order.filter((column) => data.usage[column] > 0).length;
    const most = data.usage[order[0]];
    view.title.textContent = `${used} of ${data.columns} bank vectors are in use`;
    const plot = new Plot(view.body, 230, { left: 38, right: 8, top: 20, bottom: 34 }, view.title.textContent);
    plot.scale([0, data.columns], [0, most * 1.05]);
    const steps = order.flatMap((column, i) => [[i, data.usage[column]], [i + 1, data.usage[column]]]);
    plot.area(steps, "vblora-area");
    const even = data.count / data.columns;
    plot.line([[0, even], [data.columns, even]], "vblora-even");
    plot.text(plot.right, plot.y(even) - 4, `all alike: ${even.toFixed(2)}`, "end", "vblora-label vblora-accent");
    const lit = order.indexOf(this.model.get("lit_vector"));
    if (lit >= 0) {
      const wide = Math.max(2, plot.x(1) - plot.x(0));
      plot.add("rect", "vblora-lit", { x: plot.x(lit + 0.5) - wide / 2, y: plot.y(most), width: wide,
        height: plot.bottom - plot.y(most) });
    }
    const yTicks = ticks(0, most, 3);
    plot.axes("bank vectors, most used first", "summed weight", yTicks, yTicks[1] ?? 1);
    plot.text(plot.left, plot.bottom + 13, "1");
    plot.text(plot.right, plot.bottom + 13, String(data.columns), "end");
    const at = ({ x }) => bound(Math.floor(x), 0, data.columns - 1);
    view.points(plot, (point) => `${at(point) + 1}: ${data.sentence({ row: -1, column: order[at(point)] })}`,
      "Click one to light every sub-vector that mixes it.",
      (point) => toggle(this.model, "lit_vector", order[at(point)]));
  }

  drawEntropy() {
    const { data, entropy: view } = this;
    const most = Math.log(data.topk);
    view.title.textContent = "How even the mixtures are";
    const plot = new Plot(view.body, 230, { left: 38, right: 8, top: 20, bottom: 34 },
      "entropy of each sub-vector's mixture, by layer");
    plot.scale([-0.5, data.layers.length - 0.5], [0, (most || 1) * 1.08]);
    const lit = new Set(data.lit());
    const dots = { A: [], B: [], lit: [] };
    for (let row = 0; row < data.count; row++) {
      const { matrix, layer } = data.coordinate(row);
      const spread = 0.06 + 0.28 * (((row * 0.618034) % 1)); // spread out, the same every time
      const point = [layer + (matrix ? spread : -spread), data.entropy[row]];
      dots["AB"[matrix]].push(point);
      if (lit.has(row)) dots.lit.push(point);
    }
    for (const [name, points] of Object.entries(dots)) plot.dots(points, `vblora-dots vblora-dots-${name}`);
    data.layer_entropy.forEach((mean, i) => plot.line([[i - 0.4, mean], [i + 0.4, mean]], "vblora-mean"));
    plot.line([[-0.5, most], [data.layers.length - 0.5, most]], "vblora-even");
    const yTicks = ticks(0, most || 1, 3);
    plot.axes("layer: dots left A, right B; bar the mean", "entropy (nats); dashed: equal shares", yTicks, yTicks[1] ?? 1);
    this.layerTicks(plot);
    const at = ({ x }) => bound(Math.round(x), 0, data.layers.length - 1);
    view.points(plot, (point) => `${data.layers[at(point)]}: mean entropy ${data.layer_entropy[at(point)].toFixed(3)} nats`,
      `0 nats: one vector alone. ${most.toFixed(3)} nats: equal shares of ${data.topk}.`);
  }

  layerTicks(plot) {
    const names = this.data.layers.map((name) => name.replace(/^layer /, ""));
    const every = Math.ceil((names.length * 22) / (plot.right - plot.left));
    names.forEach((name, i) => { if (i % every === 0) plot.text(plot.x(i), plot.bottom + 13, name); });
    return { names, every };
  }

  drawSharing() {
    const { data, sharing: view } = this;
    const count = data.layers.length;
    view.title.textContent = "What layers share";
    const space = Math.min(view.body.clientWidth - 120, 230 - 20 - 34);
    const size = Math.max(60, space);
    const plot = new Plot(view.body, size + 20 + 34, { left: 38, right: Math.max(view.body.clientWidth - 38 - size, 8), top: 20, bottom: 34 },
      "share of what two layers take that comes from the same bank vectors");
    plot.scale([-0.5, count - 0.5], [count - 0.5, -0.5]);
    const cell = (plot.right - plot.left) / count;
    for (let a = 0; a < count; a++)
      for (let b = 0; b < count; b++)
        plot.add("rect", "", { x: plot.left + b * cell, y: plot.top + a * cell, width: cell + 0.3, height: cell + 0.3,
          fill: shadeOf(this.shades, data.sharing[a * count + b]) });
    const { names, every } = this.layerTicks(plot);
    names.forEach((name, i) => { if (i % every === 0) plot.text(plot.left - 5, plot.y(i) + 4, name, "end"); });
    plot.text((plot.left + plot.right) / 2, plot.height - 4, "layer");
    plot.text(0, 11, "layer", "start");
    this.colourBar(plot, plot.right + 16);
    const at = (value) => bound(Math.round(value), 0, count - 1);
    view.points(plot, ({ x, y }) => {
      const [a, b] = [at(y), at(x)];
      return `${data.layers[a]} and ${data.layers[b]}: ${percent(data.sharing[a * count + b])} from the same bank vectors`;
    }, "Point at two layers: how much they take from the same bank vectors.");
  }

  colourBar(plot, x) {
    const tall = plot.bottom - plot.top;
    for (let i = 0; i < SHADES; i++)
      plot.add("rect", "", { x, y: plot.bottom - ((i + 1) / SHADES) * tall, width: 10, height: tall / SHADES + 0.4, fill: this.shades[i] });
    for (const [share, text] of [[0, "0%"], [0.5, "50%"], [1, "100%"]])
      plot.text(x + 15, plot.bottom - share * tall + (share === 1 ? 9 : share === 0 ? 0 : 4), text, "start");
  }

  /** The bank vectors of the pinned row as bars, with their values where a model is behind. */
  drawMixture() {
    const { data, mixture: view } = this;
    const [pinned, lit] = [this.model.get("pinned_row"), this.model.get("lit_vector")];
    const bank = numbers(Float32Array, this.model.get("bank"));
    const length = bank.length / data.columns;
    view.body.replaceChildren();
    view.caption.textContent = "";
    const values = (column) => bank.subarray(column * length, (column + 1) * length);
    if (pinned >= 0 && pinned < data.count) {
      const mixture = data.mixture(pinned);
      view.title.textContent = `Sub-vector ${pinned} is a mixture`;
      make(view.body, "div", "vblora-caption", data.place(pinned).join(" · "));
      const most = this.largest(mixture.map((m) => values(m.column)));
      mixture.forEach(({ column, weight }) => this.drawShare(view.body, column, weight, values(column), most));
      if (length) this.drawSum(view.body, mixture, values, length, most);
    } else if (lit >= 0 && lit < data.columns) {
      const rows = data.sharers(lit);
      view.title.textContent = `Bank vector ${lit} is in ${rows.length} mixtures`;
      if (length) this.drawValues(view.body, values(lit), this.largest([values(lit)]), `values of bank vector ${lit}`);
      const layers = [...new Set(rows.map((row) => data.layers[data.coordinate(row).layer]))];
      view.caption.textContent = layers.length ? `It is used in ${layers.join(", ")}.` : "No sub-vector mixes it.";
    } else {
      view.title.textContent = "What a sub-vector is mixed from";
      view.caption.textContent = "Click a row of the map to see the bank vectors it mixes.";
    }
  }

  largest(arrays) {
    return arrays.reduce((most, array) => array.reduce((a, b) => Math.max(a, Math.abs(b)), most), 1e-12);
  }

  drawShare(parent, column, weight, values, most) {
    const line = make(parent, "div", "vblora-share");
    const light = button(line, `bank vector ${column}`, () => toggle(this.model, "lit_vector", column));
    light.setAttribute("aria-pressed", String(this.model.get("lit_vector") === column));
    const track = make(line, "span", "vblora-share-track");
    const bar = make(track, "span", "vblora-share-bar");
    bar.style.width = `${100 * weight}%`;
    bar.style.background = shadeOf(this.shades, weight);
    make(line, "span", "vblora-share-number", weight.toFixed(3));
    if (values.length) this.drawValues(parent, values, most, `values of bank vector ${column}`);
  }

  drawSum(parent, mixture, values, length, most) {
    const sum = new Float32Array(length);
    for (const { column, weight } of mixture) values(column).forEach((value, i) => { sum[i] += weight * value; });
    make(parent, "div", "vblora-share-name", "= the sub-vector");
    this.drawValues(parent, sum, most, "values of the sub-vector");
  }

  drawValues(parent, values, most, label) {
    const plot = new Plot(make(parent, "div", "vblora-values"), 40, { left: 46, right: 4, top: 3, bottom: 3 }, label);
    plot.scale([0, values.length], [-most, most]);
    const d = Array.from(values, (value, i) => `M${plot.x(i + 0.5).toFixed(2)} ${plot.y(0)}V${plot.y(value).toFixed(2)}`).join("");
    const stroke = Math.max(0.6, (0.8 * (plot.right - plot.left)) / values.length);
    plot.add("path", "vblora-map-bars", { d, "stroke-width": stroke });
    plot.add("path", "vblora-map-axis", { d: `M${plot.left} ${plot.y(0)}H${plot.right}` });
    plot.text(plot.left - 5, plot.top + 8, most.toPrecision(2), "end");
    plot.text(plot.left - 5, plot.bottom, `−${most.toPrecision(2)}`, "end");
  }

  drawDelta() {
    const { delta: view } = this;
    const facts = this.model.get("delta");
    const blocks = numbers(Float32Array, this.model.get("delta_blocks"));
    view.box.hidden = facts.grid === undefined || blocks.length !== facts.grid[0] * facts.grid[1];
    if (view.box.hidden) return;
    const names = this.model.get("modules");
    if (this.module.options.length !== names.length || this.named !== names) {
      fillSelect(this.module, Object.fromEntries(names.map((name, i) => [i, name])));
      this.named = names;
    }
    this.module.value = String(this.model.get("module_shown"));
    view.title.textContent = "The update of a module, ΔW = B A";
    view.body.replaceChildren();
    const pair = make(view.body, "div", "vblora-delta");
    const most = this.drawBlocks(make(pair, "div", "vblora-delta-map"), facts, blocks);
    this.drawSingular(make(pair, "div", "vblora-delta-values"), facts.singular_values);
    view.caption.textContent = `‖ΔW‖ = ${facts.norm.toPrecision(3)}, ` +
      `${percent(facts.norm / facts.base_norm)} of ‖W‖; darkest block: root mean square ${most.toPrecision(2)}`
        .replace("darkest", this.colours.dark ? "lightest" : "darkest");
  }

  drawBlocks(parent, facts, blocks) {
    const [tall, wide] = facts.grid;
    const most = blocks.reduce((a, b) => Math.max(a, b), 1e-30);
    make(parent, "div", "vblora-label-text", `${facts.shape[0]} output features ↓`);
    const canvas = make(parent, "canvas", "vblora-blocks");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `root mean square of the update in ${tall} by ${wide} blocks`);
    Object.assign(canvas, { width: wide, height: tall });
    const context = canvas.getContext("2d");
    blocks.forEach((value, i) => {
      context.fillStyle = shadeOf(this.shades, value / most);
      context.fillRect(i % wide, Math.floor(i / wide), 1, 1);
    });
    make(parent, "div", "vblora-label-text", `${facts.shape[1]} input features →`);
    return most;
  }

  drawSingular(parent, values) {
    const plot = new Plot(parent, 230, { left: 44, right: 4, top: 20, bottom: 34 }, "singular values of the update");
    const most = Math.max(...values, 1e-30);
    plot.scale([0, values.length], [0, most * 1.05]);
    values.forEach((value, i) => {
      const [x, y] = [plot.x(i + 0.15), plot.y(value)];
      const bar = plot.add("rect", "vblora-map-bar", { x, y, width: plot.x(i + 0.85) - x, height: plot.bottom - y });
      const title = document.createElementNS(SVG, "title");
      title.textContent = value.toPrecision(4);
      bar.append(title);
      if (values.length <= 12) plot.text(plot.x(i + 0.5), plot.bottom + 13, String(i + 1));
    });
    const yTicks = ticks(0, most, 3);
    plot.axes("rank", "singular value", yTicks, yTicks[1] ?? 1);
  }
}
