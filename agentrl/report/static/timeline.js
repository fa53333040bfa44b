"use strict";
// When what happened: learning, updates, evaluations and grading above, episodes with their tool time below.

const LANES = 24, LANE = 9, TOP = 82;

async function showTimeline(state, run) {
  const steps = stepsOf(run);
  if (!steps.length) return [heading("Timeline"), empty("No step was taken yet.")];
  const whole = [steps[0].start - 1, steps.at(-1).end + 1];
  const from = Number(state.get("from") ?? NaN), to = Number(state.get("to") ?? NaN);
  const first = Math.max(0, steps.length - 8);
  let window = Number.isFinite(from) && Number.isFinite(to) ? [from + whole[0], to + whole[0]] : [steps[first].start - 0.5, whole[1]];
  const holder = h("div", { id: "timeline" });
  const load = async () => {
    const { rows } = run.columns.at ? await source.timeline(run.name, window[0], window[1]) : { rows: [] };
    holder.replaceChildren(drawing(steps, rows, window, state, run), waits(steps.filter((step) => step.end >= window[0] && step.start <= window[1])));
  };
  const move = (change) => { window = change(window); state.set({ from: (window[0] - whole[0]).toFixed(2), to: (window[1] - whole[0]).toFixed(2) }, false); load(); };
  const zoom = (factor) => move(([a, b]) => { const mid = (a + b) / 2, half = ((b - a) / 2) * factor; return [mid - half, mid + half]; });
  const pan = (part) => move(([a, b]) => [a + part * (b - a), b + part * (b - a)]);
  state.keys = { h: () => pan(-0.5), l: () => pan(0.5), "+": () => zoom(0.5), "-": () => zoom(2) };
  await load();
  const button = (text, name, act) => h("button", { type: "button", "aria-label": name, onclick: act }, text);
  return [
    heading("Timeline", "Gaps in the first lane are the learner waiting for episodes. Grading ends an episode: the darker its lane, the more episodes wait for a grader at once. An episode is dark for the time that its tools took, drawn before its grading."),
    h("div", { class: "bar" }, button("\u2190", "Earlier", () => pan(-0.5)), button("\u2192", "Later", () => pan(0.5)), button("+", "Zoom in", () => zoom(0.5)), button("\u2212", "Zoom out", () => zoom(2)), button("All", "All of the run", () => move(() => whole)),
      h("span", { class: "legend" }, [["--c0", "learning"], ["--c1", "taking new weights"], ["--wait", "learner waits"], ["--c2", "episode, rewarded"], ["--c3", "episode, not rewarded"], ["--faint", "evaluation"], ["--c4", "grading"]].map(([name, text]) => h("span", {}, h("i", { class: "dot", style: { "--k": `var(${name})` } }), text)))),
    source.live ? null : h("p", { class: "of" }, "Only the episodes in this file are drawn; `agentrl view` draws all."),
    run.columns.at ? null : h("p", { class: "of" }, "This run was written without times of day: episodes cannot be placed."),
    holder,
  ];
}

function stepsOf(run) {
  const { version, at, time_s: time, learn_s: learn, publish_s: publish, learner_idle_s: idle } = run.columns;
  let before = 0;
  return version.map((number_, index) => {
    const end = (at || time)[index] ?? 0;
    const waited = idle?.[index] == null ? 0 : idle[index] >= before ? idle[index] - before : idle[index];
    before = idle?.[index] ?? before;
    const start = end - (learn?.[index] ?? 0);
    return { version: number_, index, end, start, learn: learn?.[index] ?? 0, publish: publish?.[index + 1] ?? publish?.[index] ?? 0, waited };
  });
}

function drawing(steps, rows, [from, to], state, run) {
  const width = Math.max(480, document.getElementById("main").clientWidth - 120);
  const lanes = pack(rows, from, to);
  const height = 84 + Math.max(1, Math.min(LANES, lanes.length)) * LANE + 26;
  const x = (time) => ((time - from) / (to - from)) * width;
  const bar = (start, end, y, size, tone, text, href, opacity = 1) => {
    const [a, b] = [Math.max(0, x(start)), Math.min(width, x(end))];
    if (b <= 0 || a >= width) return null;
    const rect = svg("rect", { x: a.toFixed(1), y, width: Math.max(1, b - a).toFixed(1), height: size, rx: 2, style: `fill:var(${tone});opacity:${opacity}`, "aria-label": href ? text : null, tabindex: href ? 0 : null, role: href ? "link" : null,
      onclick: href ? () => { location.hash = href; } : null, onkeydown: href ? (event) => { if (event.key === "Enter") location.hash = href; } : null }, svg("title", {}, text));
    return rect;
  };
  const shapes = [];
  for (const step of steps) {
    shapes.push(bar(step.start - step.waited, step.start, 6, 14, "--wait", `learner waits ${duration(step.waited)} for episodes of step ${step.version}`));
    shapes.push(bar(step.start, step.end, 6, 14, "--c0", `step ${step.version}: learning ${duration(step.learn)}`, state.link("episodes", { version: String(step.version) })));
    shapes.push(bar(step.end, step.end + step.publish, 26, 14, "--c1", `engine takes version ${step.version}: ${duration(step.publish)}`));
  }
  for (const row of run.evaluations) if (row.at) shapes.push(bar(row.at - (row.seconds || 0.5), row.at, 46, 10, "--faint", `evaluation of version ${row.version}`));
  for (const row of rows) if (row.grade_seconds) shapes.push(bar(row.ended - row.grade_seconds, row.ended, 62, 12, "--c4", `${row.id}: grading ${duration(row.grade_seconds)}`, null, 0.5));
  lanes.slice(0, LANES).forEach((lane, number_) => lane.forEach((row) => {
    const start = row.ended - row.seconds, y = TOP + number_ * LANE, graded = row.ended - (row.grade_seconds || 0);
    shapes.push(bar(start, row.ended, y, LANE - 2, row.reward > 0 ? "--c2" : "--c3", `${row.id}: ${duration(row.seconds)}, ${duration(row.tool_seconds)} of it in tools, ${duration(row.grade_seconds)} in grading; reward ${number(row.reward)}`, state.link("episode", { id: row.id })));
    if (row.grade_seconds) shapes.push(bar(graded, row.ended, y, LANE - 2, "--c4", `${row.id}: grading ${duration(row.grade_seconds)}`));
    if (row.tool_seconds) shapes.push(bar(graded - row.tool_seconds, graded, y, LANE - 2, "--ink", `${row.id}: tools ${duration(row.tool_seconds)}`));
  }));
  const marks = axisTicks(from - steps[0].start, to - steps[0].start).map((value) => {
    const at = x(value + steps[0].start);
    return [svg("line", { x1: at, x2: at, y1: 0, y2: height - 22, class: "tick" }), svg("text", { x: at + 3, y: height - 8 }, duration(value))];
  });
  const names = [["learner", 17], ["update", 37], ["evaluation", 54], ["grading", 71], ["episodes", 90]].map(([text, y]) => svg("text", { x: 0, y, class: "lane" }, text));
  return h("div", { class: "card scroll", tabindex: "0", role: "region", "aria-label": "Timeline" },
    svg("svg", { width: width + 84, height, class: "lanes" }, names, svg("g", { transform: "translate(80 0)" }, marks, shapes)),
    lanes.length > LANES ? h("p", { class: "of" }, `${lanes.length - LANES} more lanes of episodes are not drawn; zoom in.`) : null);
}

// Episodes in as few lanes as hold them without overlap.
function pack(rows, from, to) {
  const lanes = [];
  for (const row of rows.filter((one) => one.ended >= from && one.ended - one.seconds <= to).sort((a, b) => a.ended - a.seconds - (b.ended - b.seconds))) {
    const lane = lanes.find((one) => one.at(-1).ended <= row.ended - row.seconds);
    if (lane) lane.push(row); else lanes.push([row]);
  }
  return lanes;
}

function axisTicks(from, to) {
  const raw = (to - from) / 8, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * base).find((one) => one >= raw);
  const ticks_ = [];
  for (let at = Math.ceil(Math.max(0, from) / step) * step; at <= to; at += step) ticks_.push(at);
  return ticks_;
}

function waits(steps) {
  const sum = (name) => steps.reduce((total, step) => total + step[name], 0);
  const span = Math.max(1e-9, steps.length ? steps.at(-1).end - (steps[0].start - steps[0].waited) : 0);
  return h("div", { class: "facts" }, chip("steps in view", number(steps.length)), chip("learning", `${duration(sum("learn"))} (${percent(sum("learn") / span)})`),
    chip("learner waited for episodes", `${duration(sum("waited"))} (${percent(sum("waited") / span)})`), chip("engine took weights", `${duration(sum("publish"))} (${percent(sum("publish") / span)})`));
}
