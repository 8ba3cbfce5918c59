/** What a config comes to: verdict, sizes, cuts, modules, code. */
class Results extends Names {
  buildResults(results) {
    results.setAttribute("role", "region");
    results.setAttribute("aria-label", "What the config would do");
    this.problems = make(results, "div", "vblora-problems");
    this.problems.setAttribute("aria-live", "polite");
    this.answer = make(results, "div", "vblora-answer");
    const sizes = this.section("Sizes");
    this.scale = "linear";
    sizes.head.setAttribute("role", "group");
    sizes.head.setAttribute("aria-label", "Scale of the sizes");
    this.segments(sizes.head, "scale", ["linear", "log"], () => this.scale, (scale) => {
      this.scale = scale;
      this.showSizes();
    });
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
    const show = this.scale === "log" ? this.showDots : this.showBars;
    show.call(this, this.parameterBars, view.parameters, "parameters", decimal, 10);
    show.call(this, this.byteBars, view.stored, "bytes", binary, 2);
  }

  /** Bars whose lengths compare the adapters; the base model, which comes last, runs off the axis. */
  showBars(parent, bars, unit, label, base) {
    const most = Math.max(...bars.slice(0, -1).map((bar) => bar.value), 1);
    const end = 1.02 * most;
    const share = (value) => `${Math.min(100, (100 * value) / end)}%`;
    parent.replaceChildren();
    for (const bar of bars) {
      const mark = make(this.barLine(parent, bar), "i", bar.value > end ? "vblora-beyond" : "");
      mark.style.width = share(bar.value);
    }
    const powers = base === 10 ? (v) => 10 ** Math.floor(Math.log10(v)) : (v) => 2 ** Math.floor(Math.log2(v));
    const step = powers(most / 2);
    const marks = Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
    this.showAxis(parent, unit, marks, share, label);
  }

  /** Dots on a log axis, where a length would mean nothing. The axis stays while sliders move. */
  showDots(parent, bars, unit, label, base) {
    const low = base === 10 ? 100 : 1024;
    const values = bars.map((bar) => bar.value).filter((value) => value > 0);
    const from = Math.log(Math.min(low, ...values));
    const to = Math.max(Math.log(Math.max(low * 10, ...values)), from + 1);
    const share = (value) => `${(100 * Math.max(0, Math.log(value) - from)) / (to - from)}%`;
    parent.replaceChildren();
    for (const bar of bars) {
      const track = this.barLine(parent, bar);
      track.classList.add("vblora-dotted");
      if (bar.value > 0) make(track, "s").style.left = share(bar.value);
    }
    const step = base === 10 ? 10 : 32;
    const marks = [];
    for (let mark = 1; Math.log(mark) <= to; mark *= step)
      if (Math.log(mark) >= from - 1e-9) marks.push(mark);
    this.showAxis(parent, `${unit}, × ${step} a tick`, marks, share, label);
  }

  barLine(parent, bar) {
    const line = make(parent, "div", `vblora-bar${bar.is_chosen ? " vblora-chosen-bar" : ""}`);
    make(line, "span", "vblora-bar-label", bar.label);
    const track = make(line, "span", "vblora-track");
    make(line, "span", "vblora-bar-text", bar.text);
    return track;
  }

  showAxis(parent, unit, marks, share, label) {
    const axis = make(parent, "div", "vblora-bar vblora-axis");
    axis.setAttribute("aria-hidden", "true");
    make(axis, "span", "vblora-bar-label", unit);
    const track = make(axis, "span", "vblora-track");
    const room = track.clientWidth ? Math.max(1, Math.floor(track.clientWidth / 58)) : 5;
    const every = Math.ceil(marks.length / room);
    marks.forEach((mark, i) => {
      if (i % every) return;
      const tick = make(track, "b", "", mark ? label(mark) : "0");
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
      const size = make(line, "td", "vblora-module-size");
      for (const part of row.sizes.split(/(?<=[a-z])(?=[A-Z])/)) {
        if (size.firstChild) make(size, "wbr"); // a long name of a class breaks between its words
        size.append(part);
      }
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
