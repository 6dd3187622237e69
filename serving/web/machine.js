// The machine under the run.

import { amount, el, facts, fill, say } from "./dom.js";
import { known, present } from "./looks.js";
import { store } from "./store.js";
import { count, fixed, gibibytes, percent, share, UNKNOWN } from "./words.js";

const NO_DAEMON = "No daemon has looked at this machine yet.";
const TIGHT = 85;

export function drawMachine() {
  drawMemory();
  drawGpu();
  drawDisk();
}

function reading(id, value, none) {
  present(id, ["status"], known(value, none, NO_DAEMON));
  return Boolean(value);
}

function gauge(name, percentage, words) {
  const isKnown = percentage !== null && Number.isFinite(percentage);
  const shown = isKnown ? percentage : 0;
  const range = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": shown.toFixed(1) };
  const said = { role: "meter", "aria-label": name, "aria-valuetext": words, ...range };
  const bar = amount(el("i", {}), shown);
  const meter = el("div", { class: "gauge", "data-tight": isKnown && percentage > TIGHT, ...said }, bar);
  return el("div", { class: "gaugeline" }, el("span", {}, name), el("span", { class: "soft" }, words), meter);
}

const factList = (pairs) => el("dl", { class: "facts" }, facts(pairs));

function drawMemory() {
  const memory = store.status?.memory ?? null;
  if (!reading("memory", memory, "The memory of this machine could not be read.")) return;
  say("memory-lead", `risk of running out: ${memory.oom_risk}`);
  const worker = memory.training_process?.memory_gb ?? null;
  fill("memory-body", memory, () => [
    gauge("RAM", memory.ram_percent, `${gibibytes(memory.used_gb)} of ${gibibytes(memory.total_gb)}`),
    memory.swap_total_gb
      ? gauge("Swap", memory.swap_percent, `${gibibytes(memory.swap_used_gb)} of ${gibibytes(memory.swap_total_gb)}`)
      : null,
    factList([
      ["Training process", worker === null ? "none runs" : gibibytes(worker)],
      ["Daemon", gibibytes(memory.daemon_process?.memory_gb)],
    ]),
  ]);
}

function drawGpu() {
  const gpu = store.status?.gpu ?? null;
  if (!reading("gpu", gpu, "This machine has no GPU that can be read; runs use the CPU.")) return;
  say("gpu-lead", gpu.gpu_name ?? "");
  const used = gpu.memory_total_mb ? (100 * gpu.memory_used_mb) / gpu.memory_total_mb : null;
  const [inUse, whole] = [gpu.memory_used_mb, gpu.memory_total_mb].map((size) => gibibytes(size / 1024));
  const unit = (value, name) => (value === null || value === undefined ? UNKNOWN : `${fixed(value, 0)} ${name}`);
  fill("gpu-body", gpu, () => [
    gauge("Memory", used, used === null ? UNKNOWN : `${inUse} of ${whole}`),
    gauge("At work", gpu.gpu_utilization, percent(gpu.gpu_utilization, 0)),
    factList([
      ["Temperature", unit(gpu.temperature, "°C")],
      ["Power", `${unit(gpu.power_draw_w, "W")} of ${unit(gpu.power_limit_w, "W")}`],
    ]),
  ]);
}

function drawDisk() {
  const disk = store.status?.disk ?? null;
  if (!reading("disk", disk, "The file system of this folder could not be read.")) return;
  const used = disk.total_gb ? 100 - (100 * disk.free_gb) / disk.total_gb : null;
  say("disk-lead", `${gibibytes(disk.free_gb)} free`);
  const { monitoring_overhead: overhead, trainable_parameters: parameters } = store.status;
  fill("disk-body", [disk, overhead, parameters], () => [
    gauge("In use", used, `${gibibytes(disk.total_gb - disk.free_gb)} of ${gibibytes(disk.total_gb)}`),
    factList([
      ["Free", gibibytes(disk.free_gb)],
      ["Looks at the run cost", share(overhead, 2)],
      ["Trained parameters", count(parameters)],
    ]),
  ]);
}
