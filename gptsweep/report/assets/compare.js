/* ---------- comparison of two points ---------- */

/* `paired_samples` and `paired_points` of analysis/stats.py. The reader can choose any two points, which are too many pairs to
   compute in advance. A test checks that both agree. */

const RESAMPLES = 2000, MAX_BLOCKS = 4000;
const drawsOf = new Map();
/** Draw bootstrap resamples of n with replacement, by mulberry32: RESAMPLES rows of n indices. */
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
/** Return the value of a metric in sample i as a numerator and a weight; the weight is 0 where there is no value. */
function measured(name, i) {
  const { column, pooled } = byName[name], value = samples[column][i], tokens = samples.completion_tokens[i];
  if (value === null) return [0, 0];
  return pooled ? [value * tokens, tokens] : [value, 1];
}
/** Pair the samples of some points with those of the base that share prompt, seed and number (for a metric per point: the
    seed). Return, for each of these, the sums of numerator and weight on both sides and the number of pairs; all are 0 where one
    side has no value. */
function pairsOf(name, inside, base) {
  const add = (sums, mine, theirs) => { if (mine[1] && theirs[1]) [...mine, ...theirs, 1].forEach((part, k) => { sums[k] += part; }); };
  if (values[name].seeds) {
    const theirs = new Map(values[name].seeds[base]), found = new Map();
    for (const [seed, mine] of inside.flatMap((g) => values[name].seeds[g])) {
      if (mine === null || (theirs.get(seed) ?? null) === null) continue;
      if (!found.has(seed)) found.set(seed, [0, 0, 0, 0, 0]);
      add(found.get(seed), [mine, 1], [theirs.get(seed), 1]);
    }
    return [...found.values()];
  }
  const found = [];
  for (const place of places) {
    const j = sampleAt(base, place), there = inside.map((g) => sampleAt(g, place)).filter((i) => i !== undefined);
    if (j === undefined || !there.length) continue;
    const sums = [0, 0, 0, 0, 0];
    for (const i of there) add(sums, measured(name, i), measured(name, j));
    found.push(sums);
  }
  return found;
}
/** Return the difference of a metric between some points and the base: its value, its 95 % interval, whether the interval
    excludes 0 (null where there are too few pairs to say), and the number of pairs. */
function compare(name, inside, base) {
  if (byName[name].per === "pair") { // from a model of all settings together, computed in advance
    const [difference, low, high, pairs, differs] = (inside.length === 1 && (data.contrasts || {})[`${base}/${inside[0]}`]) || [null, null, null, 0, null];
    return { difference, low, high, pairs, differs };
  }
  const pairs = pairsOf(name, inside, base), independent = pairs.filter((pair) => pair[1]).length;
  if (!independent) return { differs: null, pairs: 0 };
  const n = Math.min(pairs.length, MAX_BLOCKS), blocks = new Float64Array(4 * n);
  pairs.forEach((pair, i) => pair.slice(0, 4).forEach((part, k) => { blocks[4 * (i % MAX_BLOCKS) + k] += part; }));
  const value = (num, den) => (byName[name].exponential ? Math.exp(-num / den) : num / den);
  const difference = ([a, b, c, d]) => value(a, b) - value(c, d);
  const all = [0, 1, 2, 3, 4].map((k) => pairs.reduce((sum, pair) => sum + pair[k], 0)), rows = draws(n), again = [];
  for (let r = 0; r < RESAMPLES; r++) {
    const sums = [0, 0, 0, 0];
    for (let i = r * n; i < (r + 1) * n; i++) for (let k = 0; k < 4; k++) sums[k] += blocks[4 * rows[i] + k];
    if (sums[1]) again.push(difference(sums));
  }
  again.sort((p, q) => p - q);
  const quantile = (share) => { const at = share * (again.length - 1), low = Math.floor(at); return again[low] + (at - low) * ((again[low + 1] ?? again[low]) - again[low]); };
  const [low, high] = [quantile(0.025), quantile(0.975)];
  return { difference: difference(all), low, high, pairs: all[4], differs: independent < data.min_pairs ? null : low > 0 || high < 0 };
}
/** Say how many of the table's comparisons would be expected to differ if no setting had an effect. */
function byChance(names, shown) {
  const compared = shown.flatMap((g) => (g === state.base ? [] : names.filter((name) => (against(name, g, state.base).differs ?? null) !== null))).length;
  return `of ${plural(compared, "comparison")} ${+(compared * data.by_chance).toPrecision(3)} would differ by chance alone`;
}
const verdicts = new Map();
/** Call `compare` for one point or several, and remember the result. */
function against(name, points, base) {
  const inside = [points].flat(), id = `${name}/${inside}/${base}`;
  if (!verdicts.has(id)) verdicts.set(id, compare(name, inside, base));
  return verdicts.get(id);
}
/** Say how far a mark of the charts lies from the baseline. */
function fromBaseline(name, inside) {
  if (typeof state.base !== "number" || String(inside) === String(state.base)) return "";
  const { difference, low, high, pairs, differs } = against(name, inside, state.base);
  return !pairs || low === null ? "" : `; ${differs === null ? "? " : differs ? "" : "≈ "}${signed(name, difference)} [${showLike(name, low, difference)}, ${showLike(name, high, difference)}] from the baseline`;
}
