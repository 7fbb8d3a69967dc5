// The previews: rows of pictures for each prompt, with base, trained model and average side by side.

const LABELS = { base: "base model", adapter: "trained", ema: "average" };

export function address(path, time) {
  return `/files/${path.split("/").map(encodeURIComponent).join("/")}?v=${encodeURIComponent(time || "")}`;
}

function modelOf(image) {
  if (image.model === "base" || /(^|\/)base\//.test(image.path || "")) return "base";
  return /(^|\/)ema\//.test(image.path || "") ? "ema" : "adapter";
}

// All pictures of an entry with what they were on the way: [{path, model, prompt, seed, frames, time}].
function cards(entry) {
  const found = new Map();
  for (const [path, frames] of entry.frames) {
    const { prompt, seed } = frames[0];
    found.set(path, { path, prompt, seed, frames, done: false, model: modelOf({ path: frames[0].path || "" }) });
  }
  for (const image of entry.images) {
    if (image.model === "both") continue;
    const frames = found.get(image.path)?.frames || [];
    found.set(image.path, { ...image, frames, done: true, model: modelOf(image) });
  }
  return [...found.values()];
}

// The sampler steps of which there are pictures, in order.
export function samplerSteps(entry) {
  const steps = new Set();
  for (const frames of entry.frames.values()) for (const frame of frames) if (frame.path) steps.add(frame.sampler_step);
  return [...steps].sort((a, b) => a - b);
}

// What a card shows at a sampler step; Infinity is the picture that it has become.
function shownOf(card, at) {
  if (card.done && at === Infinity) return { path: card.path, time: card.time, making: false };
  const frame = card.frames.filter((one) => one.path && one.sampler_step <= at).at(-1);
  if (frame) return { path: frame.path, time: frame.time, making: frame };
  return card.done && !card.frames.length ? { path: card.path, time: card.time, making: false } : null;
}

function figure(card, at, step) {
  const shown = shownOf(card, at);
  const box = document.createElement("figure"), caption = document.createElement("figcaption");
  const label = LABELS[card.model], on = shown?.making ? `, sampler step ${shown.making.sampler_step} of ${shown.making.of}` : "";
  box.className = on ? "making" : "";
  caption.textContent = label + on;
  if (shown) {
    const image = document.createElement("img");
    image.loading = "lazy";
    image.alt = `${label}: ${card.prompt ?? "picture"}, seed ${card.seed ?? "unknown"}, step ${step}${on}`;
    image.onload = () => image.classList.toggle("small", image.naturalWidth < 200);
    image.src = address(shown.path, shown.time);
    box.append(image);
  }
  box.append(caption);
  return box;
}

function whole(entry) {
  const grid = entry.images.find((image) => image.model === "both");
  if (!grid) return [];
  const box = document.createElement("details"), head = document.createElement("summary"), image = document.createElement("img");
  box.className = "whole";
  head.textContent = "All in one picture";
  image.loading = "lazy";
  image.alt = `All pictures of step ${entry.step} in one`;
  image.src = address(grid.path, grid.time);
  box.append(head, image);
  return [box];
}

function group(of, key) {
  const found = new Map();
  for (const one of of) found.set(key(one), [...(found.get(key(one)) || []), one]);
  return found;
}

// Fills `place` with an entry's pictures as they are at a sampler step. Pictures that stay the same are not made anew.
export function show(place, entry, at) {
  const known = new Map([...place.querySelectorAll("figure")].map((one) => [one.dataset.key, one]));
  const order = ["base", "adapter", "ema"];
  const parts = [];
  const all = cards(entry);
  for (const [prompt, of] of group(all, (card) => card.prompt ?? "")) {
    const head = document.createElement("h3"), rows = document.createElement("div");
    head.textContent = prompt || "without a prompt";
    rows.className = "rows";
    const columns = new Set(of.map((card) => card.model)).size;
    rows.style.setProperty("--row", `${columns * 8}rem`);
    rows.style.setProperty("--columns", columns);
    for (const [, row] of group(of, (card) => `${card.seed} ${card.path.split("/").at(-1)}`)) {
      const line = document.createElement("div");
      line.className = "row";
      row.sort((a, b) => order.indexOf(a.model) - order.indexOf(b.model));
      for (const card of row) {
        const key = JSON.stringify([card.path, shownOf(card, at), entry.step]);
        const box = known.get(key) || figure(card, at, entry.step);
        box.dataset.key = key;
        line.append(box);
      }
      rows.append(line);
    }
    parts.push(head, rows);
  }
  const open = place.querySelector("details")?.open;
  const grid = whole(entry);
  if (open && grid.length) grid[0].open = true;
  place.replaceChildren(...parts, ...grid);
}
