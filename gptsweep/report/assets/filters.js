/* ---------- filters: which places to show, and in which order, by the metrics of their samples ---------- */

const perSample = metrics.filter((metric) => metric.per === "sample" && samples[metric.column]);
/** Return a metric of a single sample i, or null where it has none. */
function ownOf(name, i) {
  const { column, exponential } = byName[name] || {}, value = column && samples[column] ? samples[column][i] : null;
  return value === null || value === undefined ? null : exponential ? Math.exp(-value) : value;
}
/** Return the point that the columns are compared with: the baseline if it is a point, else the first column. */
const heldAgainst = () => (typeof state.base === "number" ? state.base : state.columns[0]);
const KINDS = {
  "": ["all", () => true],
  parted: ["parted only", (at) => { const texts = [...new Set([heldAgainst(), ...state.columns])].map((g) => sampleAt(g, places[at])).filter((i) => i !== undefined).map((i) => samples.text[i]); return new Set(texts).size > 1; }],
  repeating: ["ends repeating only", (at) => state.columns.some((g) => { const i = sampleAt(g, places[at]); return i !== undefined && ownOf("ends_repeating", i) > 0; })],
};
/** Return the indices of the places to show, in the order to show them. */
function matching() {
  const find = state.find.toLowerCase(), kind = KINDS[state.kind][1];
  const holds = (at) => !find || state.columns.some((g) => {
    const i = sampleAt(g, places[at]);
    return i !== undefined && (samples.text[i].toLowerCase().includes(find) || data.prompts[samples.prompt[i]].toLowerCase().includes(find));
  });
  const found = places.map((_, at) => at).filter((at) => holds(at) && kind(at));
  if (!state.order) return found;
  const name = state.order.replace(/^-/, ""), down = state.order.startsWith("-");
  const value = new Map(found.map((at) => { const i = sampleAt(state.columns[0], places[at]); return [at, i === undefined ? null : ownOf(name, i)]; }));
  return found.sort((p, q) => {
    const a = value.get(p), b = value.get(q);
    return a === null || b === null ? (a === null) - (b === null) || p - q : (down ? b - a : a - b) || p - q;
  });
}
/** Change the choice of places. The current place stays if the new choice includes it. */
function choose(change) {
  Object.assign(state, change);
  const found = matching();
  if (found.length && ("order" in change || !found.includes(state.at))) state.at = found[0];
  update({}, drawMatrix, drawSampleControls, drawSamples);
}
const filterControls = () => [
  picker("Show", Object.entries(KINDS).filter(([kind]) => kind !== "repeating" || samples.ends_repeating).map(([kind, [text]]) => [kind, text]), state.kind, (kind) => choose({ kind })),
  picker("Order", [["", "prompt and number"], ...perSample.flatMap(({ name, label }) => [[name, `${label}, lowest first`], ["-" + name, `${label}, highest first`]])], state.order, (order) => choose({ order })),
];
