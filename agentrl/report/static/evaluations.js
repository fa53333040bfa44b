"use strict";
// What `agentrl eval` wrote beside the run, and two of those evaluations compared problem by problem.

async function savedEvaluations(state, run) {
  const rows = run.saved || [];
  if (!rows.length) return null;
  const holder = h("div", { id: "comparison" });
  const show = async () => {
    const [a, b] = [state.get("a"), state.get("b")];
    if (!a || !b) { holder.replaceChildren(); return; }
    holder.replaceChildren();
    add(holder, [comparisonOf(await source.comparison(run.name, a, b).catch(() => null), a, b)]);
  };
  await show();
  const columns = [
    { title: "Evaluation", text: (row) => h("span", {}, shown(row.name), " ", row.own ? h("span", { class: "badge learned" }, "this run") : null, row.complete === false ? h("span", { class: "badge discarded" }, "not finished") : null) },
    { title: "Of", kind: "wide", text: (row) => (row.own && row.version ? `version ${row.version}` : shown(row.policy)) },
    { title: "Data", kind: "wide", text: (row) => shown(`${row.data ?? ""}${row.environment ? `, ${row.environment}` : ""}`) },
    { title: "Problems", number: true, text: (row) => `${number(row.problems)} \u00d7 ${number(row.k)}` },
    { title: "avg@k", number: true, text: (row) => number(row.mean) }, { title: "95% interval", number: true, text: (row) => intervalText(row.interval) },
    { title: "pass@k", number: true, text: (row) => { const k = Object.keys(row.pass).at(-1); return k ? `${number(row.pass[k])} (k = ${k})` : "\u2013"; } },
    { title: "Failed", number: true, text: (row) => number(row.failed) }, { title: "Cut off", number: true, text: (row) => number(row.truncated) },
    { title: "Calls", number: true, text: (row) => number(row.calls) }, { title: "Tokens", number: true, text: (row) => number(row.tokens) },
    { title: "Command", kind: "wide", text: (row) => h("details", {}, h("summary", {}, "show"), h("code", {}, shown((row.command || []).join(" ")))) },
  ];
  return [h("h2", {}, "By agentrl eval"), table(columns, rows, { caption: "Evaluations in evals/" }), chooser(state, rows, show), holder];
}

// Which two are compared; a file holds each against the oldest of the same problems, and offers no others.
function chooser(state, rows, show) {
  const kept = source.live ? null : source.comparisons.map((one) => [one.a, one.b]);
  const alike = (row, other) => row !== other && JSON.stringify(row.problems_of) === JSON.stringify(other.problems_of);
  const pairs = kept || rows.flatMap((b) => rows.filter((a) => alike(a, b)).map((a) => [a.name, b.name]));
  if (!pairs.length) return rows.length > 1 ? h("p", { class: "of" }, "No two of them are of the same problems.") : null;
  const firsts = [...new Set(pairs.map(([a]) => a))];
  const choose = (name, title, names) => h("label", {}, `${title} `, h("select", { "aria-label": `Evaluation ${title}`, onchange: (event) => { state.set(name === "a" ? { a: event.target.value, b: "" } : { b: event.target.value }, true); show(); } },
    h("option", { value: "" }, "\u2013"), names.map((one) => h("option", { value: one, selected: one === state.get(name) }, one))));
  return h("div", { class: "bar apart" }, h("b", {}, "Compare"), choose("a", "A", firsts), choose("b", "B", pairs.filter(([a]) => a === state.get("a")).map(([, b]) => b)));
}

function comparisonOf(found, a, b) {
  if (!found) return h("p", { class: "of" }, "This comparison is not here; agentrl compare makes it.");
  if (found.error) return h("p", { class: "error" }, shown(found.error));
  const bounds = ({ low, high }) => `${signed(low)} to ${signed(high)}`;
  const rows = [
    ["avg@k", found.mean_a, found.mean_b, found.difference, bounds(found.new_problems), bounds(found.same_problems)],
    ...Object.entries(found.pass_differences).map(([k, one]) => [`pass@${k}`, null, null, one.difference, bounds(one), "\u2013"]),
  ];
  const columns = ["Measure", shown(a), shown(b), "B less A", "95%, new problems", "95%, same problems"].map((title, at) =>
    ({ title, number: at > 0, text: (row) => (at === 0 || at > 3 ? row[at] : at === 3 ? signed(row[3]) : number(row[at])) }));
  const changed = found.changes.filter((row) => row.right_a / row.drawn_a !== row.right_b / row.drawn_b).slice(0, 20);
  return [
    table(columns, rows, { caption: "Comparison of two evaluations" }),
    h("div", { class: "facts apart" }, chip("problems in both", number(found.problems)), chip("better", number(found.better), "good"), chip("worse", number(found.worse), found.worse ? "bad" : ""), chip("equal", number(found.equal)),
      chip("p", number(found.p_value)), h("p", { class: "of" }, `Paired by problem; sign-flip test (${shown(found.test)}).`)),
    changed.length ? h("details", {}, h("summary", {}, `The ${changed.length} problems that changed most`), table([
      { title: "Problem", text: (row) => h("code", {}, shown(row.problem)) }, { title: "Right in A", number: true, text: (row) => `${row.right_a} of ${row.drawn_a}` },
      { title: "Right in B", number: true, text: (row) => `${row.right_b} of ${row.drawn_b}` }, { title: "p", number: true, text: (row) => number(row.p_value) },
      { title: "Stands out", text: (row) => (row.flagged ? "yes" : "") }], changed, { caption: "Problems that changed" })) : null,
  ];
}
