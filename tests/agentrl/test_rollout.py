"""One episode: whatever happens, an `Episode` comes back that says what happened."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, StopReason
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.completer import Decoding, Exhausted
from agentrl.rollout.token_completer import Dispatch, TokenCompleter, run_episode
from agentrl_envs import Env, Finish, SandboxFailure, tool

CODE = "<code>\n```python\n1\n```\n</code>"


class Words(Env):
    max_turns = 3
    closed = 0

    def prompt(self, row: Any) -> str:
        return row["problem"]

    @tool
    async def python(self, code: str) -> str:
        "Run Python."
        return "out"

    def reward(self, row: Any, answer: str | None) -> float:
        return float(answer == row["answer"])

    def close(self) -> None:
        type(self).closed += 1


async def play(
    env: type[Env], replies: Any, *, context_tokens: int = 1 << 16, row: Any = None, **settings: Any
) -> Episode:
    policy = ScriptedPolicy(replies, tokenizer=ByteTokenizer(), context_tokens=context_tokens)
    return await run_episode(
        lambda: env(),
        policy,
        make_renderer(ByteTokenizer(), "code", instructions=""),
        row=row or {"problem": "p", "answer": "yes"},
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(**settings),
    )


async def test_tool_output_carries_mask_0_and_everything_is_appended() -> None:
    # Invariants 1 and 2; fails when `_continued` uses `append_sampled`.
    episode = await play(Words, [CODE, "yes<|end|>"])
    assert episode.stop_reason is StopReason.ANSWERED
    assert episode.reward == 1.0
    segment = episode.segments[0]
    text = ByteTokenizer().decode(segment.token_ids)
    assert text == f"p\n{CODE}<interpreter>\nout\n</interpreter>\n\nyes<|end|>" or "<interpreter>" in text
    masked = bytes(
        token
        for token, mask in zip(segment.token_ids, segment.loss_mask, strict=True)
        if mask and token < 256
    )
    assert masked.decode() == f"{CODE}yes"
    first, second = episode.turns
    assert (first.tool_calls[0].result, second.tool_calls) == ("out", ())
    assert ByteTokenizer().decode(segment.token_ids[first.start : first.end]) == CODE


async def test_a_call_that_departs_from_the_format_is_run_and_counted() -> None:
    episode = await play(Words, ["```python\nprint(1)\n```<|end|>", "yes<|end|>"])
    assert (episode.failure, episode.reward, len(episode.turns), len(episode.segments)) == (None, 1.0, 2, 1)
    assert episode.turns[0].tool_calls[0].result == "out"
    assert episode.counts == {"loose/fence": 1}
    assert (await play(Words, [CODE, "yes<|end|>"])).counts == {}


async def test_long_tool_output_keeps_head_and_tail_and_says_so() -> None:
    class Long(Words):
        @tool
        async def python(self, code: str) -> str:
            "Run Python."
            return "a" * 30 + "b" * 30

    episode = await play(Long, [CODE, "yes<|end|>"], tool_output_chars=20)
    text = ByteTokenizer().decode(episode.segments[0].token_ids)
    shown = "aaaaaaaaaa\n[... 40 of 60 characters left out ...]\nbbbbbbbbbb"
    assert f"<interpreter>\n{shown}\n</interpreter>" in text
    assert episode.tool_calls[0].result == shown


async def test_turns_run_out() -> None:
    episode = await play(Words, [CODE])
    assert (episode.stop_reason, len(episode.turns), episode.reward) == (StopReason.MAX_TURNS, 3, 0.0)
    # The last call is never run: nobody could read its result.
    assert len(episode.tool_calls) == 2


async def test_a_truncated_episode_gets_the_lowest_reward() -> None:
    episode = await play(Words, ["no end"], max_tokens=3)
    assert (episode.stop_reason, episode.reward, episode.answer) == (StopReason.MAX_TOKENS, 0.0, None)


async def test_tool_output_that_does_not_fit_ends_the_episode() -> None:
    episode = await play(Words, [CODE], context_tokens=len(CODE) + 10)
    assert episode.stop_reason is StopReason.CONTEXT_FULL
    assert episode.failure is None


async def test_a_context_too_short_for_the_prompt_is_a_failure_that_says_so() -> None:
    episode = await play(Words, ["x"], context_tokens=10, row={"problem": "long " * 10, "answer": ""})
    assert episode.failure is not None
    assert episode.failure.boundary == "policy"
    assert "has 51 tokens and the context holds 10" in episode.failure.message


class Raises(Words):
    def reward(self, row: Any, answer: str | None) -> float:
        raise KeyError("gold")


class OutOfRange(Words):
    def reward(self, row: Any, answer: str | None) -> float:
        return 3.0


class SandboxGone(Words):
    @tool
    async def python(self, code: str) -> str:
        "Run Python."
        raise SandboxFailure("the jail's zygote died")


class Never(Words):
    async def setup(self) -> None:
        await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("env", "boundary", "message"),
    [
        (Raises, "env", "gold"),
        (OutOfRange, "env", r"outside reward_range \(0, 1\)"),
        (SandboxGone, "sandbox", "zygote died"),
    ],
)
async def test_what_breaks_becomes_a_failure_and_never_a_reward(
    env: type[Env], boundary: str, message: str
) -> None:
    import re

    episode = await play(env, [CODE, "yes<|end|>"])
    assert episode.failure is not None
    assert episode.failure.boundary == boundary
    assert re.search(message, episode.failure.message)
    assert episode.reward is None


async def test_an_environment_that_never_returns_fails_with_its_name() -> None:
    episode = await play(Never, ["x"], limit_s=0.2)
    assert episode.failure is not None
    assert episode.failure.error == "StallError"
    assert "for the environment" in episode.failure.message


async def test_a_row_without_the_field_is_a_failure() -> None:
    class Needs(Words):
        required_fields = ("answer",)

    episode = await play(Needs, ["x"], row={"problem": "p", "gold": 1})
    assert episode.failure is not None
    assert "needs the field 'answer'" in episode.failure.message


class Ends(Words):
    @tool
    async def python(self, code: str) -> str:
        "Run Python."
        raise Finish(reward=0.5)


async def test_finish_ends_the_episode_with_its_reward() -> None:
    episode = await play(Ends, [CODE])
    assert (episode.stop_reason, episode.reward) == (StopReason.FINISHED, 0.5)


class Talks(Words):
    async def reply(self, message: str) -> str | None:
        return None if message == "yes" else "are you sure?"


async def test_reply_answers_a_turn_without_a_call() -> None:
    episode = await play(Talks, ["perhaps<|end|>", "yes<|end|>"])
    assert [turn.text for turn in episode.turns] == ["perhaps", "yes"]
    assert episode.reward == 1.0


class Rewards(Words):
    @tool
    async def python(self, code: str) -> str:
        "Run Python."
        self.reward_turn(0.25)
        self.reward_turn(0.5)
        return "out"

    def reply(self, message: str) -> str | None:
        if message == "yes":
            return None
        self.reward_turn(-1.0)
        return "are you sure?"

    def reward(self, row: Any, answer: str | None) -> float:
        self.reward_turn(2.0, turn=3)
        return float(answer == row["answer"])


async def test_an_environment_rewards_single_turns() -> None:
    episode = await play(Rewards, [CODE, "perhaps<|end|>", CODE, "yes<|end|>"], max_turns=4)
    # What a turn is given adds up; the episode's own reward is not among it.
    assert [turn.reward for turn in episode.turns] == [0.75, -1.0, 0.75, 2.0]
    assert episode.reward == 1.0
    plain = await play(Words, [CODE, "yes<|end|>"])
    assert [turn.reward for turn in plain.turns] == [None, None]


async def test_a_reward_of_a_turn_that_is_none_is_a_failure() -> None:
    class Wrong(Rewards):
        def reward(self, row: Any, answer: str | None) -> float:
            self.reward_turn(float("nan"))
            return 0.0

    episode = await play(Wrong, ["yes<|end|>"])
    assert episode.failure is not None
    assert "Wrong.reward_turn was given nan; want a finite number" in episode.failure.message
    episode = await play(Rewards, ["yes<|end|>"])
    assert episode.failure is not None
    assert "there is no turn 3; the model has written 1" in episode.failure.message


async def test_cancellation_passes_and_the_environment_is_closed() -> None:
    class Closes(Words):
        closed = 0

        @tool
        async def python(self, code: str) -> str:
            "Run Python."
            await asyncio.sleep(3600)
            return ""

    task = asyncio.ensure_future(play(Closes, [CODE]))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Closes.closed == 1


async def test_an_episode_reads_back_bit_for_bit() -> None:
    import json

    episode = await play(Words, [{CODE: 0.3, "yes<|end|>": 0.7}, "yes<|end|>"])
    again = Episode.from_json(json.loads(json.dumps(episode.to_json())))
    assert again == episode


def completer(replies: Any, **settings: Any) -> TokenCompleter:
    policy = ScriptedPolicy(replies, tokenizer=ByteTokenizer(), context_tokens=200)
    renderer = make_renderer(ByteTokenizer(), "code", instructions="")
    dispatch = Dispatch("t0", 0, "p0", 0, seed=1)
    return TokenCompleter(policy, renderer, dispatch, RolloutSettings(**settings), Decoding())


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def test_a_conversation_that_does_not_go_on_from_a_known_one_opens_a_segment() -> None:
    # Fails when `_continued` appends whatever comes to the newest segment.
    speaks = completer(["one<|end|>", "two<|end|>", "three<|end|>", "four<|end|>"])
    first = await speaks.complete([user("a")], ())
    second = await speaks.complete([user("a"), first.message, user("b")], ())
    edited = await speaks.complete([user("a"), {"role": "assistant", "content": "none"}, user("b")], ())
    back = await speaks.complete([user("a"), first.message, user("b"), second.message, user("c")], ())
    assert [reply.segment for reply in (first, second, edited, back)] == [0, 0, 1, 0]
    texts = [ByteTokenizer().decode(segment.token_ids) for segment in speaks.segments()]
    assert texts[0] == "a\none<|end|>\nb\ntwo<|end|>\nc\nfour<|end|>"
    assert texts[1] == "a\nnone\nb\nthree<|end|>"
    for reply in (first, second, edited, back):
        segment, (start, end) = speaks.segments()[reply.segment], reply.span
        assert ByteTokenizer().decode(segment.token_ids[start:end]) == f"{reply.text}<|end|>"
        assert set(segment.loss_mask[start:end]) == {1}
    assert [segment.num_sampled for segment in speaks.segments()] == [13, 6]


async def test_the_same_conversation_asked_twice_is_sampled_twice() -> None:
    speaks = completer(["one<|end|>", "two<|end|>"])
    assert [(await speaks.complete([user("a")], ())).segment for _ in range(2)] == [0, 1]


async def test_what_could_not_be_answered_is_asked_again_without_being_added_twice() -> None:
    # Fails when a second attempt appends the user's message once more.
    speaks = completer(["one<|end|>", "two<|end|>"])
    first = await speaks.complete([user("a")], ())
    asked = [user("a"), first.message, user("b")]
    generate, speaks.policy.generate = speaks.policy.generate, None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        await speaks.complete(asked, ())
    speaks.policy.generate = generate  # type: ignore[method-assign]
    assert (await speaks.complete(asked, ())).segment == 0
    (segment,) = speaks.segments()
    assert ByteTokenizer().decode(segment.token_ids) == "a\none<|end|>\nb\ntwo<|end|>"


async def test_the_tokens_of_an_episode_are_those_of_all_its_segments() -> None:
    speaks = completer(["x" * 50], max_tokens=80)
    replies = [await speaks.complete([user(text)], ()) for text in "ab"]
    assert [(len(reply.text), reply.cut) for reply in replies] == [(50, None), (30, StopReason.MAX_TOKENS)]
    with pytest.raises(Exhausted) as stopped:
        await speaks.complete([user("c")], ())
    assert stopped.value.reason is StopReason.MAX_TOKENS
