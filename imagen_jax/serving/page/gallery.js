// The history: pages of jobs, newest first, with a search; the tiles of their images, and which are selected.

import { connection, getJson, setImage } from "./api.js";
import { $, announce, dateTime, el, icon, plural, show, toast } from "./dom.js";
import { anyFollowed, hasEnded, isFollowed, onCardsChanged } from "./jobs.js";

const PAGE = 30; // jobs
const REFRESH_MS = 10_000; // other tabs of this browser tell at once; other clients are seen by this
const MAX_SELECTED = 8;

const tabs = new BroadcastChannel("imagen-history");
const handlers = { open: () => {}, compare: () => {} };
const tiles = new Map(); // key of an image → its tile
const selected = new Map(); // key → {job, image}

let jobs = [];
let next = null;
let query = "";
let loading = null;
let generation = 0; // of the search: answers to an older one are dropped
let examples = [];

export const keyOf = (job, image) => `${job.id}/${image.index}`;

export async function setUpGallery(given) {
  Object.assign(handlers, given);
  onCardsChanged(render);
  let timer = null;
  $("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 200);
  });
  $("more").onclick = more;
  new IntersectionObserver((entries) => { if (entries.some((one) => one.isIntersecting)) more(); }, { rootMargin: "400px" })
    .observe($("more"));
  tabs.onmessage = refresh;
  setInterval(() => { if (!document.hidden && !connection.lost) refresh(); }, REFRESH_MS);
  connection.addEventListener("change", () => { if (!connection.lost) refresh(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  $("selection-compare").onclick = () => handlers.compare([...selected.values()]);
  $("selection-clear").onclick = clearSelection;
  await refresh();
}

export function setExamples(prompts) {
  examples = prompts ?? [];
  if (examples.length) $("empty-text").textContent = "Describe an image, or begin with one of these.";
  $("examples").replaceChildren(...examples.map((prompt) => el("li", {},
    el("button", { type: "button", className: "chip", onclick: () => handlers.example(prompt) }, prompt))));
}

/** Fetches the newest page again, here and in the other tabs. */
export function historyChanged() {
  tabs.postMessage("changed");
  return refresh();
}

async function search() {
  if ($("search").value.trim() === query) return;
  query = $("search").value.trim();
  jobs = [];
  next = null;
  generation += 1;
  loading = null;
  await refresh();
  announce(jobs.length ? `${plural(jobs.length, "job")} found${next ? ", and more" : ""}` : "Nothing found");
}

const address = (before) => {
  const parameters = new URLSearchParams({ limit: PAGE });
  if (query) parameters.set("query", query);
  if (before) parameters.set("before", before);
  return `v1/history?${parameters}`;
};

async function refresh() {
  const mine = generation;
  const page = await getJson(address(null)).catch(() => null); // it is asked for again when the server is back
  if (!page) return;
  if (mine !== generation) return;
  const ids = new Set(page.jobs.map((job) => job.id));
  const oldest = page.jobs.at(-1)?.created ?? -Infinity;
  // beyond the newest page, what has been fetched stays; within it, what is missing has been deleted
  const older = page.next === null ? [] : jobs.filter((job) => !ids.has(job.id) && job.created < oldest);
  if (!older.length) next = page.next;
  jobs = [...page.jobs, ...older];
  render();
}

async function more() {
  if (next === null || loading) return;
  const mine = generation;
  loading = getJson(address(next));
  try {
    const page = await loading;
    if (mine !== generation) return;
    const known = new Set(jobs.map((job) => job.id));
    jobs.push(...page.jobs.filter((job) => !known.has(job.id)));
    next = page.next;
    render();
  } catch (error) {
    toast(`No more of the history: ${error.message}`, { error: true });
  } finally {
    if (mine === generation) loading = null;
  }
}

// ---- tiles

/** Returns what the gallery shows: images, and jobs that have none, in order. */
function entries() {
  return jobs.flatMap((job) => {
    const images = job.images.filter((image) => image.url);
    if (images.length) return images.map((image) => ({ job, image }));
    return !hasEnded(job) && isFollowed(job.id) ? [] : [{ job, image: null }];
  });
}

/** Returns the images that can be looked at, in order. */
export const pictures = () => entries().filter(({ image }) => image);

function render() {
  const shown = entries();
  const keys = new Set();
  const nodes = shown.map(({ job, image }) => {
    const key = image ? keyOf(job, image) : `${job.id}/${job.status}`;
    keys.add(key);
    if (!tiles.has(key)) tiles.set(key, image ? imageTile(job, image, key) : textTile(job));
    return tiles.get(key);
  });
  for (const key of tiles.keys()) if (!keys.has(key)) tiles.delete(key);
  place($("gallery"), nodes);
  show($("more"), next !== null);
  show($("empty"), !shown.length && !query && !anyFollowed());
  show($("history"), shown.length || query || !anyFollowed());
  show($("no-match"), !shown.length && query);
  $("no-match").textContent = `No prompt has “${query}” in it.`;
  show($("search").parentElement, shown.length || query);
}

/** Puts nodes into a list, moving only those that are not in place: focus and scrolling stay. */
function place(list, nodes) {
  const keep = new Set(nodes);
  for (const child of [...list.children]) if (!keep.has(child)) child.remove();
  nodes.forEach((node, i) => { if (list.children[i] !== node) list.insertBefore(node, list.children[i] ?? null); });
}

function imageTile(job, image, key) {
  const img = el("img", { alt: image.prompt, loading: "lazy", decoding: "async", width: image.width, height: image.height });
  setImage(img, job.id, image);
  const open = el("button", { type: "button", className: "picture", title: `${image.prompt.slice(0, 300)}\n${dateTime(job.created)}`,
    onclick: () => handlers.open(key) }, img);
  const box = el("input", { type: "checkbox", checked: selected.has(key), "aria-label": `Select to compare: ${image.prompt.slice(0, 80)}`,
    onchange: () => { if (!select(job, image, box.checked)) box.checked = false; } });
  return el("li", { className: "tile", "data-key": key }, open, el("label", { className: "select", title: "Select to compare" }, box, icon("check")),
    el("p", { className: "caption", dir: "auto", "aria-hidden": "true" }, image.prompt));
}

const STATUS = { queued: "Queued", running: "In progress", canceled: "Canceled", failed: "Failed", done: "No images" };

function textTile(job) {
  const button = el("button", { type: "button", className: "picture text-tile", "data-status": job.status,
    onclick: () => handlers.openJob(job) }, el("strong", {}, STATUS[job.status]), job.error ? el("span", {}, job.error) : null);
  return el("li", { className: "tile" }, button, el("p", { className: "caption", dir: "auto" }, job.prompts[0]));
}

// ---- selection

export const isSelected = (job, image) => selected.has(keyOf(job, image));

/** Selects an image for comparison, or not. Returns whether that was done. */
export function select(job, image, on) {
  const key = keyOf(job, image);
  if (on && selected.size >= MAX_SELECTED) {
    toast(`Up to ${MAX_SELECTED} images can be compared.`);
    return false;
  }
  if (on) selected.set(key, { job, image });
  else selected.delete(key);
  const box = tiles.get(key)?.querySelector("input");
  if (box) box.checked = on;
  showSelection();
  return true;
}

export function deselectJob(id) {
  for (const [key, { job }] of selected) if (job.id === id) selected.delete(key);
  showSelection();
}

function clearSelection() {
  for (const { job, image } of [...selected.values()]) select(job, image, false);
  $("history-title").focus();
}

function showSelection() {
  const count = selected.size;
  show($("selection"), count > 0);
  $("selection-count").textContent = count === 1 ? "1 selected; choose another" : `${count} selected`;
  $("selection-compare").disabled = count < 2;
  document.body.classList.toggle("selecting", count > 0);
}
