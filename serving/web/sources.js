// What is asked of the API, and when: after a change that concerns it, and now and then anyway.

import { shownJob, showsCurrentJob, store } from "./store.js";

const TIMEOUT_MS = 10_000;
const RETRY_MS = 3000;
/** A slow answer is not asked for again before so many times its own duration has passed, up to a bound. */
const PATIENCE = 5;
const MOST_PATIENCE_MS = 10_000;

/** A refusal of the server (`status`), an answer that took too long (0), or no server at all (null). */
class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Return a JSON document; raise Failure. */
export async function getJson(path) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch (error) {
    throw new Failure(`${path} does not answer`, error.name === "TimeoutError" ? 0 : null);
  }
  let document = null;
  try {
    document = await response.json();
  } catch {
    throw new Failure(`${path} gave no whole JSON document`, response.status);
  }
  if (!response.ok) {
    const detail = typeof document?.detail === "string" ? document.detail : `HTTP ${response.status}`;
    throw new Failure(detail, response.status);
  }
  return document;
}

class Source {
  #key = null;
  #path = null;
  #askedAt = -Infinity;
  #tookMs = 0;
  #isAsking = false;

  constructor(name, path, key, leastMs, mostMs) {
    this.name = name;
    this.pathNow = path;
    this.keyNow = key;
    this.leastMs = leastMs;
    this.mostMs = mostMs;
  }

  /** Ask if it is time to; tell `onChange` when there is something new. */
  async look(now, onChange) {
    if (this.#isAsking) return;
    const path = this.pathNow();
    if (path !== this.#path) {
      this.#path = path;
      this.#askedAt = -Infinity;
      store[this.name] = null;
      delete store.trouble[this.name];
      onChange();
    }
    const key = JSON.stringify([store.connections, this.keyNow()]);
    if (path === null || !this.#isDue(now, key)) return;
    this.#isAsking = true;
    try {
      const document = await getJson(path);
      if (path === this.pathNow()) store[this.name] = document;
      delete store.trouble[this.name];
      this.#key = key;
    } catch (error) {
      this.#key = null;
      // No server at all is the connection's trouble, told in one place.
      if (error.status !== null) store.trouble[this.name] = error.message;
    } finally {
      this.#isAsking = false;
      this.#askedAt = performance.now();
      this.#tookMs = this.#askedAt - now;
      onChange();
    }
  }

  #isDue(now, key) {
    const passed = now - this.#askedAt;
    if (store.trouble[this.name]) return passed >= RETRY_MS;
    const leastMs = Math.max(this.leastMs, Math.min(PATIENCE * this.#tookMs, MOST_PATIENCE_MS));
    return key === this.#key ? passed >= this.mostMs : passed >= leastMs;
  }
}

const at = (path) => () => path;
const ofJob = (path) => () => {
  const job = shownJob();
  return job === null ? null : `/api/training/${path(encodeURIComponent(job))}`;
};
const news =
  (...fields) =>
  () =>
    ["state", "status", ...fields].map((field) => store.status?.[field] ?? null);
/** The same for what belongs to the run shown: nothing that is told of another one concerns it. */
const newsOfRun = (...fields) => {
  const told = news(...fields);
  return () => (showsCurrentJob() ? told() : "past");
};
/** The metrics tell which checkpoints there are: asked before them, the list would be asked for twice. */
const onceMeasured = (path) => () => (store.metrics || store.trouble.metrics ? path() : null);
function checkpointsSeen() {
  const seen = store.metrics?.checkpoints;
  return [store.status?.best_checkpoint ?? null, seen?.length ?? null, seen?.at(-1) ?? null];
}

export const SOURCES = [
  new Source("jobs", at("/api/training/jobs?limit=20"), news("job_id", "version", "batch_queue_size"), 500, 30_000),
  new Source("alerts", at("/api/alerts"), () => store.status?.active_alerts ?? null, 500, 60_000),
  new Source(
    "metrics",
    ofJob((job) => `jobs/${job}/metrics?max_points=450`),
    newsOfRun("batch_step", "total_evals"),
    2000,
    60_000,
  ),
  new Source("checkpoints", onceMeasured(ofJob((job) => `checkpoints/${job}`)), checkpointsSeen, 1000, 60_000),
  new Source(
    "evolution",
    ofJob((job) => `jobs/${job}/evolution`),
    newsOfRun("total_evals"),
    3000,
    120_000,
  ),
  new Source("versions", at("/api/versions"), news("version", "message"), 500, 60_000),
  new Source("inbox", at("/api/inbox"), news("job_id", "queue"), 500, 15_000),
];
