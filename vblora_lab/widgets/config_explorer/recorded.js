// The explorer without a kernel: what `plan` said was recorded, and is looked up here.

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

/** The traits of an explorer, answered from a recording instead of by a kernel. */
class RecordedPlans extends StoredModel {
  constructor(recording, fields) {
    super({ catalogue: recording.catalogue, fields }, {});
    this.recording = recording;
    this.set("fields", fields);
  }

  has(name, value) { return this.recording.values[name].some((recorded) => same(recorded, value)); }

  answer(name, fields) {
    if (name !== "fields") return {};
    const { values, pieces } = this.recording;
    const at = Object.entries(values).map(([field, all]) =>
      all.findIndex((value) => same(value, fields[field])));
    const shown = {};
    for (const { path, size, which, texts } of pieces) {
      // Fields that change nothing have size 1 here.
      const place = size.reduce((sum, count, axis) => sum * count + (count > 1 ? at[axis] : 0), 0);
      if (which[place] >= 0) put(shown, path, texts[which[place]]);
    }
    if (shown.view.error) return { view: { ...this.state.view, ...shown.view } };
    return { view: this.offered(shown.view), code: `${shown.code.join("\n")}\n` };
  }

  /** The view, without offers of values that weren't recorded. */
  offered(view) {
    const kept = (item) => (item.label && !(item.field in this.recording.values && this.has(item.field, item.value))
      ? { ...item, label: "" } : item);
    return { ...view, problems: view.problems.map(kept), cautions: view.cautions.map(kept) };
  }
}

/** Set the value at a path of names and numbers, making the objects and lists on the way. */
function put(holder, path, value) {
  path.forEach((key, i) => {
    if (i === path.length - 1) holder[key] = value;
    else holder = holder[key] ??= typeof path[i + 1] === "number" ? [] : {};
  });
}

/** An explorer whose controls step through what was recorded. */
class RecordedExplorer extends Explorer {
  buildPresets() {
    const { names, name, choose, recording } = this.model;
    const bar = make(this.root, "div", "vblora-presets");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Base models");
    for (const other of names) {
      const chip = button(bar, other, "vblora-chip", () => choose(other, this.fields));
      chip.setAttribute("aria-pressed", String(other === name));
    }
    make(this.root, "div", "vblora-preset-note", recording.about);
  }

  buildForm(form) {
    form.setAttribute("role", "form");
    form.setAttribute("aria-label", "Fields of the config");
    const { values, targets } = this.model.recording;
    const count = Object.values(values).reduce((all, of) => all * of.length, 1);
    make(form, "div", "vblora-recorded", "Recorded: the controls step through " +
      `${count.toLocaleString("en")} configs for which plan() was asked before. In a notebook, ConfigExplorer has a ` +
      "control for every field, takes any value, and explores your own model.");
    let group = this.group(form, "Bank and rank");
    for (const name of ["r", "num_vectors", "vector_length", "topk"]) {
      if (!values[name]) continue;
      const marks = () => (name === "vector_length"
        ? values[name].filter((n) => this.model.get("view").lengths.includes(n)) : []);
      this.slider(group, name, { low: values[name][0], high: values[name].at(-1), marks,
        stops: () => values[name], typed: false });
    }
    if (values.target_modules) {
      group = this.group(form, "Modules");
      const box = this.field(group, "target_modules");
      const all = values.target_modules;
      const named = (value) => Object.keys(targets).find((name) => same(targets[name], value)) ??
        [value].flat().join(", ");
      this.segments(box, "target_modules", all.map(named),
        () => named(this.fields.target_modules),
        (name) => this.change({ target_modules: all.find((value) => named(value) === name) }));
    }
    if (values.save_only_topk_weights) this.toggle(this.group(form, "Storage"), "save_only_topk_weights");
  }
}

function render({ model, el }) {
  const recordings = model.get("recordings");
  const names = Object.keys(recordings);
  let explorer = null;
  const choose = async (name, before) => {
    const recording = await unpacked(recordings[name]);
    const plans = new RecordedPlans(recording, recording.fields);
    const kept = Object.entries(before).filter(([field, value]) =>
      field in recording.values && plans.has(field, value));
    plans.set("fields", { ...recording.fields, ...Object.fromEntries(kept) });
    const byHand = el.contains(document.activeElement);
    explorer?.leave();
    el.replaceChildren();
    explorer = new RecordedExplorer(Object.assign(plans, { names, name, choose }), el);
    if (byHand) el.querySelector('.vblora-presets [aria-pressed="true"]').focus();
  };
  return choose(names[0], {});
}
