/* ---------- plots: scales, axes, lines and marks ---------- */

/** Return n evenly spaced elements of a list, including both ends. */
const spreadOver = (list, n) => (list.length <= n ? list : n === 1 ? list.slice(0, 1) : [...new Set(Array.from({ length: n }, (_, i) => list[Math.round((i * (list.length - 1)) / (n - 1))]))]);
/** The most values, bars and dots that a chart draws: more would be slow and impossible to tell apart. */
const MAX_VALUES = 40, MAX_BARS = 1500, MAX_DOTS = 2000;
const drawn = (key) => spreadOver(key.labels.map((_, place) => place), MAX_VALUES);
const partOf = (key, what = "") => (key.labels.length > MAX_VALUES ? `; ${what}${MAX_VALUES} of the ${key.labels.length.toLocaleString("en")} values of ${key.name}` : "");

/** Return whether the range of values calls for a logarithmic scale; never for shares. */
const widely = (name, low, high) => low > 0 && high / low > 30 && !(name && byName[name].unit === "share");

/** Return positions and ticks of an axis: linear, logarithmic where values span a factor of 30, or evenly spaced names. */
function scale(lows, highs, from, to, { numbers = null, labels = null, name = null } = {}) {
  if (labels && !numbers) {
    const gap = (to - from) / Math.max(1, labels.length - 1);
    return { of: (i) => (labels.length === 1 ? (from + to) / 2 : from + gap * i), ticks: labels.map((text, i) => [i, text]) };
  }
  let low = least(lows), high = most(highs);
  const own = (of) => { // the values themselves as ticks, where they fit
    if (!numbers) return null;
    const at = numbers.map(of), room = Math.min(...at.slice(1).map((v, i) => Math.abs(v - at[i])));
    return numbers.length < 2 || room >= 30 ? numbers.map((v, i) => [v, short(labels[i], 6)]) : null;
  };
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  if (widely(name, low, high)) {
    const of = (v) => from + ((to - from) * Math.log(v / low)) / Math.log(high / low);
    let ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const lead of high / low > 1e4 ? [1] : [1, 2, 5]) ticks.push(lead * 10 ** power);
    ticks = ticks.filter((v) => v >= low / 1.001 && v <= high * 1.001);
    return { of, ticks: own(of) || ticks.map((v) => [v, show(v, 2)]) };
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((lead) => lead * power).find((one) => one >= rough);
  const ticks = [];
  if (!numbers) {
    const share = name && byName[name].unit === "share"; // never beyond 0 and 1
    low = Math.max(share ? 0 : -Infinity, Math.floor(low / step + 1e-9) * step);
    high = Math.min(share ? 1 : Infinity, Math.ceil(high / step - 1e-9) * step);
  }
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) ticks.push(+(i * step).toPrecision(12));
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (String(step / power).includes(".5") ? 1 : 0));
  const of = (v) => from + ((to - from) * (v - low)) / (high - low);
  return { of, ticks: own(of) || ticks.map((v) => [v, v.toFixed(Math.min(8, decimals)).replace("-", "\u2212")]) };
}

/** Return the width of a drawing: that of its container, so that its text has the normal size. */
const width = (id) => Math.max(300, Math.min(1200, Math.round($(id).clientWidth) || 560));

function frame(x, y, W, H, box, xName, yName, marks, alt) {
  return el("svg", { class: "plot", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": alt },
    y.ticks.map(([v, text]) => [
      el("line", { class: "grid", x1: box.left, x2: box.right, y1: y.of(v), y2: y.of(v) }),
      el("text", { x: box.left - 7, y: y.of(v) + 4, "text-anchor": "end" }, text)]),
    el("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    x.ticks.map(([v, text]) => [
      el("line", { class: "axis", x1: x.of(v), x2: x.of(v), y1: box.bottom, y2: box.bottom + 4 }),
      el("text", { x: x.of(v), y: box.bottom + 18, "text-anchor": "middle" }, text)]),
    el("text", { class: "name", x: (box.left + box.right) / 2, y: H - 4, "text-anchor": "middle" }, xName),
    el("text", { class: "name", x: 2, y: 12 }, yName), marks);
}
/** The style of line i: eight colours, then the same dashed. Neighbours have different marks, for readers who see no colour. */
const DASHES = [null, "7 4", "2 4", "11 3 2 3"], COLOURS = 8;
const lineColour = (i) => `var(--l${i % COLOURS})`;
const dashOf = (i) => DASHES[Math.floor(i / COLOURS) % DASHES.length];
const MARKS = ["", "M-1-1H1V1H-1Z", "M0-1.25L1.2 1H-1.2Z", "M0-1.35L1.35 0L0 1.35L-1.35 0Z"];
/** Draw the mark of line i at x, y: a circle, a square, a triangle or a diamond. */
function mark(i, x, y, r, attributes, ...inside) {
  const shape = MARKS[(i + Math.floor(i / (COLOURS * DASHES.length))) % MARKS.length];
  return shape ? el("path", { ...attributes, d: shape.replace(/-?[\d.]+/g, (part) => ` ${+(part * r).toFixed(2)}`), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` }, ...inside)
    : el("circle", { ...attributes, cx: x, cy: y, r }, ...inside);
}
/** Write the name of line i beside its end, with a piece of the line and its mark. */
const lineName = (i, x, y, text, two) => [
  two && el("path", { class: "line", stroke: lineColour(i), "stroke-dasharray": dashOf(i), d: `M${x - 4} ${y - 4}h20` }),
  two && mark(i, x + 6, y - 4, 3.2, { fill: lineColour(i) }),
  el("text", { x: x + 20, y, style: { fill: lineColour(i), "font-weight": 600 } }, text)];
/** Return whether a reference value is near enough to draw in place; a distant one must not flatten the curves. */
function near(goal, lows, highs) {
  if (goal === null) return false;
  const low = least(lows), high = most(highs), span = high - low || Math.abs(high) * 0.1 || 0.5;
  const alike = widely(null, Math.min(low, goal), Math.max(high, goal)) === widely(null, low, high); // the value must not change the kind of scale
  return alike && goal >= low - span && goal <= high + span;
}

/** Push the labels at the ends of lines apart so that they do not overlap. */
function apart(ends, gap, low, high) {
  ends.sort((p, q) => p.y - q.y);
  for (let i = 1; i < ends.length; i++) ends[i].y = Math.max(ends[i].y, ends[i - 1].y + gap);
  for (let i = ends.length - 1, limit = high; i >= 0; i--, limit -= gap) ends[i].y = Math.max(low, Math.min(ends[i].y, limit));
  return ends;
}

const ring = (g, x, y) => {
  const at = state.columns.indexOf(g);
  return at < 0 ? null : el("g", { class: `t${at}` }, el("circle", { class: "ring", cx: x, cy: y, r: 8 }), el("text", { class: "tag", x: x + 8, y: y - 8 }, LETTERS[at]));
};
/** Return the numbers of a plot as a table, built when the reader opens it. */
function tableOf(head, rows) {
  const place = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers of the plot above" });
  const make = () => place.childElementCount || place.append(el("table", { class: "rows" },
    el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows().map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map((text) => el("td", {}, text)))))));
  return el("details", { class: "as-table", ontoggle: make }, el("summary", {}, "The same as a table"), place);
}
