/* ---------- matrix: prompts, seeds and numbers as rows, settings as columns ---------- */

const MATRIX_COLUMNS = 8, MATRIX_ROWS = 10, MATRIX_TEXT = 360;
/** Return the columns to show: pinned ones first, then as many of the rest as fit, without hidden ones. */
function matrixColumns() {
  const pinned = state.pin.filter((g) => withText.has(g)), rest = readable.filter((g) => !pinned.includes(g) && !state.hide.includes(g));
  const middle = rest.length > MATRIX_COLUMNS - pinned.length && !state.wide ? spreadOver(rest, Math.max(1, MATRIX_COLUMNS - pinned.length)) : rest.slice(0, 60);
  return { shown: [...pinned, ...middle], left: rest.length - middle.length };
}

function drawMatrix() {
  $("matrix").hidden = readable.length < 2 || !places.length;
  if ($("matrix").hidden) return;
  const found = matching(), here = Math.max(0, found.indexOf(state.at)), from = Math.floor(here / MATRIX_ROWS) * MATRIX_ROWS;
  const rows = found.slice(from, from + MATRIX_ROWS), { shown: columns, left } = matrixColumns(), pinned = state.pin.length;
  const differ = keys.map((_, k) => k).filter((k) => new Set(columns.map((g) => groups.at[g][k])).size > 1);
  const title = (g) => nameBy(g, differ.length ? differ : keys.map((_, k) => k)) || "this run";
  const without = (list, g) => list.filter((one) => one !== g);
  const head = (g) => {
    const fixed = state.pin.includes(g), name = groupName(g);
    return el("th", { scope: "col", class: fixed ? "pinned" : "", title: name },
      el("span", { class: "what" }, title(g), " ", badge(g), g === state.base && el("span", { class: "pm" }, " baseline")),
      el("span", { class: "tools" },
        el("button", { type: "button", class: "quiet", "aria-pressed": String(fixed), "aria-label": `${fixed ? "Unpin" : "Pin"} ${name}`,
          onclick: () => update({ pin: fixed ? without(state.pin, g) : [...state.pin, g], hide: without(state.hide, g) }, drawMatrix) }, fixed ? "unpin" : "pin"),
        el("button", { type: "button", class: "quiet", "aria-label": `Hide ${name}`, onclick: () => update({ hide: [...state.hide, g], pin: without(state.pin, g) }, drawMatrix) }, "hide")));
  };
  const cell = (g, at) => {
    const i = sampleAt(g, places[at]);
    if (i === undefined) return el("td", { class: "unsure" }, "–");
    const other = heldAgainst(), j = other === g ? undefined : sampleAt(other, places[at]), text = samples.text[i];
    const fork = j === undefined ? 0 : shared(text, samples.text[j]), body = el("span", { class: "excerpt" });
    const blank = text.trim() ? /^\s*\n|/u.exec(text)[0].length : 0; // lines that the cell need not spend
    const start = Math.max(0, Math.min(fork - 60, text.length - MATRIX_TEXT)), from = Math.max(start, blank); // start shortly before the texts diverge
    if (start > blank) body.append("…");
    if (fork > from) { const before = el("span", { class: "before" }); write(before, text.slice(from, fork)); body.append(before); }
    write(body, text.slice(Math.max(from, fork), from + MATRIX_TEXT));
    if (text.length > from + MATRIX_TEXT) body.append("…");
    const same = j !== undefined && text === samples.text[j];
    return el("td", { class: at === state.at && state.columns.includes(g) ? "on" : "" },
      same ? el("span", { class: "before same" }, `the same as ${state.base === other ? "the baseline" : title(other)}`) : body,
      el("button", { type: "button", class: "quiet open", "aria-label": `Read sample ${places[at].index}, seed ${places[at].seed}, prompt ${places[at].prompt} of ${groupName(g)}`,
        onclick: () => { update({ at, columns: [...new Set([...(j === undefined ? [] : [other]), g])] }, drawCharts, drawPoints, drawMatrix, drawSamples); go("samples"); } },
        ownOf("perplexity", i) === null ? "read" : `perplexity ${show(ownOf("perplexity", i))}`));
  };
  const rowHead = (at) => {
    const place = places[at], i = columns.map((g) => sampleAt(g, place)).find((one) => one !== undefined), box = el("span", { class: "excerpt" });
    if (i !== undefined) write(box, data.prompts[samples.prompt[i]].trim() ? data.prompts[samples.prompt[i]].slice(-160) : JSON.stringify(data.prompts[samples.prompt[i]]), "");
    return el("th", { scope: "row" }, box, el("span", { class: "pm" }, `seed ${place.seed} · sample ${place.index}`));
  };
  fill($("matrix-controls"),
    el("button", { type: "button", disabled: from === 0, onclick: () => update({ at: found[from - MATRIX_ROWS] }, drawMatrix, drawSamples) }, "← Rows before"),
    el("button", { type: "button", disabled: from + MATRIX_ROWS >= found.length, onclick: () => update({ at: found[from + MATRIX_ROWS] }, drawMatrix, drawSamples) }, "Rows after →"),
    el("span", {}, found.length ? `${(from + 1).toLocaleString("en")} to ${Math.min(from + MATRIX_ROWS, found.length).toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "nothing found"),
    left > 0 && el("button", { type: "button", onclick: () => update({ wide: true }, drawMatrix) }, `${plural(left, "more setting")}`),
    state.wide && el("button", { type: "button", onclick: () => update({ wide: false }, drawMatrix) }, "Fewer settings"),
    state.hide.length > 0 && el("button", { type: "button", onclick: () => update({ hide: [] }, drawMatrix) }, `Show ${state.hide.length} hidden`));
  fill($("matrix-body"), el("table", { class: "matrix rows", style: { "--pins": pinned } },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Prompt"), columns.map(head))),
    el("tbody", {}, rows.map((at) => el("tr", {}, rowHead(at), columns.map((g) => {
      const one = cell(g, at);
      if (state.pin.includes(g)) one.classList.add("pinned");
      return one;
    }))))));
}
