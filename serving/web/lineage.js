// Versions: where each comes from, how it was judged, and how it does on every slice of what was learned.

import { el, fill, pill, say, table } from "./dom.js";
import { empty, full, present, unknown } from "./looks.js";
import { store } from "./store.js";
import { count, loss, moment, percent, plural, share, signed } from "./words.js";

const NONE = "No version yet: a finished run that is not worse becomes the first.";

export function drawLineage() {
  drawVersions();
  drawMatrix();
}

const decisionPill = (decision) => (decision === "promote" ? pill("promoted", "good") : decision === "hold" ? pill("held", "warn") : pill(decision ?? "—"));

function drawVersions() {
  const { versions } = store;
  const list = versions?.versions ?? [];
  present("versions", ["versions"], list.length ? full : empty(versions ? NONE : "Reading the versions."), true);
  say("versions-lead", versions?.current ? `current is ${versions.current}` : "");
  if (!list.length) return;
  const columns = [{ name: "version" }, { name: "continues" }, { name: "file" }, { name: "steps", number: true }, { name: "training loss", number: true }, { name: "held-out loss" }, { name: "verdict" }, { name: "why" }, { name: "made" }];
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
  return el(
    "span",
    { class: "nowrap", title: result.interval ? `mean change over records between ${signed(result.interval[0])} and ${signed(result.interval[1])}` : null },
    `${loss(result.before_loss)} → ${loss(result.after_loss)} `,
    change === null ? null : el("span", { class: tone }, signed(change, 3)),
  );
}

function drawMatrix() {
  const matrix = store.versions?.matrix ?? null;
  const isKnown = Boolean(matrix?.slices.length && matrix.rows.length);
  const none = store.versions?.versions.length ? unknown("No version has been examined slice by slice yet.") : empty(store.versions ? NONE : "Reading the versions.");
  present("matrix", ["versions"], isKnown ? full : none, true);
  say("matrix-lead", isKnown ? `${plural(matrix.rows.length, "version")}, ${plural(matrix.slices.length, "slice")}` : "");
  if (!isKnown) return;
  const columns = [
    { name: "version" },
    ...matrix.slices.map(({ name, records }) => ({ name: el("span", {}, name, el("small", {}, plural(records, "record"))), number: true })),
    { name: "average", number: true },
    { name: "backward transfer", number: true },
    { name: "forward transfer", number: true },
  ];
  fill("matrix-body", matrix, () => {
    const made = table("Accuracy, or loss where answers are not judged, of every version on every slice", columns, [...matrix.rows].reverse().map((one) => matrixRow(one, matrix)));
    made.classList.add("heat");
    return made;
  });
}

function matrixRow(one, matrix) {
  return {
    marked: one.version === store.versions.current,
    cells: [
      el("span", { class: "marks" }, one.version, decisionPill(one.decision)),
      ...one.cells.map((cell, place) => matrixCell(cell, matrix.rows.map(({ cells }) => cells[place]))),
      share(one.average_accuracy),
      signed(one.backward_transfer, 3),
      signed(one.forward_transfer, 3),
    ],
  };
}

/** A cell is as green as its accuracy, or as its loss is low among those of its slice. */
function matrixCell(cell, column) {
  if (!cell) return el("span", { class: "soft" }, "—");
  const losses = column.filter((one) => one && one.loss !== null).map((one) => one.loss);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const hasAccuracy = cell.accuracy !== null && cell.accuracy !== undefined;
  const heat = hasAccuracy ? 100 * cell.accuracy : high > low ? (100 * (high - cell.loss)) / (high - low) : 50;
  const made = el("span", { class: "cell" }, hasAccuracy ? percent(100 * cell.accuracy, 0) : loss(cell.loss), hasAccuracy && cell.loss !== null ? el("small", {}, `loss ${loss(cell.loss)}`) : null);
  made.style.setProperty("--heat", `${heat}%`);
  return made;
}
