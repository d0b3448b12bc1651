// Teaching: images to learn from, a name for what they show, and the panel that has them.

import { ConnectionError, mayAskForToken, postFinetuning } from "./api.js";
import { $, announce, el, icon, plural, show } from "./dom.js";
import * as lessons from "./lessons.js";

const OPEN_KEY = "imagen-teach"; // whether the panel of this tab is open
const NUMBERS = { "teach-steps": "steps", "teach-rank": "rank", "teach-rate": "learning_rate", "teach-prior": "prior_images" };
const FIELDS = { token: "teach-token", class_name: "teach-class", initializer: "teach-initializer", ...Object.fromEntries(Object.entries(NUMBERS).map(([id, name]) => [name, id])) };
const FIELD_IDS = Object.values(FIELDS);
const MIB = 2 ** 20;

let limits = null; // of the server; null where it teaches nothing
let least = { width: 0, height: 0 }; // of an image: the cascade's own size
let images = []; // [{blob, url, caption, node}]
let isBusy = false;

export const isOpen = () => !$("teach").hidden;

/** Sets the panel up. Handlers: use({name, token}). */
export function setUpTeach(handlers) {
  $("teach-open").onclick = () => setOpen(!isOpen(), true);
  $("teach-close").onclick = () => { setOpen(false); $("teach-open").focus(); };
  $("teach-add").onclick = () => $("teach-files").click();
  $("teach-files").onchange = () => { addFiles([...$("teach-files").files]); $("teach-files").value = ""; };
  $("teach-form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  $("teach-form").addEventListener("input", (event) => {
    if (event.target.getAttribute("aria-invalid")) clearMessage();
    showPlaceholders();
    showChanged();
  });
  lessons.setUpLessons({ use: handlers.use, changed: showBadge });
}

/** Shows what the server offers, from GET /v1/cascade. */
export function setCascade(description) {
  limits = description.finetuning;
  least = description.stages.at(-1);
  show($("teach-open"), limits);
  if (!limits) return;
  setOpen(sessionStorage.getItem(OPEN_KEY) === "open");
  lessons.begin();
}

function setOpen(open, isAsked = false) {
  show($("teach"), open);
  $("teach-open").setAttribute("aria-expanded", String(open));
  sessionStorage.setItem(OPEN_KEY, open ? "open" : "");
  if (!open || !isAsked) return;
  $("teach-title").focus({ preventScroll: true });
  $("teach").scrollIntoView({ block: "start", behavior: "smooth" });
}

function showBadge(text) {
  show($("teach-badge"), text);
  $("teach-badge").textContent = text;
}

// ---- images

/** Adds image files; those that cannot be used are named. */
export async function addFiles(files) {
  clearMessage();
  const problems = [];
  for (const file of files) {
    try {
      if (images.length >= limits.max_images) throw new Error(`${plural(limits.max_images, "image")} are the most that can be given.`);
      addImage(await prepared(file));
    } catch (error) {
      problems.push(`“${file.name.slice(0, 60)}”: ${error.message}`);
    }
  }
  if (problems.length) refuse($("teach-add"), problems.length > 3 ? `${problems.slice(0, 3).join(" ")} And ${problems.length - 3} more.` : problems.join(" "));
  else if (files.length) announce(`${plural(images.length, "image")} to learn from`);
}

/** Returns a file as a PNG of no more pixels than are of use. Raises if it is no image, or too small. */
async function prepared(file) {
  const bitmap = await createImageBitmap(file).catch(() => { throw new Error("This is not an image that the browser can open."); });
  try {
    if (bitmap.width < least.width || bitmap.height < least.height) {
      throw new Error(`It has ${bitmap.width}×${bitmap.height} pixels; give an image of at least ${least.width}×${least.height}.`);
    }
    const scale = Math.min(1, limits.useful_side / Math.min(bitmap.width, bitmap.height));
    const canvas = el("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // below transparent areas
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  } finally {
    bitmap.close();
  }
}

function addImage(blob) {
  const image = { blob, url: URL.createObjectURL(blob) };
  image.caption = el("input", { type: "text", dir: "auto", autocomplete: "off" });
  image.remove = el("button", { type: "button", className: "icon-button", title: "Remove", onclick: () => removeImage(image) }, icon("close"));
  image.img = el("img", { src: image.url });
  image.node = el("li", {}, image.img, image.remove, image.caption);
  images = [...images, image];
  $("teach-images").append(image.node);
  showImages();
}

function removeImage(image) {
  const index = images.indexOf(image);
  URL.revokeObjectURL(image.url);
  image.node.remove();
  images = images.filter((other) => other !== image);
  showImages();
  (images[index] ?? images.at(-1))?.remove.focus();
  if (!images.length) $("teach-add").focus();
  announce(`Removed. ${plural(images.length, "image")} left`);
}

function showImages() {
  show($("teach-images"), images.length);
  images.forEach((image, i) => {
    image.img.alt = `Image ${i + 1}`;
    image.remove.setAttribute("aria-label", `Remove image ${i + 1}`);
    image.caption.setAttribute("aria-label", `Caption of image ${i + 1}, optional`);
  });
  showPlaceholders();
}

/** Shows in empty captions what is taken for them. */
function showPlaceholders() {
  const text = `a ${$("teach-token").value.trim() || $("teach-token").placeholder}`;
  for (const image of images) image.caption.placeholder = text;
}

function showChanged() {
  const changed = ["teach-initializer", ...Object.keys(NUMBERS)].filter((id) => $(id).value !== "").length;
  show($("teach-changed"), changed);
  $("teach-changed").textContent = `${changed} changed`;
}

// ---- start

async function start() {
  if (isBusy) return;
  clearMessage();
  const form = read();
  if (!form) return;
  mayAskForToken();
  const sent = { images, fields: new Map(FIELD_IDS.map((id) => [id, $(id).value])) };
  isBusy = true;
  $("teach-start").setAttribute("aria-busy", "true");
  try {
    lessons.add(await postFinetuning(form));
    clear(sent);
  } catch (error) {
    refuse(fieldOf(error.param), error instanceof ConnectionError ? `${error.message} Press Start again when it can.` : error.message);
  } finally {
    isBusy = false;
    $("teach-start").removeAttribute("aria-busy");
  }
}

/** Returns what is sent; null, with a message at the field, if something is missing or wrong. */
function read() {
  if (!images.length) return refuse($("teach-add"), "Add some images of what is to be learned.");
  const token = $("teach-token").value.trim();
  if (!token) return refuse($("teach-token"), "Give it a name, such as “sks dog”.");
  const wrong = Object.keys(NUMBERS).find((id) => !$(id).checkValidity());
  if (wrong) return refuse($(wrong), numberSentence($(wrong)));
  const size = images.reduce((sum, { blob }) => sum + blob.size, 0);
  if (size > limits.max_bytes - MIB) return refuse($("teach-add"), `These images are larger than ${Math.floor(limits.max_bytes / MIB)} MiB: remove some.`);
  const form = new FormData();
  images.forEach(({ blob }, i) => form.append("images", blob, `${i}.png`));
  form.append("captions", JSON.stringify(images.map(({ caption }) => caption.value.trim() || null)));
  form.append("token", token);
  form.append("class_name", $("teach-class").value.trim());
  form.append("initializer", $("teach-initializer").value.trim());
  for (const [id, name] of Object.entries(NUMBERS)) if ($(id).value !== "") form.append(name, $(id).value);
  return form;
}

function numberSentence(input) {
  const kind = input.step === "1" ? "a whole number" : "a number";
  return `${input.labels[0].textContent} is ${kind} from ${input.min} to ${input.max}.`;
}

/** Returns the field that an error of the server is about. */
function fieldOf(param) {
  const [, name, index] = /^(\w+)(?:\[(\d+)\])?/.exec(param ?? "") ?? [];
  if (name === "captions") return images[index]?.caption ?? $("teach-add");
  return $(FIELDS[name] ?? "teach-add");
}

/** Clears what was sent; what was added or typed meanwhile stays. */
function clear(sent) {
  for (const image of sent.images) { URL.revokeObjectURL(image.url); image.node.remove(); }
  images = images.filter((image) => !sent.images.includes(image));
  for (const [id, value] of sent.fields) if ($(id).value === value) $(id).value = "";
  $("teach-more").open = false;
  showImages();
  showChanged();
}

function refuse(node, text) {
  $("teach-message").textContent = text;
  for (let fold = node.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  (node.closest(".pair") ?? node.closest(".field") ?? node.closest(".teach-drop")).after($("teach-message")); // where it is seen
  show($("teach-message"), true);
  if (node instanceof HTMLInputElement) {
    node.setAttribute("aria-invalid", "true");
    node.setAttribute("aria-errormessage", "teach-message");
  }
  node.focus();
  return null;
}

function clearMessage() {
  show($("teach-message"), false);
  for (const node of $("teach-form").querySelectorAll("[aria-invalid]")) {
    node.removeAttribute("aria-invalid");
    node.removeAttribute("aria-errormessage");
  }
}
