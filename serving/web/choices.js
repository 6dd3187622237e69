// Which checkpoint is best and why; which layers of the adapter learn.

import { amount, el, fill, pill, say, table } from "./dom.js";
import { empty, full, present, unknown } from "./looks.js";
import { showsCurrentJob, shownJob, store } from "./store.js";
import { bytes, count, fixed, loss, moment, plural, score, signed, small } from "./words.js";

const NO_RUN = "No run yet: its scored checkpoints will be listed here, the best one marked.";
const PARTS = [
  ["eval_loss", "loss"],
  ["gap", "gap"],
  ["perplexity", "perplexity"],
  ["improvement", "bonus"],
];
const SHOWN = 25;
const DEEPEST = 64;

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
  present("checkpoints", ["checkpoints"], list?.length ? full : unknown("This run has no whole checkpoint yet."), !showsCurrentJob());
  if (!list?.length) return;
  say("checkpoints-lead", `${plural(list.length, "checkpoint")}; the lowest score is best`);
  const best = list.find(({ is_best }) => is_best);
  const rows = list.slice(0, SHOWN);
  if (best && !rows.includes(best)) rows.push(best);
  const columns = [{ name: "step", number: true }, { name: "mark" }, { name: "held-out loss", number: true }, { name: "training loss", number: true }, { name: "score", number: true }, { name: "made of" }, { name: "size", number: true }, { name: "saved" }];
  fill("checkpoints-body", [store.checkpoints.job_id, list], () => table("Checkpoints, newest step first", columns, rows.map(checkpointRow)));
}

function checkpointRow(one) {
  const marks = [one.is_best ? pill("⭐ Best (Recommended)", "best") : null, one.is_latest ? pill("latest") : null];
  return {
    marked: one.is_best,
    cells: [count(one.step), el("span", { class: "marks" }, marks), loss(one.eval_loss), loss(one.train_loss), score(one.score), partsOf(one), bytes(one.size_bytes), moment(one.created_at)],
  };
}

/** The terms of a score as a bar and, term by term, in words. */
function partsOf({ parts, score: total }) {
  if (!parts || total === null) return parts?.reason ?? "not scored";
  const known = PARTS.filter(([name]) => typeof parts[name] === "number");
  const whole = known.reduce((sum, [name]) => sum + Math.abs(parts[name]), 0) || 1;
  const bar = known.map(([name]) => amount(el("i", { class: name }), (100 * Math.abs(parts[name])) / whole));
  const words = known.map(([name, title]) => `${title} ${signed(parts[name])}`).join(" · ");
  return el("span", { class: "parts" }, el("span", { class: "stack", "aria-hidden": "true" }, bar), el("small", {}, words));
}

function drawLayers() {
  const { status } = store;
  const summary = status?.lora_summary ?? null;
  const stats = status?.lora_stats ?? null;
  present("lora", ["status"], !status ? empty("No run yet: every adapted layer is watched as it learns.") : summary ? full : unknown("The layers have not been looked at yet."));
  if (!summary) return;
  const dead = summary.dead_layers ?? [];
  say("lora-lead", `${count(summary.active_layers)} of ${count(summary.total_layers)} active`);
  fill("lora-body", [summary, stats], () => [
    el("h4", {}, "Strongest gradients"),
    ranking(summary.top_layers ?? []),
    el("h4", {}, "Dead layers"),
    dead.length ? el("ul", { class: "plainlist" }, dead.slice(0, 8).map((name) => el("li", {}, shortName(name))), dead.length > 8 ? el("li", {}, `and ${dead.length - 8} more`) : null) : el("p", { class: "soft" }, "None: every layer gets a gradient."),
    stats ? depths(stats) : null,
  ]);
}

/** Without the parts that all names share: what stays is layer, block and projection. */
const shortName = (name) => name.replace(/^(?:base_model\.)?(?:model\.)*(?:layers|h|blocks)\./, "").replace(/\.(?:self_attn|mlp|attn)\./, " · ");

function ranking(layers) {
  const most = Math.max(...layers.map(({ grad_norm }) => grad_norm), 1e-12);
  return el(
    "ol",
    { class: "ranking" },
    layers.map(({ name, grad_norm }) => el("li", {}, el("span", { title: name }, shortName(name)), amount(el("i", { "aria-hidden": "true" }), (100 * grad_norm) / most), el("b", {}, small(grad_norm)))),
  );
}

/** Mean gradient and update of each depth, as small bars with their numbers in a table. */
function depths(stats) {
  const byDepth = new Map();
  for (const [name, layer] of Object.entries(stats)) {
    const depth = Number(name.match(/\.(\d+)\./)?.[1] ?? NaN);
    if (!Number.isNaN(depth)) byDepth.set(depth, [...(byDepth.get(depth) ?? []), layer]);
  }
  const rows = [...byDepth].sort(([a], [b]) => a - b).slice(0, DEEPEST).map(([depth, layers]) => [depth, mean(layers, "mean_grad_norm"), mean(layers, "effective_rank")]);
  if (!rows.length) return null;
  const most = Math.max(...rows.map(([, gradient]) => gradient ?? 0), 1e-12);
  const columns = [{ name: "depth", number: true }, { name: "mean gradient" }, { name: "effective rank", number: true }];
  const made = table("Gradients by depth, the layer nearest to the input first", columns, rows.map(([depth, gradient, rank]) => ({
    cells: [count(depth), el("span", { class: "meterline" }, amount(el("i", { "aria-hidden": "true" }), (100 * (gradient ?? 0)) / most), el("b", {}, small(gradient))), fixed(rank, 1)],
  })));
  return [el("h4", {}, "By depth"), el("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Layers by depth" }, made)];
}

function mean(layers, field) {
  const values = layers.map((layer) => layer[field]).filter((value) => typeof value === "number");
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}
