"use strict";
// Curves, drawn by uPlot: smoothing, intervals, other runs and a reference overlaid, one cursor over all charts.

const COLOURS = ["--c0", "--c1", "--c2", "--c3"];
const DASHES = [undefined, [5, 4], [2, 3], [9, 3, 2, 3]];
const cursors = uPlot.sync("step");
let liveCharts = [];

function clearCharts() {
  liveCharts.forEach((chart) => { chart.observer.disconnect(); chart.plot.destroy(); });
  liveCharts = [];
}

// Exponential mean without the bias of its start.
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return total && weight ? null : null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function axis(extra) {
  return { stroke: colour("--faint"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif", gap: 6, ...extra };
}

function ticks(plot, splits) {
  const gap = Math.abs(splits[1] - splits[0]) || 1;
  const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(gap) + 1e-9)));
  return splits.map((value) => (Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-4) ? value.toExponential(0).replace("e+", "e")
    : value.toFixed(digits)).replace("-", "\u2212"));
}

// {title, note, x, series: [{label, values, colour, kind, dashed, faint, smooth}], bands: [[high, low, colour]], range, height, onpick}
function chart(options) {
  const legend = h("div", { class: "legend" });
  const label = `${options.title}: ${options.series.filter((s) => s.label && !s.faint).map((s) => `${s.label} last ${number(last(s.values))}`).join(", ")}`;
  const holder = h("div", { class: "plot", role: "img", "aria-label": label });
  const card = h("figure", { class: `card chart ${options.wide ? "wide" : ""}`, id: options.id },
    h("figcaption", {}, h("strong", {}, options.title), options.note ? h("span", { class: "note" }, options.note) : null), legend, holder);
  queueMicrotask(() => draw(card, holder, legend, options));
  return card;
}

function last(values) {
  for (let at = values.length - 1; at >= 0; at--) if (values[at] !== null && values[at] !== undefined) return values[at];
  return null;
}

function draw(card, holder, legend, options) {
  if (!card.isConnected) { requestAnimationFrame(() => card.isConnected && draw(card, holder, legend, options)); return; }
  const height = options.height || (options.wide ? 280 : 160);
  const series = options.series.map((one) => {
    const stroke = colour(one.colour);
    const points = one.kind === "points" || one.kind === "marked";
    return {
      label: one.label, stroke: one.kind === "hidden" ? "transparent" : one.faint ? stroke + "55" : stroke, width: one.faint ? 1 : 2,
      dash: DASHES[one.dashed || 0], spanGaps: true,
      paths: one.kind === "points" ? () => null : undefined,
      points: { show: points, size: one.size || 9, fill: stroke, stroke: colour("--panel"), width: 1.5 },
    };
  });
  const key = options.series.map((one, at) => ({ one, at })).filter(({ one }) => one.label && !one.faint && one.kind !== "hidden");
  const show = (index) => {
    legend.replaceChildren(...key.map(({ one }) => h("span", {},
      h("i", { class: one.kind === "points" ? "dot" : one.dashed ? "dash" : "", style: { "--k": `var(${one.colour})` } }), one.label, " ",
      h("b", {}, number(index === null ? last(one.values) : one.values[index])))));
  };
  const plot = new uPlot({
    width: Math.max(holder.clientWidth, 120), height, padding: [8, 8, 0, 0],
    legend: { show: false },
    cursor: { sync: options.sync === false ? undefined : { key: "step", setSeries: false }, y: false, points: { size: 6 }, drag: { x: true, y: false } },
    scales: { x: { time: false, range: options.xrange }, y: { range: options.range } },
    axes: [axis({ size: 26, values: ticks }), axis({ size: 50, values: ticks })],
    series: [{}, ...series],
    bands: (options.bands || []).map(([high, low, name]) => ({ series: [high + 1, low + 1], fill: colour(name) + "2e" })),
    hooks: { setCursor: [(u) => show(u.cursor.idx ?? null)] },
  }, [options.x, ...options.series.map((one) => one.values)], holder);
  show(null);
  if (options.onpick) {
    holder.classList.add("pick");
    holder.addEventListener("click", () => plot.cursor.idx !== null && plot.select.width < 3 && options.onpick(plot.cursor.idx));
  }
  const observer = new ResizeObserver(() => holder.clientWidth > 0 && plot.setSize({ width: holder.clientWidth, height }));
  observer.observe(holder);
  liveCharts.push({ plot, observer });
}

// Moves series from their places x to the union of x and more; returns the union.
function spread(series, x, more) {
  const union = [...new Set([...x, ...more])].sort((a, b) => a - b);
  const index = new Map(x.map((value, at) => [value, at]));
  series.forEach((one) => { const values = one.values; one.values = union.map((value) => (index.has(value) ? values[index.get(value)] : null)); });
  return union;
}

// Values of a second run at the places of the first one's x; between two steps the nearer one.
function aligned(x, otherX, values) {
  return x.map((at) => {
    let low = 0, high = otherX.length - 1;
    if (high < 0 || at < otherX[0] - 1e-9 || at > otherX[high] + 1e-9) return null;
    while (high - low > 1) { const mid = (low + high) >> 1; if (otherX[mid] <= at) low = mid; else high = mid; }
    return values[at - otherX[low] <= otherX[high] - at ? low : high];
  });
}
