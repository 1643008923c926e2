const data = JSON.parse(document.getElementById("data").textContent);
const boxes = (name) => document.querySelector(`[data-chart="${name}"] .plot`);

// What each chart draws; those of a layer are drawn again when another one is chosen.
const choose = document.getElementById("choose");
const chosen = () => Number(choose ? choose.value : 0);
const CHARTS = {
  architecture: (box) => architecture(box, data.flow),
  tradeoff: (box) => tradeoff(box, data.tradeoff),
  map: (box) => unitMap(box, data.units[chosen()]),
  cost: (box) => costCurve(box, data.units[chosen()]),
  variance: (box) => (data.units ? varianceOf(box, data.units[chosen()]) : varianceOfAll(box)),
  correlations: (box) => correlations(box, (data.units || data.layers)[chosen()]),
  ablation: (box) => ablation(box),
  histogram: (box) => histogram(box, data.layers[chosen()]),
  gain0: (box) => growth(box, data.panels[0]),
  gain1: (box) => growth(box, data.panels[1]),
  frontiers: (box) => frontiers(box),
};
const OF_LAYER = ["map", "cost", "variance", "correlations", "ablation", "histogram"];

function ablation(box) {
  const at = axes(box, {
    x: { label: "ablated units", domain: [0, 1], form: percent }, y: { label: "unchanged labels", domain: [0, 1], form: percent },
    name: "Unchanged labels against ablated units: the network, all layers and the chosen one",
  });
  const mine = data.layers[chosen()];
  for (const l of data.layers) if (l !== mine) line(at, l.ablation, "faint", l.name);
  make("line", { class: "rule", x1: at.left, x2: at.right, y1: at.y(1 - data.tolerance), y2: at.y(1 - data.tolerance) }, at.svg);
  line(at, data.network, "ink-line", "network");
  for (const p of data.network) dot(at, p[0], p[1], "", `network: ${percent(p[0])} ablated, ${percent(p[1])} of labels unchanged`, 3);
  line(at, mine.ablation, "strong", mine.name);
  for (const p of mine.ablation) dot(at, p[0], p[1], "full", `${mine.name}: ${percent(p[0])} ablated, ${percent(p[1])} of labels unchanged`, 3);
  label(at, data.network, "network", "ink", 0.5);
  if (mine.ablation.length) label(at, mine.ablation, shortened(mine.name, 24), "is-text", 0.75);
  said(at, at.left + 6, at.y(1 - data.tolerance) + 14, `tolerance ${percent(data.tolerance)}`, "join-text");
}

// A name beside its curve, at some share of the way.
function label(at, points, text, kind, share) {
  const p = points[Math.round((points.length - 1) * share)];
  const far = at.x(p[0]) > at.width * 0.55;
  said(at, at.x(p[0]) + (far ? -9 : 9), Math.max(at.y(p[1]) - 6, at.top + 10), text, kind, far ? "end" : "start");
}

function varianceOfAll(box) {
  const at = axes(box, {
    x: { label: "principal components, share of the units", domain: [0, 1], form: percent }, y: { label: "explained variance", domain: [0, 1], form: percent },
    name: "Explained variance against principal components: all layers and the chosen one",
  });
  const mine = data.layers[chosen()];
  for (const l of data.layers) if (l !== mine) line(at, l.variance, "faint", l.name);
  make("line", { class: "rule", x1: at.left, x2: at.right, y1: at.y(1 - data.variance), y2: at.y(1 - data.variance) }, at.svg);
  said(at, at.right, at.y(1 - data.variance) + 14, `${percent(1 - data.variance)} explained`, "join-text", "end");
  if (!mine.variance.length) return said(at, at.left + 12, at.low - 10, "the chosen layer was not measured");
  line(at, mine.variance, "strong", mine.name);
  for (const p of mine.variance) spot(at, p[0], p[1], `${percent(p[0])} of the components (${integer(p[0] * mine.units)}): ${percent(p[1])} explained`);
  said(at, at.right, at.low - 10, shortened(mine.name, 30), "is-text", "end");
}

function histogram(box, layer) {
  if (!layer.histogram.length) return nothing(box, "Fewer than two units vary, or the layer was not measured.");
  const total = layer.histogram.reduce((a, b) => a + b, 0);
  const at = axes(box, {
    x: { label: "|r| of a pair", domain: [0, 1], form: (v) => digits(v, 2) }, y: { label: "share of the pairs", domain: [0, (1.1 * Math.max(...layer.histogram)) / total], form: percent },
    height: 220, name: `Pairs of the units of ${layer.name} by their |r|`,
  });
  layer.histogram.forEach((n, i) => {
    const from = i / layer.histogram.length, to = (i + 1) / layer.histogram.length, y = at.y(n / total);
    make("rect", { class: "is", x: at.x(from), y, width: at.x(to) - at.x(from) - 0.6, height: at.low - y, "data-tip": `|r| from ${digits(from, 2)} to ${digits(to, 2)}: ${integer(n)} pairs` }, at.svg);
  });
}

function growth(box, panel) {
  const values = panel.curves.flatMap((c) => c.mean).filter((v) => v > 0);
  if (!values.length) return nothing(box, "There are no such units.");
  const widths = data.widths, [low, high] = bounds(values, [0.1, 1]);
  const at = axes(box, {
    x: { label: "width factor", domain: [widths[0], widths[widths.length - 1]], log: true, values: widths, form: (v) => `${v}x` },
    y: { label: "units / units of the widest network", domain: [low * 0.8, high * 1.25], log: true, form: (v) => digits(v, 2) },
    height: 320, name: `${panel.title} against the width`, right: 24,
  });
  for (const c of panel.curves) {
    const points = c.mean.map((v, i) => [widths[i], v]);
    const tip = `${c.name}, ${c.quantity}: ${c.gain}`;
    if (c.layer) {
      line(at, points, `faint ${c.frivolous ? "" : "dashed"}`, tip);
      continue;
    }
    line(at, points, `${c.frivolous ? "strong" : "ink-line dashed"}`, tip);
    for (const p of points) if (p[1] !== null) dot(at, p[0], p[1], "full", `${tip}\n${p[0]}x: ${digits(p[1])}`, 3);
    const good = points.filter((p) => p[1] !== null);
    if (good.length) {
      const [x, y] = good[Math.floor((good.length - 1) / 2)];
      said(at, at.x(x) + 6, at.y(y) + (c.frivolous ? 16 : -8), `${c.quantity}, ${c.gain}`, c.frivolous ? "is-text" : "ink");
    }
  }
}

const KINDS = ["strong", "ink-line", "", "strong dashed", "ink-line dashed", "dashed"];
function frontiers(box) {
  const tolerances = data.results.map((r) => r.tolerance || 0);
  const clipped = Math.max(2.5 * Math.max(...tolerances), 1.3 * Math.max(...data.results.map((r) => r.chosen[1])), 0.02);
  const all = data.results.flatMap((r) => [...r.points.map((p) => p[1]), r.chosen[1], r.tolerance || 0]);
  const most = Math.min(clipped, 1.15 * Math.max(0.02, ...all.filter((v) => v <= clipped)));
  const xs = data.results.flatMap((r) => [...r.points.filter((p) => p[1] <= most).map((p) => p[0]), r.chosen[0]]).filter((v) => v > 0);
  const at = axes(box, {
    x: { label: "MACs kept", domain: [Math.min(...xs, 0.9) * 0.85, 1], log: true, form: percent },
    y: { label: "answers that change", domain: [0, Math.min(most, 1)], form: percent }, height: 340, name: "Changed answers against MACs kept, for every candidate of every result. Arrow keys go through them.",
  });
  for (const t of new Set(data.results.map((r) => r.tolerance).filter((v) => v !== null && v <= most))) {
    make("line", { class: "rule", x1: at.left, x2: at.right, y1: at.y(t), y2: at.y(t) }, at.svg);
    said(at, at.right, at.y(t) - 5, `tolerance ${percent(t)}`, "join-text", "end");
  }
  const taken = [];
  data.results.forEach((r, i) => {
    const inside = r.points.filter((p) => p[1] <= most);
    line(at, inside, KINDS[i % KINDS.length], r.name);
    for (const p of inside) dot(at, p[0], p[1], "", `${r.name}: ${percent(p[0])} of MACs, ${percent(p[1])} changed on the search split`, 3);
    const [x, y] = r.chosen;
    if (!(x > 0)) return;
    make("rect", { class: "chosen", x: at.x(x) - 5, y: at.y(Math.min(y, most)) - 5, width: 10, height: 10, "data-tip": `${r.name}, chosen: ${percent(x)} of MACs, ${percent(y)} changed on the ${data.split || "certification"} split` }, at.svg);
    let height = at.y(Math.min(y, most)) - 9;
    while (taken.some(([px, py]) => Math.abs(px - at.x(x)) < 150 && Math.abs(py - height) < 13)) height -= 13;
    taken.push([at.x(x), height]);
    const far = at.x(x) > at.width * 0.7;
    said(at, at.x(x) + (far ? -8 : 8), height, shortened(r.name, 26), "is-text", far ? "end" : "start");
  });
}

function draw(names) {
  for (const name of names) {
    const box = boxes(name);
    if (box) CHARTS[name](box);
  }
  const note = document.getElementById("chosen");
  if (note && data.units) {
    const unit = data.units[chosen()];
    const shown = unit.number.length < unit.units ? `, ${integer(unit.number.length)} of them drawn` : "";
    note.textContent = `${integer(unit.units)} units, ${integer(unit.kept)} kept${shown}`;
  }
}

if (choose) {
  const sizes = (data.units || data.layers).map((one) => one.units || 0);
  if (data.units) choose.value = String(sizes.indexOf(Math.max(...sizes)));
  choose.addEventListener("change", () => draw(OF_LAYER));
}
draw(Object.keys(CHARTS));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(OF_LAYER));
let before = document.documentElement.clientWidth;
addEventListener("resize", () => {
  if (document.documentElement.clientWidth === before) return;
  before = document.documentElement.clientWidth;
  requestAnimationFrame(() => draw(Object.keys(CHARTS)));
});

// Contents, from the headings that there are.
for (const section of document.querySelectorAll("main > section[id]")) {
  const link = document.createElement("a");
  link.href = "#" + section.id;
  link.textContent = section.querySelector("h2").textContent;
  const item = document.createElement("li");
  item.append(link);
  document.getElementById("contents").append(item);
}

// Tables: a heading sorts, a second time the other way round.
for (const table of document.querySelectorAll("table.sortable"))
  for (const head of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(table, head));
  }

function sort(table, head) {
  const numeric = head.dataset.sort !== "text";
  const first = head.dataset.sort === "number" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const way = head.getAttribute("aria-sort") === first ? other : first;
  for (const each of table.querySelectorAll("th[aria-sort]")) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way);
  const at = head.cellIndex, sign = way === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[at];
    return numeric ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
  const body = table.tBodies[0];
  body.append(...[...body.rows].map((row) => [key(row), row]).sort((a, b) => sign * compare(a[0], b[0])).map((pair) => pair[1]));
}

for (const field of document.querySelectorAll("[data-filter]")) {
  const rows = [...document.getElementById(field.dataset.filter).tBodies[0].rows];
  const count = document.querySelector(`[data-count="${field.dataset.filter}"]`);
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${rows.length}` : `${rows.length}`;
  };
  field.addEventListener("input", filter);
  filter();
}

// What stands under the pointer, or where arrow keys have led in a chart.
const tip = document.getElementById("tip");
function show(target, x, y) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - width - 4)) + "px";
  tip.style.top = Math.max(4, y - height - 12) + "px";
}
function hide() {
  tip.hidden = true;
  for (const node of document.querySelectorAll(".at")) node.classList.remove("at");
}
document.addEventListener("pointermove", (event) => {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  if (target) show(target, event.clientX, event.clientY);
  else if (!document.querySelector(".at")) hide();
});
document.addEventListener("pointerdown", (event) => {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  if (target) show(target, event.clientX, event.clientY);
  else hide();
});
document.addEventListener("keydown", (event) => {
  const svg = document.activeElement;
  if (event.key === "Escape") return hide();
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !svg || svg.tagName.toLowerCase() !== "svg") return;
  const nodes = [...svg.querySelectorAll("[data-tip]")].filter((node) => node.tagName !== "path");
  if (!nodes.length) return;
  nodes.sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x);
  const old = nodes.findIndex((node) => node.classList.contains("at"));
  hide();
  const next = nodes[old < 0 ? 0 : (old + step + nodes.length) % nodes.length];
  next.classList.add("at");
  const box = next.getBoundingClientRect();
  show(next, box.x + box.width / 2, box.y);
  event.preventDefault();
});
document.addEventListener("focusout", hide);

for (const button of document.querySelectorAll("[data-copy]"))
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
