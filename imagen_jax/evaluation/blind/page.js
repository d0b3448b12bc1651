"use strict";
(() => {
  const CHOICES = [["left", "Left"], ["tie", "Tie"], ["right", "Right"]];
  const KEYS = { ArrowLeft: "left", 1: "left", ArrowDown: "tie", 2: "tie", ArrowRight: "right", 3: "right" };
  const SMALL = 200; // pixels, below which pixels are shown as squares
  const FORMAT = "imagen_jax votes 1";
  const page = JSON.parse(document.getElementById("pairs").textContent);
  const place = `imagen_jax blind ${page.page}`;
  const at = (id) => document.getElementById(id);
  const byId = new Map(page.pairs.map((pair) => [pair.id, pair]));
  const names = page.questions.map((question) => question.name);
  let state = { rater: "", keys: true, at: 0, votes: {} };

  function load() {
    try {
      const stored = JSON.parse(localStorage.getItem(place));
      if (stored) state = { ...state, ...stored };
    } catch {
      warn("This browser keeps nothing for this page: export your votes before you close it.");
    }
  }

  function save() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      warn("This browser keeps nothing for this page: export your votes before you close it.");
    }
  }

  function warn(text) {
    at("warning").textContent = text;
    at("warning").hidden = !text;
  }

  const pair = () => page.pairs[state.at];
  const votesOf = (id) => state.votes[id] || {};
  const isDone = (one) => names.every((name) => votesOf(one.id)[name]);
  const doneCount = () => page.pairs.filter(isDone).length;
  const openQuestion = () => names.find((name) => !votesOf(pair().id)[name]);

  function build() {
    for (const question of page.questions) {
      const field = document.createElement("fieldset");
      field.dataset.question = question.name;
      const legend = document.createElement("legend");
      legend.textContent = question.text;
      const choices = document.createElement("div");
      choices.className = "choices";
      for (const [value, label] of CHOICES) {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.value = value;
        button.textContent = label;
        button.addEventListener("click", () => vote(question.name, value));
        choices.append(button);
      }
      field.append(legend, choices);
      at("questions").append(field);
    }
  }

  function showImages(side) {
    const files = pair()[side];
    const box = at(side);
    box.style.setProperty("--columns", Math.ceil(Math.sqrt(files.length)));
    box.replaceChildren(...files.map((file, number) => {
      const image = new Image();
      image.alt = `${side} image ${files.length > 1 ? number + 1 : ""}`.trim();
      image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < SMALL));
      image.addEventListener("error", () => warn(`${file} is missing: copy the whole folder of this page.`));
      image.src = file;
      return image;
    }));
  }

  function showVotes() {
    const votes = votesOf(pair().id);
    const current = openQuestion();
    for (const field of document.querySelectorAll("fieldset")) {
      field.classList.toggle("current", field.dataset.question === current);
      for (const button of field.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(votes[field.dataset.question] === button.dataset.value));
      }
    }
    const done = doneCount();
    at("bar").value = done / page.pairs.length;
    at("count").textContent = `pair ${state.at + 1} of ${page.pairs.length}, ${done} answered`;
    at("done").hidden = done < page.pairs.length;
    at("back").disabled = state.at === 0;
    at("next").disabled = state.at === page.pairs.length - 1;
    at("open").disabled = done === page.pairs.length;
  }

  function show() {
    at("prompt").textContent = pair().prompt;
    showImages("left");
    showImages("right");
    showVotes();
  }

  function go(index) {
    state.at = Math.min(Math.max(index, 0), page.pairs.length - 1);
    save();
    show();
  }

  function goToOpen() {
    const order = page.pairs.map((_, index) => (state.at + 1 + index) % page.pairs.length);
    const open = order.find((index) => !isDone(page.pairs[index]));
    if (open !== undefined) go(open);
  }

  function vote(name, value) {
    const wasDone = isDone(pair());
    state.votes[pair().id] = { ...votesOf(pair().id), [name]: value };
    save();
    showVotes();
    at("live").textContent = `${name}: ${value}`;
    if (!wasDone && isDone(pair())) {
      if (doneCount() === page.pairs.length) at("live").textContent = at("done").textContent;
      else {
        goToOpen();
        at("live").textContent = `Next: ${pair().prompt}`;
        at("prompt").focus({ preventScroll: true });
      }
    }
  }

  function onKey(event) {
    const isText = event.target.closest("input:not([type=checkbox]), textarea, select");
    if (!state.keys || isText || event.ctrlKey || event.metaKey || event.altKey) return;
    if (KEYS[event.key]) vote(openQuestion() || names[names.length - 1], KEYS[event.key]);
    else if (event.key === "Backspace") go(state.at - 1);
    else if (event.key === "n" || event.key === "N") go(state.at + 1);
    else return;
    event.preventDefault();
  }

  function exportVotes() {
    if (!state.rater.trim()) {
      warn("Give your name first: votes are counted by rater.");
      at("rater").focus();
      return;
    }
    warn("");
    const votes = { format: FORMAT, page: page.page, rater: state.rater.trim(), votes: state.votes };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(votes, null, 1)], { type: "application/json" }));
    link.download = `votes_${state.rater.trim().replace(/[^\p{L}\p{N}]+/gu, "_")}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
    at("saved").textContent = `${doneCount()} answered pairs of ${page.pairs.length} are exported.`;
  }

  function readVotes(text) {
    let given;
    try {
      given = JSON.parse(text);
    } catch {
      throw new Error("This file is not JSON: choose one that this page has exported.");
    }
    if (!given || given.format !== FORMAT || typeof given.votes !== "object" || typeof given.rater !== "string") {
      throw new Error("This file has no votes: choose one that this page has exported.");
    }
    if (given.page !== page.page) throw new Error("These votes are of another page.");
    const own = state.rater.trim();
    if (own && own !== given.rater) throw new Error(`These votes are those of ${given.rater}, not of ${own}.`);
    for (const [id, votes] of Object.entries(given.votes)) {
      const isValid = ([name, value]) => names.includes(name) && CHOICES.some(([choice]) => choice === value);
      if (!byId.has(id) || !Object.entries(votes).every(isValid)) throw new Error("This file of votes is damaged.");
    }
    return given;
  }

  async function importVotes(event) {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    try {
      const given = readVotes(await file.text());
      state.rater = given.rater;
      for (const [id, votes] of Object.entries(given.votes)) state.votes[id] = { ...votesOf(id), ...votes };
      warn("");
      at("rater").value = state.rater;
      at("saved").textContent = `Votes for ${Object.keys(given.votes).length} pairs are imported.`;
      save();
      show();
    } catch (error) {
      warn(error.message);
    }
  }

  load();
  build();
  at("rater").value = state.rater;
  at("keys").checked = state.keys;
  at("rater").addEventListener("input", () => { state.rater = at("rater").value; save(); });
  at("keys").addEventListener("change", () => { state.keys = at("keys").checked; save(); });
  at("back").addEventListener("click", () => go(state.at - 1));
  at("next").addEventListener("click", () => go(state.at + 1));
  at("open").addEventListener("click", goToOpen);
  at("export").addEventListener("click", exportVotes);
  at("import").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", importVotes);
  document.addEventListener("keydown", onKey);
  go(state.at);
})();
