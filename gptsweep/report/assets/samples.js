/* ---------- samples ---------- */

/** The names of special characters in samples; others appear by their code point. */
const NAMES = { "\0": "NUL", "\u001b": "ESC", "\r": "CR", "\u2028": "LS", "\u2029": "PS", "\u200e": "LRM", "\u200f": "RLM", "\u202a": "LRE", "\u202b": "RLE",
  "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufeff": "BOM", "\u200b": "ZWSP" };

/** Append text, never as markup: name special characters, and mark the matches of the search. */
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

/** Find runs of a phrase of at most 120 characters repeated at least three times in a row, over at least 24 characters. */
function repeats(text) {
  const found = [];
  for (const match of text.slice(0, 50000).matchAll(/([^]{1,120}?)\1{2,}/g)) {
    if (match[0].length < 24 || !match[1].trim()) continue;
    const size = match[1].length, start = match.index;
    let shift = 0; // start and end the phrase at word boundaries
    for (let s = 0; s < size && /\s/.test(match[1]); s++)
      if ((start + s === 0 || /\s/.test(text[start + s - 1])) && /\s/.test(text[start + s + size - 1])) { shift = s; break; }
    let end = start + match[0].length;
    while (end < text.length && text[end] === text[end - size]) end++; // include a last phrase that the shift completes
    const from = start + shift, times = Math.floor((end - from) / size);
    found.push({ from, unit: text.slice(from, from + size), length: times * size });
  }
  return found;
}
const unfolded = new Set();

/** Append text, with each run of repetitions folded to one phrase and a count. */
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

/** Return the length of the common beginning of two texts; never split a surrogate pair. */
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

/** Say which samples of each point the page holds, naming the first few. */
function heldPlaces() {
  const named = places.slice(0, 3).map(({ prompt, seed, index }) => `prompt ${prompt}, seed ${seed}, sample ${index}`);
  return named.join("; ") + (places.length > 3 ? `; and ${plural(places.length - 3, "more", "more")}` : "");
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
    + (shownCount < data.total ? ` This page holds ${shownCount.toLocaleString("en")} of ${data.total.toLocaleString("en")} samples, evenly chosen, of every point the same: ${heldPlaces()}. Means and errors above are over all samples; intervals over pairs are over those on the page.` : "");
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
    const offer = (event) => { // the list is built only when opened, because there may be thousands of points
      if (event.target.options.length === 1) event.target.replaceChildren(...every.map((one) => el("option", { value: one, selected: one === g }, groupName(one))));
    };
    const head = el("header", { class: nameBy(g, unlike).length > 16 ? "long" : "" }, el("span", { class: `badge t${at}` }, LETTERS[at]),
      count > 1 && el("select", { title: groupName(g), onpointerdown: offer, onfocus: offer, "aria-label": `Point in column ${LETTERS[at]}`, onchange: (event) => {
        const to = +event.target.value, columns = state.columns.slice(), twin = columns.indexOf(to);
        if (twin >= 0) columns[twin] = columns[at];
        columns[at] = to;
        update({ columns }, drawCharts, drawPoints, drawMatrix, drawSamples);
      } }, el("option", { value: g, selected: true }, nameBy(g, unlike) || "this run")),
      rows.length > 1 && unlike.length > 2 && el("span", { class: "what" }, nameBy(g, unlike)),
      count > 1 && el("button", { type: "button", class: "quiet", "aria-pressed": String(g === state.base), "aria-label": `Column ${LETTERS[at]} as the baseline`,
        onclick: () => update({ base: g === state.base ? null : g }, drawCharts, drawPoints, drawMatrix, drawSamples) }, g === state.base ? "baseline ✓" : "baseline"),
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
