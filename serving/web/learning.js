// The curves of the run shown.

import { Chart } from "./charts.js";
import { byId, say } from "./dom.js";
import { empty, full, present, unknown } from "./looks.js";
import { showsCurrentJob, shownJob, store } from "./store.js";
import { count, fixed, loss, percent, share, signed, small, trend } from "./words.js";

const charts = {};
const NO_RUN = "No run yet: drop a file into inbox/ and its curve grows here.";
/** So few points are drawn as points. */
const FEW = 30;
const NATS = { title: { text: "nats per token", standoff: 6 } };
const ONLY_AT_WORK = "Only the run at work counts its answers here; see its evaluations for exact match.";
let isLog = false;

export function prepareLearning(onChange) {
  for (const id of ["loss", "accuracy", "rates", "throughput", "fixed"]) charts[id] = new Chart(id);
  byId("loss-log").addEventListener("click", () => {
    isLog = !isLog;
    byId("loss-log").setAttribute("aria-pressed", String(isLog));
    onChange();
  });
}

export function drawLearning() {
  drawLoss();
  drawAccuracy();
  drawRates();
  drawThroughput();
  drawFixed();
}

const some = (steps) => (steps.length > FEW ? "strong" : "points");
/** The line of a column of the evaluations. */
const evaluated = (column, { step, ...columns }) => ({ x: step, y: columns[column], style: some(step) });
const hasNumbers = (values) => (values ?? []).some((value) => value !== null);
const last = (values) => (values ?? []).findLast((value) => value !== null) ?? null;
const first = (values) => (values ?? []).find((value) => value !== null) ?? null;
const least = (values) => values.filter((value) => value !== null).reduce((a, b) => Math.min(a, b), Infinity);
/** What the status says of the run shown, or null for a run of the past. */
const live = (field) => (showsCurrentJob() ? (store.status?.[field] ?? null) : null);

/** Show a chart that needs the numbers of a run, or say why there is none. */
function chart(id, isKnown, none, picture) {
  const { metrics } = store;
  if (!metrics && !store.trouble.metrics) {
    present(id, ["status"], empty(shownJob() === null ? NO_RUN : "Reading the numbers of this run."));
    return;
  }
  const content = metrics && isKnown(metrics) ? full : unknown(none);
  present(id, ["metrics"], content, !showsCurrentJob());
  if (content === full) charts[id].show({ view: metrics.job_id, ...picture(metrics) });
}

function drawLoss() {
  chart(
    "loss",
    ({ steps }) => hasNumbers(steps.loss),
    "This run has made no step yet.",
    (metrics) => {
      const { steps, evaluations, checkpoints } = metrics;
      const { step } = steps;
      const best = checkpoints.filter(({ is_best }) => is_best);
      const floor = least([...steps.loss, ...evaluations.eval_loss]);
      const height = (checkpoint) => checkpoint.eval_loss ?? floor;
      const others = checkpoints.filter(({ is_best }) => !is_best);
      const marks = (list) => ({ x: list.map(({ step }) => step), y: list.map(height) });
      return {
        key: JSON.stringify([
          metrics.job_id,
          last(step),
          last(steps.loss),
          evaluations.step.length,
          checkpoints,
          isLog,
        ]),
        series: [
          { name: "training, each step", x: step, y: steps.loss, style: "faint", colour: "faint" },
          { name: "training, moving average", x: step, y: steps.ema_loss, style: "strong", colour: "blue" },
          { name: "held-out", ...evaluated("eval_loss", evaluations), colour: "orange" },
          { name: "checkpoint", ...marks(others), style: others.length > FEW ? "specks" : "marks", colour: "orange" },
          { name: "best checkpoint", ...marks(best), style: "star", colour: "orange" },
        ].filter(({ x }) => x.length),
        layout: { yaxis: { ...NATS, type: isLog ? "log" : "linear" }, height: 330 },
        sentence: lossSentence(steps, evaluations, best[0]),
      };
    },
  );
  say("loss-lead", leadOfLoss());
}

function leadOfLoss() {
  const average = live("streaming_ce") ?? last(store.metrics?.steps.ema_loss);
  if (average === null) return "";
  const gap = live("val_train_gap");
  const parts = [`average ${loss(average)}`, `last ${loss(live("loss") ?? last(store.metrics?.steps.loss))}`];
  const held = live("validation_loss") ?? last(store.metrics?.evaluations.eval_loss);
  if (held !== null) parts.push(`held-out ${loss(held)}`);
  if (gap !== null) parts.push(`gap ${signed(gap, 3)}`);
  return parts.join(" · ");
}

function lossSentence(steps, evaluations, best) {
  const at = (end) => `${loss(end(steps.loss))} at step ${count(end(steps.step))}`;
  const parts = [`Loss went from ${at(first)} to ${at(last)}`];
  const lowest = least(evaluations.eval_loss);
  if (Number.isFinite(lowest)) parts.push(`the lowest held-out loss is ${loss(lowest)}`);
  if (best) parts.push(`the best checkpoint is step ${count(best.step)}`);
  return `${parts.join("; ")}.`;
}

function drawAccuracy() {
  const { status } = store;
  const isCurrent = showsCurrentJob();
  const history = isCurrent ? (status?.accuracy_history ?? []) : [];
  say("accuracy-lead", isCurrent && status?.total_evals ? leadOfAccuracy(status) : "");
  if (!status) return present("accuracy", ["status"], empty(NO_RUN));
  if (!isCurrent) return present("accuracy", [], unknown(ONLY_AT_WORK));
  if (!status.total_evals) return present("accuracy", ["status"], unknown("No answer has been judged yet."));
  present("accuracy", ["status"], full);
  const byStep = new Map(history);
  const [steps, values] = [[...byStep.keys()], [...byStep.values()]];
  charts.accuracy.show({
    view: status.job_id,
    key: JSON.stringify([status.job_id, history.length, last(steps), last(values)]),
    series: [{ name: "last 20 answers", x: steps, y: values, style: some(steps), colour: "green" }],
    layout: { yaxis: { range: [-3, 103], ticksuffix: " %", nticks: 5 }, showlegend: false },
    sentence: accuracySentence(status),
  });
}

const leadOfAccuracy = ({ accuracy_percent, total_evals, accuracy_trend }) =>
  `${percent(accuracy_percent)} of ${count(total_evals)} · ${trend(accuracy_trend)}`;

function accuracySentence(status) {
  const windows = [
    `Right in the last 20 answers: ${percent(status.accuracy_last_20)}`,
    `last 50: ${percent(status.accuracy_last_50)}`,
    `all: ${percent(status.accuracy_percent)}`,
  ];
  return `${windows.join("; ")} (${count(status.total_correct)} of ${count(status.total_evals)}).`;
}

function drawRates() {
  chart(
    "rates",
    ({ steps }) => hasNumbers(steps.learning_rate),
    "This run has made no step yet.",
    ({ job_id, steps }) => ({
      key: JSON.stringify([job_id, last(steps.step), last(steps.grad_norm), last(steps.learning_rate)]),
      series: [
        { name: "gradient norm", x: steps.step, y: steps.grad_norm, style: "faint", colour: "violet" },
        { name: "learning rate", x: steps.step, y: steps.learning_rate, style: "strong", colour: "blue", axis: "y2" },
      ],
      layout: { yaxis: { rangemode: "tozero" }, yaxis2: { rangemode: "tozero", tickformat: ".1e", nticks: 4 } },
      sentence:
        `Learning rate ${small(last(steps.learning_rate))}, gradient norm before clipping ` +
        `${small(last(steps.grad_norm))} at step ${count(last(steps.step))}.`,
    }),
  );
  const rate = live("learning_rate") ?? last(store.metrics?.steps.learning_rate);
  const norm = live("grad_norm") ?? last(store.metrics?.steps.grad_norm);
  say("rates-lead", rate === null ? "" : `${small(rate)} · norm ${small(norm)}`);
}

function drawThroughput() {
  chart(
    "throughput",
    ({ steps }) => hasNumbers(steps.tokens_per_sec),
    "The speed is known after a few steps.",
    ({ job_id, steps }) => ({
      key: JSON.stringify([job_id, last(steps.step), last(steps.tokens_per_sec)]),
      series: [{ name: "tokens a second", x: steps.step, y: steps.tokens_per_sec, style: "strong", colour: "blue" }],
      layout: { yaxis: { rangemode: "tozero", tickformat: ",~s" }, showlegend: false },
      sentence:
        `Average ${fixed(live("tokens_per_sec_avg"), 0)} tokens a second, ${trend(live("throughput_trend"))}; ` +
        `${count(live("total_tokens"))} tokens trained on in this run.`,
    }),
  );
  const speed = live("tokens_per_sec") ?? last(store.metrics?.steps.tokens_per_sec);
  say("throughput-lead", speed === null ? "" : `${fixed(speed, 0)} tokens/s`);
}

function drawFixed() {
  const none = "No fixed evaluation yet: the same examples are answered again as the run goes on.";
  const isKnown = ({ evaluations }) => hasNumbers(evaluations.fixed_eval_em) || hasNumbers(evaluations.fixed_eval_ce);
  chart("fixed", isKnown, none, ({ job_id, evaluations }) => {
    const [match, cost] = [last(evaluations.fixed_eval_em), last(evaluations.fixed_eval_ce)];
    return {
      key: JSON.stringify([job_id, evaluations.step.length, match, cost]),
      series: [
        { name: "exact match", ...evaluated("fixed_eval_em", evaluations), colour: "green" },
        { name: "loss", ...evaluated("fixed_eval_ce", evaluations), colour: "orange", axis: "y2" },
      ],
      layout: {
        yaxis: { range: [-0.03, 1.03], tickformat: ".0%", nticks: 5 },
        yaxis2: { rangemode: "tozero", nticks: 5 },
      },
      sentence:
        `Exact match ${share(match)}, loss ${loss(cost)}, calibration error ${fixed(live("fixed_eval_ece"), 3)}; ` +
        `${trend(live("fixed_eval_trend"))}.`,
    };
  });
  const match = live("fixed_eval_em") ?? last(store.metrics?.evaluations.fixed_eval_em);
  say("fixed-lead", match === null ? "" : `${share(match)} exact · ${trend(live("fixed_eval_trend"))}`);
}
