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

function drawCharts() {
  if (!metrics.length || !keys.length) { $("charts").hidden = true; return; }
  const metric = byName[state.metric];
  $("metric").value = state.metric;
  $("charts-h").textContent = metric.label;
  $("meaning").textContent = metric.meaning[0].toUpperCase() + metric.meaning.slice(1) + (metric.unit === "nats" ? ", in nats." : ".");
  drawAxes(); drawHeat(); drawCurve(); drawScatter();
  if (!$("read").textContent) read("Point at a mark to read it here; press it to see its samples.");
}
