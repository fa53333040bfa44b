"use strict";
// The run as a whole: health with its rules, numbers, and every curve that some step logged.

const GROUPS = [
  ["Learning", [
    { title: "Score", note: "of each batch, and of held-out problems", names: ["score_mean", "baseline_mean"], evaluations: true, wide: true },
    { title: "Advantages", note: "deviation over the batch", names: ["advantage_std"] },
    { title: "Loss", names: ["loss"] },
    { title: "Gradient norm", names: ["grad_norm"] },
    { title: "Learning rate", names: ["learning_rate"] },
  ]],
  ["Policy", [
    { title: "Entropy", note: "nats a token", names: ["entropy"] },
    { title: "KL", note: "nats a token", names: ["kl_proximal", "kl_reference"] },
    { title: "Clipped tokens", note: "share", names: ["clip_low", "clip_high", "clip_dual"] },
    { title: "Engine and learner", note: "nats a token apart", names: ["behaviour_gap"] },
    { title: "Importance weights", names: ["importance_mean", "importance_max"] },
    { title: "Effective tokens", note: "share", names: ["effective_share"] },
  ]],
  ["Episodes", [
    { title: "Turns and tool calls", note: "an episode", names: ["turns_mean", "tool_calls_mean"] },
    { title: "Sampled tokens", note: "an episode", names: ["sampled_tokens_mean"] },
    { title: "Shares", names: ["tool_error_share", "truncated_share", "undecided_share", "failed_share"] },
    { title: "Time of an episode", note: "seconds", names: ["seconds_mean", "tool_seconds_mean", "grade_seconds_mean"] },
  ]],
  ["Tracker", [
    { title: "Error of values", note: "Brier score, log loss", names: ["brier", "log_loss"] },
    { title: "Forgetting", note: "mean \u03c1", names: ["rho_mean"] },
    { title: "Drift", note: "nats a token, and its clock", names: ["drift", "clock"] },
    { title: "Prompts never seen", note: "share", names: ["unseen_share"] },
  ]],
  ["Asynchrony", [
    { title: "Staleness", note: "versions", names: ["staleness_mean", "staleness_allowed"] },
    { title: "Staler than allowed", note: "share", names: ["excess_share"] },
    { title: "Episodes", note: "now", names: ["in_flight", "buffered"] },
    { title: "Tokens a second", names: ["generate_tokens_per_s", "learn_tokens_per_s"] },
    { title: "Step", note: "seconds", names: ["learn_s", "publish_s"] },
    { title: "Learner waits", note: "share of the time between steps", names: ["idle_share"] },
  ]],
];
const AXES = { version: "policy version", time_s: "wall time (s)", episodes_total: "episodes played", tokens_total: "tokens sampled" };

function showOverview(state, run, others) {
  const curves = h("div", { id: "curves" });
  const redraw = () => { clearCharts(); drawCurves(curves, state, run, others); };
  const select = h("select", { onchange: (event) => { state.set({ x: event.target.value }, false); redraw(); } },
    Object.entries(AXES).map(([name, text]) => h("option", { value: name }, text)));
  select.value = state.get("x") || "version";
  const slider = h("input", { type: "range", min: "0", max: "0.95", step: "0.05", value: state.get("smooth") || "0.6",
    oninput: (event) => { state.set({ smooth: event.target.value }, false); redraw(); } });
  redraw();
  return [
    heading(run.name, run.running ? h("span", { class: "live" }, "running") : null, run.sentence),
    embedded.reference ? h("p", { class: "hint reference" }, embedded.reference.sentence) : null,
    healthPanel(run),
    h("div", { class: "tiles" }, run.tiles.map(([name, value]) => h("div", { class: "tile" }, h("span", {}, name), h("b", {}, value)))),
    h("div", { class: "bar" }, h("label", {}, "Across ", select), h("label", {}, "Smoothing ", slider),
      h("span", { class: "hint" }, "Drag to zoom, double-click to go back, click a step to see its episodes.")),
    run.columns.version.length || run.evaluations.length ? curves : empty("No step was taken yet."),
  ];
}

function healthPanel(run) {
  const broken = run.health.rules.filter((rule) => rule.broken);
  const item = (rule) => h("li", { class: rule.broken ? "broken" : "kept" },
    h("span", { class: "state", "aria-hidden": "true" }, rule.broken ? "!" : "\u2713"),
    h("span", {}, rule.broken ? h("b", {}, rule.broken) : rule.stated, rule.broken ? h("span", { class: "of" }, ` \u2014 rule: ${rule.stated}`) : null),
    h("a", { href: `#curve-${rule.evidence}`, onclick: (event) => { event.preventDefault(); jump(rule.evidence); } }, "evidence"));
  return h("section", { class: `health ${run.health.state}`, "aria-label": "Health" },
    h("p", { class: "sentence" }, h("span", { class: "lamp", "aria-hidden": "true" }), run.health.text),
    h("ul", { class: "rules" }, broken.map(item)),
    h("details", {}, h("summary", {}, `All ${run.health.rules.length} rules`), h("ul", { class: "rules" }, run.health.rules.map(item))),
    run.damaged ? h("p", { class: "of" }, `${run.damaged} damaged lines of recorded episodes are left out.`) : null);
}

function jump(name) {
  const card = document.querySelector(`[data-names~="${name}"]`);
  if (!card) return;
  card.scrollIntoView({ block: "center", behavior: "smooth" });
  card.classList.add("flash");
  setTimeout(() => card.classList.remove("flash"), 1600);
}

function columnsOf(run) {
  return { ...run.columns, idle_share: run.idle_share };
}

function drawCurves(holder, state, run, others) {
  const columns = columnsOf(run), x = columns[state.get("x") || "version"] || columns.version;
  const drawn = new Set(["version", "attempt", "at", "step", "optimizer_steps", ...Object.keys(AXES), "episodes", "tokens_generated", "reward_mean"]);
  holder.replaceChildren();
  const groups = GROUPS.map(([title, charts]) => [title, charts.slice()]);
  for (const chart of groups.flatMap(([, charts]) => charts)) chart.names.forEach((name) => drawn.add(name));
  if (Object.keys(run.environments).length) groups[0][1].splice(1, 0, { title: "Score by environment", names: [], environments: true });
  const rest = Object.keys(columns).filter((name) => !drawn.has(name) && (columns[name] || []).some((value) => value !== null && value !== 0));
  groups.push(["Everything else", rest.map((name) => ({ title: name, names: [name] }))]);
  for (const [title, charts] of groups) {
    const cards = charts.map((one) => curve(one, state, run, others, columns, x)).filter(Boolean);
    if (!cards.length) continue;
    const grid = h("div", { class: "charts" }, title === "Everything else" ? null : cards);
    if (title === "Everything else") {
      const box = h("details", { class: "rest" }, h("summary", {}, `${title} (${rest.length})`), grid);
      box.addEventListener("toggle", () => box.open && !grid.childElementCount && grid.append(...cards));
      holder.append(box);
    } else holder.append(h("h2", {}, title), grid);
  }
}

function curve(one, state, run, others, columns, x) {
  const weight = Number(state.get("smooth") || 0.6), axisName = state.get("x") || "version";
  const series = [];
  const own = one.environments
    ? Object.entries(run.environments).slice(0, 4).map(([name, values]) => [name, values.score])
    : one.names.map((name) => [name, columns[name]]).filter(([, values]) => values && values.some((value) => value !== null));
  own.forEach(([name, values], at) => {
    const tint = COLOURS[at % COLOURS.length];
    if (weight > 0) series.push({ label: "", values, colour: tint, faint: true });
    series.push({ label: label(name), values: smooth(values, weight), colour: tint });
    others.forEach((other, place) => {
      const theirs = columnsOf(other)[name];
      if (theirs) series.push({ label: `${label(name)}, ${other.name}`, values: aligned(x, columnsOf(other)[axisName], smooth(theirs, weight)), colour: tint, dashed: place + 1 });
    });
  });
  const bands = [];
  let at = withReference(series, bands, own.map(([name]) => name), x, axisName, weight);
  if (one.evaluations && run.evaluations.length) at = withEvaluations(series, bands, run, x, at, axisName);
  if (!series.length) return null;
  const card = chart({ title: one.title, note: one.note, x: at, series, bands, wide: one.wide,
    onpick: (index) => { const place = x.indexOf(at[index]); if (place >= 0) location.hash = state.link("episodes", { version: String(run.columns.version[place]) }); } });
  card.setAttribute("data-names", own.map(([name]) => name).join(" "));
  return card;
}

function label(name) {
  return name.replace(/_mean$/, "").replace(/_share$/, "").replace(/_per_s$/, "/s").replaceAll("_", " ");
}

// The band of the reference that the page was given, as long as it is, behind the curves; its median in dots.
function withReference(series, bands, names, x, axisName, weight) {
  const reference = embedded.reference, places = reference?.axes[axisName];
  const shared = places ? names.filter((name) => reference.curves[name]) : [];
  if (!shared.length) return x;
  const union = spread(series, x, places);
  const index = new Map(places.map((value, at) => [value, at]));
  const of = (values) => { const smoothed = smooth(values, weight); return union.map((value) => (index.has(value) ? smoothed[index.get(value)] : null)); };
  for (const name of shared) {
    const { low, middle, high } = reference.curves[name], colour = COLOURS[names.indexOf(name) % COLOURS.length];
    series.push({ label: "", values: of(high), colour, kind: "hidden" }, { label: "", values: of(low), colour, kind: "hidden" });
    bands.push([series.length - 2, series.length - 1, colour]);
    series.push({ label: `${label(name)}, reference ${reference.name}`, values: of(middle), colour, dashed: 2 });
  }
  return union;
}

// Evaluations stand at versions that may have no step (0): all series move to the union of both places.
function withEvaluations(series, bands, run, x, at, axisName) {
  const place = (row) => {
    const index = run.columns.version.indexOf(row.version);
    return index >= 0 ? x[index] : run.start[axisName] ?? 0;
  };
  const rows = run.evaluations.map((row) => ({ ...row, x: place(row) }));
  const union = spread(series, at, rows.map((row) => row.x));
  const of = (get) => union.map((value) => { const row = rows.findLast((item) => item.x === value); return row ? get(row) : null; });
  series.push({ label: "", values: of((row) => row.interval?.[1] ?? null), colour: "--c2", kind: "hidden" });
  series.push({ label: "", values: of((row) => row.interval?.[0] ?? null), colour: "--c2", kind: "hidden" });
  bands.push([series.length - 2, series.length - 1, "--c2"]);
  series.push({ label: "held-out reward, 95% interval", values: of((row) => row.reward_mean), colour: "--c2", kind: "marked" });
  return union;
}
