// The mask that is painted over an image: brush, eraser, undo; by pointer and by keys.

import { $, announce, el, show } from "./dom.js";

const SIDE = 512; // pixels of the mask's longer side while it is painted
const MAX_UNDO = 30;
const KEY_STEP = 1 / 32; // of the longer side, for each arrow key
const COVERED = 64; // alpha from which on a pixel of the image counts as painted

let undo = []; // masks before each stroke
let stroke = null; // the last point of the one that is painted
let cursor = { x: 0.5, y: 0.5 }; // of the keys, as shares of the sides
let onChange = () => {};

/** Sets up painting; `changed` is called after each change by a person, with a text that says how much is painted. */
export function setUpMask(changed) {
  onChange = changed;
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
  for (const part of [mask, $("edit-paint")]) {
    part.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); undoStroke(); }
    });
  }
  $("edit-size").addEventListener("input", () => showBrush(cursor));
  $("edit-size").addEventListener("change", () => show($("edit-brush"), false));
  $("edit-erase").onclick = () => $("edit-erase").setAttribute("aria-pressed", String(!isErasing()));
  $("edit-undo").onclick = undoStroke;
  $("edit-clear").onclick = () => change((context) => context.clearRect(0, 0, mask.width, mask.height));
  $("edit-invert").onclick = () => change((context) => fillWith(context, "xor"));
}

/** Begins an empty mask for images of a size. */
export function beginMask({ width, height }) {
  const scale = SIDE / Math.max(width, height);
  Object.assign($("edit-mask"), { width: Math.round(width * scale), height: Math.round(height * scale) }); // clears it
  undo = [];
  cursor = { x: 0.5, y: 0.5 };
  showPainted();
}

/** Loads a mask, white on black, from an address. */
export async function loadMask(url) {
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
  showPainted();
}

/** Returns the mask at a size, white on black, as a canvas, and whether nothing is kept. */
export function maskAt({ width, height }) {
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
  return { canvas, isFull: kept === 0 };
}

/** Returns which share of the image is painted. */
export function painted() {
  const { width, height } = $("edit-mask");
  const { data } = maskContext().getImageData(0, 0, width, height);
  let count = 0;
  for (let i = 3; i < data.length; i += 4) count += data[i] >= COVERED;
  return count / (width * height);
}

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

function changed() {
  showPainted();
  onChange($("edit-painted").textContent);
}

function showPainted() {
  const share = painted();
  $("edit-painted").textContent = share
    ? `${percent(Math.max(share, 0.01))} of the image is drawn anew.` : "Nothing is painted yet.";
  $("edit-undo").disabled = !undo.length;
  $("edit-clear").disabled = !share;
}
