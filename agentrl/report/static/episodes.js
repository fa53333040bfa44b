"use strict";
// Lists of episodes, sorted and filtered, and the frame around one of them.

const FILTERS = ["q", "environment", "state", "stop", "version", "reward_min", "reward_max", "advantage_min", "advantage_max", "sampled_min", "turns_min", "errors", "prompt"];
const COLUMNS = [
  { title: "Episode", sort: "dispatch", text: (row) => h("code", {}, row.id) },
  { title: "Reward", sort: "reward", number: true, text: (row) => rewardCell(row) },
  { title: "Advantage", sort: "advantage", number: true, text: (row) => h("span", { class: row.advantage > 0 ? "up" : row.advantage < 0 ? "down" : "" }, signed(row.advantage)) },
  { title: "Version", sort: "version", number: true, text: (row) => number(row.version) },
  { title: "Sampled", sort: "sampled", number: true, text: (row) => number(row.sampled) },
  { title: "Turns", sort: "turns", number: true, text: (row) => number(row.turns) },
  { title: "Calls", sort: "calls", number: true, text: (row) => (row.call_errors ? h("span", { class: "down", title: `${row.call_errors} failed` }, `${row.calls} (${row.call_errors}!)`) : number(row.calls)) },
  { title: "Time", sort: "seconds", number: true, text: (row) => duration(row.seconds) },
  { title: "Ended", text: (row) => h("span", { class: "of" }, row.state === "failed" ? "failed" : row.stop || row.state) },
  { title: "Prompt", kind: "wide", text: (row) => h("span", { class: "clip" }, shown(row.prompt)) },
  { title: "Last words", kind: "wide", text: (row) => h("span", { class: "clip of" }, shown(row.error || row.said || row.answer || "")) },
];

function rewardCell(row) {
  if (row.reward === null || row.reward === undefined) return "\u2013";
  const score = row.score ?? row.reward;
  return h("span", { class: "meter", style: { "--part": String(Math.max(0, Math.min(1, score))) } }, number(row.reward));
}

function queryOf(state) {
  const query = {};
  for (const name of FILTERS) if (state.get(name)) query[name] = state.get(name);
  if (query.version) { query.version_min = query.version_max = query.version; delete query.version; }
  return { ...query, sort: state.get("sort") || "dispatch", order: state.get("order") || "desc" };
}

async function showEpisodes(state, run) {
  const list = h("div", { id: "list", "aria-live": "polite" });
  const load = async () => {
    const offset = Number(state.get("offset") || 0);
    const found = await source.episodes(run.name, { ...queryOf(state), offset, limit: 100 });
    list.replaceChildren(
      h("p", { class: "count" }, h("b", {}, number(found.total)), found.total === 1 ? " episode" : " episodes",
        source.live ? null : ` of the ${embedded.rows.length} in this file (${number(run.episodes)} in the run)`,
        source.live ? null : h("details", {}, h("summary", {}, "Which ones"), h("p", { class: "of" }, embedded.rule))),
      found.rows.length ? table(COLUMNS, found.rows, { sort: state.get("sort") || "dispatch", order: state.get("order") || "desc", caption: "Episodes",
        onsort: (sort, order) => { state.set({ sort, order, offset: "" }); load(); },
        onrow: (row) => { location.hash = state.link("episode", { id: row.id }, true); } }) : empty("No episode matches."),
      pager(found.total, offset, (next) => { state.set({ offset: String(next) }); load(); }));
    linkRows(list, found.rows, state);
  };
  await load();
  let timer = 0;
  const changed = (name) => (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => { state.set({ [name]: event.target.type === "checkbox" ? (event.target.checked ? "1" : "") : event.target.value, offset: "" }, false); load(); }, event.type === "input" ? 150 : 0);
  };
  return [heading("Episodes"), filters(state, run, changed), list];
}

// The first cell of a row is a real link, for keyboards and new tabs.
function linkRows(list, rows, state) {
  list.querySelectorAll("tbody tr").forEach((element, at) => {
    const cell = element.firstElementChild;
    cell.replaceChildren(h("a", { href: state.link("episode", { id: rows[at].id }, true) }, h("code", {}, rows[at].id)));
  });
}

function filters(state, run, changed) {
  const choice = (name, title, values) => h("label", {}, title, h("select", { onchange: changed(name), name },
    h("option", { value: "" }, "all"), values.map((value) => h("option", { value, selected: state.get(name) === value }, value))));
  const range = (name, title) => h("span", { class: "range" }, h("span", {}, title),
    h("input", { type: "number", step: "any", placeholder: "from", "aria-label": `${title} from`, value: state.get(`${name}_min`) || "", oninput: changed(`${name}_min`) }),
    h("input", { type: "number", step: "any", placeholder: "to", "aria-label": `${title} to`, value: state.get(`${name}_max`) || "", oninput: changed(`${name}_max`) }));
  return h("form", { class: "bar filters", role: "search", onsubmit: (event) => event.preventDefault() },
    h("input", { type: "search", name: "q", placeholder: "Search id, prompt, answer, error", "aria-label": "Search", value: state.get("q") || "", oninput: changed("q") }),
    run.episode_environments.length > 1 ? choice("environment", "Environment", run.episode_environments) : null,
    choice("state", "State", ["learned", "finished", "evaluated", "failed", "discarded", "abandoned", "pending"]),
    choice("stop", "Ended", ["answered", "finished", "max_turns", "max_tokens", "context_full", "failed", "cancelled"]),
    range("reward", "Reward"), range("advantage", "Advantage"), range("sampled", "Sampled"), range("turns", "Turns"),
    h("label", {}, "Version", h("input", { type: "number", min: "0", value: state.get("version") || "", oninput: changed("version") })),
    h("label", { class: "check" }, h("input", { type: "checkbox", checked: state.get("errors") === "1", onchange: changed("errors") }), "with errors"),
    h("a", { class: "small", href: state.link("episodes", {}) }, "Clear"));
}

function pager(total, offset, go, size = 100) {
  if (total <= size) return null;
  return h("div", { class: "pager" },
    h("button", { type: "button", disabled: offset <= 0, onclick: () => go(Math.max(0, offset - size)) }, "\u2190 Earlier"),
    h("span", {}, `${number(offset + 1)} to ${number(Math.min(total, offset + size))} of ${number(total)}`),
    h("button", { type: "button", disabled: offset + size >= total, onclick: () => go(offset + size) }, "Later \u2192"));
}

async function showEpisode(state, run) {
  const id = state.get("id");
  const episode = await source.episode(run.name, id);
  const tabs = { conversation: "Conversation", tokens: "Tokens", segments: "Segments", record: "Record" };
  const chosen = tabs[state.get("tab")] ? state.get("tab") : "conversation";
  const bodies = { conversation: conversation, tokens: tokenView, segments: segmentTree, record: recordView };
  const body = episode.kept === false
    ? empty(source.live ? "This episode is not on disk any more: run.episodes_kept keeps the newest ones." : "This file does not hold the text of this episode; `agentrl view` shows it.")
    : bodies[chosen](episode, state);
  const step = (by) => async () => {
    const found = await source.episodes(run.name, { ...queryOf(state), offset: Number(state.get("offset") || 0), limit: 100 });
    const at = found.rows.findIndex((row) => row.id === id);
    const next = found.rows[at + by];
    if (next) location.hash = state.link("episode", { id: next.id, tab: chosen }, true);
  };
  const [back, on] = [step(-1), step(1)];
  state.keys = { j: on, k: back, c: () => state.set({ tab: "conversation" }, true, true), t: () => state.set({ tab: "tokens" }, true, true), u: () => { location.hash = state.link("episodes", {}, true); } };
  return [
    h("p", { class: "crumbs" }, h("a", { href: state.link("episodes", { id: "", tab: "" }, true) }, "Episodes"), " / ", id,
      h("span", { class: "steps" }, h("button", { type: "button", class: "small", onclick: back }, "\u2190 previous ", h("kbd", {}, "k")), h("button", { type: "button", class: "small", onclick: on }, "next ", h("kbd", {}, "j"), " \u2192"))),
    heading(`Episode ${id}`),
    facts(episode, state),
    h("div", { class: "tabs", role: "tablist", "aria-label": "Episode" }, Object.entries(tabs).map(([name, title]) =>
      h("a", { role: "tab", id: `tab-${name}`, "aria-selected": String(name === chosen), href: state.link("episode", { id, tab: name }, true) }, title))),
    h("div", { role: "tabpanel", "aria-labelledby": `tab-${chosen}` }, body),
  ];
}

function facts(episode, state) {
  const tone = episode.advantage > 0 ? "good" : episode.advantage < 0 ? "bad" : "";
  const part = ([name, value]) => chip(name, number(value));
  return h("div", { class: "facts" },
    chip("reward", number(episode.reward)), chip("baseline", number(episode.baseline)), chip("advantage", signed(episode.advantage), tone),
    chip("version", `${number(episode.start_version)} \u2192 ${number(episode.version)}`), chip("tokens", `${number(episode.sampled)} of ${number(episode.tokens)} sampled`),
    chip("ended", episode.stop || episode.state), chip("time", duration(episode.seconds)), episode.tool_seconds ? chip("in tools", duration(episode.tool_seconds)) : null, episode.grade_seconds ? chip("in grading", duration(episode.grade_seconds)) : null,
    episode.verdict ? chip("grader", shown(episode.verdict)) : null,
    Object.entries(episode.reward_parts || {}).length > 1 ? Object.entries(episode.reward_parts).map(part) : null,
    episode.error ? h("p", { class: "error" }, shown(episode.error)) : null,
    episode.reason ? h("p", { class: "of" }, `${episode.state}: ${shown(episode.reason)}`) : null,
    episode.prompt ? h("p", { class: "of" }, "Prompt ", h("a", { href: state.link("prompt", { prompt: episode.prompt }) }, shown(episode.prompt))) : null);
}
