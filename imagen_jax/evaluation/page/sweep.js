// The page of a sweep: a plot of two metrics, whose points show their images.

const data = JSON.parse(document.getElementById("sweep-data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// of Okabe and Ito, which color-blind people tell apart, but for those too light or too dark for either background
const COLORS = ["#0a7fc0", "#d55e00", "#0a9a70", "#c2619b", "#b58900", "#7a6fd0", "#8c6d4f", "#5f7f86"];
const DASHES = ["", "6 4", "2 3", "9 3 2 3"];
const MARGIN = { left: 58, right: 16, top: 14, bottom: 46 };
const hidden = new Set(); // series
let curve = data.curves[0];
let shown = null; // index of the point that is shown
let kept = null; // index of the point that is kept beside it
let last = null; // index of the point that Tab leads to

function node(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  Object.assign(element, attributes);
  element.append(...children);
  return element;
}

const style = (series) => ({ color: COLORS[series % COLORS.length], dash: DASHES[Math.floor(series / COLORS.length) % DASHES.length] });
const value = (point, metric) => point.metrics[metric].value;

function bounds(point, metric) {
  const { value: middle, low, high, std, error } = point.metrics[metric];
  if (low !== undefined) return [low, high];
  const spread = std ?? error ?? 0;
  return [middle - spread, middle + spread];
}

function text(number, metric) {
  if (data.metrics[metric].rate) return `${(100 * number).toFixed(1)}%`;
  return Math.abs(number) >= 100 ? number.toFixed(0) : Number(number.toPrecision(4)).toString();
}

function describe(point, metric) {
  const { low, std, error } = point.metrics[metric];
  if (low !== undefined) return `${text(value(point, metric), metric)} (${bounds(point, metric).map((end) => text(end, metric)).join(" – ")})`;
  const spread = std ?? error;
  return text(value(point, metric), metric) + (spread === undefined ? "" : ` ± ${text(spread, metric)}`);
}

/** Returns a scale from values to pixels, and round values for ticks. */
function scale(values, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [low - margin, high + margin];
  const count = Math.max(2, Math.abs(to - from) / 80);
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => (high - low) / size <= count) ?? 10 * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step); tick <= high / step; tick++) ticks.push(tick * step);
  return { at: (number) => from + ((number - low) / (high - low)) * (to - from), ticks };
}

const visible = () => data.points.map((_, index) => index).filter((index) => !hidden.has(data.points[index].series));

function draw() {
  const svg = $("plot");
  const focused = document.activeElement?.closest?.("#plot .point")?.dataset.index;
  const width = svg.parentElement.clientWidth;
  const height = Math.round(Math.min(520, Math.max(300, width * 0.72)));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  svg.replaceChildren();
  const indices = visible();
  const points = indices.map((index) => data.points[index]);
  if (!points.length) {
    svg.append(node("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no series is chosen"));
    return;
  }
  const x = scale(points.flatMap((point) => bounds(point, curve.gain)), MARGIN.left, width - MARGIN.right);
  const y = scale(points.flatMap((point) => bounds(point, curve.cost)), height - MARGIN.bottom, MARGIN.top);
  drawAxes(svg, x, y, width, height);
  const place = (point) => [x.at(value(point, curve.gain)), y.at(value(point, curve.cost))];
  const front = indices.filter((index) => curve.optimal.includes(index)).map((index) => data.points[index]);
  front.sort((one, other) => value(one, curve.gain) - value(other, curve.gain));
  svg.append(node("polyline", { class: "front", points: front.map(place).join(" ") }));
  for (const series of new Set(points.map((point) => point.series))) {
    const line = points.filter((point) => point.series === series);
    const { color, dash } = style(series);
    svg.append(node("polyline", { class: "series", stroke: color, "stroke-dasharray": dash, points: line.map(place).join(" ") }));
  }
  for (const point of points) drawWhiskers(svg, point, x, y);
  for (const index of indices) svg.append(drawPoint(index, place(data.points[index])));
  if (focused !== undefined) svg.querySelector(`[data-index="${focused}"]`)?.focus();
}

function drawAxes(svg, x, y, width, height) {
  for (const tick of x.ticks) {
    svg.append(node("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: MARGIN.top, y2: height - MARGIN.bottom }));
    svg.append(node("text", { class: "tick", x: x.at(tick), y: height - MARGIN.bottom + 16, "text-anchor": "middle" }, text(tick, curve.gain)));
  }
  for (const tick of y.ticks) {
    svg.append(node("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(tick), y2: y.at(tick) }));
    svg.append(node("text", { class: "tick", x: MARGIN.left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, text(tick, curve.cost)));
  }
  const middle = (height - MARGIN.bottom + MARGIN.top) / 2;
  svg.append(node("text", { x: (MARGIN.left + width) / 2, y: height - 8, "text-anchor": "middle" }, `${data.metrics[curve.gain].label} (more is better)`));
  svg.append(node("text", { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, `${data.metrics[curve.cost].label} (less is better)`));
}

function drawWhiskers(svg, point, x, y) {
  const [left, top] = [x.at(value(point, curve.gain)), y.at(value(point, curve.cost))];
  const [low, high] = bounds(point, curve.gain).map(x.at);
  const [bottom, upper] = bounds(point, curve.cost).map(y.at);
  const stroke = style(point.series).color;
  svg.append(node("line", { class: "whisker", stroke, x1: low, x2: high, y1: top, y2: top }));
  svg.append(node("line", { class: "whisker", stroke, x1: left, x2: left, y1: bottom, y2: upper }));
}

function drawPoint(index, [left, top]) {
  const point = data.points[index];
  const { color } = style(point.series);
  const isOptimal = curve.optimal.includes(index);
  const label = `${point.label}: ${data.metrics[curve.gain].label} ${describe(point, curve.gain)}, ${data.metrics[curve.cost].label} ${describe(point, curve.cost)}${isOptimal ? ", Pareto-optimal" : ""}`;
  const group = node("g", { class: "point", role: "button", "aria-label": label, "aria-pressed": index === kept, tabindex: index === tabStop() ? 0 : -1, "data-index": index });
  group.append(node("circle", { cx: left, cy: top, r: 13, fill: "transparent" })); // for fingers
  group.append(node("circle", { cx: left, cy: top, r: 5, fill: color }));
  if (isOptimal) group.append(node("circle", { class: "optimal", cx: left, cy: top, r: 7.5 }));
  group.append(node("circle", { class: "halo", cx: left, cy: top, r: 10.5 }));
  if (isOptimal) group.append(node("text", { class: "tick", x: left + 11, y: top - 8 }, point.mark));
  group.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(index); });
  group.addEventListener("click", () => choose(index));
  group.addEventListener("focus", () => { if (group.matches(":focus-visible")) show(index); });
  return group;
}

/** The one point that Tab leads to; arrows lead from it to the others. */
function tabStop() {
  const indices = visible();
  return indices.includes(last) ? last : indices[0];
}

function mark() {
  for (const group of document.querySelectorAll("#plot .point")) {
    const index = Number(group.dataset.index);
    group.classList.toggle("shown", index === shown);
    group.classList.toggle("kept", index === kept);
    group.setAttribute("aria-pressed", index === kept);
    group.setAttribute("tabindex", index === tabStop() ? 0 : -1);
  }
  for (const row of document.querySelectorAll("#points tr[data-index]")) row.classList.toggle("shown", Number(row.dataset.index) === shown);
}

function show(index) {
  shown = last = index;
  fill($("shown"), data.points[index]);
  mark();
}

/** A point that is chosen is shown, and stays beside those that are shown later; chosen again, it does not. */
function choose(index) {
  show(index);
  keep(kept === index ? null : index);
}

function keep(index) {
  kept = index;
  $("kept").hidden = index === null;
  if (index !== null) fill($("kept"), data.points[index]);
  mark();
}

function fill(card, point) {
  card.querySelector("h2").textContent = point.label;
  const rows = Object.keys(data.metrics).flatMap((metric) => [el("dt", {}, data.metrics[metric].label), el("dd", {}, describe(point, metric))]);
  card.querySelector("dl").replaceChildren(...rows);
  card.querySelector(".images").replaceChildren(...point.images.map((src, number) => {
    const image = el("img", { src, alt: data.captions[number], title: data.captions[number] });
    image.onload = () => image.classList.toggle("pixels", image.naturalWidth <= 64);
    return el("figure", {}, image, el("figcaption", {}, data.captions[number]));
  }));
}

function move(event) {
  const group = event.target.closest(".point");
  if (!group) return;
  const index = Number(group.dataset.index);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (event.key === "Enter" || event.key === " ") choose(index);
  else if (event.key === "Escape") keep(null);
  else if (step) {
    const order = visible().sort((one, other) => value(data.points[one], curve.gain) - value(data.points[other], curve.gain));
    const next = order[(order.indexOf(index) + step + order.length) % order.length];
    show(next);
    document.querySelector(`#plot [data-index="${next}"]`).focus();
  } else return;
  event.preventDefault();
}

function setUp() {
  $("curve").replaceChildren(...data.curves.map((one, number) => el("option", { value: number }, `${data.metrics[one.gain].label} and ${data.metrics[one.cost].label}`)));
  $("curve").parentElement.hidden = data.curves.length < 2;
  $("curve").onchange = () => { curve = data.curves[Number($("curve").value)]; draw(); mark(); };
  $("legend").hidden = data.series.length < 2;
  data.series.forEach((name, series) => {
    const { color, dash } = style(series);
    const sample = node("svg", { viewBox: "0 0 36 14", "aria-hidden": "true" });
    sample.append(node("line", { x1: 0, x2: 36, y1: 7, y2: 7, stroke: color, "stroke-width": 2, "stroke-dasharray": dash }), node("circle", { cx: 18, cy: 7, r: 4.5, fill: color }));
    const box = el("input", { type: "checkbox", checked: true });
    box.onchange = () => { hidden[box.checked ? "delete" : "add"](series); draw(); mark(); };
    $("legend").append(el("label", {}, box, sample, name));
  });
  $("plot").addEventListener("keydown", move);
  $("points").addEventListener("click", (event) => {
    const row = event.target.closest("button")?.closest("tr[data-index]");
    if (row) choose(Number(row.dataset.index));
  });
  new ResizeObserver(() => { draw(); mark(); }).observe($("plot").parentElement);
  draw();
  show(curve.optimal[Math.floor(curve.optimal.length / 2)] ?? 0);
}

setUp();
