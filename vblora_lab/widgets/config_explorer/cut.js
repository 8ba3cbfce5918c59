/**
 * W's update as B times A: A lies along its columns, B along its rows, both cut into tiles, and
 * the bank beside them. Lengths share one scale; returns how much wider than that r is drawn.
 */
function drawCut(stage, cut, { r, num_vectors, vector_length, topk }, width, id) {
  const [left, top, gap] = [64, 22, 46];
  const [wide, tall, length] = [cut.in, cut.out, vector_length];
  const least = Math.min(30, Math.max(10, 7 * r)); // of A and B, across: thinner is not seen
  const room = Math.min(width, 620) - left - gap - least - 36;
  // The edges of W are what is to be seen; a bank that is far longer than them is as it is.
  const scale = Math.min(room / (wide + length), 200 / tall);
  const thick = Math.max(scale * r, least);
  const [W, H, h] = [wide * scale, tall * scale, length * scale];
  const [x, y] = [left + thick + 6, top + thick + 6];
  const bankX = x + W + gap;
  const bankTall = Math.min(num_vectors * scale, Math.max(H, 60));
  const label = `bank: ${num_vectors.toLocaleString("en")} × ${length}`;
  const labelX = Math.max(bankX, Math.min(bankX + h / 2, width) - 4 * label.length);
  const labelWide = 7.2 * label.length;
  const wanted = Math.max(bankX + h, labelX + labelWide) + 4;
  const needed = Math.min(width, wanted);
  // Where there is no room to the right, the label ends at the edge, and below W if it reaches that.
  const labelY = y + (width - labelWide < x + W + 4 ? Math.max(H, bankTall) : bankTall) + 16;
  const svg = draw(stage, "svg", {
    role: "img", width: needed, height: Math.max(y + H, labelY + 4) + 4,
    class: "vblora-cut-picture",
  });
  const text = (at, down, words, anchor = "middle") =>
    draw(svg, "text", { x: at, y: down, "text-anchor": anchor }, words);

  draw(svg, "rect", { x, y, width: W, height: H, class: "vblora-update" });
  const fits = Math.min(W, H) > 34;
  if (fits) text(x + W / 2, y + H / 2 + 4, W > 130 ? `update B · A, ${tall} × ${wide}` : "B · A");
  strip(svg, `${id}-A`, { x, y: top, along: W, across: thick, step: h, lanes: r, upright: false });
  strip(svg, `${id}-B`, { x: left, y, along: H, across: thick, step: h, lanes: r, upright: true });
  text(x + W / 2, top - 7, `A: ${r} × ${wide}`);
  text(left - 8, y + H / 2 + 4, "B:", "end");
  text(left - 8, y + H / 2 + 18, `${tall} × ${r}`, "end");

  // The bank: as wide as its vectors are long. Taller than there is room, it is cut off below.
  draw(svg, "rect", { x: bankX, y, width: h, height: bankTall, class: "vblora-bank" });
  if (wanted > width) text(width - 2, labelY, label, "end");
  else text(labelX, labelY, label, "start");
  if (cut.tiles_A) {
    const lane = thick / r;
    const tile = { x: x + W - h, y: top, width: h, height: Math.max(lane, 1.5) };
    draw(svg, "rect", { ...tile, class: "vblora-example" });
    const shown = Math.min(topk, 8);
    for (let i = 0; i < shown; i++) {
      const at = y + (bankTall * (i + 0.5)) / shown;
      draw(svg, "path", {
        d: `M ${bankX} ${at} C ${bankX - gap * 0.7} ${at}, ${bankX - 8} ${top + lane / 2}, ${x + W} ${top + lane / 2}`,
        class: "vblora-link",
      });
      draw(svg, "rect", { x: bankX, y: at - 1.5, width: h, height: 3, class: "vblora-example" });
    }
  }
  return thick / (scale * r);
}

/** A or B: `lanes` rows of tiles, each `step` long; what is left at the end is hatched. */
function strip(svg, id, { x, y, along, across, step, lanes, upright }) {
  const whole = Math.floor(along / step + 1e-6) * step;
  const box = (start, size) => (upright
    ? { x, y: y + start, width: across, height: size } : { x: x + start, y, width: size, height: across });
  const lane = across / lanes;
  const [w, h] = upright ? [lane, step] : [step, lane];
  if (whole > 0) {
    const pattern = draw(draw(svg, "defs"), "pattern", {
      id, x, y, width: w, height: h, patternUnits: "userSpaceOnUse",
    });
    draw(pattern, "rect", { width: w, height: h, class: "vblora-tile-fill" });
    // Edges thinner than the tiles: tiles of a pixel are a tint.
    const edge = Math.min(1.2, Math.min(w, h) / 3);
    draw(pattern, "path", { d: `M ${w} 0 V ${h} H 0`, class: "vblora-tile-edge", "stroke-width": edge });
    draw(svg, "rect", { ...box(0, whole), fill: `url(#${id})`, class: "vblora-strip-of-tiles" });
  }
  if (along - whole > 0.01 * step) {
    const rest = box(whole, along - whole);
    const hatch = draw(draw(svg, "defs"), "pattern", {
      id: `${id}-rest`, width: 6, height: 6, patternUnits: "userSpaceOnUse",
      patternTransform: "rotate(45)",
    });
    draw(hatch, "rect", { width: 2, height: 6, class: "vblora-rest-line" });
    draw(svg, "rect", { ...rest, fill: `url(#${id}-rest)`, class: "vblora-rest" });
  }
}
