// How a panel looks: full, empty (nothing yet), null (not known), stale (old), error (could not be read).

import { byId, say } from "./dom.js";
import { isSilent, store } from "./store.js";
import { moment } from "./words.js";

export const full = { look: "full", sentence: "" };
export const empty = (sentence) => ({ look: "empty", sentence });
/** Nothing is there, as far as was heard of late: a sentence that silence makes untrue. */
export const nothing = (sentence) => ({ look: "empty", sentence, isClaim: true });
export const unknown = (sentence) => ({ look: "null", sentence });

/** The look of what comes with the status: empty before the first one, null where it says nothing of this. */
export function known(isThere, none, nothingYet) {
  if (!store.status) return empty(nothingYet);
  return isThere ? full : unknown(none);
}

/** The look of a list: empty while it is being read, and where nothing is in it. */
export function listed(list, none, reading) {
  if (list?.length) return full;
  return list ? nothing(none) : empty(reading);
}

/**
 * Show a panel with what it has to say; trouble comes before age, and age before everything else.
 * `sources` names what it is made of; `lasts` is true for what stays true while the daemon is silent.
 */
export function present(id, sources, content, lasts = false) {
  const shown = inTrouble(sources) ?? grownOld(content, lasts) ?? content;
  const panel = byId(id);
  if (panel.dataset.look !== shown.look) panel.dataset.look = shown.look;
  say(`${id}-note`, shown.sentence);
}

function inTrouble(sources) {
  const name = sources.find((source) => store.trouble[source]);
  if (name === undefined) return null;
  return { look: "error", sentence: `Could not be read: ${store.trouble[name]}. Trying again.` };
}

function grownOld(content, lasts) {
  if (content.look !== "full" && !content.isClaim) return null;
  const isLost = store.link === "lost";
  if (!isLost && (lasts || !isSilent())) return null;
  const at = moment(store.status?.heartbeat_at);
  return { look: "stale", sentence: content.isClaim ? `Not known since ${at}` : `As of ${at}` };
}
