// Elements, messages and small texts. Text from users and the server is only ever set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** Returns a new element. Props are set as properties where it has them, else as attributes; undefined ones are left out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name in node && name !== "list" && name !== "form") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Returns nodes of a help text, whose `backticks` mark code. */
export function helpText(text) {
  return String(text).split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
}

export function show(node, visible) {
  node.hidden = !visible;
}

export const isShown = (node) => !node.closest("[hidden]");

/** Focuses where a prompt is typed: its field, or that of the first of two. */
export function focusPrompt() {
  [$("prompt"), $("edit-first-prompt")].find(isShown).focus();
}

/** Says something to screen readers. */
export function announce(text) {
  $("announcer").textContent = "";
  toTop($("announcer"));
  setTimeout(() => { $("announcer").textContent = text; }, 50); // the same text again is said again
}

/** Puts a node where it is seen and read: an open dialog hides what is outside of it. */
function toTop(node) {
  const parent = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if (node.parentElement === parent) return;
  parent.append(node);
  if (parent !== document.body) parent.addEventListener("close", () => document.body.append(node), { once: true });
}

/** Shows a short message that leaves by itself; errors stay longer. */
export function toast(text, { error = false } = {}) {
  const node = el("p", { className: error ? "toast error" : "toast" }, text);
  toTop($("toasts"));
  $("toasts").append(node);
  setTimeout(() => node.remove(), error ? 9000 : 3000);
}

/** Copies text, also where the clipboard API is missing: it is on plain HTTP from another machine. */
export async function copy(text, what) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { value: text, className: "sr-only", "aria-hidden": "true" });
    const focused = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
  }
  if (copied) toast(`${what} copied`);
  else toast(`${what} could not be copied: ${text}`, { error: true });
}

export function seedButton(seed) {
  const text = String(seed);
  return el(
    "button",
    { type: "button", className: "chip seed", title: "Copy the seed", "aria-label": `Copy seed ${text}`,
      onclick: (event) => { event.stopPropagation(); copy(text, "Seed"); } },
    el("span", {}, text), icon("copy"),
  );
}

export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** Returns a duration in words, such as "12 s" or "3 min". */
export function duration(seconds) {
  if (seconds < 1) return "1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function dateTime(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** Asks before something that cannot be undone. Returns whether it was agreed to. */
export function confirmed(title, text, action) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = action;
  return new Promise((resolve) => {
    let agreed = false;
    $("confirm-yes").onclick = () => { agreed = true; dialog.close(); };
    dialog.addEventListener("close", () => resolve(agreed), { once: true });
    dialog.showModal();
  });
}
