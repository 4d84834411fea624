const data = JSON.parse(document.getElementById("data").textContent);
const { keys, metrics, groups, values, samples } = data;
const LETTERS = "ABCD", MAX_COLUMNS = 4;
const $ = (id) => document.getElementById(id);
const byName = Object.assign(Object.create(null), Object.fromEntries(metrics.map((metric) => [metric.name, metric])));
const count = groups.at.length;
const every = Array.from({ length: count }, (_, g) => g);
const withText = new Set(samples.group), readable = every.filter((g) => withText.has(g) || !withText.size);
