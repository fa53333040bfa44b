"""Programs play episodes through the gateway, with real clients, and give the tokens of the direct path."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, StopReason
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, tool
from agentrl_envs.model import Access
from agentrl_envs.program import filled
from benchmarks.gateway import TOOL

CODE = "<code>\n```python\n1\n```\n</code>"
ASK = [{"role": "user", "content": "p"}]


async def play(env: type[Env], replies: Any, *, context_tokens: int = 1 << 16, **settings: Any) -> Episode:
    slow = settings.pop("seconds", 0.0)
    return await run_episode(
        lambda: env(),
        ScriptedPolicy(replies, tokenizer=ByteTokenizer(), context_tokens=context_tokens, seconds=slow),
        make_renderer(ByteTokenizer(), "code", instructions=""),
        row={"problem": "p", "answer": "yes"},
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(**settings),
    )


def through(agent: Any, **members: Any) -> type[Env]:
    """An environment whose episode is `agent(access)`, a client of the gateway in this process."""

    class Through(Env):
        max_turns = 6

        async def play(self, row: Any) -> Any:
            async with self.speaker.serve() as access:
                return await agent(access)

        def reward(self, row: Any, answer: str | None) -> bool:
            return answer == row["answer"]

    return type("Through", (Through,), members)


@asynccontextmanager
async def client(access: Access) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{access.url}/v1", api_key=access.key, max_retries=0) as made:
        yield made


async def tool_loop(access: Access) -> str | None:
    """What an agent of the OpenAI SDK does: calls tools until the model answers."""
    async with client(access) as api:
        messages: list[Any] = list(ASK)
        while True:
            reply = await api.chat.completions.create(model="gpt-5", messages=messages, tools=[TOOL])  # type: ignore[list-item]
            said = reply.choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                return said.content
            messages += [{"role": "tool", "tool_call_id": c.id, "content": "out"} for c in said.tool_calls]


class Direct(Env):
    """The same agent as turns of an environment."""

    max_turns = 6

    def prompt(self, row: Any) -> str:
        return "p"

    @tool
    async def python(self, code: str) -> str:
        "Run Python."
        return "out"

    def reward(self, row: Any, answer: str | None) -> bool:
        return answer == row["answer"]


async def test_an_agent_of_the_openai_sdk_gives_the_tokens_of_the_direct_path() -> None:
    # Fails when the gateway renders the history again instead of going on from its tokens.
    script = [{CODE: 0.9, "no<|end|>": 0.1}, {f"Let me see.\n{CODE}": 0.7, "no": 0.3}, "yes<|end|>"]
    there, here = await play(through(tool_loop), script), await play(Direct, script)
    assert there.segments == here.segments
    assert [(t.start, t.end, t.text) for t in there.turns] == [(t.start, t.end, t.text) for t in here.turns]
    assert [c.result for c in there.tool_calls] == [c.result for c in here.tool_calls] == ["out", "out"]
    assert (there.reward, there.answer, there.stop_reason) == (1.0, "yes", StopReason.ANSWERED)
    assert there.counts == {"gateway/requests": 3, "gateway/opened": 1, "gateway/extended": 2}


async def test_a_stream_tells_the_same() -> None:
    async def agent(access: Access) -> str:
        async with client(access) as api:
            stream = await api.chat.completions.create(
                model="m", messages=ASK, tools=[TOOL], stream=True, stream_options={"include_usage": True}
            )  # type: ignore[call-overload]
            chunks = [chunk async for chunk in stream]
        calls = [c for chunk in chunks if chunk.choices for c in chunk.choices[0].delta.tool_calls or ()]
        assert [(c.function.name, c.function.arguments) for c in calls] == [("python", '{"code": "1"}')]
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
        assert chunks[-1].usage.completion_tokens == len(f"Hm.\n{CODE}")
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    episode = await play(through(agent), [f"Hm.\n{CODE}"])
    assert episode.answer == "Hm."


def says(*texts: str) -> list[str]:
    return [f"{text}<|end|>" for text in texts]


async def test_what_a_program_adds_to_a_message_goes_into_the_next_one() -> None:
    async def agent(access: Access) -> None:
        async with client(access) as api:
            one = await api.chat.completions.create(model="m", messages=ASK)  # type: ignore[arg-type]
            text = f"{one.choices[0].message.content}\nCalling tools: x"
            more = [{"role": "assistant", "content": text}, {"role": "user", "content": "go on"}]
            await api.chat.completions.create(model="m", messages=[*ASK, *more])  # type: ignore[list-item]

    episode = await play(through(agent), says("one", "two"))
    (segment,) = episode.segments
    assert ByteTokenizer().decode(segment.token_ids) == "p\none<|end|>\nCalling tools: x\n\ngo on\ntwo<|end|>"


async def test_an_edited_history_opens_a_segment() -> None:
    async def agent(access: Access) -> None:
        async with client(access) as api:
            await api.chat.completions.create(model="m", messages=ASK)  # type: ignore[arg-type]
            more = [{"role": "assistant", "content": "else"}, {"role": "user", "content": "go on"}]
            await api.chat.completions.create(model="m", messages=[*ASK, *more])  # type: ignore[list-item]

    episode = await play(through(agent), says("one", "two"))
    assert [segment.num_sampled for segment in episode.segments] == [4, 4]
    assert episode.counts == {"gateway/requests": 2, "gateway/opened": 2}


@pytest.mark.parametrize(
    ("asked", "status", "code", "words"),
    [
        ({"n": 2}, 400, "refused_n", "several times"),
        ({"response_format": {"type": "json_object"}}, 400, "refused_response_format", "constrains"),
        ({"temprature": 1}, 400, "unknown_parameter", "did you mean 'temperature'"),
        ({"messages": []}, 400, "bad_messages", "at least one"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "bad_messages", "messages[0]: role 'robot'"),
        (
            {"messages": [*ASK, {"role": "assistant", "content": "I"}]},
            400,
            "prefilled",
            "begins its messages",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "content_not_text",
            "image_url",
        ),
        ({"max_tokens": 0}, 400, "bad_max_tokens", "at least 1"),
        ({"stop": [1]}, 400, "bad_stop", "texts"),
        ({"tools": [{"name": "x"}]}, 400, "bad_tools", "function"),
        ({"model": "another"}, 404, "other_model", "'another' is another"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_done_is_refused_and_counted(
    asked: Any, status: int, code: str, words: str
) -> None:
    async def agent(access: Access) -> str:
        head = {"Authorization": f"Bearer {access.key}"}
        async with aiohttp.ClientSession(f"{access.url}/v1/", headers=head) as http:
            plain = {"model": "m", "messages": ASK}
            async with http.post("chat/completions", json=plain) as answer:
                assert answer.status == 200
            async with http.post("chat/completions", json={**plain, **asked}) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (status, code)
                assert words in error["message"]
        return "yes"

    episode = await play(through(agent), says("one"))
    assert (episode.reward, episode.counts[f"gateway/{code}"], len(episode.turns)) == (1.0, 1, 1)


async def test_parameters_that_the_run_decides_are_counted() -> None:
    async def agent(access: Access) -> None:
        async with client(access) as api:
            await api.chat.completions.create(model="m", messages=ASK, temperature=0.2, top_p=0.5, n=1)  # type: ignore[call-overload]

    episode = await play(through(agent), says("one"))
    assert (episode.counts["gateway/ignored_temperature"], episode.counts["gateway/ignored_top_p"]) == (1, 1)
    assert episode.temperature == 1.0


async def test_requests_at_once_are_answered_one_by_one() -> None:
    async def agent(access: Access) -> None:
        async with client(access) as api:
            ask = [api.chat.completions.create(model="m", messages=ASK) for _ in range(3)]  # type: ignore[arg-type]
            replies = await asyncio.gather(*ask)
        assert sorted(r.choices[0].message.content or "" for r in replies) == ["one", "three", "two"]

    episode = await play(through(agent), says("one", "two", "three"), seconds=0.02)
    assert len(episode.segments) == 3
    assert episode.counts["gateway/overlapping"] == 2


async def test_a_message_of_a_program_that_hung_up_is_asked_for_again() -> None:
    # Fails without `handler_cancellation`: the message would be sampled for nobody, and opened again.
    async def agent(access: Access) -> None:
        async with client(access) as api:
            with pytest.raises(openai.APITimeoutError):
                await api.chat.completions.create(model="m", messages=ASK, timeout=0.1)  # type: ignore[arg-type]
            counts = access.calls.speaker.conversation.counts  # type: ignore[attr-defined]
            while "gateway/hung_up" not in counts:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await api.chat.completions.create(model="m", messages=ASK)  # type: ignore[arg-type]

    # The first of two calls takes an hour.
    episode = await play(through(agent), says("one"), seconds=lambda request, _: 3600 * (request.call == 0))
    assert [segment.num_sampled for segment in episode.segments] == [4]
    assert (episode.counts["gateway/hung_up"], len(episode.turns)) == (1, 1)


async def test_a_message_that_nobody_read_is_not_learned_from() -> None:
    async def agent(access: Access) -> None:
        session: Any = access.calls
        from agentrl.rollout.gateway.chat import read
        from agentrl.rollout.gateway.request import Kept

        asked = [
            read({"model": "m", "messages": [{"role": "user", "content": text}]}, Kept()) for text in "ab"
        ]
        first, second = [await session.answer(one) for one in asked]
        session.undelivered(asked[0], first)
        session.undelivered(asked[1], second)
        assert await session.answer(asked[0]) is first

    episode = await play(through(agent), says("one", "two"))
    assert [segment.num_sampled for segment in episode.segments] == [4, 0]
    assert [turn.text for turn in episode.turns] == ["one", "two"]
    assert (episode.counts["gateway/delivered_again"], episode.counts["gateway/unread"]) == (1, 1)


async def test_limits_of_the_episode_end_it_with_its_stop_reason() -> None:
    async def agent(access: Access) -> str:
        async with client(access) as api:
            messages: list[Any] = list(ASK)
            for _ in range(2):
                reply = await api.chat.completions.create(model="m", messages=messages)
                messages += [reply.choices[0].message.model_dump(), *ASK]
            with pytest.raises(openai.BadRequestError, match="are used up"):
                await api.chat.completions.create(model="m", messages=messages)
        return "yes"

    turns = await play(through(agent), says("one"), max_turns=2)
    assert (turns.stop_reason, turns.reward, len(turns.turns)) == (StopReason.MAX_TURNS, 0.0, 2)
    tokens = await play(through(agent), says("one"), max_tokens=8)
    assert (tokens.stop_reason, tokens.reward) == (StopReason.MAX_TOKENS, 0.0)


async def test_a_broken_engine_fails_the_episode_whatever_the_program_does() -> None:
    async def agent(access: Access) -> str:
        async with client(access) as api:
            with pytest.raises(openai.InternalServerError, match="broke"):
                await api.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 99}])
        return "yes"

    episode = await play(through(agent), says("one"), context_tokens=20)
    assert episode.failure is not None
    assert (episode.failure.boundary, episode.failure.error, episode.reward) == (
        "policy",
        "ContextOverflow",
        None,
    )


async def test_a_reward_is_accepted_with_the_graders_key_alone() -> None:
    async def agent(access: Access) -> Any:
        async with aiohttp.ClientSession(access.url) as http:
            for key, status in (
                (access.key, 403),
                ("none", 401),
                (access.reward_key, 200),
                (access.reward_key, 409),
            ):
                head = {"Authorization": f"Bearer {key}"}
                async with http.post("/v1/agentrl/reward", json={"reward": 0.5}, headers=head) as answer:
                    assert answer.status == status
        return str(await access.calls.reward())

    episode = await play(through(agent), says("one"))
    assert (episode.answer, episode.counts["gateway/wrong_key"]) == ("0.5", 1)


async def test_an_episode_that_ends_takes_no_other_with_it() -> None:
    # Fails when the server is started in the context of the first episode, whose tasks end with it.
    begun, first_is_over = asyncio.Event(), asyncio.Event()

    async def first(access: Access) -> str:
        async with client(access) as api:
            await api.chat.completions.create(model="m", messages=ASK)  # type: ignore[arg-type]
        await begun.wait()
        return "yes"

    async def second(access: Access) -> str:
        async with client(access) as api:
            await api.chat.completions.create(model="m", messages=ASK)  # type: ignore[arg-type]
            begun.set()
            await first_is_over.wait()
            more = [*ASK, {"role": "assistant", "content": "one"}, *ASK]
            await api.chat.completions.create(model="m", messages=more)  # type: ignore[arg-type]
        return "yes"

    async def slowly() -> Episode:
        await asyncio.sleep(0.05)
        return await play(through(second), says("one"))

    task = asyncio.ensure_future(slowly())
    assert (await play(through(first), says("one"))).reward == 1.0
    first_is_over.set()
    episode = await task
    assert (episode.failure, episode.reward, episode.counts["gateway/extended"]) == (None, 1.0, 1)


CURL = """
curl -sS "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" \
  -H 'Content-Type: application/json' -d '{"model": "m", "messages": [{"role": "user", "content": "p"}]}'
"""


async def program(command: list[str], **settings: Any) -> Episode:
    import shlex

    from agentrl_envs.program import ProgramEnv

    rollout = {key: settings.pop(key) for key in ("max_turns", "limit_s") if key in settings}
    made = type("Made", (ProgramEnv,), settings.pop("members", {}))
    return await play(lambda: made(command=shlex.join(command), **settings), says("yes"), **rollout)  # type: ignore[arg-type]


async def test_a_shell_script_with_curl_is_an_agent() -> None:
    class Members:
        def reward(self, row: Any, answer: str) -> bool:
            return json.loads(answer)["choices"][0]["message"]["content"] == "yes"

    episode = await program(["sh", "-c", CURL], members={"reward": Members.reward})
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert episode.segments[0].num_sampled == 4


@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        (["sh", "-c", "echo broken >&2; exit 3"], {}, "exit status 3; it wrote: broken"),
        (["sleep", "60"], {"time_s": 0.2}, r"did not end within 0\.2 s"),
        (["/no/such/program"], {}, "exit status 127"),
        (["sh", "-c", "while :; do :; done"], {"cpu_s": 1}, "signal SIG(XCPU|KILL)"),
        ([sys.executable, "-c", "bytearray(10**9)"], {"memory_mb": 500}, "MemoryError"),
        ([], {}, "no program"),
    ],
    ids=["exit", "never ends", "missing", "cpu", "memory", "none"],
)
async def test_a_program_that_fails_is_no_reward(command: list[str], settings: Any, words: str) -> None:
    import re

    episode = await program(command, **settings)
    assert episode.failure is not None
    assert re.search(words, episode.failure.message)
    assert (episode.failure.boundary, episode.reward) == ("env", None)


async def test_long_output_is_cut_and_what_a_program_leaves_behind_is_ended() -> None:
    leaves = "import os, sys\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(600)\nprint('y' * 3000)"
    episode = await program(
        [sys.executable, "-c", leaves],
        output_kb=1,
        members={"reward": lambda self, row, answer: len(answer) == 1024},
    )
    assert (episode.failure, episode.reward, episode.counts) == (None, 1.0, {"program/output_cut": 1})


GRADE = """
import json, sys, urllib.request
given = json.load(sys.stdin)
body = json.dumps({"parts": {"right": float(given["answer"] == given["row"]["answer"])}}).encode()
head = {"Authorization": "Bearer " + given["key"]}
urllib.request.urlopen(urllib.request.Request(given["url"], body, head))
"""


async def test_a_grader_in_a_process_of_its_own_hands_in_the_reward(tmp_path: Any) -> None:
    (tmp_path / "grade.py").write_text(GRADE)
    grader = f"{sys.executable} {tmp_path / 'grade.py'}"
    episode = await program(["sh", "-c", "env; echo; echo yes"], grade_command=grader, keep_lines=1)
    assert (episode.reward, dict(episode.reward_parts)) == (1.0, {"right": 1.0})
    silent = await program(["echo", "yes"], grade_command="true")
    assert silent.failure is not None
    assert "handed in no reward" in silent.failure.message


async def test_a_program_knows_neither_the_answer_nor_the_graders_key() -> None:
    show = {
        "reward": lambda self, row, answer: (
            "reward-" not in answer and "yes" not in answer and "AGENTRL_ROW" in answer
        )
    }
    assert (await program(["env"], members=show)).reward == 1.0


def test_fields_of_a_command_are_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field's own braces, and a field that is the name of a file, are text; the command's own file is found."""
    monkeypatch.chdir(tmp_path)
    Path("agent.py").write_text("")
    row = {"question": "what is {level} {a b}?", "level": "agent.py"}
    assert filled("python agent.py {question} --level={level} {other}", row) == [
        "python",
        str(tmp_path / "agent.py"),
        "what is {level} {a b}?",
        "--level=agent.py",
        "{other}",
    ]
    assert filled("echo {level}", row) == ["echo", "agent.py"]
