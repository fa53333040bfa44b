"""The surface of Env: what users write, and what the rollout sees of it."""

import asyncio
import sqlite3
import threading

import pytest

from agentrl_envs import (
    Env,
    EnvError,
    Finish,
    RewardError,
    RowError,
    SettingsError,
    ToolCall,
    ToolError,
    ToolFailure,
    Transcript,
    Verdict,
    tool,
)

EMPTY = Transcript()


def call(name: str, number: int = 0, /, **arguments: object) -> ToolCall:
    return ToolCall(f"c{number}", name, arguments)


class Calculator(Env):
    """Sums."""

    required_fields = ("question",)
    digits: int = 3

    def setup(self):
        self.log: list[str] = []

    def prompt(self, row):
        return row["question"]

    @tool
    def add(self, a: int, b: int = 2) -> int:
        "Add two numbers."
        self.log.append("add")
        return a + b

    @tool(parallel=True, timeout_s=5)
    async def nap(self, name: str, seconds: float) -> str:
        "Sleep."
        self.log.append(f"start {name}")
        await asyncio.sleep(seconds)
        self.log.append(f"end {name}")
        return name

    def reward(self, row, answer):
        return answer == "5"


async def test_an_episode_by_hand():
    env = Calculator()
    assert await env.start({"question": "2+3?"}) == [{"role": "user", "content": "2+3?"}]
    (result,) = await env.call_tools([call("add", a="2", b=3)])
    assert (result.text, result.ok, result.status, result.call_id) == ("5", True, "ok", "c0")
    assert await env.respond("5") is None
    reward = await env.score({"question": ""}, "5", EMPTY)
    assert (reward.value, reward.parts, reward.verdict) == (1.0, {"reward": 1.0}, None)
    await env.aclose()
    await env.aclose()


def test_the_schema_comes_from_hints_and_docstring():
    class Documented(Env):
        @tool
        def search(self, query: str, limit: int = 5, kinds: list[str] | None = None) -> str:
            """Search the library.

            Long story.

            Args:
                query: what to look for
            """
            return ""

    (spec,) = Documented.tool_specs()
    assert spec.name == "search"
    assert spec.description == "Search the library.\nLong story."
    assert spec.timeout_s == 30.0
    assert spec.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "what to look for"},
            "limit": {"type": "integer", "default": 5},
            "kinds": {
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                "default": None,
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    }
    assert spec.as_openai()["function"]["name"] == "search"


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (call("add"), "bad_arguments", "missing argument 'a'"),
        (call("add", a="two"), "bad_arguments", "expected an integer, got 'two'"),
        (call("add", a=1, aa=2), "bad_arguments", "unknown argument 'aa' (did you mean 'a'?)"),
        (call("ad", a=1), "unknown_tool", "Did you mean add?"),
        (ToolCall("c", "add", None), "bad_arguments", "must be an object"),
        (ToolCall("c", "add", None, raw="{", error="not JSON"), "bad_arguments", "not JSON"),
    ],
)
async def test_wrong_calls_go_back_to_the_model(request_: ToolCall, status: str, words: str):
    env = Calculator()
    await env.start({"question": "?"})
    (result,) = await env.call_tools([request_])
    assert (result.ok, result.status) == (False, status)
    assert words in result.text
    await env.aclose()


async def test_parallel_calls_overlap_and_results_keep_the_order_of_the_calls():
    env = Calculator()
    await env.start({"question": "?"})
    calls = [
        call("add", 0, a=1),
        call("nap", 1, name="x", seconds=0.05),
        call("nap", 2, name="y", seconds=0.01),
    ]
    results = await env.call_tools([*calls, call("add", 3, a=2)])
    assert [r.call_id for r in results] == ["c0", "c1", "c2", "c3"]
    assert [r.text for r in results] == ["3", "x", "y", "4"]
    # Fails if `_batches` ignores the mark: every batch of one call.
    assert env.log == ["add", "start x", "start y", "end y", "end x", "add"]
    await env.aclose()


async def test_a_sync_tool_does_not_block_the_loop_and_has_a_limit():
    released = threading.Event()

    class Slow(Calculator):
        @tool(timeout_s=0.1)
        def hang(self) -> str:
            released.wait(20)
            return "late"

        @tool
        def quick(self) -> str:
            return "quick"

    env = Slow()
    await env.start({"question": "?"})
    results = await env.call_tools([call("hang"), call("quick", 1)])
    assert [(r.status, r.ok) for r in results] == [("timeout", False), ("ok", True)]
    assert "did not finish within 0.1 s" in results[0].text
    released.set()
    await env.aclose()


async def test_sync_methods_share_one_thread():
    class Database(Env):
        def setup(self):
            self.db = sqlite3.connect(":memory:")  # may only be used in the thread that made it

        def prompt(self, row):
            return "?"

        @tool
        def query(self) -> list:
            "Ask."
            return self.db.execute("select 1").fetchall()

        def reward(self, row, answer):
            return self.db.execute("select 1").fetchone()[0]

        def close(self):
            self.db.close()

    env = Database()
    await env.start({})
    (result,) = await env.call_tools([call("query")])
    assert result.text == "[[1]]"
    assert (await env.score({}, None, EMPTY)).value == 1.0
    await env.aclose()


class Failing(Env):
    def prompt(self, row):
        return "?"

    @tool
    def fail(self, kind: str) -> str:
        "Fail."
        raise {
            "tool": ToolError("no such page"),
            "value": ValueError("bad date"),
            "path": FileNotFoundError("no file x"),
            "bug": NameError("typo"),
            "network": ConnectionRefusedError("refused"),
        }[kind]


@pytest.mark.parametrize("kind", ["tool", "value", "path"])
async def test_what_a_tool_says_of_its_input_goes_to_the_model(kind: str):
    env = Failing()
    (result,) = await env.call_tools([call("fail", kind=kind)])
    assert (result.ok, result.status) == (False, "error")
    assert result.text.startswith("ToolError: ")
    await env.aclose()


@pytest.mark.parametrize(("kind", "words"), [("bug", "has a bug"), ("network", "could not reach")])
async def test_bugs_and_broken_services_fail_the_episode(kind: str, words: str):
    env = Failing()
    with pytest.raises(ToolFailure, match=words):
        await env.call_tools([call("fail", kind=kind)])
    await env.aclose()


class Games(Env):
    reward_range = (-1.0, 1.0)

    def prompt(self, row):
        return [{"role": "system", "content": "rules"}, {"role": "user", "content": "start"}]

    @tool
    def move(self, to: str) -> str:
        "Move."
        if to == "win":
            raise Finish(reward=1.0, text="you win")
        if to == "answer":
            raise Finish(answer="from the tool")
        return "go on"

    async def reply(self, message):
        if "resign" in message:
            raise Finish(reward={"result": -0.5, "manners": -0.25})
        return "your move" if len(message) < 20 else None

    async def reward(self, row, answer, episode):
        return {"right": answer == "from the tool", "turns": -0.1 * episode.turns}


async def test_reply_finish_and_named_parts():
    env = Games()
    assert [m["role"] for m in await env.start({})] == ["system", "user"]
    assert await env.respond("e4") == "your move"
    assert await env.respond("x" * 30) is None
    with pytest.raises(Finish) as won:
        await env.call_tools([call("move", 0, to="a1"), call("move", 1, to="win"), call("move", 2, to="b2")])
    assert [r.text for r in won.value.results] == ["go on"]
    assert (await env.score({}, None, EMPTY, finish=won.value)).value == 1.0
    with pytest.raises(Finish) as resigned:
        await env.respond("I resign")
    lost = await env.score({}, None, EMPTY, finish=resigned.value)
    assert (lost.value, lost.parts) == (-0.75, {"result": -0.5, "manners": -0.25})
    with pytest.raises(Finish) as answered:
        await env.call_tools([call("move", to="answer")])
    reward = await env.score({}, None, Transcript(turns=2), finish=answered.value)
    assert reward.parts == {"right": 1.0, "turns": -0.2}
    assert reward.value == pytest.approx(0.8)
    await env.aclose()


@pytest.mark.parametrize(
    "value", [1.5, -0.1, float("nan"), "1", None, {}, {"a": 0.7, "b": 0.7}, {"a": "x"}, [1]]
)
async def test_a_reward_that_is_no_reward_is_an_error(value: object):
    class Odd(Env):
        def reward(self, row, answer):
            return value

    with pytest.raises(RewardError, match=r"Odd\.reward returned"):
        await Odd().score({}, "x", EMPTY)


async def test_a_method_that_raises_is_named():
    class Broken(Env):
        def setup(self):
            raise KeyError("missing")

        def reward(self, row, answer):
            return 1 / 0

    env = Broken()
    with pytest.raises(EnvError, match=r"Broken\.setup raised KeyError"):
        await env.start({})
    with pytest.raises(EnvError, match=r"Broken\.reward raised ZeroDivisionError"):
        await env.score({}, "x", EMPTY)
    await env.aclose()


async def test_a_method_that_never_returns_is_named():
    class Stuck(Env):
        hook_timeout_s = 0.05

        async def reward(self, row, answer):
            await asyncio.sleep(30)

    with pytest.raises(EnvError, match=r"Stuck\.reward did not return within 0\.05 s"):
        await Stuck().score({}, "x", EMPTY)


async def test_close_runs_also_when_the_episode_is_cancelled():
    closed = []

    class Closing(Calculator):
        @tool
        async def forever(self) -> str:
            "Wait."
            await asyncio.sleep(60)
            return ""

        async def close(self):
            await asyncio.sleep(0)
            closed.append(True)

    env = Closing()

    async def episode() -> None:
        try:
            await env.start({"question": "?"})
            await env.call_tools([call("forever")])
        finally:
            await env.aclose()

    task = asyncio.create_task(episode())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [True]
    await env.aclose()
    assert closed == [True]


def test_settings_are_checked_all_at_once():
    assert Calculator(digits="4").digits == 4
    assert Calculator(max_turns=2).max_turns == 2
    assert Calculator.max_turns == 8
    with pytest.raises(
        SettingsError, match=r"unknown setting 'digit' \(did you mean 'digits'\?\); setting 'max_turns'"
    ):
        Calculator(digit=3, max_turns="many")


def test_a_setting_without_default_is_required():
    class Needs(Env):
        path: str

    with pytest.raises(SettingsError, match="setting 'path' is missing"):
        Needs()
    assert Needs(path="x").path == "x"


def test_rows_are_checked_with_their_number():
    rows = [{"question": "a"}, {"questions": "b", "id": 1}]
    with pytest.raises(
        RowError, match=r"train\.jsonl, row 2: Calculator needs the field 'question'; the row has"
    ) as error:
        Calculator.check_rows(rows, "train.jsonl, row")
    assert '"question": "questions"' in str(error.value)


def test_mistakes_in_a_class_are_found_when_it_is_made():
    with pytest.raises(EnvError, match="required_fields must be a tuple"):

        class Text(Env):
            required_fields = "question"

    with pytest.raises(EnvError, match="reward_range"):

        class Range(Env):
            reward_range = (1.0, 0.0)

    class Starred(Env):
        @tool
        def bad(self, *values: int) -> str:
            "Bad."
            return ""

    with pytest.raises(EnvError, match="has no place in a schema"):
        Starred.tool_specs()

    class Strange(Env):
        @tool
        def bad(self, value: threading.Thread) -> str:
            "Bad."
            return ""

    with pytest.raises(EnvError, match="parameter 'value': .* has no JSON form"):
        Strange.tool_specs()


async def test_content_parts_and_json_results():
    class Rich(Env):
        @tool
        def look(self) -> list:
            "Look."
            return [
                {"type": "text", "text": "a cat"},
                {"type": "image_url", "image_url": {"url": "data:..."}},
            ]

        @tool
        def table(self) -> dict:
            "Table."
            return {"a": [1, 2]}

        @tool
        def nothing(self) -> None:
            "Nothing."

        @tool
        def odd(self) -> object:
            "Odd."
            return object()

    env = Rich()
    look, table, nothing = await env.call_tools([call("look"), call("table"), call("nothing")])
    assert look.text == "a cat[image_url not shown]"
    assert [part["type"] for part in look.parts] == ["text", "image_url"]
    assert table.text == '{"a": [1, 2]}'
    assert nothing.text == "(no output)"
    with pytest.raises(ToolFailure, match="returned object"):
        await env.call_tools([call("odd")])
    await env.aclose()


async def test_grade_is_a_bool_in_sync_code_and_awaitable_in_async_code(grader):
    class Sync(Env):
        def reward(self, row, answer):
            return 0.5 * self.grade(answer, row["answer"]) + 0.25

    class Async(Env):
        async def reward(self, row, answer):
            return await self.grade(answer, row["answer"])

    row = {"answer": r"\frac{1}{\sqrt{2}}"}
    right = r"\boxed{\frac{\sqrt{2}}{2}}"
    assert (await Sync(grader=grader).score(row, right, EMPTY)).value == 0.75
    reward = await Async(grader=grader).score(row, right, EMPTY)
    assert (reward.value, reward.verdict) == (1.0, Verdict.RIGHT.value)
    assert (await Sync(grader=grader).score(row, r"\boxed{1}", EMPTY)).verdict == "wrong"
    assert (await Async(grader=grader).score(row, None, EMPTY)).verdict == "no_answer"


def test_a_sync_reward_called_by_hand_needs_no_event_loop(grader):
    class Sync(Env):
        def reward(self, row, answer):
            return 0.5 * self.grade(answer, row["answer"])

    assert Sync(grader=grader).reward({"answer": "1"}, r"\boxed{1}") == 0.5


def test_importing_the_package_is_light():
    import subprocess
    import sys

    code = "import sys; sys.path[:] = sys.argv[1:]; import agentrl_envs; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, *filter(None, sys.path)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    heavy = {"torch", "transformers", "sympy", "math_verify", "aiohttp", "docker", "openai", "pydantic"}
    assert not heavy & set(run.stdout.split())
