/* ---------- head ---------- */

function drawHead() {
  const { facts } = data, bold = (text) => el("b", {}, text);
  fill($("title"), data.title);
  const bits = [bold(plural(facts.points, "point")), [bold(plural(data.total, "sample")), samples.text.length < data.total ? ` (${samples.text.length.toLocaleString("en")} of them on this page)` : ""], plural(facts.tokens, "token")];
  if (facts.seeds > 1) bits.push(plural(facts.seeds, "seed"));
  if (facts.prompts > 1) bits.push(plural(facts.prompts, "prompt"));
  if (facts.models.length) bits.push(facts.models.join(", "));
  fill($("facts"), bits.flatMap((bit, i) => (i ? [" · ", bit] : [bit]).flat()));
  const open = ["partial", "failed", "missing"].filter((status) => facts.statuses[status]);
  const lines = [...data.problems];
  if (open.length || lines.length) {
    const counts = open.map((status) => `${plural(facts.statuses[status], "point")} ${status}`);
    if (facts.damaged) counts.push(plural(facts.damaged, "damaged line") + " left out");
    else if (lines.length && !facts.statuses.failed) counts.push(plural(lines.length, "problem"));
    const summary = counts.join(", ") || plural(lines.length, "problem");
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
    $("theme-name").textContent = next;
  });
  for (const link of document.querySelectorAll("[data-goto]"))
    link.addEventListener("click", (event) => { event.preventDefault(); go(link.dataset.goto); });
}
/** Scroll to a section and move the keyboard focus there. */
function go(section) {
  $(section).scrollIntoView();
  $(section).focus({ preventScroll: true });
}

/** The metrics shown until the reader asks for all. */
const TABLE = metrics.filter((metric) => metric.default).map((metric) => metric.name);
const shownMetrics = () => (state.every ? metrics : metrics.filter((metric) => TABLE.includes(metric.name) || metric.name === state.metric));
const allMetrics = () => el("button", { type: "button", class: "all-metrics", onclick: () => update({ every: !state.every }, drawEffects, drawPoints) },
  state.every ? "Fewer metrics" : `All ${metrics.length} metrics`);
