// The server: requests, errors in sentences, the token, the event stream, and whether it can be reached.

const TOKEN_KEY = "imagen-token";
const SILENCE_MS = 60_000; // the server sends heartbeats much more often

/** An answer of the server that is an error. */
export class ApiError extends Error {
  constructor(status, message, param, retryAfter) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
  }
}

/** The server cannot be reached. */
export class ConnectionError extends Error {
  constructor() {
    super("The server cannot be reached.");
  }
}

// ---- connection: lost at the first request that fails, back at the first answer; pinged in between

export const connection = Object.assign(new EventTarget(), { lost: false });

function setLost(lost) {
  if (connection.lost === lost) return;
  connection.lost = lost;
  connection.dispatchEvent(new Event("change"));
  if (lost) ping(500);
}

async function ping(delay) {
  await new Promise((resolve) => {
    const timer = setTimeout(resolve, delay);
    addEventListener("online", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
  try {
    await fetch("healthz", { cache: "no-store", signal: AbortSignal.timeout(10_000) });
    setLost(false);
  } catch {
    ping(Math.min(delay * 2, 8000));
  }
}

/** Resolves when the server can be reached. */
export function reachable() {
  if (!connection.lost) return Promise.resolve();
  return new Promise((resolve) => {
    const check = () => {
      if (connection.lost) return;
      connection.removeEventListener("change", check);
      resolve();
    };
    connection.addEventListener("change", check);
  });
}

// ---- token

let askForToken = null; // set by the page: async (reason) => token or null
let asking = null;
let declined = false; // then nothing asks again by itself

export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** Takes the token out of the address, where a link such as /#token=… has put it. */
export function takeTokenFromAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const token = parts.get("token");
  if (!token) return;
  sessionStorage.setItem(TOKEN_KEY, token);
  parts.delete("token");
  const rest = parts.toString();
  history.replaceState(null, "", location.pathname + location.search + (rest && `#${rest}`));
}

/** Lets the next request that needs a token ask for it, also where it was not given before. */
export function mayAskForToken() {
  declined = false;
}

export function hasToken() {
  return sessionStorage.getItem(TOKEN_KEY) !== null;
}

async function newToken(refused) {
  const current = sessionStorage.getItem(TOKEN_KEY);
  if (current !== null && current !== refused) return current; // another request has asked meanwhile
  if (declined) return null;
  asking ??= askForToken(refused !== null).finally(() => { asking = null; });
  const token = await asking;
  declined = token === null;
  if (token !== null) sessionStorage.setItem(TOKEN_KEY, token);
  return token;
}

// ---- requests

/** Sends a request and returns the response. Raises ApiError, ConnectionError, and what `options.signal` aborts with. */
async function send(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const headers = new Headers(options.headers);
    if (token !== null) headers.set("Authorization", `Bearer ${token}`);
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      setLost(true);
      throw new ConnectionError();
    }
    setLost(false);
    if (response.ok) return response;
    if (response.status === 401 && (await newToken(token)) !== null) continue;
    throw await asError(response);
  }
}

async function asError(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's answer, or a body that broke off: the status says enough
  }
  const after = Number(response.headers.get("Retry-After"));
  const said = response.status !== 401 && typeof error.message === "string" && error.message; // 401: of headers, for programs
  const message = said ? asSentence(error.message) : sentenceFor(response.status);
  return new ApiError(response.status, message, error.param ?? null, after > 0 ? after : null);
}

function asSentence(message) {
  const text = message[0].toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function sentenceFor(status) {
  if (status === 401 || status === 403) return "This server needs a token.";
  if (status === 404) return "The server does not have this any more.";
  if (status === 413) return "This is larger than the server accepts.";
  if (status === 429) return "The server is busy.";
  if (status >= 500) return `The server failed (status ${status}). Its log says why.`;
  return `The server refused this (status ${status}).`;
}

// Seeds have up to 64 bits, of which a number of JavaScript keeps 53: larger integers are kept as text.
function exact(_key, value, context) {
  const big = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return big && context && /^\d+$/.test(context.source) ? context.source : value;
}

export async function getJson(path, options) {
  return JSON.parse(await (await send(path, options)).text(), exact);
}

export function postJob(body) {
  return getJson("v1/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

export function postFile(file) {
  return getJson("v1/settings", { method: "POST", headers: { "Content-Type": "image/png" }, body: file });
}

export function cancelJob(id) {
  return getJson(`v1/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
}

export async function deleteJob(id) {
  await send(`v1/history/${encodeURIComponent(id)}`, { method: "DELETE" });
}

// ---- fine-tunings

const finetuning = (id) => `v1/finetunings/${encodeURIComponent(id)}`;

export const listFinetunings = async () => (await getJson("v1/finetunings")).finetunings;
export const postFinetuning = (form) => getJson("v1/finetunings", { method: "POST", body: form });
export const stopFinetuning = (id) => getJson(`${finetuning(id)}/stop`, { method: "POST" });
export const continueFinetuning = (id) => getJson(`${finetuning(id)}/continue`, { method: "POST" });

export async function deleteFinetuning(id) {
  await send(finetuning(id), { method: "DELETE" });
}

export async function isReady() {
  try {
    return (await fetch("readyz", { cache: "no-store" })).ok;
  } catch {
    return true; // not reachable is not the same as not ready
  }
}

// ---- images: their addresses are signed where a token is needed, and expire

/** Shows an image of a job in an <img>; once more, by its newest address, if it cannot be loaded. */
export function setImage(img, jobId, image) {
  img.onerror = async () => {
    img.onerror = null;
    const url = await newestUrl(jobId, image.index);
    if (!url) return;
    image.url = url;
    if (img.isConnected) img.src = url;
  };
  img.src = image.url;
}

/** Returns where an image is by now, as soon as the server can be reached; undefined if there is none. */
async function newestUrl(jobId, index) {
  for (;;) {
    try {
      const job = await getJson(`v1/jobs/${encodeURIComponent(jobId)}`);
      return job.images.find((image) => image.index === index)?.url;
    } catch (error) {
      if (!(error instanceof ConnectionError)) return undefined;
      await reachable();
    }
  }
}

/** Returns an image as a blob. */
export async function imageBlob(image) {
  return (await send(image.url)).blob();
}

// ---- events

/** Yields {event, data} of a job's event stream until it ends. Raises as `send` does. */
export const jobEvents = (id, signal) => events(`v1/jobs/${encodeURIComponent(id)}/events`, signal);

/** Yields likewise of a fine-tuning's. */
export const finetuningEvents = (id, signal) => events(`${finetuning(id)}/events`, signal);

async function* events(path, signal) {
  const silence = new AbortController();
  const either = AbortSignal.any([signal, silence.signal]);
  const response = await send(path, {
    headers: { Accept: "text/event-stream" }, cache: "no-store", signal: either,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let timer = null;
  let rest = "";
  let event = { event: "message", data: "" };
  try {
    for (;;) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "" && event.data) yield { event: event.event, data: JSON.parse(event.data, exact) };
        if (line === "") event = { event: "message", data: "" };
        else if (line.startsWith("event:")) event.event = line.slice(6).trim();
        else if (line.startsWith("data:")) event.data += line.slice(5).trim();
      }
    }
  } catch (error) {
    if (signal.aborted) throw error;
    setLost(true);
    throw new ConnectionError();
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {});
  }
}
