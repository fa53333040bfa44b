"""How long each reader of model or tool text takes for a megabyte of text that was made to be slow to read.

    python -m benchmarks.readers [--repeats 5] [--out DIR]

Every reader is run on every text, in CPU time of this thread; the table gives each reader's median, and its
worst text with the median of that. `READERS` and `TEXTS` are also what the tests of linear time and
`scripts/fuzz_readers.py` run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrl.config.settings import RolloutSettings
from agentrl.errors import AgentRLError
from agentrl.evaluation.scoring import lenient_answer
from agentrl.inference.endpoint.replies import read_answer
from agentrl.renderers.making import make_renderer
from agentrl.renderers.text import TextCodec, cut_text
from agentrl.report.terminal import step_line
from agentrl_envs import ToolResult
from agentrl_envs.graders import Grader, last_answer, model_text
from agentrl_envs.plain import clean_text, plain, read_json, write_json
from agentrl_envs.raised import error_text
from agentrl_sandbox import Result, Status
from agentrl_sandbox.inside import cells

LENGTH = 1_000_000
"""Bytes of UTF-8."""
LIMIT_MS = 50.0
"""What a reader may take for `LENGTH` bytes of any text."""


class ChatTokenizer:
    """Four characters a token, `<|end|>` one of its own, and a chat template that knows `<tool_call>`.

    As many tokens a character as the vocabularies of models have, made as they come.
    """

    chat_template = "<tool_call>"
    eos_token_id = 0
    bos_token_id = None
    all_special_tokens = ("<|end|>",)

    def __init__(self) -> None:
        self._texts, self._ids = ["<|end|>"], {"<|end|>": 0}

    def get_added_vocab(self) -> dict[str, int]:
        """The one control token."""
        return {"<|end|>": 0}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text."""
        first, *others = text.split("<|end|>")
        ids = self._pieces(first)
        for piece in others:
            ids += [0, *self._pieces(piece)]
        return ids

    def _pieces(self, text: str) -> list[int]:
        return [self._id(text[at : at + 4]) for at in range(0, len(text), 4)]

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            self._ids[piece] = len(self._texts)
            self._texts.append(piece)
        return self._ids[piece]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        return "".join(map(self._texts.__getitem__, token_ids))

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], tools: Any, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        """Each message as `[role]`, its text and `<|end|>`; the tools before, as JSON."""
        listed = f"<tool_call> {json.dumps(tools)}\n" if tools else ""
        turns = "".join(
            f"[{m['role']}]{m['content']}"
            + "".join(
                f"\n<tool_call>\n{json.dumps(c['function'])}\n</tool_call>" for c in m.get("tool_calls", ())
            )
            + "<|end|>"
            for m in messages
        )
        return listed + turns + "[assistant]" * add_generation_prompt


_PIECES = (
    "\n", " ", "a", "1", "`", "``", "```\n", "```python\n", "~~~\n", "<code>", "</code>", "<code></code>", "<interpreter>", "<tool_call>",
    "</tool_call>", "<tool_call>{", "<tool_call>{}</tool_call>", '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "<tool_call></think>", "</think>", "<think>", "<think></think>", "\\boxed{", "\\boxed{1} ", "\\boxed{1}, ", "\\boxed 1", "\\fbox{1}",
    "\\boxed{}", "\\boxed", "{", "}", "{}", "{}}", "}{", "[", "]", "[]", "[],", "(", ")", "$", "$1$ ", "\\[", "\\(1\\)", "\\frac{", "\\text{",
    "answer is ", "answer:", "answer: 1\n", "1,", "1/", "-1 ", "1.5,", "1e9,", "1,234,", "½", ".", "= ", "\\", "\\\\", '"', '\\"', '"",',
    '{"a":', '{"a":1},', '{"verdict":', "'", "\\u", "\\ud800", "\\ud83d\\ude00", "\\n", "null,", "true,", "\x1b", "\x1b[", "\x1b[1m",
    "\x1b]", "\x1b]0;", "\x1b]0;a\x07", "\x1b[?", "\x1bP", "\x9b", "\x9b1m", "\r", "\r\n", "a\r", "a\n", "a\rb\n", "\x00", "\x07a", "\x08",
    "\x7f", "\ud800", "a\ud800", "\udc00", "\udc00\ud800", "\U0001f600", "é", "\u200b", "\u2028", "٣", ">>> ", ">>> a\n", "... ", "... a\n",
    "In [1]: ", "%matplotlib\n", "!pip install a\n", "%%", "?", "# a\n", "    a\n", "\t", "x, ", "(A)", "*", "**", "<", ">", "<|end|>",
    "\ue0f7", "data: ", "<b>", "&", "+ ", "A", ":",
)  # fmt: skip


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def texts(length: int = LENGTH) -> Iterator[str]:
    """Texts of about `length` bytes of UTF-8 each: one piece repeated, alone and between others."""
    for piece in _PIECES:
        yield piece * (length // _bytes(piece))
    half = length // 2
    for opening, inner, closing in (
        ("```", "\n", "x"),
        ("<tool_call>", " ", "{"),
        ("<tool_call>[", "1.5,", "1]</tool_call>"),
        ("<tool_call>[", "[],", "1]</tool_call>"),
        ("<tool_call>[", '"\\ud800",', "1]</tool_call>"),
        ('<tool_call>{"name":"f","arguments":{"code":"', "\\n", '"}}</tool_call>'),
        ('<tool_call>{"name":"f","arguments":"', '\\"', '"}</tool_call>'),
        ("</think>", "<tool_call>{}</tool_call>", ""),
        ("<code>", " \n", ""),
        ("<code>```python\n", "x = 1\n", "```</code>"),
        ("a", "\n", "```"),
        ("\\boxed{", "\\boxed{1}", "}"),
        ("\\boxed{", "{}", "}"),
        ("\\boxed{", "1,", "}"),
        ("\\boxed{1}", " ", "\\boxed{2}"),
        ("\\boxed", " ", "{1}"),
        ("`<code>", "` <code> ` ", "\\boxed{1}"),
        ("answer is", "\t", "4"),
        ("[", "1,", "1]"),
        ("[", "1.5,", "1]"),
        ("[", "1e300,", "1]"),
        ("[", "[],", "1]"),
        ("[", '{"a":1},', "1]"),
        ("[", '"\\ud83d",', "1]"),
        ("[", '"a",', "1]"),
        ('"', "\\u00e9", '"'),
        ('"', "\\ud800", '"'),
        ('"', "\ud800\n", '"'),
        ("\x1b]", "a", "\x07"),
        ("a", "\r", "b"),
        (">>> a\n", "b\n", ""),
        ("'''", "\\'", "'''"),
    ):
        yield opening + inner * ((length - len(opening) - len(closing)) // _bytes(inner)) + closing
    for first, second in (("<tool_call>", "</tool_call>"), ("\\boxed{", "}"), ("{", "}"), ("[", "]"), ("<code>", "</code>"), ("\x1b[", "m")):  # fmt: skip
        yield first * (half // len(first)) + second * (half // len(second))


_GRADER = Grader()
_TOKENIZER = ChatTokenizer()
_CODE, _HERMES = (make_renderer(_TOKENIZER, name) for name in ("code", "hermes"))
_CODEC = TextCodec(_TOKENIZER)


def _unparsable(text: str) -> Any:
    raise SyntaxError("no Python", ("cell", 1, 1, text[:10]))


def _cell(text: str) -> object:
    with contextlib.suppress(SyntaxError):
        return cells.read(text, _unparsable)
    return None


def _json(text: str) -> object:
    with contextlib.suppress(ValueError):
        return read_json(text)
    return None


def _answer(text: str, message: Callable[[str], dict[str, Any]]) -> str:
    """The body of an answer with as much of a text in it as makes it `LENGTH` long when it is encoded."""
    body = json.dumps({"choices": [{"message": {"content": "", **message(text)}}]})
    return body if len(body) < 1.1 * LENGTH else _answer(text[: len(text) * LENGTH // len(body)], message)


def _calling(arguments: object) -> dict[str, Any]:
    return {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


def _endpoint(body: str) -> object:
    with contextlib.suppress(AgentRLError):
        return read_answer(body, "http://e/v1")
    return None


def _shown(text: str) -> list[ToolResult]:
    """A tool's text as the loop hands it on: cut first, read then."""
    text = cut_text(text, RolloutSettings().tool_output_chars)
    return [ToolResult(call_id="1", name="f", text=text, ok=True, seconds=0.0)]


Prepare = Callable[[str], Any]
READERS: dict[str, tuple[Prepare, Callable[[Any], Any]]] = {
    "code format: a message": (_TOKENIZER.encode, _CODE.parse),
    "code format: a block": (lambda text: _TOKENIZER.encode(f"<code>{text}</code>"), _CODE.parse),
    "code format: a tool's text": (str, lambda text: _CODE.extend([1], _shown(text))),
    "hermes format: a message": (_TOKENIZER.encode, _HERMES.parse),
    "hermes format: a call": (
        lambda text: _TOKENIZER.encode(f"<tool_call>{text}</tool_call>"),
        _HERMES.parse,
    ),
    "hermes format: a tool's text": (str, lambda text: _HERMES.extend([1], _shown(text))),
    "control tokens in foreign text": (str, _CODEC.neutral),
    "endpoint: a body": (str, _endpoint),
    "endpoint: a message": (lambda text: _answer(text, lambda part: {"content": part}), _endpoint),
    "endpoint: parts": (
        lambda text: _answer(text, lambda part: {"content": [{"type": "text", "text": part}]}),
        _endpoint,
    ),
    "endpoint: arguments": (lambda text: _answer(text, _calling), _endpoint),
    "endpoint: arguments, encoded twice": (
        lambda text: _answer(text, lambda part: _calling(json.dumps(part))),
        _endpoint,
    ),
    "surrogates": (str, clean_text),
    "JSON": (str, _json),
    "a record": (lambda text: {"text": text}, write_json),
    "a tool's value": (lambda text: [text], plain),
    "an exception": (ValueError, error_text),
    "terminal output": (lambda text: Result(Status.OK, stdout=text), lambda result: result.text),
    "a value's repr": (lambda text: Result(Status.OK, value=text), lambda result: result.text),
    "a cell": (str, _cell),
    "last answer": (str, last_answer),
    "the model's own text": (str, model_text),
    "the grader": (str, lambda text: _GRADER.exact(text, "4")),
    "the grader: in a box": (lambda text: f"\\boxed{{{text}}}", lambda text: _GRADER.exact(text, "4")),
    "the grader: votes": (str, _GRADER.canonical),
    "evaluation: an answer in any form": (str, lenient_answer),
    "report: a failure": (
        lambda text: {"version": 1, "failed_share": 1.0, "first_failure": text},
        step_line,
    ),
}
"""By name: what makes the input of a text, untimed, and the reader."""


def fragments() -> tuple[str, ...]:
    """Pieces that mean something to some reader."""
    return _PIECES


def milliseconds(read: Callable[[Any], Any], value: Any, repeats: int) -> float:
    """CPU time of one reading: the median of some, after the first where that was quick."""
    spent: list[float] = []
    for _ in range(repeats):
        began = time.thread_time()
        read(value)
        spent.append(1000 * (time.thread_time() - began))
        if spent[0] < LIMIT_MS / 5:
            break  # far from the limit
    return statistics.median(spent)


def measure(names: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each reader: its median over all texts, and its worst text."""
    made = list(texts())
    for name in names:
        prepare, read = READERS[name]
        times: dict[str, float] = {}
        for text in made:
            value = prepare(text)
            gc.collect()
            times[f"{text[:40]!r} ... {text[-20:]!r}"] = milliseconds(read, value, repeats)
        worst = max(times, key=lambda text: times[text])
        over = {text: round(ms, 1) for text, ms in times.items() if ms > LIMIT_MS}
        yield {
            "reader": name,
            "median_ms": statistics.median(times.values()),
            "worst_ms": times[worst],
            "worst_text": worst,
            "over": over,
        }


def main() -> None:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="readers whose names contain this")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| reader | median ms | worst ms | worst text |\n|---|---:|---:|---|")
    for row in measure([name for name in READERS if options.only in name], options.repeats):
        rows.append(row)
        print(
            f"| {row['reader']} | {row['median_ms']:.1f} | {row['worst_ms']:.1f} | `{row['worst_text']}` |",
            flush=True,
        )
        for text, ms in row["over"].items():
            print(f"    over: {ms} {text}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        about = {"bytes": LENGTH, "texts": sum(1 for _ in texts(1000)), "python": platform.python_version()}
        (options.out / "readers.json").write_text(json.dumps(about | {"readers": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
