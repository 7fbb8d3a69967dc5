// What is known of a run, folded from its records one after the other (docs/events.md). No drawing, no network.

export function empty() {
  return {
    run: "", fit: null, stage: null, step: null, of: null, loss: null, speed: null, left: null, time: null,
    messages: [], checkpoints: [], scores: Object.create(null), previews: new Map(), broken: 0,
  };
}

// A fit that goes on from an earlier step makes what came after that step no part of the run.
function forget(state, step) {
  state.checkpoints = state.checkpoints.filter((one) => one.step <= step);
  for (const [key, one] of state.previews) if (one.step > step) state.previews.delete(key);
  for (const of of Object.values(state.scores)) {
    for (const name of Object.keys(of)) of[name] = of[name].filter(([at]) => at <= step);
  }
}

// Pictures of one step and one folder (previews, report) belong together.
function preview(state, step, path) {
  const source = (path || "previews/").split("/")[0];
  const key = `${String(step).padStart(12, "0")} ${source}`;
  if (!state.previews.has(key)) state.previews.set(key, { key, step, source, images: [], frames: new Map(), of: 0, at: 0 });
  return state.previews.get(key);
}

// The picture that a picture on the way becomes: .../raw/steps/NAME-005.png becomes .../raw/NAME.png.
export function finalPath(data) {
  const found = /^(.*)steps\/([^/]+)-\d+\.png$/.exec(data.path || "");
  return found ? `${found[1]}${found[2]}.png` : `${data.prompt}/${data.seed}.png`;
}

const TAKE = {
  run(state, data, record) {
    if (data.stage === "started") forget(state, data.step);
    if (record.fit !== state.fit || data.stage === "started") Object.assign(state, { speed: null, left: null });
    Object.assign(state, { stage: data.stage, of: data.of ?? state.of, step: data.step });
  },
  status(state, data) {
    Object.assign(state, { of: data.of, loss: data.loss, speed: data.steps_per_s, left: data.left_s });
  },
  checkpoint(state, data, record) {
    state.checkpoints = state.checkpoints.filter((one) => one.path !== data.path);
    state.checkpoints.push({ ...data, time: record.time });
  },
  preview(state, data, record) {
    if (typeof data.path !== "string") data = { ...data, path: null };
    const one = preview(state, data.step, data.path);
    if (one.images.length && record.fit !== one.fit) Object.assign(one, { images: [], frames: new Map() });
    one.fit = record.fit;
    const key = finalPath(data);
    const frame = { ...data, time: record.time };
    const earlier = (one.frames.get(key) || []).filter((other) => other.sampler_step < data.sampler_step);
    one.frames.set(key, [...earlier, frame]);
    Object.assign(one, { of: data.of, at: data.sampler_step });
  },
  images(state, data, record) {
    const images = (data.images || []).filter((image) => typeof image.path === "string");
    if (!images.length) return;
    const one = preview(state, data.step, images[0].path);
    one.fit = record.fit;
    one.images = images.map((image) => ({ ...image, time: record.time }));
  },
  scores(state, data) {
    for (const [name, models] of Object.entries(data.scores || {})) {
      const of = (state.scores[name] ??= Object.create(null));
      for (const [model, value] of Object.entries(models || {})) {
        if (typeof value !== "number") continue;
        of[model] = (of[model] || []).filter(([step]) => step !== data.step);
        of[model].push([data.step, value]);
      }
    }
  },
  warning(state, data, record) {
    state.messages.push({ level: "warning", text: String(data.message), step: data.step, time: record.time });
  },
  error(state, data, record) {
    state.messages.push({ level: "error", text: `${data.type}: ${data.message}`, step: data.step, time: record.time });
  },
};

export function take(state, record) {
  const of = TAKE[record.event];
  state.run = record.run || state.run;
  state.time = record.time;
  if (of) of(state, record.data, record);
  state.step = record.event === "run" ? record.data.step : Math.max(record.data.step, state.step ?? 0);
  state.fit = record.fit;
}

// The previews in the order of the slider.
export function history(state) {
  return [...state.previews.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
}
