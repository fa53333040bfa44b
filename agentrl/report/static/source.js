"use strict";
// Where the page has its data from: the server of `agentrl view`, or the file itself. Both answer the same questions.

const embedded = JSON.parse(document.getElementById("data").textContent);

function liveSource() {
  const ask = async (what, query) => {
    const parts = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
    const answer = await fetch(`api/${what}?${new URLSearchParams(parts)}`);
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 300) || `${answer.status}`);
    return answer.json();
  };
  return {
    live: true,
    runs: () => ask("runs", {}),
    overview: (run) => ask("overview", { run }),
    stamp: (run) => ask("stamp", { run }),
    episodes: (run, query) => ask("episodes", { run, ...query }),
    episode: (run, id) => ask("episode", { run, id }),
    prompts: (run, query) => ask("prompts", { run, ...query }),
    prompt: (run, prompt) => ask("prompt", { run, prompt }),
    comparison: (run, a, b) => ask("comparison", { run, a, b }),
    timeline: (run, first, last) => ask("timeline", { run, first, last }),
  };
}

function fileSource() {
  const { overviews, rows, prompts, attempts, comparisons } = embedded;
  return {
    live: false,
    runs: async () => Object.values(overviews).map((run) => ({ name: run.name, sentence: run.sentence })),
    overview: async (run) => overviews[run],
    stamp: async () => ({ stamp: "" }),
    episodes: async (run, query) => page(sorted(rows.filter(filterOf(query)), query.sort || "dispatch", query.order), query),
    episode: async (run, id) => {
      const found = document.getElementById(`episode-${id}`);
      if (found) return JSON.parse(found.textContent);
      return { ...(rows.find((row) => row.id === id) || attemptOf(id) || { id }), kept: false };
    },
    prompts: async (run, query) => page(sorted(prompts.filter((row) => !query.q || has(row.prompt, query.q)), query.sort || "attempts", query.order), query),
    prompt: async (run, prompt) => ({ prompt, attempts: attempts[prompt] || [] }),
    comparison: async (run, a, b) => comparisons.find((one) => one.a === a && one.b === b) || null,
    comparisons,
    timeline: async (run, first, last) => ({ rows: rows.filter((row) => row.ended && row.ended >= first && row.ended - row.seconds <= last) }),
  };
  function attemptOf(id) {
    return Object.values(attempts).flat().find((row) => row.id === id);
  }
}

function has(text, part) {
  return String(text ?? "").toLowerCase().includes(part.toLowerCase());
}

function filterOf(query) {
  const tests = [];
  for (const name of ["environment", "state", "stop", "prompt", "kind"]) {
    if (query[name]) tests.push((row) => row[name] === query[name]);
  }
  for (const [name, value] of Object.entries(query)) {
    if (value === "" || value === undefined) continue;
    if (name.endsWith("_min")) tests.push((row) => row[name.slice(0, -4)] !== null && row[name.slice(0, -4)] >= Number(value));
    if (name.endsWith("_max")) tests.push((row) => row[name.slice(0, -4)] !== null && row[name.slice(0, -4)] <= Number(value));
  }
  if (query.errors) tests.push((row) => row.call_errors > 0 || row.error);
  if (query.q) tests.push((row) => ["id", "prompt", "answer", "said", "error", "reason", "verdict"].some((name) => has(row[name], query.q)));
  return (row) => tests.every((test) => test(row));
}

function sorted(rows, name, order) {
  const sign = order === "asc" ? 1 : -1;
  return rows.slice().sort((a, b) => {
    const [x, y] = [a[name] ?? null, b[name] ?? null];
    if (x === null || y === null) return (x === null) - (y === null);
    return x < y ? -sign : x > y ? sign : sign * ((a.dispatch ?? 0) - (b.dispatch ?? 0));
  });
}

function page(rows, query) {
  const offset = Number(query.offset || 0);
  return { total: rows.length, rows: rows.slice(offset, offset + Number(query.limit || 100)) };
}

const source = embedded.mode === "live" ? liveSource() : fileSource();
