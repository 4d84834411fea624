/* Inside a sample: its tokens shaded by surprise, and the likely alternatives at each, by mouse and by keyboard. */

/** Create a view of the tokens of samples.
    tokens: the page's token data, or null; tools: the page's `el`, `write` and `show`, and `text(i)`, the text of sample i. */
function tokenView(tokens, { el, write, show, text }) {
  const LEVELS = 8, NATS = 8; // a surprise of this many nats, a probability of 1 in 3,000, has the full shade
  const percent = (logprob) => { const p = 100 * Math.exp(logprob); return `${p >= 99.95 ? "100" : p >= 10 ? p.toFixed(1) : p >= 0.001 ? p.toPrecision(2) : "< 0.001"}\u00a0%`; };
  const named = (piece) => (piece === "" ? "nothing" : /^\s+$/.test(piece) ? JSON.stringify(piece).slice(1, -1).replaceAll(" ", "␣") : piece.replace(/^ | $/g, "␣").replaceAll("\n", "⏎"));

  /** Describe what was measured at token t of sample i. */
  function details(i, t) {
    const own = tokens.of[i], piece = tokens.texts[own.text[t]];
    const name = (content) => { const node = el("bdi", { class: "piece" }); write(node, named(content), ""); return node; };
    const bar = (logprob) => el("i", { class: "likely", style: { width: `${Math.max(1, 100 * Math.exp(logprob)).toFixed(1)}%` } });
    const likely = own.tops[t].map((k, at) => el("tr", { class: k === own.text[t] ? "chosen" : "" },
      el("td", {}, String(at + 1)), el("td", {}, name(tokens.texts[k])), el("td", { class: "n" }, percent(own.top[t][at])), el("td", { class: "bars" }, bar(own.top[t][at]))));
    if (!own.tops[t].includes(own.text[t])) likely.push(el("tr", { class: "chosen" },
      el("td", {}, own.rank[t].toLocaleString("en")), el("td", {}, name(piece)), el("td", { class: "n" }, percent(own.logprob[t])), el("td", { class: "bars" }, bar(own.logprob[t]))));
    return [
      el("p", {}, name(piece), ` token ${t + 1} of ${own.text.length}: surprise ${show(-own.logprob[t])} nats, ${percent(own.logprob[t])} to the model, rank ${own.rank[t].toLocaleString("en")};`
        + ` ${percent(own.sampler[t])} to the sampler, which left ${own.left[t].toLocaleString("en")}; entropy ${show(own.entropy[t])} nats`),
      el("table", { "aria-label": "The likeliest tokens here" }, el("tbody", {}, likely)),
    ];
  }

  /** Draw the text of sample i as tokens; mark the one that holds character `fork`, and grey those before it. */
  function body(i, fork, title) {
    const own = tokens.of[i], all = text(i);
    const panel = el("div", { class: "inspect", role: "status" }, el("p", { class: "note" }, "Point at a token, or press Tab and then ← or →, to see what else was likely there."));
    const nodes = own.ends.map((end, t) => {
      const piece = all.slice(t ? own.ends[t - 1] : 0, end), begin = end - piece.length;
      const level = Math.max(0, Math.min(LEVELS, Math.round((-own.logprob[t] / NATS) * LEVELS)));
      const parts = fork !== null && begin <= fork && fork < end;
      const node = el("span", { class: `token s${level}${parts ? " fork" : ""}${fork !== null && end <= fork ? " before" : ""}`, title: parts ? title : null, tabindex: t ? -1 : 0,
        role: "button", onmouseenter: () => look(t), onfocus: () => look(t), onclick: () => nodes[t].focus() });
      if (piece.includes("\n")) node.append(el("span", { class: "odd", "aria-hidden": "true" }, "⏎"));
      if (piece === "") node.append(el("span", { class: "odd" }, "▯")); else write(node, piece);
      return node;
    });
    let now = -1;
    function look(t) {
      if (t === now) return;
      if (now >= 0) nodes[now].classList.remove("seen");
      nodes[now = t].classList.add("seen");
      panel.classList.add("used");
      panel.replaceChildren(...details(i, t));
    }
    function step(event) {
      const at = nodes.indexOf(event.target.closest(".token"));
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: nodes.length - 1 }[event.key];
      if (at < 0 || to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation(); // the page's own arrow keys move between samples
      if (!nodes[to]) return;
      nodes[at].tabIndex = -1;
      nodes[to].tabIndex = 0;
      nodes[to].focus();
    }
    return [el("div", { class: "text tokens", role: "group", "aria-label": "The text, token by token", onkeydown: step }, nodes), panel];
  }

  return {
    some: Boolean(tokens),
    has: (i) => Boolean(tokens && tokens.of[i]),
    body,
    legend: () => el("span", { class: "shades" }, "surprise 0 ", Array.from({ length: LEVELS + 1 }, (_, level) => el("span", { class: `token s${level}` }, "\u2007\u2007")), ` ${NATS} nats or more`),
  };
}
