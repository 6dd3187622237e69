// How news reach the page: server-sent events; while they fail, polling; and trying again by itself.

import { getJson } from "./sources.js";
import { store } from "./store.js";

const STATUS = "/status/training_status.json";
const POLL_MS = 2000;
/** The server pings every 15 s; silence beyond this is a broken line. */
const SILENCE_MS = 20_000;
const FIRST_WORD_MS = 1000;
const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 15_000;
/** Clocks that differ by less show the same time. */
const SAME_CLOCK_MS = 2000;

export class Connection {
  #onChange;
  #events = null;
  #retryMs = FIRST_RETRY_MS;
  #poll = null;
  #watchdog = null;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** Listen; the stream begins with the document. Ask where it does not, for there may be none. */
  start() {
    this.#listen();
    setTimeout(() => store.status ?? this.#ask(), FIRST_WORD_MS);
  }

  #listen() {
    const events = new EventSource("/api/events");
    this.#events = events;
    this.#expectNews();
    events.addEventListener("open", () => {
      this.#retryMs = FIRST_RETRY_MS;
      this.#hear();
    });
    events.addEventListener("status", (event) => {
      this.#hear();
      this.#take(JSON.parse(event.data));
    });
    events.addEventListener("ping", () => this.#hear());
    events.addEventListener("error", () => this.#lose());
  }

  #hear() {
    this.#expectNews();
    clearInterval(this.#poll);
    this.#poll = null;
    this.#become("live");
  }

  #expectNews() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#lose(), SILENCE_MS);
  }

  #lose() {
    clearTimeout(this.#watchdog);
    if (!this.#events) return;
    this.#events.close();
    this.#events = null;
    setTimeout(() => this.#listen(), this.#retryMs);
    this.#retryMs = Math.min(2 * this.#retryMs, LAST_RETRY_MS);
    this.#poll ??= setInterval(() => this.#ask(), POLL_MS);
    this.#ask();
  }

  async #ask() {
    try {
      const document = await getJson(STATUS);
      if (this.#poll !== null) this.#become("polling");
      this.#take(document);
    } catch (error) {
      this.#takeFailure(error);
    }
  }

  #takeFailure(error) {
    if (error.status === null) {
      this.#become("lost");
    } else if (this.#poll !== null) {
      this.#become("polling");
    }
    // No status document is an answer too: no daemon has run here yet.
    store.isUnused = error.status === 404;
    if (error.status !== null && !store.isUnused) store.trouble.status = error.message;
    this.#onChange();
  }

  #take(document) {
    delete store.trouble.status;
    store.isUnused = false;
    this.#compareClocks(document.heartbeat_at);
    store.status = document;
    this.#onChange();
  }

  /** A heartbeat that was heard as it happened tells what the daemon's clock shows now. */
  #compareClocks(heartbeat) {
    const isFresh = store.link === "live" && store.status && store.status.heartbeat_at !== heartbeat;
    const offset = Date.parse(heartbeat) - Date.now();
    if (isFresh) store.clockOffset = Math.abs(offset) < SAME_CLOCK_MS ? 0 : offset;
  }

  #become(link) {
    if (store.link === link) return;
    // It may be another server now, or one that knows more than when the line broke.
    if (link !== "lost") store.connections += 1;
    store.link = link;
    this.#onChange();
  }
}
