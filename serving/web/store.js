// What the page knows: the status document, and what was asked of the API, each with its trouble.

/** The daemon's own rule: silent for so many status intervals means stale. */
const STALE_INTERVALS = 15;

export const store = {
  status: null,
  /** No daemon has ever run on this folder. */
  isUnused: false,
  /** "connecting", "live", "polling" or "lost". */
  link: "connecting",
  /** How often the line came to be; everything is asked for again then. */
  connections: 0,
  /** The daemon's clock minus ours, in milliseconds. */
  clockOffset: 0,
  /** A run chosen by the reader; null follows the one at work. */
  chosen: null,
  jobs: null,
  metrics: null,
  checkpoints: null,
  evolution: null,
  versions: null,
  inbox: null,
  alerts: null,
  /** What went wrong, by the name of the source. */
  trouble: {},
};

/** Seconds since the daemon last said that it lives; null when it never did. */
export function heartbeatAge() {
  const at = store.status?.heartbeat_at;
  return at ? Math.max(0, (Date.now() + store.clockOffset - Date.parse(at)) / 1000) : null;
}

export function isSilent() {
  const { status } = store;
  if (!status || status.state === "stopped") return false;
  return heartbeatAge() > STALE_INTERVALS * (status.status_seconds ?? 2);
}

/** The run whose curves, checkpoints and answers are shown. */
export function shownJob() {
  return store.chosen ?? store.status?.job_id ?? store.jobs?.jobs[0]?.job_id ?? null;
}

/** Whether the run shown is the one that the status document speaks of. */
export const showsCurrentJob = () => store.chosen === null || store.chosen === store.status?.job_id;
