// The form: prompt, count, seed, and a control for each setting of each stage, made from what the server says of them.

import { $, el, helpText, icon, isShown, plural, show, toast } from "./dom.js";
import * as lora from "./lora.js";

const DRAFT_KEY = "imagen-draft";
const MAIN = ["num_inference_steps", "guidance_scale", "sampler"]; // shown first; the others are folded away
const MAX_SEED = 2n ** 64n - 1n;
export const SEED_RANGE = `a whole number from 0 to ${MAX_SEED}`;

let cascade = null;
let raisedCount = null; // of images, where more are needed than were asked for
let controls = []; // of each stage: Map of name → {setting, read, write, node}

/** Builds the controls. `onSubmit` is called with what `read` returns. */
export function setUpForm(onSubmit) {
  $("seed-random").append(icon("dice"));
  $("seed-random").onclick = () => { $("seed").value = ""; saveDraft(); $("seed").focus(); };
  $("settings-reset").onclick = () => { writeSettings([], null, null); saveDraft(); };
  $("form").addEventListener("submit", (event) => { event.preventDefault(); onSubmit(); });
  $("form").addEventListener("input", (event) => {
    if (event.target.getAttribute("aria-invalid")) clearMessage();
    saveDraft();
  });
  for (const area of [$("prompt"), $("negative")]) {
    area.addEventListener("input", () => fitHeight(area));
  }
  $("form").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing || event.shiftKey) return;
    const modified = event.ctrlKey || event.metaKey;
    if (event.target instanceof HTMLTextAreaElement || modified) {
      event.preventDefault();
      onSubmit();
    }
  });
  addEventListener("resize", fitHeights);
  lora.setUpLora(saveDraft);
}

function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, 320)}px`;
}

/** Fits the texts to what is in them: after they were filled in or shown, and when the width changes. */
export function fitHeights() {
  for (const area of [$("prompt"), $("negative")]) fitHeight(area);
}

/** Fits the form to a cascade, from GET /v1/cascade, and fills in what was there before a reload. */
export function setCascade(description) {
  cascade = description;
  const limits = cascade.limits ?? {};
  if (limits.max_prompt_length) {
    $("prompt").maxLength = limits.max_prompt_length;
    $("negative").maxLength = limits.max_prompt_length;
  }
  const most = Math.min(limits.max_count ?? Infinity, limits.max_images ?? Infinity);
  if (Number.isFinite(most)) $("count").max = most;
  if (limits.max_side) $("width").max = $("height").max = limits.max_side;
  show($("negative-hint"), cascade.negative_prompt === false);
  const last = cascade.stages.at(-1);
  $("width").placeholder = last.width;
  $("height").placeholder = last.height;
  const multiple = cascade.stages.length > 1;
  controls = cascade.stages.map(() => new Map());
  $("stages").replaceChildren(...cascade.stages.map((stage, index) => stageSection(stage, index, multiple)));
  loadDraft();
}

function stageSection(stage, index, multiple) {
  const title = `${multiple ? `Stage ${index + 1}` : "Sampling"}, ${stage.width}×${stage.height}`;
  const fields = new Map(stage.settings.map((setting) => [setting.name, settingField(setting, index)]));
  const main = MAIN.filter((name) => fields.has(name)).map((name) => fields.get(name));
  const others = [...fields.entries()].filter(([name]) => !MAIN.includes(name)).map(([, field]) => field);
  const more = el("details", { className: "more-settings" },
    el("summary", {}, plural(others.length, "more setting")), el("div", { className: "fields" }, ...others));
  return el("fieldset", { className: "stage" }, el("legend", {}, title), el("div", { className: "fields" }, ...main),
    others.length ? more : null);
}

export function settingLabel(name) {
  if (name === "num_inference_steps") return "Sampling steps";
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

function settingField(setting, index) {
  const id = `s${index}-${setting.name}`;
  const control = makeControl(setting, id);
  controls[index].set(setting.name, control);
  control.write(setting.default);
  const label = el("label", { htmlFor: id }, settingLabel(setting.name));
  const help = el("p", { id: `${id}-help`, className: "hint" }, ...helpText(helpFor(setting)), rangeText(setting));
  return el("div", { className: setting.type === "boolean" ? "field switch" : "field" }, label, control.node, help);
}

/** Returns a setting's help, unless it says no more than the label. */
function helpFor({ name, description = "" }) {
  const label = settingLabel(name).toLowerCase();
  return description.toLowerCase().replace(/\.$/, "") === label ? "" : description;
}

function rangeText(setting) {
  if ((setting.type === "range" || setting.type === "size") && setting.expected) return ` Give ${setting.expected}.`;
  const { minimum: low, maximum: high } = setting;
  const numeric = setting.type === "integer" || setting.type === "number";
  if (!numeric || (low == null && high == null)) return "";
  if (high == null || high >= 2 ** 20) return low == null ? "" : ` From ${low}.`;
  return low == null ? ` Up to ${high}.` : ` ${low} to ${high}.`;
}

function makeControl(setting, id) {
  const common = { id, "aria-describedby": `${id}-help` };
  if (setting.type === "boolean") {
    const node = el("input", { ...common, type: "checkbox", role: "switch" });
    return { setting, node, read: () => node.checked, write: (value) => { node.checked = Boolean(value); } };
  }
  if (setting.choices?.length) {
    const options = setting.choices.map((choice, i) => el("option", { value: String(i) }, String(choice)));
    const node = el("select", common, ...options);
    const write = (value) => { node.value = String(setting.choices.findIndex((choice) => choice === value)); };
    return { setting, node, write, read: () => setting.choices[Number(node.value)] };
  }
  const finite = Number.isFinite(setting.default) && !/\binf\b/.test(`${setting.description} ${setting.expected}`);
  if ((setting.type === "integer" || setting.type === "number") && finite) {
    const node = el("input", { ...common, type: "number", step: setting.type === "integer" ? 1 : "any",
      inputMode: setting.type === "integer" && setting.minimum >= 0 ? "numeric" : "text",
      min: setting.minimum ?? "", max: setting.maximum ?? "" });
    return { setting, node, write: (value) => { node.value = value ?? ""; },
      read: () => (node.value === "" ? setting.default : Number(node.value)) };
  }
  return textControl(setting, common);
}

/** A text field for everything else: numbers that may be inf, several numbers, texts. */
function textControl(setting, common) {
  const node = el("input", { ...common, type: "text", autocomplete: "off" });
  const write = (value) => { node.value = Array.isArray(value) ? value.join(", ") : String(value ?? ""); };
  const number = (text) => (text !== "" && Number.isFinite(Number(text)) ? Number(text) : text);
  const read = () => {
    const text = node.value.trim();
    if (text === "") return setting.default;
    if (typeof setting.default === "string" && setting.type === "string") return text;
    if (Array.isArray(setting.default) || text.includes(",")) return text.split(",").map((part) => number(part.trim()));
    return number(text);
  };
  return { setting, node, write, read };
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** Returns the settings of each stage that differ from the defaults. */
function changedSettings() {
  return controls.map((stage) => Object.fromEntries([...stage]
    .map(([name, control]) => [name, control.read(), control.setting.default])
    .filter(([, value, initial]) => !same(value, initial))));
}

function writeSettings(settings, height, width) {
  controls.forEach((stage, index) => {
    const given = (Array.isArray(settings) ? settings[index] : settings) ?? {};
    for (const [name, control] of stage) {
      control.write(Object.hasOwn(given, name) ? given[name] : control.setting.default);
    }
  });
  const last = cascade?.stages.at(-1);
  $("height").value = height && height !== last?.height ? height : "";
  $("width").value = width && width !== last?.width ? width : "";
  markChanged();
}

function markChanged() {
  let changed = ($("width").value !== "") + ($("height").value !== "");
  for (const stage of controls) {
    for (const control of stage.values()) {
      const differs = !same(control.read(), control.setting.default);
      control.node.closest(".field").classList.toggle("changed", differs);
      changed += differs;
    }
  }
  show($("settings-changed"), changed > 0);
  $("settings-changed").textContent = `${changed} changed`;
  show($("settings-reset"), changed > 0);
}

/** Fills the form in: {prompt, negative_prompt, seed, count, settings, height, width, lora}. */
export function fill(values) {
  $("prompt").value = values.prompt ?? "";
  $("negative").value = values.negative_prompt ?? "";
  $("seed").value = values.seed ?? "";
  $("count").value = values.count ?? 1;
  writeSettings(values.settings ?? [], values.height, values.width);
  lora.fill(values.lora ?? []);
  clearMessage();
  saveDraft();
  fitHeights();
}

/** Returns the body of the form's request, without what it edits; null, with a message at the field, if something in it cannot be. */
export function read(isPromptOptional) {
  clearMessage();
  const prompt = typed("prompt");
  if (!prompt && !isPromptOptional) return refuse($("prompt"), "Say what the image should show.");
  const seed = typed("seed");
  if (seed && asSeed(seed) === null) return refuse($("seed"), `A seed is ${SEED_RANGE}; empty means a random one.`);
  const numbers = [...$("form").querySelectorAll("input[type=number]")];
  const wrong = numbers.find((input) => !input.checkValidity());
  if (wrong) return refuse(wrong, numberSentence(wrong));
  const settings = changedSettings();
  const body = {
    prompts: prompt,
    negative_prompt: $("negative").value.trim() || null,
    count: Number($("count").value || 1),
    settings: settings.some((stage) => Object.keys(stage).length) ? settings : null,
    lora: lora.read(),
    ...size(),
  };
  return { ...body, seeds: seed ? asSeed(seed) : null };
}

/** Returns what is typed in a field; nothing of one that is hidden. */
const typed = (id) => (isShown($(id)) ? $(id).value.trim() : "");

/** Returns a seed as it is sent: as text, since a number would lose bits; null if it is none. */
export function asSeed(text) {
  return /^\d+$/.test(text) && BigInt(text) <= MAX_SEED ? BigInt(text).toString() : null;
}

/** Asks for at least `least` images. Where there are fewer they become `usual`, and one again when one will do. */
export function expectImages(least, usual) {
  const count = $("count");
  count.min = least;
  if (Number(count.value || 1) < least) count.value = raisedCount = String(Math.min(usual, count.max));
  else if (least === 1 && count.value === raisedCount) count.value = 1;
  if (least === 1) raisedCount = null;
  saveDraft();
}

/** Uses an adapter, and its name in the prompt, unless it is there. */
export function useAdapter(name, token) {
  const prompt = $("prompt").value.trim();
  if (!prompt.toLowerCase().includes(token.toLowerCase())) $("prompt").value = prompt ? `${prompt}, a ${token}` : `a ${token}`;
  lora.choose(name);
  fitHeights();
}

/** Returns how many images can be asked for. */
export const maxImages = () => Number($("count").max);

/** Returns {width, height} of the images that the form asks for. */
export function imageSize() {
  const last = cascade?.stages.at(-1) ?? { width: 64, height: 64 };
  return { width: Number($("width").value || last.width), height: Number($("height").value || last.height) };
}

function size() {
  const last = cascade?.stages.at(-1) ?? {};
  const [height, width] = [$("height").value, $("width").value];
  if (!height && !width) return { height: null, width: null };
  return { height: Number(height || last.height), width: Number(width || last.width) };
}

function numberSentence(input) {
  const name = input.labels[0].textContent;
  const whole = input.step === "1" ? "a whole number" : "a number";
  if (input.min !== "" && input.max !== "") return `${name} is ${whole} from ${input.min} to ${input.max}.`;
  if (input.min !== "") return `${name} is ${whole} of at least ${input.min}.`;
  return `${name} is ${whole}.`;
}

// ---- messages

/** Shows a message at the field that it is about. */
export function refuse(node, text) {
  message(text, { error: true });
  pointAt(node);
  return null;
}

function pointAt(node) {
  for (let fold = node.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  (node.closest(".pair") ?? node.closest(".field")).after($("form-message")); // where it is seen
  node.setAttribute("aria-invalid", "true");
  node.setAttribute("aria-errormessage", "form-message");
  node.focus();
}

/** Points at the field that an error of the server is about: its param, such as "settings[0].eta", or its message says. */
export function pointAtField({ param, message: words }) {
  const text = String(param ?? "");
  const [, stage, name] = /^settings\[(\d+)\]\.(\w+)/.exec(text) ?? [];
  const simple = { prompts: "prompt", negative_prompt: "negative", seeds: "seed", count: "count", height: "height", width: "width", edit: "edit-tasks", lora: "lora-chosen" };
  const ofEdit = { "edit.mask": "edit-mask", "edit.strength": "edit-strength", "edit.source_prompt": "edit-source",
    "edit.ends[0]": "edit-first-prompt", "edit.ends[1]": "edit-last-prompt" }[text];
  const setting = /^sampling\.(\w+)/i.exec(words)?.[1]; // of a stage that it does not name: it is one that was changed
  const size = /^size /i.test(words) ? "width" : null;
  const node = $(name ? `s${stage}-${name}` : (ofEdit ?? simple[/^\w+/.exec(text)?.[0]] ?? size)) ?? changedControl(setting);
  if (node) pointAt(node);
}

function changedControl(name) {
  const found = controls.map((stage) => stage.get(name)).filter(Boolean);
  return (found.find((control) => !same(control.read(), control.setting.default)) ?? found[0])?.node;
}

/** Returns an error of the server with settings named as they are labeled here. */
export function inWords(text) {
  return text
    .replace(/\bsettings\[(\d+)\]\.(\w+)/gi, (_, stage, name) => `Stage ${Number(stage) + 1}: ${settingLabel(name).toLowerCase()}`)
    .replace(/\bedit\.ends\[([01])\]/gi, (_, end) => ["The first prompt", "The last prompt"][end])
    .replace(/\blora\[\d+\](\.name)?/gi, "What was learned:")
    .replace(/\bsampling\.(\w+)/gi, (_, name) => settingLabel(name));
}

/** Shows a message below the form, with buttons. Returns the node of its text. */
export function message(text, { error = false, buttons = [] } = {}) {
  const node = $("form-message");
  node.className = error ? "message error" : "message";
  $("form").append(node);
  const words = el("p", {}, text);
  node.replaceChildren(words, ...buttons);
  show(node, true);
  return words;
}

export function clearMessage() {
  show($("form-message"), false);
  for (const node of $("form").querySelectorAll("[aria-invalid]")) {
    node.removeAttribute("aria-invalid");
    node.removeAttribute("aria-errormessage");
  }
}

// ---- the draft survives a reload

function saveDraft() {
  markChanged();
  const draft = {
    prompt: $("prompt").value, negative_prompt: $("negative").value, seed: $("seed").value, count: $("count").value,
    settings: changedSettings(), height: Number($("height").value), width: Number($("width").value),
    lora: lora.read(),
  };
  sessionStorage.setItem(DRAFT_KEY, JSON.stringify(draft));
}

function loadDraft() {
  const typed = $("prompt").value; // while the cascade was being fetched
  let draft = {};
  try {
    draft = JSON.parse(sessionStorage.getItem(DRAFT_KEY)) ?? {};
  } catch {
    toast("What was typed before could not be restored.", { error: true });
  }
  fill(typed ? { ...draft, prompt: typed } : draft);
}
