const data = JSON.parse(document.getElementById("data").textContent);
const { keys, metrics, groups, values, samples } = data;
const LETTERS = "ABCD", MAX_COLUMNS = 4, ROWS = 200, RESAMPLES = 2000, MAX_BLOCKS = 4000;
const $ = (id) => document.getElementById(id);
const byName = Object.assign(Object.create(null), Object.fromEntries(metrics.map((metric) => [metric.name, metric])));
const count = groups.at.length;
const every = Array.from({ length: count }, (_, g) => g);
const withText = new Set(samples.group), readable = every.filter((g) => withText.has(g) || !withText.size);

/* ---------- small tools ---------- */

/** Characters that cannot be seen, or that would reorder the text. */
const ODD = new RegExp(`[${data.unsafe}]`, "gu");
/** Text as it may be shown: names, labels and problems come from strangers. Samples alone go through `write` instead. */
const visible = (text) => text.replace(ODD, (odd) => {
  const code = odd.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : "\\u" + code.padStart(4, "0");
});
const safe = (child) => (typeof child === "string" ? visible(child) : child);

/** An element: tag, attributes (on… are listeners, true means present), children (text is always text, and visible). */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "rect", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [property, setting] of Object.entries(value)) node.style.setProperty(property, setting);
    else node.setAttribute(name, value === true ? "" : name === "value" ? value : safe(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map(safe));
  return node;
}
const fill = (node, ...children) => node.replaceChildren(...children.flat(Infinity).filter(Boolean).map(safe));
const least = (all) => all.reduce((p, q) => Math.min(p, q), Infinity), most = (all) => all.reduce((p, q) => Math.max(p, q), -Infinity);
const plural = (n, one, more = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;

/** A number as people read it: three digits that matter, a real minus sign. */
function show(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-4 ? value.toExponential(digits - 1)
    : size >= 10 ** digits ? Math.round(value).toString()
    : value.toFixed(Math.max(0, Math.min(6, digits - 1 - Math.floor(Math.log10(size)))));
  return text.replace("-", "\u2212");
}
/** A value of a metric: shares to three decimals, everything else to three digits. */
const showOf = (name, value) => (byName[name].unit !== "share" || value === null || value === undefined ? show(value) : value.toFixed(3).replace(/^-(?!0.000$)/, "\u2212").replace("-", ""));
/** An error or the end of a range beside its value: as many decimals as the value has. */
function showLike(name, value, like) {
  if (value === null || value === undefined) return "–";
  const decimals = (showOf(name, like).split(".")[1] || "").length;
  return value.toFixed(Math.min(6, decimals)).replace("-", "\u2212");
}
const signed = (name, value) => (value > 0 ? "+" : "") + showOf(name, value);
const short = (text, most = 28) => (text = JSON.stringify(text).slice(1, -1)).length > most ? text.slice(0, most - 1) + "…" : text;
/** The values of a setting in at most so many characters each, and still all different: what all begin and end with is left out. */
const briefs = new Map();
function brief(k, place, most = 28) {
  const id = k + "/" + most;
  if (!briefs.has(id)) {
    const texts = keys[k].labels.map((text) => JSON.stringify(text).slice(1, -1)), long = texts.filter((text) => text.length > most);
    const edge = (at) => { // what all long ones share, up to the last mark between words
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
      const wider = Math.max(0, to - room); // as much of what comes before as there is room for
      return (wider ? "…" : "") + text.slice(wider, to) + (to < text.length ? "…" : "");
    });
    briefs.set(id, found.map((text, i) => (found.indexOf(text) === found.lastIndexOf(text) ? text : `${text} (${i + 1})`)));
  }
  return briefs.get(id)[place];
}
const nameBy = (g, chosen) => chosen.map((k) => `${keys[k].name} ${brief(k, groups.at[g][k])}`).join(" · ");
const groupName = (g) => nameBy(g, keys.map((_, k) => k)) || "this run";
/** The settings in which the points in the columns differ; all of them where there is nothing to tell apart. */
function differing() {
  const found = keys.map((_, k) => k).filter((k) => new Set(state.columns.map((g) => groups.at[g][k])).size > 1);
  return found.length ? found : keys.map((_, k) => k);
}
const settingName = (name) => byName[name].label;

/* ---------- state, kept in the address ---------- */

const all = "all", TEXT = "reference";
const first = metrics.length ? metrics[0].name : null;
const onAxis = (axis) => metrics.find((metric) => metric.axis === axis)?.name ?? first;
const numeric = keys.map((_, k) => k).sort((p, q) => isNumeric(q) - isNumeric(p) || p - q); // settings with an order come first
function isNumeric(k) { return keys[k].labels.every((text) => text === "null" || !Number.isNaN(Number(text))); }
const open = keys.map(() => (data.cells ? all : 0)); // a page that holds no means over settings shows one value of each
const state = {
  metric: first, x: numeric[0] ?? 0, y: numeric[1] ?? 0, fixed: open.slice(),
  mx: onAxis("x"), my: onAxis("y"),
  columns: spread(), at: 0, find: "", sort: "", base: null, all: false, inside: false, rate: false, among: "",
  every: false, less: [], kind: "", order: "", pin: [], hide: [], wide: false,
};

/** The points that the sample browser opens with: along the first setting its ends and its middle, of the others the middle. */
function spread() {
  if (readable.length <= 3) return readable.slice();
  const x = numeric[0], n = keys[x].labels.length, middle = keys.map((key) => Math.floor((key.labels.length - 1) / 2));
  const found = [0, Math.floor(n / 2), n - 1].map((place) => nearest(middle.map((at, k) => (k === x ? place : at)), x));
  return [...new Set(found)];
}
function nearest(at, x) {
  let best, least = Infinity;
  for (const g of readable) {
    const distance = at.reduce((sum, place, k) => sum + (k === x ? 100 : 1) * Math.abs(place - groups.at[g][k]), 0);
    if (distance < least) [best, least] = [g, distance];
  }
  return best;
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1)); // anyone can write an address: what is not known here is passed over
  const metric = (name, now) => (byName[given.get(name)] ? given.get(name) : now);
  const key = (name, now) => { const k = keys.findIndex((one) => one.name === given.get(name)); return k < 0 ? now : k; };
  const group = (text) => (/^\d+$/.test(text) && Number(text) < count ? Number(text) : null);
  state.metric = metric("metric", state.metric);
  state.mx = metric("mx", state.mx);
  state.my = metric("my", state.my);
  const x = key("x", state.x), y = key("y", state.y);
  if (x !== y || keys.length < 2) [state.x, state.y] = [x, y];
  keys.forEach((one, k) => {
    const place = one.labels.indexOf(given.get("only." + one.name));
    state.fixed[k] = place < 0 ? open[k] : place;
  });
  if (given.has("points")) {
    const asked = given.get("points").split(",").map(group).filter((g) => g !== null);
    if (asked.length) state.columns = [...new Set(asked)].slice(0, MAX_COLUMNS);
  }
  state.rate = given.get("rate") === "1" && readable.length > 1;
  state.among = given.get("among") === "shown" ? "shown" : "";
  state.find = given.get("find") ?? state.find;
  for (const name of ["inside", "all", "every", "wide"]) state[name] = given.get(name) === "1";
  const list = (name) => (given.get(name) || "").split(",").filter(Boolean);
  for (const name of ["pin", "hide"]) state[name] = [...new Set(list(name).map(group).filter((g) => g !== null))];
  state.pin = state.pin.slice(0, MAX_COLUMNS);
  state.less = list("less").filter((name) => byName[name]);
  state.kind = Object.hasOwn(KINDS, given.get("show") || "") ? given.get("show") || "" : "";
  state.order = perSample.some(({ name }) => name === (given.get("order") || "").replace(/^-/, "")) ? given.get("order") : "";
  const sort = given.get("sort") ?? state.sort, sorted = sort.replace(/^-/, "");
  state.sort = byName[sorted] || keys.some((one) => one.name === sorted) ? sort : "";
  state.base = given.get("base") === TEXT && data.reference ? TEXT : group(given.get("base") ?? "");
  if (given.has("sample")) {
    const at = places.findIndex((place) => place.id === given.get("sample"));
    if (at >= 0) state.at = at;
  }
}
function writeAddress() {
  const parts = new URLSearchParams();
  if (state.metric) parts.set("metric", state.metric);
  if (keys.length > 1) { parts.set("x", keys[state.x].name); parts.set("y", keys[state.y].name); }
  if (keys.length) { parts.set("mx", state.mx); parts.set("my", state.my); }
  keys.forEach((key, k) => state.fixed[k] !== all && parts.set("only." + key.name, key.labels[state.fixed[k]]));
  parts.set("points", state.columns.join(","));
  if (places.length) parts.set("sample", places[state.at].id);
  for (const name of ["find", "sort", "among", "order"]) if (state[name]) parts.set(name, state[name]);
  if (state.kind) parts.set("show", state.kind);
  for (const name of ["rate", "inside", "all", "every", "wide"]) if (state[name]) parts.set(name, "1");
  for (const name of ["pin", "hide", "less"]) if (state[name].length) parts.set(name, state[name].join(","));
  if (state.base !== null) parts.set("base", state.base);
  ours = "#" + parts;
  history.replaceState(null, "", ours);
}
let ours = "";

function update(change, ...draw) {
  Object.assign(state, change);
  writeAddress();
  for (const one of draw.length ? draw : [drawEffects, drawCharts, drawPoints, drawMatrix, drawSamples]) one();
}

/** Show point g among the samples, or take it away. */
function toggle(g) {
  const now = state.columns.includes(g) ? state.columns.filter((one) => one !== g) : [...state.columns, g].slice(-MAX_COLUMNS);
  update({ columns: now }, drawCharts, drawPoints, drawMatrix, drawSamples);
}
const badge = (g) => {
  const at = state.columns.indexOf(g);
  return at < 0 ? null : el("span", { class: `badge t${at}`, title: "shown among the samples" }, LETTERS[at]);
};

/* ---------- places: (prompt, seed, number) ---------- */

const places = [], placeOf = new Map(), textAt = new Map();
for (let i = 0; i < samples.text.length; i++) {
  const id = `${samples.place[i]}-${samples.seed[i]}-${samples.index[i]}`;
  if (!placeOf.has(id)) {
    placeOf.set(id, places.length);
    places.push({ id, prompt: samples.place[i], seed: samples.seed[i], index: samples.index[i] });
  }
  textAt.set(samples.group[i] + "/" + id, i);
}
places.sort((a, b) => a.prompt - b.prompt || a.index - b.index || (a.seed.length - b.seed.length) || (a.seed < b.seed ? -1 : 1));
const sampleAt = (g, place) => textAt.get(g + "/" + place.id);

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

/* ---------- head ---------- */

function drawHead() {
  const { facts } = data, bold = (text) => el("b", {}, text);
  fill($("title"), data.title);
  const bits = [bold(plural(facts.points, "point")), bold(plural(data.total, "sample")), plural(facts.tokens, "token")];
  if (facts.seeds > 1) bits.push(plural(facts.seeds, "seed"));
  if (facts.prompts > 1) bits.push(plural(facts.prompts, "prompt"));
  if (facts.models.length) bits.push(facts.models.join(", "));
  fill($("facts"), bits.flatMap((bit, i) => (i ? [" · ", bit] : [bit])));
  const open = ["partial", "failed", "missing"].filter((status) => facts.statuses[status]);
  const lines = [...data.problems];
  if (open.length || lines.length) {
    const said = open.map((status) => `${plural(facts.statuses[status], "point")} ${status}`);
    if (facts.damaged) said.push(plural(facts.damaged, "damaged line") + " left out");
    else if (lines.length && !facts.statuses.failed) said.push(plural(lines.length, "problem"));
    const summary = said.join(", ") || plural(lines.length, "problem");
    $("problems").append(lines.length
      ? el("details", { class: "problem" }, el("summary", {}, summary), el("ul", {}, lines.map((line) => el("li", {}, line))))
      : el("p", { class: "problem" }, summary));
  }
  fill($("metric"), metrics.map((metric) => el("option", { value: metric.name }, metric.label)));
  $("metric").addEventListener("change", (event) => update({ metric: event.target.value }, drawEffects, drawCharts, drawPoints));
  const themes = ["auto", "light", "dark"];
  $("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % 3];
    document.documentElement.dataset.theme = next;
    $("theme").textContent = "Theme: " + next;
  });
  for (const link of document.querySelectorAll("[data-goto]"))
    link.addEventListener("click", (event) => { event.preventDefault(); go(link.dataset.goto); });
}
/** Show a section, and let the keyboard go on there. */
function go(section) {
  $(section).scrollIntoView();
  $(section).focus({ preventScroll: true });
}

/** The metrics shown before all are asked for. */
const TABLE = metrics.filter((metric) => metric.default).map((metric) => metric.name);
const shownMetrics = () => (state.every ? metrics : metrics.filter((metric) => TABLE.includes(metric.name) || metric.name === state.metric));
const allMetrics = () => el("button", { type: "button", class: "all-metrics", onclick: () => update({ every: !state.every }, drawEffects, drawPoints) },
  state.every ? "Fewer metrics" : `All ${metrics.length} metrics`);

/* ---------- effects ---------- */

function sparkline(along) {
  const have = along.map((value, i) => [i, value]).filter(([, value]) => value !== null);
  if (have.length < 2) return "";
  const low = Math.min(...have.map(([, v]) => v)), high = Math.max(...have.map(([, v]) => v));
  const x = (i) => 4 + (82 * i) / (along.length - 1), y = (v) => (high === low ? 11 : 19 - (16 * (v - low)) / (high - low));
  const path = have.map(([i, v], place) => `${place ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const [i, v] = have[have.length - 1];
  return el("svg", { class: "spark", width: 92, height: 22, viewBox: "0 0 92 22", "aria-hidden": "true" },
    el("path", { d: path }), el("circle", { cx: x(i), cy: y(v), r: 2.5 }));
}

function drawEffects() {
  if (!data.effects.length || !metrics.length) { $("effects").hidden = true; return; }
  const head = el("tr", {}, el("th", { scope: "col" }, "Metric"), data.effects.map(({ key }) => {
    const k = keys.findIndex((one) => one.name === key);
    return el("th", { scope: "colgroup", colspan: 2 }, key, el("span", { class: "range" }, `${brief(k, 0)} → ${brief(k, keys[k].labels.length - 1)}`));
  }), data.effects.length < 3 && el("th", { scope: "col", class: "what" }, "What it is"));
  const rows = shownMetrics().map(({ name, label: text, meaning }) => el("tr", { class: name === state.metric && "now" },
    el("th", { scope: "row" }, el("button", {
      type: "button", title: meaning, "aria-pressed": String(name === state.metric), onclick: () => update({ metric: name }, drawEffects, drawCharts, drawPoints),
    }, text)),
    data.effects.map(({ along, change }) => {
      const [difference, low, high, pairs, differs, reason] = change[name] || [null, null, null, 0, false, ""];
      const cells = [el("td", { class: "spark" }, sparkline(along[name] || []))];
      if (difference === null) cells.push(el("td", { class: "unsure" }, "–"));
      else if (reason || low === null)
        cells.push(el("td", { class: "unsure", title: reason || plural(pairs, "pair") }, `${signed(name, difference)} `, el("span", { class: "pm" }, "too few pairs to tell")));
      else cells.push(el("td", { class: differs ? "" : "unsure", title: plural(pairs, "pair") },
        differs ? signed(name, difference) : el("span", {}, "≈ ", signed(name, difference)), " ",
        el("span", { class: "pm" }, `[${showLike(name, low, difference)}, ${showLike(name, high, difference)}]`)));
      return cells;
    }), data.effects.length < 3 && el("td", { class: "what" }, meaning)));
  fill($("effects-body"), el("table", { class: "effects" }, el("thead", {}, head), el("tbody", {}, rows)));
  fill($("effects-more"), metrics.length > TABLE.length && allMetrics());
}

/* ---------- charts ---------- */

const picker = (text, options, now, change) => el("label", { class: "pick" }, text + " ",
  el("select", { onchange: (event) => change(event.target.value) },
    options.map(([value, name]) => el("option", { value, selected: String(value) === String(now) }, name))));

function drawAxes() {
  const names = keys.map((key, k) => [k, key.name]), controls = [];
  if (keys.length > 1) {
    const other = (k, not) => (k === not ? keys.findIndex((_, one) => one !== k) : not);
    controls.push(
      picker("Across", names, state.x, (k) => update({ x: +k, y: other(+k, state.y) }, drawCharts)),
      picker("Line for each", names, state.y, (k) => update({ y: +k, x: other(+k, state.x) }, drawCharts)));
  }
  keys.forEach((key, k) => {
    if (k !== state.x && k !== state.y)
      controls.push(picker(key.name, [...(data.cells ? [[all, "mean over all"]] : []), ...key.labels.map((_, place) => [place, brief(k, place)])], state.fixed[k],
        (place) => update({ fixed: state.fixed.map((now, one) => (one === k ? (place === all ? all : +place) : now)) }, drawCharts)));
  });
  if (keys.length) {
    const choices = metrics.map((metric) => [metric.name, metric.label]);
    controls.push(picker("Scatter", choices, state.mx, (name) => update({ mx: name }, drawCharts)), picker("against", choices, state.my, (name) => update({ my: name }, drawCharts)));
  }
  fill($("axes"), controls);
}

/** What is under the pointer or the focus, in words below the charts. */
function read(text) { fill($("read"), text); }

function heatColour(share) {
  return share < 0.5 ? `color-mix(in oklab, var(--heat1) ${(share * 200).toFixed(1)}%, var(--heat0))`
    : `color-mix(in oklab, var(--heat2) ${((share - 0.5) * 200).toFixed(1)}%, var(--heat1))`;
}

/** So many of a list, evenly: its ends and what lies between. */
const spreadOver = (list, n) => (list.length <= n ? list : n === 1 ? list.slice(0, 1) : [...new Set(Array.from({ length: n }, (_, i) => list[Math.round((i * (list.length - 1)) / (n - 1))]))]);
/** The places of the values of a setting that a chart shows: more than these are no longer told apart, and slow. */
const MAX_VALUES = 40, MAX_DOTS = 2500;
const drawn = (key) => spreadOver(key.labels.map((_, place) => place), MAX_VALUES);
const partOf = (key) => (key.labels.length > MAX_VALUES ? `; ${MAX_VALUES} of the ${key.labels.length.toLocaleString("en")} values of ${key.name}` : "");

function drawHeat() {
  $("heat").hidden = keys.length < 2;
  if (keys.length < 2) return;
  const kx = keys[state.x], ky = keys[state.y];
  const xs = drawn(kx), ys = drawn(ky), cells = grid().map((row, y) => row.map((inside, x) => ({ inside, found: meanOf(state.metric, x, y) })));
  const means = cells.flat().filter((cell) => cell.found).map((cell) => cell.found.mean);
  const low = least(means), high = most(means);
  const logarithmic = widely(state.metric, low, high);
  const share = (v) => (high === low ? 0.5 : logarithmic ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const row = (y) => el("tr", {}, el("th", { scope: "row", title: ky.labels[y] }, brief(state.y, y, 14)), xs.map((x) => {
    const { inside, found } = cells[y][x];
    const name = `${kx.name} ${brief(state.x, x)}, ${ky.name} ${brief(state.y, y)}: ${settingName(state.metric)} ${spoken(state.metric, found)}`;
    if (!inside.length) return el("td", {}, "");
    const one = inside.length === 1 ? inside[0] : inside[Math.floor(inside.length / 2)];
    const part = found ? share(found.mean) : 0;
    return el("td", {}, el("button", {
      type: "button", class: (found ? "" : "none") + (state.columns.includes(one) ? ` on t${state.columns.indexOf(one)}` : ""), "aria-label": name + (state.columns.includes(one) ? ", shown among the samples" : ""),
      style: found ? { background: heatColour(part), color: part < 0.5 ? "var(--on-low)" : "var(--on-high)" } : {},
      onmouseenter: () => read(name), onfocus: () => read(name), onclick: () => toggle(one),
    }, found ? showOf(state.metric, found.mean) : "–", badge(one)));
  }));
  const wide = xs.length, every12 = Math.ceil(wide / 12);
  const table = el("table", { class: "heat" + (wide > 16 ? " tiny" : wide > 10 ? " dense" : "") },
    el("caption", { class: "visually-hidden" }, `${settingName(state.metric)} by ${kx.name} and ${ky.name}`),
    el("thead", {}, el("tr", {}, el("td", { class: "corner" }, ""), xs.map((x, at) => el("th", { scope: "col", title: kx.labels[x] }, at % every12 ? el("span", { class: "visually-hidden" }, kx.labels[x]) : brief(state.x, x, 12))))),
    el("tbody", {}, ys.map((y) => row(y)).reverse()));
  fill($("heat"),
    el("figcaption", {}, `${settingName(state.metric)} `, el("span", {}, `by ${kx.name} (across) and ${ky.name} (up)${partOf(kx)}${partOf(ky)}`)),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Heat map" }, table),
    means.length > 0 && el("p", { class: "legend" }, showOf(state.metric, low), el("i"), showOf(state.metric, high), logarithmic ? " logarithmic" : "", " · press a cell to read its samples"));
}

/** Whether values span so much that a logarithmic scale shows more; never for shares. */
const widely = (name, low, high) => low > 0 && high / low > 30 && !(name && byName[name].unit === "share");

/** Positions along an axis: linear, logarithmic where values span a factor of 30, or evenly spaced names. */
function scale(lows, highs, from, to, { numbers = null, labels = null, name = null } = {}) {
  if (labels && !numbers) {
    const gap = (to - from) / Math.max(1, labels.length - 1);
    return { of: (i) => (labels.length === 1 ? (from + to) / 2 : from + gap * i), ticks: labels.map((text, i) => [i, text]) };
  }
  let low = least(lows), high = most(highs);
  const own = (of) => { // the values themselves as ticks, where they have room
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

/** A drawing is as wide as its place, so that its text has the size of text. */
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
/** How line i looks: eight colours, then the same dashed; marks differ between neighbours, for who sees no colours. */
const DASHES = [null, "7 4", "2 4", "11 3 2 3"], COLOURS = 8;
const lineColour = (i) => `var(--l${i % COLOURS})`;
const dashOf = (i) => DASHES[Math.floor(i / COLOURS) % DASHES.length];
const MARKS = ["", "M-1-1H1V1H-1Z", "M0-1.25L1.2 1H-1.2Z", "M0-1.35L1.35 0L0 1.35L-1.35 0Z"];
/** A mark at x, y: a circle, a square, a triangle or a diamond. */
function mark(i, x, y, r, attributes, ...inside) {
  const shape = MARKS[(i + Math.floor(i / (COLOURS * DASHES.length))) % MARKS.length];
  return shape ? el("path", { ...attributes, d: shape.replace(/-?[\d.]+/g, (part) => ` ${+(part * r).toFixed(2)}`), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` }, ...inside)
    : el("circle", { ...attributes, cx: x, cy: y, r }, ...inside);
}
/** The name of line i beside its end, with a piece of the line and its mark. */
const lineName = (i, x, y, text, two) => [
  two && el("path", { class: "line", stroke: lineColour(i), "stroke-dasharray": dashOf(i), d: `M${x - 4} ${y - 4}h20` }),
  two && mark(i, x + 6, y - 4, 3.2, { fill: lineColour(i) }),
  el("text", { x: x + 20, y, style: { fill: lineColour(i), "font-weight": 600 } }, text)];
/** A reference value that is near enough to show, where it stands; one far away must not flatten what it is held against. */
function near(goal, lows, highs) {
  if (goal === null) return false;
  const low = least(lows), high = most(highs), span = high - low || Math.abs(high) * 0.1 || 0.5;
  const alike = widely(null, Math.min(low, goal), Math.max(high, goal)) === widely(null, low, high); // as logarithmic as without it
  return alike && goal >= low - span && goal <= high + span;
}

/** Labels at the ends of lines, pushed apart so that they can be read. */
function apart(ends, gap, low, high) {
  ends.sort((p, q) => p.y - q.y);
  for (let i = 1; i < ends.length; i++) ends[i].y = Math.max(ends[i].y, ends[i - 1].y + gap);
  for (let i = ends.length - 1, limit = high; i >= 0; i--, limit -= gap) ends[i].y = Math.max(low, Math.min(ends[i].y, limit));
  return ends;
}

function drawCurve() { // the height grows with the names of the lines
  const kx = keys[state.x], two = keys.length > 1, ky = two ? keys[state.y] : { labels: [""] };
  const shownLines = new Set(two ? drawn(ky) : [0]);
  const lines = grid().map((row, y) => !shownLines.has(y) ? [] : row.map((inside, x) => {
    const found = meanOf(state.metric, x, y);
    return found && { x, g: inside[Math.floor(inside.length / 2)], ...found };
  }).filter(Boolean));
  const flat = lines.flat();
  if (!flat.length) { fill($("curve"), el("p", { class: "empty" }, "Nothing to draw yet.")); return; }
  $("curve").classList.toggle("wide", !two);
  const shown = lines.filter((line) => line.length).length;
  const W = width("curve"), H = Math.max(350, 14 * Math.min(shown, 60) + 80), box = { left: 52, right: W - (two ? 112 : 20), top: 28, bottom: H - 44 };
  const numbers = kx.numbers;
  const x = numbers ? scale(numbers, numbers, box.left + 8, box.right - 8, { numbers, labels: kx.labels }) : scale([], [], box.left + 14, box.right - 14, { labels: kx.labels.map((_, i) => brief(state.x, i, 10)) });
  const goal = reference(state.metric), lows = flat.map((p) => p.mean - (p.error || 0)), highs = flat.map((p) => p.mean + (p.error || 0));
  const goals = near(goal, lows, highs) ? [goal] : [], above = goal > most(highs);
  const y = scale([...lows, ...goals], [...highs, ...goals], box.bottom, box.top, { name: state.metric });
  const px = (p) => x.of(numbers ? numbers[p.x] : p.x), rings = [];
  const marks = lines.map((line, i) => {
    const colour = lineColour(i);
    return el("g", {},
      el("path", { class: "line", stroke: colour, "stroke-dasharray": dashOf(i), d: line.map((p, at) => `${at ? "L" : "M"}${px(p).toFixed(1)} ${y.of(p.mean).toFixed(1)}`).join("") }),
      flat.length <= 1500 && line.map((p) => p.error !== null && el("line", { class: "bar1", stroke: colour, x1: px(p), x2: px(p), y1: y.of(Math.max(p.mean - p.error, -1e300)), y2: y.of(p.mean + p.error) })),
      line.map((p) => {
        const text = () => `${kx.name} ${brief(state.x, p.x)}${two ? `, ${ky.name} ${brief(state.y, i)}` : ""}: ${settingName(state.metric)} ${spoken(state.metric, p)}`;
        rings.push(ring(p.g, px(p), y.of(p.mean)));
        return mark(i, px(p), y.of(p.mean), flat.length <= 300 ? 4.5 : 2.5, { class: "dot", fill: colour, onmouseenter: () => read(text()), onclick: () => toggle(p.g) }, flat.length <= 300 && el("title", {}, text()));
      }));
  });
  const ends = two ? apart(lines.map((line, i) => line.length && { i, y: y.of(line[line.length - 1].mean), x: px(line[line.length - 1]) }).filter(Boolean), 14, box.top, box.bottom) : [];
  const few = ends.length <= 60 ? ends : ends.filter((_, i) => i % Math.ceil(ends.length / 60) === 0);
  const names = few.map((end) => lineName(end.i, box.right + 10, end.y + 4, brief(state.y, end.i, 11), two));
  if (two) names.push(el("text", { x: box.right + 8, y: 12, class: "name" }, short(ky.name, 14)));
  const alt = `${settingName(state.metric)} along ${kx.name}${two ? `, a line for each ${ky.name}` : ""}. The same numbers stand in the table below.`;
  fill($("curve"),
    el("figcaption", {}, `${settingName(state.metric)} `, el("span", {}, `along ${kx.name}; bars are one standard error${two ? partOf(ky) : ""}`)),
    frame(x, y, W, H, box, kx.name, settingName(state.metric), [goals.map((v) => [el("line", { class: "ref", x1: box.left, x2: box.right, y1: y.of(v), y2: y.of(v) }),
      el("text", { class: "refname", x: box.left + 6, y: y.of(v) - 5 }, `reference text ${showOf(state.metric, v)}`)]),
      goal !== null && !goals.length && el("text", { class: "refname", x: box.left + 6, y: above ? box.top + 12 : box.bottom - 8 }, `${above ? "↑" : "↓"} reference text ${showOf(state.metric, goal)}, outside the plot`),
      marks, rings, names], alt),
    tableOf([two ? `${ky.name} \\ ${kx.name}` : kx.name, ...kx.labels.map((_, i) => brief(state.x, i))],
      () => lines.map((line, i) => [two ? brief(state.y, i) : settingName(state.metric), ...kx.labels.map((_, at) => { const p = line.find((one) => one.x === at); return p ? spoken(state.metric, p) : "–"; })]).filter((_, i) => shownLines.has(i))));
}
const ring = (g, x, y) => {
  const at = state.columns.indexOf(g);
  return at < 0 ? null : el("g", { class: `t${at}` }, el("circle", { class: "ring", cx: x, cy: y, r: 8 }), el("text", { class: "tag", x: x + 8, y: y - 8 }, LETTERS[at]));
};
/** Numbers of a plot as a table, made when it is opened. */
function tableOf(head, rows) {
  const place = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers of the plot above" });
  const make = () => place.childElementCount || place.append(el("table", { class: "rows" },
    el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows().map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map((text) => el("td", {}, text)))))));
  return el("details", { class: "as-table", ontoggle: make }, el("summary", {}, "The same as a table"), place);
}

function drawScatter() {
  const { mx, my } = state, two = keys.length > 1;
  const there = shownGroups(), dots = spreadOver(there, MAX_DOTS).map((g) => ({ g, px: meanAt(mx, groups.at[g]), py: meanAt(my, groups.at[g]) })).filter((dot) => dot.px && dot.py);
  if (!dots.length) { fill($("scatter"), el("p", { class: "empty" }, "No point has both metrics.")); return; }
  $("scatter").className = "wide";
  const W = width("scatter"), H = W < 600 ? 330 : 420, box = { left: 56, right: W - (W < 600 ? 104 : 160), top: 28, bottom: H - 44 };
  const goal = { px: reference(mx), py: reference(my) }, aimed = goal.px !== null && goal.py !== null;
  const edgeOf = (part, sign) => dots.map((dot) => dot[part].mean + sign * (dot[part].error || 0));
  const inside = { px: aimed && near(goal.px, edgeOf("px", -1), edgeOf("px", 1)), py: aimed && near(goal.py, edgeOf("py", -1), edgeOf("py", 1)) };
  const edge = (part, sign) => [...edgeOf(part, sign), ...(inside[part] ? [goal[part]] : [])];
  const x = scale(edge("px", -1), edge("px", 1), box.left + 8, box.right - 8, { name: mx }), y = scale(edge("py", -1), edge("py", 1), box.bottom, box.top, { name: my });
  const lineOf = (g) => (two ? groups.at[g][state.y] : 0), colourOf = (g) => lineColour(lineOf(g));
  const others = (g) => groups.at[g].filter((_, k) => k !== state.x).join();
  const paths = new Map();
  for (const dot of dots.slice().sort((p, q) => groups.at[p.g][state.x] - groups.at[q.g][state.x])) {
    if (!paths.has(others(dot.g))) paths.set(others(dot.g), []);
    paths.get(others(dot.g)).push(dot);
  }
  const marks = [
    aimed && [el("path", { class: "ref", d: (inside.px ? `M${x.of(goal.px)} ${box.top}V${box.bottom}` : "") + (inside.py ? `M${box.left} ${y.of(goal.py)}H${box.right}` : "") }),
      el("text", { class: "refname", x: inside.px ? x.of(goal.px) + 6 : box.left + 6, y: inside.py && !inside.px ? y.of(goal.py) - 5 : box.bottom - 8 },
        inside.px && inside.py ? "reference text" : `reference text at ${showOf(mx, goal.px)}, ${showOf(my, goal.py)}`)],
    [...paths.values()].map((line) => el("path", { class: "line", stroke: colourOf(line[0].g), "stroke-dasharray": dashOf(lineOf(line[0].g)), style: { opacity: 0.35 },
      d: line.map((dot, at) => `${at ? "L" : "M"}${x.of(dot.px.mean).toFixed(1)} ${y.of(dot.py.mean).toFixed(1)}`).join("") })),
    dots.map(({ g, px, py }) => {
      const cx = x.of(px.mean), cy = y.of(py.mean), colour = colourOf(g);
      const text = () => `${groupName(g)}: ${settingName(mx)} ${spoken(mx, px)}; ${settingName(my)} ${spoken(my, py)}`;
      return el("g", {},
        dots.length <= 150 && px.error && el("line", { class: "bar1", stroke: colour, x1: x.of(px.mean - px.error), x2: x.of(px.mean + px.error), y1: cy, y2: cy }),
        dots.length <= 150 && py.error && el("line", { class: "bar1", stroke: colour, x1: cx, x2: cx, y1: y.of(py.mean - py.error), y2: y.of(py.mean + py.error) }),
        mark(lineOf(g), cx, cy, dots.length <= 300 ? 5 : 3, { class: "dot", fill: colour, onmouseenter: () => read(text()), onclick: () => toggle(g) }, dots.length <= 300 && el("title", {}, text())));
    }),
    dots.map(({ g, px, py }) => ring(g, x.of(px.mean), y.of(py.mean))),
    [...paths.values()].length <= 14 && two ? apart([...paths.values()].map((line) => ({ line, y: y.of(line[line.length - 1].py.mean) })), 14, box.top, box.bottom).map(({ line, y: at }) =>
      lineName(lineOf(line[0].g), box.right + 10, at + 4, keys.map((_, k) => (k === state.x ? null : brief(k, groups.at[line[0].g][k], 11))).filter((text) => text !== null).join(" · "), two)) : null,
    two && el("text", { x: box.right + 8, y: 12, class: "name" }, short(keys.filter((_, k) => k !== state.x).map((key) => key.name).join(" · "), 18)),
  ];
  const alt = `${settingName(my)} against ${settingName(mx)}, a dot for each point. The same numbers stand in the table of points.`;
  fill($("scatter"),
    el("figcaption", {}, `${settingName(my)} against ${settingName(mx)} `, el("span", {}, `a dot is a point, a line follows ${keys[state.x].name}; no corner is best by itself${there.length > MAX_DOTS ? `; ${MAX_DOTS.toLocaleString("en")} of the ${there.length.toLocaleString("en")} points, evenly chosen` : ""}`)),
    frame(x, y, W, H, box, settingName(mx), settingName(my), marks, alt));
}

/* ---------- samplers: computed before, drawn here ---------- */

function drawSamplers() {
  $("samplers").hidden = !data.samplers.length;
  fill($("samplers-body"), data.samplers.map((found) => el("figure", { class: "wide" }, samplerFigure(found))));
  if (!$("samplers-read").textContent) $("samplers-read").textContent = "Point at a mark to read it here.";
}
/** The sentence, the curves of the families with their intervals, their names, and the same as a table. */
function samplerFigure({ metric, aim, distance, lower, sentence, notes, halved, families }) {
  const longest = Math.max(...families.map((family) => family.best.length)), budgets = Array.from({ length: longest }, (_, i) => i + 1);
  const W = width("samplers-body"), H = W < 600 ? 320 : 400, box = { left: 56, right: W - 16, top: 28, bottom: H - 44 };
  const known = (family, part) => family[part].filter((v) => v !== null);
  const values = families.flatMap((family) => ["best", "same", "low", "high"].flatMap((part) => known(family, part)));
  const label = distance ? `Distance of ${settingName(metric)} from the reference text` : settingName(metric);
  const x = scale([1], [longest], box.left + 14, box.right - 14, { numbers: budgets, labels: budgets.map(String) });
  const y = scale([least(values)], [most(values)], box.bottom, box.top, { name: metric });
  const at = (i, v) => `${x.of(i + 1).toFixed(1)} ${y.of(v).toFixed(1)}`;
  const line = (all) => all.map((v, i) => (v === null ? "" : `${i && all[i - 1] !== null ? "L" : "M"}${at(i, v)}`)).join("");
  const said = (family, i) => `${showOf(metric, family.best[i])}${family.low[i] === null ? "" : ` [${showLike(metric, family.low[i], family.best[i])}, ${showLike(metric, family.high[i], family.best[i])}]`}`;
  const spoken = (family, i) => `${short(family.name, 60)}, best of ${plural(i + 1, "setting")}: ${said(family, i)}; on the same ${halved} ${showOf(metric, family.same[i])}${family.leads[i] ? "; ahead of every other family" : ""}`;
  const bands = families.map((family, f) => family.low[0] !== null && el("path", { class: "band", fill: lineColour(f),
    d: `${line(family.low)}${family.high.map((v, i) => `L${at(i, v)}`).reverse().join("")}Z` }));
  const lines = families.map((family, f) => [
    el("path", { class: "line same", stroke: lineColour(f), d: line(family.same) }),
    el("path", { class: "line", stroke: lineColour(f), d: line(family.best) }),
    family.best.map((v, i) => v !== null && mark(f, x.of(i + 1), y.of(v), family.leads[i] ? 6.5 : longest > 40 ? 2.5 : 4, { class: "dot", fill: lineColour(f),
      onmouseenter: () => { $("samplers-read").textContent = spoken(family, i); } }, el("title", {}, spoken(family, i))))]);
  const names = families.map((family, f) => el("span", { class: "family" },
    el("svg", { width: 28, height: 12, viewBox: "0 0 28 12", "aria-hidden": "true" },
      el("path", { class: "line", stroke: lineColour(f), d: "M1 6h26", "stroke-dasharray": dashOf(f) }), mark(f, 14, 6, 4, { fill: lineColour(f) })),
    short(family.name, 60), " ", el("span", { class: "pm" }, plural(family.best.length, "setting"))));
  const alt = `${label} of the best of so many tried settings, a line for each family. The same numbers stand in the table below.`;
  return [
    el("p", { class: "verdict" }, sentence), notes.length > 0 && el("p", { class: "note" }, notes.join("; "), "."),
    el("figcaption", {}, `${label} `, el("span", {}, `of the best of so many tried settings; ${distance || lower ? "lower" : "higher"} is better. Lines: chosen on one half of the ${halved} and scored on the other, with 95 % intervals over prompts and samples. Dots: chosen and scored on the same, which flatters. Large marks: ahead of every other family`)),
    el("p", { class: "families" }, names),
    frame(x, y, W, H, box, "settings tried", label, [bands, lines], alt),
    tableOf(["settings tried", ...families.map((family) => short(family.name, 60))],
      () => budgets.map((n, i) => [String(n), ...families.map((family) => (i < family.best.length ? `${said(family, i)} (${showOf(metric, family.same[i])} on the same ${halved})` : "–"))])),
  ];
}

function drawCharts() {
  if (!metrics.length || !keys.length) { $("charts").hidden = true; return; }
  const metric = byName[state.metric];
  $("metric").value = state.metric;
  $("charts-h").textContent = metric.label;
  $("meaning").textContent = metric.meaning[0].toUpperCase() + metric.meaning.slice(1) + (metric.unit === "nats" ? ", in nats." : ".");
  drawAxes(); drawHeat(); drawCurve(); drawScatter();
  if (!$("read").textContent) read("Point at a mark to read it here; press it to see its samples.");
}

/* ---------- points ---------- */

/* What follows is `paired_samples` and `paired_points` of compare.py: any two points can be chosen here, too many to be told
   beforehand. A test holds both equal. */

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

function drawPoints() {
  const offered = shownMetrics(), names = offered.map((metric) => metric.name).filter((name) => !state.less.includes(name));
  const [sortName, down] = state.sort ? [state.sort.replace(/^-/, ""), state.sort.startsWith("-")] : ["", false];
  const sortKey = keys.findIndex((key) => key.name === sortName);
  const rank = (g) => (sortKey >= 0 ? groups.at[g][sortKey] : byName[sortName] ? values[sortName].mean[g] : g);
  const order = every.slice();
  if (sortName) order.sort((p, q) => {
    const a = rank(p), b = rank(q);
    return a === null ? 1 : b === null ? -1 : (down ? b - a : a - b) || p - q;
  });
  const heading = (name, text, title, extra = {}) => el("th", { scope: "col", "aria-sort": sortName === name ? (down ? "descending" : "ascending") : null, ...extra },
    el("button", { type: "button", title, onclick: () => update({ sort: sortName === name ? (down ? "" : "-" + name) : name }, drawPoints) },
      text, sortName === name ? (down ? " ↓" : " ↑") : ""));
  const shown = state.all ? order : order.slice(0, ROWS);
  const cell = (name, g) => {
    const { mean, error, n } = values[name];
    if (mean[g] === null) return el("td", { class: "n unsure", title: data.reasons[name] || "" }, "–");
    if (state.base === TEXT) {
      const goal = reference(name);
      return el("td", { class: "n", title: `${showOf(name, mean[g])} here, ${goal === null ? "no value" : showOf(name, goal)} in the reference text` },
        goal === null ? "–" : signed(name, mean[g] - goal), error[g] === null ? "" : el("span", { class: "pm" }, ` ±${showLike(name, error[g], mean[g] - goal)}`));
    }
    const change = state.base === null || g === state.base ? null : against(name, g, state.base);
    const mark = !change || change.differs ? "" : change.differs === false ? "≈ " : "? ";
    const title = change && change.pairs && change.low !== null
      ? `${signed(name, change.difference)} [${showLike(name, change.low, change.difference)}, ${showLike(name, change.high, change.difference)}] from the baseline, ${plural(change.pairs, "pair")}`
      : `n = ${n[g]}`;
    return el("td", { class: "n" + (mark ? " unsure" : ""), title }, mark, showOf(name, mean[g]), error[g] === null ? "" : el("span", { class: "pm" }, ` ±${showLike(name, error[g], mean[g])}`),
      change && change.pairs && change.low !== null && el("span", { class: "pm" }, ` (${signed(name, change.difference)})`));
  };
  const row = (g) => {
    const at = state.columns.indexOf(g), name = groupName(g);
    const settings = keys.length ? keys.map((_, k) => brief(k, groups.at[g][k])) : ["this run"];
    return el("tr", { class: at < 0 ? "" : `on t${at}` },
      settings.map((text, k) => el(k ? "td" : "th", { scope: k ? null : "row", class: keys[k] && keys[k].numbers ? "num" : "" }, text)),
      el("td", { class: "n" }, groups.samples[g].toLocaleString("en"), groups.status[g] === "complete" ? "" : el("span", { class: "status" }, " " + groups.status[g])),
      names.map((one) => cell(one, g)),
      el("td", { class: "pickcell" }, el("button", { type: "button", "aria-pressed": String(at >= 0), "aria-label": `${at < 0 ? "Show" : "Hide"} the samples of ${name}`, onclick: () => toggle(g) }, at < 0 ? "read" : badge(g))));
  };
  $("points-lead").textContent = data.facts.seeds > 1
    ? "Means over samples and seeds, ± one standard error. Press a heading to sort by it."
    : "Means over samples, ± one standard error. Press a heading to sort by it.";
  fill($("points-controls"),
    count > 1 && picker("Baseline", [["", "none"], ...(data.reference ? [[TEXT, "the reference text"]] : []), ...every.slice(0, 2000).map((g) => [g, groupName(g)])], state.base ?? "", (g) => update({ base: g === "" ? null : g === TEXT ? TEXT : +g }, drawPoints, drawMatrix, drawSamples)),
    state.base === TEXT && el("span", { class: "note" }, "each value is how far the point lies above the reference text"),
    state.base !== null && state.base !== TEXT && el("span", { class: "note" }, `in brackets how far it lies above the baseline, over pairs; ≈ these samples cannot tell it from the baseline; ? fewer than ${data.min_pairs} pairs; ${byChance(names, shown)}`),
    el("details", { class: "choice" }, el("summary", {}, "Columns"), offered.map(({ name, label }) => el("label", {},
      el("input", { type: "checkbox", checked: !state.less.includes(name), onchange: () => { update({ less: state.less.includes(name) ? state.less.filter((one) => one !== name) : [...state.less, name] }, drawPoints); $("points-controls").querySelector("details").open = true; } }), " ", label.replace(/ \(.*/, "")))),
    metrics.length > TABLE.length && allMetrics());
  fill($("points-body"), el("table", { class: "points rows" },
    el("thead", {}, el("tr", {},
      keys.length ? keys.map((key) => heading(key.name, key.name, "")) : el("th", { scope: "col" }, "Run"),
      el("th", { scope: "col", class: "n" }, "samples"),
      names.map((name) => heading(name, byName[name].label.replace(/ \(.*/, ""), byName[name].meaning, { class: "n" })),
      el("th", { scope: "col", class: "pickcell" }, el("span", { class: "visually-hidden" }, "Samples")))),
    el("tbody", {}, shown.map(row)),
    data.reference && el("tfoot", {}, el("tr", {}, el("th", { scope: "row", colspan: Math.max(1, keys.length) + 1 }, "Reference text"),
      names.map((name) => el("td", { class: "n" }, reference(name) === null ? "–" : showOf(name, reference(name)))), el("td", { class: "pickcell" })))),
  shown.length < order.length && el("p", {}, el("button", { type: "button", onclick: () => update({ all: true }, drawPoints) }, `Show all ${order.length.toLocaleString("en")} points`)));
  const why = names.filter((name) => data.reasons[name]).map((name) => `${byName[name].label} ${data.reasons[name]}`);
  const notes = [data.reference_note, why.length ? "A dash means that there is no value: " + why.join("; ") + "." : ""];
  $("reasons").replaceChildren();
  write($("reasons"), notes.filter(Boolean).join(" "), "");
}

/* ---------- samples ---------- */

/** What odd characters are called in samples; others by their number. */
const NAMES = { "\0": "NUL", "\u001b": "ESC", "\r": "CR", "\u2028": "LS", "\u2029": "PS", "\u200e": "LRM", "\u200f": "RLM", "\u202a": "LRE", "\u202b": "RLE",
  "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufeff": "BOM", "\u200b": "ZWSP" };

/** Append text as text: odd characters named, what is searched for marked. */
function write(node, text, find = state.find.toLowerCase()) {
  const plain = (part) => {
    let from = 0;
    const low = find ? part.toLowerCase() : "";
    for (let at = find ? low.indexOf(find) : -1; at >= 0; at = low.indexOf(find, from)) {
      node.append(part.slice(from, at), el("mark", { class: "hit" }, part.slice(at, at + find.length)));
      from = at + find.length;
    }
    node.append(part.slice(from));
  };
  let from = 0;
  for (const match of text.matchAll(ODD)) {
    plain(text.slice(from, match.index));
    const code = "U+" + match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    node.append(el("span", { class: "odd", title: code }, NAMES[match[0]] || code));
    from = match.index + match[0].length;
  }
  plain(text.slice(from));
}

const inside = tokenView(data.tokens, { el, write, show, text: (i) => samples.text[i] });

/** Runs of a phrase of at most 120 characters said at least three times on end, over at least 24 characters. */
function repeats(text) {
  const found = [];
  for (const match of text.slice(0, 50000).matchAll(/([^]{1,120}?)\1{2,}/g)) {
    if (match[0].length < 24 || !match[1].trim()) continue;
    const size = match[1].length, start = match.index;
    let shift = 0; // begin the phrase where a word begins, and end it where one ends
    for (let s = 0; s < size && /\s/.test(match[1]); s++)
      if ((start + s === 0 || /\s/.test(text[start + s - 1])) && /\s/.test(text[start + s + size - 1])) { shift = s; break; }
    let end = start + match[0].length;
    while (end < text.length && text[end] === text[end - size]) end++; // a last phrase that shifting made whole
    const from = start + shift, times = Math.floor((end - from) / size);
    found.push({ from, unit: text.slice(from, from + size), length: times * size });
  }
  return found;
}
const unfolded = new Set();

/** Append text with its repetitions folded to one and a count. */
function writeFolded(node, text, id) {
  let from = 0;
  for (const run of repeats(text)) {
    write(node, text.slice(from, run.from));
    const key = `${id}/${run.from}`, times = Math.round(run.length / run.unit.length);
    const open = unfolded.has(key);
    const phrase = el("span", { class: "phrase" });
    write(phrase, open ? text.slice(run.from, run.from + run.length) : run.unit);
    node.append(phrase);
    node.append(el("button", { type: "button", class: "times", "aria-expanded": String(open), "aria-label": `repeated ${times} times; press to ${open ? "fold" : "unfold"}`,
      onclick: () => { open ? unfolded.delete(key) : unfolded.add(key); drawSamples(); drawRate(); } }, `×${times}`));
    from = run.from + run.length;
  }
  write(node, text.slice(from));
}

/** Length of what two texts share at their start, never cutting a character in two. */
function shared(a, b) {
  const most = Math.min(a.length, b.length);
  let at = 0;
  while (at < most && a[at] === b[at]) at++;
  if (at > 0 && /[\ud800-\udbff]/.test(a[at - 1])) at--;
  return at;
}

function move(step) {
  const found = matching();
  if (!found.length) return;
  const here = found.indexOf(state.at), after = here >= 0 ? here : found.findIndex((at) => at > state.at), last = found.length - 1;
  const next = here >= 0 ? here + 1 : after < 0 ? last : after, previous = (after < 0 ? found.length : after) - 1;
  const to = step === "first" ? 0 : step === "last" ? last : step > 0 ? Math.min(next, last) : Math.max(previous, 0);
  update({ at: found[to] }, drawMatrix, drawSamples);
}

function drawSampleControls() {
  const search = el("input", { type: "search", id: "find", placeholder: "words to find", value: state.find, "aria-label": "Filter samples by text", spellcheck: "false",
    oninput: (event) => {
      state.find = event.target.value;
      const found = matching();
      if (found.length && !found.includes(state.at)) state.at = found[0];
      update({}, drawMatrix, drawSamples);
    } });
  fill($("samples-controls"),
    el("button", { type: "button", id: "previous", onclick: () => move(-1) }, "← Previous"),
    el("button", { type: "button", id: "next", onclick: () => move(1) }, "Next →"),
    el("span", { id: "where", role: "status" }), el("label", {}, "Filter ", search), filterControls(),
    el("button", { type: "button", id: "more", onclick: () => { const free = [...readable, ...every].find((g) => !state.columns.includes(g)); if (free !== undefined) toggle(free); } }, "Add a column"),
    inside.some && el("button", { type: "button", id: "inside", "aria-pressed": String(state.inside), onclick: () => update({ inside: !state.inside }, drawSampleControls, drawSamples) }, "Shade by surprise"),
    inside.some && state.inside && inside.legend(),
    el("span", { class: "keys" }, el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " move on"));
  const shownCount = samples.text.length;
  $("samples-lead").textContent = (count > 1
    ? "The same prompt, seed and number at different points, side by side. They share their random numbers, so where the text parts ways is where the setting made a difference."
    : "One sample at a time.")
    + (shownCount < data.total ? ` This page holds ${shownCount.toLocaleString("en")} of ${data.total.toLocaleString("en")} samples: the same ones at every point, evenly chosen. Means and errors above are over all of them.` : "");
}

function drawSamples() {
  if (!places.length) { fill($("samples-controls")); fill($("place"), el("p", { class: "empty" }, "No samples yet.")); return; }
  const found = matching(), place = places[state.at], here = found.indexOf(state.at);
  $("where").textContent = !found.length ? "nothing found" : `${here < 0 ? "–" : (here + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}`;
  $("previous").disabled = !found.length || here === 0;
  $("next").disabled = !found.length || here === found.length - 1;
  $("more").disabled = state.columns.length >= Math.min(MAX_COLUMNS, count);
  const rows = state.columns.map((g) => sampleAt(g, place));
  const prompts = new Set(rows.filter((i) => i !== undefined).map((i) => samples.prompt[i]));
  const promptBox = (i) => { const box = el("div", { class: "prompt", tabindex: 0, role: "region", "aria-label": "Prompt" }); const text = data.prompts[i]; write(box, text.trim() ? text : JSON.stringify(text)); return box; };
  fill($("place"),
    el("span", {}, "prompt ", el("b", {}, String(place.prompt))), el("span", {}, "seed ", el("b", {}, place.seed)), el("span", {}, "sample ", el("b", {}, String(place.index))),
    prompts.size === 1 && promptBox([...prompts][0]));
  const own = state.columns.indexOf(heldAgainst()), other = sampleAt(heldAgainst(), place), whose = own < 0 ? "the baseline" : LETTERS[own];
  const reference = other !== undefined && (rows.length > 1 || own < 0) ? samples.text[other] : null;
  const forks = rows.map((i, at) => (at !== own && i !== undefined && reference !== null ? shared(samples.text[i], reference) : null));
  const known = forks.filter((fork) => fork !== null);
  if (known.length && own >= 0) forks[own] = Math.min(...known);
  const unlike = differing(), alike = rows.length > 1 ? keys.map((_, k) => k).filter((k) => !unlike.includes(k)) : [];
  if (alike.length) $("place").append(el("span", {}, "all columns ", el("b", {}, nameBy(state.columns[0], alike))));
  $("columns").style.setProperty("--columns", Math.max(1, rows.length));
  fill($("columns"), rows.map((i, at) => {
    const g = state.columns[at];
    const offer = (event) => { // thousands of points: the list is made when it is wanted
      if (event.target.options.length === 1) event.target.replaceChildren(...every.map((one) => el("option", { value: one, selected: one === g }, groupName(one))));
    };
    const head = el("header", {}, el("span", { class: `badge t${at}` }, LETTERS[at]),
      count > 1 && el("select", { title: groupName(g), onpointerdown: offer, onfocus: offer, "aria-label": `Point in column ${LETTERS[at]}`, onchange: (event) => {
        const to = +event.target.value, columns = state.columns.slice(), twin = columns.indexOf(to);
        if (twin >= 0) columns[twin] = columns[at];
        columns[at] = to;
        update({ columns }, drawCharts, drawPoints, drawMatrix, drawSamples);
      } }, el("option", { value: g, selected: true }, nameBy(g, unlike) || "this run")),
      rows.length > 1 && unlike.length > 2 && el("span", { class: "what" }, nameBy(g, unlike)),
      count > 1 && el("button", { type: "button", class: "quiet", "aria-pressed": String(g === state.base), "aria-label": `Column ${LETTERS[at]} as the baseline`,
        onclick: () => update({ base: g === state.base ? null : g }, drawPoints, drawMatrix, drawSamples) }, g === state.base ? "baseline ✓" : "baseline"),
      rows.length > 1 && el("button", { type: "button", class: "quiet remove", "aria-label": `Remove column ${LETTERS[at]}`, onclick: () => toggle(g) }, "×"));
    const box = el("article", { class: `column t${at}`, "aria-label": `Column ${LETTERS[at]}: ${groupName(g)}` }, head);
    if (i === undefined) { box.append(el("p", { class: "empty" }, "This point has no such sample on this page.")); return box; }
    const text = samples.text[i], fork = forks[at];
    const perplexity = ownOf("perplexity", i), its = typeof state.base === "number" && at !== own && other !== undefined ? ownOf("perplexity", other) : null;
    const bits = [plural(samples.completion_tokens[i], "token"), `perplexity ${show(perplexity)}${perplexity === null || its === null ? "" : ` (baseline ${show(its)})`}`];
    if (at !== own && fork !== null) bits.push(text === reference ? `the same text as ${whose}` : fork ? `parts from ${whose} after ${plural(fork, "character")}` : `differs from ${whose} at once`);
    head.append(el("span", { class: "facts" }, bits.join(" · ")));
    const ending = el("span", { class: "end" }, { length: "", stop: " ■ stop string", eot: " ■ end of text", overflow: " ■ context full" }[samples.finish[i]] || "");
    const promptOwn = prompts.size > 1 && promptBox(samples.prompt[i]);
    if (state.inside && inside.has(i)) {
      const parting = fork !== null && !(at !== own && text === reference) ? fork : null;
      const [shaded, panel] = inside.body(i, parting, at !== own ? `here it parts from ${whose}` : "here the others part from it");
      shaded.append(ending);
      box.append(el("div", {}, promptOwn, shaded, panel));
      return box;
    }
    const body = el("div", { class: "text" });
    if (fork !== null && !(at !== own && text === reference) && fork < text.length) {
      const before = el("span", { class: "before" });
      writeFolded(before, text.slice(0, fork), `${i}b`);
      const word = /^\s*\S+/u.exec(text.slice(fork, fork + 200)) || [text.slice(fork, fork + 1)];
      const mark = el("span", { class: "fork", title: at !== own ? `here it parts from ${whose}` : "here the others part from it" });
      const rest = text.slice(fork), blank = rest.length - rest.trimStart().length;
      const runs = repeats(rest);
      const end = runs.length && runs[0].from < word[0].length ? blank : word[0].length;
      write(before, rest.slice(0, blank));
      write(mark, rest.slice(blank, end));
      body.append(before, mark);
      writeFolded(body, rest.slice(end), `${i}a`);
    } else {
      const whole = fork !== null ? el("span", { class: at !== own ? "before" : "" }) : body;
      writeFolded(whole, text, `${i}w`);
      if (whole !== body) body.append(whole);
    }
    body.append(ending);
    box.append(el("div", {}, promptOwn, body, state.inside && el("p", { class: "note inspect" }, "The tokens of this sample are not on this page.")));
    return box;
  }));
}

