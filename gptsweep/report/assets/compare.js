/* ---------- two points compared ---------- */

/* `paired_samples` and `paired_points` of analysis/stats.py: any two points can be chosen here, too many to be computed
   beforehand. A test holds both equal. */

const RESAMPLES = 2000, MAX_BLOCKS = 4000;
const drawsOf = new Map();
/** Which of n are drawn in each of the resamples, with replacement: RESAMPLES rows of n, by mulberry32. */
function draws(n) {
  if (drawsOf.has(n)) return drawsOf.get(n);
  const found = new Uint16Array(RESAMPLES * n);
  for (let i = 0, seed = 1; i < found.length; i++) {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    found[i] = Math.floor((((t ^ (t >>> 14)) >>> 0) * n) / 4294967296);
  }
  if (drawsOf.size > 3) drawsOf.clear();
  drawsOf.set(n, found);
  return found;
}
/** The value of a metric in sample i as a numerator and a weight; weight 0 where it has none. */
function measured(name, i) {
  const { column, pooled } = byName[name], value = samples[column][i], tokens = samples.completion_tokens[i];
  if (value === null) return [0, 0];
  return pooled ? [value * tokens, tokens] : [value, 1];
}
/** Pairs of points g and base that share prompt, seed and number: numerator and weight of both, all 0 where one has no value. */
function pairsOf(name, g, base) {
  const found = [];
  if (values[name].seeds) {
    const theirs = new Map(values[name].seeds[base]);
    for (const [seed, mine] of values[name].seeds[g])
      if (mine !== null && (theirs.get(seed) ?? null) !== null) found.push([mine, 1, theirs.get(seed), 1]);
    return found;
  }
  for (const place of places) {
    const i = sampleAt(g, place), j = sampleAt(base, place);
    if (i === undefined || j === undefined) continue;
    const pair = [...measured(name, i), ...measured(name, j)];
    found.push(pair[1] && pair[3] ? pair : [0, 0, 0, 0]);
  }
  return found;
}
/** The difference of a metric between point g and the base: its value, its 95 % interval, whether that leaves out 0 (null where
    there are too few pairs to say), and the number of pairs. */
function compare(name, g, base) {
  if (byName[name].per === "pair") { // by a model of all settings together, computed before
    const [difference, low, high, pairs, differs] = (data.contrasts || {})[`${base}/${g}`] || [null, null, null, 0, null];
    return { difference, low, high, pairs, differs };
  }
  const pairs = pairsOf(name, g, base), have = pairs.filter((pair) => pair[1]).length;
  if (!have) return { differs: null, pairs: 0 };
  const n = Math.min(pairs.length, MAX_BLOCKS), blocks = new Float64Array(4 * n);
  pairs.forEach((pair, i) => pair.forEach((part, k) => { blocks[4 * (i % MAX_BLOCKS) + k] += part; }));
  const value = (num, den) => (byName[name].exponential ? Math.exp(-num / den) : num / den);
  const difference = ([a, b, c, d]) => value(a, b) - value(c, d);
  const all = [0, 1, 2, 3].map((k) => pairs.reduce((sum, pair) => sum + pair[k], 0)), rows = draws(n), again = [];
  for (let r = 0; r < RESAMPLES; r++) {
    const sums = [0, 0, 0, 0];
    for (let i = r * n; i < (r + 1) * n; i++) for (let k = 0; k < 4; k++) sums[k] += blocks[4 * rows[i] + k];
    if (sums[1]) again.push(difference(sums));
  }
  again.sort((p, q) => p - q);
  const quantile = (share) => { const at = share * (again.length - 1), low = Math.floor(at); return again[low] + (at - low) * ((again[low + 1] ?? again[low]) - again[low]); };
  const [low, high] = [quantile(0.025), quantile(0.975)];
  return { difference: difference(all), low, high, pairs: have, differs: have < data.min_pairs ? null : low > 0 || high < 0 };
}
/** How many of the comparisons in the table to expect to differ where nothing does. */
function byChance(names, shown) {
  const compared = shown.flatMap((g) => (g === state.base ? [] : names.filter((name) => (against(name, g, state.base).differs ?? null) !== null))).length;
  return `of ${plural(compared, "comparison")} ${show(compared * data.by_chance)} would differ by chance alone`;
}
const verdicts = new Map();
function against(name, g, base) {
  const id = `${name}/${g}/${base}`;
  if (!verdicts.has(id)) verdicts.set(id, compare(name, g, base));
  return verdicts.get(id);
}
/** How far a mark of the charts lies from the baseline, where it is of one point. */
function fromBaseline(name, inside) {
  if (typeof state.base !== "number" || inside.length !== 1 || inside[0] === state.base) return "";
  const { difference, low, high, pairs, differs } = against(name, inside[0], state.base);
  return !pairs || low === null ? "" : `; ${differs === null ? "? " : differs ? "" : "≈ "}${signed(name, difference)} [${showLike(name, low, difference)}, ${showLike(name, high, difference)}] from the baseline`;
}
