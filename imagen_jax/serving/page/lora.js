// What the cascade has learned, in the form: which of it the images use, and how much.

import { $, announce, el, icon, show, toast } from "./dom.js";

const MAX_CHOSEN = 4;
const MAX_PERCENT = 150;

let known = null; // names, the newest first; null until the server has told them
let chosen = []; // [{name, scale}], in the order in which they are added
let changed = () => {};

/** Sets the list up; `onChange` is called whenever something else is chosen. */
export function setUpLora(onChange) {
  changed = onChange;
  $("lora-add").addEventListener("change", () => {
    choose($("lora-add").value);
    $("lora-chosen").querySelector("li:last-child input")?.focus();
  });
}

/** Takes over which adapters the server has. */
export function setAdapters(names) {
  known = names;
  fill(chosen);
}

/** Chooses an adapter, if it is not chosen yet. */
export function choose(name, scale = 1) {
  if (!chosen.some((one) => one.name === name)) chosen = [...chosen, { name, scale }].slice(-MAX_CHOSEN);
  render();
  changed();
  announce(`${name} is used.`);
}

/** Chooses [{name, scale}], those of them that there are. */
export function fill(wanted) {
  const gone = known ? wanted.filter(({ name }) => !known.includes(name)) : [];
  chosen = wanted.filter((one) => !gone.includes(one)).map(({ name, scale }) => ({ name, scale }));
  if (gone.length) toast(`${gone.map(({ name }) => name).join(", ")}: not here any more, and left out`, { error: true });
  render();
}

/** Returns what is chosen for a job's `lora`; null for nothing. */
export const read = () => (chosen.length ? chosen.map((one) => ({ ...one })) : null);

/** Returns adapters of a job in words, such as "sks-dog 80%"; null for none. */
export const loraText = (lora) => (lora?.length ? lora.map(({ name, scale }) => `${name} ${Math.round(scale * 100)}%`).join(", ") : null);

function render() {
  const rest = (known ?? []).filter((name) => !chosen.some((one) => one.name === name));
  show($("lora-field"), chosen.length || rest.length);
  show($("lora-add"), rest.length && chosen.length < MAX_CHOSEN);
  const first = chosen.length ? "Use another" : "Use nothing of it";
  $("lora-add").replaceChildren(el("option", { value: "" }, first), ...rest.map((name) => el("option", { value: name }, name)));
  $("lora-chosen").replaceChildren(...chosen.map(row));
}

function row(one, index) {
  const id = `lora-${index}`;
  const shown = el("output", { htmlFor: id });
  const percent = Math.round(one.scale * 100);
  const slider = el("input", { id, type: "range", min: Math.min(0, percent), max: Math.max(MAX_PERCENT, percent), step: 5 });
  slider.value = percent;
  const tell = () => {
    shown.textContent = `${slider.value}%`;
    slider.setAttribute("aria-valuetext", `${slider.value}%`);
  };
  slider.oninput = () => { one.scale = Number(slider.value) / 100; tell(); changed(); };
  tell();
  const remove = el("button", { type: "button", className: "icon-button", title: "Do not use it", "aria-label": `Do not use ${one.name}`,
    onclick: () => drop(one) }, icon("close"));
  return el("li", {}, el("label", { htmlFor: id, className: "spread" }, el("span", { dir: "auto" }, one.name), shown), slider, remove);
}

function drop(one) {
  chosen = chosen.filter((other) => other !== one);
  render();
  changed();
  ($("lora-add").hidden ? $("prompt") : $("lora-add")).focus();
}
