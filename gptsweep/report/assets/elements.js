/* ---------- small tools ---------- */

/** Characters that are invisible or would reorder the text. */
const ODD = new RegExp(`[${data.unsafe}]`, "gu");
/** Return text that is safe to show: names, labels and problems are not trusted. Samples go through `write` instead. */
const visible = (text) => text.replace(ODD, (odd) => {
  const code = odd.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : "\\u" + code.padStart(4, "0");
});
const safe = (child) => (typeof child === "string" ? visible(child) : child);

/** Create an element: tag, attributes (on… are listeners, true means present) and children (strings are never markup). */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "rect", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [property, setting] of Object.entries(value)) node.style.setProperty(property, setting);
    else node.setAttribute(name, value === true ? "" : name === "value" ? value : safe(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map(safe));
  return node;
}
const fill = (node, ...children) => node.replaceChildren(...children.flat(Infinity).filter(Boolean).map(safe));
const least = (all) => all.reduce((p, q) => Math.min(p, q), Infinity), most = (all) => all.reduce((p, q) => Math.max(p, q), -Infinity);
const plural = (n, one, more = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
