/* ---------- numbers, values and settings in readable form ---------- */

/* `number` and `like` of analysis/numbers.py. A test checks that both agree. */

const minus = (text) => text.replace(/^-(?=[0.]*$)/, "").replace("-", "\u2212");
/** Format a number for reading: three significant digits and a true minus sign. */
function show(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return minus(size >= 1e6 || size < 1e-4 ? value.toExponential(digits - 1) : value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))));
}
/** Format a value of a metric: shares to three decimals, everything else to three significant digits. */
const showOf = (name, value) => (byName[name].unit !== "share" || value === null || value === undefined ? show(value) : minus(value.toFixed(3)));
/** Format an error, or an end of an interval, with as many decimals as its value. */
function showLike(name, value, like) {
  if (value === null || value === undefined) return "–";
  const beside = showOf(name, like);
  return beside.includes("e") ? showOf(name, value) : minus(value.toFixed((beside.split(".")[1] || "").length));
}
const signed = (name, value) => (value > 0 ? "+" : "") + showOf(name, value);
const short = (text, most = 28) => (text = JSON.stringify(text).slice(1, -1)).length > most ? text.slice(0, most - 1) + "…" : text;
/** Shorten the values of a setting but keep them distinct: leave out what all of them begin and end with. */
const briefs = new Map();
function brief(k, place, most = 28) {
  const id = k + "/" + most;
  if (!briefs.has(id)) {
    const texts = keys[k].labels.map((text) => JSON.stringify(text).slice(1, -1)), long = texts.filter((text) => text.length > most);
    const edge = (at) => { // what all long values share, up to the last separator of words
      let n = 0;
      while (long.length > 1 && n < at(long[0]).length && long.every((text) => at(text)[n] === at(long[0])[n])) n++;
      while (n > 0 && /[\p{L}\p{N}]/u.test(at(long[0])[n - 1])) n--;
      return n;
    };
    const start = edge((text) => text), end = edge((text) => [...text].reverse().join(""));
    const found = texts.map((text) => {
      if (text.length <= most) return text;
      const from = start > 3 ? start : 0, to = end > 3 && start + end < text.length ? text.length - end : text.length, room = most - 1 - (to < text.length);
      const rest = text.slice(from, to);
      if (rest.length > room) return rest.slice(0, Math.ceil(most / 2) - 1) + "…" + rest.slice(-Math.floor(most / 2));
      const wider = Math.max(0, to - room); // keep as much of the text before it as fits
      return (wider ? "…" : "") + text.slice(wider, to) + (to < text.length ? "…" : "");
    });
    const times = new Map();
    for (const text of found) times.set(text, (times.get(text) || 0) + 1);
    briefs.set(id, found.map((text, i) => (times.get(text) === 1 ? text : `${text} (${i + 1})`)));
  }
  return briefs.get(id)[place];
}
const nameBy = (g, chosen) => chosen.map((k) => `${keys[k].name} ${brief(k, groups.at[g][k])}`).join(" · ");
const groupName = (g) => nameBy(g, keys.map((_, k) => k)) || "this run";
/** Return the settings in which the points in the columns differ, or all settings if none differs. */
function differing() {
  const found = keys.map((_, k) => k).filter((k) => new Set(state.columns.map((g) => groups.at[g][k])).size > 1);
  return found.length ? found : keys.map((_, k) => k);
}
const settingName = (name) => byName[name].label;
