"use strict";
// Charts as inline SVG, drawn at the width that there is. No library, no request.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const digits = (value, count = 3) => String(Number(value.toPrecision(count)));
const percent = (value) => digits(100 * value) + "%";
const integer = (value) => Math.round(value).toLocaleString("en-US");
const nats = (value) => (value === 0 ? "0" : value >= 0.01 && value < 1e5 ? digits(value) : value.toExponential(0));
const shortened = (name, most) => (name.length <= most ? name : name.slice(0, Math.ceil(most / 2) - 1) + "…" + name.slice(-Math.floor(most / 2)));

function scale(domain, range, log) {
  const of = log ? Math.log10 : (v) => v;
  const [low, high] = domain.map(of);
  const span = high - low || 1;
  return (v) => range[0] + ((of(v) - low) / span) * (range[1] - range[0]);
}

function ticks([low, high], log, count) {
  const found = [];
  if (log) {
    const decades = Math.log10(high / low);
    const steps = decades <= 1.5 ? [1, 2, 5] : decades <= 3 ? [1, 3] : [1];
    const every = Math.max(1, Math.ceil(decades / Math.max(count, 2)));
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      if (e % every === 0)
        for (const s of steps) {
          const v = s * 10 ** e;
          if (v >= low * 0.999 && v <= high * 1.001) found.push(v);
        }
    return found;
  }
  const raw = (high - low) / Math.max(count, 2);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= raw) || power;
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}

// An empty picture in a box: role, name, size. What it shows is told by arrow keys.
function picture(box, width, height, name) {
  box.replaceChildren();
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": name, tabindex: 0 });
  svg.style.height = "auto";
  box.append(svg);
  return svg;
}

// Axes; gives the scales back. `x` and `y`: label, domain, log, form.
function axes(box, { x, y, height = 260, name, right = 14 }) {
  const width = Math.max(box.clientWidth, 240);
  const low = height - 38, left = 52, top = 26;
  const svg = picture(box, width, height, name);
  const of = { x: scale(x.domain, [left, width - right], x.log), y: scale(y.domain, [low, top], y.log) };
  for (const v of ticks(y.domain, y.log, 5)) {
    make("line", { class: "axis", x1: left, x2: width - right, y1: of.y(v), y2: of.y(v) }, svg);
    make("text", { x: left - 6, y: of.y(v) + 4, "text-anchor": "end" }, svg, y.form(v));
  }
  let last = -1e9;
  for (const v of x.values || ticks(x.domain, x.log, width / 110)) {
    const at = of.x(v), text = x.form(v);
    make("line", { class: "axis", x1: at, x2: at, y1: low, y2: low + 4 }, svg);
    if (at - last < 7 * text.length + 8) continue;
    make("text", { x: at, y: low + 17, "text-anchor": at > width - right - 12 ? "end" : "middle" }, svg, text);
    last = at;
  }
  make("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, svg, x.label);
  make("text", { x: 2, y: 11, class: "ink" }, svg, y.label);
  return { svg, width, height, left, low, top, right: width - right, ...of };
}

function line(at, points, kind, tip) {
  const good = points.filter((p) => p[1] !== null && p[0] !== null);
  const path = good.map((p, i) => (i ? "L" : "M") + at.x(p[0]).toFixed(1) + " " + at.y(p[1]).toFixed(1)).join("");
  const node = make("path", { class: "line " + kind, d: path }, at.svg);
  if (tip) node.dataset.tip = tip;
  return node;
}

function dot(at, px, py, kind, tip, r = 4) {
  return make("circle", { class: "dot " + kind, cx: at.x(px).toFixed(1), cy: at.y(py).toFixed(1), r, "data-tip": tip }, at.svg);
}

// A place on a line that says what it is when it is pointed at.
function spot(at, px, py, tip) {
  return make("circle", { class: "spot", cx: at.x(px).toFixed(1), cy: at.y(py).toFixed(1), r: 5, "data-tip": tip }, at.svg);
}

function said(at, px, py, text, kind = "", anchor = "start") {
  return make("text", { x: px, y: py, class: kind, "text-anchor": anchor }, at.svg, text);
}

function bounds(values, fallback) {
  const good = values.filter((v) => v !== null && isFinite(v));
  return good.length ? [Math.min(...good), Math.max(...good)] : fallback;
}

// Each layer as a bar whose length is its width, in order; sums above, other reads below.
function architecture(box, flow) {
  const count = flow.layers.length;
  const width = Math.max(box.clientWidth, 240);
  const slot = Math.min((width - 24) / Math.max(count, 1), 90);
  const left = (width - slot * count) / 2;
  const bar = Math.max(Math.min(slot * 0.74, 46), 1);
  const most = Math.max(1, ...flow.layers.map((l) => Math.max(l[2], l[3])));
  const sums = flow.joins.filter((j) => j[0].length > 1);
  const reads = [];
  for (const j of flow.joins)
    if (j[0].length === 1) for (const r of j[1]) if (r > j[0][0] + 1) reads.push([j[0][0], r, j]);
  const above = sums.length ? 54 : 12, below = reads.length ? 44 : 8;
  const tall = count > 60 ? 150 : 170, top = above, base = top + tall, middle = top + tall / 2;
  const numbers = slot >= 30, named = slot >= 78;
  const height = base + below + (numbers ? 32 : 0) + 24;
  const svg = picture(box, width, height, `Architecture: ${count} layers along the data flow, with their widths before and after. Arrow keys go through them.`);
  const x = (i) => left + slot * (i + 0.5);
  make("line", { class: "axis", x1: Math.max(left - 10, 0), x2: Math.min(left + slot * count + 10, width), y1: middle, y2: middle }, svg);
  const half = (units) => Math.max((units / most) * tall * 0.47, units ? 1 : 0);
  const edge = (i, up) => middle + (up ? -1 : 1) * (half(flow.layers[i][2]) + 5);
  const arc = (from, to, up, kind) => {
    const room = (up ? above : below) - 10;
    const rise = Math.min(room, 10 + (room * Math.abs(to - from)) / Math.max(count * 0.25, 4)) * 1.3;
    const between = flow.layers.slice(from, to + 1).map((_, i) => edge(from + i, up));
    const peak = up ? Math.min(...between) - rise : Math.max(...between) + rise;
    make("path", { class: kind, d: `M${x(from)} ${edge(from, up)}C${x(from)} ${peak} ${x(to)} ${peak} ${x(to)} ${edge(to, up)}` }, svg);
  };
  for (const [from, to] of reads) arc(from, to, false, "read");
  for (const [writers] of sums) {
    for (let i = 1; i < writers.length; i++) arc(writers[i - 1], writers[i], true, "join");
    if (slot > 7)
      for (const w of writers.slice(1)) {
        make("circle", { class: "plus", cx: x(w), cy: edge(w, true), r: 4 }, svg);
        make("path", { class: "join", d: `M${x(w) - 2} ${edge(w, true)}h4M${x(w)} ${edge(w, true) - 2}v4` }, svg);
      }
  }
  flow.layers.forEach((l, i) => {
    const b = half(l[2]), a = half(l[3]);
    const rect = (h, kind, w) => make("rect", { class: kind, x: x(i) - w / 2, y: middle - h, width: w, height: 2 * h, rx: Math.min(1.5, w / 4) }, svg);
    if (l[3]) {
      rect(b, "was", bar);
      rect(a, "is", bar);
    } else rect(b, "gone", bar);
    const kept = l[2] ? percent(l[3] / l[2]) : "-";
    const joined = sums.filter((j) => j[0].includes(i)).length ? "\njoined with other layers: their units go together" : "";
    const tip = `${l[0]} (${l[1]})\n${integer(l[2])} → ${integer(l[3])} units (${kept})\n${integer(l[4])} → ${integer(l[5])} MACs` + (l[3] ? "" : "\ndropped") + joined + (l[6] ? "\nnot pruned: " + l[6] : "");
    make("rect", { class: "hit", x: x(i) - slot / 2, y: top, width: slot, height: base - top, "data-tip": tip }, svg);
    if (numbers) {
      make("text", { x: x(i), y: base + below + 6, "text-anchor": "middle", class: "is-text" }, svg, integer(l[3]));
      make("text", { x: x(i), y: base + below + 21, "text-anchor": "middle" }, svg, integer(l[2]));
    }
    if (named) make("text", { x: x(i), y: height - 4, "text-anchor": "middle" }, svg, shortened(l[0], Math.floor(slot / 7)));
  });
  if (!named) stages(svg, flow.layers.map((l) => l[0]), x, slot, height - 4);
}

// Names of neighbours that begin alike, once for all of them.
function stages(svg, names, x, slot, y) {
  let first = 0;
  const begin = (name) => name.split(".")[0];
  const root = new Set(names.map(begin)).size === 1 && names.length > 1;
  const key = root ? (name) => name.split(".").slice(0, 3).join(".") : begin;
  for (let i = 1; i <= names.length; i++) {
    if (i < names.length && key(names[i]) === key(names[first])) continue;
    const room = slot * (i - first);
    if (room > 26) {
      make("line", { class: "axis", x1: x(first) - slot * 0.4, x2: x(i - 1) + slot * 0.4, y1: y - 14, y2: y - 14 }, svg);
      make("text", { x: (x(first) + x(i - 1)) / 2, y, "text-anchor": "middle" }, svg, shortened(key(names[first]), Math.max(3, Math.floor(room / 7))));
    }
    first = i;
  }
}

function tradeoff(box, data) {
  const most = data.tolerance === null ? 1 : Math.max(2.5 * data.tolerance, 1.4 * data.chosen[2], 0.01);
  const inside = data.points.filter((p) => p[1] <= most);
  const xs = [...inside.map((p) => p[0]), data.chosen[0]].filter((v) => v > 0);
  const top = Math.min(most, 1.15 * Math.max(data.tolerance || 0, data.chosen[2], ...inside.map((p) => p[1]), 0.01));
  const at = axes(box, {
    x: { label: "MACs kept", domain: [Math.min(...xs, 0.9) * 0.85, 1], log: true, form: percent },
    y: { label: "answers that change", domain: [0, Math.min(top, 1)], form: percent },
    height: 300, name: "Changed answers against MACs kept, for every candidate. Arrow keys go through them.",
  });
  const ends = Math.min(top, 1);
  line(at, inside.filter((p) => p[1] <= ends), "");
  if (data.tolerance !== null && data.tolerance <= ends) {
    make("line", { class: "rule", x1: at.left, x2: at.right, y1: at.y(data.tolerance), y2: at.y(data.tolerance) }, at.svg);
    said(at, at.right, at.y(data.tolerance) - 5, `tolerance ${percent(data.tolerance)}`, "join-text", "end");
  }
  for (const p of inside) if (p[1] <= ends) dot(at, p[0], p[1], p[2] ? "full" : "", p[3]);
  const beyond = data.points.length - inside.length;
  const [x, y, bound, tip] = data.chosen;
  if (x > 0) {
    make("line", { class: "whisker", x1: at.x(x), x2: at.x(x), y1: at.y(y), y2: at.y(Math.min(bound, ends)) }, at.svg);
    make("line", { class: "whisker", x1: at.x(x) - 5, x2: at.x(x) + 5, y1: at.y(Math.min(bound, ends)), y2: at.y(Math.min(bound, ends)) }, at.svg);
    make("rect", { class: "chosen", x: at.x(x) - 5, y: at.y(y) - 5, width: 10, height: 10, "data-tip": tip }, at.svg);
    const flip = at.x(x) > at.width * 0.6;
    said(at, at.x(x) + (flip ? -10 : 10), at.y(y) + 15, `chosen: ${percent(x)}`, "is-text", flip ? "end" : "start");
  }
  if (beyond) said(at, at.right, 11, `${beyond} further candidate${beyond > 1 ? "s" : ""} above ${percent(ends)}`, "", "end");
  if (data.points.some((p) => p[2])) said(at, at.left + 8, at.low - 8, "filled: distilled");
}

function unitMap(box, unit) {
  const heard = unit.listened.filter((v) => v > 0);
  const [low, high] = bounds(heard, [1e-6, 1]);
  const floor = Math.max(low, high * 1e-7);
  const y = [floor * 0.6, high * 1.7];
  const missed = (v) => Math.min(Math.max(v, 1e-6), 1);
  const [least] = bounds(unit.missed.map(missed), [1e-6, 1]);
  const at = axes(box, {
    x: { label: "share that the other units do not explain", domain: [Math.min(least * 0.7, 0.5), 1], log: true, form: percent },
    y: { label: "labels listen: nats lost without the unit", domain: y, log: true, form: nats },
    name: `Units of ${unit.name}: how much the labels listen against what the other units do not explain. Arrow keys go through them.`,
  });
  const clip = "clip" + Math.random().toString(36).slice(2);
  const area = make("clipPath", { id: clip }, at.svg);
  make("rect", { x: at.left, y: at.top, width: at.right - at.left, height: at.low - at.top }, area);
  const inside = make("g", { "clip-path": `url(#${clip})` }, at.svg);
  for (let e = -14; e < 4; e++)
    make("line", { class: "iso", x1: at.x(1e-7), y1: at.y(10 ** (e + 7)), x2: at.x(1), y2: at.y(10 ** e) }, inside);
  const places = unit.number.map((_, i) => i).sort((a, b) => unit.stays[a] - unit.stays[b]);
  for (const i of places) {
    const cost = unit.listened[i] * unit.missed[i];
    dot(at, missed(unit.missed[i]), Math.max(unit.listened[i], floor), unit.stays[i] ? "stay" : "go",
      `unit ${unit.number[i]}, ${unit.stays[i] ? "kept" : "removed"}\nlabels listen: ${nats(unit.listened[i])} nats\nothers explain ${percent(1 - unit.missed[i])}\ncosts ${nats(cost)} nats`, 3.5);
  }
}

function costCurve(box, unit) {
  const points = unit.cost.filter((p) => p[1] !== null && p[1] > 0);
  if (!points.length) return nothing(box, "Nothing is lost.");
  const [low, high] = bounds(points.map((p) => p[1]), [0.1, 1]);
  const floor = Math.max(low, high * 1e-7);
  const at = axes(box, {
    x: { label: "units that stay", domain: [0, unit.units], form: integer },
    y: { label: "nats", domain: [floor * 0.7, high * 1.4], log: true, form: nats }, height: 220,
    name: `What is lost when only so many units of ${unit.name} stay`,
  });
  line(at, points.filter((p) => p[1] >= floor), "strong");
  for (const p of points) if (p[1] >= floor) spot(at, p[0], p[1], `${integer(p[0])} units stay: ${nats(p[1])} nats`);
  make("line", { class: "rule", x1: at.x(unit.kept), x2: at.x(unit.kept), y1: at.top, y2: at.low }, at.svg);
  said(at, at.x(unit.kept) + (unit.kept > unit.units / 2 ? -5 : 5), at.top + 10, `${integer(unit.kept)} stay`, "join-text", unit.kept > unit.units / 2 ? "end" : "start");
}

function varianceOf(box, unit) {
  if (!unit.variance.length) return nothing(box, "Not shown: more units than eigenvalues were computed for.");
  const at = axes(box, {
    x: { label: "principal components", domain: [0, unit.units], form: integer },
    y: { label: "explained", domain: [0, 1], form: percent }, height: 220, name: `Explained variance of the units of ${unit.name}`,
  });
  line(at, [[0, 0], ...unit.variance], "strong");
  for (const p of unit.variance) spot(at, p[0], p[1], `${integer(p[0])} components: ${percent(p[1])}`);
}

function nothing(box, text) {
  box.replaceChildren();
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = text;
  box.append(note);
}

// A correlation matrix: cells as strong as the mean |r| of their units.
function correlations(box, unit) {
  if (!unit.side) return nothing(box, "Fewer than two units vary.");
  const cells = Uint8Array.from(atob(unit.cells), (c) => c.charCodeAt(0));
  const room = Math.min(Math.max(box.clientWidth, 200), 300);
  const size = Math.max(2, Math.floor((room - 4) / unit.side));
  const edge = size * unit.side;
  const known = unit.compared || unit.units;
  box.replaceChildren();
  const canvas = document.createElement("canvas");
  const fine = window.devicePixelRatio > 1 ? 2 : 1;
  canvas.width = canvas.height = edge * fine;
  canvas.style.width = canvas.style.height = edge + "px";
  canvas.setAttribute("role", "img");
  const mean = cells.reduce((a, b) => a + b, 0) / cells.length / 255;
  canvas.setAttribute("aria-label", `Correlations of the units of ${unit.name}: mean |r| ${digits(mean, 2)}`);
  box.append(canvas);
  const style = getComputedStyle(document.documentElement);
  const pen = canvas.getContext("2d");
  pen.scale(fine, fine);
  pen.fillStyle = style.getPropertyValue("--is");
  cells.forEach((cell, i) => {
    pen.globalAlpha = (cell / 255) ** 0.7; // weak correlations are to be seen, too
    pen.fillRect((i % unit.side) * size, Math.floor(i / unit.side) * size, size, size);
  });
  pen.globalAlpha = 1;
  const range = (i) => {
    const from = Math.floor((i * known) / unit.side), to = Math.floor(((i + 1) * known) / unit.side) - 1;
    return to > from ? `${from}–${to}` : `${from}`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const [c, r] = [event.offsetX, event.offsetY].map((v) => Math.min(unit.side - 1, Math.max(0, Math.floor(v / size))));
    canvas.dataset.tip = `places ${range(r)} and ${range(c)}: mean |r| ${digits(cells[r * unit.side + c] / 255, 2)}`;
  });
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = `mean |r| ${digits(mean, 2)}`;
  if (unit.kept && unit.kept < known) {
    const at = (unit.kept / known) * edge;
    pen.strokeStyle = style.getPropertyValue("--join");
    pen.lineWidth = 1.5;
    pen.strokeRect(-2, -2, at + 2, at + 2);
    note.textContent = `the first ${unit.kept} are kept; ` + note.textContent;
  }
  box.append(note);
}
