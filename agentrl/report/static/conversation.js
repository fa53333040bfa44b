"use strict";
// One episode as people read it: what was asked, what the model said, the code it ran and what came back.

const MATHS = /(\$\$[\s\S]+?\$\$|\\\[[\s\S]+?\\\]|\\\([\s\S]+?\\\)|\$(?=[^\s$])[^$\n]*?[^\s$\\]\$|\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/;
const FENCE = /```(\w*)\n([\s\S]*?)(?:```|$)/;

function conversation(episode, state) {
  const blocks = [];
  const segments = episode.segments || [];
  let seen = -1, end = 0;
  for (const turn of episode.turns) {
    const segment = segments[turn.segment];
    if (turn.segment !== seen) {
      if (segments.length > 1) blocks.push(h("h2", { class: "segment" }, `Segment ${turn.segment + 1}: ${shown(segment?.agent || "agent")}`));
      [seen, end] = [turn.segment, 0];
    }
    const given = textBetween(segment, end, turn.start);
    if (given.trim() && (end === 0 || !lastCalls(blocks))) blocks.push(message(end === 0 ? "Prompt" : "Environment", "given", given));
    blocks.push(turnBlock(turn));
    end = turn.end;
  }
  if (!episode.turns.length && segments.length) blocks.push(message("Prompt", "given", textBetween(segments[0], 0, segments[0].size)));
  if (episode.answer) blocks.push(message("Answer", "answer", episode.answer));
  return h("div", { class: "talk" }, blocks.length ? blocks : empty("Nothing was said."));
}

function lastCalls(blocks) {
  return blocks.length && blocks[blocks.length - 1].dataset.calls === "1";
}

function textBetween(segment, start, end) {
  return segment && segment.texts ? segment.texts.slice(start, end).join("") : "";
}

function message(who, kind, text, ...more) {
  return h("article", { class: `message ${kind}` }, h("header", {}, who), longText(text, rich), more);
}

// A call that the text spells out is shown once, as the cell that ran.
const SPELLED = /\s*(?:<code>[\s\S]*?(?:<\/code>|$)|<tool_call>[\s\S]*?(?:<\/tool_call>|$))\s*/g;

function turnBlock(turn) {
  const text = turn.calls.length ? (turn.text || "").replace(SPELLED, "\n").trim() : turn.text || "";
  const block = message("Model", "model", text, turn.calls.map(cell),
    turn.reward !== null && turn.reward !== undefined ? h("p", { class: "of" }, `reward of this turn: ${number(turn.reward)}`) : null);
  block.dataset.calls = turn.calls.length ? "1" : "0";
  return block;
}

function cell(call) {
  const given = call.arguments || {};
  const names = Object.keys(given);
  const code = names.length === 1 && typeof given[names[0]] === "string" ? given[names[0]] : JSON.stringify(given, null, 2);
  const ok = call.status === "ok";
  return h("div", { class: `cell ${ok ? "" : "failed"}` },
    h("div", { class: "in" }, h("span", { class: "label" }, `${shown(call.name)}`), longText(code, (text) => h("pre", { dir: "ltr" }, shown(text)))),
    h("div", { class: "out" }, h("span", { class: "label" }, ok ? "out" : shown(call.status), h("small", {}, ` ${duration(call.seconds)}`)), longText(call.result, (text) => h("pre", { dir: "ltr" }, shown(text)))));
}

// Text with fences of code and mathematics; all else stays as it was written.
function rich(text) {
  const box = h("div", { class: "text", dir: "auto" });
  let rest = text;
  for (let found = rest.match(FENCE); found; found = rest.match(FENCE)) {
    prose(box, rest.slice(0, found.index));
    box.append(h("pre", { class: "fence", dir: "ltr" }, shown(found[2])));
    rest = rest.slice(found.index + found[0].length).replace(/^\n/, "");
  }
  prose(box, rest);
  return box;
}

function prose(box, text) {
  if (text.length > 20000) { box.append(shown(text)); return; }
  text.split(MATHS).forEach((part, at) => {
    if (at % 2 === 0) { if (part) box.append(shown(part)); return; }
    box.append(maths(part));
  });
}

function maths(source) {
  const display = source.startsWith("$$") || source.startsWith("\\[");
  const bare = source.startsWith("\\boxed") ? source : source.startsWith("$$") || source.startsWith("\\") ? source.slice(2, -2) : source.slice(1, -1);
  const holder = h("span", { class: display ? "maths display" : "maths", title: shown(source) });
  try {
    temml.render(bare, holder, { displayMode: display, throwOnError: true, trust: false, maxSize: [20, 20], maxExpand: 200 });
  } catch {
    holder.replaceChildren(shown(source));
  }
  return holder;
}

function segmentTree(episode) {
  const segments = episode.segments || [];
  const children = (parent) => segments.map((segment, at) => ({ segment, at })).filter(({ segment }) => (segment.parent ? segment.parent.segment : -1) === parent);
  const node = ({ segment, at }) => {
    const mask = unpack(segment.mask, Uint8Array);
    const sampled = mask.reduce((sum, one) => sum + one, 0);
    return h("li", {}, h("div", { class: "node" },
      h("b", {}, `${at + 1}. ${shown(segment.agent)}`), chip("model", shown(segment.model)), chip("tokens", number(segment.size)), chip("sampled", number(sampled)),
      segment.trainable === false ? chip("", "not learned from") : null,
      segment.parent ? h("span", { class: "of" }, `goes on from segment ${segment.parent.segment + 1} after its first ${number(segment.parent.tokens)} tokens`) : null,
      strip(mask)), tree(children(at)));
  };
  const tree = (nodes) => (nodes.length ? h("ul", {}, nodes.map(node)) : null);
  return h("div", { class: "tree" }, tree(children(-1)));
}

// A segment drawn as one line: what was sampled is dark.
function strip(mask) {
  const runs = [];
  for (let at = 0; at < mask.length; at++) {
    if (!runs.length || runs[runs.length - 1][0] !== mask[at]) runs.push([mask[at], 0]);
    runs[runs.length - 1][1]++;
  }
  return h("div", { class: "strip", "aria-hidden": "true" }, runs.slice(0, 400).map(([on, size]) => h("i", { class: on ? "on" : "", style: { "flex-grow": String(size) } })));
}

function recordView(episode) {
  const { segments, turns, ...rest } = episode;
  return h("pre", { class: "record", tabindex: "0" }, shown(JSON.stringify({ ...rest, turns: turns?.length, segments: segments?.length }, null, 2)));
}
