/* ---------- charts ---------- */

/** A select box. `offer` completes its list only when the reader opens it, because thousands of points take a while. */
const picker = (text, options, now, change, offer = null) => el("label", { class: "pick" }, text + " ",
  el("select", { onchange: (event) => change(event.target.value), onpointerdown: offer, onfocus: offer },
    options.map(([value, name]) => el("option", { value, selected: String(value) === String(now) }, name))));
/** Add the points that a select box does not list yet. */
function offerPoints(event) {
  const list = event.target, there = new Set([...list.options].map((option) => option.value));
  if (there.size < count) list.append(...every.filter((g) => !there.has(String(g))).map((g) => el("option", { value: g }, groupName(g))));
}

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

/** Describe what is under the pointer or the focus, in words below the charts. */
function read(text) { fill($("read"), text); }

function heatColour(share) {
  return share < 0.5 ? `color-mix(in oklab, var(--heat1) ${(share * 200).toFixed(1)}%, var(--heat0))`
    : `color-mix(in oklab, var(--heat2) ${((share - 0.5) * 200).toFixed(1)}%, var(--heat1))`;
}

function drawHeat(rows) {
  const kx = keys[state.x], ky = keys[state.y];
  const xs = drawn(kx), ys = drawn(ky), groupsAt = (x, y) => rows.get(y)?.get(x) ?? [];
  const cells = new Map(ys.map((y) => [y, new Map(xs.map((x) => { const inside = groupsAt(x, y); return [x, { inside, found: inside.length ? meanOf(state.metric, x, y) : null }]; }))]));
  const means = [...cells.values()].flatMap((row) => [...row.values()]).filter((cell) => cell.found).map((cell) => cell.found.mean);
  const low = least(means), high = most(means);
  const logarithmic = widely(state.metric, low, high);
  const wide = xs.length;
  const share = (v) => (high === low ? 0.5 : logarithmic ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const row = (y) => el("tr", {}, el("th", { scope: "row", title: ky.labels[y] }, brief(state.y, y, 14)), xs.map((x) => {
    const { inside, found } = cells.get(y).get(x);
    const name = `${kx.name} ${brief(state.x, x)}, ${ky.name} ${brief(state.y, y)}: ${settingName(state.metric)} ${spoken(state.metric, found)}`;
    if (!inside.length) return el("td", {}, "");
    const one = inside.length === 1 ? inside[0] : inside[Math.floor(inside.length / 2)];
    const part = found ? share(found.mean) : 0;
    const based = inside.includes(state.base), say = () => read(name + fromBaseline(state.metric, inside));
    return el("td", {}, el("button", {
      type: "button", class: (found ? "" : "none") + (state.columns.includes(one) ? ` on t${state.columns.indexOf(one)}` : "") + (based ? " base" : ""),
      "aria-label": name + (based ? `, ${inside.length > 1 ? "with " : ""}the baseline` : "") + (state.columns.includes(one) ? ", shown among the samples" : ""),
      style: found ? { background: heatColour(part), color: part < 0.5 ? "var(--on-low)" : "var(--on-high)" } : {},
      onmouseenter: say, onfocus: say, onclick: () => toggle(one),
    }, wide > 16 ? "" : found ? showOf(state.metric, found.mean) : "–", badge(one)));
  }));
  const every12 = Math.ceil(wide / 12);
  const table = el("table", { class: "heat" + (wide > 16 ? " tiny" : wide > 10 ? " dense" : "") },
    el("caption", { class: "visually-hidden" }, `${settingName(state.metric)} by ${kx.name} and ${ky.name}`),
    el("thead", {}, el("tr", {}, el("td", { class: "corner" }, ""), xs.map((x, at) => el("th", { scope: "col", title: kx.labels[x] }, at % every12 ? el("span", { class: "visually-hidden" }, kx.labels[x]) : brief(state.x, x, 12))))),
    el("tbody", {}, ys.map((y) => row(y)).reverse()));
  fill($("heat"),
    el("figcaption", {}, `${settingName(state.metric)} `, el("span", {}, `by ${kx.name} (across) and ${ky.name} (up)${partOf(kx)}${partOf(ky)}`)),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Heat map" }, table),
    means.length > 0 && el("p", { class: "legend" }, showOf(state.metric, low), el("i"), showOf(state.metric, high), logarithmic ? " logarithmic" : "",
      el("span", {}, "Press a cell to read its samples.", ys.some((y) => xs.some((x) => groupsAt(x, y).includes(state.base))) && " Dashed: the baseline.")));
}

function drawCurve(rows, scattered, W) { // the height grows with the number of line names
  const kx = keys[state.x], ky = keys.length > 1 ? keys[state.y] : { labels: [""] }, two = keys.length > 1 && !scattered;
  const pointOf = (x, y, inside) => {
    const found = meanOf(state.metric, x, y);
    return found && { x, y, inside, g: inside[Math.floor(inside.length / 2)], ...found };
  };
  const line = (y) => ({ y, points: [...(rows.get(y) ?? [])].sort(([p], [q]) => p - q).map(([x, inside]) => pointOf(x, y, inside)).filter(Boolean) });
  const lines = (scattered ? [{ y: 0, points: spreadOver([...rows.keys()].flatMap((y) => line(y).points), MAX_DOTS) }] : (two ? drawn(ky) : [0]).map(line)).filter(({ points }) => points.length);
  const flat = lines.flatMap(({ points }) => points);
  if (!flat.length) { fill($("curve"), el("p", { class: "empty" }, "Nothing to draw yet.")); return; }
  const shown = lines.length;
  const H = Math.max(350, 14 * Math.min(shown, 60) + 80), box = { left: 52, right: W - (two ? 112 : 20), top: 28, bottom: H - 44 };
  const numbers = kx.numbers;
  const x = numbers ? scale(numbers, numbers, box.left + 8, box.right - 8, { numbers, labels: kx.labels }) : scale([], [], box.left + 14, box.right - 14, { labels: kx.labels.map((_, i) => brief(state.x, i, 10)) });
  const lows = flat.map((p) => p.mean - (p.error || 0)), highs = flat.map((p) => p.mean + (p.error || 0));
  const held = goals(state.metric).map((goal) => ({ ...goal, inside: near(goal.at, lows, highs), above: goal.at > most(highs) }));
  const seen = held.filter((goal) => goal.inside).map((goal) => goal.at);
  const y = scale([...lows, ...seen], [...highs, ...seen], box.bottom, box.top, { name: state.metric });
  const px = (p) => x.of(numbers ? numbers[p.x] : p.x), rings = [], marked = scattered || flat.length <= MAX_DOTS ? null : new Set(drawn(kx));
  const valueNames = (p) => `${kx.name} ${brief(state.x, p.x)}${keys.length > 1 ? `, ${ky.name} ${brief(state.y, p.y)}` : ""}`;
  const marks = lines.map(({ y: i, points }) => {
    const colour = lineColour(i);
    return el("g", {},
      !scattered && el("path", { class: "line", stroke: colour, "stroke-dasharray": dashOf(i), d: points.map((p, at) => `${at ? "L" : "M"}${px(p).toFixed(1)} ${y.of(p.mean).toFixed(1)}`).join("") }),
      flat.length <= MAX_BARS && points.map((p) => p.error !== null && el("line", { class: "bar1", stroke: colour, x1: px(p), x2: px(p), y1: y.of(Math.max(p.mean - p.error, -1e300)), y2: y.of(p.mean + p.error) })),
      points.map((p) => {
        const text = () => `${valueNames(p)}: ${settingName(state.metric)} ${spoken(state.metric, p)}`;
        rings.push(ring(p.g, px(p), y.of(p.mean)));
        return (!marked || marked.has(p.x)) && mark(i, px(p), y.of(p.mean), flat.length <= 300 ? 4.5 : 2.5, { class: "dot", fill: colour, onmouseenter: () => read(text() + fromBaseline(state.metric, p.inside)), onclick: () => toggle(p.g) }, flat.length <= 300 && el("title", {}, text()));
      }));
  });
  const last = (points) => points[points.length - 1];
  const ends = two ? apart(lines.map(({ y: i, points }) => ({ i, y: y.of(last(points).mean), x: px(last(points)) })), 14, box.top, box.bottom) : [];
  const few = ends.length <= 60 ? ends : ends.filter((_, i) => i % Math.ceil(ends.length / 60) === 0);
  const names = few.map((end) => lineName(end.i, box.right + 10, end.y + 4, brief(state.y, end.i, 11), two));
  if (two) names.push(el("text", { x: box.right + 8, y: 12, class: "name" }, short(ky.name, 14)));
  const alt = `${settingName(state.metric)} along ${kx.name}${scattered ? ", a dot for each point" : two ? `, a line for each ${ky.name}` : ""}. The same numbers stand in the table below.`;
  fill($("curve"),
    el("figcaption", {}, `${settingName(state.metric)} `, el("span", {}, `along ${kx.name}; ${scattered ? "a dot is a point; " : ""}${flat.length <= MAX_BARS ? "bars are one standard error" : "marks may be pressed"}${two ? partOf(ky) : ""}${marked ? partOf(kx, "marks at ") : ""}`)),
    frame(x, y, W, H, box, kx.name, settingName(state.metric), [
      held.map(({ kind, at, inside }) => inside && el("line", { class: kind, x1: box.left, x2: box.right, y1: y.of(at), y2: y.of(at) })),
      marks, rings, names, goalNames(held, lines.map(({ points }) => points.map((p) => [px(p), y.of(p.mean)])), y, box)], alt),
    scattered ? tableOf([`${kx.name}, ${ky.name}`, settingName(state.metric)], () => flat.map((p) => [valueNames(p), spoken(state.metric, p)]))
      : tableOf([two ? `${ky.name} \\ ${kx.name}` : kx.name, ...kx.labels.map((_, i) => brief(state.x, i))],
        () => lines.map(({ y: i, points }) => { const there = new Map(points.map((p) => [p.x, p])); return [two ? brief(state.y, i) : settingName(state.metric), ...kx.labels.map((_, at) => (there.has(at) ? spoken(state.metric, there.get(at)) : "–"))]; })));
}

/** Name the reference lines of a curve: each name at an end of its line, above or below it, wherever it hides the least. */
function goalNames(held, lines, y, box) {
  const along = lines.flatMap((line) => line.flatMap(([x, v], i) => {
    const [left, above] = i ? line[i - 1] : [x, v];
    return [[x, v], ...[0.25, 0.5, 0.75].map((share) => [left + share * (x - left), above + share * (v - above)])];
  }));
  const taken = [];
  return held.map(({ name, kind, at, inside, above }) => {
    const text = inside ? `${name} ${showOf(state.metric, at)}` : `${above ? "↑" : "↓"} ${name} ${showOf(state.metric, at)}, outside the plot`, wide = 7 * text.length;
    const spots = [-6, 15].flatMap((shift) => [box.left + 6, box.right - 6 - wide].map((x) => ({ x, base: inside ? y.of(at) + shift : above ? box.top + 12 : box.bottom - 8 })));
    const hides = ({ x, base }) => along.filter(([px, py]) => px > x - 6 && px < x + wide + 6 && py > base - 16 && py < base + 8).length
      + 1000 * taken.filter((spot) => spot.x === x && Math.abs(spot.base - base) < 15).length;
    const spot = spots.reduce((best, one) => (hides(one) < hides(best) ? one : best)), right = spot.x > box.left + 6;
    taken.push(spot);
    return el("text", { class: `${kind}name`, x: right ? box.right - 6 : box.left + 6, "text-anchor": right ? "end" : null, y: spot.base }, text);
  });
}

function drawScatter(scattered, W) {
  const { mx, my } = state, two = keys.length > 1 && !scattered;
  const there = shownGroups(), dots = spreadOver(there, MAX_DOTS).map((g) => ({ g, px: meanAt(mx, groups.at[g]), py: meanAt(my, groups.at[g]) })).filter((dot) => dot.px && dot.py);
  if (!dots.length) { fill($("scatter"), el("p", { class: "empty" }, "No point has both metrics.")); return; }
  const H = W < 600 ? 330 : 420, box = { left: 56, right: W - (W < 600 ? 104 : 160), top: 28, bottom: H - 44 };
  const edgeOf = (part, sign) => dots.map((dot) => dot[part].mean + sign * (dot[part].error || 0));
  const both = goals(mx).flatMap(({ name, kind, at }) => goals(my).filter((other) => other.kind === kind).map((other) => ({ name, kind, px: at, py: other.at })));
  const held = both.map((goal) => ({ ...goal, inX: near(goal.px, edgeOf("px", -1), edgeOf("px", 1)), inY: near(goal.py, edgeOf("py", -1), edgeOf("py", 1)) }));
  const edge = (part, inside, sign) => [...edgeOf(part, sign), ...held.filter((goal) => goal[inside]).map((goal) => goal[part])];
  const x = scale(edge("px", "inX", -1), edge("px", "inX", 1), box.left + 8, box.right - 8, { name: mx }), y = scale(edge("py", "inY", -1), edge("py", "inY", 1), box.bottom, box.top, { name: my });
  const lineOf = (g) => (two ? groups.at[g][state.y] : 0), colourOf = (g) => lineColour(lineOf(g));
  const others = (g) => groups.at[g].filter((_, k) => k !== state.x).join();
  const paths = new Map();
  for (const dot of dots.slice().sort((p, q) => groups.at[p.g][state.x] - groups.at[q.g][state.x])) {
    if (!paths.has(others(dot.g))) paths.set(others(dot.g), []);
    paths.get(others(dot.g)).push(dot);
  }
  const marks = [
    held.map(({ name, kind, px, py, inX, inY }, i) => [
      el("path", { class: kind, d: (inX ? `M${x.of(px)} ${box.top}V${box.bottom}` : "") + (inY ? `M${box.left} ${y.of(py)}H${box.right}` : "") }),
      el("text", { class: `${kind}name`, x: inX ? x.of(px) + 6 : box.left + 6, y: inY && !inX ? y.of(py) - 5 : box.bottom - 8 - 15 * i },
        inX && inY ? name : `${name} at ${showOf(mx, px)}, ${showOf(my, py)}`)]),
    [...paths.values()].filter((line) => line.length > 1).map((line) => el("path", { class: "line", stroke: colourOf(line[0].g), "stroke-dasharray": dashOf(lineOf(line[0].g)), style: { opacity: 0.35 },
      d: line.map((dot, at) => `${at ? "L" : "M"}${x.of(dot.px.mean).toFixed(1)} ${y.of(dot.py.mean).toFixed(1)}`).join("") })),
    dots.map(({ g, px, py }) => {
      const cx = x.of(px.mean), cy = y.of(py.mean), colour = colourOf(g);
      const text = () => `${groupName(g)}: ${settingName(mx)} ${spoken(mx, px)}; ${settingName(my)} ${spoken(my, py)}`;
      return [
        dots.length <= 150 && px.error && el("line", { class: "bar1", stroke: colour, x1: x.of(px.mean - px.error), x2: x.of(px.mean + px.error), y1: cy, y2: cy }),
        dots.length <= 150 && py.error && el("line", { class: "bar1", stroke: colour, x1: cx, x2: cx, y1: y.of(py.mean - py.error), y2: y.of(py.mean + py.error) }),
        mark(lineOf(g), cx, cy, dots.length <= 300 ? 5 : 3, { class: "dot", fill: colour, onmouseenter: () => read(text() + fromBaseline(my, [g])), onclick: () => toggle(g) }, dots.length <= 300 && el("title", {}, text()))];
    }),
    dots.map(({ g, px, py }) => ring(g, x.of(px.mean), y.of(py.mean))),
    [...paths.values()].length <= 14 && two ? apart([...paths.values()].map((line) => ({ line, y: y.of(line[line.length - 1].py.mean) })), 14, box.top, box.bottom).map(({ line, y: at }) =>
      lineName(lineOf(line[0].g), box.right + 10, at + 4, keys.map((_, k) => (k === state.x ? null : brief(k, groups.at[line[0].g][k], 11))).filter((text) => text !== null).join(" · "), two)) : null,
    two && el("text", { x: box.right + 8, y: 12, class: "name" }, short(keys.filter((_, k) => k !== state.x).map((key) => key.name).join(" · "), 18)),
  ];
  const alt = `${settingName(my)} against ${settingName(mx)}, a dot for each point. The same numbers stand in the table of points.`;
  fill($("scatter"),
    el("figcaption", {}, `${settingName(my)} against ${settingName(mx)} `, el("span", {}, `a dot is a point${scattered ? "" : `, a line follows ${keys[state.x].name}`}; no corner is best by itself${there.length > MAX_DOTS ? `; ${MAX_DOTS.toLocaleString("en")} of the ${there.length.toLocaleString("en")} points, evenly chosen` : ""}`)),
    frame(x, y, W, H, box, settingName(mx), settingName(my), marks, alt));
}

function drawCharts() {
  if (!metrics.length || !keys.length) { $("charts").hidden = true; return; }
  const metric = byName[state.metric];
  $("metric").value = state.metric;
  $("charts-h").textContent = metric.label;
  $("meaning").textContent = metric.meaning[0].toUpperCase() + metric.meaning.slice(1) + (metric.unit === "nats" ? ", in nats." : ".");
  const rows = grid(), scattered = isScattered(rows);
  $("heat").hidden = keys.length < 2 || scattered;
  $("curve").classList.toggle("wide", keys.length < 2 || scattered);
  $("scatter").className = "wide";
  const [curve, scatter] = [width("curve"), width("scatter")]; // measured together, because measuring after a drawing would force a layout
  drawAxes();
  if (!$("heat").hidden) drawHeat(rows);
  drawCurve(rows, scattered, curve);
  drawScatter(scattered, scatter);
  if (!$("read").textContent) read("Point at a mark to read it here; press it to see its samples.");
}
