// Versions: where each comes from, how it was judged, and how it does on every slice of what was learned.

import { el, fill, number, pill, say, table } from "./dom.js";
import { full, listed, present, unknown } from "./looks.js";
import { store } from "./store.js";
import { count, loss, moment, percent, plural, share, signed } from "./words.js";

const NONE = "No version yet: a finished run that is not worse becomes the first.";
const READING = "Reading the versions.";
const UNTESTED = unknown("No version has been examined slice by slice yet.");
const MATRIX = "Accuracy, or loss where answers are not judged, of every version on every slice";

const MEASURES = {
  answers: "answers graded right",
  preference: "chosen answers preferred",
  verbatim: "expected answers said word for word",
  loss: "loss alone",
};

export function drawLineage() {
  drawVersions();
  drawMatrix();
}

const DECISIONS = { promote: ["promoted", "good"], hold: ["held", "warn"] };
const decisionPill = (decision) => pill(...(DECISIONS[decision] ?? [decision ?? "—"]));

function drawVersions() {
  const { versions } = store;
  const list = versions?.versions ?? [];
  present("versions", ["versions"], listed(versions?.versions, NONE, READING), true);
  say("versions-lead", versions?.current ? `current is ${versions.current}` : "");
  if (!list.length) return;
  const columns = [
    "version",
    "continues",
    "file",
    number("steps"),
    number("training loss"),
    "held-out loss",
    "verdict",
    "why",
    "made",
  ];
  fill("versions-body", versions, () => table("Versions, newest first", columns, newestFirst(list).map(versionRow)));
}

const newestFirst = (list) => [...list].sort((a, b) => b.name.localeCompare(a.name, "en", { numeric: true }));

function versionRow(one) {
  return {
    marked: one.is_current,
    cells: [
      el("span", { class: "marks" }, one.name, one.is_current ? pill("current", "best") : null),
      one.parent ?? "the base model",
      one.kind === "consolidation" ? "merged into a full model" : one.input_name,
      count(one.steps),
      loss(one.train_loss),
      heldOut(one.held_out),
      decisionPill(one.decision),
      el("span", { class: "clamp", title: one.decision_reason }, one.decision_reason ?? "—"),
      moment(one.created_at),
    ],
  };
}

function heldOut(result) {
  if (!result || result.after_loss === null) return "—";
  const change = result.before_loss === null ? null : result.after_loss - result.before_loss;
  const tone = change === null ? "soft" : change <= 0 ? "gain" : "harm";
  const [low, high] = result.interval ?? [];
  return el(
    "span",
    {
      class: "nowrap",
      title: result.interval && `mean change over records between ${signed(low)} and ${signed(high)}`,
    },
    `${loss(result.before_loss)} → ${loss(result.after_loss)} `,
    change === null ? null : el("span", { class: tone }, signed(change, 3)),
  );
}

function drawMatrix() {
  const matrix = store.versions?.matrix ?? null;
  const isKnown = Boolean(matrix?.slices.length && matrix.rows.length);
  const look = listed(store.versions?.versions, NONE, READING);
  present("matrix", ["versions"], look === full && !isKnown ? UNTESTED : look, true);
  say("matrix-lead", isKnown ? sizeOf(matrix) : "");
  if (!isKnown) return;
  const columns = [
    "version",
    ...matrix.slices.map((one) => number(el("span", {}, one.name, el("small", {}, plural(one.records, "record"))))),
    ...["average", "backward transfer", "forward transfer"].map(number),
  ];
  fill("matrix-body", matrix, () => {
    const rows = matrix.rows.map((one) => matrixRow(one, matrix)).reverse();
    const made = table(MATRIX, columns, rows);
    made.classList.add("heat");
    return made;
  });
}

const sizeOf = ({ rows, slices }) => `${plural(rows.length, "version")}, ${plural(slices.length, "slice")}`;

function matrixRow(one, matrix) {
  return {
    marked: one.version === store.versions.current,
    cells: [
      el("span", { class: "marks" }, one.version, decisionPill(one.decision)),
      ...one.cells.map((cell, place) => matrixCell(cell, matrix.rows, place)),
      averageCell(one),
      signed(one.backward_transfer, 3),
      signed(one.forward_transfer, 3),
    ],
  };
}

const averageCell = ({ average_accuracy, average_measures }) =>
  el("span", { title: average_measures.map((one) => MEASURES[one]).join(", ") || null }, share(average_accuracy));

const whatOf = ({ measure, records }) => measure && `${MEASURES[measure]}, of ${plural(records, "record")}`;

/** A cell is as green as its accuracy, or as its loss is low among those of its slice. */
function matrixCell(cell, rows, place) {
  if (!cell) return el("span", { class: "soft" }, "—");
  const losses = rows.map(({ cells }) => cells[place]?.loss ?? null).filter((one) => one !== null);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const hasAccuracy = cell.accuracy !== null && cell.accuracy !== undefined;
  const heat = hasAccuracy ? 100 * cell.accuracy : high > low ? (100 * (high - cell.loss)) / (high - low) : 50;
  const beside = hasAccuracy && cell.loss !== null ? el("small", {}, `loss ${loss(cell.loss)}`) : null;
  const told = hasAccuracy ? percent(100 * cell.accuracy, 0) : loss(cell.loss);
  const made = el("span", { class: "cell", title: whatOf(cell) }, told, beside);
  made.style.setProperty("--heat", `${heat}%`);
  return made;
}
