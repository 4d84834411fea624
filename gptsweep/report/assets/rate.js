/* ---------- rating: two samples of one place, with their settings hidden ---------- */

/* The choice of pairs and the tally follow preference.py and docs/rating.md; a test checks that they agree. */

const VERDICTS = ["left", "right", "tie", "both_bad", "skip"], SCORES = { left: 1, right: 0, tie: 0.5, both_bad: 0.5 };
const MAX_RATED = 24, SHARED_EVERY = 4, NEAR = 2, RATED_UNDER = `gptsweep ratings: ${data.title}`;
const rating = { all: [], rater: "", pair: null, since: 0, hidden: 0, tally: false, stored: true, message: "" };
const sampleId = (i) => `${data.point_ids[samples.point[i]]}-${samples.place[i]}-${samples.index[i]}`;
const sampleWith = new Map();
const idsOf = (i, j) => [sampleId(i), sampleId(j)].sort().join(" ");
const mine = () => rating.all.filter((one) => one.rater === rating.rater);

/** Compute FNV-1a, which decides the sides of a pair and the order of the pairs that all raters share. */
function hash(text) {
  let found = 0x811c9dc5;
  for (let at = 0; at < text.length; at++) found = Math.imul(found ^ text.charCodeAt(at), 0x01000193);
  return found >>> 0;
}

function loadRatings() {
  try {
    const stored = JSON.parse(localStorage.getItem(RATED_UNDER) || "{}"), text = (one) => typeof one === "string" && one.length <= 200;
    rating.all = (Array.isArray(stored.ratings) ? stored.ratings : []).filter((one) => one && text(one.left) && text(one.right) && text(one.rater)
      && VERDICTS.includes(one.verdict) && Number.isFinite(one.seconds));
    rating.rater = text(stored.rater) ? stored.rater : "";
  } catch { rating.stored = false; }
}
function keepRatings() {
  try {
    localStorage.setItem(RATED_UNDER, JSON.stringify({ rater: rating.rater, ratings: rating.all }));
    rating.stored = true;
  } catch { rating.stored = false; }
}

/** The settings that take part in the rating. */
const amongAll = () => readable.length <= MAX_RATED && state.among !== "shown";
const contenders = () => (amongAll() ? readable : state.columns.filter((g) => withText.has(g))).slice().sort((p, q) => p - q);

/** Return, for each pair of these settings, the pairs of samples to rate: same prompt, seed and number, but different texts. */
function offered(settings) {
  const found = [];
  settings.forEach((g, a) => settings.slice(a + 1).forEach((h, more) => {
    const pairs = [];
    for (const place of places) {
      const i = sampleAt(g, place), j = sampleAt(h, place);
      if (i === undefined || j === undefined || samples.prompt[i] !== samples.prompt[j] || samples.text[i] === samples.text[j]) continue;
      if (samples.point[i] >= 0 && samples.point[j] >= 0) pairs.push({ i, j, place, ids: idsOf(i, j) });
    }
    if (pairs.length) found.push({ a, b: a + 1 + more, pairs });
  }));
  return found;
}

/** Solve matrix x = right for x by Gauss-Jordan elimination; the matrix is positive definite. */
function solved(matrix, right) {
  const n = matrix.length, rows = matrix.map((row, i) => [...row, ...right[i]]);
  for (let k = 0; k < n; k++)
    for (let i = 0; i < n; i++) {
      if (i === k) continue;
      const factor = rows[i][k] / rows[k][k];
      if (factor) for (let j = k; j < rows[i].length; j++) rows[i][j] -= factor * rows[k][j];
    }
  return rows.map((row, i) => row.slice(n).map((v) => v / row[i]));
}
const chance = (gap) => 1 / (1 + Math.exp(-gap));
/** Fit the penalised Bradley-Terry model by Newton's method: return the strengths of n settings, the inverse of the information
    matrix, and which settings were compared. */
function strengths(compared, n) {
  let strength = new Array(n).fill(0), information;
  const met = new Array(n).fill(false);
  for (const { a, b } of compared) met[a] = met[b] = true;
  const slopes = (at) => {
    const slope = at.map((v) => -data.rating_prior * v);
    information = at.map((_, i) => at.map((__, j) => (i === j ? data.rating_prior : 0)));
    for (const { a, b, score } of compared) {
      const p = chance(at[a] - at[b]), weight = p * (1 - p);
      slope[a] += score - p; slope[b] -= score - p;
      information[a][a] += weight; information[b][b] += weight;
      information[a][b] -= weight; information[b][a] -= weight;
    }
    return slope;
  };
  const loss = (at) => compared.reduce((sum, { a, b, score }) => { const gap = at[a] - at[b]; return sum + Math.max(0, gap) + Math.log1p(Math.exp(-Math.abs(gap))) - score * gap; },
    at.reduce((sum, v) => sum + (data.rating_prior / 2) * v * v, 0));
  for (let round = 0; round < 100; round++) {
    const slope = slopes(strength);
    let step = solved(information, slope.map((v) => [v])).map(([v]) => v);
    if (most(step.map(Math.abs)) < 1e-10) break;
    while (loss(strength.map((v, i) => v + step[i])) > loss(strength) + 1e-10) step = step.map((v) => v / 2);
    strength = strength.map((v, i) => v + step[i]);
  }
  slopes(strength);
  return { strength, met, spread: solved(information, information.map((_, i) => information.map((__, j) => +(i === j)))) };
}
/** Return this rater's ratings that compare two of these settings. */
function comparisons(settings) {
  const at = new Map(settings.map((g, place) => [g, place])), found = [];
  for (const { left, right, verdict } of mine()) {
    const a = at.get(samples.group[sampleWith.get(left)]), b = at.get(samples.group[sampleWith.get(right)]);
    if (verdict !== "skip" && a !== undefined && b !== undefined && a !== b) found.push({ a, b, score: SCORES[verdict], verdict });
  }
  return found;
}

/** Return the next pair to rate, or null where none is left. */
function nextPair() {
  const settings = contenders(), judged = mine(), done = new Set(judged.map(({ left, right }) => [left, right].sort().join(" ")));
  const open = offered(settings).map((each) => ({ ...each, pairs: each.pairs.filter(({ ids }) => !done.has(ids)) })).filter((each) => each.pairs.length);
  if (!open.length) return null;
  if (judged.length % SHARED_EVERY === 0) {
    const every = open.flatMap(({ pairs }) => pairs);
    return every.reduce((best, one) => (hash(one.ids) < hash(best.ids) ? one : best));
  }
  const { strength, spread } = strengths(comparisons(settings), settings.length);
  const apart = (a, b) => spread[a][a] + spread[b][b] - 2 * spread[a][b];
  const order = settings.map((_, a) => a).sort((p, q) => strength[q] - strength[p] || p - q), lead = order[0];
  const near = new Set(order.filter((a, rank) => rank < 2 || strength[lead] - strength[a] <= NEAR * Math.sqrt(apart(lead, a))));
  const gain = ({ a, b }) => { const p = chance(strength[a] - strength[b]); return +Math.log1p(p * (1 - p) * apart(a, b)).toFixed(9); };
  const leading = open.filter(({ a, b }) => near.has(a) && near.has(b)), from = leading.length ? leading : open;
  const { pairs } = from.reduce((best, one) => (gain(one) > gain(best) ? one : best));
  const times = new Map();
  for (const { left } of judged) { const i = sampleWith.get(left); if (i !== undefined) times.set(samples.prompt[i], (times.get(samples.prompt[i]) || 0) + 1); }
  const rank = (one) => [times.get(samples.prompt[one.i]) || 0, hash(one.ids)];
  return pairs.reduce((best, one) => { const [p, q] = [rank(one), rank(best)]; return p[0] < q[0] || (p[0] === q[0] && p[1] < q[1]) ? one : best; });
}

function judge(verdict) {
  if (!rating.pair) return;
  const { left, right } = rating.pair, seconds = +((performance.now() - rating.since) / 1000).toFixed(1);
  rating.all.push({ left: sampleId(left), right: sampleId(right), verdict, seconds, rater: rating.rater });
  keepRatings();
  rating.tally = false;
  rating.message = { left: "Left one.", right: "Right one.", tie: "A tie.", both_bad: "Both bad.", skip: "Skipped." }[verdict];
  drawRate();
}
function takeBack() {
  const at = rating.all.findLastIndex((one) => one.rater === rating.rater);
  if (at < 0) return;
  rating.all.splice(at, 1);
  keepRatings();
  rating.message = "Taken back.";
  drawRate();
}

/** Offer a text to the reader as a download. */
function saveAs(name, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/jsonl" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
const asLines = (rows) => rows.map((row) => JSON.stringify(row) + "\n").join("");
const fileName = (what) => `${data.title}-${what}.jsonl`.replace(/[^\p{L}\p{N}._-]+/gu, "-");
/** Return the ratings that have a winner as prompt, chosen and rejected text. */
function preferencePairs() {
  return rating.all.filter(({ verdict }) => verdict === "left" || verdict === "right").flatMap(({ left, right, verdict }) => {
    const [chosen, rejected] = (verdict === "left" ? [left, right] : [right, left]).map((id) => sampleWith.get(id));
    return chosen === undefined || rejected === undefined ? [] : [{ prompt: data.prompts[samples.prompt[chosen]], chosen: samples.text[chosen], rejected: samples.text[rejected] }];
  });
}

function drawTally() {
  const settings = contenders(), compared = comparisons(settings), { strength, met } = strengths(compared, settings.length);
  const others = met.filter(Boolean).length - 1;
  const rows = settings.map((g, a) => {
    const own = compared.filter((one) => one.a === a || one.b === a), won = (one) => (one.a === a ? one.score : 1 - one.score);
    return { g, a, n: own.length, won: own.filter((one) => won(one) === 1).length, lost: own.filter((one) => won(one) === 0).length,
      tied: own.filter((one) => one.verdict === "tie").length, bad: own.filter((one) => one.verdict === "both_bad").length,
      preference: met[a] && others ? settings.reduce((sum, _, b) => sum + (b !== a && met[b] ? chance(strength[a] - strength[b]) : 0), 0) / others : null };
  }).sort((p, q) => (q.preference ?? -1) - (p.preference ?? -1) || p.a - q.a);
  return el("div", { class: "tally" },
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Tally" }, el("table", { class: "rows" },
      el("thead", {}, el("tr", {}, ["Setting", "preference", "won", "tied", "both bad", "lost"].map((text, at) => el("th", { scope: "col", class: at ? "n" : "" }, text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, groupName(row.g)),
        el("td", { class: "n" }, row.preference === null ? "–" : row.preference.toFixed(3)), [row.won, row.tied, row.bad, row.lost].map((n) => el("td", { class: "n" }, String(n)))))))),
    el("p", { class: "note" }, "Preference: the share of wins that a setting would have if it met every other one equally often, by the Bradley-Terry model. How sure that is, the review says: python -m gptsweep.review … --ratings FILE. The tally hides again with the next verdict."));
}

/** Draw one of the two texts, with the beginning that both share in grey. */
function sideOf(i, name, narrow, fork) {
  const text = samples.text[i], body = el("div", { class: "text" });
  if (fork) {
    const before = el("span", { class: "before" });
    writeFolded(before, text.slice(0, fork), `r${i}b`);
    body.append(before);
  }
  writeFolded(body, text.slice(fork), `r${i}a`);
  if (!text.length) body.append(el("span", { class: "end" }, "nothing"));
  const end = { length: "", stop: " ■ stop string", eot: " ■ end of text", overflow: " ■ context full" }[samples.finish[i]];
  body.append(el("span", { class: "end" }, end || ""));
  return el("article", { class: "column side", "aria-label": name }, el("header", {}, el("h3", {}, el("span", { class: "wide" }, name), el("span", { class: "narrow" }, narrow))), body);
}

/** Draw the next pair and all around it. `saving` is false while the reader may be pressing one of the buttons that save. */
function drawRate(saving = true) {
  document.body.classList.toggle("rating", state.rate);
  $("rate").hidden = !state.rate;
  if (!state.rate) return;
  if (!sampleWith.size) samples.text.forEach((_, i) => samples.point[i] >= 0 && sampleWith.set(sampleId(i), i));
  const found = nextPair(), judged = mine(), settings = contenders();
  const swap = found && hash(`${found.ids} ${rating.rater}`) % 2;
  const next = found && { left: swap ? found.j : found.i, right: swap ? found.i : found.j };
  if (!next || !rating.pair || next.left !== rating.pair.left || next.right !== rating.pair.right) rating.since = performance.now();
  rating.pair = next;
  const verdicts = judged.filter((one) => one.verdict !== "skip").length;
  $("rate-count").textContent = `${rating.message} ${verdicts} rated`.trim();
  const press = (verdict, key, ...text) => el("button", { type: "button", class: `verdict-${verdict}`, "aria-keyshortcuts": key, disabled: !next, onclick: () => judge(verdict) }, text);
  const wide = (text) => el("span", { class: "wide" }, text), narrow = (text) => el("span", { class: "narrow" }, text), key = (text) => el("kbd", { "aria-hidden": "true" }, text);
  fill($("rate-verdicts"),
    press("left", "ArrowLeft", key("←"), " ", wide("Left is better"), narrow("Upper")),
    press("tie", "t", "Tie ", key("T")), press("both_bad", "b", "Both bad ", key("B")), press("skip", "s", "Skip ", key("S")),
    el("button", { type: "button", class: "quiet", "aria-keyshortcuts": "u", disabled: !judged.length, onclick: takeBack }, "Undo ", key("U")),
    press("right", "ArrowRight", wide("Right is better"), narrow("Lower"), " ", key("→")));
  if (!next) {
    const why = settings.length < 2 ? "Rating takes two settings or more; choose them among the samples."
      : judged.length ? "That was the last pair: every pair of different texts is rated." : "These settings have no two different samples of one prompt, seed and number on this page.";
    fill($("rate-pair"), el("p", { class: "empty" }, why));
  } else {
    const fork = shared(samples.text[next.left], samples.text[next.right]), prompt = data.prompts[samples.prompt[next.left]];
    const box = el("div", { class: "prompt", tabindex: 0, role: "region", "aria-label": "Prompt" });
    write(box, prompt, "");
    fill($("rate-pair"), prompt.trim() && box,
      el("div", { class: "columns", style: { "--columns": 2 } }, sideOf(next.left, "Left", "Upper", fork), sideOf(next.right, "Right", "Lower", fork)));
  }
  drawRateTally();
  if (saving) drawRateExport(settings);
}

function drawRateTally() {
  fill($("rate-tally"),
    el("button", { type: "button", id: "tally", "aria-expanded": String(rating.tally), onclick: () => { rating.tally = !rating.tally; drawRateTally(); } }, rating.tally ? "Hide the tally" : "Show the tally"),
    rating.tally ? drawTally() : el("span", { class: "note" }, "It names the settings: better looked at when you are done."));
}

function drawRateExport(settings) {
  const choices = [["all", `all ${readable.length} settings`], ["shown", "those shown among the samples"]];
  const pairs = rating.all.filter((one) => one.verdict === "left" || one.verdict === "right").length;
  fill($("rate-export"),
    el("label", {}, "Your name ", el("input", { id: "rater", value: rating.rater, maxlength: 80, autocomplete: "off", spellcheck: "false", onchange: (event) => rename(event.target.value.trim()) })),
    readable.length > 2 && (readable.length <= MAX_RATED
      ? picker("Compare", choices, amongAll() ? "all" : "shown", (among) => update({ among: among === "all" ? "" : among }, drawRate))
      : el("span", { class: "note" }, `Compared are the ${plural(settings.length, "setting")} shown among the samples: ${readable.length.toLocaleString("en")} are too many to tell apart by hand.`)),
    el("button", { type: "button", id: "save-ratings", disabled: !rating.all.length, onclick: () => saveAs(fileName("ratings"), asLines(rating.all)) }, "Save ratings"),
    el("button", { type: "button", id: "save-pairs", disabled: !pairs, onclick: () => saveAs(fileName("pairs"), asLines(preferencePairs())) }, "Save pairs (prompt, chosen, rejected)"),
    el("span", { class: rating.stored ? "note" : "problem" }, rating.stored ? "Ratings are kept in this browser." : "This browser keeps nothing for this page: save your ratings before you leave it."));
}
/** Give unnamed ratings the first name that is entered; any other name is another rater. */
function rename(name) {
  if (!rating.rater) for (const one of mine()) one.rater = name;
  rating.rater = name;
  rating.message = "";
  keepRatings();
  drawRate(false);
}

function openRate(open) {
  rating.message = "";
  update({ rate: open }, drawRate);
  if (open) { scrollTo(0, 0); $("rate-h").focus({ preventScroll: true }); } else { drawCharts(); $("rate-open").focus(); }
}

function beginRating() {
  loadRatings();
  $("rate-open").hidden = readable.length < 2 || !samples.text.length;
  $("rate-open").addEventListener("click", () => openRate(true));
  $("rate-close").addEventListener("click", () => openRate(false));
  document.addEventListener("visibilitychange", () => { // time with the page hidden does not count
    if (document.hidden) rating.hidden = performance.now(); else rating.since += performance.now() - rating.hidden;
  });
  document.addEventListener("keydown", (event) => {
    if (!state.rate || event.repeat || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, .scroll")) return;
    const verdict = { ArrowLeft: "left", ArrowRight: "right", t: "tie", b: "both_bad", s: "skip" }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (verdict) judge(verdict);
    else if (event.key === "u" || event.key === "U" || event.key === "Backspace") takeBack();
    else if (event.key === "Escape") openRate(false);
    else return;
    event.preventDefault();
  });
}
