// The panel: details of what is chosen, tables, search; and the events of the page. Names are only
// ever set as text, never as HTML.
const TABLES = { g: "neuron group", b: "block", a: "axis group", s: "scale group", p: "parameter" };
const content = byId("content"), search = byId("search"), found = byId("found");
let tab = "chosen";

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
function nameOf(table, row) { return data[table][row].name || "(the network)"; }
function members(table, row) { // the groups and blocks that an item stands for
  const g = new Set(), b = new Set();
  if (table === "g" || table === "b") return null;
  data.b.forEach((item, i) => { if (item[table].includes(row)) b.add(i); });
  if (table === "p") {
    b.forEach((i) => data.b[i].ends.forEach((end) => g.add(end)));
    data.p[row].groups.forEach((i) => g.add(i));
  } else data.g.forEach((item, i) => { if (item[table].includes(row)) g.add(i); });
  return { g, b };
}
function mark(table, row) { marked = members(table, row); redraw(); }
function unmark() {
  marked = chosen && chosen[0] !== "g" && chosen[0] !== "b" ? members(...chosen) : null;
  redraw();
}
function choose(table, row, isMoving = true) {
  chosen = table ? [table, row] : null;
  unmark();
  if (table) {
    if (isMoving) goTo(table, row);
    history.replaceState(null, "", "#" + table + row);
    openTab("chosen");
  } else if (tab === "chosen") openTab("chosen");
}
function link(table, row) {
  const node = make("button", nameOf(table, row), { class: "link", type: "button",
    title: TABLES[table] });
  node.addEventListener("click", () => choose(table, row));
  node.addEventListener("mouseenter", () => { if (table !== "g" && table !== "b") mark(table, row); });
  node.addEventListener("mouseleave", unmark);
  return node;
}
function piece(value, into) { // text, [table, row], or a list of these that stand in one line
  const line = make("div");
  if (typeof value === "string") line.textContent = value;
  else if (typeof value[0] === "string" && typeof value[1] === "number") line.append(link(...value));
  else value.forEach((part) => line.append(typeof part === "string" ? part : link(...part), " "));
  into.append(line);
}
function showChosen() {
  if (!chosen) {
    content.append(make("h2", "How to read this"), make("p", "Boxes are groups of neurons, lines are " +
      "blocks of edges; inputs stand at the top, outputs at the bottom. Click one to see what it is and " +
      "which symmetries act on it. A full stripe in a box: its neurons may be permuted; a hollow one: " +
      "they stand in a fixed order."), make("p", "Drag or scroll to move, pinch or Ctrl + scroll to " +
      "zoom, / to search, Escape to let go."));
    return;
  }
  const [table, row] = chosen, item = data[table][row];
  const head = make("div", TABLES[table] + " ", { class: "kindword" });
  const state = item.state || (table === "a" ? (item.free ? "free" : "frozen") : "");
  if (state) head.append(make("span", state === "part" ? "free in part" : state,
    { class: "badge " + state }));
  const list = make("dl", undefined, { class: "facts" });
  for (const [label, pieces] of item.facts) {
    const value = make("dd");
    pieces.slice(0, 300).forEach((one) => piece(one, value));
    if (pieces.length > 300) value.append(make("div", `and ${pieces.length - 300} more`));
    list.append(make("dt", label), value);
  }
  content.append(head, make("h2", nameOf(table, row)), list);
}

// Tables

const COLUMNS = {
  a: [["axis group", (r) => r.name], ["size", (r) => r.size], ["free", (r) => (r.free ? "free" : "frozen")],
    ["reason", (r) => r.reason]],
  s: [["scale group", (r) => r.name], ["size", (r) => r.size], ["kind", (r) => r.kind]],
  p: [["parameter", (r) => r.name], ["shape", (r) => r.shape], ["size", (r) => r.size]],
};
const sorting = { a: [-1, 1], s: [-1, 1], p: [-1, 1] }; // column (-1: as found), direction
function showTable(table) {
  const columns = COLUMNS[table], [by, way] = sorting[table];
  const node = make("table"), top = make("tr"), body = make("tbody");
  columns.forEach(([title], i) => {
    const sign = i === by ? (way > 0 ? " ↑" : " ↓") : "";
    const cell = make("th", undefined, { scope: "col",
      "aria-sort": i !== by ? "none" : way > 0 ? "ascending" : "descending" });
    const button = make("button", title + sign, { type: "button" });
    button.addEventListener("click", () => {
      sorting[table] = [i, i === by ? -way : 1];
      openTab(table);
      content.querySelectorAll("th button")[i].focus();
    });
    cell.append(button);
    top.append(cell);
  });
  const order = data[table].map((_, i) => i);
  if (by >= 0) {
    const key = columns[by][1], value = (i) => key(data[table][i]);
    order.sort((i, j) => way * (typeof value(i) === "number" ? value(i) - value(j)
      : value(i).localeCompare(value(j))) || i - j);
  }
  for (const row of order) {
    const line = make("tr");
    columns.forEach(([, key], i) => {
      const shown = key(data[table][row]);
      const cell = make("td", i && typeof shown === "number" ? shown.toLocaleString("en") : i ? shown : undefined,
        typeof shown === "number" ? { class: "number" } : {});
      if (!i) cell.append(link(table, row));
      line.append(cell);
    });
    line.addEventListener("mouseenter", () => mark(table, row));
    line.addEventListener("mouseleave", unmark);
    line.addEventListener("focusin", () => mark(table, row));
    line.addEventListener("focusout", unmark);
    body.append(line);
  }
  const head = make("thead");
  head.append(top);
  node.append(head, body);
  content.append(data[table].length ? node : make("p", "There are none."));
}
function showNotes() {
  for (const [heading, lines] of data.notes) {
    const list = make("ul", undefined, { class: "lines" });
    lines.forEach((line) => list.append(make("li", line)));
    content.append(make("h3", heading), list);
  }
}
function openTab(name) {
  tab = name;
  content.replaceChildren();
  document.querySelectorAll("#tabs button").forEach((node) =>
    node.setAttribute("aria-selected", String(node.dataset.tab === name)));
  if (name === "chosen") showChosen();
  else if (name === "notes") showNotes();
  else showTable(name);
  content.scrollTop = 0;
}

// Search

let results = [], current = -1;
function lookUp() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  results = [];
  current = -1;
  if (!words.length) { closeSearch(); unmark(); return; }
  marked = { g: new Set(), b: new Set() };
  for (const table of "gbaps") data[table].forEach((item, row) => {
    const name = nameOf(table, row).toLowerCase();
    if (!words.every((word) => name.includes(word))) return;
    results.push([table, row]);
    if (table === "g" || table === "b") marked[table].add(row);
  });
  found.replaceChildren(...results.slice(0, 60).map(([table, row], i) => {
    const node = make("li", undefined, { role: "option", id: "found" + i, "aria-selected": "false" });
    node.append(nameOf(table, row), " ", make("small", TABLES[table]));
    node.addEventListener("pointerdown", (event) => { event.preventDefault(); take(i); });
    return node;
  }), ...(results.length > 60 ? [make("li", `and ${results.length - 60} more`)] : []),
  ...(results.length ? [] : [make("li", "Nothing has this name.")]));
  found.hidden = false;
  search.setAttribute("aria-expanded", "true");
  step(results.length ? 1 : 0);
  redraw();
}
function step(by) {
  const last = Math.min(results.length, 60) - 1;
  if (last < 0 || !by) return;
  if (current >= 0) found.children[current].setAttribute("aria-selected", "false");
  current = (current + by + last + 1) % (last + 1);
  found.children[current].setAttribute("aria-selected", "true");
  found.children[current].scrollIntoView({ block: "nearest" });
  search.setAttribute("aria-activedescendant", "found" + current);
}
function closeSearch() {
  found.hidden = true;
  search.setAttribute("aria-expanded", "false");
  search.removeAttribute("aria-activedescendant");
}
function take(i) { closeSearch(); choose(...results[i]); }
search.addEventListener("input", lookUp);
search.addEventListener("focus", () => { if (search.value) lookUp(); });
search.addEventListener("blur", () => { closeSearch(); unmark(); });
search.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") step(event.key === "ArrowDown" ? 1 : -1);
  else if (event.key === "Enter" && current >= 0) take(current);
  else if (event.key === "Escape") { search.value = ""; closeSearch(); unmark(); search.blur(); }
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.target === search) return;
  if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); }
  if (event.key === "Escape") choose(null);
});

// Pointer, wheel, keys

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
  else if (event.key === "0") fit(true);
  else return;
  event.preventDefault();
});
byId("larger").addEventListener("click", () => middle(1.3));
byId("smaller").addEventListener("click", () => middle(1 / 1.3));
byId("width").addEventListener("click", () => fit(false));
byId("whole").addEventListener("click", () => fit(true));
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
for (const [name, title] of [["chosen", "Selected"], ["a", `Axis groups (${data.a.length})`],
  ["s", `Scales (${data.s.length})`], ["p", `Parameters (${data.p.length})`], ["notes", "Notes"]]) {
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
new ResizeObserver(redraw).observe(view);
fit(false);
openTab("chosen");
const wanted = /^#([gbasp])(\d+)$/.exec(location.hash);
if (wanted && data[wanted[1]][+wanted[2]]) choose(wanted[1], +wanted[2]);
