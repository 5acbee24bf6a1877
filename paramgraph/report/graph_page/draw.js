"use strict";
// The canvas: what it shows, and how it moves. Positions come from Python; nothing is computed here.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const view = byId("view"), canvas = byId("canvas"), map = byId("map"), tip = byId("tip");
const pen = canvas.getContext("2d"), mapPen = map.getContext("2d");
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const DASHES = { linear: [], conv: [12, 4], scale: [1.5, 4], skip: [7, 5], embedding: [12, 3, 2, 3],
  gate: [4, 3], attention: [8, 3, 2, 3, 2, 3], flow: [2, 2, 6, 2] };
const WIDTHS = { linear: 1.7, conv: 2.2, scale: 2.2, skip: 1.4 };
const NARROW = matchMedia("(max-width: 760px)");

const eye = { x: 0, y: 0, zoom: 1 }; // what stands in the middle of the view, and how large
let chosen = null, hovered = null, marked = null, colors = {}, waiting = false;
let isMoved = false; // by the reader; until then, the picture follows the size of the window
// marked: {g: Set, b: Set} of what a table row or a search stands for; null when there is none.

for (const block of data.b) { // a path per block, with its bounds
  const path = new Path2D(), r = block.route;
  path.moveTo(r[0], r[1]);
  for (let i = 2; i < r.length; i += 2) {
    const [x0, y0, x1, y1] = [r[i - 2], r[i - 1], r[i], r[i + 1]], bend = (y1 - y0) / 2;
    if (x0 === x1) path.lineTo(x1, y1);
    else path.bezierCurveTo(x0, y0 + bend, x1, y1 - bend, x1, y1);
  }
  const xs = r.filter((_, i) => i % 2 === 0);
  block.path = path;
  block.bounds = [Math.min(...xs), r[1], Math.max(...xs), r[r.length - 1]];
}
const together = {}; // all lines of a kind as one path: for the whole of a large graph, seen from afar
for (const block of data.b) (together[block.kind] ||= new Path2D()).addPath(block.path);
const hull = data.g.reduce((h, { box: [x, y, w, k] }) => [Math.min(h[0], x - w / 2),
  Math.min(h[1], y - k / 2), Math.max(h[2], x + w / 2), Math.max(h[3], y + k / 2)],
[Infinity, Infinity, -Infinity, -Infinity]);
if (!data.g.length) hull.splice(0, 4, 0, 0, 1, 1);
for (const block of data.b) {
  hull[0] = Math.min(hull[0], block.bounds[0]);
  hull[2] = Math.max(hull[2], block.bounds[2]);
}

function readColors() {
  const style = getComputedStyle(document.documentElement);
  const names = ["page", "card", "text", "soft", "line", "accent", "mark", "band", "free", "part",
    "frozen", "input", "hidden", "output", "fixed", "linear", "conv", "factor", "skip",
    "embedding", "gate", "attention", "flow"];
  colors = Object.fromEntries(names.map((n) => [n, style.getPropertyValue("--" + n).trim()]));
  colors.scale = colors.factor;
}

function near() { // what stays in full colour: what is chosen and its neighbours, or what is marked
  if (marked) return marked;
  if (!chosen || (chosen[0] !== "g" && chosen[0] !== "b")) return null;
  const [table, row] = chosen, g = new Set(), b = new Set();
  if (table === "b") { b.add(row); data.b[row].ends.forEach((end) => g.add(end)); return { g, b }; }
  g.add(row);
  data.b.forEach((block, i) => {
    if (block.ends.includes(row)) { b.add(i); block.ends.forEach((end) => g.add(end)); }
  });
  return { g, b };
}

function redraw() { if (!waiting) { waiting = true; requestAnimationFrame(draw); } }

function draw() {
  waiting = false;
  const dpr = window.devicePixelRatio || 1, w = view.clientWidth, h = view.clientHeight;
  if (canvas.width !== Math.round(w * dpr) || canvas.height !== Math.round(h * dpr)) {
    canvas.width = Math.round(w * dpr);
    canvas.height = Math.round(h * dpr);
  }
  const z = eye.zoom, left = eye.x - w / 2 / z, top = eye.y - h / 2 / z;
  const right = left + w / z, bottom = top + h / z, lit = near();
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  pen.fillStyle = colors.page;
  pen.fillRect(0, 0, w, h);
  const shown = data.bands.filter((band) => band[1] < bottom && band[2] > top);
  shown.forEach((band) => {
    pen.fillStyle = data.bands.indexOf(band) % 2 ? colors.page : colors.band;
    if (band[3] === 0) pen.fillRect(0, (band[1] - top) * z, w, (band[2] - band[1]) * z);
  });
  pen.setTransform(dpr * z, 0, 0, dpr * z, -left * z * dpr, -top * z * dpr);
  const isFar = z < 0.2 && !lit;
  if (isFar) for (const [kind, path] of Object.entries(together)) {
    pen.strokeStyle = colors[kind];
    pen.lineWidth = 0.8 / z;
    pen.stroke(path);
  }
  data.b.forEach((block, i) => {
    const [x0, y0, x1, y1] = block.bounds;
    if (isFar || x1 < left - 9 || x0 > right + 9 || y1 < top || y0 > bottom) return;
    const isLit = lit && lit.b.has(i), isOver = hovered && hovered[0] === "b" && hovered[1] === i;
    pen.globalAlpha = lit && !isLit && !isOver ? 0.13 : 1;
    pen.strokeStyle = pen.fillStyle = colors[block.kind];
    pen.lineWidth = Math.max(WIDTHS[block.kind] || 1.7, 0.9 / z) * (isLit || isOver ? 1.7 : 1);
    pen.setLineDash(z < 0.22 ? [] : DASHES[block.kind]);
    pen.stroke(block.path);
    if (z > 0.3) arrow(block.route);
  });
  pen.setLineDash([]);
  data.g.forEach((group, i) => {
    const [x, y, bw, bh] = group.box;
    if (x + bw / 2 < left || x - bw / 2 > right || y + bh / 2 < top || y - bh / 2 > bottom) return;
    pen.globalAlpha = lit && !lit.g.has(i) ? 0.25 : 1;
    drawBox(pen, group, z, (chosen && chosen[0] === "g" && chosen[1] === i) ||
      (marked && marked.g.has(i)), hovered && hovered[0] === "g" && hovered[1] === i);
  });
  pen.globalAlpha = 1;
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  drawBandNames(shown, top, z, h);
  drawMap(dpr, left, top, right, bottom);
}

function arrow(route) {
  const x = route[route.length - 2], y = route[route.length - 1];
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(x - 3.6, y - 7);
  pen.lineTo(x + 3.6, y - 7);
  pen.fill();
}

function drawBox(on, { box: [x, y, w, h], kind, state, label, caption }, z, isChosen, isOver) {
  const x0 = x - w / 2, y0 = y - h / 2;
  if (z < 0.12 && !isChosen && !isOver) {
    on.fillStyle = colors[state];
    on.fillRect(x0, y0, w, h);
    return;
  }
  on.beginPath();
  on.roundRect(x0, y0, w, h, 7);
  on.fillStyle = colors[kind];
  on.fill();
  on.lineWidth = Math.max(isChosen ? 2.6 : isOver ? 2 : 1, (isChosen ? 2.2 : 0.6) / z);
  on.strokeStyle = isChosen || isOver ? colors.accent : state === "frozen" ? colors.frozen : colors.soft;
  on.stroke();
  // The stripe: full where all may be permuted, in pieces where some, hollow where none.
  on.fillStyle = on.strokeStyle = colors[state];
  if (state === "free") on.fillRect(x0 + 5, y0 + 6, 4, h - 12);
  else if (state === "part") [0, 1, 2].forEach((i) => on.fillRect(x0 + 5, y0 + 6 + i * 10, 4, 7));
  else { on.lineWidth = 1; on.strokeRect(x0 + 5.5, y0 + 6.5, 3, h - 13); }
  if (z < 0.38) return;
  on.textBaseline = "middle";
  on.textAlign = "left";
  on.fillStyle = colors.text;
  on.font = "600 12px " + FONT;
  on.fillText(label || "(the network)", x0 + 15, y - 8, w - 20);
  on.fillStyle = colors.soft;
  on.font = "11px " + FONT;
  on.fillText(caption, x0 + 15, y + 9, w - 20);
}

function drawBandNames(shown, top, z, h) { // at the left, always in sight
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  pen.font = "600 12px " + FONT;
  let last = -Infinity;
  shown.forEach(([name, first, end, lane]) => {
    const y0 = (first - top) * z, y1 = (end - top) * z, x = 10 + lane * 14;
    const y = Math.min(Math.max(y0, 0) + 14, y1 - 10);
    pen.fillStyle = colors.soft;
    pen.fillRect(x - 4, y0 + 2, 2, y1 - y0 - 4);
    if (y - last < 14) return;
    last = y;
    pen.lineWidth = 4;
    pen.strokeStyle = colors.page;
    pen.strokeText(name, x + 3 + (lane ? 20 : 0), y);
    pen.fillText(name, x + 3 + (lane ? 20 : 0), y);
  });
}

let mapScale = 0;
function drawMap(dpr, left, top, right, bottom) { // the whole graph, small, with a frame
  const w = hull[2] - hull[0] + 80, h = hull[3] - hull[1] + 80, room = view.clientHeight - 190;
  mapScale = Math.min(110 / w, room / h, 0.2);
  const isWhole = left < hull[0] && right > hull[2] && top < hull[1] && bottom > hull[3];
  map.hidden = isWhole || NARROW.matches;
  if (map.hidden) return;
  const mw = Math.max(24, Math.ceil(w * mapScale)), mh = Math.max(24, Math.ceil(h * mapScale));
  map.width = mw * dpr;
  map.height = mh * dpr;
  map.style.width = mw + "px";
  map.style.height = mh + "px";
  const s = mapScale * dpr;
  mapPen.setTransform(s, 0, 0, s, mw * dpr / 2 - (hull[0] + hull[2]) / 2 * s, (40 - hull[1]) * s);
  data.g.forEach((group, i) => {
    const [x, y, bw, bh] = group.box, isLit = marked && marked.g.has(i);
    mapPen.fillStyle = isLit || (chosen && chosen[0] === "g" && chosen[1] === i)
      ? colors.accent : colors[group.state];
    const tall = Math.max(bh, 1.4 / mapScale);
    mapPen.fillRect(x - bw / 2, y - tall / 2, bw, tall);
  });
  const edge = 2 / mapScale, x0 = Math.max(left, hull[0] - 40 + edge), y0 = Math.max(top, hull[1] - 40 + edge);
  const x1 = Math.min(right, hull[2] + 40 - edge), y1 = Math.min(bottom, hull[3] + 40 - edge);
  mapPen.strokeStyle = mapPen.fillStyle = colors.accent;
  mapPen.lineWidth = 1.5 / mapScale;
  mapPen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  mapPen.globalAlpha = 0.1;
  mapPen.fillRect(x0, y0, x1 - x0, y1 - y0);
}

// Moving

function clampEye() {
  isMoved = true;
  const pad = 60 / eye.zoom;
  eye.zoom = Math.min(4, Math.max(0.02, eye.zoom));
  eye.x = Math.min(hull[2] + pad, Math.max(hull[0] - pad, eye.x));
  eye.y = Math.min(hull[3] + pad, Math.max(hull[1] - pad, eye.y));
  redraw();
}
function fit(isWhole) {
  // The names of the bands stand at the left, the map at the right.
  const before = data.bands.length && !NARROW.matches ? 90 : 24, after = NARROW.matches ? 12 : 130;
  const w = hull[2] - hull[0], h = hull[3] - hull[1] + 60;
  const across = Math.max(60, view.clientWidth - before - after) / w, down = view.clientHeight / h;
  // As wide as the view, but legible; then the top, from where one reads on.
  eye.zoom = isWhole ? Math.min(across, down, 1.25)
    : Math.max(Math.min(across, Math.max(down, 1), 1.25), NARROW.matches ? 0.45 : 0.55);
  eye.x = (hull[0] + hull[2]) / 2 + (after - before) / 2 / eye.zoom;
  if (!isWhole && eye.zoom > across && data.g.length) eye.x = data.g[0].box[0];
  eye.y = isWhole || h * eye.zoom <= view.clientHeight ? (hull[1] + hull[3]) / 2
    : hull[1] - 30 + view.clientHeight / 2 / eye.zoom;
  redraw();
}
function zoomAt(px, py, factor) { // the place under the pointer stays
  const dx = px - view.clientWidth / 2, dy = py - view.clientHeight / 2, before = eye.zoom;
  eye.zoom = Math.min(4, Math.max(0.02, eye.zoom * factor));
  eye.x += dx / before - dx / eye.zoom;
  eye.y += dy / before - dy / eye.zoom;
  clampEye();
}
function goTo(table, row) {
  const item = data[table][row];
  if (table === "g") [eye.x, eye.y] = item.box;
  else if (table === "b") { // the middle of a short line, the end of a long one
    const [x0, y0, x1, y1] = item.bounds, isLong = (y1 - y0) * eye.zoom > view.clientHeight * 0.8;
    eye.x = isLong ? item.route[item.route.length - 2] : (x0 + x1) / 2;
    eye.y = isLong ? y1 : (y0 + y1) / 2;
  } else return;
  eye.zoom = Math.max(eye.zoom, 0.7);
  if (!NARROW.matches) eye.x += 50 / eye.zoom; // the map is at the right
  const half = view.clientHeight / 2 / eye.zoom - 30, low = hull[1] + half, high = hull[3] - half;
  if (low < high) eye.y = Math.min(high, Math.max(low, eye.y)); // no empty space above the first row
  clampEye();
}
function hit(px, py) {
  const x = eye.x + (px - view.clientWidth / 2) / eye.zoom;
  const y = eye.y + (py - view.clientHeight / 2) / eye.zoom;
  const row = data.g.findIndex(({ box: [bx, by, w, h] }) =>
    Math.abs(x - bx) <= w / 2 && Math.abs(y - by) <= h / 2);
  if (row >= 0) return ["g", row];
  const reach = 6 / eye.zoom;
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.setLineDash([]);
  pen.lineWidth = 2 * reach;
  const line = data.b.findIndex(({ bounds: [x0, y0, x1, y1], path }) => x > x0 - reach &&
    x < x1 + reach && y > y0 - reach && y < y1 + reach && pen.isPointInStroke(path, x, y));
  return line >= 0 ? ["b", line] : null;
}
