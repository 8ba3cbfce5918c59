// Pick a user and a prompt: what that user's adapter writes beside the base model and another user, with
// the marks of both users' styles. All texts of a prompt come with the widget; a new prompt asks the kernel.

const BASE = "__base__";
let fields = 0; // so that each label has a control of its own

class WhoseTextView {
  constructor(model, el) {
    this.model = model;
    this.root = make(el, "div", "vblora-chart vblora-whose");
    keepKeys(this.root);
    this.title = make(this.root, "div", "vblora-chart-title");
    this.words = make(this.root, "div", "vblora-whose-words");
    this.words.setAttribute("role", "status");
    const grid = make(this.root, "div", "vblora-whose-grid");
    const panel = () => make(grid, "section", "vblora-whose-panel");
    this.bytes = new BytesView(panel(), this);
    this.shares = new SharesView(panel(), this);
    this.buildPrompt(make(this.root, "form", "vblora-whose-prompt"));
    const cards = make(this.root, "div", "vblora-whose-cards");
    this.cards = ["mine", "base", "other"].map((kind) => this.card(cards, kind));
    this.listen();
    this.drawNow();
  }

  get users() { return this.model.get("users"); }
  get stored() { return this.model.get("stored"); }
  get user() { return this.model.get("user"); }
  get other() { return this.model.get("other"); }
  written(name) { return this.model.get("texts")[this.model.get("prompt")][name]; }

  lookOf(method) {
    const more = Object.keys(this.stored).filter((name) => !(name in LOOKS)).indexOf(method);
    return LOOKS[method] ?? OTHERS[more % OTHERS.length];
  }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  /** Show this user. The one that it is compared with is another. */
  pick(user) {
    const last = this.users.length - 1;
    const picked = Math.min(Math.max(user, 0), last);
    if (picked === this.other) this.set("other", this.user === picked ? (picked + 1) % (last + 1) : this.user);
    this.set("user", picked);
  }

  key(event) {
    const to = pointByKey(event.key, this.user, this.users.length - 1);
    if (to === undefined || to < 0) return;
    event.preventDefault();
    this.pick(to);
  }

  // ---- controls -------------------------------------------------------------------------------

  buildPrompt(form) {
    this.facts = this.field(form, "facts", "select");
    this.facts.addEventListener("change", () => this.set("prompt", this.facts.value));
    this.input = this.field(form, "or your own", "input");
    this.own = this.input.parentElement;
    Object.assign(this.input, { type: "text", placeholder: "name[Blue Spice], food[Thai], area[riverside]", spellcheck: false });
    this.go = make(form, "button", "vblora-whose-button", "Write");
    this.problem = make(form, "span", "vblora-whose-problem");
    this.problem.setAttribute("role", "status");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.input.value.trim()) this.model.send({ write: this.input.value });
    });
  }

  field(parent, text, tag) {
    const field = make(parent, "div", "vblora-whose-field");
    const label = make(field, "label", "", text);
    const control = make(field, tag);
    label.htmlFor = control.id = `${PREFIX}-${fields++}`;
    return control;
  }

  card(parent, kind) {
    const box = make(parent, "section", `vblora-whose-card vblora-whose-of-${kind}`);
    const head = make(box, "div", "vblora-whose-card-head");
    const name = make(head, "b");
    const select = kind === "other" ? make(head, "select") : null;
    if (select) {
      select.setAttribute("aria-label", "another user");
      select.addEventListener("change", () => this.set("other", Number(select.value)));
    }
    return { kind, name, select, text: make(box, "p"), note: make(box, "div", "vblora-whose-note") };
  }

  listen() {
    this.draw = oncePerFrame(() => this.drawNow());
    const watched = ["users", "stored", "texts", "state", "answers", "user", "other", "prompt"];
    for (const name of watched) this.model.on(`change:${name}`, this.draw);
    const stop = onAppearance(this.root, this.draw);
    this.leave = () => {
      stop();
      for (const name of watched) this.model.off(`change:${name}`, this.draw);
    };
  }

  // ---- what is drawn --------------------------------------------------------------------------

  drawNow() {
    if (this.root.clientWidth === 0) return;
    const { busy, error } = this.model.get("state");
    this.title.textContent = `One base model, ${this.users.length} users: what do they store, and whose text is this?`;
    this.drawWords();
    this.bytes.draw();
    this.shares.draw();
    this.drawFacts();
    this.own.hidden = this.go.hidden = !this.model.get("answers");
    this.go.disabled = busy;
    this.problem.textContent = busy ? "writing…" : error ? `✕ ${error}` : "";
    this.problem.classList.toggle("vblora-whose-wrong", Boolean(error));
    for (const card of this.cards) this.drawCard(card);
  }

  /** What is stored so far, with a key for each method. */
  drawWords() {
    const count = this.user + 1;
    this.words.replaceChildren();
    make(this.words, "span", "", count === 1 ? `With ${this.users[0].name} alone: ` : `With the first ${count} users, up to ${this.users[this.user].name}: `);
    for (const [method, sizes] of Object.entries(this.stored)) {
      const part = make(this.words, "span", "vblora-key");
      const [name, dashes] = this.lookOf(method);
      const key = shape(part, "svg", "", { width: 26, height: 10, "aria-hidden": "true" });
      shape(key, "line", `vblora-whose-line vblora-whose-${name}`, { x1: 1, y1: 5, x2: 25, y2: 5, "stroke-dasharray": dashes });
      make(part, "span", "", `${method}: `);
      make(part, "b", "", readable(sizes[this.user]));
    }
  }

  drawFacts() {
    const all = Object.keys(this.model.get("texts"));
    if (all.join("\n") !== this.offered) {
      this.offered = all.join("\n");
      this.facts.replaceChildren();
      for (const prompt of all) make(this.facts, "option", "", prompt).value = prompt;
    }
    this.facts.value = this.model.get("prompt");
  }

  drawCard({ kind, name, select, text, note }) {
    const who = { mine: this.users[this.user].name, other: this.users[this.other].name, base: BASE }[kind];
    name.textContent = { mine: `${who}'s adapter`, base: "the base model", other: select ? "another user's: " : "" }[kind];
    if (select) {
      select.replaceChildren();
      this.users.forEach((each, i) => { if (i !== this.user) make(select, "option", "", each.name).value = String(i); });
      select.value = String(this.other);
    }
    const found = this.written(who);
    text.replaceChildren();
    for (const [piece, of] of this.marked(found.text)) {
      if (of) make(text, "mark", `vblora-whose-mark-${of}`, piece);
      else text.append(piece);
    }
    if (found.text === "") make(text, "em", "", "(nothing)");
    const share = (user) => `${Math.round(100 * found.shares[user])} % of ${this.users[user].name}'s style`;
    note.textContent = `${share(this.user)}, ${share(this.other)}`;
  }

  /** The text in pieces, those that are marks of one of the two styles by whose they are. */
  marked(text) {
    const owners = new Map();
    for (const [of, user] of [["other", this.other], ["mine", this.user]])
      for (const mark of this.users[user].marks) owners.set(mark, of);
    const marks = [...owners.keys()].sort((a, b) => b.length - a.length);
    const escaped = marks.map((mark) => mark.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    return text.split(new RegExp(`(${escaped.join("|")})`)).filter(Boolean).map((piece) => [piece, owners.get(piece)]);
  }
}

function render({ model, el }) {
  const view = new WhoseTextView(model, el);
  return () => view.leave();
}

export default { render };
