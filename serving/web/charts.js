// Charts, drawn by plotly when they come into view; each says in a sentence and a table what it shows.
// Only numbers and words of our own go to plotly, since it reads markup in texts.

import { byId, el, number, say, table } from "./dom.js";
import { count, small } from "./words.js";

const SCRIPT = "/vendor/plotly.min.js";
/** Plotly leaves out a style element, which the page may not make, when one with this id is there. */
const UNWANTED_STYLE = "9f215cf04c5486422605d13261cb87401f4e7763b6296af81e98efbc0130da53";
const OPTIONS = { displayModeBar: false, responsive: true, displaylogo: false };
const TABLE_ROWS = 25;
const SOON = "400px";
/** What could not be drawn is tried again after so long. */
const RETRY_MS = 5000;

let loading = null;

/** Load plotly once, after the texts have been painted; where it does not come, the next call tries anew. */
function plotly() {
  loading ??= new Promise((resolve, reject) => {
    if (!byId(UNWANTED_STYLE)) document.head.append(el("meta", { id: UNWANTED_STYLE }));
    const script = el("script", { src: SCRIPT });
    script.addEventListener("load", () => resolve(globalThis.Plotly));
    script.addEventListener("error", () => {
      script.remove();
      loading = null;
      reject(new Error(`${SCRIPT} could not be loaded`));
    });
    requestAnimationFrame(() => setTimeout(() => document.head.append(script)));
  });
  return loading;
}

const charts = [];

export class Chart {
  #id;
  #node;
  #wanted = null;
  #drawn = null;
  #isNear = false;
  #isDrawing = false;
  #sentence = "";
  #trouble = "";
  #retryAt = 0;

  constructor(id) {
    this.#id = id;
    this.#node = byId(`${id}-chart`);
    charts.push(this);
    new IntersectionObserver(
      ([entry]) => {
        this.#isNear = entry.isIntersecting;
        this.#draw();
      },
      { rootMargin: SOON },
    ).observe(this.#node);
    this.#details.addEventListener("toggle", () => this.#tell());
  }

  /**
   * Show series {name, x, y, style} with a sentence for those who cannot see them.
   * `key` changes when something has changed; `layout` may add axes, `view` names what a zoom belongs to.
   */
  show({ key, series, layout = {}, sentence, view }) {
    this.#sentence = sentence;
    this.#say();
    if (this.#wanted?.key !== key) {
      this.#wanted = { key, series, layout, view };
      this.#tell();
    }
    this.#draw();
  }

  /** Draw again with the colours of now. */
  repaint() {
    this.#drawn = null;
    this.#draw();
  }

  get #details() {
    return this.#node.closest(".panel").querySelector("details.numbers");
  }

  async #draw() {
    if (!this.#isNear || this.#isDrawing || !this.#wanted || this.#drawn === this.#wanted.key) return;
    if (performance.now() < this.#retryAt) return;
    this.#isDrawing = true;
    const { key, series, layout, view } = this.#wanted;
    this.#drawn = key;
    try {
      const library = await plotly();
      const ink = colours();
      await library.react(
        this.#node,
        series.map((one) => trace(one, ink)),
        paint(layout, ink, view),
        OPTIONS,
      );
      this.#trouble = "";
    } catch (error) {
      this.#trouble = ` ${error.message}; the numbers are in the table. Trying again.`;
      this.#drawn = null;
      this.#retryAt = performance.now() + RETRY_MS;
    } finally {
      this.#isDrawing = false;
    }
    this.#say();
    this.#draw();
  }

  #say() {
    say(`${this.#id}-text`, this.#sentence + this.#trouble);
  }

  #tell() {
    if (!this.#details.open || !this.#wanted) return;
    const { series } = this.#wanted;
    const region = this.#details.querySelector(".scroll");
    region.replaceChildren(numbers(region.getAttribute("aria-label"), series));
  }
}

export function repaintCharts() {
  for (const chart of charts) chart.repaint();
}

/** The last rows of all series, by step. */
function numbers(caption, series) {
  const named = series.filter((one) => one.name);
  const steps = [...new Set(named.flatMap((one) => one.x))].sort((a, b) => b - a).slice(0, TABLE_ROWS);
  const at = named.map((one) => new Map(one.x.map((step, place) => [step, one.y[place]])));
  const columns = [number("step"), ...named.map(({ name }) => number(name))];
  const rows = steps.map((step) => ({ cells: [count(step), ...at.map((values) => small(values.get(step)))] }));
  return table(`${caption}, the last ${TABLE_ROWS} steps shown`, columns, rows);
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: colour("ink"),
    soft: colour("soft"),
    line: colour("line"),
    card: colour("card"),
    blue: colour("blue"),
    orange: colour("orange"),
    green: colour("green"),
    violet: colour("violet"),
    faint: colour("faint"),
  };
}

/** Styles: "faint", "strong", "points", "marks", "specks" and "star", each in the colour named. */
function trace({ name, x, y, style, colour, axis }, ink) {
  const hue = ink[colour ?? "blue"];
  const mark = (symbol, size, width) => ({
    mode: "markers",
    marker: { color: ink.card, size, symbol, line: { color: hue, width } },
  });
  const shapes = {
    faint: { mode: "lines", line: { color: hue, width: 1 } },
    strong: { mode: "lines", line: { color: hue, width: 2 } },
    points: { mode: "lines+markers", line: { color: hue, width: 1.5 }, marker: { color: hue, size: 6 } },
    marks: mark("diamond", 9, 1.5),
    specks: mark("diamond", 5, 1),
    star: {
      mode: "markers",
      marker: { color: hue, size: 15, symbol: "star", line: { color: ink.card, width: 1 } },
    },
  };
  return {
    type: "scatter",
    name,
    x,
    y,
    yaxis: axis ?? "y",
    hovertemplate: "%{y:.5~g}",
    connectgaps: true,
    cliponaxis: false,
    ...shapes[style],
  };
}

function paint({ yaxis = {}, yaxis2, ...rest }, ink, view) {
  const axis = {
    color: ink.soft,
    gridcolor: ink.line,
    zeroline: false,
    linecolor: ink.line,
    tickfont: { size: 11 },
    automargin: true,
    nticks: 6,
    exponentformat: "power",
    fixedrange: matchMedia("(pointer: coarse)").matches,
  };
  const right = { overlaying: "y", side: "right", showgrid: false, tickmode: "auto" };
  return {
    uirevision: view,
    height: Math.max(220, byHeight()),
    margin: { l: 8, r: 8, t: 8, b: 30 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "Inter, system-ui, sans-serif", size: 12, color: ink.soft },
    hovermode: "x unified",
    hoverlabel: { bgcolor: ink.card, bordercolor: ink.line, font: { color: ink.ink, size: 12 } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12, color: ink.soft } },
    xaxis: { ...axis, showgrid: false, tickformat: ",d", rangemode: "tozero" },
    yaxis: { ...axis, ...yaxis },
    ...(yaxis2 && { yaxis2: { ...axis, ...right, ...yaxis2 } }),
    ...rest,
  };
}

const byHeight = () => (matchMedia("(max-width: 700px)").matches ? 220 : 250);
