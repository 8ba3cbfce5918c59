// A widget's model in a page of its own: state from the page instead of a kernel, and for choices
// that the kernel would work out, its answers, which the page holds too.

class StoredModel {
  constructor(state, answers) {
    this.answers = answers; // trait -> value -> { other trait: value }
    this.listeners = {};
    this.state = {};
    for (const [name, value] of Object.entries(state)) this.state[name] = StoredModel.decode(value);
  }

  static decode(value) {
    if (value?.base64 === undefined) return value;
    return new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer);
  }

  get(name) { return this.state[name]; }

  /** What follows from a choice: other traits, by name. */
  answer(name, value) { return this.answers[name]?.[value] ?? {}; }

  set(name, value) {
    const changes = { [name]: value, ...this.answer(name, value) };
    for (const [trait, stored] of Object.entries(changes)) this.state[trait] = StoredModel.decode(stored);
    for (const trait of Object.keys(changes)) for (const listener of this.listeners[trait] ?? []) listener();
  }

  save_changes() {}
  send() {}
  on(event, listener) { (this.listeners[event.slice("change:".length)] ??= []).push(listener); }
  off(event, listener) {
    const name = event.slice("change:".length);
    this.listeners[name] = (this.listeners[name] ?? []).filter((other) => other !== listener);
  }
}
