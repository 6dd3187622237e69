// What the model answers: the newest example, one prompt over the steps, the last evaluations, the patterns.

import { byId, el, fill, number, pill, say, table } from "./dom.js";
import { empty, full, known, present, unknown } from "./looks.js";
import { showsCurrentJob, shownJob, store } from "./store.js";
import { count, fixed, plural, share } from "./words.js";

const NO_RUN = "No run yet: held-out prompts are answered here as soon as one trains.";
const RECENT = 10;
const SHOWN_STEPS = 12;
const COMPARED_WORDS = 160;
let chosenExample = null;

export function drawAnswers(onChange) {
  drawExample();
  drawEvolution(onChange);
  drawRecent();
  drawPatterns();
}

function verdict(matches) {
  if (matches === null || matches === undefined) return pill("not judged");
  return matches ? pill("match", "good") : pill("differs", "warn");
}

function drawExample() {
  const { status } = store;
  const isThere = status?.current_prompt != null;
  present("example", ["status"], known(isThere, "No prompt has been answered yet.", NO_RUN));
  if (!isThere) return;
  const { current_system_prompt: system, current_prompt: prompt, answer_matches: matches } = status;
  const { golden_answer: golden, model_answer: model } = status;
  const lengths = [status.current_golden_output_length, status.current_model_output_length];
  say("example-lead", lengths.includes(null) ? "" : `${count(lengths[1])} tokens, ${count(lengths[0])} expected`);
  fill("example-body", [system, prompt, golden, model, matches], () =>
    el(
      "dl",
      { class: "exchange" },
      system ? turn("system", "System", system) : null,
      turn("prompt", "Prompt", prompt),
      turn("expected", "Expected", golden),
      turn("answer", "Answer", model === null ? "—" : compared(model, golden), verdict(matches)),
    ),
  );
}

function turn(kind, name, text, mark = null) {
  return el("div", { class: kind }, el("dt", {}, name, mark), el("dd", {}, text));
}

/** The words of an answer; those that are not in the expected one, in order, are marked. */
function compared(text, expected) {
  if (expected === null || text.trim() === expected.trim()) return text;
  const [words, wanted] = [text, expected].map((one) => one.match(/\s+|[^\s]+/g) ?? []);
  if (Math.max(words.length, wanted.length) > 2 * COMPARED_WORDS) return text;
  const common = commonPlaces(words, wanted);
  const runs = [];
  for (const [place, word] of words.entries()) {
    const isOdd = !common.has(place) && word.trim() !== "";
    if (runs.at(-1)?.isOdd === isOdd) runs.at(-1).text += word;
    else runs.push({ isOdd, text: word });
  }
  return runs.map((run) => (run.isOdd ? el("mark", {}, run.text) : run.text));
}

/** Places in `one` of the longest common subsequence with `other`. */
function commonPlaces(one, other) {
  const lengths = Array.from({ length: one.length + 1 }, () => new Uint16Array(other.length + 1));
  for (let i = one.length - 1; i >= 0; i -= 1) {
    for (let j = other.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = one[i] === other[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const places = new Set();
  for (let i = 0, j = 0; i < one.length && j < other.length;) {
    if (one[i] === other[j]) {
      places.add(i);
      i += 1;
      j += 1;
    } else if (lengths[i + 1][j] >= lengths[i][j + 1]) i += 1;
    else j += 1;
  }
  return places;
}

function drawEvolution(onChange) {
  const examples = store.evolution?.examples ?? null;
  if (examples === null && !store.trouble.evolution) {
    present("evolution", ["status"], empty(shownJob() === null ? NO_RUN : "Reading the answers of this run."));
    return;
  }
  const none = unknown("This run has answered no held-out prompt yet.");
  present("evolution", ["evolution"], examples?.length ? full : none, !showsCurrentJob());
  if (!examples?.length) return;
  const example = examples.find(({ example_id }) => example_id === chosenExample) ?? examples[0];
  say("evolution-lead", plural(examples.length, "prompt"));
  const ids = examples.map(({ example_id }) => example_id);
  if (!byId("evolution-choice") || byId("evolution-choice").dataset.ids !== JSON.stringify(ids)) {
    byId("evolution-body").replaceChildren(chooser(examples, ids, onChange), el("div", { id: "evolution-steps" }));
  }
  byId("evolution-choice").value = String(example.example_id);
  fill("evolution-steps", [store.evolution.job_id, example], () => timeline(example));
}

function chooser(examples, ids, onChange) {
  const short = (prompt) => (prompt.length > 70 ? `${prompt.slice(0, 70)}…` : prompt);
  const options = examples.map(({ example_id, prompt }, place) =>
    el("option", { value: example_id }, `${place + 1}. ${short(prompt)}`),
  );
  const select = el("select", { id: "evolution-choice", "data-ids": JSON.stringify(ids) }, options);
  select.addEventListener("change", () => {
    chosenExample = examples.find(({ example_id }) => String(example_id) === select.value)?.example_id ?? null;
    onChange();
  });
  return el("label", { class: "pick wide", for: "evolution-choice" }, "Prompt ", select);
}

/** The answers of one prompt, newest first; equal ones in a row are told once. */
function timeline({ prompt, golden, answers }) {
  const told = [];
  for (const one of answers) {
    const before = told.at(-1);
    if (before?.answer === one.answer) before.until = one.step;
    else told.push({ ...one, until: one.step });
  }
  const newest = told.slice(-SHOWN_STEPS).reverse();
  const items = newest.map((one) => toldAnswer(one, golden));
  return [
    el("dl", { class: "exchange" }, turn("prompt", "Prompt", prompt), turn("expected", "Expected", golden)),
    el("ol", { class: "timeline", tabindex: "0", "aria-label": "Answers, newest first" }, items),
  ];
}

function toldAnswer({ step, until, answer, matches, loss }, golden) {
  const when = step === until ? `Step ${count(step)}` : `Steps ${count(step)} to ${count(until)}`;
  const cost = loss === null ? null : el("span", { class: "soft" }, `loss ${fixed(loss, 3)}`);
  return el(
    "li",
    { class: matches ? "right" : "" },
    el("p", { class: "when" }, when, verdict(matches), cost),
    el("p", { class: "text" }, compared(answer ?? "—", golden)),
  );
}

function drawRecent() {
  const { status } = store;
  const judged = status?.eval_samples?.length ? status.eval_samples : (status?.recent_examples ?? []);
  const samples = judged.slice(-RECENT).reverse();
  present("recent", ["status"], known(samples.length, "No answer has been judged yet.", NO_RUN));
  say(
    "recent-lead",
    samples.length ? `${count(status.total_correct)} of ${count(status.total_evals)} right in all` : "",
  );
  const columns = [number("step"), "prompt", "expected", "answer", "verdict", number("loss")];
  fill("recent-body", samples, () =>
    table("The last evaluated answers, newest first", columns, samples.map(recentRow)),
  );
}

function recentRow(one) {
  const text = (words) => el("span", { class: "clamp", title: words }, words);
  const [golden, model] = [one.golden_answer ?? one.golden, one.model_answer ?? one.model_output];
  const matches = one.answer_matches ?? one.matches;
  return {
    cells: [count(one.step), text(one.prompt), text(golden), text(model), verdict(matches), fixed(one.loss, 3)],
  };
}

function drawPatterns() {
  const heat = store.status?.pattern_heatmap ?? null;
  const seen = (row) => heat.cols.some((col) => heat.data[row][col].seen);
  const rows = heat?.rows.filter(seen) ?? [];
  present("patterns", ["status"], known(rows.length, "No answer has been sorted by its pattern yet.", NO_RUN));
  if (!rows.length) return;
  fill("patterns-body", heat, () => {
    const cols = heat.cols.filter((col) => rows.some((row) => heat.data[row][col].seen));
    const columns = ["pattern", ...cols.map(number)];
    const shown = rows.map((row) => ({ cells: [row, ...cols.map((col) => heatCell(heat.data[row][col]))] }));
    const made = table("Share of right answers by pattern and by tokens of the expected answer", columns, shown);
    made.classList.add("heat");
    return made;
  });
}

function heatCell({ seen, em }) {
  if (!seen) return el("span", { class: "soft" }, "—");
  const cell = el("span", { class: "cell" }, share(em, 0), el("small", {}, `of ${count(seen)}`));
  cell.style.setProperty("--heat", `${100 * em}%`);
  return cell;
}
