"use strict";
// Which view is shown, of which run; the address says it all: #/view?run=001&with=002/003&id=t7

const VIEWS = {
  overview: ["Overview", showOverview, "1"], episodes: ["Episodes", showEpisodes, "2"], prompts: ["Prompts", showPrompts, "3"], tracker: ["Tracker", showTracker, "4"],
  timeline: ["Timeline", showTimeline, "5"], failures: ["Failures", showFailures, "6"], evaluations: ["Evaluations", showEvaluations, "7"], settings: ["Settings", showSettings, "8"],
};
const DETAILS = { episode: [showEpisode, "episodes"], prompt: [showPrompt, "prompts"] };
const main = document.getElementById("main");
const OTHERS = 3;
let runs = [], stamp = "", turn = 0, current = null, known = {};

function readState() {
  const [view, text] = location.hash.replace(/^#\/?/, "").split("?");
  const parameters = new URLSearchParams(text || "");
  const state = {
    view: VIEWS[view] || DETAILS[view] ? view : "overview", keys: {},
    get: (name) => parameters.get(name),
    run: parameters.get("run") || runs[0]?.name, others: (parameters.get("with") || "").split("/").filter(Boolean).slice(0, OTHERS),
    link(to, query, keep) {
      const next = new URLSearchParams(keep ? parameters : {});
      for (const [name, value] of Object.entries({ run: parameters.get("run"), with: parameters.get("with"), ...query })) value ? next.set(name, value) : next.delete(name);
      const rest = next.toString();
      return `#/${to}${rest ? `?${rest}` : ""}`;
    },
    set(query, show = false, keep = true) {
      for (const [name, value] of Object.entries(query)) value ? parameters.set(name, value) : parameters.delete(name);
      history.replaceState(null, "", state.link(state.view, {}, keep));
      if (show || query.tab) render();
    },
  };
  return state;
}

async function render({ keep = false } = {}) {
  const mine = ++turn;
  const state = readState();
  current = state;
  drawNavigation(state);
  main.setAttribute("aria-busy", "true");
  const scroll = keep ? window.scrollY : 0;
  try {
    if (!state.run) { main.replaceChildren(empty("There is no run here yet.")); return; }
    const [run, ...others] = await Promise.all([state.run, ...state.others].map(overviewOf));
    const show = (VIEWS[state.view] || [null, DETAILS[state.view]?.[0]])[1];
    const previous = liveCharts;
    liveCharts = [];
    const parts = await show(state, run, others);
    if (mine !== turn) return;
    previous.forEach((chart) => { chart.observer.disconnect(); chart.plot.destroy(); });
    main.replaceChildren();
    add(main, [parts]);
    document.title = `${run.name} \u2013 agentrl`;
  } catch (error) {
    if (mine === turn) main.replaceChildren(heading("This cannot be shown"), h("p", { class: "error" }, shown(error.message)));
  } finally {
    if (mine === turn) { main.removeAttribute("aria-busy"); window.scrollTo(0, scroll); }
  }
}

async function overviewOf(name) {
  if (!known[name]) known[name] = await source.overview(name);
  if (!known[name]) throw new Error(`there is no run ${name}`);
  return known[name];
}

function drawNavigation(state) {
  const at = DETAILS[state.view]?.[1] || state.view;
  document.getElementById("views").replaceChildren(...Object.entries(VIEWS).map(([name, [title, , key]]) =>
    h("a", { href: state.link(name, {}), "aria-current": name === at ? "page" : null }, title, h("kbd", { "aria-hidden": "true" }, key))));
  const choose = (title, first, chosen, query) => h("label", {}, h("span", {}, title), h("select", { onchange: (event) => { location.hash = state.link(state.view, query(event.target.value), VIEWS[state.view] !== undefined); } },
    first ? h("option", { value: "" }, first) : null, runs.map((run) => h("option", { value: run.name, selected: run.name === chosen, title: run.sentence }, `${run.name}${run.running ? " (running)" : ""}`))));
  const places = [...state.others, ""].slice(0, Math.min(OTHERS, runs.length - 1));
  document.getElementById("runs").replaceChildren(choose("Run", "", state.run, (run) => ({ run })),
    ...places.map((chosen, at) => choose(at ? "and with" : "Compare with", "nothing", chosen, (name) => ({ with: state.others.toSpliced(at, 1, name).filter(Boolean).join("/") }))));
}

const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = `Theme: ${THEMES[name]}`;
  try { localStorage.setItem("agentrl-theme", name); } catch { /* a file may have no storage */ }
}

function startTheme() {
  let name = "auto";
  try { name = localStorage.getItem("agentrl-theme") || "auto"; } catch { /* as above */ }
  setTheme(THEMES[name] ? name : "auto");
  document.getElementById("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
    render({ keep: true });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => render({ keep: true }));
}

const KEYS = [["1 \u2026 8", "views"], ["/", "search"], ["j, k", "next, previous episode"], ["c, t", "conversation, tokens"], ["u", "back to the list"], ["arrows", "from token to token"], ["h, l, +, \u2212", "move and zoom the timeline"], ["?", "this help"]];

function startKeys() {
  const help = document.getElementById("help");
  help.append(h("h2", {}, "Keyboard"), h("dl", {}, KEYS.map(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])), h("form", { method: "dialog" }, h("button", {}, "Close")));
  document.getElementById("keys").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input,select,textarea,dialog")) return;
    const view = Object.entries(VIEWS).find(([, [, , key]]) => key === event.key);
    const own = current?.keys[event.key];
    if (own) own();
    else if (view) location.hash = current.link(view[0], {});
    else if (event.key === "?") help.showModal();
    else if (event.key === "/") { const box = main.querySelector("input[type=search]"); if (!box) return; box.focus(); } else return;
    event.preventDefault();
  });
}

// A run under way: the stamp changes when its files do.
async function follow() {
  try {
    const next = await source.stamp(current?.run || "");
    if (stamp && next.stamp !== stamp) {
      known = {};
      runs = await source.runs();
      const busy = document.activeElement?.closest("main input, main select") || ["episode", "prompt"].includes(current?.view);
      if (!busy) await render({ keep: true });
    }
    stamp = next.stamp;
    document.body.classList.remove("lost");
  } catch {
    document.body.classList.add("lost");
  }
  setTimeout(follow, 2500);
}

async function start() {
  startTheme();
  startKeys();
  runs = await source.runs();
  window.addEventListener("hashchange", () => render());
  await render();
  if (source.live) follow();
}

start();
