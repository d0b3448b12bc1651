// An image alone, large, with what made it; and several side by side, with what differs.

import { deleteJob, hasToken, imageBlob, setImage } from "./api.js";
import { $, confirmed, dateTime, duration, el, icon, seedButton, show, toast } from "./dom.js";
import { settingLabel } from "./form.js";
import { deselectJob, historyChanged, isSelected, keyOf, pictures, select } from "./gallery.js";
import { dismiss, wayText } from "./jobs.js";
import { loraText } from "./lora.js";

const handlers = { reuse: () => {}, edit: () => {} };
let cascade = null;
let current = null; // {job, image}; image is null for a job without images

export function setUpViewer(given) {
  Object.assign(handlers, given);
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]")) dialog.close();
      else if (event.target === dialog && isOutside(event, dialog)) dialog.close();
    });
  }
  $("viewer-previous").onclick = () => step(-1);
  $("viewer-next").onclick = () => step(1);
  $("viewer").addEventListener("keydown", (event) => {
    if (event.target === $("viewer-split")) return; // its own arrows
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  $("viewer-download").addEventListener("click", download);
  $("viewer-reuse").onclick = () => { $("viewer").close(); handlers.reuse(current.job, current.image?.index ?? 0); };
  $("viewer-edit").onclick = () => { $("viewer").close(); handlers.edit(current.job, current.image); };
  $("viewer-split").addEventListener("input", split);
  $("viewer-select").onclick = toggleSelected;
  $("viewer-delete").onclick = remove;
}

/** Returns whether a click was beside a dialog: on its backdrop, not on the space around what it has. */
function isOutside({ clientX: x, clientY: y }, dialog) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  return x < left || x > right || y < top || y > bottom;
}

export function setCascade(description) {
  cascade = description;
}

/** Returns all settings of a stage: the cascade's defaults with a job's changes. */
function effectiveSettings(job) {
  const stages = cascade?.stages ?? [];
  const given = Array.isArray(job.settings) ? job.settings : stages.map(() => job.settings ?? {});
  return stages.map((stage, i) => ({
    ...Object.fromEntries(stage.settings.map((setting) => [setting.name, setting.default])), ...given[i],
  }));
}

const text = (value) => {
  if (value === true) return "on";
  if (value === false) return "off";
  return Array.isArray(value) ? value.join(", ") : String(value ?? "");
};

// ---- one image

export function open(job, image) {
  display(job, image);
  if (!$("viewer").open) $("viewer").showModal();
  $("viewer-prompt").focus();
}

export function openKey(key) {
  const entry = pictures().find(({ job, image }) => keyOf(job, image) === key);
  if (entry) open(entry.job, entry.image);
}

function display(job, image) {
  current = { job, image };
  const img = $("viewer-img");
  const prompt = image?.prompt ?? job.prompts[0];
  img.alt = prompt;
  show(img.parentElement, image);
  img.removeAttribute("src");
  if (image) {
    setImage(img, job.id, image);
    $("viewer-download").href = image.url;
    $("viewer-download").download = `imagen_${image.seed}.png`;
    img.width = image.width;
    img.height = image.height;
  }
  displayBefore(job, image);
  show($("viewer-download"), image);
  show($("viewer-edit"), image);
  show($("viewer-select"), image);
  $("viewer-prompt").textContent = prompt;
  $("viewer-facts").replaceChildren(...facts(job, image));
  showSelected();
  const position = image ? place() : -1;
  $("viewer-previous").disabled = position <= 0;
  $("viewer-next").disabled = position < 0 || position >= pictures().length - 1;
}

/** Shows what an edit began with, over the image, up to where the slider is. */
function displayBefore(job, image) {
  const isPair = Boolean(image && job.edit?.image && job.edit.kind !== "outpaint");
  for (const id of ["viewer-before", "viewer-line", "viewer-slider"]) show($(id), isPair);
  $("viewer-before").removeAttribute("src");
  if (!isPair) return;
  $("viewer-before").src = job.edit.image;
  $("viewer-before").alt = "Before the edit";
  $("viewer-split").value = 50;
  split();
}

function split() {
  $("viewer-pair").style.setProperty("--split", `${$("viewer-split").value}%`);
  $("viewer-split").setAttribute("aria-valuetext", `${$("viewer-split").value}% before`);
}

function facts(job, image) {
  const rows = [];
  const add = (name, ...value) => rows.push(el("div", {}, el("dt", {}, name), el("dd", {}, ...value)));
  if (!image) add("Status", job.error ?? { canceled: "Canceled", failed: "Failed" }[job.status] ?? job.status);
  if (job.negative_prompt) add("Negative prompt", el("span", { dir: "auto" }, job.negative_prompt));
  if (job.edit) add("Edit", editText(job, image));
  if (loraText(job.lora)) add("Learned", el("span", { dir: "auto" }, loraText(job.lora)));
  if (image?.flagged) add("Black", "The safety checker has flagged it");
  if (image) add("Seed", seedButton(image.seed));
  if (image) add("Size", `${image.width}×${image.height}`);
  const took = job.started && job.finished ? `, in\u00a0${duration(job.finished - job.started).replace(" ", "\u00a0")}` : "";
  add("Made", `${dateTime(job.finished ?? job.created)}${took}`);
  const all = effectiveSettings(job);
  all.forEach((settings, i) => {
    const name = all.length > 1 ? `Stage ${i + 1}` : "Sampling";
    const main = ["num_inference_steps", "guidance_scale", "sampler"].filter((key) => key in settings);
    const defaults = Object.fromEntries(cascade.stages[i].settings.map((one) => [one.name, one.default]));
    const changed = Object.keys(settings).filter((key) => !main.includes(key) && text(settings[key]) !== text(defaults[key]));
    add(name, [...main, ...changed].map((key) => phrase(key, settings[key])).join(", "));
  });
  return rows;
}

const EDITS = {
  image_to_image: "All of an image", inpaint: "A part of an image", outpaint: "Around an image", variations: "Variations of an image",
  upscale: "An image, enlarged", edit: "Changed by the prompt", interpolate: "On the way",
};

function editText(job, image) {
  const { kind, strength, source_prompt: before, ends } = job.edit;
  if (kind === "upscale" || kind === "outpaint") return EDITS[kind];
  if (kind === "interpolate") return `${EDITS[kind]} from ${ends[0]} to ${ends[1]}${image ? `, ${wayText(job, image)}` : ""}`;
  if (kind === "edit") return `${EDITS[kind]}, before: “${before}”, strength ${Math.round(Math.max(...strength) * 100)}%`;
  const shares = [...new Set(strength.map((one) => `${Math.round(one * 100)}%`))];
  return `${EDITS[kind]}, strength ${shares.join(", ")}`;
}

function phrase(key, value) {
  if (key === "num_inference_steps") return `${value} steps`;
  if (key === "guidance_scale") return `guidance ${text(value)}`;
  if (key === "sampler") return text(value);
  return `${settingLabel(key).toLowerCase()} ${text(value)}`;
}

function place() {
  const key = keyOf(current.job, current.image);
  return pictures().findIndex(({ job, image }) => keyOf(job, image) === key);
}

function step(by) {
  if (!current.image) return;
  const position = place();
  const next = position < 0 ? null : pictures()[position + by];
  if (next) display(next.job, next.image);
}

async function download(event) {
  if (!hasToken()) return; // the link itself downloads
  event.preventDefault();
  const { image } = current;
  try {
    const url = URL.createObjectURL(await imageBlob(image));
    el("a", { href: url, download: `imagen_${image.seed}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    toast(error.message, { error: true });
  }
}

function toggleSelected() {
  const { job, image } = current;
  select(job, image, !isSelected(job, image));
  showSelected();
}

function showSelected() {
  const on = Boolean(current.image) && isSelected(current.job, current.image);
  $("viewer-select").setAttribute("aria-pressed", String(on));
  $("viewer-select").replaceChildren(icon(on ? "check" : "compare"), on ? "Selected" : "Select to compare");
}

async function remove() {
  const { job } = current;
  const count = job.images.filter((image) => image.url).length;
  const title = count > 1 ? `Delete the ${count} images of this prompt?` : "Delete this from the history?";
  if (!(await confirmed(title, "They were made together and are deleted together. This cannot be undone.".slice(count > 1 ? 0 : 53), "Delete"))) return;
  try {
    await deleteJob(job.id);
  } catch (error) {
    if (error.status !== 404) {
      toast(`Not deleted: ${error.message}`, { error: true });
      return;
    }
  }
  $("viewer").close();
  deselectJob(job.id);
  dismiss(job.id);
  toast("Deleted");
  await historyChanged();
  $("history-title").focus();
}

// ---- several images

/** Shows images, [{job, image}], side by side. */
export function compare(entries) {
  const rows = comparisonRows(entries);
  const different = rows.filter(({ values }) => new Set(values).size > 1);
  const images = entries.map(({ job, image }) => {
    const img = el("img", { alt: image.prompt, width: image.width, height: image.height });
    setImage(img, job.id, image);
    return el("td", {}, img);
  });
  const table = el("table", { "aria-label": "Images and how they differ" },
    el("tbody", {}, el("tr", { className: "images" }, el("th", { scope: "row" }, el("span", { className: "sr-only" }, "Image")), ...images),
      ...different.map(({ name, values }) => el("tr", {}, el("th", { scope: "row" }, name),
        ...values.map((value) => el("td", {}, value === "" ? el("span", { className: "muted" }, "none") : el("span", { dir: "auto" }, value)))))));
  const seeds = different.find(({ name }) => name === "Seed");
  $("compare").style.setProperty("--columns", entries.length);
  $("compare-body").replaceChildren(table);
  $("compare-same").textContent = different.length
    ? `The same for all: ${rows.length - different.length} of ${rows.length} settings${seeds ? "" : ", the seed among them"}.`
    : "All settings are the same: these images are equal.";
  $("compare").showModal();
  $("compare-title").focus();
}

function comparisonRows(entries) {
  const row = (name, value) => ({ name, values: entries.map((entry) => text(value(entry))) });
  const rows = [
    row("Prompt", ({ image }) => image.prompt),
    row("Negative prompt", ({ job }) => job.negative_prompt),
    row("Seed", ({ image }) => image.seed),
    row("Edit", ({ job, image }) => job.edit && editText(job, image)),
    row("Learned", ({ job }) => loraText(job.lora)),
    row("Size", ({ image }) => `${image.width}×${image.height}`),
  ];
  const settings = new Map(entries.map(({ job }) => [job, effectiveSettings(job)]));
  (cascade?.stages ?? []).forEach((stage, i) => {
    for (const { name } of stage.settings) {
      const label = cascade.stages.length > 1 ? `Stage ${i + 1}: ${settingLabel(name).toLowerCase()}` : settingLabel(name);
      rows.push(row(label, ({ job }) => settings.get(job)[i][name]));
    }
  });
  return rows;
}
