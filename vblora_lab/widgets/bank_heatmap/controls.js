// ---- controls -----------------------------------------------------------------------------------

let controls = 0; // so that each label has a control of its own

function labelled(parent, text, tag, type = "") {
  const field = make(parent, "span", "vblora-map-field");
  const label = make(field, "label", "", text);
  const control = make(field, tag);
  if (type) control.type = type;
  control.id = `${PREFIX}-${controls++}`;
  label.htmlFor = control.id;
  return { field, control };
}

function fillSelect(select, options) {
  const before = select.value;
  select.replaceChildren();
  for (const [value, text] of Object.entries(options)) make(select, "option", "", text).value = value;
  if (before in options) select.value = before;
}

function button(parent, text, act) {
  const made = make(parent, "button", "vblora-button", text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

class Toolbar {
  constructor(root, model, data, map, table) {
    Object.assign(this, { model, data, map });
    this.box = make(root, "div", "vblora-toolbar");
    this.back = button(this.box, "‹ All modules", () => map.open(-1));
    this.selects = { view: ["show", VIEWS], rows_by: ["rows by", ROWS_BY], columns_by: ["columns by", COLUMNS_BY] };
    for (const [trait, [text, options]] of Object.entries(this.selects)) {
      const { field, control } = labelled(this.box, text, "select");
      fillSelect(control, options);
      control.addEventListener("change", () => {
        // Modules lie together in their own orders only.
        if (control.value === "modules" && !map.modules.possible) choose(model, "rows_by", MODULE_ORDERS[0]);
        choose(model, trait, control.value);
      });
      this.selects[trait] = { field, control };
    }
    this.all = button(this.box, "All rows", () => map.look(null));
    map.onLook = (window) => { this.all.hidden = window === null; };
    this.all.hidden = true;
    this.tableButton = button(this.box, "Table", () => {
      table.toggle();
      this.tableButton.setAttribute("aria-expanded", String(table.open));
    });
    this.tableButton.setAttribute("aria-expanded", "false");
  }

  draw() {
    this.back.hidden = !this.data.ready || this.map.opened < 0;
    const { view } = this.selects;
    const views = Object.entries(VIEWS).filter(([name]) => name !== "footprint" || this.data.frames > 1);
    fillSelect(view.control, Object.fromEntries(views));
    for (const [trait, { control }] of Object.entries(this.selects)) control.value = this.model.get(trait);
    if (view.control.value === "modules" && !this.map.modules.possible) view.control.value = "weights";
    this.box.hidden = !this.data.ready;
    this.map.root.classList.toggle("vblora-compact", this.model.get("compact"));
  }
}

/** A slider over the steps of a trace, below a curve of how much the selection changes. */
class Scrubber {
  constructor(root, model, data) {
    Object.assign(this, { model, data, timer: null });
    this.box = make(root, "div", "vblora-scrubber");
    this.play = button(this.box, "▶ Play", () => (this.timer ? this.stop() : this.start()));
    const middle = make(this.box, "div", "vblora-map-track");
    this.curve = make(middle, "div", "vblora-curve");
    this.slider = make(middle, "input");
    this.slider.type = "range";
    this.slider.min = "0";
    this.slider.setAttribute("aria-label", "training step");
    this.slider.addEventListener("input", () => {
      this.stop();
      choose(model, "frame", Number(this.slider.value));
    });
    this.text = make(this.box, "div", "vblora-scrub-text");
  }

  start() {
    const last = this.data.frames - 1;
    if (this.data.frame >= last) choose(this.model, "frame", 0);
    this.timer = setInterval(() => {
      const next = this.data.frame + 1;
      if (next >= last) this.stop();
      choose(this.model, "frame", Math.min(next, last));
    }, Math.max(40, 6000 / this.data.frames)); // a whole trace in six seconds or so
    this.play.textContent = "❚❚ Pause";
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "▶ Play";
  }

  draw() {
    const { data } = this;
    this.box.hidden = !data.ready || data.frames < 2 || this.model.get("steered");
    if (this.box.hidden) return this.stop();
    const { frame, steps } = data;
    this.slider.max = String(data.frames - 1);
    this.slider.value = String(frame);
    this.slider.setAttribute("aria-valuetext", `step ${steps[frame]}`);
    const recorded = this.model.get("recorded");
    const part = recorded > data.frames ? ` (${data.frames} of ${recorded} recorded steps)` : "";
    const [latest, since] = data.churn;
    this.text.replaceChildren();
    make(this.text, "b", "", `step ${steps[frame]}`);
    make(this.text, "span", "", ` of ${steps.at(-1)}${part}`);
    make(this.text, "div", "", frame === 0 ? "the start" :
      `${percent(latest)} of the sets changed since step ${steps[frame - 1]}, ${percent(since)} since step ${steps[0]}`);
    this.drawCurve();
  }

  drawCurve() {
    const { data } = this;
    const plot = new Plot(this.curve, 46, { left: 8, right: 8, top: 15, bottom: 2 },
      "share of sub-vectors with another set than at the step before");
    const churn = data.stacks.churn;
    const latest = Array.from({ length: data.frames }, (_, i) => churn[2 * i]);
    const most = Math.max(...latest, 0.01);
    plot.scale([0, data.frames - 1], [0, most]);
    plot.area(latest.map((y, x) => [x, y]), "vblora-area");
    plot.line([[data.frame, 0], [data.frame, most]], "vblora-now");
    plot.text(plot.left, 11, `churn a step, up to ${percent(most)}`, "start");
  }
}
