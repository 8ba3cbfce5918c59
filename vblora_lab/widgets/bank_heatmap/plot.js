// ---- plots --------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

/** A small drawing of vector graphics, made anew each time. */
class Plot {
  constructor(parent, height, margins, label) {
    parent.replaceChildren();
    this.width = Math.max(parent.clientWidth, 160);
    this.height = height;
    this.left = margins.left;
    this.right = this.width - margins.right;
    this.top = margins.top;
    this.bottom = height - margins.bottom;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("width", "100%");
    this.svg.setAttribute("height", String(height));
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", label);
    parent.append(this.svg);
  }

  add(tag, className, attributes) {
    const element = document.createElementNS(SVG, tag);
    element.setAttribute("class", className);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
    this.svg.append(element);
    return element;
  }

  scale([x0, x1], [y0, y1]) {
    const [wide, tall] = [this.right - this.left, this.bottom - this.top];
    this.x = (x) => this.left + ((x - x0) / (x1 - x0 || 1)) * wide;
    this.y = (y) => this.bottom - ((y - y0) / (y1 - y0 || 1)) * tall;
    this.unX = (px) => x0 + ((px - this.left) / wide) * (x1 - x0);
    this.unY = (py) => y0 + ((this.bottom - py) / tall) * (y1 - y0);
  }

  path(points) {
    return points.map(([x, y], i) => `${i ? "L" : "M"}${this.x(x).toFixed(2)} ${this.y(y).toFixed(2)}`).join("");
  }

  line(points, className) { return this.add("path", className, { d: this.path(points) }); }

  area(points, className) {
    const [first, last] = [points[0][0], points.at(-1)[0]];
    return this.add("path", className, { d: `${this.path([[first, 0], ...points, [last, 0]])}Z` });
  }

  /** Many dots as one path: points of no length with round ends. */
  dots(points, className) {
    const d = points.map(([x, y]) => `M${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}h0`).join("");
    return this.add("path", className, { d });
  }

  text(px, py, words, anchor = "middle", className = "vblora-label") {
    const element = this.add("text", className, { x: px, y: py, "text-anchor": anchor });
    element.textContent = words;
    return element;
  }

  axes(xLabel, yLabel, yTicks, step) {
    this.add("path", "vblora-map-axis", { d: `M${this.left} ${this.top}V${this.bottom}H${this.right}` });
    for (const tick of yTicks) this.text(this.left - 5, this.y(tick) + 4, tickText(tick, step), "end");
    this.text((this.left + this.right) / 2, this.height - 4, xLabel);
    this.text(0, 11, yLabel, "start");
  }

  /** Where the pointer is, in the units of the scale; null outside the axes. */
  under(event) {
    const box = this.svg.getBoundingClientRect();
    const [px, py] = [
      ((event.clientX - box.left) * this.width) / box.width, event.clientY - box.top];
    const inside = px >= this.left && px <= this.right && py >= this.top && py <= this.bottom;
    return inside ? { x: this.unX(px), y: this.unY(py) } : null;
  }
}

/** One linked view: a title that says what is seen, a drawing, and a line for what is pointed at. */
class View {
  constructor(parent, className) {
    this.box = make(parent, "section", `vblora-view ${className}`);
    this.title = make(this.box, "h4", "vblora-view-title");
    this.controls = make(this.box, "div", "vblora-view-controls");
    this.body = make(this.box, "div", "vblora-view-body");
    this.caption = make(this.box, "div", "vblora-caption");
  }

  /** Say something of what is under the pointer, and do something at a click. */
  points(plot, words, rest, act) {
    this.caption.textContent = rest;
    plot.svg.addEventListener("pointermove", (event) => {
      const at = plot.under(event);
      this.caption.textContent = at ? words(at) : rest;
    });
    plot.svg.addEventListener("pointerleave", () => { this.caption.textContent = rest; });
    if (!act) return;
    plot.svg.classList.add("vblora-clickable");
    plot.svg.addEventListener("click", (event) => {
      const at = plot.under(event);
      if (at) act(at);
    });
  }
}
