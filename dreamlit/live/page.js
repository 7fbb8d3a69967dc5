// The page: takes the server's events, and shows what is known of the run.

import { chart, short } from "./curves.js";
import { samplerSteps, show } from "./pictures.js";
import { empty, history, take } from "./run.js";

const at = (id) => document.getElementById(id);
const STAGES = { started: "running", finished: "finished", interrupted: "interrupted", failed: "failed" };
const LOSSES = { loss: ["loss", 0], "loss/instance": ["instance", 1], "loss/prior": ["prior", 2], "loss/class": ["class prompts", 5], "loss/val": ["held-out photos", 3], "loss/val-ema": ["held-out, average", 4] };
const MODELS = { base: ["base model", 2, true], adapter: ["trained", 0], ema: ["average", 4], photos: ["photos", 3, true] };

let state = empty(), about = { run: "", events: true, notes: [] }, losses = { loss: {} };
let lastId = "", live = false, closed = false, chosen = null, sampler = null, planned = false;

// words ---------------------------------------------------------------------------------------------------------------

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.round((seconds % 3600) / 60)} min` : `${Math.round(hours / 24)} days`;
}

function clock(time) {
  const moment = new Date(time);
  return Number.isNaN(moment.getTime()) ? "" : moment.toLocaleString([], { dateStyle: "short", timeStyle: "medium" });
}

function fill(list, texts) {
  list.replaceChildren(...texts.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

// parts of the page ---------------------------------------------------------------------------------------------------

function drawHead() {
  const name = about.run || state.run || "dreamlit";
  at("run").textContent = name;
  const share = state.of ? Math.min(1, (state.step ?? 0) / state.of) : null;
  document.title = share === null ? name : `${Math.floor(share * 100)}% ${name}`;
  const stage = at("stage"), word = STAGES[state.stage] || (about.events ? "not begun" : "state unknown");
  if (stage.textContent !== word) stage.textContent = word;
  stage.dataset.stage = state.stage || "";
  const notes = [...about.notes];
  if (state.broken) notes.push(`${state.broken} ${state.broken === 1 ? "line" : "lines"} of events.jsonl could not be read and were left out.`);
  if (closed) notes.push(`The program that served this page has ended. To look again: dreamlit watch ${name}`);
  at("notes").hidden = !notes.length;
  fill(at("notes").firstElementChild, notes);
}

function drawProgress() {
  const bar = at("progress"), running = state.stage === "started" || !about.events;
  if (state.of) Object.assign(bar, { max: state.of, value: Math.min(state.step ?? 0, state.of) });
  else if (running && state.step) bar.removeAttribute("value");
  else bar.value = 0;
  const facts = [["Step", state.step === null ? "none yet" : state.of ? `${state.step} of ${state.of}` : String(state.step)]];
  if (state.loss !== null) facts.push(["Loss", short(state.loss)]);
  if (state.speed) facts.push(["Speed", state.speed >= 1 ? `${short(state.speed)} steps/s` : `${short(1 / state.speed)} s/step`]);
  if (running && state.left !== null) facts.push(["Time left", state.left < 1 ? "moments" : duration(state.left)]);
  if (state.time) facts.push(["Last news", clock(state.time)]);
  const parts = facts.map(([name, text]) => {
    const box = document.createElement("div");
    box.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: text }));
    return box;
  });
  at("facts").replaceChildren(...parts);
}

function drawPreviews() {
  const all = history(state);
  at("previews-none").hidden = all.length > 0;
  at("previews-controls").hidden = at("pictures").hidden = !all.length;
  if (!all.length) {
    at("making-controls").hidden = true;
    return;
  }
  const found = all.findIndex((one) => one.key === chosen), number = found < 0 ? all.length - 1 : found, entry = all[number];
  const slider = at("history");
  slider.max = all.length - 1;
  slider.value = number;
  const making = !entry.images.length;
  const text = `step ${entry.step}${entry.source === "report" ? ", report" : ""}${making ? `, in the making (${entry.at} of ${entry.of})` : ""}`;
  at("history-text").textContent = `${text} (${number + 1} of ${all.length})`;
  slider.setAttribute("aria-valuetext", text);
  at("newest").disabled = found < 0;
  drawSampler(entry, making);
  show(at("pictures"), entry, samplerAt(entry, making));
}

// The slider's last position is the finished picture, or while there is none the newest on the way.
function samplerAt(entry, making) {
  const steps = samplerSteps(entry);
  return sampler === null || sampler >= steps.length - (making ? 1 : 0) ? Infinity : steps[sampler];
}

function drawSampler(entry, making) {
  const steps = samplerSteps(entry), slider = at("sampler"), positions = steps.length + (making ? 0 : 1);
  at("making-controls").hidden = !steps.length;
  if (!steps.length) return;
  slider.max = positions - 1;
  slider.value = sampler === null ? positions - 1 : Math.min(sampler, positions - 1);
  const on = samplerAt(entry, making), text = on === Infinity ? (making ? `newest, ${steps.at(-1)} of ${entry.of}` : "finished") : `${on} of ${entry.of}`;
  at("sampler-text").textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

function drawCurves() {
  const smooth = Number(at("smooth").value), log = at("log").checked;
  at("smooth-text").textContent = smooth ? smooth.toFixed(2) : "off";
  const drawn = [];
  const of = Object.entries(LOSSES).filter(([name]) => losses.loss[name]?.length);
  const series = of.map(([name, [label, colour]]) => ({ label, colour, points: losses.loss[name] }));
  drawn.push(chart("Loss", series.filter(({ points }) => points.length), { log, smooth }));
  for (const [name, models] of Object.entries(state.scores).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const lines = Object.entries(models).filter(([model, points]) => MODELS[model] && points.length);
    const curves = lines.map(([model, points]) => ({ label: MODELS[model][0], colour: MODELS[model][1], dashed: MODELS[model][2], points: [...points].sort((a, b) => a[0] - b[0]) }));
    drawn.push(chart(name.replaceAll("_", " "), curves));
  }
  at("curves").replaceChildren(...drawn.filter(Boolean));
  const notes = losses.source ? [`From ${losses.source}`] : [];
  if (losses.rows_per_point > 1) notes.push(`each point is the mean of ${losses.rows_per_point} logged rows`);
  at("curves-note").textContent = notes.length ? `${notes.join("; ")}.` : "No numbers have been logged yet.";
}

function drawLists() {
  const items = state.messages.slice(-200).reverse().map((one) => {
    const item = document.createElement("li"), level = document.createElement("strong");
    item.className = one.level;
    level.textContent = one.level === "error" ? "Error" : "Warning";
    item.append(level, ` at step ${one.step}, ${clock(one.time)}: ${one.text}`);
    return item;
  });
  at("messages").replaceChildren(...items);
  if (!items.length) fill(at("messages"), [about.events ? "None." : "Not known without events.jsonl."]);
  const saved = [...state.checkpoints].sort((a, b) => b.step - a.step);
  fill(at("checkpoints"), saved.length ? saved.map((one) => `step ${one.step}${one.final ? ", the last" : ""}: ${[one.path, ...(one.adapters || [])].join(", ")}`) : ["None yet."]);
}

// drawing when something has changed ----------------------------------------------------------------------------------

const PARTS = { head: drawHead, progress: drawProgress, previews: drawPreviews, curves: drawCurves, lists: drawLists };
const OF = { images: "previews", preview: "previews", scores: "curves", warning: "lists", error: "lists", checkpoint: "lists" };
const dirty = new Set();
let waiting = false;

function draw(...parts) {
  for (const part of parts) dirty.add(part);
  if (waiting || !live) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    const now = [...dirty];
    dirty.clear();
    for (const part of now) PARTS[part]();
  }, 60);
}

// the server ----------------------------------------------------------------------------------------------------------

async function load(path) {
  const answer = await fetch(path).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

async function loadTexts() {
  const texts = await load("/api/texts");
  if (!texts) return;
  planned = Boolean(texts.config);
  if (texts.config) at("config").textContent = texts.config;
  if (texts.plan) at("plan").textContent = texts.plan;
}

const HEAR = {
  reset() {
    state = empty();
    lastId = "";
    draw(...Object.keys(PARTS));
  },
  record(record) {
    try {
      take(state, record);
    } catch {
      state.broken += 1; // it is JSON, and still not what docs/events.md says
    }
    draw("head", "progress", OF[record.event] || "head");
    if (record.event === "run") draw("lists", "previews", "curves");
  },
  about(found) {
    about = found;
    draw("head", "lists");
    if (!planned) loadTexts();
  },
  broken({ lines }) {
    state.broken += lines;
    draw("head");
  },
  live() {
    live = true;
    draw(...Object.keys(PARTS));
  },
  async curves() {
    losses = (await load("/api/curves")) || losses;
    draw("curves");
  },
  closed() {
    closed = true;
    for (const image of document.images) image.loading = "eager"; // the server answers for a moment only
    draw("head");
  },
};

function connect() {
  const source = new EventSource(`/api/events?after=${lastId}`);
  const say = (text) => (at("connection").textContent = text);
  source.onopen = () => {
    closed = false;
    say("connected");
  };
  source.onerror = () => {
    say(closed ? "ended" : "no connection; trying again");
    if (source.readyState === EventSource.CLOSED && !closed) setTimeout(connect, 5000);
  };
  for (const [name, hear] of Object.entries(HEAR)) {
    source.addEventListener(name, (event) => {
      if (event.lastEventId) lastId = event.lastEventId;
      hear(JSON.parse(event.data));
      if (name === "closed") {
        source.close();
        say("ended");
      }
    });
  }
}

at("history").addEventListener("input", (event) => {
  const all = history(state), number = Number(event.target.value);
  chosen = number >= all.length - 1 ? null : all[number].key;
  sampler = null;
  draw("previews");
});
at("newest").addEventListener("click", () => {
  chosen = sampler = null;
  draw("previews");
});
at("sampler").addEventListener("input", (event) => {
  const slider = event.target;
  sampler = Number(slider.value) >= Number(slider.max) ? null : Number(slider.value);
  draw("previews");
});
for (const id of ["log", "smooth"]) at(id).addEventListener("input", () => draw("curves"));

// The server has given a cookie for the token: it need not stay in the address bar and in the history.
if (location.search) window.history.replaceState(null, "", location.pathname);
connect();
