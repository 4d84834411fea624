/* ---------- state, stored in the page's address ---------- */

const all = "all", TEXT = "reference";
const first = metrics.length ? metrics[0].name : null;
const onAxis = (axis) => metrics.find((metric) => metric.axis === axis)?.name ?? first;
const numeric = keys.map((_, k) => k).sort((p, q) => isNumeric(q) - isNumeric(p) || p - q); // settings with an order come first
function isNumeric(k) { return keys[k].labels.every((text) => text === "null" || !Number.isNaN(Number(text))); }
const open = keys.map(() => (data.cells ? all : 0)); // a page without means over settings shows one value of each
const state = {
  metric: first, x: numeric[0] ?? 0, y: numeric[1] ?? 0, fixed: open.slice(),
  mx: onAxis("x"), my: onAxis("y"),
  columns: spread(), at: 0, find: "", sort: "", row: 0, base: null, all: false, inside: false, rate: false, among: "",
  every: false, less: [], kind: "", order: "", pin: [], hide: [], wide: false,
};

/** Return the points shown at first in the sample browser: ends and middle of the first setting, the middle of the others. */
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
  const given = new URLSearchParams(location.hash.slice(1)); // anyone can write an address: ignore what is unknown
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
    const named = given.get("points").split(",").map(group).filter((g) => g !== null);
    if (named.length) state.columns = [...new Set(named)].slice(0, MAX_COLUMNS);
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
  state.row = Math.floor((group(given.get("row") ?? "") ?? 0) / ROWS) * ROWS;
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
  if (state.row) parts.set("row", state.row);
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

/** Add point g to the samples shown, or remove it. */
function toggle(g) {
  const now = state.columns.includes(g) ? state.columns.filter((one) => one !== g) : [...state.columns, g].slice(-MAX_COLUMNS);
  update({ columns: now }, drawCharts, drawPoints, drawMatrix, drawSamples);
}
const badge = (g) => {
  const at = state.columns.indexOf(g);
  return at < 0 ? null : el("span", { class: `badge t${at}`, title: "shown among the samples" }, LETTERS[at]);
};
