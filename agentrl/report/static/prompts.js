"use strict";
// Prompts and the tracker: a value with its band over time, every attempt, and how far values can be trusted.

async function showPrompts(state, run) {
  const list = h("div", { id: "list", "aria-live": "polite" });
  const [sort, order] = [() => state.get("sort") || "attempts", () => state.get("order") || "desc"];
  const columns = [
    { title: "Prompt", sort: "prompt", kind: "wide", text: (row) => h("a", { class: "clip", href: state.link("prompt", { prompt: row.prompt }) }, shown(row.prompt)) },
    { title: "Value", sort: "value", number: true, text: (row) => h("span", { class: "meter", style: { "--part": String(row.value ?? 0) } }, number(row.value)) },
    { title: "Mean score", sort: "score", number: true, text: (row) => number(row.score) },
    { title: "Draws", sort: "draws", number: true, text: (row) => number(row.draws) },
    { title: "Attempts", sort: "attempts", number: true, text: (row) => number(row.attempts) },
    { title: "Folds", number: true, text: (row) => number(row.folds) },
    { title: "Failed", sort: "failed", number: true, text: (row) => (row.failed ? h("span", { class: "down" }, row.failed) : "0") },
    { title: "Newest", sort: "newest", number: true, text: (row) => number(row.newest) },
    { title: "Advantages", sort: "spread", number: true, text: (row) => number(row.spread) },
  ];
  const load = async () => {
    const offset = Number(state.get("offset") || 0);
    const found = await source.prompts(run.name, { q: state.get("q"), sort: sort(), order: order(), offset, limit: 100 });
    list.replaceChildren(h("p", { class: "count" }, h("b", {}, number(found.total)), " prompts drawn so far"),
      found.rows.length ? table(columns, found.rows, { sort: sort(), order: order(), caption: "Prompts", onsort: (name, way) => { state.set({ sort: name, order: way, offset: "" }); load(); },
        onrow: (row) => { location.hash = state.link("prompt", { prompt: row.prompt }); } }) : empty("No prompt matches."),
      pager(found.total, offset, (next) => { state.set({ offset: String(next) }); load(); }));
  };
  await load();
  let timer = 0;
  const search = h("input", { type: "search", placeholder: "Search prompts", "aria-label": "Search prompts", value: state.get("q") || "",
    oninput: (event) => { clearTimeout(timer); timer = setTimeout(() => { state.set({ q: event.target.value, offset: "" }, false); load(); }, 150); } });
  return [heading("Prompts", "What the tracker thinks of each, and what was tried. Advantages: largest less smallest."), h("div", { class: "bar" }, search), list];
}

async function showPrompt(state, run) {
  const { prompt, attempts } = await source.prompt(run.name, state.get("prompt"));
  const folded = attempts.filter((row) => row.baseline !== null && row.baseline !== undefined && row.version !== null).sort((a, b) => a.version - b.version || a.place - b.place);
  const counts = attempts.reduce((all, row) => ({ ...all, [row.state || "recorded"]: (all[row.state || "recorded"] || 0) + 1 }), {});
  return [
    h("p", { class: "crumbs" }, h("a", { href: state.link("prompts", {}) }, "Prompts"), " / ", shown(prompt)),
    heading(`Prompt ${shown(prompt)}`),
    h("div", { class: "facts" }, chip("drawn", number(attempts.length)), Object.entries(counts).map(([name, count]) => chip(name, number(count))),
      chip("mean score", number(mean(attempts.map((row) => row.score)))), folded.length ? chip("newest value", number(folded.at(-1).baseline)) : null),
    folded.length ? valueChart(folded) : empty("No attempt was folded into its value yet."),
    h("h2", {}, "Attempts"),
    attempts.length ? attemptsTable(attempts, state) : empty("This file does not hold them; `agentrl view` shows them."),
  ];
}

function mean(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

// Normal approximation of the Beta posterior: 1.645 deviations to either side hold nine tenths.
function band(row, side) {
  if (row.count === null || row.count === undefined) return null;
  const half = 1.645 * Math.sqrt((row.baseline * (1 - row.baseline)) / (row.count + 1));
  return Math.max(0, Math.min(1, row.baseline + side * half));
}

function valueChart(rows) {
  let before = -Infinity;
  const x = rows.map((row) => (before = Math.max(row.version, before + 1e-3)));
  const banded = rows.some((row) => band(row, 1) !== null);
  return chart({
    title: "Value and scores", note: banded ? "the value read before each score was folded, with a band of 90%" : "the value read before each score was folded", x, wide: true, height: 240, sync: false, range: [-0.05, 1.05],
    series: [
      { label: "", values: rows.map((row) => band(row, 1)), colour: "--c0", kind: "hidden" }, { label: "", values: rows.map((row) => band(row, -1)), colour: "--c0", kind: "hidden" },
      { label: "value", values: rows.map((row) => row.baseline), colour: "--c0", kind: "marked", size: 5 },
      { label: "score", values: rows.map((row) => row.score), colour: "--c1", kind: "points", size: 8 },
    ],
    bands: banded ? [[0, 1, "--c0"]] : [],
  });
}

function attemptsTable(attempts, state) {
  const columns = [
    { title: "Episode", text: (row) => h("a", { href: state.link("episode", { id: row.id }) }, h("code", {}, row.id)) },
    { title: "Version", number: true, text: (row) => number(row.version) }, { title: "Score", number: true, text: (row) => rewardCell(row) },
    { title: "Value before", number: true, text: (row) => number(row.baseline) }, { title: "Rests on", number: true, text: (row) => number(row.count) },
    { title: "Advantage", number: true, text: (row) => h("span", { class: row.advantage > 0 ? "up" : row.advantage < 0 ? "down" : "" }, signed(row.advantage)) },
    { title: "Began at", number: true, text: (row) => number(row.start_version) },
    { title: "Became", text: (row) => h("span", { class: "of" }, [row.state, row.reason].filter(Boolean).map(shown).join(": ")) },
    { title: "Last words", kind: "wide", text: (row) => h("span", { class: "clip of" }, shown(row.error || row.said || "")) },
  ];
  return table(columns, attempts, { caption: "Attempts", onrow: (row) => { location.hash = state.link("episode", { id: row.id }); } });
}

function showTracker(state, run) {
  const count = run.reliability.length;
  const chosen = Math.min(count, Number(state.get("newest") || 20));
  const holder = h("div", {});
  const redraw = (newest) => { clearCharts(); holder.replaceChildren(...calibrationCharts(run, newest)); };
  redraw(chosen);
  return [
    heading("Tracker", "Do prompts score as their values say? A tracker that is calibrated has its points on the diagonal."),
    count ? h("div", { class: "bar" }, h("label", {}, "Newest steps ", h("input", { type: "range", min: "1", max: String(count), value: String(chosen), oninput: (event) => { state.set({ newest: event.target.value }, false); event.target.nextSibling.textContent = event.target.value; redraw(Number(event.target.value)); } }), h("output", {}, String(chosen)))) : null,
    count ? holder : empty("No step was taken yet."),
  ];
}

function calibrationCharts(run, newest) {
  const bins = new Map();
  for (const row of run.reliability.slice(-newest)) for (const [bin, [count, predicted, observed]] of Object.entries(row || {})) {
    const sum = bins.get(bin) || [0, 0, 0];
    bins.set(bin, [sum[0] + count, sum[1] + count * predicted, sum[2] + count * observed]);
  }
  const points = [...bins.values()].map(([n, p, o]) => ({ n, p: p / n, o: o / n })).sort((a, b) => a.p - b.p);
  if (!points.length) return [empty("These steps logged no calibration.")];
  const total = points.reduce((sum, one) => sum + one.n, 0);
  const error = points.reduce((sum, one) => sum + (one.n * Math.abs(one.p - one.o)) / total, 0);
  const x = [0, ...points.map((one) => Math.min(0.9999, Math.max(0.0001, one.p))), 1];
  const pad = (values) => [null, ...values, null];
  const wilson = (side) => ({ n, o }) => { const z = 1.96, d = 1 + z * z / n; return (o + z * z / (2 * n) + side * z * Math.sqrt(o * (1 - o) / n + z * z / (4 * n * n))) / d; };
  const columns = columnsOf(run), version = columns.version;
  return [h("div", { class: "facts" }, chip("episodes", number(total)), chip("expected calibration error", number(error))),
    h("div", { class: "charts" },
      chart({ title: "Reliability", note: "mean score against value, with 95% intervals", x, wide: true, sync: false, xrange: [0, 1], range: [0, 1], series: [
        { label: "as values say", values: x, colour: "--faint", dashed: true },
        { label: "", values: pad(points.map(wilson(1))), colour: "--c0", kind: "hidden" }, { label: "", values: pad(points.map(wilson(-1))), colour: "--c0", kind: "hidden" },
        { label: "mean score", values: pad(points.map((one) => one.o)), colour: "--c0", kind: "marked" }], bands: [[1, 2, "--c0"]] }),
      ["brier", "log_loss", "rho_mean", "clock"].filter((name) => columns[name]).map((name, at) => chart({ title: label(name), x: version, series: [{ label: "", values: columns[name], colour: COLOURS[at], faint: true }, { label: label(name), values: smooth(columns[name], 0.6), colour: COLOURS[at] }] })))];
}
