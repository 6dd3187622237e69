// Numbers and times in words. What is not known is a dash, never 0.

export const UNKNOWN = "—";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const digits = (places) =>
  new Intl.NumberFormat("en", { minimumFractionDigits: places, maximumFractionDigits: places });
const FORMATS = [0, 1, 2, 3, 4, 5, 6].map(digits);

export const fixed = (value, places) => (known(value) ? FORMATS[places].format(value) : UNKNOWN);
export const count = (value) => fixed(value, 0);
export const loss = (value) => fixed(value, 4);
export const score = (value) => fixed(value, 6);
export const percent = (value, places = 1) => (known(value) ? `${fixed(value, places)} %` : UNKNOWN);
export const share = (value, places = 1) => (known(value) ? percent(100 * value, places) : UNKNOWN);

/** A number of any size with four digits that matter. */
export function small(value) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 100_000)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

export function signed(value, places = 4) {
  if (!known(value)) return UNKNOWN;
  return `${value > 0 ? "+" : value < 0 ? "−" : "±"}${fixed(Math.abs(value), places)}`;
}

export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${fixed(size, unit === 0 || size >= 100 ? 0 : 1)} ${units[unit]}`;
}

export const gibibytes = (value) => (known(value) ? `${fixed(value, value < 10 ? 2 : 1)} GiB` : UNKNOWN);

/** Seconds as a person says them: 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return pair(whole, 60, "min", 1, "s");
  if (whole < 86_400) return pair(whole, 3600, "h", 60, "min");
  return pair(whole, 86_400, "d", 3600, "h");
}

function pair(seconds, large, largeName, little, littleName) {
  const rest = Math.floor((seconds % large) / little);
  const first = `${Math.floor(seconds / large)} ${largeName}`;
  return rest ? `${first} ${rest} ${littleName}` : first;
}

/** A moment as clock time, with the date when it is not today. */
export function moment(iso) {
  const date = iso ? new Date(iso) : null;
  if (!date || Number.isNaN(date.getTime())) return UNKNOWN;
  const time = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  if (date.toDateString() === new Date().toDateString()) return time;
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${time}`;
}

const TRENDS = {
  improving: "improving",
  stable: "level",
  degrading: "getting worse",
  insufficient_data: "too early to say",
};
export const trend = (word) => TRENDS[word] ?? UNKNOWN;

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const capital = (text) => (text ? text[0].toUpperCase() + text.slice(1) : text);
