// ---- the map's legend, and what there is to notice ---------------------------------------------------

class Legend {
  constructor(box) {
    this.box = box;
    this.weight = this.scale("weight", ["0", "0.25", "0.5", "0.75", "1"]);
    this.chance = this.key("vblora-ramp vblora-chance", "by chance");
    this.excess = this.scale("standard deviations above", ["", "", ""]);
    this.isNew = this.key("vblora-new", "not at the start", "▲");
    this.times = TIMES.map((text) => this.key("vblora-swatch", text));
    this.none = this.key("vblora-blank", "not chosen");
    this.start = [this.key("vblora-gone", "at the start only"), this.key("vblora-new", "kept since the start", "●")];
    this.base = make(box, "span", "vblora-key");
  }

  key(mark, text, sign = "") {
    const key = make(this.box, "span", "vblora-key");
    make(key, "span", mark, sign);
    make(key, "span", "", text);
    return key;
  }

  /** A colour scale with numbers below it. */
  scale(text, numbers) {
    const key = make(this.box, "span", "vblora-key");
    make(key, "span", "", text); // before the scale: its numbers lie below
    const scale = make(key, "span", `vblora-scale vblora-scale-${numbers.length}`);
    make(scale, "span", "vblora-ramp");
    const values = make(scale, "span", "vblora-ramp-values");
    for (const value of numbers) make(values, "span", "", value);
    return key;
  }

  /** Show what the map needs now. */
  draw({ grouped, footprint, marksStart, colours, model, data, modules }) {
    const stops = colours.dark ? DARK_RAMP : RAMP;
    for (const bar of this.box.querySelectorAll(".vblora-scale .vblora-ramp"))
      bar.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
    this.weight.hidden = footprint || grouped;
    this.none.hidden = grouped;
    this.chance.hidden = this.excess.hidden = !grouped;
    const limit = model.get("stands_out"); // colour begins there, and is the same from three times that
    this.excess.querySelectorAll(".vblora-ramp-values span").forEach((value, i) => {
      value.textContent = `${(i + 1) * limit}${i === 2 ? "+" : ""}`;
    });
    this.isNew.hidden = !(grouped && data.ready && modules.changed);
    for (const key of this.start) key.hidden = !marksStart;
    this.times.forEach((key, i) => {
      key.hidden = !footprint;
      key.firstChild.style.background = (colours.dark ? DARK_FOOTPRINT : FOOTPRINT)[i];
    });
    const base = model.get("base");
    this.base.textContent = base && `base model ${base}`;
  }
}

/** The lines above the map that say what to notice. */
class Notice {
  constructor(stage) {
    this.box = document.createElement("div");
    this.box.className = "vblora-notice";
    stage.before(this.box);
  }

  draw({ data, modules, opened, model }) {
    const [headline, details] = !data.ready ? ["", ""]
      : opened >= 0 ? modules.sentenceOfOpened(opened) : model.get("captions")[data.frame] ?? ["", ""];
    const told = `${headline} ${details}`;
    this.box.hidden = headline === "";
    if (this.told === told) return; // text that is read isn't made anew at every move
    this.told = told;
    this.box.replaceChildren();
    make(this.box, "b", "", headline);
    this.box.append(` ${details}`);
  }
}
