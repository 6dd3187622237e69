// The head of the page: what the daemon does, five answers at one glance, and the alerts.

import { amount, byId, el, facts, fill, pill, say, table } from "./dom.js";
import { empty, full, present } from "./looks.js";
import { heartbeatAge, isSilent, store } from "./store.js";
import { capital, count, duration, fixed, loss, moment, percent, plural, score, signed, UNKNOWN } from "./words.js";

const STATES = {
  idle: "Idle",
  starting: "Starting",
  validating: "Checking records",
  loading: "Loading the model",
  training: "Training",
  evaluating: "Evaluating",
  publishing: "Publishing",
  paused: "Paused",
  waiting: "Waiting",
  stopped: "Stopped",
};
const TONES = { critical: "bad", warning: "warn", info: "plain" };
const NOTHING = "No daemon has run on this folder yet: start one with “trainbox run”.";

export function drawNow() {
  drawState();
  drawGlance();
  drawAlerts();
}

function tone(status) {
  if (store.link === "lost" || isSilent() || status.status === "crashed") return "bad";
  if (status.state === "stopped" || status.state === "paused" || status.state === "waiting") return "warn";
  return status.state === "idle" ? "plain" : "good";
}

function drawState() {
  const { status } = store;
  present("now", ["status"], status ? full : empty(store.isUnused ? NOTHING : "Waiting for the first answer of the server."));
  if (!status) {
    say("now-state", store.isUnused ? "Not started" : store.link === "lost" ? "No connection" : "Connecting");
    byId("now").dataset.tone = "plain";
    return;
  }
  byId("now").dataset.tone = tone(status);
  say("now-state", stateWords(status));
  say("now-file", status.current_file ?? "");
  document.title = title(status);
  drawProgress(status);
  fill("now-facts", factsKey(status), () => facts(factsOf(status)));
  say("now-heartbeat", `${duration(heartbeatAge())} ago`);
  const message = status.error_message ?? status.message;
  byId("now-message").hidden = !message;
  say("now-message", capital(message ?? ""));
}

function stateWords(status) {
  const word = STATES[status.state] ?? capital(status.state);
  if (isSilent()) return `${word}, when last heard of`;
  if (status.status === "crashed") return `${word} after a failed run`;
  if (status.status === "stopping" || status.status === "skipping") return `${word}, ${status.status}`;
  return word;
}

function title(status) {
  const part = progressOf(status);
  const words = part === null || status.state !== "training" ? STATES[status.state] : `${Math.floor(part)} % ${status.current_file ?? ""}`;
  return `${words} · trainbox`;
}

/** Percent of the phase that the daemon is in, or of the file's steps. */
function progressOf({ state, phase_done, phase_total, batch_step, batch_total_steps }) {
  if (state !== "training" && phase_total) return (100 * (phase_done ?? 0)) / phase_total;
  return batch_total_steps ? (100 * (batch_step ?? 0)) / batch_total_steps : null;
}

function drawProgress(status) {
  const bar = byId("now-bar");
  const part = progressOf(status);
  bar.hidden = part === null;
  if (part === null) return;
  amount(bar.firstElementChild, part);
  bar.setAttribute("aria-valuenow", part.toFixed(1));
  bar.setAttribute("aria-valuetext", percent(part));
}

const factsKey = (status) => [
  ...["state", "batch_step", "batch_total_steps", "current_step", "total_steps", "epoch", "eta_seconds", "eta_confidence"],
  ...["queue", "version", "batch_number", "batch_queue_size", "phase_done", "phase_total", "phase_unit", "control", "job_id"],
].map((field) => status[field] ?? null);

function factsOf(status) {
  const { queue, control } = status;
  const waiting = queue ? queue.high + queue.normal + queue.low : null;
  const next = queue?.next_files?.length ? `next ${queue.next_files.join(", ")}` : undefined;
  return [
    ["Step of this file", of(status.batch_step, status.batch_total_steps)],
    ["Step in all", of(status.current_step, status.total_steps)],
    status.phase_total && status.state !== "training" ? [capital(status.phase_unit ?? "done"), of(status.phase_done, status.phase_total)] : null,
    ["Epoch", fixed(status.epoch, 2)],
    ["Time left", timeLeft(status), status.eta_confidence ? `confidence: ${status.eta_confidence}` : undefined],
    ["Heartbeat", el("span", { id: "now-heartbeat" }), moment(status.heartbeat_at)],
    ["Queue", waiting === null ? UNKNOWN : `${plural(waiting, "file")}${queue.settling ? ", one arriving" : ""}`, next],
    ["Current version", status.version ?? "none yet"],
    control ? ["Last command", `${control.command}${control.applied_at ? ", done" : ", under way"}`, control.reason ?? undefined] : null,
  ];
}

function timeLeft({ state, eta_seconds, eta_confidence }) {
  if (eta_seconds === null || state !== "training") return UNKNOWN;
  return `${duration(eta_seconds)}${eta_confidence === "low" ? ", roughly" : ""}`;
}

const of = (done, total) => (total === null || total === undefined ? UNKNOWN : `${count(done)} of ${count(total)}`);

function drawGlance() {
  const answers = [alive(), learning(), advice(), bestCheckpoint(), change()];
  fill("glance-list", answers, () => answers.map(answer));
}

function answer({ question, words, detail, tone: colour = "plain" }) {
  return el(
    "div",
    { "data-tone": colour },
    el("dt", {}, question),
    el("dd", {}, el("strong", {}, words), detail ? el("span", {}, detail) : null),
  );
}

function alive() {
  const question = "Is it alive?";
  const { status, link } = store;
  if (link === "lost") return { question, words: "No connection", detail: "Trying again by itself.", tone: "bad" };
  if (!status) return { question, words: store.isUnused ? "Not started" : UNKNOWN };
  if (status.state === "stopped") return { question, words: "Stopped", detail: `At ${moment(status.heartbeat_at)}, on purpose.`, tone: "warn" };
  const ago = duration(heartbeatAge());
  if (isSilent()) return { question, words: "Silent", detail: `No heartbeat for ${ago}.`, tone: "bad" };
  return { question, words: "Yes", detail: `Heartbeat ${ago} ago.`, tone: "good" };
}

function learning() {
  const question = "Is it learning?";
  const { status } = store;
  const average = status?.streaming_ce ?? null;
  if (average === null) return { question, words: UNKNOWN, detail: "No run has made a step yet." };
  const start = status.train_loss_history?.[0]?.[1] ?? null;
  const detail = start === null ? `Loss ${loss(average)}.` : `Loss ${loss(start)} → ${loss(average)}.`;
  if (status.val_train_gap > 0.5) return { question, words: "Learning by heart", detail: `Held-out loss is ${signed(status.val_train_gap, 2)} above training.`, tone: "warn" };
  const verdicts = {
    improving: ["Yes, loss falls", "good"],
    stable: start !== null && average < start ? ["Yes, levelled off", "good"] : ["Levelled off", "plain"],
    degrading: ["Loss rises", "warn"],
    insufficient_data: ["Too early to say", "plain"],
  };
  const [words, colour] = verdicts[status.loss_trend] ?? ["Too early to say", "plain"];
  return { question, words, detail, tone: colour };
}

function advice() {
  const question = "What should I do?";
  const { status } = store;
  if (store.link === "lost") return { question, words: "See whether it runs", detail: "trainbox status", tone: "bad" };
  if (!status) return { question, words: "Start the daemon", detail: "trainbox run" };
  if (isSilent()) return { question, words: "Look at its log", detail: "logs/daemon.log; start it again with trainbox run", tone: "bad" };
  const [alert] = (status.active_alerts ?? []).filter(({ severity }) => severity !== "info");
  if (alert) return { question, words: firstAdvice(alert), detail: capital(alert.message), tone: TONES[alert.severity] };
  if (status.status === "crashed") return { question, words: "Read the error", detail: status.error_message ?? "The job's log says what happened.", tone: "bad" };
  if (status.state === "paused") return { question, words: "Resume when ready", detail: "trainbox resume", tone: "warn" };
  if (status.state === "stopped") return { question, words: "Start it again", detail: "trainbox run", tone: "warn" };
  if (status.state === "waiting") return { question, words: "Make room", detail: status.message ?? "The run waits for the machine.", tone: "warn" };
  if (status.state === "idle") return { question, words: "Drop a file", detail: "Into inbox/: it is trained by itself." };
  return { question, words: "Nothing", detail: "All is well.", tone: "good" };
}

/** The first of several pieces of advice, without what stands in brackets; all of it is beside the alert. */
const firstAdvice = ({ recommendation }) => recommendation.replace(/ \([^)]*\)/g, "").split(/[:;,.](?=\s|$)/)[0];

function bestCheckpoint() {
  const question = "Which checkpoint?";
  const best = store.status?.best_checkpoint;
  if (!best) return { question, words: UNKNOWN, detail: "No checkpoint has been scored yet." };
  return { question, words: `⭐ Step ${count(best.step)}`, detail: `Score ${score(best.score)}, held-out loss ${loss(best.eval_loss)}.`, tone: "good" };
}

function change() {
  const question = "What changed in its answers?";
  const examples = (store.evolution?.examples ?? []).filter(({ answers }) => answers.length > 1);
  if (!examples.length) return { question, words: UNKNOWN, detail: "No prompt has been answered twice yet." };
  const right = (place) => examples.filter(({ answers }) => answers.at(place).matches).length;
  const [before, after] = [right(0), right(-1)];
  const other = examples.filter(({ answers }) => answers.at(0).answer !== answers.at(-1).answer).length;
  return {
    question,
    words: `${before} → ${after} of ${examples.length} right`,
    detail: `${plural(other, "answer")} differ${other === 1 ? "s" : ""} from the first.`,
    tone: after > before ? "good" : after < before ? "warn" : "plain",
  };
}

function drawAlerts() {
  const active = store.status?.active_alerts ?? [];
  const past = (store.alerts?.history ?? []).slice(0, 30);
  const quiet = past.length ? "Nothing is wrong now." : "Nothing is wrong, and nothing has been.";
  present("alerts", ["status", "alerts"], active.length ? full : empty(store.status ? quiet : "No daemon has judged a run here yet."));
  say("alerts-lead", active.length ? plural(active.length, "alert") : "");
  byId("alerts-past").hidden = past.length === 0;
  fill("alerts-active", active, () => active.map(alertItem));
  fill("alerts-history", past, () => table("Earlier alerts, newest first", [{ name: "when" }, { name: "what" }, { name: "alert" }], past.map((one) => ({
    cells: [moment(one.at ?? one.timestamp), pill(one.kind ?? one.severity, one.kind === "resolved" ? "good" : "warn"), capital(one.message)],
  }))));
}

function alertItem(alert) {
  return el(
    "li",
    { "data-severity": alert.severity, "data-category": alert.category },
    pill(alert.severity, TONES[alert.severity]),
    el("div", {}, el("p", { class: "what" }, capital(alert.message)), el("p", { class: "do" }, alert.recommendation)),
    el("time", { datetime: alert.timestamp }, moment(alert.timestamp)),
  );
}
