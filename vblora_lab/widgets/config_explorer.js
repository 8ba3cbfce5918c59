// The form on the left, and what the kernel says the config would do on the right.
// Every text goes in through textContent: names of modules are shown, whatever they hold.

const SVG = "http://www.w3.org/2000/svg";
const ALL_LINEAR = "all-linear";
const MOST_OPTIONS = 60; // in a list of names; more are told as a number
const POWERS = (high) => [1, 1.5].flatMap((f) => Array.from({ length: 21 }, (_, i) => f * 2 ** i))
  .filter((v) => Number.isInteger(v) && v <= high).sort((a, b) => a - b);
const ONE_TWO_FIVE = [-4, -3, -2, -1, 0].flatMap((e) => [1, 2, 5].map((f) => Number(`${f}e${e}`)))
  .filter((v) => v <= 1);
const MARKS = { // sign in the rows -> class and meaning
  A: ["adapted", "adapted"], S: ["saved", "trained whole"], X: ["misfit", "named, but doesn't fit"],
  "~": ["mixed", "some of them"], "-": ["left", "left as it is"],
};
let views = 0; // ids and radio buttons need names of their own in each view

function draw(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

function button(parent, text, className, onClick) {
  const element = make(parent, "button", className, text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const ending = (name) => name.slice(name.lastIndexOf(".") + 1);
const isNamedBy = (full, name) => full === name || full.endsWith(`.${name}`);
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** Ascending numbers as ranges: "0-4, 7". */
function ranges(numbers) {
  const runs = [];
  for (const n of numbers) {
    if (runs.length && n === runs.at(-1)[1] + 1) runs.at(-1)[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(", ");
}

class Explorer {
  constructor(model, el) {
    this.model = model;
    this.id = `${PREFIX}-${++views}`;
    this.catalogue = model.get("catalogue");
    this.fields = { ...model.get("fields") };
    this.controls = []; // functions that bring a control in line with the fields
    this.boxes = {}; // by field: the element that is marked when a problem is about it
    this.remembered = {}; // what a field was before another kind of value was chosen for it
    this.send = oncePerFrame(() => {
      model.set("fields", { ...this.fields });
      model.save_changes();
    });
    this.root = make(el, "div", "vblora-panel vblora-explorer");
    this.root.dataset.lmSuppressShortcuts = "true"; // keys in here are no notebook shortcuts
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Tab") this.root.classList.add("vblora-by-keys");
      event.stopPropagation();
    });
    this.root.addEventListener("pointerdown", () => this.root.classList.remove("vblora-by-keys"));
    this.buildHead();
    this.facts = make(this.root, "div", "vblora-sums");
    const columns = make(this.root, "div", "vblora-explorer-columns");
    this.buildForm(make(columns, "div", "vblora-form"));
    this.buildResults(make(columns, "div", "vblora-results"));
    const listeners = {
      "change:fields": () => { this.fields = { ...model.get("fields") }; this.sync(); },
      "change:view": () => this.show(),
      "change:code": () => this.showCode(),
    };
    for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
    this.redrawCut = oncePerFrame(() => this.showCut());
    const stop = onAppearance(this.stage, this.redrawCut);
    this.leave = () => {
      this.ofWidth.disconnect();
      stop();
      for (const [event, listener] of Object.entries(listeners)) model.off(event, listener);
    };
    this.sync();
    this.show();
    this.showCode();
  }

  /** A person changed something: every control follows at once, the kernel answers with a view. */
  change(patch) {
    if (Object.entries(patch).every(([name, value]) => same(this.fields[name], value))) return;
    Object.assign(this.fields, patch);
    this.sync();
    this.send();
  }

  sync() { for (const control of this.controls) control(); }

  // ---- head -----------------------------------------------------------------------------------

  buildHead() {
    const head = make(this.root, "div", "vblora-explorer-head");
    make(head, "div", "vblora-explorer-title", `VB-LoRA on ${this.catalogue.model}`);
    this.verdict = make(head, "div", "vblora-verdict");
    this.verdict.setAttribute("role", "status");
    this.verdict.tabIndex = -1;
    const bar = make(this.root, "div", "vblora-presets");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Presets");
    const note = make(this.root, "div", "vblora-preset-note");
    const chips = this.catalogue.presets.map((preset) => {
      const chip = button(bar, preset.title, "vblora-chip", () => {
        this.remembered = {};
        this.change(preset.fields);
      });
      const describe = () => { note.textContent = preset.description; };
      chip.addEventListener("pointerenter", describe);
      chip.addEventListener("focus", describe);
      for (const away of ["pointerleave", "blur"]) chip.addEventListener(away, () => tell());
      return chip;
    });
    const tell = () => {
      const at = this.catalogue.presets.findIndex((p) => same(p.fields, this.fields));
      chips.forEach((chip, i) => chip.setAttribute("aria-pressed", String(i === at)));
      note.textContent = at < 0 ? "Your own settings. Choose a preset to start again from there."
        : this.catalogue.presets[at].description;
    };
    this.controls.push(tell);
  }

  // ---- form -----------------------------------------------------------------------------------

  buildForm(form) {
    form.setAttribute("role", "form");
    form.setAttribute("aria-label", "Fields of the config");
    const largest = this.catalogue.largest;
    let group = this.group(form, "Bank and rank");
    this.slider(group, "r", { low: 1, high: 256, stops: () => POWERS(256) });
    this.slider(group, "num_vectors", { low: 1, high: 16384, stops: () => POWERS(2 ** 20) });
    this.slider(group, "vector_length", {
      low: 1, high: largest, marks: () => this.model.get("view").lengths,
      stops: () => [...POWERS(largest), ...this.model.get("view").lengths],
    });
    this.slider(group, "topk", { low: 1, high: 64, stops: () => POWERS(64) });
    group = this.group(form, "Modules and layers");
    const { linear, trainable, lists, layers } = this.catalogue;
    this.targets(group, "target_modules", linear, ["names", "expression", "all linear", "default"]);
    this.targets(group, "exclude_modules", linear, ["nothing", "names", "expression"]);
    this.brush(group);
    const pattern = this.named(group, "layers_pattern", lists, (names) => ({
      layers_pattern: names.length > 1 ? names : names[0] ?? null,
      // A pattern says where numbers count, so the config wants the numbers too.
      ...(names.length && { layers_to_transform: this.fields.layers_to_transform ?? layers }),
    }));
    this.controls.push(() => {
      const off = typeof this.fields.target_modules === "string";
      pattern.classList.toggle("vblora-off", off);
      for (const input of pattern.querySelectorAll("input")) input.disabled = off;
    });
    this.named(group, "modules_to_save", trainable,
      (names) => ({ modules_to_save: names.length ? names : null }));
    group = this.group(form, "Training");
    this.slider(group, "vblora_dropout", { low: 0, high: 0.9, step: 0.05 });
    const scale = { low: 0.0001, high: 1, stops: () => ONE_TWO_FIVE };
    this.slider(group, "init_vector_bank_bound", scale);
    this.slider(group, "init_logits_std", scale);
    const biases = this.field(group, "bias");
    this.segments(biases, "bias", this.catalogue.bias, () => this.fields.bias,
      (bias) => this.change({ bias }));
    this.choice(group, "task_type", this.catalogue.tasks);
    group = this.group(form, "Storage");
    this.toggle(group, "save_only_topk_weights");
    this.toggle(group, "fan_in_fan_out");
  }

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

  /** A slider, logarithmic unless it has a step, with a box for exact numbers. */
  slider(parent, name, { low, high, stops = () => [], marks = () => [], step = null }) {
    const id = `${this.id}-${name}`;
    const box = this.field(parent, name, id);
    const exact = make(box.head, "input", "vblora-exact");
    Object.assign(exact, { type: "number", step: "any", id, min: 0 });
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

  /** target_modules and exclude_modules: names, an expression, or a word for many. */
  targets(parent, name, options, kinds) {
    const box = this.field(parent, name);
    const count = make(box.head, "span", "vblora-count");
    const without = kinds.includes("nothing") ? "nothing" : "default";
    const kindOf = (value) => {
      if (value === null) return without;
      if (Array.isArray(value)) return "names";
      return value.toLowerCase() === ALL_LINEAR && kinds.includes("all linear")
        ? "all linear" : "expression";
    };
    const adaptedEndings = () => [...new Set(this.model.get("view").rows
      .filter((row) => /[AX]/.test(row.marks)).map((row) => ending(row.name)))];
    const first = {
      names: () => (without === "default" ? adaptedEndings() : []),
      expression: () => (without === "default"
        ? `.*\\.(${adaptedEndings().map(escaped).join("|") || "q_proj|v_proj"})` : ".*lm_head"),
      "all linear": () => ALL_LINEAR,
      [without]: () => null,
    };
    this.segments(box, name, kinds, () => kindOf(this.fields[name]), (kind) => {
      this.remembered[`${name} ${kindOf(this.fields[name])}`] = this.fields[name];
      const value = this.remembered[`${name} ${kind}`] ?? first[kind]();
      // An expression says itself which layers it means: the config takes no numbers beside it.
      const isText = name === "target_modules" && typeof value === "string";
      this.change({
        [name]: value, ...(isText && { layers_to_transform: null, layers_pattern: null }),
      });
    });
    const picker = this.picker(box, name, options, (names) => this.change({ [name]: names }));
    const text = make(box, "input", "vblora-text");
    Object.assign(text, { type: "text", spellcheck: false, autocomplete: "off" });
    text.setAttribute("aria-label", `${name}: regular expression for the whole name`);
    text.addEventListener("input", () => this.change({ [name]: text.value }));
    this.controls.push(() => {
      const value = this.fields[name];
      const kind = kindOf(value);
      picker.hidden = kind !== "names";
      text.hidden = kind !== "expression";
      if (kind === "expression" && text.value !== value) text.value = value;
    });
    this.countOf ??= {};
    this.countOf[name] = (view) => {
      const isExpression = kindOf(this.fields[name]) === "expression";
      const found = view.matches[name];
      count.textContent = isExpression && found !== null && !view.error
        ? `matches ${found} ${found === 1 ? "module" : "modules"}` : "";
    };
  }

  /** A field whose value is a list of names, or one name, or none. */
  named(parent, name, options, patchOf) {
    const box = this.field(parent, name);
    this.picker(box, name, options, (names) => this.change(patchOf(names)));
    return box;
  }

  /** Chips for what is chosen, a search, and a list to tick. */
  picker(box, name, options, choose) {
    const picker = make(box, "div", "vblora-picker");
    const chips = make(picker, "div", "vblora-chosen");
    const search = make(picker, "input", "vblora-text");
    const names = [...new Set(options.map(ending))].filter((part) => !/^\d+$/.test(part));
    const few = options.length <= 6; // all can be seen: nothing to search
    search.hidden = few;
    const many = `${options.length.toLocaleString("en")} names`;
    Object.assign(search, { type: "search", placeholder: `search ${many}`, autocomplete: "off" });
    search.setAttribute("aria-label", `${name}: search ${many}`);
    const list = make(picker, "div", "vblora-options");
    list.setAttribute("role", "group");
    list.setAttribute("aria-label", `${name}: names to choose`);
    const chosen = () => {
      const value = this.fields[name];
      return Array.isArray(value) ? value : value === null ? [] : [value];
    };
    const count = (part) => options.filter((full) => isNamedBy(full, part)).length;
    const toggle = (part) => choose(chosen().includes(part)
      ? chosen().filter((other) => other !== part) : [...chosen(), part].sort());
    let boxes = [];
    const fill = () => {
      const query = search.value.trim().toLowerCase();
      const hits = names.filter((part) => part.toLowerCase().includes(query));
      if (query) {
        hits.push(...options.filter((f) => f.toLowerCase().includes(query) && !hits.includes(f)));
      }
      list.replaceChildren();
      boxes = hits.slice(0, MOST_OPTIONS).map((part) => {
        const label = make(list, "label");
        const input = make(label, "input");
        input.type = "checkbox";
        make(label, "span", "vblora-option-name", part);
        const found = count(part);
        make(label, "span", "vblora-option-count", found === 1 ? "" : `× ${found}`);
        input.addEventListener("change", () => toggle(part));
        return { part, input };
      });
      const more = hits.length - boxes.length;
      if (more > 0) make(list, "div", "vblora-more", `and ${more} more: type more of the name`);
      if (!hits.length) make(list, "div", "vblora-more", "no such name");
      tick();
    };
    const tick = () => {
      for (const { part, input } of boxes) input.checked = chosen().includes(part);
    };
    search.addEventListener("input", fill);
    let shown = null;
    this.controls.push(() => {
      const parts = chosen();
      tick();
      if (same(shown, parts)) return;
      shown = [...parts];
      chips.replaceChildren();
      for (const part of parts) {
        if (few && names.includes(part)) continue;
        const found = count(part);
        const chip = button(chips, "", "vblora-chip vblora-remove", () => { toggle(part); search.focus(); });
        make(chip, "span", "", part);
        make(chip, "span", "vblora-times", "✕").setAttribute("aria-hidden", "true");
        chip.setAttribute("aria-label", `remove ${part}, ${found} found`);
        chip.classList.toggle("vblora-none", found === 0);
      }
    });
    fill();
    return picker;
  }

  /** layers_to_transform: drag over the layers, or give the first and the last. */
  brush(parent) {
    const name = "layers_to_transform";
    const all = this.catalogue.layers;
    const box = this.field(parent, name);
    const told = make(box.head, "span", "vblora-count");
    if (!all.length) { told.textContent = "this model has no numbered layers"; return; }
    const strip = make(box, "div", "vblora-brush");
    strip.setAttribute("aria-hidden", "true"); // the two numbers below do the same by keyboard
    const cells = all.map((number) => {
      const cell = make(strip, "i");
      cell.title = `layer ${number}`;
      return cell;
    });
    const line = make(box, "div", "vblora-from-to");
    const bounds = ["from", "to"].map((word) => {
      const label = make(line, "label", "", word);
      const input = make(label, "input", "vblora-exact");
      Object.assign(input, { type: "number", min: all[0], max: all.at(-1), step: 1 });
      input.setAttribute("aria-label", `${word} layer`);
      input.addEventListener("input", () => {
        const [from, to] = bounds.map((bound) => bound.valueAsNumber);
        if (Number.isInteger(from) && Number.isInteger(to)) pick(from, to);
      });
      return input;
    });
    const every = button(line, "every layer", "vblora-small", () => set(all));
    const wanted = () => {
      const value = this.fields[name];
      return value === null ? all : (Array.isArray(value) ? value : [value]).filter(Number.isInteger);
    };
    const set = (numbers) => this.change({
      [name]: same(numbers, all) ? null : numbers,
      // The pattern says where the numbers count: without numbers the config takes none.
      ...(same(numbers, all) && { layers_pattern: null }),
    });
    const pick = (a, b) => {
      const inside = all.filter((n) => n >= Math.min(a, b) && n <= Math.max(a, b));
      if (inside.length) set(inside);
    };
    const isFixed = () => typeof this.fields.target_modules === "string";
    const under = (event) => {
      const rect = strip.getBoundingClientRect();
      const share = (event.clientX - rect.left) / rect.width;
      return all[Math.min(Math.max(Math.floor(share * all.length), 0), all.length - 1)];
    };
    let start = null;
    strip.addEventListener("pointerdown", (event) => {
      if (isFixed()) return;
      event.preventDefault();
      const at = under(event);
      if (event.ctrlKey || event.metaKey) { // one layer more or less
        const now = wanted();
        const next = now.includes(at) ? now.filter((n) => n !== at)
          : [...now, at].sort((a, b) => a - b);
        if (next.length) set(next);
        return;
      }
      start = at;
      strip.setPointerCapture(event.pointerId);
      pick(at, at);
    });
    strip.addEventListener("pointermove", (event) => { if (start !== null) pick(start, under(event)); });
    for (const end of ["pointerup", "pointercancel"])
      strip.addEventListener(end, () => { start = null; });
    this.controls.push(() => {
      const numbers = [...wanted()].sort((a, b) => a - b);
      const fixed = isFixed();
      box.classList.toggle("vblora-off", fixed);
      for (const input of [...bounds, every]) input.disabled = fixed;
      cells.forEach((cell, i) => cell.classList.toggle("vblora-on", numbers.includes(all[i])));
      told.textContent = fixed ? "in names only" : this.fields[name] === null
        ? `all ${all.length}` : ranges(numbers);
      told.title = fixed ? "Numbers go with target_modules as names." : "";
      const ends = [numbers[0], numbers.at(-1)];
      bounds.forEach((bound, i) => {
        if (bound !== document.activeElement && bound.valueAsNumber !== ends[i]) bound.value = ends[i];
      });
    });
    for (const bound of bounds) bound.addEventListener("blur", () => this.sync());
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

  buildResults(results) {
    results.setAttribute("role", "region");
    results.setAttribute("aria-label", "What the config would do");
    this.problems = make(results, "div", "vblora-problems");
    this.problems.setAttribute("aria-live", "polite");
    this.answer = make(results, "div", "vblora-answer");
    const sizes = this.section("Sizes");
    this.parameterBars = make(sizes, "div", "vblora-bars");
    this.byteBars = make(sizes, "div", "vblora-bars");
    // An axis has as many labels as there is room for, which is known once the page is laid out.
    let width = 0;
    this.ofWidth = new ResizeObserver(() => {
      if (this.byteBars.clientWidth === width) return; // bars that are drawn change the height
      width = this.byteBars.clientWidth;
      this.showSizes();
    });
    this.ofWidth.observe(this.byteBars);
    const cut = this.section("How A and B are cut");
    this.cutChoice = make(cut.head, "select", "vblora-select");
    this.cutChoice.setAttribute("aria-label", "Modules whose cut is drawn");
    this.cutChoice.addEventListener("change", () => this.showCut());
    this.stage = make(cut, "div", "vblora-cut");
    this.picture = make(this.stage, "div");
    this.cutNote = make(this.stage, "div", "vblora-note");
    const modules = this.section("What is adapted, and why not");
    this.legend = make(modules.head, "div", "vblora-legend");
    this.table = make(make(modules, "div", "vblora-module-list"), "table", "vblora-modules");
    const code = this.section("The config in Python");
    this.copied = make(code.head, "span", "vblora-count");
    this.copied.setAttribute("role", "status");
    button(code.head, "Copy", "vblora-small", () => this.copy());
    this.code = make(code, "pre", "vblora-code");
    this.code.tabIndex = 0;
    this.code.setAttribute("aria-label", "Python code of the config");
  }

  section(title) {
    const section = make(this.answer, "section", "vblora-section");
    section.head = make(section, "div", "vblora-section-head");
    make(section.head, "div", "vblora-section-title", title);
    return section;
  }

  show() {
    const view = this.model.get("view");
    const found = view.error ? [view.error] : view.problems;
    this.showVerdict(view, found);
    this.showProblems(found, view.error ? [] : view.cautions);
    for (const part of [this.answer, this.facts])
      part.classList.toggle("vblora-stale", Boolean(view.error));
    for (const [name, box] of Object.entries(this.boxes))
      box.classList.toggle("vblora-refused", found.some((problem) => problem.field === name));
    for (const tell of Object.values(this.countOf)) tell(view);
    this.showFacts(view.facts);
    this.showSizes();
    this.offerCuts(view.cuts);
    this.showCut();
    this.showRows(view.rows);
    this.sync(); // lengths that fit may have changed
  }

  showVerdict(view, found) {
    const modules = `${view.adapted.toLocaleString("en")} ${view.adapted === 1 ? "module" : "modules"}`;
    const text = view.error ? "✕ can't be meant" : view.fits ? `✓ fits · adapts ${modules}`
      : `✕ ${found.length === 1 ? "1 problem" : `${found.length} problems`}`;
    if (this.verdict.textContent !== text) this.verdict.textContent = text;
    this.verdict.classList.toggle("vblora-bad", found.length > 0);
  }

  showProblems(problems, cautions) {
    if (same(this.shownProblems, [problems, cautions])) return;
    this.shownProblems = [problems, cautions];
    this.problems.replaceChildren();
    for (const [items, word] of [[problems, "problem"], [cautions, "caution"]]) {
      for (const item of items) {
        const box = make(this.problems, "div", `vblora-item vblora-${word}`);
        make(box, "div", "", item.message);
        if (!item.label) continue;
        const use = button(box, "", "vblora-use", () => {
          this.change({ [item.field]: item.value });
          this.verdict.focus();
        });
        make(use, "span", "", "Use ");
        make(use, "code", "", item.label);
      }
    }
  }

  showFacts(facts) {
    if (!this.factParts) {
      this.factParts = facts.map(([name]) => {
        const box = make(this.facts, "div", "vblora-fact");
        make(box, "div", "vblora-fact-name", name);
        return [make(box, "div", "vblora-fact-number"), make(box, "div", "vblora-fact-note")];
      });
    }
    facts.forEach(([, number, note], i) => {
      this.factParts[i][0].textContent = number;
      this.factParts[i][1].textContent = note;
    });
  }

  showSizes() {
    const view = this.model.get("view");
    this.showBars(this.parameterBars, view.parameters, "parameters", 10, 100);
    this.showBars(this.byteBars, view.stored, "bytes", 2, 1024);
  }

  /** Bars on a log axis that stays as it is while sliders move: from `low` to the largest value. */
  showBars(parent, bars, unit, base, low) {
    const values = bars.map((bar) => bar.value).filter((value) => value > 0);
    const from = Math.log(Math.min(low, ...values));
    const to = Math.max(Math.log(Math.max(low * 10, ...values)), from + 1);
    const share = (value) => `${(100 * Math.max(0, Math.log(value) - from)) / (to - from)}%`;
    parent.replaceChildren();
    for (const bar of bars) {
      const line = make(parent, "div", `vblora-bar${bar.is_chosen ? " vblora-chosen-bar" : ""}`);
      make(line, "span", "vblora-bar-label", bar.label);
      const track = make(line, "span", "vblora-track");
      make(track, "i").style.width = bar.value > 0 ? share(bar.value) : "0";
      make(line, "span", "vblora-bar-text", bar.text);
    }
    const axis = make(parent, "div", "vblora-bar vblora-axis");
    axis.setAttribute("aria-hidden", "true");
    make(axis, "span", "vblora-bar-label", `${unit} (log)`);
    const track = make(axis, "span", "vblora-track");
    const label = base === 10 ? decimal : binary;
    const step = base === 10 ? 10 : 32;
    const marks = [];
    for (let mark = 1; Math.log(mark) <= to; mark *= step)
      if (Math.log(mark) >= from - 1e-9) marks.push(mark);
    const room = track.clientWidth ? Math.max(1, Math.floor(track.clientWidth / 58)) : 5;
    const every = Math.ceil(marks.length / room);
    marks.forEach((mark, i) => {
      if (i % every) return;
      const tick = make(track, "b", "", label(mark));
      tick.style.left = share(mark);
    });
    make(axis, "span", "vblora-bar-text", "");
  }

  // ---- the cut into tiles ---------------------------------------------------------------------

  offerCuts(cuts) {
    const names = cuts.map((cut) => cut.name);
    if (same(this.cutNames, names)) return;
    const before = ending(this.cutNames?.[this.cutChoice.selectedIndex] ?? "");
    this.cutNames = names;
    this.cutChoice.replaceChildren();
    for (const cut of cuts) make(this.cutChoice, "option", "", cut.name);
    this.cutChoice.selectedIndex = Math.max(0, names.findIndex((name) => ending(name) === before));
    this.cutChoice.hidden = names.length < 2;
  }

  showCut() {
    const view = this.model.get("view");
    const cut = view.cuts[this.cutChoice.selectedIndex];
    const width = this.stage.clientWidth;
    const key = JSON.stringify([cut, view.bank, width]);
    if (this.drawnCut === key || !width) return;
    this.drawnCut = key;
    this.picture.replaceChildren();
    if (!cut) {
      this.cutNote.textContent = "No module is adapted.";
      return;
    }
    const widened = drawCut(this.picture, cut, view.bank, width, this.id);
    const { r, num_vectors, vector_length, topk } = view.bank;
    const times = ([a, b]) => `${a} × ${b}`;
    const modules = cut.modules === 1 ? "1 module" : `${cut.modules} modules`;
    const tiles = cut.tiles_A
      ? `${cut.name} (${modules}): A is cut into ${times(cut.tiles_A)} tiles, B into ` +
        `${times(cut.tiles_B)}. Each of these ${cut.sub_vectors} tiles mixes ${topk} of ` +
        `${num_vectors.toLocaleString("en")} bank vectors.`
      : `${cut.name} (${modules}): tiles of ${vector_length} leave a rest, shown hatched.`;
    const scale = widened > 1.05
      ? `Lengths to scale; rank r = ${r} drawn ${widened.toFixed(widened < 10 ? 1 : 0)} times wider.`
      : "Drawn to scale.";
    this.cutNote.textContent = `${tiles} ${scale}`;
    this.picture.firstChild.setAttribute("aria-label", tiles);
  }

  // ---- modules --------------------------------------------------------------------------------

  showRows(rows) {
    if (same(this.shownRows, rows)) return;
    this.shownRows = rows;
    const layers = Math.max(0, ...rows.map((row) => row.marks.length));
    this.table.replaceChildren();
    const head = make(make(this.table, "thead"), "tr");
    for (const [title, className] of [["module", "vblora-module-name"], ["size", "vblora-module-size"],
      [layers > 1 ? `layer 0 to ${layers - 1}` : "", "vblora-module-layers"], ["what, and why", ""]]) {
      const cell = make(head, "th", className, title);
      cell.scope = "col";
    }
    const body = make(this.table, "tbody");
    for (const row of rows) {
      const line = make(body, "tr", row.marks.includes("A") ? "vblora-is-adapted" : "");
      const name = make(line, "th", "vblora-module-name", row.label.replace(/(^|\.)#$/, "$1[layer]"));
      name.scope = "row";
      name.style.setProperty("--vblora-depth", row.depth);
      name.title = row.name;
      make(line, "td", "vblora-module-size", row.sizes);
      const strip = make(make(line, "td", "vblora-module-layers"), "div", "vblora-strip");
      strip.setAttribute("aria-hidden", "true"); // the next cell says it in words
      strip.classList.toggle("vblora-lone", row.marks.length === 1);
      strip.classList.toggle("vblora-apart", layers <= 40);
      const cells = layers > 40 ? /(.)\1*/g : /./g; // too thin for edges of their own: runs
      for (const [run] of row.marks.matchAll(cells)) {
        const part = make(strip, "i", `vblora-mark-${MARKS[run[0]]?.[0] ?? "absent"}`);
        part.style.flexGrow = run.length;
      }
      make(line, "td", "vblora-module-note", row.note);
    }
    const used = new Set(rows.flatMap((row) => [...row.marks]));
    this.legend.replaceChildren();
    for (const [sign, [kind, meaning]] of Object.entries(MARKS)) {
      if (!used.has(sign)) continue;
      const key = make(this.legend, "span", "vblora-key");
      make(key, "i", `vblora-legend-mark vblora-mark-${kind}`);
      make(key, "span", "", meaning);
    }
  }

  // ---- code -----------------------------------------------------------------------------------

  showCode() {
    this.code.textContent = this.model.get("code");
    this.copied.textContent = "";
  }

  async copy() {
    const text = this.code.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // a page without https has no clipboard: select the text, which Ctrl+C copies
      getSelection().selectAllChildren(this.code);
      if (!document.execCommand("copy")) {
        this.copied.textContent = "selected: press Ctrl+C";
        return;
      }
    }
    this.copied.textContent = "✓ copied";
  }
}

/** 1000 -> "1 k", 1000000 -> "1 M". */
function decimal(value) {
  const power = Math.floor(Math.log10(value) / 3 + 1e-9);
  return `${Math.round(value / 1000 ** power)}${["", " k", " M", " G", " T"][power] ?? ""}`;
}

function binary(value) {
  const power = Math.floor(Math.log2(value) / 10 + 1e-9);
  return `${Math.round(value / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/**
 * W's update as B times A: A lies along its columns, B along its rows, both cut into tiles, and
 * the bank beside them. Lengths share one scale; returns how much wider than that r is drawn.
 */
function drawCut(stage, cut, { r, num_vectors, vector_length, topk }, width, id) {
  const [left, top, gap] = [64, 22, 46];
  const [wide, tall, length] = [cut.in, cut.out, vector_length];
  const least = Math.min(30, Math.max(10, 7 * r)); // of A and B, across: thinner is not seen
  const room = Math.min(width, 620) - left - gap - least - 36;
  // The edges of W are what is to be seen; a bank that is far longer than them is as it is.
  const scale = Math.min(room / (wide + length), 200 / tall);
  const thick = Math.max(scale * r, least);
  const [W, H, h] = [wide * scale, tall * scale, length * scale];
  const [x, y] = [left + thick + 6, top + thick + 6];
  const bankX = x + W + gap;
  const bankTall = Math.min(num_vectors * scale, Math.max(H, 60));
  const label = `bank: ${num_vectors.toLocaleString("en")} × ${length}`;
  const labelX = Math.max(bankX, Math.min(bankX + h / 2, width) - 4 * label.length);
  const labelWide = 7.2 * label.length;
  const wanted = Math.max(bankX + h, labelX + labelWide) + 4;
  const needed = Math.min(width, wanted);
  // Where there is no room to the right, the label ends at the edge, and below W if it reaches that.
  const labelY = y + (width - labelWide < x + W + 4 ? Math.max(H, bankTall) : bankTall) + 16;
  const svg = draw(stage, "svg", {
    role: "img", width: needed, height: Math.max(y + H, labelY + 4) + 4,
    class: "vblora-cut-picture",
  });
  const text = (at, down, words, anchor = "middle") =>
    draw(svg, "text", { x: at, y: down, "text-anchor": anchor }, words);

  draw(svg, "rect", { x, y, width: W, height: H, class: "vblora-update" });
  const fits = Math.min(W, H) > 34;
  if (fits) text(x + W / 2, y + H / 2 + 4, W > 130 ? `update B · A, ${tall} × ${wide}` : "B · A");
  strip(svg, `${id}-A`, { x, y: top, along: W, across: thick, step: h, lanes: r, upright: false });
  strip(svg, `${id}-B`, { x: left, y, along: H, across: thick, step: h, lanes: r, upright: true });
  text(x + W / 2, top - 7, `A: ${r} × ${wide}`);
  text(left - 8, y + H / 2 + 4, "B:", "end");
  text(left - 8, y + H / 2 + 18, `${tall} × ${r}`, "end");

  // The bank: as wide as its vectors are long. Taller than there is room, it is cut off below.
  draw(svg, "rect", { x: bankX, y, width: h, height: bankTall, class: "vblora-bank" });
  if (wanted > width) text(width - 2, labelY, label, "end");
  else text(labelX, labelY, label, "start");
  if (cut.tiles_A) {
    const lane = thick / r;
    const tile = { x: x + W - h, y: top, width: h, height: Math.max(lane, 1.5) };
    draw(svg, "rect", { ...tile, class: "vblora-example" });
    const shown = Math.min(topk, 8);
    for (let i = 0; i < shown; i++) {
      const at = y + (bankTall * (i + 0.5)) / shown;
      draw(svg, "path", {
        d: `M ${bankX} ${at} C ${bankX - gap * 0.7} ${at}, ${bankX - 8} ${top + lane / 2}, ${x + W} ${top + lane / 2}`,
        class: "vblora-link",
      });
      draw(svg, "rect", { x: bankX, y: at - 1.5, width: h, height: 3, class: "vblora-example" });
    }
  }
  return thick / (scale * r);
}

/** A or B: `lanes` rows of tiles, each `step` long; what is left at the end is hatched. */
function strip(svg, id, { x, y, along, across, step, lanes, upright }) {
  const whole = Math.floor(along / step + 1e-6) * step;
  const box = (start, size) => (upright
    ? { x, y: y + start, width: across, height: size } : { x: x + start, y, width: size, height: across });
  const lane = across / lanes;
  const [w, h] = upright ? [lane, step] : [step, lane];
  if (whole > 0) {
    const pattern = draw(draw(svg, "defs"), "pattern", {
      id, x, y, width: w, height: h, patternUnits: "userSpaceOnUse",
    });
    draw(pattern, "rect", { width: w, height: h, class: "vblora-tile-fill" });
    // Edges thinner than the tiles: tiles of a pixel are a tint.
    const edge = Math.min(1.2, Math.min(w, h) / 3);
    draw(pattern, "path", { d: `M ${w} 0 V ${h} H 0`, class: "vblora-tile-edge", "stroke-width": edge });
    draw(svg, "rect", { ...box(0, whole), fill: `url(#${id})`, class: "vblora-strip-of-tiles" });
  }
  if (along - whole > 0.01 * step) {
    const rest = box(whole, along - whole);
    const hatch = draw(draw(svg, "defs"), "pattern", {
      id: `${id}-rest`, width: 6, height: 6, patternUnits: "userSpaceOnUse",
      patternTransform: "rotate(45)",
    });
    draw(hatch, "rect", { width: 2, height: 6, class: "vblora-rest-line" });
    draw(svg, "rect", { ...rest, fill: `url(#${id}-rest)`, class: "vblora-rest" });
  }
}

export default {
  render({ model, el }) {
    const explorer = new Explorer(model, el);
    return () => explorer.leave();
  },
};
