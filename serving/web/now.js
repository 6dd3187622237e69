// The head of the page: what the daemon does, five answers at one glance, and the alerts.

import { amount, byId, el, facts, fill, pill, say, table } from "./dom.js";
import { empty, full, nothing, present } from "./looks.js";
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
const FIRST_ANSWER = "Waiting for the first answer of the server.";
/** Nats per token between held-out and training loss from which the records are learned by heart. */
const BY_HEART = 0.5;
/** A loss below this only flickers, as the alerts see it too. */
const NEAR_ZERO = 0.1;
const NO_JUDGE = "No daemon has judged a run here yet.";
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
  present("now", ["status"], status ? full : empty(store.isUnused ? NOTHING : FIRST_ANSWER));
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
  byId("now-heartbeat").title = moment(status.heartbeat_at);
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
  const part = status.state === "training" ? progressOf(status) : null;
  const words = part === null ? STATES[status.state] : `${Math.floor(part)} % ${status.current_file ?? ""}`;
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

const FACT_FIELDS = [
  "state job_id version control queue batch_number batch_queue_size batch_step batch_total_steps",
  "current_step total_steps epoch eta_seconds eta_confidence phase_done phase_total phase_unit",
].flatMap((fields) => fields.split(" "));
const factsKey = (status) => FACT_FIELDS.map((field) => status[field] ?? null);

function factsOf(status) {
  const { queue, control } = status;
  const waiting = queue ? plural(queue.high + queue.normal + queue.low, "file") : UNKNOWN;
  const isInPhase = status.phase_total && status.state !== "training";
  const next = queue?.next_files?.length ? `next ${queue.next_files.join(", ")}` : undefined;
  return [
    ["Step of this file", of(status.batch_step, status.batch_total_steps)],
    ["Step in all", of(status.current_step, status.total_steps)],
    isInPhase ? [capital(status.phase_unit ?? "done"), of(status.phase_done, status.phase_total)] : null,
    ["Epoch", fixed(status.epoch, 2)],
    ["Time left", timeLeft(status), status.eta_confidence ? `confidence: ${status.eta_confidence}` : undefined],
    ["Heartbeat", el("span", { id: "now-heartbeat" })],
    ["Queue", `${waiting}${queue?.settling ? ", one arriving" : ""}`, next],
    ["Current version", status.version ?? "none yet"],
    control ? ["Last command", lastCommand(control), control.reason ?? undefined] : null,
  ];
}

const lastCommand = ({ command, applied_at }) => `${command}, ${applied_at ? "done" : "under way"}`;

function timeLeft({ state, eta_seconds, eta_confidence }) {
  if (eta_seconds === null || state !== "training") return UNKNOWN;
  return `${duration(eta_seconds)}${eta_confidence === "low" ? ", roughly" : ""}`;
}

const of = (done, total) => (total === null || total === undefined ? UNKNOWN : `${count(done)} of ${count(total)}`);

function drawGlance() {
  const answers = [alive(), learning(), advice(), bestCheckpoint(), change()];
  fill("glance-list", answers, () => answers.map(answer));
}

/** Return a function that makes the answer to a question. */
const asked =
  (question) =>
  (words, detail = null, colour = "plain") => ({ question, words, detail, colour });

function answer({ question, words, detail, colour }) {
  return el(
    "div",
    { "data-tone": colour },
    el("dt", {}, question),
    el("dd", {}, el("strong", {}, words), detail ? el("span", {}, detail) : null),
  );
}

function alive() {
  const tell = asked("Is it alive?");
  const { status, link } = store;
  if (link === "lost") return tell("No connection", "Trying again by itself.", "bad");
  if (!status) return tell(store.isUnused ? "Not started" : UNKNOWN);
  if (status.state === "stopped") return tell("Stopped", `At ${moment(status.heartbeat_at)}, on purpose.`, "warn");
  const ago = duration(heartbeatAge());
  if (isSilent()) return tell("Silent", `No heartbeat for ${ago}.`, "bad");
  return tell("Yes", `Heartbeat ${ago} ago.`, "good");
}

function learning() {
  const tell = asked("Is it learning?");
  const { status } = store;
  const average = status?.streaming_ce ?? null;
  if (average === null) return tell(UNKNOWN, "No run has made a step yet.");
  const gap = status.val_train_gap;
  if (gap > BY_HEART) return tell("Learning by heart", `Held-out loss is ${signed(gap, 2)} above training.`, "warn");
  const start = status.train_loss_history?.[0]?.[1] ?? null;
  const detail = start === null ? `Loss ${loss(average)}.` : `Loss ${loss(start)} → ${loss(average)}.`;
  const course = status.loss_trend ?? "insufficient_data";
  if (course === "improving") return tell("Yes, loss falls", detail, "good");
  if (course === "insufficient_data") return tell("Too early to say", detail);
  if (course === "degrading" && average >= NEAR_ZERO) return tell("Loss rises", detail, "warn");
  return start !== null && average < start ? tell("Yes, levelled off", detail, "good") : tell("Levelled off", detail);
}

function advice() {
  const tell = asked("What should I do?");
  const { status } = store;
  if (store.link === "lost") return tell("See whether it runs", "trainbox status", "bad");
  if (!status) return tell("Start the daemon", "trainbox run");
  if (isSilent()) return tell("Look at its log", "logs/daemon.log; start it again with trainbox run", "bad");
  const [alert] = (status.active_alerts ?? []).filter(({ severity }) => severity !== "info");
  if (alert) return tell(firstAdvice(alert), capital(alert.message), TONES[alert.severity]);
  if (status.status === "crashed") {
    return tell("Read the error", status.error_message ?? "The job's log says what happened.", "bad");
  }
  switch (status.state) {
    case "paused":
      return tell("Resume when ready", "trainbox resume", "warn");
    case "stopped":
      return tell("Start it again", "trainbox run", "warn");
    case "waiting":
      return tell("Make room", status.message ?? "The run waits for the machine.", "warn");
    case "idle":
      return tell("Drop a file", "Into inbox/: it is trained by itself.");
    default:
      return tell("Nothing", "All is well.", "good");
  }
}

/** The first of several pieces of advice, without what stands in brackets; all of it is beside the alert. */
const firstAdvice = ({ recommendation }) => recommendation.replace(/ \([^)]*\)/g, "").split(/[:;,.](?=\s|$)/)[0];

function bestCheckpoint() {
  const tell = asked("Which checkpoint?");
  const best = store.status?.best_checkpoint;
  if (!best) return tell(UNKNOWN, "No checkpoint has been scored yet.");
  const detail = `Score ${score(best.score)}, held-out loss ${loss(best.eval_loss)}.`;
  return tell(`⭐ Step ${count(best.step)}`, detail, "good");
}

function change() {
  const tell = asked("What changed in its answers?");
  const examples = (store.evolution?.examples ?? []).filter(({ answers }) => answers.length > 1);
  if (!examples.length) return tell(UNKNOWN, "No prompt has been answered twice yet.");
  const right = (place) => examples.filter(({ answers }) => answers.at(place).matches).length;
  const [before, after] = [right(0), right(-1)];
  const other = examples.filter(({ answers }) => answers.at(0).answer !== answers.at(-1).answer).length;
  return tell(
    `${before} → ${after} of ${examples.length} right`,
    `${plural(other, "answer")} differ${other === 1 ? "s" : ""} from the first.`,
    after > before ? "good" : after < before ? "warn" : "plain",
  );
}

function drawAlerts() {
  const active = store.status?.active_alerts ?? [];
  const past = (store.alerts?.history ?? []).slice(0, 30);
  present("alerts", ["status", "alerts"], active.length ? full : noAlert(store));
  say("alerts-lead", active.length ? plural(active.length, "alert") : "");
  byId("alerts-past").hidden = past.length === 0;
  fill("alerts-active", active, () => active.map(alertItem));
  fill("alerts-history", past, () =>
    table("Earlier alerts, newest first", ["when", "what", "alert"], past.map(pastRow)),
  );
}

/** What can be said where nothing alarms; it takes both what is now and what was. */
function noAlert({ status, alerts, isUnused }) {
  if (!status) return empty(isUnused ? NO_JUDGE : FIRST_ANSWER);
  if (!alerts) return empty("Reading the alerts.");
  if (status.state === "stopped") {
    return empty(`Nothing was wrong when the daemon stopped, at ${moment(status.heartbeat_at)}.`);
  }
  return nothing(
    alerts.history.length ? "Nothing is wrong now." : "Nothing is wrong, and no earlier alert is kept.",
  );
}

const pastRow = ({ at, kind, message }) => ({
  cells: [moment(at), pill(kind, kind === "resolved" ? "good" : "warn"), capital(message)],
});

function alertItem(alert) {
  return el(
    "li",
    { "data-severity": alert.severity, "data-category": alert.category },
    pill(alert.severity, TONES[alert.severity]),
    el("div", {}, el("p", { class: "what" }, capital(alert.message)), el("p", { class: "do" }, alert.recommendation)),
    el("time", { datetime: alert.timestamp }, moment(alert.timestamp)),
  );
}
