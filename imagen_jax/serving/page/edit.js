// Editing: an image, what to do with it, and how much is to change, or two ends without an image; of these a job's `edit` is made.

import { imageBlob } from "./api.js";
import { $, announce, el, focusPrompt, show, toast } from "./dom.js";
import { dropDraft, loadDraft, saveDraft } from "./edit_draft.js";
import { SEED_RANGE, asSeed, expectImages, fitHeights, imageSize, maxImages } from "./form.js";
import { beginMask, loadMask, maskAt, painted, setUpMask } from "./mask.js";

const SHOWN_SIDE = 1024; // pixels of a file's image while it is edited, at most
const SAVE_MS = 150;
const WAY_IMAGES = 5; // from one end to the other, unless somebody has asked for others

// what can be done, by the kind of a job's edit: strength at first, where there is one, and what the page says of it
const TASKS = {
  inpaint: { strength: 1, about: "Paint over what should change. All else stays as it is." },
  image_to_image: { strength: 0.6, about: "All of the image is drawn anew, near to it or far from it." },
  edit: { strength: 0.5, about: "Say what the image shows, and in the prompt the same with another word: the rest is kept." },
  variations: { strength: 0.5, about: "Images like it. The prompt may be empty.", isPromptOptional: true },
  outpaint: { about: "Draws what is around the image. The prompt says what all of it shows." },
  upscale: { about: "More pixels of the same. The prompt may be empty.", isPromptOptional: true },
  interpolate: { about: "Images on the way from one to the other, in order; both ends are among them. No image is needed.", isWithoutImage: true },
};
const ENDS = { prompts: ["edit-first-prompt", "edit-last-prompt"], seeds: ["edit-first-seed", "edit-last-seed"] };
// where the canvas grows: [before the image, after it] in x and in y, as shares of what is added
const SIDES = {
  around: { x: [0.5, 0.5], y: [0.5, 0.5] }, sides: { x: [0.5, 0.5] }, ends: { y: [0.5, 0.5] },
  left: { x: [1, 0] }, right: { x: [0, 1] }, above: { y: [1, 0] }, below: { y: [0, 1] },
};

let source = null; // {url, width, height} of an image of the server, or {bitmap, file, width, height} of a file; {} for none
let strengths = {}; // of tasks, that somebody has chosen
let shownUrl = null; // of the file that is shown
let stages = [];
let maxSide = Infinity;
let saving = null;

/** An edit that cannot be sent; `field` is the id of what to mend. */
export class EditError extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

export const isEditing = () => source !== null;
export const isPromptOptional = () => isEditing() && (Boolean(TASKS[task()].isPromptOptional) || !usesPrompt());
export const usesPrompt = () => endsKind() !== "prompts";
/** Returns whether two ends, of a job or as they are typed, are seeds; to the server, two numbers are. */
export const areSeeds = (ends) => ends.every((end) => /^\d+$/.test(end));

const hasImage = () => Boolean(source?.url || source?.bitmap);
/** Returns what the images are between, a key of ENDS; null for other tasks. */
const endsKind = () => (isEditing() && task() === "interpolate" ? $("edit-ends").value : null);
const task = () => document.querySelector("[name=edit-task]:checked").value;

export function setUpEdit() {
  setUpMask((text) => { announce(text); keep(); });
  for (const one of document.querySelectorAll("[name=edit-task]")) one.addEventListener("change", () => { offerPrompt(); showTask(); keep(); });
  $("edit-ends").addEventListener("change", showEnds);
  $("edit-strength").addEventListener("input", () => { strengths[task()] = Number($("edit-strength").value) / 100; showStrength(); });
  for (const id of ["edit-side", "edit-by"]) $(id).addEventListener("change", place);
  $("edit").addEventListener("input", keep);
  $("edit-close").onclick = () => { close(); focusPrompt(); };
  for (const name of ["width", "height"]) $(name).addEventListener("change", () => { if (source?.bitmap) { resize(); keep(); } });
}

/** Fits the tasks to a cascade, from GET /v1/cascade. */
export function setCascade(description) {
  stages = description.stages;
  maxSide = description.limits?.max_side ?? Infinity;
  show(document.querySelector("[name=edit-task][value=upscale]").closest("label"), stages.length > 1);
  show(document.querySelector("[name=edit-task][value=interpolate]").closest("label"), maxImages() > 1);
  showEnds();
  const longest = description.limits?.max_prompt_length;
  if (longest) for (const id of ENDS.prompts) $(id).maxLength = longest;
}

/** Begins to edit an image of the server, {url}; `given` says how, as a job's edit does, and how large its results are. */
export async function open(image, given = {}) {
  begin({ url: image.url });
  $("edit-source").value = given.source_prompt ?? image.prompt ?? "";
  choose(given.kind in TASKS ? given.kind : "inpaint");
  $("edit-image").src = image.url;
  if (!(await measure())) return;
  if (given.mask) await loadMask(given.mask);
  if (given.strength && TASKS[task()].strength) strengths[task()] = Math.max(...given.strength);
  if (given.kind === "outpaint") chooseSide(given.position, image);
  showTask();
  reveal();
  keep();
}

/** Begins to edit an image file, cropped to the size of the images to come. Raises if it is not an image. */
export async function openFile(file) {
  begin(await asBitmap(file));
  $("edit-source").value = "";
  if (TASKS[task()].isWithoutImage) choose("inpaint");
  resize();
  showTask();
  reveal();
  keep();
}

/** Begins with images between two ends: those of a job, or none yet. It needs no image, and leaves one that is edited. */
export function openEnds(ends = null) {
  if (!isEditing()) begin({});
  choose("interpolate");
  if (ends) fillEnds(ends);
  offerPrompt();
  showTask();
  reveal();
  keep();
}

function fillEnds(ends) {
  $("edit-ends").value = areSeeds(ends) ? "seeds" : "prompts";
  ENDS[$("edit-ends").value].forEach((id, i) => { $(id).value = ends[i]; });
}

/** Takes the prompt for the first of two, if nothing is there. */
function offerPrompt() {
  if (endsKind()) $("edit-first-prompt").value ||= $("prompt").value.trim();
}

async function asBitmap(file) {
  try {
    return { bitmap: await createImageBitmap(file), file };
  } catch {
    throw new Error("This is not an image that the browser can open.");
  }
}

function begin(given) {
  source?.bitmap?.close();
  source = given;
  strengths = {};
  show($("edit"), true);
}

/** Takes the size of the image that is shown. Returns false if another one was opened meanwhile. */
async function measure() {
  const mine = source;
  await $("edit-image").decode();
  if (source !== mine) return false;
  Object.assign(source, { width: $("edit-image").naturalWidth, height: $("edit-image").naturalHeight });
  beginMask(source);
  return true;
}

function reveal() {
  $("edit-title").focus({ preventScroll: true });
  $("edit").scrollIntoView({ block: "nearest", behavior: "smooth" });
  announce(`${hasImage() ? "Editing an image" : $("edit-title").textContent}. ${TASKS[task()].about}`);
}

export function close() {
  source?.bitmap?.close();
  source = null;
  show($("edit"), false);
  $("edit-image").removeAttribute("src");
  for (const id of ["edit-source", ...ENDS.prompts, ...ENDS.seeds]) $(id).value = "";
  showEnds();
  setShown(null);
  clearTimeout(saving);
  dropDraft();
}

function setShown(blob) {
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = blob ? URL.createObjectURL(blob) : null;
  if (shownUrl) $("edit-image").src = shownUrl;
}

// ---- tasks

function choose(kind) {
  document.querySelector(`[name=edit-task][value=${kind}]`).checked = true;
}

function showTask() {
  const { strength, about, isWithoutImage } = TASKS[task()];
  $("edit-title").textContent = hasImage() ? "Edit this image" : "Images between two";
  $("edit-about").textContent = about;
  show($("edit-tasks"), hasImage());
  show($("edit-picture-field"), !isWithoutImage);
  show($("edit-paint"), task() === "inpaint");
  for (const id of ["edit-mask", "edit-painted", "edit-hint"]) show($(id), task() === "inpaint");
  show($("edit-source-field"), task() === "edit");
  show($("edit-canvas-field"), task() === "outpaint");
  show($("edit-strength-field"), Boolean(strength));
  if (strength) $("edit-strength").value = Math.round(100 * (strengths[task()] ?? strength));
  showStrength();
  showEnds();
  showSource();
  place();
}

/** Shows the ends, and of the form what they leave open: the prompt of seeds, the seed of prompts. */
function showEnds() {
  const ends = endsKind();
  show($("edit-ends-field"), ends !== null);
  for (const kind of Object.keys(ENDS)) show($(`edit-ends-${kind}`), ends === kind);
  show($("edit-between"), !isEditing() && maxImages() > 1);
  show($("prompt-field"), ends !== "prompts");
  show($("seed-field"), ends !== "seeds");
  fitHeights();
  expectImages(ends === null ? 1 : 2, WAY_IMAGES);
}

function showStrength() {
  const { value } = $("edit-strength");
  $("edit-strength-value").textContent = `${value}%`;
  $("edit-strength").setAttribute("aria-valuetext", `${value}%`);
}

/** Fits a file to the size of the images to come. */
function resize() {
  const { width, height } = imageSize();
  if (source.width === width && source.height === height) return;
  Object.assign(source, { width, height });
  beginMask(source);
  showSource();
  place();
}

/** Returns the size at which the image is used: a file that is enlarged has its own, within what the server takes. */
function usedSize() {
  const { bitmap, width, height } = source;
  if (!bitmap || task() !== "upscale") return { width, height };
  const scale = Math.min(1, maxSide / factor(bitmap) / Math.max(bitmap.width, bitmap.height));
  return { width: Math.max(1, Math.floor(bitmap.width * scale)), height: Math.max(1, Math.floor(bitmap.height * scale)) };
}

/** Returns how many times as many pixels a side of an enlarged image has. */
function factor({ width, height }) {
  const last = stages.at(-1);
  const exact = stages.slice(0, -1).find((stage) => stage.width === width && stage.height === height);
  return Math.round(last.width / (exact ?? stages.at(-2) ?? last).width);
}

function showSource() {
  if (!source?.bitmap) return;
  const { width, height } = usedSize();
  const scale = Math.min(1, SHOWN_SIDE / Math.max(width, height));
  const mine = source;
  cropped(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)))
    .toBlob((blob) => { if (source === mine) setShown(blob); });
}

/** Returns the middle of the file's image at a size, as a canvas. */
function cropped(width, height) {
  const { bitmap } = source;
  const canvas = el("canvas", { width, height });
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // below transparent areas
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  return canvas;
}

// ---- the canvas of what is around an image

/** Returns the canvas, {width, height, left, top}, and where the image is on it. */
function onCanvas() {
  const { width, height } = usedSize();
  if (task() !== "outpaint") return { width, height, left: 0, top: 0 };
  const side = SIDES[$("edit-side").value];
  const by = Number($("edit-by").value);
  const [dx, dy] = [side.x ? Math.round(width * by) : 0, side.y ? Math.round(height * by) : 0];
  return {
    width: width + dx, height: height + dy,
    left: Math.floor(dx * (side.x?.[0] ?? 0)), top: Math.floor(dy * (side.y?.[0] ?? 0)),
  };
}

/** Shows the image on its canvas, and how large the result is. */
function place() {
  if (!source?.width) return;
  const all = onCanvas();
  const { width, height } = usedSize();
  const share = (part, whole) => `${(100 * part) / whole}%`;
  $("edit-picture").style.aspectRatio = `${all.width} / ${all.height}`;
  $("edit-picture").classList.toggle("on-canvas", task() === "outpaint");
  Object.assign($("edit-image").style, {
    left: share(all.left, all.width), top: share(all.top, all.height),
    width: share(width, all.width), height: share(height, all.height),
  });
  const times = task() === "upscale" ? factor({ width, height }) : 1;
  show($("edit-result"), ["outpaint", "upscale"].includes(task()));
  $("edit-result").textContent = `From ${width}×${height} to ${all.width * times}×${all.height * times} pixels.`;
}

/** Chooses the side and the size of a canvas for an image at a position on it. */
function chooseSide(position, result) {
  const [dx, dy] = [result.width - source.width, result.height - source.height];
  const [top, left] = position ?? [dy / 2, dx / 2];
  const kind = (start, added, names) => (added <= 0 ? null : start === 0 ? names[2] : start === added ? names[0] : names[1]);
  const [x, y] = [kind(left, dx, ["left", "sides", "right"]), kind(top, dy, ["above", "ends", "below"])];
  $("edit-side").value = x && y ? "around" : (x ?? y ?? "around");
  const by = Math.max(dx / source.width, dy / source.height);
  const nearest = [...$("edit-by").options].sort((a, b) => Math.abs(a.value - by) - Math.abs(b.value - by))[0];
  $("edit-by").value = nearest.value;
}

// ---- what is sent

/** Returns what a job's request is changed by: its `edit`, and its size where that has its own. Raises EditError. */
export function read(prompt) {
  const kind = task();
  if (endsKind()) return { edit: { kind, ends: readEnds(endsKind()) } };
  if (!source.width) throw new EditError("The image is being loaded: try again.", "edit-tasks");
  const { width, height } = usedSize();
  const edit = { kind, image: source.bitmap ? base64(cropped(width, height)) : source.url };
  if (TASKS[kind].strength) edit.strength = Number($("edit-strength").value) / 100;
  if (kind === "inpaint") edit.mask = readMask();
  if (kind === "edit") edit.source_prompt = readSource(prompt);
  if (kind === "upscale") return { edit, width: null, height: null };
  if (kind !== "outpaint") return { edit };
  const all = onCanvas();
  return { edit: { ...edit, position: [all.top, all.left] }, width: all.width, height: all.height };
}

function readMask() {
  if (!painted()) throw new EditError("Paint over what should change, or choose to change all of it.", "edit-mask");
  const { canvas: mask, isFull } = maskAt(source);
  if (isFull) throw new EditError("All of the image is painted: leave something as it is, or clear the mask.", "edit-mask");
  return base64(mask);
}

function readSource(prompt) {
  const text = $("edit-source").value.trim();
  if (!text) throw new EditError("Say what the image shows now.", "edit-source");
  if (text === prompt) throw new EditError("Both texts are the same: change a word of the prompt.", "prompt");
  return text;
}

function readEnds(kind) {
  const ids = ENDS[kind];
  const ends = ids.map(kind === "seeds" ? readSeed : readEndPrompt);
  if (kind === "prompts" && areSeeds(ends)) {
    throw new EditError("Two numbers are seeds: choose two seeds, or say in words what an end shows.", ids[0]);
  }
  if (ends[0] === ends[1]) throw new EditError("Both ends are the same: change one of them.", ids[1]);
  return ends;
}

function readSeed(id) {
  const seed = asSeed($(id).value.trim());
  if (seed === null) throw new EditError(`Give a seed at each end: ${SEED_RANGE}.`, id);
  return seed;
}

function readEndPrompt(id, index) {
  const text = $(id).value.trim();
  if (!text) throw new EditError(`Say what the ${["first", "last"][index]} image should show.`, id);
  return text;
}

const base64 = (picture) => picture.toDataURL("image/png").split(",")[1];

// ---- it survives a reload

/** Keeps the edit soon: what is painted and typed in a short time is kept once. */
function keep() {
  clearTimeout(saving);
  saving = setTimeout(() => {
    if (!source || (hasImage() && !source.width)) return;
    const { url, file, width, height } = source;
    saveDraft({
      url, file, width, height, task: task(), strengths, mask: hasImage() && painted() ? maskAt($("edit-mask")).canvas.toDataURL() : null,
      fields: Object.fromEntries(FIELDS.map((id) => [id, $(id).value])),
    });
  }, SAVE_MS);
}

const FIELDS = ["edit-source", "edit-side", "edit-by", "edit-size", "edit-ends", ...ENDS.prompts, ...ENDS.seeds];

/** Brings back the edit that was there before a reload. */
export async function restore() {
  const draft = isEditing() ? null : await loadDraft();
  if (!draft || isEditing()) return;
  try {
    const { file, url } = draft; // neither where no image is edited
    const given = file ? await asBitmap(file) : url ? { url } : {};
    const shown = given.url ? await imageBlob({ url: url.split("?")[0] }) : null; // its signature may have expired
    if (isEditing()) return;
    begin(given);
    choose(draft.task);
    for (const [id, value] of Object.entries(draft.fields)) $(id).value = value;
    strengths = draft.strengths;
    if (shown) setShown(shown);
    else if (file) resize();
    if (shown && !(await measure())) return;
    if (draft.mask) await loadMask(draft.mask);
    showTask();
  } catch (error) {
    close();
    toast(`The image that was edited is gone: ${error.message}`, { error: true });
  }
}
