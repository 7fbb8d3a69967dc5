// Small line charts as SVG.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 220;
const EDGE = { left: 56, right: 12, top: 10, bottom: 26 };

function svg(name, attributes = {}, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// A moving average that begins without a bias towards 0; `weight` is of what came before, from 0 to below 1.
export function smoothed(points, weight) {
  let sum = 0, mass = 0;
  return points.map(([step, value]) => {
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return [step, sum / mass];
  });
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= rough);
  const found = [];
  for (let at = Math.ceil(low / size) * size; at <= high + size * 1e-6; at += size) found.push(Number(at.toPrecision(10)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const n of high / low > 1000 ? [1] : [1, 2, 5]) {
      const at = n * 10 ** power;
      if (at >= low && at <= high) found.push(at);
    }
  }
  return found;
}

function scales(all, log, width) {
  const steps = all.map(([step]) => step), values = all.map(([, value]) => value);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)];
  const on = log ? Math.log10 : (value) => value;
  const x = (step) => EDGE.left + ((step - first) / (last - first || 1)) * (width - EDGE.left - EDGE.right);
  const y = (value) => HEIGHT - EDGE.bottom - ((on(value) - on(low)) / (on(high) - on(low))) * (HEIGHT - EDGE.top - EDGE.bottom);
  return { x, y, low, high, first, last };
}

function line(points, x, y) {
  return points.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

function axes(picture, at, log, width) {
  for (const value of log ? logTicks(at.low, at.high) : ticks(at.low, at.high, 4)) {
    picture.append(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: at.y(value), y2: at.y(value) }));
    picture.append(svg("text", { x: EDGE.left - 6, y: at.y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const step of ticks(at.first, at.last, Math.max(2, width / 130))) {
    picture.append(svg("text", { x: at.x(step), y: HEIGHT - 8, "text-anchor": "middle" }, String(step)));
  }
}

function legend(series) {
  const list = document.createElement("ul");
  list.className = "legend";
  for (const one of series) {
    const item = document.createElement("li"), mark = svg("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" });
    mark.append(svg("line", { class: `c${one.colour} ${one.dashed ? "dashed" : ""}`, x1: 0, x2: 24, y1: 5, y2: 5, "stroke-width": 3 }));
    item.append(mark, document.createElement("span"));
    list.append(item);
  }
  return list;
}

function say(list, series, step) {
  series.forEach((one, number) => {
    const near = step === undefined ? one.shown.at(-1) : one.shown.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
    list.children[number].lastChild.textContent = `${one.label} ${short(near[1])} at ${Math.round(near[0])}`;
  });
}

// series: [{label, points: [[step, value], ...], colour: 0..5, dashed}]. `smooth` from 0 to below 1.
export function chart(title, series, { log = false, smooth = 0 } = {}) {
  const box = document.createElement("div"), head = document.createElement("h3");
  box.className = "chart";
  head.textContent = title;
  series = series.map((one) => ({ ...one, points: one.points.filter(([, value]) => !log || value > 0) })).filter((one) => one.points.length);
  if (!series.length) return null;
  for (const one of series) one.shown = smooth && one.points.length > 2 ? smoothed(one.points, smooth) : one.points;
  const list = legend(series);
  const picture = svg("svg", { role: "img" });
  const draw = (width) => {
    if (!(width > 0)) return;
    const at = scales(series.flatMap((one) => one.points), log, width);
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    picture.replaceChildren();
    axes(picture, at, log, width);
    for (const one of series) {
      const kind = `c${one.colour} ${one.dashed ? "dashed" : ""}`;
      if (one.shown !== one.points) picture.append(svg("path", { class: `${kind} raw`, d: line(one.points, at.x, at.y) }));
      picture.append(svg("path", { class: kind, d: line(one.shown, at.x, at.y) }));
      if (one.points.length <= 30) {
        for (const [step, value] of one.shown) picture.append(svg("circle", { class: kind, cx: at.x(step), cy: at.y(value), r: 2.5, fill: "none" }));
      }
    }
    const cursor = svg("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
    picture.append(cursor);
    picture.onpointermove = (event) => {
      const area = picture.getBoundingClientRect();
      const share = ((event.clientX - area.left) / area.width * width - EDGE.left) / (width - EDGE.left - EDGE.right);
      const step = at.first + Math.min(1, Math.max(0, share)) * (at.last - at.first);
      for (const name of ["x1", "x2"]) cursor.setAttribute(name, at.x(step));
      cursor.setAttribute("visibility", "visible");
      say(list, series, step);
    };
    picture.onpointerleave = () => {
      cursor.setAttribute("visibility", "hidden");
      say(list, series);
    };
  };
  say(list, series);
  picture.setAttribute("aria-label", `${title}: ${[...list.children].map((item) => item.textContent).join(", ")}`);
  box.append(head, picture, list);
  // In the next frame: drawing changes the height, and an observer that does so at once is told off by the browser.
  new ResizeObserver((found) => requestAnimationFrame(() => draw(Math.round(found[0].contentRect.width)))).observe(box);
  return box;
}
