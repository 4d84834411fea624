/* ---------- which places are read, and in what order: by what was measured of the samples there ---------- */

const perSample = metrics.filter((metric) => metric.per === "sample" && samples[metric.column]);
/** A metric of sample i alone; null where it has none. */
function ownOf(name, i) {
  const { column, exponential } = byName[name] || {}, value = column && samples[column] ? samples[column][i] : null;
  return value === null || value === undefined ? null : exponential ? Math.exp(-value) : value;
}
/** What the columns are held against: the baseline if it is a point, else the first column. */
const heldAgainst = () => (typeof state.base === "number" ? state.base : state.columns[0]);
const KINDS = {
  "": ["all", () => true],
  parted: ["parted only", (at) => { const texts = [...new Set([heldAgainst(), ...state.columns])].map((g) => sampleAt(g, places[at])).filter((i) => i !== undefined).map((i) => samples.text[i]); return new Set(texts).size > 1; }],
  repeating: ["ends repeating only", (at) => state.columns.some((g) => { const i = sampleAt(g, places[at]); return i !== undefined && ownOf("ends_repeating", i) > 0; })],
};
/** The numbers of the places that are read, in the order in which they are. */
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
/** Another choice of places: the one that is shown stays if it is among them. */
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
