/* ---------- means over the settings shown ---------- */

/** The precomputed means, by their places along the keys; a place of -1 means over all values of that key. */
const numbersAt = new Map();
for (const [ats, found] of [[groups.at, values], ...(data.cells ? [[data.cells.at, data.cells.values]] : [])])
  ats.forEach((at, i) => numbersAt.set(at.join(), [found, i]));
/** Return the mean, standard error and n of a metric at these places, or null where there is no value. */
function meanAt(name, at) {
  const [found, i] = numbersAt.get(at.join()) || [];
  return found && found[name].mean[i] !== null ? { mean: found[name].mean[i], error: found[name].error[i], n: found[name].n[i] } : null;
}
/** Return the same for a cell of the charts, at place x and, with two keys, place y. */
const meanOf = (name, x, y) => meanAt(name, keys.map((_, k) => (k === state.x ? x : k === state.y ? y : state.fixed[k] === all ? -1 : state.fixed[k])));
/** Return the groups that match the fixed settings, by their place along y (0 if there is only one key), then along x. */
function grid() {
  const rows = new Map();
  for (const g of shownGroups()) {
    const x = groups.at[g][state.x], y = keys.length > 1 ? groups.at[g][state.y] : 0;
    if (!rows.has(y)) rows.set(y, new Map());
    if (!rows.get(y).has(x)) rows.get(y).set(x, []);
    rows.get(y).get(x).push(g);
  }
  return rows;
}
/** Return whether the points form no grid, like randomly drawn ones: hardly any pair of values occurs. */
function isScattered(rows) {
  if (keys.length < 2) return false;
  const there = [...rows.values()].reduce((sum, row) => sum + row.size, 0), places = keys[state.x].labels.length * keys[state.y].labels.length;
  return there > 20 && there < 0.1 * places;
}
const shownGroups = () => every.filter((g) => keys.every((_, k) => k === state.x || k === state.y || state.fixed[k] === all || groups.at[g][k] === state.fixed[k]));
const spoken = (name, found) => (found ? `${showOf(name, found.mean)}${found.error === null ? "" : ` ± ${showLike(name, found.error, found.mean)}`}, n = ${found.n}` : "no value");

/** Return a metric of the reference text, or null if there is none. */
const reference = (name) => (data.reference && data.reference[name] !== undefined ? data.reference[name] : null);
/** Return a metric of the baseline if it is a point and has a value, else null. */
const baseline = (name) => (typeof state.base === "number" ? values[name].mean[state.base] : null);
/** Return the values that charts compare a metric with: those of the reference text and of the baseline. */
const goals = (name) => [{ name: "reference text", kind: "ref", at: reference(name) }, { name: "baseline", kind: "base", at: baseline(name) }].filter(({ at }) => at !== null);
