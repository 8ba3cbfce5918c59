/** The whole explorer: its head, the form, and what follows from it. */
class Explorer extends Results {
  constructor(model, el) {
    super();
    this.model = model;
    this.id = `${PREFIX}-${++views}`;
    this.catalogue = model.get("catalogue");
    this.fields = { ...model.get("fields") };
    this.controls = []; // functions that bring a control in line with the fields
    this.boxes = {}; // by field: the element that is marked when a problem is about it
    this.countOf = {}; // by field: a function of the view that says how many modules it matches
    this.remembered = {}; // what a field was before another kind of value was chosen for it
    this.send = oncePerFrame(() => {
      model.set("fields", { ...this.fields });
      model.save_changes();
    });
    this.root = make(el, "div", "vblora-panel vblora-explorer");
    keepKeys(this.root);
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Tab") this.root.classList.add("vblora-by-keys");
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
    this.buildPresets();
  }

  buildPresets() {
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
}
