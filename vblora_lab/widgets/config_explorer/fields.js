/** Controls of single fields: sliders, segments, switches, lists. */
class Fields {
  group(parent, title) {
    const group = make(parent, "fieldset", "vblora-fieldset");
    make(group, "legend", "", title);
    return group;
  }

  /** The frame of a control: its field's name, and help that shows on hover or by keyboard. */
  field(parent, name, labelled = null) {
    const box = make(parent, "div", "vblora-field");
    const head = make(box, "div", "vblora-field-head");
    const label = make(head, labelled ? "label" : "span", "vblora-field-name", name);
    label.id = `${this.id}-${name}-label`;
    if (labelled) label.htmlFor = labelled;
    const help = make(box, "div", "vblora-field-help",
      this.catalogue.help[name] || "PEFT's name of the task; some tasks add a head to train.");
    help.id = `${this.id}-${name}-help`;
    if (!labelled) {
      box.setAttribute("role", "group");
      box.setAttribute("aria-labelledby", label.id);
      box.setAttribute("aria-describedby", help.id);
    }
    this.boxes[name] = box;
    box.head = head;
    return box;
  }

  /** A slider, logarithmic unless it has a step, with a box for exact numbers, which may be typed. */
  slider(parent, name, { low, high, stops = () => [], marks = () => [], step = null, typed = true }) {
    const id = `${this.id}-${name}`;
    const box = this.field(parent, name, id);
    const exact = make(box.head, "input", "vblora-exact");
    Object.assign(exact, { type: "number", step: "any", id, min: 0, readOnly: !typed });
    exact.setAttribute("aria-describedby", `${id}-help`);
    const range = make(box, "input", "vblora-range");
    Object.assign(range, { type: "range", min: 0, max: 1000, step: "any" });
    range.setAttribute("aria-label", `${name}, slider`);
    range.setAttribute("aria-describedby", `${id}-help`);
    const ticks = make(box, "div", "vblora-ticks");
    ticks.setAttribute("aria-hidden", "true");

    const top = () => Math.max(high, this.fields[name]);
    const place = (value) => {
      if (step) return (1000 * value) / top();
      return (1000 * Math.log(Math.max(value, low) / low)) / Math.log(top() / low);
    };
    const steps = () => {
      if (step) return Array.from({ length: Math.round(high / step) + 1 },
        (_, i) => Number((i * step).toFixed(6)));
      return [...new Set([...stops(), this.fields[name]])].filter((v) => v >= low && v <= top())
        .sort((a, b) => a - b);
    };
    range.addEventListener("input", () => {
      const at = Number(range.value);
      const nearest = steps().reduce((best, value) =>
        (Math.abs(place(value) - at) < Math.abs(place(best) - at) ? value : best));
      this.change({ [name]: nearest });
      range.value = place(nearest);
    });
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 4,
      PageDown: -4, Home: -Infinity, End: Infinity };
    range.addEventListener("keydown", (event) => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      const all = steps();
      const at = all.findLastIndex((v) => v <= this.fields[name]);
      const next = Math.min(Math.max(at + moves[event.key], 0), all.length - 1);
      this.change({ [name]: all[next] });
    });
    exact.addEventListener("input", () => {
      if (Number.isFinite(exact.valueAsNumber)) this.change({ [name]: exact.valueAsNumber });
    });
    exact.addEventListener("blur", () => { exact.value = this.fields[name]; });
    let drawn = null;
    const sync = () => {
      const value = this.fields[name];
      const half = Number.isNaN(exact.valueAsNumber) && exact.matches(":focus"); // typed, as "1e"
      if (exact.valueAsNumber !== value && !half) exact.value = value;
      range.value = place(value);
      range.setAttribute("aria-valuetext", String(value));
      range.style.setProperty("--vblora-share", `${place(value) / 10}%`);
      const fitting = marks();
      if (same(drawn, [fitting, top()])) return;
      drawn = [fitting, top()];
      ticks.replaceChildren();
      for (const mark of fitting) make(ticks, "i").style.left = `${place(mark) / 10}%`;
      ticks.title = fitting.length ? `fits: ${fitting.join(", ")}` : "";
    };
    this.controls.push(sync);
  }

  /** Buttons of which one is on. */
  segments(parent, name, options, get, set) {
    const bar = make(parent, "div", "vblora-segments");
    const inputs = options.map((option) => {
      const label = make(bar, "label");
      const input = make(label, "input");
      Object.assign(input, { type: "radio", name: `${this.id}-${name}-kind`, value: option });
      make(label, "span", "", option);
      input.addEventListener("change", () => set(option));
      return input;
    });
    this.controls.push(() => { for (const input of inputs) input.checked = input.value === get(); });
    return inputs;
  }


  toggle(parent, name) {
    const id = `${this.id}-${name}`;
    const box = this.field(parent, name, id);
    const input = make(box.head, "input", "vblora-toggle");
    Object.assign(input, { type: "checkbox", id });
    input.setAttribute("aria-describedby", `${id}-help`);
    input.addEventListener("change", () => this.change({ [name]: input.checked }));
    this.controls.push(() => { input.checked = this.fields[name]; });
  }

  choice(parent, name, options) {
    const id = `${this.id}-${name}`;
    const box = this.field(parent, name, id);
    const select = make(box.head, "select", "vblora-select");
    select.id = id;
    select.setAttribute("aria-describedby", `${id}-help`);
    for (const option of ["", ...options]) make(select, "option", "", option || "none").value = option;
    select.addEventListener("change", () => this.change({ [name]: select.value || null }));
    this.controls.push(() => { select.value = this.fields[name] ?? ""; });
  }

  // ---- results --------------------------------------------------------------------------------
}
