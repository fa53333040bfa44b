"""What a model says and a tool returns: whatever it is, an episode is played, written, read and learned from."""

from __future__ import annotations

import gzip
import json
import shutil
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from agentrl import Env, EnvError, Finish, tool
from agentrl_envs import ToolCall, ToolFailure, Transcript

RETURNED = [
    "float('nan')",
    "[float('inf'), -float('inf')]",
    "2**20000",
    "{1, 2}",
    "b'\\xff\\x00'",
    "__import__('fractions').Fraction(1, 3)",
    "__import__('decimal').Decimal('1e400')",
    "__import__('numpy').int64(3)",
    "__import__('numpy').arange(3)",
    "'\\ud800 lone'",
    "{'\\udfff': ['\\ud800']}",
    "[{'type': 'theorem', 'name': 'Fermat'}]",
    "[{'type': 'text'}]",
    "[{'type': 'text', 'text': 'shown'}, {'type': 'image_url', 'image_url': {'url': 'data:'}}]",
    "'a' * 1000000",
    "'\\x1b]unterminated ' + 'x' * 100",
    "'\\0' * 10",
    "[[]] * 3",
    "(lambda l: (l.append(l), l)[1])([])",
    "1 + 2j",
    "None",
    "{(1, 2): None}",
    "__import__('datetime').date(2026, 11, 21)",
    "__import__('pathlib').PurePath('/x')",
    "__import__('collections').deque([1])",
    "range(3)",
    "memoryview(b'ab')",
    "{2**20000: {float('nan'): '\\ud800'}}",
    "[{'type': 'text', 'text': None}]",
    "[{'type': 'text', 'text': 'a'}, 'b']",
]


class Box(Env):
    """Tools that return what a test puts there."""

    value: object = None

    def prompt(self, row):
        return row["question"]

    @tool
    def give(self, x: float = 0.0):
        "Give the value."
        return type(self).value

    def reward(self, row, answer):
        return 0.0


async def given(value: object) -> str:
    kind = type("Box", (Box,), {"value": value})
    env = kind()
    await env.start({"question": "?"})
    try:
        (result,) = await env.call_tools([ToolCall("call", "give", {})])
    finally:
        await env.aclose()
    return result.text


@pytest.mark.parametrize("source", RETURNED)
async def test_whatever_a_tool_returns_is_told_to_the_model(source: str) -> None:
    text = await given(eval(source))
    text.encode()
    assert text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("2**20000", "a whole number of about 6020 digits"),
        ("[{'type': 'theorem', 'name': 'Fermat'}]", '[{"type": "theorem", "name": "Fermat"}]'),
        ("[{'type': 'text', 'text': 'a'}, {'type': 'image', 'image': 'x'}]", "a[image not shown]"),
        ("'\\ud800'", "\ufffd"),
        ("__import__('numpy').float64(0.5)", "0.5"),
        ("{3}", "[3]"),
        ("__import__('datetime').date(2026, 11, 21)", "2026-11-21"),
        ("__import__('fractions').Fraction(1, 3)", "1/3"),
        ("[{'type': 'text'}]", '[{"type": "text"}]'),
        ("({'type': 'text', 'text': 'a'},)", '[{"type": "text", "text": "a"}]'),
    ],
)
async def test_what_the_model_reads(source: str, told: str) -> None:
    assert await given(eval(source)) == told


@pytest.mark.parametrize(
    "source", ["len", "(i for i in [1])", "map(str, [1])", "object()", "__import__('json')"]
)
async def test_what_was_surely_not_meant_to_be_read_is_a_bug_of_the_tool(source: str) -> None:
    with pytest.raises(ToolFailure, match=r"tool 'give' returned \w+; return text"):
        await given(eval(source))


@pytest.mark.parametrize(
    "opening",
    [
        [{"role": "user", "content": [{"type": "theorem", "name": "Fermat"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 3}],
        [{"type": "theorem"}],
        {"role": "user", "content": "?"},
        b"?",
        None,
    ],
)
async def test_a_prompt_of_which_nothing_could_be_shown_is_refused(opening: object) -> None:
    kind = type("Opens", (Box,), {"prompt": lambda self, row: opening})
    with pytest.raises(EnvError, match="Opens.prompt must return text or a list of messages"):
        await kind().start({})


@pytest.mark.parametrize(
    "reward",
    ["2**20000", "float('nan')", "1j", "{'a': 2**20000}", "{'a': 1e308, 'b': 1e308}", "{}", "'1'", "None"],
)
@pytest.mark.parametrize("way", ["reward", "finish"])
async def test_a_reward_that_is_no_number_in_range_is_named(reward: str, way: str) -> None:
    value = eval(reward)
    env = type("Pays", (Box,), {"reward": lambda self, row, answer: value})()
    finish = Finish(reward=value) if way == "finish" and value is not None else None
    await env.start({"question": "?"})
    with pytest.raises(
        EnvError, match=r"Pays(\.reward)? returned" if finish is None else r"Finish\(reward=...\) of Pays"
    ):
        await env.score({}, "4", Transcript(), finish=finish)
    await env.aclose()


@pytest.mark.parametrize("answer", [3, 2.5, {1}, b"4", "\ud800", None])
def test_an_environment_may_end_with_any_answer(answer: object) -> None:
    finish = Finish(answer=answer)
    assert finish.answer is None or isinstance(finish.answer, str)
    str(finish.answer).encode()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "[NaN]", '{"y": -1e400}'])
def test_a_number_that_is_none_is_an_unreadable_call(number: str) -> None:
    from agentrl_envs.plain import read_json

    with pytest.raises(ValueError, match="no number of JSON"):
        read_json('{"name": "f", "arguments": {"x": ' + number + "}}")


def traces(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "day": {"type": ["string", "null"]}},
            },
        },
    }
]


def conversation(arguments: object, **more: object) -> str:
    call = {"function": {"name": "look", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": {"sky": "blue"}},
        {"role": "assistant", "content": "Blue."},
    ]
    return json.dumps({"messages": messages, "tools": TOOLS, **more})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}', "not UTF-8 (byte 0xe9"),
        ("{", "not JSON"),
        ('{"messages": [{"role": "user", "content": NaN}]}', "NaN is no number of JSON"),
        ("[" * 3000, "nested too deeply"),
        (conversation({"city": "A"}, tools="[{"), '"tools" is text, and not JSON'),
        (conversation({"city": "A"}, tools={"name": "look"}), '"tools" must be a list'),
        (
            '{"messages": [{"role": "user", "content": {"a": 1}}, {"role": "assistant", "content": "b"}]}',
            "content must be text",
        ),
    ],
)
def test_a_trace_that_cannot_be_read_is_named_with_its_line(agentrl, tmp_path: Path, line, said: str) -> None:
    good = conversation({"city": "A"})
    code, _, err = agentrl("sft", traces(tmp_path, good, line), "--model", "demo", "--out", tmp_path / "out")
    assert code == 1
    assert "traces.jsonl:2" in err
    assert said in err
    assert "Traceback" not in err


def learned_text(path: Path) -> tuple[str, Any]:
    """What the model learns to write of the only trace of a file, in the format hermes."""
    transformers = pytest.importorskip("transformers")
    from agentrl.training.rendered_traces import render_traces
    from agentrl.training.traces import load_traces

    shutil.copytree(str(files("agentrl.demo") / "model"), path.parent / "model")
    (path.parent / "model" / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent / "model")
    done = render_traces(load_traces(path), tokenizer, "hermes", max_tokens=4096)
    (segment,) = done.segments
    learned = [token for token, learn in zip(segment.token_ids, segment.loss_mask, strict=True) if learn]
    return tokenizer.decode(learned), done


@pytest.mark.parametrize("written", [dict, json.dumps], ids=["object", "text"])
@pytest.mark.parametrize("listed", [list, json.dumps], ids=["tools", "tools as text"])
@pytest.mark.parametrize(
    ("given", "learned"),
    [
        ({"city": "A", "code": None, "path": None}, {"city": "A"}),  # columns of other tools
        ({"city": None, "day": None}, {"day": None}),  # null is a value of `day` only
        ({"city": "A", "day": "B"}, {"city": "A", "day": "B"}),
    ],
)
def test_nulls_that_a_data_set_filled_in_are_not_learned(
    tmp_path: Path, given, learned, written, listed
) -> None:
    line = conversation(written(given), tools=listed(TOOLS))
    text, _ = learned_text(traces(tmp_path, line))
    assert json.dumps({"name": "look", "arguments": learned}) in text
    assert text.count("null") == sum(value is None for value in learned.values())


@pytest.mark.parametrize("reasoning", ["I look it up.", "a\n</think>", ""])
def test_reasoning_that_no_format_writes_is_told(agentrl, tmp_path: Path, reasoning: str) -> None:
    talk = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Blue.", "reasoning_content": reasoning},
    ]
    path = traces(tmp_path, json.dumps({"messages": talk}))
    text, done = learned_text(path)
    assert "look it up" not in text
    assert done.unlearned_reasoning == bool(reasoning)
    told = ("--model", files("agentrl.demo") / "model", "--out", tmp_path / "out", "--format=code", "--quiet")
    code, out, err = agentrl("sft", path, *told)
    assert code == 0, err
    assert ("reasoning_content of 1 traces is not learned" in out) == bool(reasoning)


TEMPLATE = """\
{%- for message in messages -%}
{{ '[' + message.role + ']' + message.content + '<|pad|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}"""


@pytest.mark.parametrize("format", ["code", "hermes"])
@pytest.mark.parametrize("answers", [("Blue.",), ("One.", "Two.")])
def test_a_warm_start_learns_the_template_s_own_end_of_turn(format, answers, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from agentrl.renderers.making import make_renderer
    from agentrl.training.rendered_traces import render_trace
    from agentrl.training.traces import load_traces

    shutil.copytree(str(files("agentrl.demo") / "model"), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    turns = [
        m for a in answers for m in ({"role": "user", "content": "?"}, {"role": "assistant", "content": a})
    ]
    (trace,) = load_traces(traces(tmp_path, json.dumps({"messages": turns})))
    segment = render_trace(trace, make_renderer(tokenizer, format), tokenizer, format)
    learned = [token for token, learn in zip(segment.token_ids, segment.loss_mask, strict=True) if learn]
    end = tokenizer.convert_tokens_to_ids("<|pad|>")
    assert tokenizer.eos_token_id != end
    assert (learned[-1], learned.count(end)) == (end, len(answers))
    assert tokenizer.eos_token_id not in segment.token_ids


MONSTERS = """
from agentrl import Env, Finish, tool

RETURNED = {returned!r}


class Monsters(Env):
    max_turns = 3

    def prompt(self, row):
        return row["problem"]

    def reply(self, message):
        odd = sum(map(ord, message)) % 4
        if odd == 0:
            raise Finish(reward=0.5, answer=__import__("numpy").int64(3))
        if odd == 1:
            raise Finish(reward=float("nan"))
        return ["\\ud800 again", None][odd - 2]

    @tool
    def python(self, code: str):
        return eval(RETURNED[len(code) % len(RETURNED)])

    def reward(self, row, answer):
        return {{"odd": __import__("numpy").float32(0.25), "right": False}}
"""


@pytest.fixture(scope="module")
def monstrous_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a real run whose tools, replies and rewards are hard to write."""
    folder = tmp_path_factory.mktemp("monsters")
    (folder / "monsters.py").write_text(MONSTERS.format(returned=RETURNED))
    lines = [json.dumps({"id": str(i), "problem": f"What is {i}*{i + 3}? \ud800"}) for i in range(16)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    words = f"train monsters.py --model {files('agentrl.demo') / 'model'} --data rows.jsonl --run.steps=2"
    words += " --run.name=odd --stream.batch=8 --rollout.max_tokens=32 --rollout.format=code --engine.slots=8"
    words += " --engine.context_tokens=512 --rollout.tool_output_chars=64 --checkpoint.every=1 --quiet"
    main = next(iter(entry_points(group="console_scripts", name="agentrl"))).load()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words.split()) == 0
    return folder / "runs" / "odd"


@pytest.mark.timeout(300)
def test_a_run_of_monsters_is_written_and_read(monstrous_run: Path) -> None:
    assert json.loads((monstrous_run / "summary.json").read_text())["policy_versions"] == 2
    assert (monstrous_run / "report.html").stat().st_size > 10_000
    count = 0
    for path in (monstrous_run / "episodes").iterdir():
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for line in file:
                json.dumps(json.loads(line), ensure_ascii=False).encode()
                count += 1
    assert count >= 16


@pytest.mark.timeout(300)
def test_a_run_of_monsters_is_resumed_and_evaluated(agentrl, tmp_path: Path, monstrous_run: Path) -> None:
    shutil.copytree(monstrous_run.parent.parent, tmp_path, dirs_exist_ok=True)
    code, _, errors = agentrl("train", "--resume", "runs/odd", "--run.steps=3", "--quiet")
    assert code == 0, errors[-3000:]
    told = ("--data", "rows.jsonl", "--samples", "1", "--limit", "8", "--json")
    code, out, errors = agentrl("eval", "runs/odd", *told)
    assert code == 0, errors[-3000:]
    json.loads(out)
