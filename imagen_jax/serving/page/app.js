// The page: brings its parts together.

import {
  ConnectionError, connection, getJson, isReady, mayAskForToken, onTokenNeeded, postFile, postJob, reachable, takeTokenFromAddress,
} from "./api.js";
import { $, announce, el, focusPrompt, isShown, show, toast } from "./dom.js";
import * as edit from "./edit.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as jobs from "./jobs.js";
import * as teach from "./teach.js";
import * as viewer from "./viewer.js";

let description = null; // of the cascade
let attempt = null; // the submission under way: {stopped, wake}

// ---- submission

async function submit() {
  if (attempt) return;
  const request = form.read(edit.isPromptOptional());
  if (!request) return;
  if (edit.isEditing()) {
    try {
      Object.assign(request, edit.read(request.prompts));
    } catch (error) {
      if (!(error instanceof edit.EditError)) throw error;
      form.refuse($(error.field), error.message);
      return;
    }
  }
  mayAskForToken();
  attempt = { stopped: false, wake: () => {} };
  $("generate").setAttribute("aria-busy", "true");
  // the same key with every try: the server accepts the job once
  const body = { ...request, idempotency_key: randomKey() };
  try {
    const job = await trySubmitting(body);
    if (job) {
      if (!description) loadCascade(); // the token was given just now
      form.clearMessage();
      jobs.follow(job);
      if (teach.isOpen() || matchMedia("(max-width: 60rem)").matches) $("jobs").scrollIntoView({ behavior: "smooth", block: "start" });
    }
  } catch (error) {
    form.message(form.inWords(error.message), { error: true });
    form.pointAtField(error);
  } finally {
    attempt = null;
    $("generate").removeAttribute("aria-busy");
  }
}

/** Sends a job, again while the server is full or away. Returns it, or null when that was stopped. */
async function trySubmitting(body) {
  let keepTrying = false;
  for (;;) {
    try {
      return await postJob(body);
    } catch (error) {
      if (error instanceof ConnectionError) {
        form.message("The server cannot be reached. This is sent as soon as it can.", { buttons: [stopButton()] });
        await Promise.race([reachable(), stopped()]);
      } else if (error.status === 429 || error.status === 503) {
        keepTrying = await waitForRoom(error, keepTrying);
        if (!keepTrying) return null;
      } else {
        throw error;
      }
      if (attempt.stopped) {
        form.clearMessage();
        return null;
      }
    }
  }
}

/** Says when to try again. Returns whether to, at that time: as asked by the button, now or at an earlier refusal. */
async function waitForRoom(error, agreed) {
  const until = Date.now() + 1000 * (error.retryAfter ?? 5);
  const mine = attempt;
  const keep = el("button", { type: "button", onclick: () => { mine.agreed = true; keep.remove(); } }, "Keep trying for me");
  mine.agreed = agreed;
  const words = form.message("", { error: true, buttons: [...(agreed ? [] : [keep]), stopButton()] });
  const reason = error.message.replace(/\s*(please )?(try|retry)\b.*again.*$/i, "").trim() || "The server is busy.";
  announce(`${reason} Try again in ${Math.ceil(error.retryAfter ?? 5)} seconds.`);
  while (Date.now() < until && !mine.stopped) {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    words.textContent = `${reason} ${mine.agreed ? "Trying" : "Try"} again in ${seconds} s.`;
    await Promise.race([new Promise((resolve) => { setTimeout(resolve, 250); }), stopped()]);
  }
  if (!mine.agreed && !mine.stopped) form.message(`${reason} There may be room now: press Generate again.`, { error: true });
  return mine.agreed || mine.stopped;
}

const stopped = () => new Promise((resolve) => { attempt.wake = resolve; });

function stop() {
  if (!attempt) return;
  attempt.stopped = true;
  attempt.wake();
}

function stopButton() {
  return el("button", { type: "button", className: "quiet", onclick: () => { stop(); focusPrompt(); } }, "Stop");
}

/** Returns a random key; `crypto.randomUUID` is missing on plain HTTP from another machine. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- settings again

function reuse(job, index) {
  const image = job.images[index] ?? {};
  fillIn({
    prompt: image.prompt ?? job.prompts[0], negative_prompt: job.negative_prompt, seed: image.seed,
    count: job.edit?.ends ? job.images.length : 1, settings: job.settings, height: job.height, width: job.width,
    lora: job.lora,
  }, job.edit?.ends);
  if (job.edit?.image) beginEdit({ ...image, url: job.edit.image }, job.edit);
  toast("Settings filled in");
  focusPrompt();
  scrollTo({ top: 0, behavior: "smooth" });
}

/** Fills the form in without an image to edit; with two ends, where the images were between such. */
function fillIn(values, ends) {
  edit.close();
  if (!ends) form.fill(values);
  else form.fill({ ...values, ...(edit.areSeeds(ends) ? { seed: null } : { prompt: "" }) }); // which are made of the ends
  if (ends) edit.openEnds(ends);
}

/** Uses what was learned for the images to come. */
function useLearned({ name, token }) {
  if (!edit.usesPrompt()) edit.close();
  form.useAdapter(name, token);
  focusPrompt();
  $("form").scrollIntoView({ block: "nearest", behavior: "smooth" });
  toast(`“${token}” can be used in prompts`);
}

function beginEdit(image, how) {
  edit.open(image, how).catch((error) => {
    edit.close();
    toast(`The image could not be loaded: ${error.message}`, { error: true });
  });
}

/** Begins to edit an image of a job, with its prompt, or the nearer one of two, and its settings. */
function editImage(job, image) {
  const { ends } = job.edit ?? {};
  const nearest = ends && !edit.areSeeds(ends) ? ends[Math.round(image.index / (job.images.length - 1))] : null;
  const prompt = nearest ?? image.prompt;
  form.fill({
    prompt, negative_prompt: job.negative_prompt, seed: null, count: 1,
    settings: job.settings, height: image.height, width: image.width, lora: job.lora,
  });
  beginEdit({ ...image, prompt });
}

async function editFile(file) {
  if (!file) return;
  try {
    await edit.openFile(file);
  } catch (error) {
    form.message(`“${file.name.slice(0, 60)}”: ${error.message}`, { error: true });
  }
}

async function reuseFile(file) {
  if (!file) return;
  mayAskForToken();
  try {
    const most = description?.limits.max_upload_bytes ?? Infinity;
    if (file.size > most) throw new Error(`This file is larger than ${Math.floor(most / 2 ** 20)} MiB: give a PNG that was made here.`);
    const made = await postFile(file);
    const { ends } = made.edit ?? {};
    fillIn({ ...made, count: 1 }, ends);
    focusPrompt();
    scrollTo({ top: 0, behavior: "smooth" });
    if (made.edit && !ends) form.message("It was made from another image, which is not in the file. Its settings are filled in.");
    else if (made.same_model || made.lora.length) toast("Settings filled in"); // with adapters, weights are others
    else form.message("Another model made this image. Its settings are filled in; the image will look different.");
  } catch (error) {
    const name = file.name ? `“${file.name.slice(0, 60)}”: ` : "";
    form.message(`${name}${error.message}`, { error: true });
  }
}

function setUpFiles() {
  $("from-file").onclick = () => $("file").click();
  $("file").onchange = () => { reuseFile($("file").files[0]); $("file").value = ""; };
  $("edit-file").onclick = () => $("image-file").click();
  $("edit-between").onclick = () => edit.openEnds();
  $("image-file").onchange = () => { editFile($("image-file").files[0]); $("image-file").value = ""; };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // dragenter and dragleave come for every element on the way
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    show($("drop-teach"), teach.isOpen());
    show($("drop"), true);
  });
  addEventListener("dragleave", (event) => { if (hasFiles(event) && (depth -= 1) <= 0) { depth = 0; show($("drop"), false); } });
  const isOver = (id, event) => { // whether it is over that part of the page
    const { left, right, top, bottom } = $(id).getBoundingClientRect();
    return event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
  };
  const useOf = (event) => ["edit", "teach"].find((use) => isShown($(`drop-${use}`)) && isOver(`drop-${use}`, event)) ?? "settings";
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").dataset.over = useOf(event);
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    const use = useOf(event);
    show($("drop"), false);
    document.querySelector("dialog[open]")?.close();
    const [...files] = event.dataTransfer.files;
    if (use === "teach") teach.addFiles(files);
    else if (use === "edit") editFile(files[0]);
    else reuseFile(files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type === "image/png");
    if (file) { event.preventDefault(); reuseFile(file); }
  });
}

// ---- token, connection

function askForToken(refused) {
  const dialog = $("token-dialog");
  show($("token-error"), refused);
  $("token-error").textContent = "That token is not right.";
  $("token").value = "";
  return new Promise((resolve) => {
    let token = null;
    $("token-form").onsubmit = () => { token = $("token").value.trim() || null; };
    $("token-cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(token), { once: true });
    dialog.showModal();
    $("token").focus();
  });
}

function setUpConnection() {
  connection.addEventListener("change", () => {
    show($("banner"), connection.lost);
    $("banner").textContent = "Connection lost. Trying again; your jobs go on.";
    if (!connection.lost) { announce("Connected again"); watchReadiness(); }
  });
}

async function watchReadiness() {
  const ready = await isReady();
  const state = $("server-state");
  show(state, !ready);
  state.textContent = "Getting ready";
  state.title = "The server is compiling. Jobs are accepted, and start when it is done.";
  if (!ready) setTimeout(watchReadiness, 2000);
}

// ---- start

async function start() {
  takeTokenFromAddress();
  onTokenNeeded(askForToken);
  form.setUpForm(submit);
  viewer.setUpViewer({ reuse, edit: editImage });
  edit.setUpEdit();
  teach.setUpTeach({ use: useLearned });
  setUpFiles();
  setUpConnection();
  watchReadiness();
  await loadCascade();
  const open = (job, index) => viewer.open(job, job.images.find((image) => image.index === index));
  await jobs.setUpJobs({ ended: gallery.historyChanged, open, reuse });
  await gallery.setUpGallery({
    open: viewer.openKey, openJob: (job) => viewer.open(job, null), compare: viewer.compare,
    example: (prompt) => { if (!edit.usesPrompt()) edit.close(); form.fill({ prompt }); submit(); },
  });
}

/** Fits the page to the cascade; where that needs a token that is not given, once it is. */
async function loadCascade() {
  while (!description) {
    try {
      description = await getJson("v1/cascade");
      $("cascade-name").textContent = description.name;
      form.setCascade(description);
      viewer.setCascade(description);
      edit.setCascade(description);
      edit.restore();
      teach.setCascade(description);
      gallery.setExamples(description.examples);
    } catch (error) {
      if (!(error instanceof ConnectionError)) {
        const again = el("button", { type: "button", onclick: () => location.reload() }, "Try again");
        form.message(error.message, { error: true, buttons: [again] });
        return;
      }
      await reachable();
    }
  }
}

start();
