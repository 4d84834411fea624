/* ---------- places: (prompt, seed, number) ---------- */

const places = [], placeOf = new Map(), textAt = new Map();
for (let i = 0; i < samples.text.length; i++) {
  const id = `${samples.place[i]}-${samples.seed[i]}-${samples.index[i]}`;
  if (!placeOf.has(id)) {
    placeOf.set(id, places.length);
    places.push({ id, prompt: samples.place[i], seed: samples.seed[i], index: samples.index[i] });
  }
  textAt.set(samples.group[i] + "/" + id, i);
}
places.sort((a, b) => a.prompt - b.prompt || a.index - b.index || (a.seed.length - b.seed.length) || (a.seed < b.seed ? -1 : 1));
const sampleAt = (g, place) => textAt.get(g + "/" + place.id);
