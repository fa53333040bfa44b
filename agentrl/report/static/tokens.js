"use strict";
// Each token in the colour of a number: why the loss pushed where.

const MODES = {
  gap: { title: "Gap", text: "log-probability of the learner less that of the engine, nats", diverging: true, of: (t) => t.learner - t.logprob, floor: 0.02 },
  advantage: { title: "Advantage", text: "what the loss weighs the token with", diverging: true, of: (t) => t.advantage, floor: 0.5 },
  entropy: { title: "Entropy", text: "of the learner at this token, nats", of: (t) => t.entropy, floor: 0.1 },
  surprise: { title: "Surprise", text: "minus the engine's log-probability, nats", of: (t) => -t.logprob, floor: 0.5 },
  version: { title: "Version", text: "policy version that sampled the token", steps: true, of: (t) => t.version },
  mask: { title: "Mask", text: "what the policy sampled", steps: true, of: () => 1 },
};
const TOKENS = 3000;

function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text || ""), (char) => char.charCodeAt(0));
  return new Type(bytes.buffer);
}

function tokensOf(segment, whole) {
  const read = (name, Type) => (segment[name] ? unpack(segment[name], Type) : null);
  const ids = read("ids", Int32Array), mask = read("mask", Uint8Array), logprobs = read("logprobs", Float32Array), versions = read("versions", Int32Array);
  const learner = read("learner", Float32Array), entropy = read("entropy", Float32Array), advantages = read("advantages", Float32Array);
  const special = new Set(segment.special || []);
  return Array.from(ids || [], (id, at) => ({
    at, id, text: segment.texts ? segment.texts[at] : `${id} `, special: special.has(at), sampled: mask?.[at] === 1, logprob: logprobs?.[at] ?? NaN, version: versions?.[at] ?? -1,
    learner: learner ? learner[at] : NaN, entropy: entropy ? entropy[at] : NaN, advantage: advantages ? advantages[at] : whole ?? NaN, top: segment.top?.[at],
  }));
}

function tokenView(episode, state) {
  const parts = (episode.segments || []).map((segment) => ({ segment, tokens: tokensOf(segment, segment.trainable === false ? null : episode.advantage) }));
  const all = parts.flatMap((part) => part.tokens).filter((token) => token.sampled);
  const usable = Object.keys(MODES).filter((name) => all.some((token) => Number.isFinite(MODES[name].of(token))));
  const detail = h("aside", { class: "detail", "aria-live": "polite" }, h("p", { class: "of" }, "Point at a token, or move with the arrow keys."));
  const flow = h("div", { class: "flow" });
  const note = h("div", { class: "scale" });
  const paint = (name) => {
    const range = rangeOf(name, all);
    flow.querySelectorAll(".tk.on").forEach((span) => { span.style.background = tint(name, span.token, range); });
    note.replaceChildren(scale(name, range));
  };
  const chosen = usable.includes(state.get("colour")) ? state.get("colour") : usable[0] || "mask";
  const radios = h("fieldset", { class: "modes" }, h("legend", {}, "Colour by"), Object.entries(MODES).map(([name, mode]) =>
    h("label", { class: usable.includes(name) ? "" : "off" }, h("input", { type: "radio", name: "mode", value: name, checked: name === chosen, disabled: !usable.includes(name),
      onchange: () => { state.set({ colour: name }, false); paint(name); } }), mode.title)));
  const spans = [];
  parts.forEach((part, at) => flow.append(segmentFlow(part, at, parts.length, spans, () => paint(state.get("colour") || chosen))));
  moveBetween(flow, spans, detail);
  paint(chosen);
  return h("div", { class: "tokens" }, h("div", {}, radios, note,
    parts.some(({ segment }) => segment.learner) ? null : h("p", { class: "of" }, "The learner's values of this episode are not kept (run.token_values_kept): gap and entropy are missing."), flow), detail);
}

function segmentFlow({ segment, tokens }, at, count, spans, repaint) {
  const box = h("div", { class: "segmentflow", dir: "ltr" });
  const more = h("button", { type: "button", class: "small" });
  let drawn = 0;
  const step = () => {
    const piece = document.createDocumentFragment();
    for (const token of tokens.slice(drawn, drawn + TOKENS)) {
      const span = h("span", { class: `tk ${token.sampled ? "on" : ""} ${token.special ? "special" : ""}` });
      span.token = token;
      const text = shown(token.text);
      span.append(text === "" ? "\u00b7" : text.replace(/\n/g, "\u21b5\n"));
      piece.append(span);
      spans.push(span);
    }
    drawn += TOKENS;
    more.before(piece);
    more.hidden = drawn >= tokens.length;
    more.textContent = `Show the next ${number(Math.min(TOKENS, tokens.length - drawn))} of ${number(tokens.length - drawn)} tokens`;
  };
  more.addEventListener("click", () => { step(); repaint(); });
  box.append(more);
  step();
  return h("section", {}, count > 1 ? h("h2", { class: "segment" }, `Segment ${at + 1}: ${shown(segment.agent)}`) : null, box);
}

function moveBetween(flow, spans, detail) {
  let current = null;
  const choose = (span) => {
    if (!span || span === current) return;
    current?.classList.remove("at");
    current = span;
    span.classList.add("at");
    detail.replaceChildren(...describe(span.token));
  };
  flow.tabIndex = 0;
  flow.setAttribute("role", "application");
  flow.setAttribute("aria-label", "Tokens; arrow keys move, and the panel beside tells of each");
  flow.addEventListener("mouseover", (event) => choose(event.target.closest(".tk")));
  flow.addEventListener("click", (event) => choose(event.target.closest(".tk")));
  flow.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!by) return;
    event.preventDefault();
    const at = current ? spans.indexOf(current) + by : spans.findIndex((span) => span.token.sampled);
    choose(spans[Math.max(0, Math.min(spans.length - 1, at))]);
    current.scrollIntoView({ block: "nearest" });
  });
}

function describe(token) {
  const row = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
  const both = (value) => (Number.isFinite(value) ? h("span", {}, number(value, 4), h("small", {}, ` (${percent(Math.exp(value))})`)) : "\u2013");
  const gap = token.learner - token.logprob;
  const push = !token.sampled || !Number.isFinite(token.advantage) ? null : token.advantage === 0 ? "The loss leaves this token where it is." : `The loss makes this token ${token.advantage > 0 ? "likelier" : "rarer"}.`;
  return [
    h("code", { class: "big" }, JSON.stringify(token.text)), token.special ? h("span", { class: "chip" }, "special") : null,
    push ? h("p", { class: token.advantage > 0 ? "up" : "down" }, push) : null,
    h("dl", {}, row("position", number(token.at)), row("token id", number(token.id)), token.sampled ? [
      row("sampled by", `version ${token.version}`), row("engine", both(token.logprob)), row("learner", both(token.learner)),
      Number.isFinite(gap) ? [row("gap", signed(gap)), row("ratio", number(Math.exp(gap)))] : null,
      row("entropy", number(token.entropy)), row("advantage", signed(token.advantage))] : row("", "given, not sampled: mask 0")),
    token.top ? h("table", { class: "top" }, h("caption", {}, "Likeliest"), h("tbody", {}, token.top.map(([text, value]) => h("tr", {}, h("td", {}, h("code", {}, JSON.stringify(text))), h("td", { class: "n" }, percent(Math.exp(value))))))) : null,
  ].filter(Boolean);
}

function rangeOf(name, tokens) {
  const values = tokens.map((token) => MODES[name].of(token)).filter(Number.isFinite);
  if (MODES[name].steps) return [...new Set(values)].sort((a, b) => a - b);
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  return Math.max(MODES[name].floor, sizes[Math.floor(0.98 * (sizes.length - 1))] || 0);
}

function tint(name, token, range) {
  const value = MODES[name].of(token);
  if (!token.sampled || !Number.isFinite(value)) return "";
  if (MODES[name].steps) return `color-mix(in srgb, var(${COLOURS[range.indexOf(value) % COLOURS.length]}) 30%, transparent)`;
  const part = Math.min(1, Math.abs(value) / range);
  const side = MODES[name].diverging && value < 0 ? "--minus" : MODES[name].diverging ? "--plus" : "--c0";
  return `color-mix(in srgb, var(${side}) ${Math.round(4 + 56 * part)}%, transparent)`;
}

function scale(name, range) {
  const mode = MODES[name];
  const box = (value, label) => h("span", {}, h("i", { style: { background: tint(name, { sampled: true, logprob: 0, ...fake(name, value) }, range) } }), label);
  const values = mode.steps ? range.slice(0, 8) : mode.diverging ? [-range, -range / 2, 0, range / 2, range] : [0, range / 2, range];
  return h("p", {}, h("span", { class: "of" }, mode.text), values.map((value) => box(value, mode.steps ? (name === "mask" ? "sampled" : `version ${value}`) : mode.diverging ? signed(value, 2) : number(value, 2))));
}

function fake(name, value) {
  return { gap: { learner: value }, advantage: { advantage: value }, entropy: { entropy: value }, surprise: { logprob: -value }, version: { version: value }, mask: {} }[name];
}
