// ---- all of it ----------------------------------------------------------------------------------

function render({ model, el }) {
  const parts = frame(el, QUESTION, LABEL);
  const data = new Data(model);
  const map = new Heatmap(model, data, parts);
  const table = new Table(parts.root, model, data, map);
  const toolbar = new Toolbar(parts.root, model, data, map, table);
  parts.stage.before(toolbar.box);
  const scrubber = new Scrubber(parts.root, model, data);
  parts.stage.after(scrubber.box);
  parts.root.append(table.box); // below the map, where it is seen to open
  const views = new Views(parts.root, model, data);
  const bench = new Bench(parts.root, model, data);
  // What is around the map changes with the data, not with the pointer.
  const outer = [toolbar, scrubber, views, bench, table];
  for (const part of outer) part.box.hidden = true; // drawn, each decides whether it is shown
  const around = oncePerFrame(() => { for (const part of outer) part.draw(); });
  const all = () => { map.redraw(); around(); };
  const onData = () => { data.stale = true; all(); };
  const onRows = () => { map.forget(); onData(); };
  const onFrame = () => { data.show(); all(); };
  const onOrder = () => { map.look(null); onData(); };
  const onLook = () => { map.look(null); all(); };
  const watched = { coordinates: onRows, row_order: onOrder, groups: all, frame: onFrame,
    opened: onLook, view: onLook };
  for (const trait of ["indices", "weights", "usage", "entropy", "layer_entropy", "sharing", "churn",
    "steps", "layers", "num_vectors", "column_order", "spread", "start_indices", "start_weights",
    "start_spread", "modules", "grouped_by"]) watched[trait] = onData;
  for (const trait of ["pinned_row", "lit_vector", "selected", "height", "rows_by", "columns_by",
    "compact", "base", "bank", "delta", "delta_blocks", "bench", "module_shown", "captions",
    "stands_out"]) watched[trait] = all;
  for (const [trait, listener] of Object.entries(watched)) model.on(`change:${trait}`, listener);
  map.onLook = ((onLook) => (window) => { onLook(window); around(); })(map.onLook);
  map.canvas.addEventListener("pointermove", (event) => map.point(event));
  map.canvas.addEventListener("pointerleave", () => map.leave());
  map.canvas.addEventListener("blur", () => map.leave());
  map.canvas.addEventListener("click", (event) => map.click(event));
  map.canvas.addEventListener("keydown", (event) => map.key(event));
  map.canvas.addEventListener("wheel", (event) => map.wheel(event), { passive: false });
  const stop = onAppearance(map.stage, all);
  all();
  return () => {
    stop();
    scrubber.stop();
    for (const [trait, listener] of Object.entries(watched)) model.off(`change:${trait}`, listener);
  };
}

export default { render };
