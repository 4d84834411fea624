/* ---------- means over what is shown ---------- */

/** Numbers of a mean by its places along the keys: of a group, or over all values of a key (-1). Computed before, none here. */
const numbersAt = new Map();
for (const [ats, found] of [[groups.at, values], ...(data.cells ? [[data.cells.at, data.cells.values]] : [])])
  ats.forEach((at, i) => numbersAt.set(at.join(), [found, i]));
/** Mean, standard error and n of a metric at these places; null where there is no value. */
function meanAt(name, at) {
  const [found, i] = numbersAt.get(at.join()) || [];
  return found && found[name].mean[i] !== null ? { mean: found[name].mean[i], error: found[name].error[i], n: found[name].n[i] } : null;
}
/** The same of a cell of the charts, at place x and, where there are two keys, y. */
const meanOf = (name, x, y) => meanAt(name, keys.map((_, k) => (k === state.x ? x : k === state.y ? y : state.fixed[k] === all ? -1 : state.fixed[k])));
/** Groups that agree with the fixed settings, by their places along x and y (one row where there is one key only). */
function grid() {
  const two = keys.length > 1, found = (two ? keys[state.y].labels : [""]).map(() => keys[state.x].labels.map(() => []));
  for (const g of shownGroups()) found[two ? groups.at[g][state.y] : 0][groups.at[g][state.x]].push(g);
  return found;
}
const shownGroups = () => every.filter((g) => keys.every((_, k) => k === state.x || k === state.y || state.fixed[k] === all || groups.at[g][k] === state.fixed[k]));
const spoken = (name, found) => (found ? `${showOf(name, found.mean)}${found.error === null ? "" : ` ± ${showLike(name, found.error, found.mean)}`}, n = ${found.n}` : "no value");

/** The metric of the reference text, if there is one. */
const reference = (name) => (data.reference && data.reference[name] !== undefined ? data.reference[name] : null);
