"use strict";
// Draws the page from the JSON in #data. Charts are inline SVG; hovering reads values.
const input = JSON.parse(document.getElementById("data").textContent);
let run = input.run;
const WIDTH = 410, HEIGHT = 190, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 34;
// Totals: rollouts for initial values are part of what a run costs.
const AXES = {version: "policy version", episodes_total: "episodes played", time_s: "wall time",
  tokens_total: "tokens sampled"};
const colour = i => `var(--c${i % 4})`;

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

// ---- numbers -------------------------------------------------------------------------------------------
function format(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6) return trim(value / 1e6) + "M";
  if (size >= 1e4) return trim(value / 1e3) + "k";
  if (size >= 100) return value.toFixed(0);
  if (size >= 1) return trim(value);
  if (size >= 0.001) return String(Number(value.toPrecision(3)));
  return value.toExponential(1);
}
const trim = value => String(Number(value.toPrecision(3)));
const percent = value => value === null || value === undefined ? "–" : trim(100 * value) + "%";
function seconds(value) {
  const total = Math.round(value);
  if (total < 120) return total + " s";
  if (total < 7200) return trim(total / 60) + " min";
  return trim(total / 3600) + " h";
}
const along = axis => axis === "time_s" ? seconds : format;

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(candidate => candidate >= rough * 0.999);
  const result = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) result.push(i * step);
  return result;
}

function smooth(values, weight) {
  let mean = 0, mass = 0;
  return values.map(value => {
    if (value === null || value === undefined) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

// ---- one chart -----------------------------------------------------------------------------------------
function card(chart) {
  const box = make("div", {class: chart.wide ? "chart wide" : "chart"});
  box.append(make("h3", {}, chart.title), make("p", {}, chart.note || ""));
  return box;
}

function range(chart, lines) {
  const values = [];
  for (const line of lines) {
    for (const value of line.y) if (value !== null && value !== undefined) values.push(value);
    for (const pair of line.interval || []) if (pair && pair[0] !== null) values.push(pair[0], pair[1]);
  }
  if (!values.length) return null;
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (chart.floor !== undefined) low = Math.min(chart.floor, low);
  if (chart.ceiling !== undefined) high = Math.max(chart.ceiling, high);
  if (high - low < 1e-12) { const pad = Math.abs(high) * 0.1 || 1; high += pad; if (chart.floor !== low) low -= pad; }
  const pad = (high - low) * 0.04;
  return [chart.floor === low ? low : low - pad, chart.ceiling === high ? high : high + pad];
}

function frame(svg, x, y, chart, width, height, xRange, yRange, xFormat, yFormat, xTitle) {
  for (const value of ticks(...yRange, 4)) {
    svg.append(make("line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value)}));
    svg.append(make("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, yFormat(value)));
  }
  let places = ticks(...xRange, width > 600 ? 10 : 6);
  if (xTitle === AXES.version || xTitle === AXES.episodes_total) places = places.filter(Number.isInteger);
  for (const value of places) {
    svg.append(make("line", {class: "axis", x1: x(value), x2: x(value), y1: height - BOTTOM, y2: height - BOTTOM + 4}));
    svg.append(make("text", {x: x(value), y: height - BOTTOM + 16, "text-anchor": "middle"}, xFormat(value)));
  }
  svg.append(make("line", {class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM}));
  svg.append(make("text", {x: width - RIGHT, y: height - 3, "text-anchor": "end"}, xTitle));
}

function pathOf(xs, ys, x, y) {
  let path = "", open = false;
  xs.forEach((at, i) => {
    if (ys[i] === null || ys[i] === undefined || at === null || at === undefined) { open = false; return; }
    path += `${open ? "L" : "M"}${x(at).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
    open = true;
  });
  return path;
}

function drawLine(svg, line, index, x, y, weight) {
  const stroke = line.colour || colour(index);
  if (line.dots) {
    line.x.forEach((at, i) => {
      if (line.y[i] === null || line.y[i] === undefined) return;
      const pair = line.interval && line.interval[i];
      if (pair && pair[0] !== null) svg.append(make("line",
        {x1: x(at), x2: x(at), y1: y(pair[0]), y2: y(pair[1]), stroke, "stroke-width": 2}));
      svg.append(make("circle", {cx: x(at), cy: y(line.y[i]), r: line.radius || 4.5, fill: stroke,
        stroke: "var(--panel)", "stroke-width": 1.5}));
    });
    return;
  }
  if (line.straight) {
    svg.append(make("path", {class: "cursor", d: pathOf(line.x, line.y, x, y), fill: "none"}));
    return;
  }
  const curve = smooth(line.y, weight);
  if (weight > 0) svg.append(make("path", {class: "raw", d: pathOf(line.x, line.y, x, y), stroke}));
  svg.append(make("path", {class: "curve", d: pathOf(line.x, curve, x, y), stroke}));
  if (line.x.length === 1 && curve[0] !== null)
    svg.append(make("circle", {cx: x(line.x[0]), cy: y(curve[0]), r: 3, fill: stroke}));
}

function key(lines, yFormat, readable) {
  const row = make("div", {class: "key"}), values = [];
  lines.forEach((line, index) => {
    if (line.straight) { values.push(null); return; }
    const value = make("b");
    const mark = make("i", {class: line.dots ? "dot" : "", style: `background:${line.colour || colour(index)}`});
    row.append(make("span", {}, mark, line.name + " ", value));
    values.push(value);
  });
  const show = at => lines.forEach((line, index) => {
    if (!values[index]) return;
    let place = line.x.length - 1;
    if (at !== null) line.x.forEach((value, i) => {
      if (Math.abs(value - at) < Math.abs(line.x[place] - at)) place = i;
    });
    values[index].textContent = place < 0 ? "" : yFormat(line.y[place]);
  });
  if (readable) show(null);
  return [row, show];
}

function lineChart(chart) {
  const box = card(chart), width = chart.wide ? 2 * WIDTH + 14 : WIDTH, height = chart.wide ? 430 : HEIGHT;
  const lines = chart.lines.filter(line => line.y.some(value => value !== null && value !== undefined));
  const yRange = range(chart, lines);
  if (!yRange) return null;
  const axis = document.getElementById("axis").value, weight = Number(document.getElementById("smooth").value);
  const all = lines.flatMap(line => line.x.filter(value => value !== null && value !== undefined));
  // From zero, so that what was spent before learning is seen.
  let xRange = chart.xRange || [Math.min(0, ...all), Math.max(...all)];
  if (xRange[0] === xRange[1]) xRange = [xRange[0] - 1, xRange[1] + 1];
  const x = value => LEFT + (value - xRange[0]) / (xRange[1] - xRange[0]) * (width - LEFT - RIGHT);
  const y = value => height - BOTTOM - (value - yRange[0]) / (yRange[1] - yRange[0]) * (height - TOP - BOTTOM);
  const yFormat = chart.share ? percent : format, xFormat = chart.xTitle ? format : along(axis);
  const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.title});
  frame(svg, x, y, chart, width, height, xRange, yRange, xFormat, yFormat, chart.xTitle || AXES[axis]);
  lines.forEach((line, index) => drawLine(svg, line, index, x, y, chart.plain ? 0 : weight));
  const [row, show] = key(lines, yFormat, !chart.xTitle);
  box.append(row, svg);
  if (!chart.xTitle) {
    const note = box.querySelector("p"), said = note.textContent;
    const cursor = make("line", {class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden"});
    svg.append(cursor);
    svg.addEventListener("pointermove", event => {
      const place = (event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width * width;
      const at = xRange[0] + (place - LEFT) / (width - LEFT - RIGHT) * (xRange[1] - xRange[0]);
      if (at < xRange[0] || at > xRange[1]) return;
      cursor.setAttribute("x1", place); cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
      note.textContent = `at ${AXES[axis]} ${xFormat(axis === "time_s" ? at : Math.round(at))}`;
      show(at);
    });
    svg.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden"); note.textContent = said; show(null);
    });
  }
  return box;
}

function barChart(chart) {
  const entries = Object.entries(chart.bars);
  if (!entries.length) return null;
  const box = card(chart), total = entries.reduce((sum, [, count]) => sum + count, 0);
  const highest = Math.max(...entries.map(([, count]) => count)) / total;
  const svg = make("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title});
  const slot = (WIDTH - LEFT - RIGHT) / entries.length, wide = Math.min(64, slot * 0.7);
  const y = share => HEIGHT - BOTTOM - share / (highest * 1.12) * (HEIGHT - TOP - BOTTOM);
  for (const value of ticks(0, highest * 1.12, 4)) {
    svg.append(make("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}));
    svg.append(make("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, percent(value)));
  }
  entries.forEach(([name, count], i) => {
    const middle = LEFT + slot * (i + 0.5), share = count / total;
    svg.append(make("rect", {x: middle - wide / 2, y: y(share), width: wide, height: HEIGHT - BOTTOM - y(share),
      rx: 2, fill: colour(0)}));
    svg.append(make("text", {x: middle, y: y(share) - 4, "text-anchor": "middle"}, format(count)));
    svg.append(make("text", {x: middle, y: HEIGHT - BOTTOM + 16, "text-anchor": "middle"}, name));
  });
  svg.append(make("line", {class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM}));
  svg.append(make("text", {x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end"}, chart.xTitle));
  box.append(make("div", {class: "key"}), svg);
  return box;
}

// ---- what is drawn -------------------------------------------------------------------------------------
function chartsOf(axis) {
  const columns = run.columns, xs = columns[axis];
  const line = (name, field, more) => Object.assign({name, x: xs, y: columns[field] || []}, more);
  const place = row => {
    if (axis === "version") return row.version;
    if (!row.version) return run.start[axis];
    return xs[columns.version.indexOf(row.version)] ?? null;
  };
  const evaluations = run.evaluations.filter(row => place(row) !== null);
  const held = {name: "held-out evaluation", dots: true, x: evaluations.map(place), colour: "var(--c1)",
    y: evaluations.map(row => row.reward_mean), interval: evaluations.map(row => row.interval)};
  return [
    lineChart({title: "Reward", note: "mean of each training batch; evaluations with their 95% interval", wide: true,
      floor: 0, ceiling: 1, lines: [line("training batch", "reward_mean"), held]}),
    lineChart({title: "Environments", note: "mean score in each batch", floor: 0, ceiling: 1,
      lines: Object.entries(run.environments).map(([name, found]) => ({name, x: xs, y: found.score}))}),
    lineChart({title: "Mixture", note: "share of each batch", floor: 0, share: true,
      lines: Object.entries(run.environments).map(([name, found]) => ({name, x: xs, y: found.share}))}),
    lineChart({title: "Value tracker", note: "its baseline, read before the batch, against the scores that came",
      floor: 0, ceiling: 1, lines: [line("score", "score_mean"), line("baseline", "baseline_mean")]}),
    lineChart({title: "Calibration of the tracker", note: "one dot a batch; on the line: foretold what came",
      xTitle: "baseline, mean of a batch", xRange: [0, 1], floor: 0, ceiling: 1, plain: true, lines: [
        {name: "", straight: true, x: [0, 1], y: [0, 1]},
        {name: "score, mean of a batch", dots: true, radius: 3, x: columns.baseline_mean, y: columns.score_mean}]}),
    lineChart({title: "Error of the tracker", note: "per episode, lower is better", floor: 0,
      lines: [line("Brier score", "brier"), line("log loss, nats", "log_loss")]}),
    lineChart({title: "Tool use", note: "calls per episode, and the share of calls that failed", floor: 0,
      lines: [line("calls", "tool_calls_mean"), line("failed", "tool_error_share"), line("turns", "turns_mean")]}),
    barChart({title: "Staleness", note: "versions between sampling and learning, all episodes",
      xTitle: "versions", bars: run.staleness}),
    lineChart({title: "Staleness over time", note: "mean age; share older than allowed", floor: 0,
      lines: [line("versions", "staleness_mean"), line("share beyond the bound", "excess_share")]}),
    lineChart({title: "Entropy", note: "of the policy where it is trained, nats a token", floor: 0,
      lines: [line("entropy", "entropy")]}),
    lineChart({title: "Clipped tokens", note: "share of tokens without gradient", floor: 0, share: true,
      lines: [line("low", "clip_low"), line("high", "clip_high"), line("dual", "clip_dual")]}),
    lineChart({title: "Importance weights", note: "proximal / behaviour policy, before truncation",
      lines: [line("mean", "importance_mean"), line("largest", "importance_max")]}),
    lineChart({title: "Effective share of the tokens", note: "effective sample size of those weights", ceiling: 1,
      share: true, lines: [line("effective", "effective_share"), line("truncated", "importance_outside")]}),
    lineChart({title: "Drift of the policy", note: "mean |Δ log p| of one batch, nats a token", floor: 0,
      lines: [line("drift", "drift"), line("gap of engine and learner", "behaviour_gap")]}),
    lineChart({title: "Memory of the tracker", note: "forgetting factor ρ", lines: [line("ρ", "rho_mean")]}),
    lineChart({title: "Gradient norm", note: "before clipping", floor: 0, lines: [line("norm", "grad_norm")]}),
    lineChart({title: "Loss", note: "policy loss, token mean", lines: [line("loss", "loss")]}),
    lineChart({title: "Tokens per second", floor: 0, note: "generation since the start; learning while it learns",
      lines: [line("generation", "generate_tokens_per_s"), line("learning", "learn_tokens_per_s")]}),
    lineChart({title: "Waiting", note: "share of the time that the learner waits for episodes", floor: 0, share: true,
      lines: [{name: "learner waits", x: xs, y: run.idle_share}]}),
    lineChart({title: "Length", note: "sampled tokens per episode", floor: 0,
      lines: [line("tokens", "sampled_tokens_mean")]}),
    lineChart({title: "Cut off", note: "share of episodes that ran into a token limit", floor: 0, share: true,
      lines: [line("cut off", "truncated_share")]}),
  ].filter(Boolean);
}

function table(title, heads, rows) {
  if (!rows.length) return null;
  const number = value => typeof value === "number";
  const head = make("tr", {}, ...heads.map((text, i) =>
    make("th", {class: number(rows[0][i]) ? "number" : ""}, text)));
  const body = rows.map(row => make("tr", {}, ...row.map(value =>
    make("td", {class: number(value) ? "number" : ""},
      number(value) ? (Number.isInteger(value) ? value.toLocaleString("en") : format(value)) : String(value ?? "–")))));
  return make("div", {}, make("h2", {}, title), make("table", {}, head, ...body));
}

function drawTables() {
  const section = document.getElementById("tables"), columns = make("div", {class: "columns"});
  const evaluations = run.evaluations.map(row => [row.version, row.reward_mean ?? null,
    row.interval && row.interval[0] !== null ? row.interval.map(value => value.toFixed(3)).join(" … ") : "–",
    row.episodes ?? null]);
  columns.append(...[
    table("Evaluations", ["version", "reward", "95% interval", "episodes"], evaluations),
    table("Ledger of episodes", ["became", "episodes"], Object.entries(run.ledger).filter(([, v]) => typeof v === "number")),
    table("Discarded", ["reason", "episodes"], Object.entries(run.discarded).filter(([, v]) => typeof v === "number")),
    table("Summary", ["", ""], Object.entries(run.summary).filter(([, v]) => v !== null && typeof v !== "object")),
  ].filter(Boolean));
  section.replaceChildren(columns);
  if (run.config) section.append(make("details", {}, make("summary", {}, "Settings"), make("pre", {}, run.config)));
}

function drawEpisodes() {
  const section = document.getElementById("episodes");
  section.replaceChildren();
  if (!run.episodes.length) return;
  const plays = run.episodes.map(episode => {
    const box = make("div", {class: "play"});
    const good = episode.reward > 0;
    box.append(make("header", {}, make("span", {}, `${episode.when}, version ${episode.version}, ${episode.stop}`),
      make("span", {class: good ? "right" : "wrong"}, `reward ${format(episode.reward)}`)));
    box.append(make("div", {class: "prompt"}, episode.prompt));
    for (const [who, text] of episode.steps)
      box.append(make("pre", {class: who === "model" ? "" : "tool", title: who}, text || "(nothing)"));
    return box;
  });
  section.append(make("h2", {}, "Episodes: the first and the last"), make("div", {class: "plays"}, ...plays));
}

function draw() {
  document.getElementById("name").textContent = run.name;
  document.getElementById("sentence").textContent = run.sentence;
  document.getElementById("light").className =
    "light" + (run.warnings.length ? " warned" : run.running ? " running" : "");
  document.getElementById("light").title = run.running ? "running" : "ended";
  document.getElementById("warnings").replaceChildren(...run.warnings.map(text => make("li", {}, text)));
  document.getElementById("tiles").replaceChildren(...run.tiles.map(([name, value]) =>
    make("div", {class: "tile"}, make("b", {}, value), make("span", {}, name))));
  drawCharts();
  drawEpisodes();
  drawTables();
}
function drawCharts() {
  document.getElementById("charts").replaceChildren(...chartsOf(document.getElementById("axis").value));
}

for (const id of ["axis", "smooth"]) document.getElementById(id).addEventListener("input", drawCharts);
draw();

if (input.poll) setInterval(async () => {
  try {
    const answer = await fetch(input.poll, {cache: "no-store"});
    if (!answer.ok) return;
    const newer = await answer.json();
    if (JSON.stringify(newer) === JSON.stringify(run)) return;
    const open = document.querySelector("details")?.open;
    run = newer;
    draw();
    if (open) document.querySelector("details").open = true;
  } catch { /* the server has gone; what is on the page stays */ }
}, 3000);
