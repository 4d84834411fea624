/* ---------- points ---------- */

/** Rows shown at first or per page, and the most rows that a table without pages has. */
const ROWS = 200, MAX_ROWS = 1000;
/** Turn to another page of the table. */
function turn(row) {
  update({ row }, drawPoints);
  go("points");
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
    el("button", { type: "button", title, onclick: () => update({ sort: sortName === name ? (down ? "" : "-" + name) : name, row: 0 }, drawPoints) },
      text, sortName === name ? (down ? " ↓" : " ↑") : ""));
  const whole = count <= MAX_ROWS, from = whole ? 0 : Math.min(state.row, Math.floor((count - 1) / ROWS) * ROWS);
  const shown = whole && state.all ? order : order.slice(from, from + ROWS);
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
      change && change.pairs && change.low !== null && el("span", { class: "pm change" }, ` (${signed(name, change.difference)})`));
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
    count > 1 && picker("Baseline", [["", "none"], ...(data.reference ? [[TEXT, "the reference text"]] : []), ...(count <= ROWS ? every : typeof state.base === "number" ? [state.base] : []).map((g) => [g, groupName(g)])], state.base ?? "",
      (g) => update({ base: g === "" ? null : g === TEXT ? TEXT : +g }, drawCharts, drawPoints, drawMatrix, drawSamples), count > ROWS && offerPoints),
    el("details", { class: "choice" }, el("summary", {}, "Columns"), offered.map(({ name, label }) => el("label", {},
      el("input", { type: "checkbox", checked: !state.less.includes(name), onchange: () => { update({ less: state.less.includes(name) ? state.less.filter((one) => one !== name) : [...state.less, name] }, drawPoints); $("points-controls").querySelector("details").open = true; } }), " ", label.replace(/ \(.*/, "")))),
    metrics.length > TABLE.length && allMetrics(),
    state.base === TEXT && el("span", { class: "note" }, "Each value is how far the point lies above the reference text."),
    state.base !== null && state.base !== TEXT && el("span", { class: "note" }, `In brackets: how far it lies above the baseline, over pairs; ≈ these samples cannot tell it from the baseline; ? fewer than ${data.min_pairs} pairs; ${byChance(names, shown)}.`));
  fill($("points-body"), el("table", { class: "points rows" },
    el("thead", {}, el("tr", {},
      keys.length ? keys.map((key) => heading(key.name, key.name, "")) : el("th", { scope: "col" }, "Run"),
      el("th", { scope: "col", class: "n" }, "samples"),
      names.map((name) => heading(name, byName[name].label.replace(/ \(.*/, ""), byName[name].meaning, { class: "n" })),
      el("th", { scope: "col", class: "pickcell" }, el("span", { class: "visually-hidden" }, "Samples")))),
    el("tbody", {}, shown.map(row)),
    data.reference && el("tfoot", {}, el("tr", {}, el("th", { scope: "row", colspan: Math.max(1, keys.length) + 1 }, "Reference text"),
      names.map((name) => el("td", { class: "n" }, reference(name) === null ? "–" : showOf(name, reference(name)))), el("td", { class: "pickcell" })))),
  whole && shown.length < count && el("p", {}, el("button", { type: "button", onclick: () => update({ all: true }, drawPoints) }, `Show all ${count.toLocaleString("en")} points`)),
  !whole && el("p", { class: "controls" },
    el("button", { type: "button", disabled: from === 0, onclick: () => turn(from - ROWS) }, "← Points before"),
    el("button", { type: "button", disabled: from + ROWS >= count, onclick: () => turn(from + ROWS) }, "Points after →"),
    el("span", {}, `${(from + 1).toLocaleString("en")} to ${(from + shown.length).toLocaleString("en")} of ${count.toLocaleString("en")}`)));
  const why = names.filter((name) => data.reasons[name]).map((name) => `${byName[name].label} ${data.reasons[name]}`);
  const notes = [...data.notes, ...(why.length ? ["A dash means that there is no value: " + why.join("; ")] : [])];
  $("reasons").replaceChildren();
  write($("reasons"), notes.map((note) => note[0].toUpperCase() + note.slice(1) + ".").join(" "), "");
}
