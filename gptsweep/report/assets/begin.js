/* ---------- begin ---------- */

document.addEventListener("keydown", (event) => {
  if (state.rate || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, .scroll")) return;
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: "first", End: "last" }[event.key];
  if (step === undefined || (typeof step === "string" && !event.target.closest("#samples"))) return;
  event.preventDefault();
  move(step);
});
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { drawSamplers(); drawCharts(); }, 120); });
addEventListener("hashchange", () => {
  if (location.hash === ours) return;
  readAddress();
  for (const draw of [drawEffects, drawCharts, drawPoints, drawMatrix, drawSampleControls, drawSamples, drawRate]) draw();
});
drawHead();
readAddress();
beginRating();
for (const draw of [drawSamplers, drawEffects, drawCharts, drawPoints, drawMatrix, drawSampleControls, drawSamples, drawRate]) draw();
for (const link of document.querySelectorAll("nav a")) link.hidden = $(link.dataset.goto).hidden;
document.querySelector(".bar .pick").hidden = !metrics.length || !keys.length;
