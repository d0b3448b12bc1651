// What is being learned and was learned: a card for each, with its progress, losses and samples, followed by events.

import {
  ApiError, ConnectionError, connection, continueFinetuning, deleteFinetuning, finetuningEvents, hasToken, imageBlob, listFinetunings, reachable,
  stopFinetuning,
} from "./api.js";
import { $, announce, confirmed, duration, el, icon, plural, show, toast } from "./dom.js";
import { setAdapters } from "./lora.js";

const REFRESH_MS = 10_000; // others of this server are seen by this
const ENDED = ["done", "stopped", "failed"];
const SMOOTHING = 0.15; // of the newest loss in the running mean
const CURVE = { width: 300, height: 96, margin: 6 };
const SVG = "http://www.w3.org/2000/svg";

const handlers = { use: () => {}, changed: () => {} };
const cards = new Map(); // id → {lesson, card, parts, said}, the newest first
let followed = null; // {id, abort} of the one whose events are read

/** Handlers: use({name, token}), changed(text of what runs). */
export function setUpLessons(given) {
  Object.assign(handlers, given);
}

/** Shows what there is, and follows what runs. */
export async function begin() {
  setInterval(() => { if (!document.hidden && !connection.lost) refresh(); }, REFRESH_MS);
  connection.addEventListener("change", () => { if (!connection.lost) refresh(); });
  addEventListener("pagehide", () => followed?.abort.abort());
  addEventListener("pageshow", (event) => { if (event.persisted) refresh(); });
  await refresh();
}

/** Shows one that was just added, and follows it. */
export function add(lesson) {
  update(lesson);
  announce(`Started. ${stateText(lesson)}`);
  cards.get(lesson.id).card.scrollIntoView({ block: "nearest", behavior: "smooth" });
  cards.get(lesson.id).card.focus({ preventScroll: true });
  follow();
}

async function refresh() {
  const all = await listFinetunings().catch(() => null); // it is asked for again
  if (!all) return;
  const ids = new Set(all.map(({ id }) => id));
  for (const id of cards.keys()) if (!ids.has(id)) forget(id);
  for (const lesson of all.reverse()) if (lesson.id !== followed?.id) update(lesson);
  setAdapters(all.reverse().filter(({ usable }) => usable).map(({ name }) => name));
  follow();
}

function forget(id) {
  cards.get(id)?.card.remove();
  cards.delete(id);
  if (followed?.id === id) followed.abort.abort();
  tell();
}

// ---- following: what runs, or is next

async function follow() {
  const active = [...cards.values()].map(({ lesson }) => lesson).filter(({ status }) => !ENDED.includes(status));
  const next = active.find(({ status }) => status !== "queued") ?? active.sort((a, b) => a.position - b.position)[0];
  if (!next || followed) return;
  const abort = new AbortController();
  followed = { id: next.id, abort };
  try {
    for await (const { event, data } of finetuningEvents(next.id, abort.signal)) if (event !== "deleted") update(data);
  } catch (error) {
    if (error instanceof ConnectionError) await reachable();
    else if (!abort.signal.aborted && !(error instanceof ApiError && error.status === 404)) await pause(1000 * (error.retryAfter ?? 3));
  }
  followed = null;
  if (abort.signal.aborted) return;
  await pause(300);
  refresh();
}

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// ---- cards

function update(lesson) {
  let entry = cards.get(lesson.id);
  const before = entry?.lesson;
  if (!entry) {
    entry = makeCard(lesson);
    cards.set(lesson.id, entry);
    $("lessons").prepend(entry.card);
  }
  entry.lesson = lesson;
  const { state, left, bar, error } = entry.parts;
  const { progress, status } = lesson;
  entry.card.dataset.status = status;
  state.textContent = stateText(lesson);
  left.textContent = leftText(lesson);
  bar.hidden = ENDED.includes(status);
  if (status === "queued" || progress.phase === "preparing" || isCompiling(lesson)) bar.removeAttribute("value");
  else bar.value = progress.fraction;
  show(error, lesson.error);
  error.textContent = lesson.error ? sentence(lesson.error) : "";
  setButtons(entry);
  showRuns(entry);
  showResult(entry);
  say(entry, before);
  tell();
}

function makeCard(lesson) {
  const parts = {
    state: el("p", { className: "job-state" }), left: el("p", { className: "job-left muted" }),
    bar: el("progress", { max: 1, "aria-label": "Progress" }), error: el("p", { className: "message error", hidden: true }),
    buttons: el("div", { className: "job-buttons" }), curves: el("div", { className: "curves" }),
    preview: el("figure", { hidden: true }, el("img", { alt: "" }), el("figcaption", { className: "hint" })),
    result: el("figure", { hidden: true }, el("img", { alt: `Samples of “${lesson.token}” before and after` }),
      el("figcaption", { className: "hint" }, "The same prompts and noise, before and after.")),
  };
  parts.training = el("div", { className: "lesson-body" }, parts.curves, parts.preview);
  parts.fold = el("details", { className: "fold", hidden: true }, el("summary", {}, "How it went"));
  const images = el("div", { className: "lesson-images" }, ...lesson.images.map((url, i) => el("img", { src: url, alt: `Image ${i + 1} that it learns from`, loading: "lazy" })));
  if (lesson.images.length > 8) Object.assign(images, { tabIndex: 0, role: "group", ariaLabel: "Images that it learns from" });
  const title = el("div", { className: "lesson-title" }, el("h3", { dir: "auto" }, lesson.token),
    lesson.class_name ? el("span", { className: "muted", dir: "auto" }, ` a kind of ${lesson.class_name}`) : null);
  const card = el("article", { className: "job lesson", tabIndex: -1, "aria-label": `Learning: ${lesson.token}` },
    el("div", { className: "job-head" }, title, parts.buttons), images,
    el("div", { className: "job-progress" }, el("div", { className: "job-line" }, parts.state, parts.left), parts.bar),
    parts.error, parts.result, parts.training, parts.fold);
  return { lesson, card, parts, said: -1, curveOf: new Map() };
}

function setButtons(entry) {
  const { lesson, parts } = entry;
  const kind = lesson.status === "done" && lesson.usable ? "usable" : lesson.status;
  if (parts.buttons.dataset.kind === kind) return;
  const focused = parts.buttons.contains(document.activeElement);
  parts.buttons.dataset.kind = kind;
  const button = (name, text, onclick, className = "") => el("button", { type: "button", className, onclick }, icon(name), text);
  const trash = el("button", { type: "button", className: "icon-button", title: "Delete", "aria-label": `Delete ${lesson.name}`,
    onclick: () => remove(entry) }, icon("trash"));
  const download = el("a", { className: "button", href: lesson.adapter ?? "", download: `${lesson.name}.zip`, title: "The adapter, as a ZIP file",
    onclick: (event) => save(event, entry) }, icon("download"), "Download");
  const nodes = {
    queued: [button("stop", "Stop", () => act(entry, stopFinetuning))],
    running: [button("stop", "Stop", () => act(entry, stopFinetuning))],
    stopping: [],
    stopped: [button("play", "Continue", () => act(entry, continueFinetuning)), trash],
    failed: [button("play", "Try again", () => act(entry, continueFinetuning)), trash],
    usable: [button("check", "Use it", () => handlers.use(entry.lesson), "primary"), download, trash],
    done: [download, trash],
  }[kind];
  parts.buttons.replaceChildren(...nodes);
  if (focused) (nodes[0] ?? entry.card).focus();
}

async function act(entry, action) {
  try {
    update(await action(entry.lesson.id));
    follow();
  } catch (error) {
    toast(error.message, { error: true });
    refresh();
  }
}

async function remove(entry) {
  const { id, token } = entry.lesson;
  if (!(await confirmed(`Delete what was learned of “${token}”?`, "Its images and its adapter are deleted. This cannot be undone.", "Delete"))) return;
  try {
    await deleteFinetuning(id);
  } catch (error) {
    if (error.status !== 404) {
      toast(`Not deleted: ${error.message}`, { error: true });
      return;
    }
  }
  forget(id);
  toast("Deleted");
  $("teach-title").focus();
  refresh();
}

async function save(event, { lesson }) {
  if (!hasToken()) return; // the link itself downloads
  event.preventDefault();
  try {
    const url = URL.createObjectURL(await imageBlob({ url: lesson.adapter }));
    el("a", { href: url, download: `${lesson.name}.zip` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    toast(error.message, { error: true });
  }
}

// ---- losses and samples

function showRuns(entry) {
  const { lesson, parts } = entry;
  const { runs, stages } = lesson.progress;
  for (const run of runs) if (run.losses.length > 1) showCurve(entry, run, stages);
  const newest = runs.flatMap((run) => run.previews.map((one) => ({ ...one, stage: run.stage }))).at(-1);
  show(parts.preview, newest);
  const key = newest ? `${newest.stage}/${newest.step}` : "";
  if (key && parts.preview.dataset.key !== key) {
    parts.preview.dataset.key = key;
    const [img, caption] = parts.preview.children;
    img.src = newest.url;
    const words = `${stages > 1 ? `Stage ${newest.stage + 1}, s` : "S"}tep ${newest.step}`;
    img.alt = `Samples: ${words.toLowerCase()}`;
    caption.replaceChildren(el("span", {}, "Samples on the way"), el("span", {}, words));
  }
  show(parts.training, parts.curves.children.length || newest);
}

function showCurve(entry, { stage, step, losses }, stages) {
  let figure = entry.curveOf.get(stage);
  if (!figure) {
    figure = el("figure", {}, el("figcaption", { className: "hint" }));
    figure.prepend(document.createElementNS(SVG, "svg"));
    entry.curveOf.set(stage, figure);
    entry.parts.curves.append(figure);
  }
  if (figure.dataset.points === String(losses.length)) return;
  figure.dataset.points = losses.length;
  const [svg, caption] = figure.children;
  const smooth = smoothed(losses.map(([, loss]) => loss));
  const [first, last] = [smooth[0], smooth.at(-1)].map((loss) => loss.toPrecision(2));
  svg.setAttribute("class", "curve");
  svg.setAttribute("viewBox", `0 0 ${CURVE.width} ${CURVE.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Loss from ${first} to ${last} in ${step} steps`);
  const values = losses.map(([, loss]) => loss);
  svg.replaceChildren(line(losses, values, values, "raw"), line(losses, smooth, values, "smooth"));
  caption.replaceChildren(el("span", {}, stages > 1 ? `Loss of stage ${stage + 1}` : "Loss"), el("span", {}, last));
}

function smoothed(values) {
  let mean = values[0];
  return values.map((value, i) => {
    mean += Math.max(SMOOTHING, 1 / (i + 1)) * (value - mean);
    return mean;
  });
}

/** Returns a line through values at their steps, within the range of all of them. */
function line(losses, values, range, className) {
  const { width, height, margin } = CURVE;
  const [low, high] = [Math.min(...range), Math.max(...range)];
  const [start, end] = [losses[0][0], losses.at(-1)[0]];
  const x = (step) => margin + ((width - 2 * margin) * (step - start)) / Math.max(1, end - start);
  const y = (value) => height - margin - ((height - 2 * margin) * (value - low)) / (high - low || 1);
  const node = document.createElementNS(SVG, "polyline");
  node.setAttribute("class", className);
  node.setAttribute("points", values.map((value, i) => `${x(losses[i][0]).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
  return node;
}

/** Shows samples before and after; the way there is folded away then. */
function showResult({ lesson, parts }) {
  const isDone = lesson.status === "done";
  show(parts.result, isDone && lesson.before_after);
  if (isDone && lesson.before_after && !parts.result.firstChild.src) parts.result.firstChild.src = lesson.before_after;
  if (isDone === parts.fold.contains(parts.training)) return;
  if (isDone) parts.fold.append(parts.training);
  else parts.fold.before(parts.training);
  show(parts.fold, isDone);
}

// ---- words

const isCompiling = ({ progress: { phase, runs } }) => phase === "training" && !runs.at(-1)?.step;

function stateText({ status, position, class_name: kind, progress }) {
  if (status === "queued") return position ? `Waiting, ${plural(position, "other")} first` : "Starting";
  if (status === "stopping") return "Stopping after this step";
  if (status === "failed") return "Failed";
  if (status === "done") return "Learned";
  const where = progress.phase === "training" ? trainingText(progress) : null;
  if (status === "stopped") return where ? `Stopped: ${where}` : "Stopped";
  if (where) return isCompiling({ progress }) ? `${where}, getting ready` : where;
  if (progress.phase === "drawing") return `Drawing what it knows of “${kind}”, ${progress.drawn} of ${progress.prior_images}`;
  return progress.phase === "comparing" || progress.phase === "done" ? "Drawing before and after" : "Getting ready";
}

function trainingText({ runs, stages }) {
  const { stage, step, steps } = runs.at(-1);
  const place = stages > 1 ? `Stage ${stage + 1} of ${stages}` : "Training";
  return step ? `${place}, step ${step} of ${steps}` : place;
}

function leftText({ status, progress: { phase, runs, stages } }) {
  const seconds = status === "running" && phase === "training" ? runs.at(-1)?.eta_seconds : null;
  if (!seconds) return "";
  return `about ${duration(seconds)} left${stages > 1 ? " in this stage" : ""}`;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** Tells screen readers of every quarter of the training, and of the end. */
function say(entry, before) {
  const { lesson } = entry;
  const quarter = lesson.progress.phase === "training" ? Math.floor(lesson.progress.fraction * 4) : entry.said;
  if (before && before.status !== lesson.status && ENDED.includes(lesson.status)) {
    announce(`${lesson.token}: ${stateText(lesson)}. ${lesson.error ?? ""}`);
    if (lesson.status === "done") toast(`“${lesson.token}” is learned`);
  } else if (before && quarter > entry.said && quarter > 0) announce(`${lesson.token}: ${quarter * 25}% learned`);
  entry.said = quarter;
}

/** Tells how far what runs is. */
function tell() {
  const active = [...cards.values()].map(({ lesson }) => lesson).find(({ status }) => ["running", "stopping"].includes(status));
  handlers.changed(active ? `${active.progress.phase === "training" ? Math.floor(active.progress.fraction * 100) : 0}%` : "");
}
