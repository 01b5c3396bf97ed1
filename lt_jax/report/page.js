// Sorting, filters and tooltips. Without this script the tables and charts are static.
(() => {
"use strict";
const all = (what, under = document) => [...under.querySelectorAll(what)];
document.documentElement.classList.add("js");

// Tables: a button in every header sorts the rows of each body.
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/\u2212/g, "-").replace(/,/g, ""));
  return Number.isNaN(number) ? text : number;
};
const compare = (a, b) =>
  typeof a === typeof b
    ? typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true })
    : typeof a === "number" ? -1 : 1;
for (const table of all("table.sortable")) {
  const headers = all("thead th", table);
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "descending" ||
        (!header.hasAttribute("aria-sort") && header.classList.contains("text"));
      headers.forEach(other => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "ascending" : "descending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter(row => row.cells.length === headers.length);
        const keyed = rows.map(row => [value(row, column), row]);
        const known = keyed.filter(([key]) => key !== "nan" && key !== "");
        const rest = keyed.filter(([key]) => key === "nan" || key === "");
        known.sort(([a], [b]) => (down ? 1 : -1) * compare(a, b));
        body.append(...[...known, ...rest].map(([, row]) => row));
      }
    });
  });
}

// Methods: the text and the chips hide rows, columns and series everywhere.
const search = document.getElementById("filter"), chips = all(".chip");
const rules = document.head.appendChild(document.createElement("style"));
const quoted = text => `"${text.replace(/["\\]/g, "\\$&")}"`;
function apply() {
  const words = search.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const hidden = chips.filter(chip =>
    chip.getAttribute("aria-pressed") === "false" ||
    (words.length && !words.some(w => chip.dataset.method.toLowerCase().includes(w))));
  const names = new Set(hidden.map(chip => chip.dataset.method));
  const selectors = [...names].map(name => `[data-m=${quoted(name)}]`);
  for (const header of all(".classes th[data-m]")) {
    if (names.has(header.dataset.m)) {
      const table = header.closest("section").id;
      selectors.push(`#${CSS.escape(table)} td:nth-child(${header.cellIndex + 1})`);
    }
  }
  rules.textContent = selectors.length ? `${selectors.join()}{display:none}` : "";
}
search.addEventListener("input", apply);
for (const chip of chips) {
  chip.addEventListener("click", event => {
    const pressed = chip.getAttribute("aria-pressed") === "true";
    if (event.shiftKey) chips.forEach(c => c.setAttribute("aria-pressed", "false"));
    chip.setAttribute("aria-pressed", String(event.shiftKey || !pressed));
    apply();
  });
}
document.getElementById("every").addEventListener("click", () => {
  search.value = "";
  chips.forEach(chip => chip.setAttribute("aria-pressed", "true"));
  apply();
});
for (const input of all("input.rows")) {
  const named = all("tbody tr", input.closest("section")).map(row =>
    [`${row.cells[0].textContent} ${row.cells[2].textContent}`.toLowerCase(), row]);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const [name, row] of named) row.hidden = !name.includes(wanted);
  });
}

// Charts: the point nearest to the pointer, or the one that the arrow keys reach.
const tip = document.getElementById("tip"), spoken = document.getElementById("spoken");
const scale = text => {
  const [low, high, log, start, end] = text.split(" ").map(Number);
  const f = log ? Math.log : v => v;
  return v => start + (f(v) - f(low)) / (f(high) - f(low)) * (end - start);
};
const points = new WeakMap();
function read(svg) {
  if (points.has(svg)) return points.get(svg);
  const [x, y] = [scale(svg.dataset.x), scale(svg.dataset.y)], found = [];
  const named = svg.dataset.ylabel !== "";
  for (const series of all(".s", svg)) {
    const numbers = series.dataset.v.split(" ").map(Number);
    const spread = (series.dataset.s || "").split(" ");
    const labels = JSON.parse(series.dataset.l || "[]");
    for (let i = 0; 2 * i + 1 < numbers.length; i += 1) {
      const [a, b] = numbers.slice(2 * i, 2 * i + 2);
      const plus = parseFloat(spread[i]) >= 0 ? ` ± ${spread[i]}` : "";
      const parts = [series.querySelector("title").textContent, labels[i] || ""];
      const x_text = svg.dataset.xlabel ? `${svg.dataset.xlabel}: ${a}` : "";
      parts.push(named ? `${x_text && `${x_text}; `}${svg.dataset.ylabel}: ${b}${plus}`
        : `${x_text}${plus}`);
      found.push({ series, x: x(a), y: y(b), text: parts.filter(Boolean).join(" · ") });
    }
  }
  points.set(svg, found);
  return found;
}
const seen = point => getComputedStyle(point.series).display !== "none";
function show(svg, point) {
  all(".s.hot").forEach(series => series.classList.remove("hot"));
  all("svg.busy").forEach(other => other.classList.remove("busy"));
  tip.textContent = point ? point.text : "";
  if (!point) return;
  svg.classList.add("busy");
  point.series.classList.add("hot");
  const at = new DOMPoint(point.x, point.y).matrixTransform(svg.getScreenCTM());
  const left = Math.min(at.x + 12, innerWidth - tip.offsetWidth - 6);
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${Math.max(6, at.y - tip.offsetHeight - 10)}px`;
}
for (const svg of all(".panel > svg")) {
  let at = -1;
  svg.querySelectorAll("title").forEach(title => title.setAttribute("data-name", ""));
  svg.addEventListener("pointermove", event => {
    const here = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    let best = null, least = 900;
    for (const point of read(svg)) {
      const far = (point.x - here.x) ** 2 + (point.y - here.y) ** 2;
      if (far < least && seen(point)) [best, least] = [point, far];
    }
    show(svg, best);
  });
  svg.addEventListener("pointerleave", () => show(svg, null));
  svg.addEventListener("blur", () => show(svg, null));
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const shown = read(svg).filter(seen);
    if (event.key === "Escape") show(svg, null);
    if (!step || !shown.length) return;
    event.preventDefault();
    at = (at + step + shown.length) % shown.length;
    show(svg, shown[at]);
    spoken.textContent = shown[at].text;
  });
}
})();
