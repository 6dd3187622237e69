// Building blocks of the page. Every text becomes a text node: what models and files say is never markup.

/** Return an element with attributes and children; null children are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Set the text of an element, touching the page only where it differs. */
export function say(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

/** Fill an element anew when what it shows has changed; keeps focus, selection and scrolling otherwise. */
const shown = new WeakMap();
export function fill(id, key, build) {
  const node = byId(id);
  const text = JSON.stringify(key) ?? "";
  if (shown.get(node) === text) return;
  shown.set(node, text);
  node.replaceChildren(...[build()].flat(Infinity).filter(Boolean));
}

/** Set a length in percent as a custom property of CSS. */
export function amount(node, percent) {
  node.style.setProperty("--amount", `${Math.max(0, Math.min(100, percent))}%`);
  return node;
}

/** A column of numbers. */
export const number = (name) => ({ name, isNumber: true });

/** A table with a caption for screen readers; `columns` are names or `number`s, `rows` {cells, marked?}. */
export function table(caption, columns, rows) {
  const kinds = columns.map((column) => column.isNumber && "number");
  const head = columns.map((column, place) => el("th", { scope: "col", class: kinds[place] }, column.name ?? column));
  return el(
    "table",
    {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, head)),
    el(
      "tbody",
      {},
      rows.map((one) => row(kinds, one)),
    ),
  );
}

function row(kinds, { cells, marked }) {
  const made = cells.map((cell, place) => {
    const attributes = { class: kinds[place] };
    if (place === 0) return el("th", { scope: "row", ...attributes }, cell);
    return el("td", attributes, cell);
  });
  return el("tr", { class: marked && "marked" }, made);
}

/** Pairs of a name and a value. */
export function facts(pairs) {
  return pairs
    .filter(Boolean)
    .map(([name, value, hint]) =>
      el("div", { title: hint }, el("dt", {}, name), el("dd", {}, value === null ? "—" : value)),
    );
}

/** A word in a coloured pill; `tone` is good, warn, bad or plain. */
export const pill = (text, tone = "plain") => el("span", { class: `pill ${tone}` }, text);
