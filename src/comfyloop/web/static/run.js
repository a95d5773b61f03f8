// The curves of a run: loss, held-out loss, accuracy, speed and memory over the steps, drawn on while it goes.
const place = document.querySelector("[data-run]");
const said = JSON.parse(place.dataset.words);
const body = document.body;
const CHARTS = [
  { of: "loss", lines: ["loss", "holdout_loss"] },
  { of: "answer_token_accuracy", lines: ["answer_token_accuracy"], share: true },
  { of: "samples_per_s", lines: ["samples_per_s"] },
  { of: "rss_mb", lines: ["rss_mb"], whole: true },
];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (digits) => new Intl.NumberFormat(document.documentElement.lang, { maximumFractionDigits: digits });

// Everything that a log says so far; called again it goes on where it was.
function reader(address) {
  const lines = [];
  let offset = 0;
  return async () => {
    for (;;) {
      const answer = await fetch(`${address}?offset=${offset}`);
      if (!answer.ok) return lines;
      const told = await answer.json();
      lines.push(...told.lines);
      if (told.next_offset === offset) return lines;
      offset = told.next_offset;
    }
  };
}

const read = reader(place.dataset.log);
let beside = null;
const drawn = new Map();

const sidesOf = (lines) => [...new Set(lines.map((line) => line.side ?? ""))];

// uPlot wants one list of steps, with null where a line has no value.
function columns(own, other, chart) {
  const steps = [...new Set([...own, ...other].map((line) => line.step))].sort((a, b) => a - b);
  const values = (lines, name) => {
    const at = new Map(lines.filter((line) => line[name] !== null && line[name] !== undefined).map((line) => [line.step, line[name]]));
    return steps.map((step) => at.get(step) ?? null);
  };
  const found = [steps, ...chart.lines.map((name) => values(own, name))];
  if (other.length) found.push(values(other, chart.of));
  return found;
}

function options(chart, width, hasOther) {
  const line = (label, name, dash) => ({ label, stroke: colour(name), width: 2, dash, spanGaps: true, points: { show: false } });
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px Inter, sans-serif" };
  const show = chart.share ? (value) => number(0).format(value * 100) + "%" : number(chart.whole ? 0 : 2).format;
  const series = [{ label: said.step }, ...chart.lines.map((name, place) => ({ ...line(said[name], `--chart-${place + 1}`), value: (_, v) => (v === null ? "" : show(v)) }))];
  if (hasOther) series.push({ ...line("⋯", "--strong", [4, 4]), value: (_, v) => (v === null ? "" : show(v)) });
  return {
    width, height: 220, series, legend: { live: true },
    scales: { x: { time: false } },
    axes: [axis, { ...axis, size: 54, values: (_, ticks) => ticks.map(show) }],
    cursor: { drag: { x: true, y: false } },
  };
}

function draw(lines, other) {
  const charts = place.querySelector(".charts");
  if (!lines.some((line) => line.loss !== null)) {
    if (!drawn.size) charts.textContent = said.nothing;
    return;
  }
  const boxes = [];
  for (const side of sidesOf(lines)) {
    for (const chart of CHARTS) {
      const own = lines.filter((line) => (line.side ?? "") === side);
      const theirs = other.filter((line) => (line.side ?? "") === side);
      if (!own.some((line) => line[chart.of] !== null && line[chart.of] !== undefined)) continue;
      const key = `${side} ${chart.of} ${theirs.length > 0}`;
      const data = columns(own, theirs, chart);
      if (drawn.has(key)) {
        drawn.get(key).setData(data);
        continue;
      }
      if (!drawn.size) charts.replaceChildren();
      const box = document.createElement("figure");
      box.className = "chart card";
      const title = document.createElement("figcaption");
      title.textContent = [said[side], said[chart.of]].filter(Boolean).join(" · ");
      box.append(title);
      charts.append(box);
      drawn.set(key, null);
      boxes.push([key, chart, theirs.length > 0, data, box]);
    }
  }
  // all are laid out before any is drawn: only then they have their width
  for (const [key, chart, hasOther, data, box] of boxes) drawn.set(key, new uPlot(options(chart, inner(box), hasOther), data, box));
}

const inner = (box) => Math.max(220, box.clientWidth - 2 * parseFloat(getComputedStyle(box).paddingLeft));

async function refresh() {
  const [lines, other] = await Promise.all([read(), beside ? beside() : []]);
  draw(lines, other);
}

function again() {
  for (const chart of drawn.values()) chart.destroy();
  drawn.clear();
  place.querySelector(".charts").replaceChildren();
  refresh();
}

place.querySelector("[data-beside]")?.addEventListener("change", (event) => {
  beside = event.target.value ? reader(event.target.value) : null;
  again();
});
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => {
    for (const chart of drawn.values()) chart.setSize({ width: inner(chart.root.parentElement), height: 220 });
  }, 100);
});
// A click on a curve asks what that step was made of.
place.addEventListener("click", (event) => {
  const over = event.target.closest(".u-over");
  const chart = over && [...drawn.values()].find((one) => one.over === over);
  const step = chart?.data[0][chart.cursor.idx];
  if (!step) return;
  const address = new URL(document.querySelector("#behind").dataset.behind, location.href);
  address.searchParams.set("step", step);
  history.replaceState(null, "", address);
  window.htmx.ajax("GET", `${address.pathname}${address.search}`, { target: "#behind", select: "#behind", swap: "outerHTML" });
});

let due = 0;
body.addEventListener("desk:event", ({ detail }) => {
  if (detail.run !== place.dataset.run || due) return;
  const bar = document.querySelector(".going progress");
  if (bar && detail.total_steps) Object.assign(bar, { max: detail.total_steps, value: detail.step });
  due = setTimeout(() => { due = 0; refresh(); }, 500);
});
refresh();
