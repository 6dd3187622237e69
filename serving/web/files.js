// The way of a file: what waits, how the last files were judged, which jobs there were.

import { byId, el, facts, fill, number, pill, say, table } from "./dom.js";
import { empty, full, listed, nothing, present } from "./looks.js";
import { shownJob, store } from "./store.js";
import { bytes, count, moment, plural } from "./words.js";

const REFUSALS = 3;
const NOTHING_WAITS = "Nothing waits. Drop .jsonl, .json, .jsonl.gz, .csv or .parquet into inbox/.";
const NO_REPORTS = "No file has been dealt with yet; each gets a report card.";
const TONES = { completed: "good", running: "good", refused: "warn", failed: "bad", skipped: "plain", paused: "warn" };

export function drawFiles() {
  drawChoice();
  drawQueue();
  drawReports();
  drawJobs();
}

export function prepareFiles(onChange) {
  byId("run-choice").addEventListener("change", (event) => {
    store.chosen = event.target.value || null;
    onChange();
  });
}

function drawChoice() {
  const jobs = store.jobs?.jobs ?? [];
  fill(
    "run-choice",
    jobs.map(({ job_id, name }) => [job_id, name]),
    () => [
      el("option", { value: "" }, "the one at work"),
      ...jobs.map(({ job_id, number, name }) => el("option", { value: job_id }, `${number} · ${name}`)),
    ],
  );
  byId("run-choice").value = store.chosen ?? "";
}

function drawQueue() {
  const { inbox, status } = store;
  const waiting = [...(inbox?.queued ?? []), ...(inbox?.waiting ?? [])];
  const left = Object.entries(status?.queue?.left_in_place ?? {});
  const isThere = waiting.length > 0 || left.length > 0;
  const none = inbox ? nothing(NOTHING_WAITS) : empty("Reading the inbox.");
  present("queue", ["inbox"], isThere ? full : none);
  say("queue-lead", isThere ? plural(waiting.length, "file") : "");
  fill("queue-body", [inbox?.queued, inbox?.waiting, left], () => [
    el("ol", { class: "plainlist queue" }, waiting.map(queued)),
    left.length ? el("h4", {}, "Left where they are") : null,
    left.length ? el("dl", { class: "facts" }, facts(left)) : null,
  ]);
}

/** A job in the queue, or a file that is none yet: that has no state, but a size. */
function queued({ name, size_bytes, priority, state = "arriving" }) {
  const word = state === "running" ? "at work" : state;
  const size = size_bytes == null ? "" : `, ${bytes(size_bytes)}`;
  const urgency = priority && priority !== "normal" ? pill(priority) : null;
  return el("li", {}, el("span", { class: "name" }, name), urgency, el("span", { class: "soft" }, word + size));
}

function drawReports() {
  const recent = store.inbox?.recent ?? [];
  present("reports", ["inbox"], listed(store.inbox?.recent, NO_REPORTS, "Reading the report cards."), true);
  say("reports-lead", recent.length ? plural(recent.length, "file") : "");
  const columns = [
    "file",
    "went to",
    number("records"),
    number("to train"),
    number("held out"),
    number("refused"),
    "what to know",
  ];
  fill("reports-body", recent, () => table("Report cards, newest first", columns, recent.map(reportRow)));
}

const PLACES = { done: "good", rejected: "warn", failed: "bad", skipped: "plain" };

function reportRow({ name, place, report }) {
  const cells = [el("span", { class: "name" }, name), pill(place, PLACES[place])];
  if (!report) return { cells: [...cells, "—", "—", "—", "—", "No report card."] };
  const counts = [report.records_total, report.accepted, report.held_out, report.refused].map(count);
  return { cells: [...cells, ...counts, remarks(report)] };
}

function remarks(report) {
  const refusals = (report.refusals ?? []).slice(0, REFUSALS);
  const words = [report.reason, ...(report.notes ?? [])].filter(Boolean);
  if (!words.length && !refusals.length) return report.format_reason ?? "Every record is usable.";
  const paragraphs = words.map((word) => el("p", {}, word));
  if (!refusals.length) return el("div", {}, paragraphs);
  const summary = el("summary", {}, plural(report.refused, "refused record"));
  return el("div", {}, paragraphs, el("details", {}, summary, el("ul", {}, refusals.map(refusal))));
}

const refusal = ({ line, field, found, expected, remedy }) =>
  el("li", {}, `${line}: ${field}: found ${found}, expected ${expected}; ${remedy}`);

function drawJobs() {
  const jobs = store.jobs?.jobs ?? [];
  present("jobs", ["jobs"], listed(store.jobs?.jobs, "No file has become a job yet.", "Reading the jobs."), true);
  say("jobs-lead", jobs.length ? `the last ${count(jobs.length)}` : "");
  const columns = [
    "file",
    number("number"),
    "state",
    number("steps"),
    number("attempts"),
    "version",
    "verdict",
    "taken",
    "said",
  ];
  fill("jobs-body", [jobs, shownJob()], () => table("Jobs, newest first", columns, jobs.map(jobRow)));
}

function jobRow(job) {
  return {
    marked: job.job_id === shownJob(),
    cells: [
      el("span", { class: "name" }, job.name),
      count(job.number),
      pill(job.state, TONES[job.state] ?? "plain"),
      job.total_steps == null ? "—" : `${count(job.step)} of ${count(job.total_steps)}`,
      count(job.attempts),
      job.version ?? "—",
      job.decision ?? "—",
      moment(job.claimed_at),
      el("span", { class: "clamp", title: job.message }, job.message ?? "—"),
    ],
  };
}
