/** Controls of fields that name modules or layers. */
class Names extends Fields {
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
    const note = make(box.head, "span", "vblora-count");
    if (!all.length) { note.textContent = "this model has no numbered layers"; return; }
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
      note.textContent = fixed ? "in names only" : this.fields[name] === null
        ? `all ${all.length}` : ranges(numbers);
      note.title = fixed ? "Numbers go with target_modules as names." : "";
      const ends = [numbers[0], numbers.at(-1)];
      bounds.forEach((bound, i) => {
        if (bound !== document.activeElement && bound.valueAsNumber !== ends[i]) bound.value = ends[i];
      });
    });
    for (const bound of bounds) bound.addEventListener("blur", () => this.sync());
  }
}
