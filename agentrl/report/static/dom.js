"use strict";
// Elements and numbers. Text from a run only ever becomes a text node, never markup.

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, text]) => element.style.setProperty(key, text));
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  add(element, children);
  return element;
}

// Control characters, escape sequences and marks that turn the direction of writing become visible.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f\u0080-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;

function shown(text) {
  return String(text ?? "").replace(/\r\n/g, "\n").replace(HIDDEN, (char) => {
    const code = char.charCodeAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return code === 127 ? "\u2421" : `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

const CUT = 6000;

// Long text is shown in pieces: ten megabytes at once would stop the browser.
function longText(text, make) {
  const all = String(text ?? "");
  const box = h("div", { class: "long" });
  let at = 0;
  const more = h("button", { type: "button", class: "small", onclick: () => step() });
  const step = () => {
    const piece = all.slice(at, at + (at ? 10 * CUT : CUT));
    at += piece.length;
    more.before(make(piece));
    more.hidden = at >= all.length;
    more.textContent = `Show more (${number(all.length - at)} characters left)`;
  };
  box.append(more);
  step();
  return box;
}

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 10000 ? String(value).replace("-", "\u2212") : value.toLocaleString("en-US").replace("-", "\u2212");
  const size = Math.abs(value);
  const text = size !== 0 && (size < 0.001 || size >= 1e7) ? value.toExponential(2)
    : size >= 1000 ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "\u2212");
}

function signed(value, digits = 3) {
  return value === null || value === undefined ? "\u2013" : (value > 0 ? "+" : "") + number(value, digits);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "\u2013";
  if (seconds < 0.001) return `${number(seconds * 1e6, 2)} \u00b5s`;
  if (seconds < 1) return `${number(seconds * 1000, 3)} ms`;
  if (seconds < 120) return `${number(seconds)} s`;
  const total = Math.round(seconds);
  if (total < 7200) return `${Math.floor(total / 60)} min ${total % 60} s`;
  return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
}

function percent(value) {
  return value === null || value === undefined ? "\u2013" : `${number(100 * value, 3)}%`;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function heading(title, ...note) {
  return h("div", { class: "heading" }, h("h1", {}, title), note.length ? h("p", {}, note) : null);
}

function empty(text) {
  return h("p", { class: "empty" }, text);
}

function chip(label, value, kind) {
  return h("span", { class: `chip ${kind || ""}` }, h("span", { class: "of" }, label), h("b", {}, value));
}

// Columns: {key, title, text(row), number, sort}. Headers that can be sorted by are buttons.
function table(columns, rows, { sort, order, onsort, onrow, caption } = {}) {
  const head = columns.map((column) => {
    const on = column.sort && column.sort === sort;
    const label = column.sort && onsort
      ? h("button", { type: "button", onclick: () => onsort(column.sort, on && order === "desc" ? "asc" : "desc") },
        column.title, h("span", { class: "arrow", "aria-hidden": "true" }, on ? (order === "asc" ? "\u2191" : "\u2193") : ""))
      : column.title;
    return h("th", { scope: "col", class: column.number ? "n" : "", "aria-sort": on ? (order === "asc" ? "ascending" : "descending") : null }, label);
  });
  const body = rows.map((row) => h("tr", { class: onrow ? "link" : "", onclick: onrow ? (event) => event.target.closest("a,button") || onrow(row) : null },
    columns.map((column) => h("td", { class: `${column.number ? "n" : ""} ${column.kind || ""}` }, column.text(row)))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "table" },
    h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}
