// Editing: an image, a mask that is painted over it, and how much is to change; of these a job's `edit` is made.

import { $, announce, el, show } from "./dom.js";
import { imageSize } from "./form.js";

const SIDE = 512; // pixels of the mask's longer side while it is painted
const MAX_UNDO = 30;
const KEY_STEP = 1 / 32; // of the longer side, for each arrow key
const COVERED = 64; // alpha from which on a pixel of the image counts as painted
const [ALL, PART] = [0.6, 1]; // strength that is proposed for all of an image, and for a part of it

let source = null; // {url, width, height} of an image of the server, or {bitmap} of a file
let undo = []; // masks before each stroke
let stroke = null; // the last point of the one that is painted
let cursor = { x: 0.5, y: 0.5 }; // of the keys, as shares of the sides
let isChosen = false; // whether the strength is somebody's own
let shownUrl = null; // of the file that is shown

export const isEditing = () => source !== null;

export function setUpEdit() {
  const mask = $("edit-mask");
  mask.addEventListener("pointerdown", (event) => { if (event.button === 0) begin(event); });
  mask.addEventListener("pointermove", (event) => {
    showBrush(pointOf(event));
    if (stroke) for (const one of event.getCoalescedEvents?.() ?? [event]) paintTo(pointOf(one));
  });
  for (const name of ["pointerup", "pointercancel"]) mask.addEventListener(name, end);
  mask.addEventListener("pointerleave", () => { if (!stroke && document.activeElement !== mask) show($("edit-brush"), false); });
  mask.addEventListener("focus", () => { if (mask.matches(":focus-visible")) showBrush(cursor); });
  mask.addEventListener("blur", () => show($("edit-brush"), false));
  mask.addEventListener("keydown", onKey);
  $("edit").addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); undoStroke(); }
  });
  $("edit-size").addEventListener("input", () => showBrush(cursor));
  $("edit-size").addEventListener("change", () => show($("edit-brush"), false));
  $("edit-erase").onclick = () => $("edit-erase").setAttribute("aria-pressed", String(!isErasing()));
  $("edit-undo").onclick = undoStroke;
  $("edit-clear").onclick = () => change((context) => context.clearRect(0, 0, mask.width, mask.height));
  $("edit-invert").onclick = () => change((context) => fillWith(context, "xor"));
  $("edit-strength").addEventListener("input", () => { isChosen = true; showStrength(); });
  $("edit-close").onclick = () => { close(); $("prompt").focus(); };
  for (const name of ["width", "height"]) $(name).addEventListener("change", () => { if (source?.bitmap) showBitmap(); });
}

/** Begins to edit an image of the server, {url, width, height}, with a mask and a strength if it had them before. */
export async function open(image, { maskUrl = null, strength = null } = {}) {
  begun(image);
  $("edit-image").src = image.url;
  setSize(image.width, image.height);
  if (maskUrl) await loadMask(maskUrl);
  if (strength !== null) setStrength(strength, true);
  reveal();
}

/** Begins to edit an image file, cropped to the size of the images to come. Raises if it is not an image. */
export async function openFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("This is not an image that the browser can open.");
  }
  begun({ bitmap });
  await showBitmap();
  reveal();
}

function begun(given) {
  source?.bitmap?.close();
  source = given;
  isChosen = false;
  show($("edit"), true);
}

function reveal() {
  $("edit-title").focus({ preventScroll: true });
  $("edit").scrollIntoView({ block: "nearest", behavior: "smooth" });
  announce("Editing an image. Paint over what should change, or change all of it.");
}

export function close() {
  source?.bitmap?.close();
  source = null;
  undo = [];
  show($("edit"), false);
  $("edit-image").removeAttribute("src");
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = null;
}

async function showBitmap() {
  const { width, height } = imageSize();
  setSize(width, height);
  const scale = SIDE / Math.max(width, height);
  const canvas = cropped(Math.round(width * scale), Math.round(height * scale));
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve); });
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = URL.createObjectURL(blob);
  $("edit-image").src = shownUrl;
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

function setSize(width, height) {
  const scale = SIDE / Math.max(width, height);
  Object.assign($("edit-mask"), { width: Math.round(width * scale), height: Math.round(height * scale) }); // clears it
  Object.assign(source, { width, height });
  $("edit-picture").style.aspectRatio = `${width} / ${height}`;
  undo = [];
  cursor = { x: 0.5, y: 0.5 };
  changed();
}

/** Returns the `edit` of a job's request. Raises an error with a sentence if there can be none. */
export function read() {
  const strength = Number($("edit-strength").value) / 100;
  const image = source.bitmap ? base64(cropped(source.width, source.height)) : source.url;
  const share = painted();
  if (share === 0) return { kind: "image_to_image", image, strength };
  const mask = shrunkMask();
  if (mask === null) throw new Error("All of the image is painted: leave something as it is, or clear the mask.");
  return { kind: "inpaint", image, mask: base64(mask), strength };
}

const base64 = (canvas) => canvas.toDataURL("image/png").split(",")[1];

/** Returns the mask at the size of the image, white on black, as a canvas; null if all is white. */
function shrunkMask() {
  const { width, height } = source;
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage($("edit-mask"), 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  let kept = 0;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const on = pixels.data[i + 3] >= COVERED;
    kept += !on;
    pixels.data.fill(on ? 255 : 0, i, i + 3);
    pixels.data[i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return kept ? canvas : null;
}

async function loadMask(url) {
  const image = el("img", { src: url });
  await image.decode();
  const { width, height } = $("edit-mask");
  const context = maskContext();
  context.imageSmoothingEnabled = false; // so that it becomes the same mask again
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const on = pixels.data[i] >= 128;
    pixels.data.set(on ? [255, 255, 255, 255] : [0, 0, 0, 0], i);
  }
  context.putImageData(pixels, 0, 0);
  fillWith(context, "source-in");
  changed();
}

// ---- painting

function maskContext() {
  return $("edit-mask").getContext("2d", { willReadFrequently: true });
}

const maskColor = () => getComputedStyle($("edit-mask")).color;

function fillWith(context, operation) {
  context.globalCompositeOperation = operation;
  context.fillStyle = maskColor();
  context.fillRect(0, 0, $("edit-mask").width, $("edit-mask").height);
  context.globalCompositeOperation = "source-over";
}

/** Returns where a pointer is, as shares of the sides. */
function pointOf(event) {
  const { left, top, width, height } = $("edit-mask").getBoundingClientRect();
  return { x: (event.clientX - left) / width, y: (event.clientY - top) / height };
}

const isErasing = () => $("edit-erase").getAttribute("aria-pressed") === "true";
const brushShare = () => Number($("edit-size").value) / 100; // of the longer side

function begin(event) {
  event.preventDefault();
  $("edit-mask").focus({ preventScroll: true });
  $("edit-mask").setPointerCapture(event.pointerId);
  remember();
  stroke = pointOf(event);
  cursor = stroke;
  paintTo(stroke);
}

function end() {
  if (!stroke) return;
  cursor = { x: clamp(stroke.x), y: clamp(stroke.y) };
  stroke = null;
  changed();
}

const clamp = (share) => Math.min(1, Math.max(0, share));

function paintTo(point) {
  const { width, height } = $("edit-mask");
  const context = maskContext();
  context.globalCompositeOperation = isErasing() ? "destination-out" : "source-over";
  context.strokeStyle = maskColor();
  context.lineWidth = brushShare() * Math.max(width, height);
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(stroke.x * width, stroke.y * height);
  context.lineTo(point.x * width, point.y * height + 0.01); // a line of no length is not drawn
  context.stroke();
  context.globalCompositeOperation = "source-over";
  stroke = point;
}

function showBrush(point) {
  const brush = $("edit-brush");
  const { width, height } = $("edit-mask").getBoundingClientRect();
  brush.style.width = brush.style.height = `${brushShare() * Math.max(width, height)}px`;
  brush.style.left = `${point.x * 100}%`;
  brush.style.top = `${point.y * 100}%`;
  show(brush, true);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Arrows move the brush, with Shift they paint on the way; Space or Enter paints where it is. */
function onKey(event) {
  const arrow = ARROWS[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey || !(arrow || event.key === " " || event.key === "Enter")) return;
  event.preventDefault();
  event.stopPropagation();
  const from = cursor;
  if (arrow) {
    const { width, height } = $("edit-mask");
    const step = KEY_STEP * Math.max(width, height);
    cursor = { x: clamp(cursor.x + (arrow[0] * step) / width), y: clamp(cursor.y + (arrow[1] * step) / height) };
  }
  if (!arrow || event.shiftKey) {
    remember();
    stroke = from;
    paintTo(cursor);
    stroke = null;
    changed();
  } else {
    announce(`${percent(cursor.x)} from the left, ${percent(cursor.y)} from the top`);
  }
  showBrush(cursor);
}

const percent = (share) => `${Math.round(share * 100)}%`;

function change(action) {
  remember();
  action(maskContext());
  changed();
}

function remember() {
  const { width, height } = $("edit-mask");
  undo.push(maskContext().getImageData(0, 0, width, height));
  if (undo.length > MAX_UNDO) undo.shift();
}

function undoStroke() {
  const before = undo.pop();
  if (!before) return;
  maskContext().putImageData(before, 0, 0);
  changed();
}

/** Returns which share of the image is painted. */
function painted() {
  const { width, height } = $("edit-mask");
  const { data } = maskContext().getImageData(0, 0, width, height);
  let count = 0;
  for (let i = 3; i < data.length; i += 4) count += data[i] >= COVERED;
  return count / (width * height);
}

function changed() {
  const share = painted();
  const text = share ? `${percent(Math.max(share, 0.01))} of the image is drawn anew.` : "Nothing is painted: all of the image changes.";
  $("edit-painted").textContent = text;
  announce(text);
  $("edit-undo").disabled = !undo.length;
  $("edit-clear").disabled = !share;
  if (!isChosen) setStrength(share ? PART : ALL, false);
}

// ---- strength

function setStrength(value, chosen) {
  isChosen = chosen;
  $("edit-strength").value = Math.round(value * 100);
  showStrength();
}

function showStrength() {
  const { value } = $("edit-strength");
  $("edit-strength-value").textContent = `${value}%`;
  $("edit-strength").setAttribute("aria-valuetext", `${value}%`);
}
