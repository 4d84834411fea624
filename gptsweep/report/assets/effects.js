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
