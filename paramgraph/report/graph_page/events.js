// Pointer, wheel, keys, the legend, and the start.

const held = new Map(); // pointers that are down
let moved = 0;
const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (!held.size) moved = 0;
  held.set(event.pointerId, place(event));
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = place(event), before = held.get(event.pointerId);
  if (!before) { hover(x, y); return; }
  const other = [...held].find(([id]) => id !== event.pointerId);
  held.set(event.pointerId, [x, y]);
  moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
  if (other) { // two fingers
    const [ox, oy] = other[1], span = (p) => Math.hypot(p[0] - ox, p[1] - oy);
    zoomAt((x + ox) / 2, (y + oy) / 2, span([x, y]) / Math.max(span(before), 1));
  } else if (moved > 4) {
    canvas.classList.add("held");
    tip.hidden = true;
    eye.x -= (x - before[0]) / eye.zoom;
    eye.y -= (y - before[1]) / eye.zoom;
    clampEye();
  }
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => {
  held.delete(event.pointerId);
  canvas.classList.remove("held");
  if (name === "pointerup" && moved <= 4) choose(...(hit(...place(event)) || [null]), false);
});
canvas.addEventListener("pointerleave", () => { hovered = null; tip.hidden = true; redraw(); });
function hover(x, y) {
  const now = hit(x, y);
  if (String(now) !== String(hovered)) { hovered = now; redraw(); }
  canvas.classList.toggle("over", Boolean(now));
  tip.hidden = !now;
  if (!now) return;
  tip.textContent = `${nameOf(...now)} (${data[now[0]][now[1]].kind})`;
  tip.style.left = Math.max(0, Math.min(x + 14, view.clientWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = Math.min(y + 16, view.clientHeight - tip.offsetHeight - 4) + "px";
}
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const unit = event.deltaMode === 1 ? 16 : 1;
  if (event.ctrlKey || event.metaKey) {
    zoomAt(...place(event), Math.exp(-event.deltaY * unit * (Math.abs(event.deltaY) < 40 ? 0.01 : 0.002)));
    return;
  }
  const across = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
  eye.x += across * unit / eye.zoom;
  eye.y += (event.shiftKey ? 0 : event.deltaY) * unit / eye.zoom;
  clampEye();
}, { passive: false });
canvas.addEventListener("dblclick", (event) => zoomAt(...place(event), 1.6));
const middle = (factor) => zoomAt(view.clientWidth / 2, view.clientHeight / 2, factor);
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-60, 0], ArrowRight: [60, 0], ArrowUp: [0, -60], ArrowDown: [0, 60] };
  const by = moves[event.key];
  if (by) { eye.x += by[0] / eye.zoom; eye.y += by[1] / eye.zoom; clampEye(); }
  else if (event.key === "+" || event.key === "=") middle(1.25);
  else if (event.key === "-") middle(0.8);
  else if (event.key === "0") { isMoved = true; fit(true); }
  else return;
  event.preventDefault();
});
byId("larger").addEventListener("click", () => middle(1.3));
byId("smaller").addEventListener("click", () => middle(1 / 1.3));
byId("width").addEventListener("click", () => { isMoved = false; fit(false); });
byId("whole").addEventListener("click", () => { isMoved = true; fit(true); });
function moveOnMap(event) {
  if (!event.buttons) return;
  const box = map.getBoundingClientRect();
  eye.x = (hull[0] + hull[2]) / 2 + (event.clientX - box.left - box.width / 2) / mapScale;
  eye.y = hull[1] - 40 + (event.clientY - box.top) / mapScale;
  clampEye();
}
map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); moveOnMap(event); });
map.addEventListener("pointermove", moveOnMap);

// Start

function sign(paint) {
  const node = make("canvas", undefined, { width: 92, height: 28 }), on = node.getContext("2d");
  on.scale(2, 2);
  paint(on);
  return node;
}
function showLegend() {
  const signs = byId("signs");
  signs.replaceChildren();
  for (const [kind, words] of data.kinds) {
    signs.append(sign((on) => {
      on.strokeStyle = colors[kind];
      on.lineWidth = (WIDTHS[kind] || 1.7) * 1.1;
      on.setLineDash(DASHES[kind]);
      on.beginPath();
      on.moveTo(0, 7);
      on.lineTo(46, 7);
      on.stroke();
    }), make("span", `${kind}: ${words}`));
  }
  const states = { free: "neurons may be permuted", part: "in part", frozen: "fixed order" };
  for (const [state, words] of Object.entries(states)) {
    signs.append(sign((on) => {
      on.translate(23, 7);
      on.scale(0.34, 0.34);
      drawBox(on, { box: [0, 0, 126, 38], kind: "hidden", state, label: "", caption: "" }, 0.2);
    }), make("span", `${state}: ${words}`));
  }
  for (const kind of ["input", "output", "fixed"]) if (data.g.some((group) => group.kind === kind))
    signs.append(sign((on) => {
      on.fillStyle = colors[kind];
      on.fillRect(1, 1, 44, 12);
      on.strokeStyle = colors.soft;
      on.strokeRect(1, 1, 44, 12);
    }), make("span", kind === "fixed" ? "fixed: tables, tokens, states" : `${kind} neurons`));
}
for (const [label, value, tone] of data.totals) {
  const node = make("div");
  node.append(make("dt", label), make("dd", value, { class: tone }));
  byId("totals").append(node);
}
for (const [name, title] of [["chosen", "Selected"], ["a", `Axes ${data.a.length}`],
  ["s", `Scales ${data.s.length}`], ["p", `Parameters ${data.p.length}`], ["notes", "Notes"]]) {
  const node = make("button", title, { type: "button", role: "tab", "data-tab": name });
  node.addEventListener("click", () => openTab(name));
  byId("tabs").append(node);
}
byId("legend").open = !NARROW.matches;
readColors();
showLegend();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColors(); showLegend(); redraw();
});
new ResizeObserver(() => (isMoved ? redraw() : fit(false))).observe(view);
fit(false);
openTab("chosen");
const wanted = /^#([gbasp])(\d+)$/.exec(location.hash);
if (wanted && data[wanted[1]][+wanted[2]]) choose(wanted[1], +wanted[2]);
