// The page: listens, asks, and draws what has changed.

import { drawAnswers } from "./answers.js";
import { repaintCharts } from "./charts.js";
import { drawChoices } from "./choices.js";
import { Connection } from "./connection.js";
import { byId, say } from "./dom.js";
import { drawFiles, prepareFiles } from "./files.js";
import { drawLearning, prepareLearning } from "./learning.js";
import { drawLineage } from "./lineage.js";
import { drawMachine } from "./machine.js";
import { drawNow } from "./now.js";
import { SOURCES } from "./sources.js";
import { store } from "./store.js";

const LOOK_MS = 250;
/** Ages are told anew so often, though nothing was heard. */
const AGE_MS = 1000;
const LINKS = {
  connecting: "connecting",
  live: "live",
  polling: "polling, the stream is down",
  lost: "no connection, trying again",
};
const THEMES = ["system", "light", "dark"];
const THEME_NAMES = { system: "as the system", light: "light", dark: "dark" };
const THEME_SIGNS = { system: "◐", light: "○", dark: "●" };

let isDue = false;

/** Draw once in the next frame, however many news there are; not at all while nobody can see it. */
function redraw() {
  if (isDue || document.hidden) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw();
  });
}

function draw() {
  byId("connection").dataset.link = store.link;
  say("connection-text", LINKS[store.link]);
  drawNow();
  drawLearning();
  drawAnswers(redraw);
  drawChoices();
  drawLineage();
  drawFiles();
  drawMachine();
  announce();
}

/** Say to screen readers what a person would look up for: a new state, a new alert. Nothing that counts. */
let announced = null;
function announce() {
  const { status } = store;
  if (!status) return;
  const [alert] = status.active_alerts ?? [];
  const words = [byId("now-state").textContent, status.current_file, alert?.message].filter(Boolean).join(". ");
  if (announced !== null && words !== announced) say("announcer", words);
  announced = words;
}

function look() {
  if (document.hidden || store.link === "lost") return;
  for (const source of SOURCES) source.look(performance.now(), redraw);
}

function prepareTheme() {
  const button = byId("theme");
  const root = document.documentElement;
  const show = () => {
    const theme = root.dataset.theme ?? "system";
    button.setAttribute("aria-label", `Colours: ${THEME_NAMES[theme]}`);
    button.title = `Colours: ${THEME_NAMES[theme]}`;
    button.firstElementChild.textContent = THEME_SIGNS[theme];
    repaintCharts();
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("trainbox-theme", next);
    } catch {
      // A browser that keeps nothing forgets the choice with the page.
    }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

prepareLearning(redraw);
prepareFiles(redraw);
prepareTheme();
document.addEventListener("visibilitychange", redraw);
new Connection(redraw).start();
setInterval(look, LOOK_MS);
setInterval(redraw, AGE_MS);
redraw();
