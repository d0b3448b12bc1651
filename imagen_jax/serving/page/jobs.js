// The jobs of this browser: each tab follows them by events until they end and shows them as cards, also after a reload,
// in a tab that is opened later, and after the connection was lost.

import { ApiError, ConnectionError, cancelJob, getJson, jobEvents, reachable, setImage } from "./api.js";
import { $, announce, duration, el, focusPrompt, icon, plural, seedButton, toast } from "./dom.js";

const JOBS_KEY = "imagen-jobs"; // of this tab: its cards
const ACTIVE_KEY = "imagen-active"; // of all tabs: jobs that have not ended
const POLL_MS = 3000; // jobs that wait behind the one whose events are read: browsers allow few connections
const MAX_PAUSE = 5; // seconds, however long the server asks for when it stops: it may be back sooner
const ENDED = ["done", "canceled", "failed"];

const put = new Set(); // ids of cards that were put away
const cards = new Map(); // id → {job, card, previews, parts}, in the order of submission
const handlers = { ended: () => {}, open: () => {}, reuse: () => {} };
let cardsChanged = () => {};
let streamed = null; // {id, abort} of the job whose events are read

/** Returns where an image is between the two ends of its job; null for jobs without. */
export function wayText(job, image) {
  return job.edit?.ends ? `${Math.round((100 * image.index) / (job.images.length - 1))}% of the way` : null;
}

/** Returns what an image shows, in words. */
const altText = (job, image) => [image.prompt, wayText(job, image)].filter(Boolean).join(", ");

export const hasEnded = (job) => ENDED.includes(job.status);

/** Continues what was followed before a reload, or in other tabs. Handlers: ended(job), open(job, index), reuse(job, index). */
export async function setUpJobs(given) {
  Object.assign(handlers, given);
  setInterval(pollWaiting, POLL_MS);
  addEventListener("pagehide", () => streamed?.abort.abort());
  addEventListener("pageshow", (event) => { if (event.persisted) stream(); });
  addEventListener("storage", (event) => { if (event.key === ACTIVE_KEY) resumeAll(activeIds()); });
  await resumeAll([...new Set([...readIds(sessionStorage, JOBS_KEY), ...activeIds()])]);
}

const activeIds = () => readIds(localStorage, ACTIVE_KEY);

function readIds(storage, key) {
  try {
    const ids = JSON.parse(storage.getItem(key));
    return Array.isArray(ids) ? ids : [];
  } catch {
    return []; // written by something else: nothing to continue
  }
}

function setActive(id, active) {
  const others = activeIds().filter((other) => other !== id);
  localStorage.setItem(ACTIVE_KEY, JSON.stringify(active ? [...others, id] : others));
}

async function resumeAll(ids) {
  for (const id of ids) await resume(id);
  stream();
}

async function resume(id) {
  while (!cards.has(id) && !put.has(id)) {
    try {
      const job = await getJson(`v1/jobs/${encodeURIComponent(id)}`);
      if (hasEnded(job)) setActive(id, false);
      if (!cards.has(id)) addCard(job);
    } catch (error) {
      if (error instanceof ConnectionError) {
        await reachable();
        continue;
      }
      if (error.status === 404) setActive(id, false);
      else toast(error.message, { error: true });
      return;
    }
  }
}

/** Follows a job that was just accepted; cards of older ones that have ended make room. */
export function follow(job) {
  for (const [id, entry] of cards) if (hasEnded(entry.job)) dismiss(id);
  if (!hasEnded(job)) setActive(job.id, true);
  if (!cards.has(job.id)) addCard(job);
  announce(`Accepted. ${statusText({ job })}`);
  stream();
}

export const isFollowed = (id) => cards.has(id);
export const anyFollowed = () => cards.size > 0;

/** Calls `action` whenever there are other cards than before. */
export function onCardsChanged(action) {
  cardsChanged = action;
}

/** Takes an ended job's card away. */
export function dismiss(id) {
  put.add(id);
  cards.get(id)?.card.remove();
  cards.delete(id);
  remember();
}

function remember() {
  sessionStorage.setItem(JOBS_KEY, JSON.stringify([...cards.keys()]));
  cardsChanged();
}

// ---- following

async function stream() {
  const next = [...cards.values()].find(({ job }) => !hasEnded(job));
  if (streamed || !next) return;
  const abort = new AbortController();
  streamed = { id: next.job.id, abort };
  try {
    for await (const { event, data } of jobEvents(next.job.id, abort.signal)) apply(next, event, data);
    // a stream may end before its job: the server restarts, or closes streams that are old
    if (!hasEnded(next.job)) await pause(1000);
  } catch (error) {
    if (abort.signal.aborted) { streamed = null; return; }
    await recover(next, error);
  }
  streamed = null;
  stream();
}

async function recover(entry, error) {
  if (error instanceof ConnectionError) await reachable();
  else if (error instanceof ApiError && error.status === 404) {
    update(entry, { ...entry.job, status: "failed", error: "The server does not know this job any more." });
  } else {
    await pause(Math.min(error.retryAfter ?? 3, MAX_PAUSE) * 1000);
  }
}

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function pollWaiting() {
  for (const entry of cards.values()) {
    if (hasEnded(entry.job) || entry.job.id === streamed?.id) continue;
    try {
      update(entry, await getJson(`v1/jobs/${encodeURIComponent(entry.job.id)}`));
    } catch {
      return; // the stream of the first job tells of it
    }
  }
}

function apply(entry, event, data) {
  const job = entry.job;
  if (event === "job" || ENDED.includes(event)) update(entry, data);
  else if (event === "queued") update(entry, { ...job, status: "queued", position: data.position, progress: null });
  else if (event === "step") update(entry, { ...job, status: "running", progress: data });
  else if (event === "preview") data.images.forEach((image) => preview(entry, image));
  else if (event === "image") update(entry, { ...job, images: job.images.map((one) => (one.index === data.index ? data : one)) });
}

// ---- cards

function addCard(job) {
  const parts = {
    state: el("p", { className: "job-state" }),
    left: el("p", { className: "job-left muted" }),
    bar: el("progress", { max: 1, "aria-label": "Progress" }),
    images: el("ul", { className: job.edit?.ends ? "job-images way" : "job-images", "data-count": String(Math.min(job.images.length, 5)) }),
    error: el("p", { className: "message error", hidden: true }),
    buttons: el("div", { className: "job-buttons" }),
  };
  const prompt = el("p", { className: "prompt clamp", dir: "auto", title: job.prompts[0] }, job.prompts[0]);
  if (job.edit) prompt.prepend(el("span", { className: "badge" }, "Edit"), " ");
  const card = el("article", { className: "job", "aria-label": `Job: ${job.prompts[0].slice(0, 80)}` },
    el("div", { className: "job-head" }, prompt, parts.buttons),
    el("div", { className: "job-progress" }, el("div", { className: "job-line" }, parts.state, parts.left), parts.bar),
    parts.error, parts.images);
  const entry = { job, card, parts, cells: new Map(), quarter: 0 };
  cards.set(job.id, entry);
  $("jobs").prepend(card);
  remember();
  update(entry, job, { quiet: true });
}

function update(entry, job, { quiet = false } = {}) {
  const ended = !quiet && hasEnded(job) && !hasEnded(entry.job);
  entry.job = job;
  const { state, left, bar, error, buttons } = entry.parts;
  const fraction = job.status === "done" ? 1 : (job.progress?.fraction ?? 0);
  entry.card.dataset.status = job.status;
  state.textContent = statusText(entry);
  left.textContent = leftText(job);
  if (job.status === "queued") bar.removeAttribute("value");
  else bar.value = fraction;
  bar.hidden = hasEnded(job);
  error.hidden = job.status !== "failed";
  error.textContent = job.error ?? "The job failed.";
  setButtons(entry, buttons);
  for (const image of job.images) cell(entry, image);
  say(entry, ended);
  setTitle();
  if (ended) {
    setActive(job.id, false);
    handlers.ended(job);
  }
}

function setButtons(entry, node) {
  const ended = hasEnded(entry.job);
  if (node.dataset.ended === String(ended)) return;
  const focused = node.contains(document.activeElement);
  node.dataset.ended = String(ended);
  if (ended) {
    const close = el("button", { type: "button", className: "icon-button", "aria-label": "Put this away", title: "Put this away",
      onclick: () => { dismiss(entry.job.id); focusPrompt(); } }, icon("close"));
    const reuse = el("button", { type: "button", onclick: () => handlers.reuse(entry.job, 0) }, icon("reuse"), "Use these settings");
    node.replaceChildren(reuse, close);
  } else {
    node.replaceChildren(el("button", { type: "button", onclick: () => cancel(entry) }, "Cancel"));
  }
  if (focused) node.firstChild.focus();
}

async function cancel(entry) {
  if (entry.canceling) return;
  entry.canceling = true; // the server stops after the steps that run
  entry.parts.state.textContent = statusText(entry);
  try {
    update(entry, await cancelJob(entry.job.id));
  } catch (error) {
    if (error.status !== 409) toast(`Not canceled: ${error.message}`, { error: true }); // 409: it has just ended
    entry.canceling = false;
  }
}

/** Returns an image's cell of a card, and fills it in when the image is there. */
function cell(entry, image) {
  let found = entry.cells.get(image.index);
  if (!found) {
    const img = el("img", { alt: `Preview of: ${altText(entry.job, image)}`, hidden: true });
    const button = el("button", { type: "button", className: "picture", disabled: true,
      onclick: () => handlers.open(entry.job, image.index) }, img);
    button.style.aspectRatio = `${image.width ?? 1} / ${image.height ?? 1}`;
    const way = wayText(entry.job, image);
    const item = el("li", {}, button, way && el("span", { className: "hint", "aria-hidden": "true" }, way.split(" ")[0]));
    found = { img, button, item, url: null };
    entry.cells.set(image.index, found);
    entry.parts.images.append(item);
  }
  if (image.url && found.url !== image.url) {
    Object.assign(found, { url: image.url });
    found.img.alt = altText(entry.job, image);
    setImage(found.img, entry.job.id, image);
    found.img.hidden = false;
    found.button.disabled = false;
    if (image.flagged) found.button.title = "Black, as the safety checker has flagged it";
    if (!entry.job.edit?.ends) found.item.append(seedButton(image.seed));
  }
  if (hasEnded(entry.job) && !image.url) found.item.classList.add("never");
  return found;
}

function preview(entry, { index, png }) {
  const { img, url } = entry.cells.get(index) ?? {};
  if (!img || url) return;
  img.src = `data:image/png;base64,${png}`;
  img.hidden = false;
}

// ---- words

function statusText({ job, canceling = false }) {
  if (canceling && !hasEnded(job)) return "Canceling";
  if (job.status === "queued") {
    if (!job.position) return "Next in the queue";
    return `Queued, ${plural(job.position, "job")} ahead`;
  }
  if (job.status === "running") {
    if (!job.progress) return "Starting";
    const { stage, stages, step, steps } = job.progress;
    return `${stages > 1 ? `Stage ${stage + 1} of ${stages}, s` : "S"}tep ${step} of ${steps}`;
  }
  if (job.status === "canceled") return "Canceled";
  if (job.status === "failed") return "Failed";
  const seconds = job.finished && job.started ? ` in ${duration(job.finished - job.started)}` : "";
  return `${plural(job.images.length, "image")}${seconds}`;
}

function leftText(job) {
  const seconds = job.status === "running" ? job.progress?.eta_seconds : null;
  return seconds == null ? "" : `about ${duration(seconds)} left`;
}

/** Tells screen readers of every quarter, not of every step. */
function say(entry, ended) {
  const { job } = entry;
  const quarter = Math.floor((job.progress?.fraction ?? 0) * 4);
  if (ended) announce(job.status === "failed" ? `Failed: ${job.error ?? ""}` : `${job.status === "done" ? "Done: " : ""}${statusText(entry)}`);
  else if (job.status === "running" && quarter > entry.quarter) announce(`${quarter * 25}% done. ${leftText(job)}`);
  entry.quarter = quarter;
}

function setTitle() {
  const active = [...cards.values()].find(({ job }) => !hasEnded(job));
  const percent = active?.job.progress ? `${Math.floor(active.job.progress.fraction * 100)}% · ` : "";
  document.title = `${active ? percent || "Waiting · " : ""}Imagen`;
}
