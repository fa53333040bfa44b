"use strict";
// Failures by reason, evaluations with their differences, and what the run was started with.

function showFailures(state, run) {
  const rows = run.reasons;
  const columns = [
    { title: "State", text: (row) => h("span", { class: `badge ${row.state}` }, row.state) },
    { title: "Reason", kind: "wide", text: (row) => shown(row.reason || "none given") },
    { title: "Episodes", number: true, text: (row) => h("a", { href: state.link("episodes", { state: row.state, q: (row.reason || "").slice(0, 80) }) }, number(row.count)) },
    { title: "The first one", kind: "wide", text: (row) => h("div", {}, h("a", { href: state.link("episode", { id: row.id }) }, h("code", {}, row.id)), row.error ? longText(row.error.slice(0, 1500), (text) => h("pre", { dir: "ltr" }, shown(text))) : null) },
  ];
  const notes = run.notes.filter((row) => ["outage", "left_out"].includes(row.kind));
  return [heading("Failures and discards", "What was played and not learned from. A failure of machinery is never a reward."),
    rows.length ? table(columns, rows, { caption: "Reasons" }) : empty("None: every episode that ended was learned from or waits for its batch."),
    notes.length ? [h("h2", {}, "Outages and rows left out"), h("pre", { class: "record", tabindex: "0" }, shown(notes.map((row) => JSON.stringify(row)).join("\n")))] : null];
}

async function showEvaluations(state, run, others) {
  const rows = run.evaluations, first = rows[0], saved = await savedEvaluations(state, run);
  if (!rows.length) return [heading("Evaluations"), saved || empty("No held-out evaluation yet: eval.data names rows for it, and agentrl eval measures a run that has ended.")];
  const best = rows.reduce((a, b) => (b.reward_mean > a.reward_mean ? b : a));
  const columns = [
    { title: "Version", number: true, text: (row) => h("span", {}, row === best && rows.length > 1 ? h("span", { class: "badge learned" }, "best") : null, " ", number(row.version)) },
    { title: "Mean reward", number: true, text: (row) => number(row.reward_mean) }, { title: "95% interval", number: true, text: (row) => intervalText(row.interval) },
    { title: "Less the first", number: true, text: (row) => (row === first ? "\u2013" : differenceText(row, first)) },
    { title: "Episodes", number: true, text: (row) => number(row.episodes) }, { title: "Failed", number: true, text: (row) => number(row.failed) },
    { title: "Cut off", number: true, text: (row) => percent(row.truncated_share) }, { title: "Calls", number: true, text: (row) => number(row.tool_calls_mean) }, { title: "Tokens", number: true, text: (row) => number(row.sampled_tokens_mean) },
  ];
  const theirs = others.filter((other) => other.evaluations.length).map((other) => [h("h2", {}, `Against ${other.name}`), table([
    { title: "Run", text: (row) => row.run }, { title: "Version", number: true, text: (row) => number(row.version) }, { title: "Mean reward", number: true, text: (row) => number(row.reward_mean) }, { title: "95% interval", number: true, text: (row) => intervalText(row.interval) },
    { title: "Difference", number: true, text: (row) => (row.run === run.name ? differenceText(row, other.evaluations.at(-1)) : "\u2013") }],
  [{ ...rows.at(-1), run: run.name }, { ...other.evaluations.at(-1), run: other.name }], { caption: `Comparison with ${other.name}` })]);
  return [heading("Evaluations", "On held-out problems while the run went on. Differences are of independent samples, with normal 95% intervals; a comparison of two evaluations by agentrl eval pairs problems and is sharper."),
    table(columns, rows, { caption: "Evaluations" }), theirs,
    h("div", { class: "charts" }, chart({ title: "Held-out reward", x: rows.map((row) => row.version), wide: true, sync: false,
      series: [{ label: "", values: rows.map((row) => row.interval?.[1] ?? null), colour: "--c2", kind: "hidden" }, { label: "", values: rows.map((row) => row.interval?.[0] ?? null), colour: "--c2", kind: "hidden" }, { label: "mean reward", values: rows.map((row) => row.reward_mean), colour: "--c2", kind: "marked" }], bands: [[0, 1, "--c2"]] })), saved];
}

function intervalText(interval) {
  return interval && interval[0] !== null ? `${number(interval[0])} to ${number(interval[1])}` : "\u2013";
}

function differenceText(row, base) {
  const difference = row.reward_mean - base.reward_mean;
  if (!row.interval || !base.interval || row.interval[0] === null || base.interval[0] === null) return signed(difference);
  const half = Math.hypot(row.interval[1] - row.interval[0], base.interval[1] - base.interval[0]) / 2;
  return h("span", { class: difference - half > 0 ? "up" : difference + half < 0 ? "down" : "" }, `${signed(difference)} \u00b1 ${number(half, 2)}`);
}

function showSettings(state, run, others) {
  const theirs = others.map((other) => new Set(other.config.split("\n")));
  const mine = new Set(run.config.split("\n"));
  const lines = run.config.split("\n").map((line) => h("span", { class: line.startsWith("[") ? "section" : line.trim() && theirs.some((lines) => !lines.has(line)) ? "changed" : "" }, shown(line), "\n"));
  const gone = others.map((other) => [other.name, other.config.split("\n").filter((line) => line.trim() && !line.startsWith("[") && !mine.has(line))]);
  const { command, versions, ...identity } = run.identity;
  return [heading("Settings", "As in force, from config.toml; the command and the versions are those that the run began with."),
    command ? [h("h2", {}, "Command"), h("pre", { class: "record", tabindex: "0" }, shown(Array.isArray(command) ? command.join(" ") : command))] : null,
    h("div", { class: "facts" }, Object.entries({ ...identity, ...versions }).map(([name, value]) => chip(name.replaceAll("_", " "), shown(value)))),
    h("pre", { class: "record config", tabindex: "0" }, lines),
    gone.map(([name, lines]) => (lines.length ? [h("h2", {}, `In ${name} instead`), h("pre", { class: "record", tabindex: "0" }, shown(lines.join("\n")))] : null)),
    resumptions(run)];
}

function resumptions(run) {
  const rows = run.settings.filter((row) => row.kind === "resume");
  if (!rows.length) return null;
  const other = (row) => Object.entries(row.versions || {}).filter(([name, value]) => run.identity.versions && run.identity.versions[name] !== value);
  const columns = [
    { title: "Resumed at", text: (row) => shown(row.time) }, { title: "Command", kind: "wide", text: (row) => h("code", {}, shown((row.command || []).join(" "))) },
    { title: "Settings it changed", kind: "wide", text: (row) => Object.entries(row.changed || {}).map(([name, [before, after]]) => h("div", {}, h("code", {}, shown(`${name} = ${JSON.stringify(after)}`)), h("span", { class: "of" }, ` (was ${shown(JSON.stringify(before))})`))) },
    { title: "Other versions", kind: "wide", text: (row) => other(row).map(([name, value]) => `${name} ${value}`).join(", ") || "\u2013" },
  ];
  return [h("h2", {}, "Resumptions"), table(columns, rows, { caption: "Resumptions" })];
}
