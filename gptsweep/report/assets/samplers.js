/* ---------- samplers: drawn from precomputed curves ---------- */

function drawSamplers() {
  $("samplers").hidden = !data.samplers.length;
  fill($("samplers-body"), data.samplers.map((found) => el("figure", { class: "wide" }, samplerFigure(found))));
  if (!$("samplers-read").textContent) $("samplers-read").textContent = "Point at a mark to read it here.";
}
/** Return the verdict, the families' curves with their intervals, the legend, and the same numbers as a table. */
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
  const withInterval = (family, i) => `${showOf(metric, family.best[i])}${family.low[i] === null ? "" : ` [${showLike(metric, family.low[i], family.best[i])}, ${showLike(metric, family.high[i], family.best[i])}]`}`;
  const describe = (family, i) => `${short(family.name, 60)}, best of ${plural(i + 1, "setting")}: ${withInterval(family, i)}; on the same ${halved} ${showOf(metric, family.same[i])}${family.leads[i] ? "; ahead of every other family" : ""}`;
  const bands = families.map((family, f) => family.low[0] !== null && el("path", { class: "band", fill: lineColour(f),
    d: `${line(family.low)}${family.high.map((v, i) => `L${at(i, v)}`).reverse().join("")}Z` }));
  const lines = families.map((family, f) => [
    el("path", { class: "line same", stroke: lineColour(f), d: line(family.same) }),
    el("path", { class: "line", stroke: lineColour(f), d: line(family.best) }),
    family.best.map((v, i) => v !== null && mark(f, x.of(i + 1), y.of(v), family.leads[i] ? 6.5 : longest > 40 ? 2.5 : 4, { class: "dot", fill: lineColour(f),
      onmouseenter: () => { $("samplers-read").textContent = describe(family, i); } }, el("title", {}, describe(family, i))))]);
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
      () => budgets.map((n, i) => [String(n), ...families.map((family) => (i < family.best.length ? `${withInterval(family, i)} (${showOf(metric, family.same[i])} on the same ${halved})` : "–"))])),
  ];
}
