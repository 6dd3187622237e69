// Which checkpoint is best and why; which layers of the adapter learn.

import { amount, el, fill, number, pill, say, table } from "./dom.js";
import { empty, full, known, present, unknown } from "./looks.js";
import { showsCurrentJob, shownJob, store } from "./store.js";
import { bytes, count, fixed, loss, moment, plural, score, signed, small } from "./words.js";

const NO_RUN = "No run yet: its scored checkpoints will be listed here, the best one marked.";
const NO_LAYERS_YET = "No run yet: every adapted layer is watched as it learns.";
const NO_CHECKPOINT = unknown("This run has no whole checkpoint yet.");
const PARTS = [
  ["eval_loss", "loss"],
  ["gap", "gap"],
  ["perplexity", "perplexity"],
  ["improvement", "bonus"],
];
const SHOWN = 25;
const DEEPEST = 64;
const NAMED_DEAD = 8;

export function drawChoices() {
  drawCheckpoints();
  drawLayers();
}

function drawCheckpoints() {
  const list = store.checkpoints?.checkpoints ?? null;
  if (list === null && !store.trouble.checkpoints) {
    present("checkpoints", ["status"], empty(shownJob() === null ? NO_RUN : "Reading the checkpoints of this run."));
    return;
  }
  present("checkpoints", ["checkpoints"], list?.length ? full : NO_CHECKPOINT, !showsCurrentJob());
  if (!list?.length) return;
  say("checkpoints-lead", `${plural(list.length, "checkpoint")}; the lowest score is best`);
  const best = list.find(({ is_best }) => is_best);
  const rows = list.slice(0, SHOWN);
  if (best && !rows.includes(best)) rows.push(best);
  const columns = [
    number("step"),
    "mark",
    number("held-out loss"),
    number("training loss"),
    number("score"),
    "made of",
    number("size"),
    "saved",
  ];
  fill("checkpoints-body", [store.checkpoints.job_id, list], () =>
    table("Checkpoints, newest step first", columns, rows.map(checkpointRow)),
  );
}

function checkpointRow(one) {
  const marks = [one.is_best ? pill("⭐ Best (Recommended)", "best") : null, one.is_latest ? pill("latest") : null];
  return {
    marked: one.is_best,
    cells: [
      ...[count(one.step), el("span", { class: "marks" }, marks), loss(one.eval_loss), loss(one.train_loss)],
      ...[score(one.score), partsOf(one), bytes(one.size_bytes), moment(one.created_at)],
    ],
  };
}

/** The terms of a score as a bar and, term by term, in words. */
function partsOf({ parts, score: total }) {
  if (!parts || total === null) return parts?.reason ?? "not scored";
  const told = PARTS.filter(([name]) => typeof parts[name] === "number");
  const whole = told.reduce((sum, [name]) => sum + Math.abs(parts[name]), 0) || 1;
  const shares = told.map(([name]) => amount(el("i", { class: name }), (100 * Math.abs(parts[name])) / whole));
  const words = told.map(([name, title]) => `${title} ${signed(parts[name])}`).join(" · ");
  const stack = el("span", { class: "stack", "aria-hidden": "true" }, shares);
  return el("span", { class: "parts" }, stack, el("small", {}, words));
}

function drawLayers() {
  const { status } = store;
  const summary = status?.lora_summary ?? null;
  const stats = status?.lora_stats ?? null;
  present("lora", ["status"], known(summary, "The layers have not been looked at yet.", NO_LAYERS_YET));
  if (!summary) return;
  say("lora-lead", `${count(summary.active_layers)} of ${count(summary.total_layers)} active`);
  fill("lora-body", [summary, stats], () => [
    el("h4", {}, "Strongest gradients"),
    ranking(summary.top_layers ?? []),
    el("h4", {}, "Dead layers"),
    deadLayers(summary.dead_layers ?? []),
    stats ? depths(stats) : null,
  ]);
}

function deadLayers(dead) {
  if (!dead.length) return el("p", { class: "soft" }, "None: every layer gets a gradient.");
  const named = dead.slice(0, NAMED_DEAD).map((name) => el("li", {}, shortName(name)));
  const rest = dead.length - named.length;
  return el("ul", { class: "plainlist" }, named, rest ? el("li", {}, `and ${rest} more`) : null);
}

const SHARED = /^(?:base_model\.)?(?:model\.)*(?:layers|h|blocks)\./;
const BLOCK = /\.(?:self_attn|mlp|attn)\./;
/** Without the parts that all names share: what stays is layer, block and projection. */
const shortName = (name) => name.replace(SHARED, "").replace(BLOCK, " · ");

/** A bar, so long a part of the longest, that a number beside it tells to who cannot see it. */
const bar = (value, most) => amount(el("i", { "aria-hidden": "true" }), (100 * value) / most);

function ranking(layers) {
  const most = Math.max(...layers.map(({ grad_norm }) => grad_norm), 1e-12);
  return el(
    "ol",
    { class: "ranking" },
    layers.map(({ name, grad_norm }) =>
      el("li", {}, el("span", { title: name }, shortName(name)), bar(grad_norm, most), el("b", {}, small(grad_norm))),
    ),
  );
}

/** Mean gradient and update of each depth, as small bars with their numbers in a table. */
function depths(stats) {
  const byDepth = new Map();
  for (const [name, layer] of Object.entries(stats)) {
    const depth = Number(name.match(/\.(\d+)\./)?.[1] ?? NaN);
    if (!Number.isNaN(depth)) byDepth.set(depth, [...(byDepth.get(depth) ?? []), layer]);
  }
  const found = [...byDepth].sort(([a], [b]) => a - b).slice(0, DEEPEST);
  if (!found.length) return null;
  const gradients = found.map(([, layers]) => mean(layers, "mean_grad_norm"));
  const most = Math.max(...gradients.map((gradient) => gradient ?? 0), 1e-12);
  const columns = [number("depth"), "mean gradient", number("effective rank")];
  const rows = found.map(([depth, layers], place) => {
    const gradient = gradients[place];
    const line = el("span", { class: "meterline" }, bar(gradient ?? 0, most), el("b", {}, small(gradient)));
    return { cells: [count(depth), line, fixed(mean(layers, "effective_rank"), 1)] };
  });
  const made = table("Gradients by depth, the layer nearest to the input first", columns, rows);
  const region = { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Layers by depth" };
  return [el("h4", {}, "By depth"), el("div", region, made)];
}

function mean(layers, field) {
  const values = layers.map((layer) => layer[field]).filter((value) => typeof value === "number");
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}
