// What adapters for many users take to store: lines by method against the number of users, where they
// cross, and bytes for one number of users. All sizes come with the widget; here they are multiplied.

const MOST_USERS = 6; // as a power of ten
const LOOKS = { // colour and dashes by method, so that lines are told apart without colour too
  "LoRA": ["lora", ""], "LoRA of rank 1": ["one", "7 4"], "VeRA": ["vera", "2 3"],
  "VB-LoRA, a bank each": ["alone", "9 3 2 3"], "VB-LoRA, one bank for all": ["shared", ""],
};
const OURS = "VB-LoRA, one bank for all";

const total = (cost, users) => cost.once + users * cost.each;

const inWords = (count) =>
  count >= 1e9 ? `${(count / 1e9).toFixed(1)} billion` : `${(count / 1e6).toFixed(0)} million`;

/** A whole number of two digits and zeros: users for a place of the slider. */
function usersAt(place) {
  const value = 10 ** place;
  const unit = 10 ** Math.max(0, Math.floor(place + 1e-9) - 1);
  return Math.round(value / unit) * unit;
}

/** From how many users on `cost` takes no more than `other`; Infinity for never. */
function breakEven(cost, other) {
  const saved = other.each - cost.each;
  if (saved <= 0) return other.once < cost.once || saved < 0 ? Infinity : 1;
  return Math.max(1, Math.ceil((cost.once - other.once) / saved));
}

class ManyUsersView {
  constructor(model, el) {
    this.model = model;
    this.root = make(el, "div", "vblora-chart vblora-users");
    keepKeys(this.root);
    make(this.root, "div", "vblora-chart-title", "One base model, an adapter for each of its users: what has to be stored?");
    const bar = make(this.root, "div", "vblora-users-controls");
    const names = () => model.get("offers").map((offer) => offer.model);
    const ranks = () => Object.keys(this.offer().costs).map(Number);
    this.sliders = [
      this.slider(bar, "base model", names, (i) => ["model", names()[i]], () => names().indexOf(model.get("model")),
        () => `${this.offer().model}: ${inWords(this.offer().parameters)} numbers`),
      this.slider(bar, "rank", ranks, (i) => ["rank", ranks()[i]], () => ranks().indexOf(model.get("rank")), () => String(model.get("rank"))),
      this.slider(bar, "users", () => Array(10 * MOST_USERS + 1), (i) => ["users", usersAt(i / 10)],
        () => Math.round(10 * Math.log10(model.get("users"))), () => model.get("users").toLocaleString("en")),
    ];
    this.words = make(this.root, "div", "vblora-users-words");
    this.words.setAttribute("role", "status");
    const grid = make(this.root, "div", "vblora-users-grid");
    this.chart = make(grid, "div");
    this.bars = make(grid, "div", "vblora-users-bars");
    this.chart.addEventListener("click", (event) => this.clicked(event));
    this.draw = oncePerFrame(() => this.drawNow());
    const watched = ["offers", "model", "rank", "users"];
    for (const name of watched) model.on(`change:${name}`, this.draw);
    const stop = onAppearance(this.root, this.draw);
    this.leave = () => {
      stop();
      for (const name of watched) model.off(`change:${name}`, this.draw);
    };
    this.drawNow();
  }

  offer() { return this.model.get("offers").find((offer) => offer.model === this.model.get("model")); }

  costs() {
    const rank = this.model.get("rank");
    return this.offer().costs[rank].filter((cost) => rank > 1 || cost.method !== "LoRA of rank 1"); // the same then
  }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  slider(bar, name, values, change, place, text) {
    const field = make(bar, "label", "vblora-users-field");
    const head = make(field, "span", "vblora-users-head");
    make(head, "span", "", name);
    const shown = make(head, "b");
    const input = make(field, "input");
    Object.assign(input, { type: "range", min: 0, max: values().length - 1, step: 1 });
    input.setAttribute("aria-label", name);
    input.addEventListener("input", () => this.set(...change(Number(input.value))));
    return () => {
      input.value = String(place());
      shown.textContent = text();
      input.setAttribute("aria-valuetext", text());
    };
  }

  // ---- what is said ---------------------------------------------------------------------------

  sentence() {
    const users = this.model.get("users");
    const costs = this.costs();
    const ours = costs.find((cost) => cost.method === OURS);
    const lora = costs.find((cost) => cost.method === "LoRA");
    const others = costs.filter((cost) => !cost.method.startsWith("VB-LoRA"));
    const least = costs.reduce((a, b) => (total(b, users) < total(a, users) ? b : a));
    const ratio = total(lora, users) / total(ours, users);
    const compared = ratio >= 1 ? `1/${ratio.toFixed(ratio < 10 ? 1 : 0)} of LoRA's` : `${(1 / ratio).toFixed(1)} times LoRA's`;
    const start = `For ${this.usersText(users)}, VB-LoRA on one bank takes ${readable(total(ours, users))}, ${compared} ` +
      `${readable(total(lora, users))}. `;
    const from = Math.max(...others.map((other) => breakEven(ours, other)));
    if (from === Infinity) {
      const below = others.filter((other) => breakEven(ours, other) === Infinity).map((other) => other.method);
      return `${start}At this rank ${below.join(" and ")} ${below.length > 1 ? "take" : "takes"} less, however many the users: use that, or a lower rank.`;
    }
    if (users < from) return `${start}${least.method} takes the least: the bank pays from ${this.usersText(from)} on.`;
    return from <= 1 ? `${start}It takes the least for any number of users.`
      : `${start}It takes the least from ${this.usersText(from)} on.`;
  }

  usersText(count) { return `${count.toLocaleString("en")} ${count === 1 ? "user" : "users"}`; }

  // ---- what is drawn --------------------------------------------------------------------------

  drawNow() {
    if (this.root.clientWidth === 0) return;
    for (const follow of this.sliders) follow();
    this.words.textContent = this.sentence();
    this.drawLines();
    this.drawBars();
  }

  drawLines() {
    const costs = this.costs();
    const { svg, width } = canvasIn(this.chart, 300);
    const [left, right, top, bottom] = [62, width - 14, 20, 262];
    const low = Math.log2(Math.min(...costs.map((cost) => total(cost, 1)))) - 1;
    const high = Math.log2(Math.max(...costs.map((cost) => total(cost, 10 ** MOST_USERS)))) + 1;
    const y = (bytes) => bottom - ((Math.log2(bytes) - low) / (high - low)) * (bottom - top);
    this.x = (users) => left + (Math.log10(users) / MOST_USERS) * (right - left);
    this.usersOf = (px) => usersAt(Math.min(Math.max(((px - left) / (right - left)) * MOST_USERS, 0), MOST_USERS));
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `bytes by method against the number of users. ${this.sentence()}`);
    for (let power = Math.ceil(low / 5) * 5; power <= high; power += 5) {
      line(svg, "vblora-svg-grid", left, y(2 ** power), right, y(2 ** power));
      label(svg, left - 6, y(2 ** power) + 4, readable(2 ** power).replace(".0", ""), "end", "vblora-svg-faint");
    }
    for (let power = 0; power <= MOST_USERS; power++) {
      const at = this.x(10 ** power);
      line(svg, "vblora-svg-grid", at, top, at, bottom);
      if (power % 2 && right - left < 480) continue; // no room for every label
      const last = power === MOST_USERS;
      label(svg, at, bottom + 15, last ? "1 million" : (10 ** power).toLocaleString("en"), last ? "end" : "middle", "vblora-svg-faint");
    }
    label(svg, 0, 11, "bytes (log): a line is 32 times the one below", "start", "vblora-svg-faint");
    label(svg, right, 296, "users, each line 10 times as many (log)", "end", "vblora-svg-faint");
    const users = this.model.get("users");
    line(svg, "vblora-users-now", this.x(users), top, this.x(users), bottom);
    for (const cost of costs) {
      const [name, dashes] = LOOKS[cost.method];
      const d = Array.from({ length: 10 * MOST_USERS + 1 }, (_, i) => 10 ** (i / 10))
        .map((n, i) => `${i ? "L" : "M"}${this.x(n).toFixed(1)} ${y(total(cost, n)).toFixed(1)}`).join("");
      shape(svg, "path", `vblora-users-line vblora-users-${name}`, { d, "stroke-dasharray": dashes });
      shape(svg, "circle", `vblora-users-dot vblora-users-${name}-fill`, { cx: this.x(users), cy: y(total(cost, users)), r: 4 });
    }
    this.drawCrossings(svg, costs, y);
  }

  /** A ring where a line of another method crosses that of one bank for all. */
  drawCrossings(svg, costs, y) {
    const ours = costs.find((cost) => cost.method === OURS);
    for (const other of costs) {
      const saved = other.each - ours.each;
      const at = saved > 0 ? (ours.once - other.once) / saved : 0;
      if (other.method === OURS || at <= 1.02 || at > 10 ** MOST_USERS) continue;
      shape(svg, "circle", "vblora-users-cross", { cx: this.x(at), cy: y(total(ours, at)), r: 7 });
    }
  }

  drawBars() {
    const users = this.model.get("users");
    const costs = [...this.costs()].sort((a, b) => total(a, users) - total(b, users));
    const most = total(costs.at(-1), users);
    this.bars.replaceChildren();
    for (const cost of costs) {
      const [name, dashes] = LOOKS[cost.method];
      const row = make(this.bars, "div", `vblora-users-bar${cost.method === OURS ? " vblora-users-ours" : ""}`);
      const head = make(row, "div", "vblora-users-bar-head");
      const key = shape(head, "svg", "vblora-users-key", { width: 26, height: 10, "aria-hidden": "true" });
      shape(key, "line", `vblora-users-line vblora-users-${name}`, { x1: 1, y1: 5, x2: 25, y2: 5, "stroke-dasharray": dashes });
      make(head, "span", "", cost.method === "LoRA" ? `LoRA of rank ${this.model.get("rank")}` : cost.method);
      make(head, "b", "", readable(total(cost, users)));
      const track = make(row, "div", "vblora-users-track");
      make(track, "i", `vblora-users-${name}-back`).style.width = `${Math.max(0.3, (100 * total(cost, users)) / most)}%`;
      const once = cost.once ? `${readable(cost.once)} once, then ` : "";
      make(row, "div", "vblora-users-note", `${once}${readable(cost.each)} a user`);
    }
    const { num_vectors, vector_length } = this.offer();
    make(this.bars, "div", "vblora-users-note",
      `All linear layers, float32. The bank: ${num_vectors.toLocaleString("en")} vectors of ${vector_length}. VeRA with 256 shared ranks.`);
  }

  clicked(event) {
    const box = this.chart.getBoundingClientRect();
    this.set("users", this.usersOf(event.clientX - box.left));
  }
}

function render({ model, el }) {
  const view = new ManyUsersView(model, el);
  return () => view.leave();
}

export default { render };
