// What adapters store as users come, and how much of each user's style the texts have: two drawings, in
// both of which a user can be picked.

const LOOKS = { // colour and dashes by method, so that lines are told apart without colour too
  "LoRA": ["lora", ""], "VB-LoRA, a bank each": ["alone", "9 3 2 3"], "VB-LoRA, one bank for all": ["shared", ""],
};
const OTHERS = [["more-a", "7 4"], ["more-b", "2 3"]];

/** Bytes against users, as steps: a column for each user, to click or to walk through by keys. */
class BytesView {
  constructor(parent, view) {
    this.view = view;
    this.title = make(parent, "h4", "vblora-whose-title", "What is stored, as users come");
    this.body = make(parent, "div", "vblora-whose-drawing");
    Object.assign(this.body, { tabIndex: 0 });
    this.body.setAttribute("role", "slider");
    this.body.setAttribute("aria-label", "user");
    this.body.addEventListener("click", (event) => {
      const x = event.clientX - this.body.getBoundingClientRect().left;
      view.pick(Math.floor((x - this.left) / this.each));
    });
    this.body.addEventListener("keydown", (event) => view.key(event));
  }

  draw() {
    const { users, user, stored } = this.view;
    const { svg, width } = canvasIn(this.body, 250);
    const narrow = width < 380;
    Object.assign(this, { left: 60, each: (width - 60 - 8) / users.length });
    const [top, bottom] = [22, 206];
    const most = 1.06 * Math.max(...Object.values(stored).map((sizes) => sizes.at(-1)));
    const y = (bytes) => bottom - (bytes / most) * (bottom - top);
    shape(svg, "rect", "vblora-whose-here", { x: this.left + user * this.each, y: top, width: this.each, height: bottom - top });
    const unit = 1024 ** Math.floor(Math.log2(most) / 10);
    for (const mark of ticks(0, most / unit, 4)) {
      line(svg, "vblora-svg-grid", this.left, y(mark * unit), width - 8, y(mark * unit));
      label(svg, this.left - 6, y(mark * unit) + 4, readable(mark * unit).replace(".0", ""), "end", "vblora-svg-faint");
    }
    label(svg, 0, 11, "bytes stored so far, all users together", "start", "vblora-svg-faint");
    users.forEach(({ name }, i) => {
      const at = this.left + (i + 0.5) * this.each;
      const mine = i === user ? "vblora-whose-strong" : "vblora-svg-faint";
      if (!narrow || users.length < 9 || i === user) label(svg, at, bottom + 16, short(name, this.each), "middle", mine);
    });
    label(svg, width - 8, bottom + 36, "users, as they come: click one, or use the arrow keys", "end", "vblora-svg-faint");
    for (const [method, sizes] of Object.entries(stored)) this.drawLine(svg, this.view.lookOf(method), sizes, y);
    this.tell();
  }

  drawLine(svg, [name, dashes], sizes, y) {
    const at = (i) => this.left + i * this.each;
    const d = sizes.map((bytes, i) => `${i ? "L" : "M"}${at(i)} ${y(bytes)}L${at(i + 1)} ${y(bytes)}`).join("");
    shape(svg, "path", `vblora-whose-line vblora-whose-${name}`, { d, "stroke-dasharray": dashes });
    const { user } = this.view;
    shape(svg, "circle", `vblora-whose-dot vblora-whose-${name}-fill`, { cx: at(user + 0.5), cy: y(sizes[user]), r: 4 });
  }

  /** The slider's values for those who hear it. */
  tell() {
    const { users, user, root } = this.view;
    const values = { valuemin: 1, valuemax: users.length, valuenow: user + 1, valuetext: users[user].name };
    for (const [name, value] of Object.entries(values)) this.body.setAttribute(`aria-${name}`, String(value));
    root.dataset.user = users[user].name;
  }
}

/** Whose style each text about this prompt has: a row for each adapter, a column for each style. */
class SharesView {
  constructor(parent, view) {
    this.view = view;
    make(parent, "h4", "vblora-whose-title", "Whose style have their texts about this prompt?");
    this.body = make(parent, "div", "vblora-whose-drawing");
    this.body.addEventListener("click", (event) => {
      const row = event.target.dataset?.row;
      if (row !== undefined && Number(row) < view.users.length) view.pick(Number(row));
    });
  }

  draw() {
    const { users, user } = this.view;
    const { svg, width } = canvasIn(this.body, 250);
    const [left, top, bottom] = [96, 24, 206];
    const rows = [...users.map(({ name }) => name), BASE];
    const [wide, tall] = [(width - left - 8) / users.length, (bottom - top) / rows.length];
    label(svg, 0, 11, "who writes", "start", "vblora-svg-faint");
    label(svg, width - 8, 242, "whose style: share of its marks in the text", "end", "vblora-svg-faint");
    rows.forEach((name, row) => {
      const mine = row === user ? "vblora-whose-strong" : "vblora-svg-faint";
      label(svg, left - 8, top + (row + 0.5) * tall + 4, name === BASE ? "base model" : short(name, left), "end", mine);
      this.view.written(name).shares.forEach((share, column) => {
        const box = { x: left + column * wide + 1, y: top + row * tall + 1, width: wide - 2, height: tall - 2 };
        this.drawCell(svg, box, share, row, row === column);
      });
    });
    users.forEach(({ name }, i) => label(svg, left + (i + 0.5) * wide, bottom + 16, short(name, wide), "middle",
      i === user ? "vblora-whose-strong" : "vblora-svg-faint"));
    shape(svg, "rect", "vblora-whose-row", { x: left, y: top + user * tall, width: width - left - 8, height: tall });
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", this.inWords());
  }

  drawCell(svg, box, share, row, own) {
    shape(svg, "rect", "vblora-whose-cell", { ...box, "fill-opacity": 0.06 + 0.54 * share, "data-row": row });
    if (box.width < 26 || box.height < 13) return;
    label(svg, box.x + box.width / 2, box.y + box.height / 2 + 4, share.toFixed(2), "middle",
      `vblora-whose-number ${own ? "vblora-whose-strong" : ""}`);
  }

  inWords() {
    const { users } = this.view;
    const own = users.map(({ name }, i) => `${name} ${this.view.written(name).shares[i].toFixed(2)}`);
    return `share of their own style in what each adapter writes: ${own.join(", ")}`;
  }
}

/** A name as far as there is room for it. */
function short(name, room) {
  const letters = Math.max(2, Math.floor(room / 7));
  return name.length > letters ? `${name.slice(0, letters - 1)}…` : name;
}
