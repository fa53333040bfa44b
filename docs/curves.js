"use strict";
// Charts of measured curves; scripts/site.py writes their data into the page.

const TINTS = ["#2563c9", "#b8560f", "#1a7f52"];

for (const holder of document.querySelectorAll(".curves")) {
  const { x, series } = JSON.parse(holder.dataset.curves);
  const parts = Object.values(series);
  const places = [...new Set(parts.flatMap(([at]) => at))].sort((a, b) => a - b);
  const data = [places, ...parts.map(([at, y]) => places.map((place) => y[at.indexOf(place)] ?? null))];
  const style = getComputedStyle(document.body);
  const axis = { stroke: style.color, grid: { stroke: "#8884", width: 1 }, ticks: { show: false } };
  const chart = new uPlot({
    width: holder.clientWidth, height: 280, scales: { x: { time: false }, y: { range: [0, 1] } },
    axes: [{ ...axis, label: x }, axis],
    series: [{ label: x }, ...Object.keys(series).map((label, number) => ({ label, stroke: TINTS[number], width: 2 }))],
  }, data, holder);
  new ResizeObserver(() => chart.setSize({ width: holder.clientWidth, height: 280 })).observe(holder);
}
