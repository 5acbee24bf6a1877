// The panel: details of what is chosen, tables, search. Names are only ever set as text, never as
// HTML.
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
function link(table, row, text) {
  const node = make("button", undefined, { class: "link", type: "button",
    title: TABLES[table] });
  for (const word of (text || nameOf(table, row)).split(/(?<=[._])/)) // where a long name may break
    node.append(word, document.createElement("wbr"));
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
