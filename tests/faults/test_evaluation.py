"""Evaluation that cannot be fooled: answers nobody can compare, endpoints that differ, results scored again.

Everything goes through `agentrl eval` and `agentrl compare` against a real HTTP server; what it answers depends
on the name of the model that is asked for.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

# Undecided comparisons take their time, and the graders share few cores with others.
pytestmark = pytest.mark.timeout(300)

ENVIRONMENT = r'''
from agentrl import Env, tool


class Boxed(Env):
    """Say the number in a box."""

    required_fields = ("problem", "answer")

    def prompt(self, row):
        return row["problem"] + "\nPut the final answer in \\boxed{}."

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])


class BoxedWithTool(Boxed):
    @tool
    def python(self, code: str) -> str:
        "Run it."
        return f"ran {len(code)} characters"
'''
TOWER = r"\boxed{10^{10^{10^{10}}}}"
NEST = "\\boxed{" + "(" * 300 + "1" + ")" * 300 + "}"
BROKEN_GRADER = """
def always(answer, gold):
    return True


def longer_than_two(answer, gold):
    return len(str(answer or "")) > 2
"""

RAISING_GRADER = """
import asyncio
import sys


def leaves(answer, gold):
    sys.exit(3)


def cancels(answer, gold):
    raise asyncio.CancelledError


async def cancels_later(answer, gold):
    raise asyncio.CancelledError


def several(answer, gold):
    raise BaseExceptionGroup("both", [SystemExit(2), KeyError("x")])
"""

Answer = Callable[[dict[str, Any], int], Any]
ANSWERS: dict[str, Answer] = {}
"""Model -> what it answers to a request about problem i: a text, a message, a choice, or (status, body)."""


def model(name: str) -> Callable[[Answer], Answer]:
    def keep(function: Answer) -> Answer:
        ANSWERS[name] = function
        return function

    return keep


def box(value: object) -> str:
    return f"So it is \\boxed{{{value}}}."


def filtered(text: str = "") -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "finish_reason": "content_filter"}


@model("adversary")
def adversary(body: dict[str, Any], number: int) -> Any:
    """Right on even problems; on odd ones whatever may keep the answer from being counted."""
    if number % 2 == 0:
        return box(number)
    kind = (number // 2) % 8
    if kind == 0:
        return TOWER
    if kind == 1:
        return "\\boxed{" + "1+" * 200_000 + "1}"
    if kind == 2:
        return ""
    if kind == 3:
        return NEST
    if kind == 4:
        return 400, {"error": {"message": "flagged by moderation", "code": "content_filter"}}
    if kind == 5:
        time.sleep(8)
        return box(number)
    if kind == 6:
        return filtered("half of an ans")
    return "\\boxed{" * 30_000


@model("nests")
def nests(body: dict[str, Any], number: int) -> Any:
    return box(number) if number % 2 == 0 else NEST


@model("half")
def half(body: dict[str, Any], number: int) -> Any:
    return box(number if number % 2 == 0 else number + 1)


@model("right")
def right(body: dict[str, Any], number: int) -> Any:
    return box(number)


@model("plain")
def plain(body: dict[str, Any], number: int) -> Any:
    """States its answers without a box, half of them right."""
    return f"The answer is {number if number % 2 == 0 else -1}."


@model("fragile")
def fragile(body: dict[str, Any], number: int) -> Any:
    """The first problem breaks the server on two of three seeds, and on the same ones each time."""
    return (500, {"error": {"message": "boom"}}) if number == 0 and body["seed"] % 3 else box(number)


@model("seed-0-broken")
def one_broken(body: dict[str, Any], number: int) -> Any:
    return (500, {"error": {"message": "boom"}}) if number == 0 else box(number)


@model("parts")
def parts(body: dict[str, Any], number: int) -> Any:
    content = [{"type": "thinking", "thinking": "\\boxed{13} or not"}, {"type": "text", "text": box(number)}]
    return {"message": {"role": "assistant", "content": content}}


@model("parts-output-text")
def parts_output_text(body: dict[str, Any], number: int) -> Any:
    content = [{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": "So "}, box(number)]
    return {"message": {"role": "assistant", "content": content}}


@model("parts-nested-thinking")
def parts_nested(body: dict[str, Any], number: int) -> Any:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "\\boxed{13}"}]}
    return {"message": {"role": "assistant", "content": [thought, {"type": "text", "text": box(number)}]}}


@model("parts-null-text")
def parts_null(body: dict[str, Any], number: int) -> Any:
    content = [{"type": "text", "text": None}, {"text": box(number)}]
    return {"message": {"role": "assistant", "content": content}}


@model("parts-deep")
def parts_deep(body: dict[str, Any], number: int) -> Any:
    thought: dict[str, Any] = {"type": "thinking", "thinking": "\\boxed{13}"}
    for _ in range(300):
        thought = {"type": "thinking", "thinking": [thought]}
    return {"message": {"role": "assistant", "content": [thought, {"type": "text", "text": box(number)}]}}


@model("thought-in-code")
def thought_in_code(body: dict[str, Any], number: int) -> Any:
    """Its program prints the tag that ends a thought."""
    if "ran 17 characters" in str(body["messages"][-1]["content"]):
        return box(re.findall(r"number (\d+)", body["messages"][0]["content"])[-1])
    return "<think>I compute.</think>\n<code>\n```python\nprint('</think>')\n```\n</code>"


@model("many-calls")
def many_calls(body: dict[str, Any], number: int) -> Any:
    if body["messages"][-1]["role"] == "tool":
        return box(number)
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "python", "arguments": '{"code": "1"}'}}
        for i in range(3000)
    ]
    return {"message": {"role": "assistant", "content": None, "tool_calls": calls}}


@model("surrogate")
def surrogate(body: dict[str, Any], number: int) -> Any:
    return f"\ud83d lone, {box(number)}"


@model("reasoning")
def reasoning(body: dict[str, Any], number: int) -> Any:
    return {"message": {"role": "assistant", "content": box(number), "reasoning_content": "I think."}}


@model("filter")
def content_filter(body: dict[str, Any], number: int) -> Any:
    return filtered() if number % 2 else box(number)


@model("filter-safety")
def safety(body: dict[str, Any], number: int) -> Any:
    return filtered() | {"finish_reason": "SAFETY"} if number % 2 else box(number)


@model("refusal-field")
def refusal(body: dict[str, Any], number: int) -> Any:
    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    return {"message": message, "finish_reason": "stop"} if number % 2 else box(number)


def tool_caller(arguments: Any) -> Answer:
    def answer(body: dict[str, Any], number: int) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return box(number if "ran 3" in body["messages"][-1]["content"] else -1)
        call = {"id": "c1", "type": "function", "function": {"name": "python", "arguments": arguments}}
        return {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}

    return answer


ANSWERS["arguments-object"] = tool_caller({"code": "1+1"})
ANSWERS["arguments-twice"] = tool_caller(json.dumps(json.dumps({"code": "1+1"})))
ANSWERS["arguments-thrice"] = tool_caller(json.dumps(json.dumps(json.dumps({"code": "1+1"}))))
ANSWERS["arguments-text"] = tool_caller(json.dumps({"code": "1+1"}))
ANSWERS["arguments-nan"] = tool_caller('{"code": NaN}')
ANSWERS["arguments-huge"] = tool_caller('{"code": 1e999}')


@model("old-call")
def old_call(body: dict[str, Any], number: int) -> Any:
    if body["messages"][-1]["role"] == "tool":
        return box(number)
    call = {"name": "python", "arguments": '{"code": "1+1"}'}
    return {"message": {"role": "assistant", "content": None, "function_call": call}}


@model("fence")
def fence(body: dict[str, Any], number: int) -> Any:
    return "I compute.\n```python\nprint(1)\n```\nand that is it."


@model("two-messages")
def two_messages(body: dict[str, Any], number: int) -> Any:
    """Thinks before its call, and answers after it without thinking."""
    if body["messages"][-1]["role"] == "tool":
        return f"\\boxed{{{number}}}"
    call = {"id": "c1", "type": "function", "function": {"name": "python", "arguments": '{"code": "1"}'}}
    content = "<think>\nI compute.\n</think>"
    return {"message": {"role": "assistant", "content": content, "tool_calls": [call]}}


@model("letters")
def letters(body: dict[str, Any], number: int) -> Any:
    return ["\\boxed{B. the second}", "\\boxed{\\text{(B)}}", "\\boxed{second of 2}", "\\boxed{A}"][
        number % 4
    ]


BODIES = {
    "html": ("<html><body>nginx</body></html>", "HTML"),
    "stream": ('data: {"choices": []}\n\ndata: [DONE]\n', "stream of events"),
    "nothing": ("", "nothing at all"),
    "list": ("[1, 2]", "a list"),
    "no-choices": ('{"id": "x"}', "`choices` is missing"),
    "empty-choices": ('{"choices": []}', "`choices` is empty"),
    "no-message": ('{"choices": [{"index": 0}]}', "`message` is missing"),
    "a-delta": ('{"choices": [{"delta": {"content": "4"}}]}', "a piece of a stream"),
    "a-completion": ('{"choices": [{"text": "4"}]}', "a completion of text"),
    "content-number": ('{"choices": [{"message": {"content": 4}}]}', "`content` is a number"),
    "an-image": ('{"choices": [{"message": {"content": [{"type": "image_url"}]}}]}', "'image_url'"),
    "a-type-of-two": (
        '{"choices": [{"message": {"content": [{"type": ["text"], "text": "4"}]}}]}',
        "the type \"['text']\"",
    ),
    "parts-in-floods": (
        '{"choices": [{"message": {"content": [' + '"a",' * 20_000 + '"a"]}}]}',
        "20,001 parts",
    ),
    "a-nest": ("[" * 100_000, "nested too deeply"),
    "calls-object": ('{"choices": [{"message": {"tool_calls": {"a": 1}}}]}', "`tool_calls` is an object"),
    "call-nameless": ('{"choices": [{"message": {"tool_calls": [{"id": "a"}]}}]}', "names no function"),
    "error-200": ('{"error": {"message": "upstream is away", "code": 502}}', "upstream is away"),
    "gave-up": ('{"choices": [{"message": {"content": "4"}, "finish_reason": "error"}]}', "gave up"),
}


class Endpoint(BaseHTTPRequestHandler):
    """Any model that is listed in ANSWERS; one of BODIES for a problem each where it is called `bodies`."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 - shared by all requests

    def do_GET(self):
        self.reply(200, {"object": "list", "data": []})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        name = body["model"]
        texts = [m["content"] for m in body["messages"] if m["role"] == "user"]
        found = re.findall(r"number (-?\d+)", texts[-1] if isinstance(texts[-1], str) else str(texts[-1]))
        number = int(found[-1]) if found else 0
        if name == "bodies":
            return self.send(200, list(BODIES.values())[number][0].encode())
        answer = ANSWERS[name](body, number)
        if isinstance(answer, tuple):
            return self.reply(*answer)
        choice = answer if isinstance(answer, dict) else {"message": {"role": "assistant", "content": answer}}
        self.reply(
            200,
            {
                "id": "c", "object": "chat.completion", "created": 1, "model": name,
                "choices": [{"index": 0, "finish_reason": "stop", **choice}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            },
        )  # fmt: skip

    def reply(self, status: int, data: Any):
        self.send(status, json.dumps(data).encode())

    def send(self, status: int, data: bytes):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client waited long enough
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any):
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join(10)


class Place:
    """A folder with an environment and rows, where commands are run in this process."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.main = next(iter(entry_points(group="console_scripts", name="agentrl"))).load()
        (path / "boxed.py").write_text(ENVIRONMENT)
        (path / "graders.py").write_text(BROKEN_GRADER)
        self.rows("rows.jsonl", [{"answer": str(i), "parity": "odd" if i % 2 else "even"} for i in range(32)])
        self.rows("few.jsonl", [{"answer": str(i), "level": i % 2 + 9} for i in range(6)])

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        rows = [{"id": f"r{i}", "problem": f"Say the number {i}.", **row} for i, row in enumerate(rows)]
        (self.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.path)
            try:
                return self.main([str(argument) for argument in arguments])
            except SystemExit as stopped:
                return stopped.code if isinstance(stopped.code, int) else 2

    def evaluate(self, name: str, *more: object, url: str = "") -> int:
        defaults: dict[str, Any] = {"--env": "boxed.py:Boxed", "--data": "few.jsonl", "--out": name}
        defaults = {key: value for key, value in defaults.items() if key not in more}
        flat = [item for pair in defaults.items() for item in pair]
        return self.run(
            "eval", "--endpoint", url or self.url, "--model", name, *flat, "--sandbox", "broken", "--quiet",
            "--attempts", "1", "--timeout-s", "20", *more,
        )  # fmt: skip

    def summary(self, out: str) -> dict[str, Any]:
        return json.loads((self.path / out / "summary.json").read_text())

    def records(self, out: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, server: str) -> Place:
    return Place(tmp_path_factory.mktemp("place"), server)


@pytest.fixture(scope="module")
def half_right(place: Place) -> str:
    assert place.evaluate("half", "--samples", "2", "--data", "rows.jsonl", "--limit", "12") == 0
    return "half"


# ---- answers that nobody can compare -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fooled(place: Place) -> dict[str, Any]:
    more = ("--data", "rows.jsonl", "--limit", "16", "--samples", "2", "--timeout-s", "4")
    assert place.evaluate("adversary", *more) == 0
    return place.summary("adversary")


def test_an_adversary_s_true_accuracy_lies_in_the_intervals(fooled: dict[str, Any]):
    """Right on 8 of 16 problems, whatever it does on the others."""
    entry = fooled["table"]["avg@k"]
    for estimand in ("new_problems", "same_problems"):
        assert entry[estimand]["low"] <= 0.5 <= entry[estimand]["high"]
    assert entry["value"] < 0.75
    for entry in fooled["table"]["pass@k"].values():
        assert entry["new_problems"]["low"] <= 0.5 <= entry["new_problems"]["high"]


def test_each_of_the_adversary_s_ways_is_counted_for_what_it_is(fooled: dict[str, Any], place: Place):
    counts = fooled["table"]["counts"]
    assert counts["undecided"]["too_long"] == 4  # a flood and a nest, twice
    assert counts["refused"] == counts["failures"]["policy: RequestRefused"] == 4  # with status 400 and 200
    assert counts["failures"]["policy: EndpointUnavailable"] >= 2
    assert counts["undecided"]["timed_out"] == 2  # the towers, however busy the machine is
    assert "env: GraderFailure" not in counts["failures"]
    sizes = fooled["table"]["answers_per_problem"]
    assert sizes["2"] >= 12
    assert sizes["0"] >= 3
    undecided = [r for r in place.records("adversary") if r["verdict"] in ("timed_out", "too_long")]
    assert {r["score"] for r in undecided} == {0.0}


def test_the_headline_says_how_many_answers_each_problem_has(place: Place, fooled, capfd):
    capfd.readouterr()
    assert place.run("eval", "--report", "adversary") == 0
    head, *_ = capfd.readouterr().out.partition("95% new problems")
    sizes = fooled["table"]["answers_per_problem"].items()
    told = ", ".join(f"{size} for {count}" for size, count in sizes)
    assert f"16 problems x 2 (answers per problem: {told})" in head
    assert "4 of them refused by the endpoint" in head
    assert "reach from all of these wrong to all of them right" in head


def test_an_answer_nobody_can_compare_is_wrong_and_played_once(place: Place, capfd):
    Endpoint.seen.clear()
    assert place.evaluate("nests", "--limit", "4") == 0
    assert len(Endpoint.seen) == 4
    table = place.summary("nests")["table"]
    assert (table["avg@k"]["value"], table["counts"]["failed"]) == (0.5, 0)
    assert "wrong, because they cannot be compared: 2 (2 x too_long)" in capfd.readouterr().out


def test_one_failed_problem_takes_pass_at_k_from_no_other(place: Place, capfd):
    assert place.evaluate("seed-0-broken", "--samples", "4") == 0
    table = place.summary("seed-0-broken")["table"]
    assert table["answers_per_problem"] == {"4": 5, "0": 1}
    assert table["pass@k"]["4"]["value"] == table["maj@k"]["4"]["value"] == 1.0
    assert table["avg@k"]["new_problems"]["low"] < 5 / 6
    assert "problems without any answer, left out: 1" in capfd.readouterr().out


def test_a_failure_is_not_played_three_times_with_one_seed(place: Place):
    Endpoint.seen.clear()
    assert place.evaluate("seed-0-broken", "--limit", "1", "--out", "seeds") == 0
    seeds = [body["seed"] for body in Endpoint.seen]
    assert len(seeds) == 3
    assert len(set(seeds)) == 2


def test_an_answer_with_another_seed_is_counted_and_widens_the_interval(place: Place):
    assert place.evaluate("fragile", "--samples", "8", "--limit", "2") == 0
    table = place.summary("fragile")["table"]
    replaced = table["counts"]["resampled"]
    assert replaced + table["counts"]["failed"] > 0
    exact = place.evaluate("right", "--samples", "8", "--limit", "2", "--out", "sound")
    assert exact == 0
    assert table["avg@k"]["value"] == 1.0
    sound = place.summary("sound")["table"]["avg@k"]["same_problems"]["low"]
    assert table["avg@k"]["same_problems"]["low"] < sound


@pytest.mark.parametrize("name", ["filter", "filter-safety", "refusal-field"])
def test_what_an_endpoint_declines_is_a_refusal_asked_once(place: Place, name: str):
    Endpoint.seen.clear()
    assert place.evaluate(name) == 0
    table = place.summary(name)["table"]
    assert table["counts"]["refused"] == 3
    assert table["counts"]["answered"] == table["counts"]["right"] == 3
    assert len(Endpoint.seen) == 6


def test_compare_says_what_was_left_out_on_each_side(place: Place, fooled, capfd):
    assert place.evaluate("right", "--data", "rows.jsonl", "--limit", "16", "--out", "all-right") == 0
    capfd.readouterr()
    assert place.run("compare", "adversary", "all-right") == 0
    said = capfd.readouterr().out
    failed = fooled["table"]["counts"]["failed"]
    silent = fooled["table"]["problems_without_answers"]
    left_out = f"{failed} of 32 answers (4 refused by the endpoint, {failed - 4} failed)"
    assert f"A left out: {left_out}, {silent} problems without any" in said
    assert re.search(r"A counted as wrong: \d that cannot be compared", said)
    assert "B left out: nothing" in said
    assert place.run("compare", "adversary", "all-right", "--json") == 0
    assert json.loads(capfd.readouterr().out)["excluded"]["a"]["failed"] == failed


GOLDS = ["", "\\frac{1}{", "x+", "(" * 5000]


def test_gold_answers_that_nothing_equals_set_their_rows_aside(place: Place, capfd):
    place.rows("golds.jsonl", [{"answer": gold} for gold in ["7", *GOLDS, "\\sqrt{8}", "east", "(1, 2)"]])
    assert place.evaluate("right", "--data", "golds.jsonl", "--out", "golds") == 0
    aside = place.summary("golds")["data_set"]["set_aside"]
    assert [row["answer"] for row in aside] == GOLDS
    assert place.summary("golds")["table"]["problems"] == 4
    said = capfd.readouterr().out
    assert "rows set aside, because nothing can be compared with their gold answer: 4" in said
    assert "r2: '\\\\frac{1}{': it is no mathematics that can be read" in said


def test_no_gold_answer_of_use_is_an_error(place: Place, capfd):
    place.rows("useless.jsonl", [{"answer": "x+"}, {"answer": "\\frac{1}{"}])
    assert place.evaluate("right", "--data", "useless.jsonl", "--out", "useless") == 1
    assert "no gold answer can be compared; the first is 'x+'" in capfd.readouterr().err


# ---- endpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("parts", "parts-output-text", "parts-nested-thinking", "parts-null-text", "parts-deep"),
        *("surrogate", "reasoning", "old-call", "many-calls"),
    ],
)
def test_an_answer_in_another_form_is_read(place: Place, name: str):
    env = "boxed.py:BoxedWithTool" if "call" in name else "boxed.py:Boxed"
    assert place.evaluate(name, "--env", env) == 0
    assert place.summary(name)["table"]["avg@k"]["value"] == 1.0


@pytest.mark.parametrize(
    "name", ["arguments-object", "arguments-twice", "arguments-thrice", "arguments-text"]
)
def test_arguments_of_a_call_in_another_form_are_read(place: Place, name: str):
    assert place.evaluate(name, "--env", "boxed.py:BoxedWithTool") == 0
    table = place.summary(name)["table"]
    assert (table["avg@k"]["value"], table["tools"]["error_share"]) == (1.0, 0.0)
    sent = Endpoint.seen[-1]["messages"][-2]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"code": "1+1"}


@pytest.mark.parametrize("name", ["arguments-nan", "arguments-huge"])
def test_arguments_that_are_no_json_go_back_to_the_model(place: Place, name: str):
    assert place.evaluate(name, "--env", "boxed.py:BoxedWithTool") == 0
    table = place.summary(name)["table"]
    assert (table["tools"]["error_share"], table["counts"]["failed"]) == (1.0, 0)


def test_a_tag_inside_of_a_program_is_part_of_the_program(place: Place):
    more = ("--env", "boxed.py:BoxedWithTool", "--tool-format", "code", "--limit", "2")
    assert place.evaluate("thought-in-code", *more) == 0
    table = place.summary("thought-in-code")["table"]
    assert (table["avg@k"]["value"], table["tools"]["error_share"]) == (1.0, 0.0)
    assert any("ran 17 characters" in str(body["messages"][-1]["content"]) for body in Endpoint.seen)


@pytest.mark.parametrize("name", ["leaves", "cancels", "cancels_later", "several"])
@pytest.mark.parametrize("way", ["eval", "rescore"])
def test_whatever_a_grader_of_one_s_own_raises_is_a_failure_that_names_it(place, half_right, name, way):
    (place.path / "raising.py").write_text(RAISING_GRADER)
    given, out = ("--grader", f"raising.py:{name}"), f"{way}-{name}"
    if way == "eval":
        assert place.evaluate("half", *given, "--limit", "2", "--out", out) == 0
    else:
        assert place.run("eval", "--rescore", half_right, *given, "--out", out) == 0
    for record in place.records(out):
        assert re.search(r"Boxed\.reward raised \w+.*\(raising\.py:\d+\)", record["failure"][2])


# ---- a machine that breaks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 1_500, 3_000])
def test_a_full_disk_is_one_sentence_and_the_evaluation_goes_on_later(place: Place, capfd, size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        assert place.evaluate("half", "--out", f"full-{size}") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "free some space" in capfd.readouterr().err or size < 1_000  # its own words are cut off as well
    assert place.evaluate("half", "--out", f"full-{size}") == 0
    assert place.summary(f"full-{size}")["table"]["avg@k"]["value"] == 0.5


@pytest.mark.parametrize("tail", [b"", b"\0" * 30, b'{"problem":'])
def test_results_that_a_power_cut_tore_are_played_again(place: Place, half_right: str, tail: bytes):
    name = f"torn-{len(tail)}"
    assert place.evaluate("half", "--out", name) == 0
    results = place.path / name / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-30] + tail)
    (place.path / name / "summary.json").write_bytes(b"\0" * 9)
    assert place.run("eval", "--report", name) == 0
    assert place.evaluate("half", "--out", name) == 0
    assert (len(place.records(name)), place.summary(name)["table"]["avg@k"]["value"]) == (6, 0.5)


@pytest.mark.parametrize("data", [b"", b"\0" * 20, b"[1]", b"\xff"])
def test_a_damaged_plan_of_an_evaluation_is_one_sentence(place: Place, capfd, data: bytes):
    assert place.evaluate("half", "--out", "plan") == 0
    (place.path / "plan" / "eval.json").write_bytes(data)
    capfd.readouterr()
    for command in (("--report", "plan"), ("--rescore", "plan", "--grader", "strict", "--out", "plan-again")):
        assert place.run("eval", *command) == 1
        assert "eval.json is damaged" in capfd.readouterr().err
    assert place.evaluate("half", "--out", "plan") == 1
    assert "eval.json is damaged" in capfd.readouterr().err
    shutil.rmtree(place.path / "plan")


@pytest.fixture(scope="module")
def failures(place: Place) -> dict[str, str]:
    """What is said of each body."""
    assert place.evaluate("bodies", "--data", "rows.jsonl", "--limit", len(BODIES)) == 0
    records = {record["problem"]: record for record in place.records("bodies")}
    return {name: records[f"r{i}"]["failure"][2] for i, name in enumerate(BODIES)}


@pytest.mark.parametrize("name", list(BODIES))
def test_a_body_that_is_no_chat_completion_is_named(failures: dict[str, str], name: str):
    assert BODIES[name][1] in failures[name]


def test_an_evaluation_goes_on_at_another_address(place: Place):
    assert place.evaluate("right", "--limit", "3", "--out", "moved") == 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        elsewhere = f"http://localhost:{other.server_port}/v1"
        assert place.evaluate("right", "--out", "moved", url=elsewhere) == 0
        other.shutdown()
        thread.join(10)
    summary = place.summary("moved")
    assert (summary["resumed_from"], summary["table"]["episodes"]) == (3, 6)
    assert summary["address"] == elsewhere


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "2+2?", "final": "4"}, "--map problem=question,answer=final"),
        ({"prompt": "2+2?", "target": "4"}, "--map problem=prompt,answer=target"),
        ({"alpha": "2+2?", "beta": "4"}, "--map problem=COLUMN,answer=COLUMN"),
    ],
)
def test_missing_fields_name_the_option_that_maps_them(place: Place, capfd, row: dict[str, str], words: str):
    (place.path / "other.jsonl").write_text(json.dumps(row) + "\n")
    assert place.evaluate("right", "--data", "other.jsonl", "--out", "other") == 1
    assert words in capfd.readouterr().err


@pytest.mark.parametrize("tool_format", ["native", "code"])
def test_python_in_a_plain_fence_is_counted_and_hinted_at(place: Place, capfd, tool_format: str):
    out = f"fence-{tool_format}"
    more = ("--env", "boxed.py:BoxedWithTool", "--tool-format", tool_format, "--out", out)
    assert place.evaluate("fence", *more) == 0
    assert place.summary(out)["table"]["counts"]["fenced"] == 6
    assert "6 episodes wrote Python in a plain ``` fence and called no tool" in capfd.readouterr().out


def test_the_strict_column_sees_every_message_of_an_endpoint(place: Place):
    assert place.evaluate("two-messages", "--env", "boxed.py:BoxedWithTool") == 0
    assert place.summary("two-messages")["table"]["avg@k_strict"]["value"] == 1.0


def test_system_message_template_and_fields_of_the_request(place: Place):
    Endpoint.seen.clear()
    more = ("--system", "Be brief.", "--prompt", "Q: {problem} \\boxed{}", "--limit", "1", "--out", "asked")
    body = ("--body", 'chat_template_kwargs={"enable_thinking": false}', "--body", "reasoning_effort=low")
    assert place.evaluate("right", *more, *body) == 0
    asked = Endpoint.seen[0]
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Say the number 0. \\boxed{}"},
    ]
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked["reasoning_effort"] == "low"


@pytest.mark.parametrize("template", ["{answer} please", "no column at all", "@nowhere.txt"])
def test_a_template_that_cannot_work_is_refused(place: Place, capfd, template: str):
    assert place.evaluate("right", "--prompt", template, "--out", "bad-prompt") == 1
    assert "--prompt" in capfd.readouterr().err


# ---- results that are there already ------------------------------------------------------------------------


def test_scoring_again_with_another_grader_plays_nothing(place: Place, half_right: str, capfd):
    Endpoint.seen.clear()
    grader = "graders.py:always"
    assert place.run("eval", "--rescore", half_right, "--grader", grader, "--out", "generous") == 0
    assert not Endpoint.seen
    summary = place.summary("generous")
    assert summary["table"]["avg@k"]["value"] == 1.0
    assert summary["rescored"] | {"changed": []} == {
        "answers": 24, "same": 12, "now_right": 12, "now_wrong": 0, "changed": []
    }  # fmt: skip
    assert "12 of 24 answers as before, 12 now right, 0 now wrong" in capfd.readouterr().out
    assert place.summary(half_right)["table"]["avg@k"]["value"] == 0.5
    assert place.run("compare", half_right, "generous") == 0


@pytest.mark.parametrize(("grader", "value"), [("equivalence", 0.5), ("strict", 0.0)])
def test_scoring_again_with_a_grader_by_name(place: Place, half_right: str, grader: str, value: float):
    assert place.run("eval", "--rescore", half_right, "--grader", grader, "--out", f"again-{grader}") == 0
    assert place.summary(f"again-{grader}")["table"]["avg@k"]["value"] == value


def test_scoring_again_with_a_tolerance(place: Place):
    place.rows("physics.jsonl", [{"answer": "0.001"}, {"answer": "1.04"}, {"answer": "2.0"}, {"answer": "5"}])
    assert place.evaluate("right", "--data", "physics.jsonl", "--out", "exactly") == 0
    assert place.summary("exactly")["table"]["counts"]["right"] == 1
    assert place.run("eval", "--rescore", "exactly", "--tolerance", "0.05", "--out", "nearly") == 0
    assert place.summary("nearly")["table"]["counts"]["right"] == 2


def test_an_environment_that_asks_no_grader(place: Place, capfd):
    (place.path / "own.py").write_text(ENVIRONMENT.replace('self.grade(answer, row["answer"])', "0.25"))
    assert place.evaluate("half", "--env", "own.py:Boxed", "--out", "own") == 0
    assert place.evaluate("half", "--env", "own.py:Boxed", "--out", "own-s", "--grader", "strict") == 1
    assert "asks no grader" in capfd.readouterr().err
    assert place.run("eval", "--rescore", "own", "--grader", "equivalence", "--out", "own-again") == 0
    assert place.summary("own-again")["table"]["avg@k"]["value"] == 0.5
    assert place.run("compare", "own", "own-again") == 0
    assert "mean score  0.250  0.500  +0.250" in capfd.readouterr().out


@model("commas")
def commas(body: dict[str, Any], number: int) -> Any:
    return box("1.234,5")


def test_conventions_of_a_data_set(place: Place, capfd):
    place.rows("commas.jsonl", [{"answer": "1234,5"}])
    assert place.evaluate("commas", "--data", "commas.jsonl", "--out", "commas") == 0
    assert place.summary("commas")["table"]["counts"]["right"] == 0
    comma = ("--convention", "decimal_comma=true")
    assert place.run("eval", "--rescore", "commas", *comma, "--out", "read") == 0
    assert place.summary("read")["table"]["counts"]["right"] == 1
    assert place.evaluate("commas", "--data", "commas.jsonl", *comma, "--out", "played") == 0
    assert place.summary("played")["conventions"] == {"decimal_comma": True}
    assert place.run("eval", "--rescore", "commas", "--convention", "comma=true", "--out", "bad-comma") == 1
    assert "decimal_comma, log_base; got comma" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rescore", "nowhere"), "holds no evaluation"),
        (("--rescore", "half", "--out", "half"), "give another"),
        (("--rescore", "half", "--grader", "graders.py:nothing"), "no function 'nothing'"),
        (("--rescore", "half", "--grader", "exact"), "want --grader file.py:function"),
        (("--rescore", "half", "--data", "few.jsonl"), "play nothing"),
        (("--report", "half", "--by", "colour"), "no such column"),
    ],
)
def test_scoring_again_refuses_what_it_cannot_do(place: Place, half_right, capfd, arguments, words: str):
    assert place.run("eval", *arguments) == 1
    assert words in capfd.readouterr().err


def test_accuracy_by_a_column_of_the_rows(place: Place, half_right: str, capfd):
    assert place.run("eval", "--report", half_right, "--by", "parity") == 0
    said = capfd.readouterr().out
    assert re.search(r"^even +1\.000 .* 6$", said, re.MULTILINE)
    assert re.search(r"^odd +0\.000 .* 6$", said, re.MULTILINE)
    assert place.evaluate("half", "--by", "level", "--out", "levels") == 0
    by = place.summary("levels")["table"]["by"]["level"]
    assert {value: entry["avg@k"]["value"] for value, entry in by.items()} == {"9": 1.0, "10": 0.0}
    assert list(by) == ["9", "10"]


# ---- tasks -------------------------------------------------------------------------------------------------


def test_several_tasks_have_a_table_and_a_mean(place: Place, capfd):
    (place.path / "tasks.toml").write_text(
        '[evens]\ndata = "evens.jsonl"\n[close]\ndata = "few.jsonl"\ntolerance = 0.5\nby = "level"\n'
    )
    place.rows("evens.jsonl", [{"answer": "0"}, {"answer": "5"}])
    assert place.evaluate("half", "--data", "rows.jsonl,tasks.toml", "--out", "suite") == 0
    suite = place.summary("suite")
    assert [task["task"] for task in suite["tasks"]] == ["rows", "evens", "close"]
    # 2, 4 and 6 for 1, 3 and 5: of these the last two are within a half of the gold answer
    values = [task["avg@k"]["value"] for task in suite["tasks"]]
    assert values == [0.5, 0.5, pytest.approx(5 / 6)]
    assert suite["mean"]["value"] == pytest.approx(sum(values) / 3)
    low, high = suite["mean"]["new_problems"]["low"], suite["mean"]["new_problems"]["high"]
    assert 0 < low < sum(values) / 3 < high < 1
    assert "mean of 3 tasks" in capfd.readouterr().out
    assert place.summary("suite/close")["table"]["by"]["level"]
    assert place.run("compare", "suite", "suite") == 0
    assert capfd.readouterr().out.count("problems in both") == 3
    assert place.run("compare", "suite", "few.jsonl") == 1
    assert place.run("eval", "--report", "suite") == 0
    told = capfd.readouterr().out
    assert "mean of 3 tasks" in told
    assert told.count("avg@1 ") >= 3


def test_several_tasks_are_scored_again_in_one_command(place: Place, capfd):
    place.rows("odds.jsonl", [{"answer": "1"}, {"answer": "1"}])
    assert place.evaluate("half", "--data", "few.jsonl,odds.jsonl", "--out", "two") == 0
    capfd.readouterr()
    assert place.run("eval", "--rescore", "two", "--tolerance", "0.5", "--out", "two-close") == 0
    assert "mean of 2 tasks" in capfd.readouterr().out
    before, after = place.summary("two"), place.summary("two-close")
    assert [task["task"] for task in after["tasks"]] == ["few", "odds"]
    assert [task["avg@k"]["value"] for task in after["tasks"]] == [pytest.approx(5 / 6), 0.0]
    assert before["mean"]["value"] < after["mean"]["value"]
    assert place.records("two-close/odds")
    assert place.run("eval", "--rescore", "two", "--grader", "strict") == 0
    assert place.summary("two-strict")["mean"]["value"] == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[a]\ndata = "few.jsonl"\ntolerence = 0.1\n', "did you mean 'tolerance'?"),
        ("[a]\ndata = 3\n", "bad.toml, line 2: eval.data must be a list, got 3"),
        ("[a]\nlimit = 3\n", "needs data"),
        ('data = "few.jsonl"\n', "one table a task"),
    ],
)
def test_a_file_of_tasks_is_checked(place: Place, capfd, text: str, words: str):
    (place.path / "bad.toml").write_text(text)
    assert place.evaluate("half", "--data", "bad.toml", "--out", "bad") == 1
    assert words in capfd.readouterr().err


def test_prompt_variants_are_tasks(place: Place):
    more = ("--prompt", "{problem}", "--prompt", "Please. {problem}", "--out", "variants")
    assert place.evaluate("right", *more, "--limit", "2") == 0
    names = [task["task"] for task in place.summary("variants")["tasks"]]
    assert names == ["few-prompt1", "few-prompt2"]


def test_worked_examples_come_before_the_problem(place: Place):
    Endpoint.seen.clear()
    place.rows(
        "train.jsonl", [{"answer": "0"}, {"problem": "Number 77?", "answer": "77", "solution": "It is."}]
    )
    more = ("--shots", "1", "--shots-data", "train.jsonl", "--system", "S", "--limit", "2", "--out", "shots")
    assert place.evaluate("right", *more) == 0
    messages = Endpoint.seen[0]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"].startswith("Number 77?")
    assert messages[2]["content"] == "It is.\n\\boxed{77}"
    assert place.evaluate("right", "--shots", "9", "--shots-data", "train.jsonl", "--out", "more-shots") == 1


def test_a_row_may_have_several_gold_answers(place: Place):
    place.rows("several.jsonl", [{"answer": ["0", "7"]}, {"answer": ["7", "8"]}, {"answer": [2, 9]}])
    assert place.evaluate("right", "--data", "several.jsonl", "--out", "several", "--samples", "2") == 0
    scores = {record["problem"]: record["score"] for record in place.records("several")}
    assert scores == {"r0": 1.0, "r1": 0.0, "r2": 1.0}


@pytest.mark.parametrize("answer", ["B", 1, "second of 2", "1"])
def test_multiple_choice(place: Place, answer: Any):
    choices = ["first of 1", "second of 2", "third of 3"]
    place.rows("choices.jsonl", [{"answer": answer, "options": choices}] * 4)
    out = f"choices-{answer}".replace(" ", "-") + type(answer).__name__
    Endpoint.seen.clear()
    more = ("--data", "choices.jsonl", "--choices", "options", "--concurrency", "1", "--out", out)
    assert place.evaluate("letters", *more) == 0
    assert "B. second of 2" in Endpoint.seen[0]["messages"][0]["content"]
    # four ways to say B, of which the last is A
    assert place.summary(out)["table"]["counts"]["right"] == 3


def test_choices_of_the_other_form_and_an_answer_that_is_none(place: Place, capfd):
    choices = {"text": ["one", "two"], "label": ["1", "2"]}
    place.rows("arc.jsonl", [{"answer": "2", "choices": choices}])
    assert place.evaluate("letters", "--data", "arc.jsonl", "--choices", "choices", "--out", "arc") == 0
    assert place.records("arc")[0]["gold"] == ["B", "two"]
    place.rows("wrong.jsonl", [{"answer": "E", "choices": ["one", "two"]}])
    assert place.evaluate("letters", "--data", "wrong.jsonl", "--choices", "choices", "--out", "none") == 1
    assert "the answer 'E' is not one of the choices" in capfd.readouterr().err


def test_an_answer_without_a_box_counts_in_a_column_of_its_own(place: Place, capfd):
    assert place.evaluate("plain") == 0
    table = place.summary("plain")["table"]
    assert (table["avg@k"]["value"], table["avg@k_lenient"]["value"]) == (0.0, 0.5)
    assert "without a box" in capfd.readouterr().out


# ---- a judge -----------------------------------------------------------------------------------------------

SAID_TO_JUDGE = re.compile(r"<reference>\n(.*?)\n</reference>\n<answer>\n(.*?)\n</answer>", re.DOTALL)


@model("judge")
def judge(body: dict[str, Any], number: int) -> Any:
    """Compares texts, and finds nests right; once it does not keep to its form."""
    [(reference, answer)] = SAID_TO_JUDGE.findall(body["messages"][-1]["content"])
    if reference == "5":
        return 'Surely {"verdict": "right"} or {"verdict": "wrong"}'
    return json.dumps({"verdict": "right" if answer == reference or "((" in answer else "wrong"})


def test_a_judge_decides_where_the_grader_cannot_and_its_agreement_is_told(place: Place, server: str, capfd):
    more = ("--judge", server, "--judge-model", "judge", "--judge-share", "1", "--out", "judged")
    assert place.evaluate("nests", *more) == 0
    summary = place.summary("judged")["table"]
    found = summary["judge"]
    assert (found["asked"], found["made_right"], found["unsure"]) == (6, 2, 1)
    assert (found["compared"], found["agreement"]) == (3, 1.0)
    assert summary["counts"]["right"] == 5
    assert summary["counts"]["undecided"] == {"too_long": 3}
    assert "judge and grader agree on 100.0% of 3 that both decided" in capfd.readouterr().out


def test_a_judge_may_be_asked_about_stored_results_and_overrules_no_decided_one(place: Place, server: str):
    place.evaluate("half", "--out", "unjudged")
    judging = ("--judge", server, "--judge-model", "judge", "--judge-share", "1")
    assert place.run("eval", "--rescore", "unjudged", *judging, "--out", "rejudged") == 0
    table = place.summary("rejudged")["table"]
    assert (table["counts"]["right"], table["judge"]["made_right"]) == (3, 0)
    assert table["judge"]["agreement"] == 1.0


def test_a_judge_without_a_name_is_refused(place: Place, server: str, capfd):
    assert place.evaluate("half", "--judge", server, "--out", "nameless") == 1
    assert "--judge-model" in capfd.readouterr().err


# ---- other tools -------------------------------------------------------------------------------------------


def test_results_in_the_form_of_inspect(place: Place, half_right: str):
    assert place.run("eval", "--report", half_right, "--export", "inspect") == 0
    file = next((place.path / half_right / "inspect").glob("20*_rows_agentrl.json"))
    log = json.loads(file.read_text())
    assert (log["version"], log["status"]) == (2, "success")
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert {sample["epoch"] for sample in log["samples"]} == {1, 2}
    first = log["samples"][0]
    assert first["messages"][-1]["content"] == box(0)
    assert (first["target"], first["scores"]["reward"]["value"]) == ("0", 1.0)


def test_results_in_the_form_of_lm_eval(place: Place, half_right: str):
    assert place.run("eval", "--report", half_right, "--export", "lm-eval") == 0
    results = next((place.path / half_right).glob("results_*.json"))
    assert json.loads(results.read_text())["results"]["rows"]["exact_match,none"] == 0.5
    samples = next((place.path / half_right).glob("samples_rows_*.jsonl")).read_text().splitlines()
    assert len(samples) == 24
    assert json.loads(samples[0])["resps"] == [[box(0)]]


@pytest.mark.parametrize("name", ["hmmt_feb_2025", "brumo_2025", "cmimc_2025", "beyond_aime"])
def test_contests_of_2025_are_known_by_name_and_have_a_source(place: Place, capfd, monkeypatch, name: str):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.path / "cache"))
    assert place.evaluate("right", "--data", name, "--out", name, "--data-dir", "nowhere") == 1
    said = capfd.readouterr().err
    assert f"no file {name}.jsonl" in said
    assert "https://raw.githubusercontent.com/" in said


# ---- an endpoint that is down for a while ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["503", "cut off", "502 in HTML"])
@pytest.mark.parametrize("attempts", [1, 6])
def test_an_endpoint_that_is_down_for_seconds_costs_no_answer(place: Place, how: str, attempts: int, capfd):
    began: list[float] = []

    class Down(Endpoint):
        """Answers eight times, then for 3 s nothing."""

        def do_POST(self):
            began.append(time.monotonic())
            if len(began) <= 8 or began[-1] - began[8] > 3:
                return super().do_POST()
            self.rfile.read(int(self.headers["Content-Length"]))
            if how == "cut off":
                self.close_connection = True
                return None
            return self.send(int(how[:3]), b"<html>down</html>" if "HTML" in how else b'{"error": "down"}')

    with ThreadingHTTPServer(("127.0.0.1", 0), Down) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{http.server_port}/v1"
            name = f"down-{how[:3]}-{attempts}".replace(" ", "")
            more = ("--data", "rows.jsonl", "--concurrency", "4", "--attempts", attempts, "--out", name)
            assert place.evaluate("half", *more, url=url) == 0, capfd.readouterr().err
        finally:
            http.shutdown()
            thread.join(10)
    assert began[-1] - began[8] > 3
    counts = place.summary(name)["table"]["counts"]
    assert (counts["failed"], len(place.records(name))) == (0, 32)
