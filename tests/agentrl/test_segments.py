"""Episodes of several segments from an environment: sub-agents, compaction, games of two agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.algorithms.advantage import CreditBatch
from agentrl.algorithms.agent_credit import AgentEstimator
from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode, StopReason
from agentrl.errors import PolicyUnavailable
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.learner.batch import build_sequences, spread
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, load_env, tool
from tests.agentrl.inference.faulty_endpoint import completion, serving

EXAMPLES = Path(__file__).parents[2] / "examples" / "agents"
CALL = "<code>\n1\n</code>"


async def play(
    env: Any, replies: Any, *, row: Any = None, context_tokens: int = 1 << 16, **settings: Any
) -> Episode:
    return await run_episode(
        lambda: env(),
        ScriptedPolicy(replies, tokenizer=ByteTokenizer(), context_tokens=context_tokens),
        make_renderer(ByteTokenizer(), "code", instructions=""),
        row=row or {"answer": "yes"},
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(**settings),
    )


def texts(episode: Episode) -> list[str]:
    return [ByteTokenizer().decode(segment.token_ids) for segment in episode.segments]


class Helped(Env):
    def prompt(self, row: Any) -> str:
        return "p"

    @tool
    async def python(self, code: str) -> str:
        "Ask a helper."
        return await self.agent("sub", name="helper")

    def reward(self, row: Any, answer: str | None) -> bool:
        self.reward_agent("helper", 0.25)
        return answer == row["answer"]


async def test_a_sub_agent_has_a_segment_and_a_reward_of_its_own() -> None:
    # Fails when `_matched` does not look at the agent, or when the helper's turns take the record of the call.
    episode = await play(Helped, [CALL, "I helped<|end|>", "yes<|end|>"])
    assert (episode.failure, episode.reward, episode.stop_reason) == (None, 1.0, StopReason.ANSWERED)
    assert texts(episode) == [
        f"p\n{CALL}<interpreter>\nI helped\n</interpreter>\n\nyes<|end|>",
        "sub\nI helped<|end|>",
    ]
    assert [segment.agent for segment in episode.segments] == ["agent", "helper"]
    assert [(t.segment, [c.result for c in t.tool_calls]) for t in episode.turns] == [
        (0, ["I helped"]),
        (1, []),
        (0, []),
    ]
    assert (dict(episode.counts), dict(episode.agent_rewards)) == ({"agents": 1}, {"helper": 0.25})
    assert Episode.from_json(episode.to_json()) == episode
    # Each sampled token is learned from once.
    assert sum(len(one.positions) for one in build_sequences([episode])) == episode.num_sampled


async def test_an_unknown_tool_of_a_sub_agent_is_named() -> None:
    class Wrong(Helped):
        @tool
        async def python(self, code: str) -> str:
            "Ask a helper."
            return await self.agent("sub", tools=["shoot"])

    episode = await play(Wrong, [CALL])
    assert episode.failure is not None
    assert "Wrong has no tool 'shoot'; it has: python" in episode.failure.message


async def test_a_broken_engine_of_a_sub_agent_fails_the_episode_although_the_tool_hides_it() -> None:
    # Fails when the loop does not look at what broke (`Conversation.whole`).
    class Hides(Helped):
        @tool
        async def python(self, code: str) -> str:
            "Ask a helper."
            try:
                return await self.agent("sub", name="helper")
            except Exception:
                return "all is well"

    def script(request: Any) -> str:
        if request.call == 1:
            raise PolicyUnavailable("the engine died")
        return CALL if request.call == 0 else "yes<|end|>"

    episode = await play(Hides, script)
    assert episode.failure is not None
    assert (episode.failure.boundary, episode.failure.error) == ("policy", "PolicyUnavailable")


class Reads(Env):
    max_turns = 8

    def prompt(self, row: Any) -> str:
        return "Read."

    @tool
    def python(self, code: str) -> str:
        "Read a page."
        return "page " * 20

    def reward(self, row: Any, answer: str | None) -> bool:
        return answer == "yes"


READING = [CALL, CALL, CALL, CALL, "yes<|end|>"]


async def test_without_compaction_a_long_conversation_ends() -> None:
    assert (await play(Reads, READING, context_tokens=400)).stop_reason is StopReason.CONTEXT_FULL


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("drop", "earlier messages were left out"),
        ("truncate", "earlier messages were left out"),
    ],
)
async def test_compaction_lets_it_go_on(how: str, shown: str) -> None:
    episode = await play(Reads, READING, context_tokens=600, compact=how)
    assert (episode.stop_reason, episode.reward) == (StopReason.ANSWERED, 1.0)
    assert len(episode.segments) == 1 + episode.counts["compactions"]
    assert shown in texts(episode)[-1]
    assert max(map(len, episode.segments)) <= 600
    assert sum(len(one.positions) for one in build_sequences([episode])) == episode.num_sampled


async def test_old_tool_output_is_cut() -> None:
    class Long(Reads):
        @tool
        def python(self, code: str) -> str:
            "Read a page."
            return "page " * 60

    episode = await play(Long, READING, context_tokens=1000, compact="truncate")
    assert episode.reward == 1.0
    assert "[... the rest of 300 characters was left out ...]" in texts(episode)[-1]


async def test_the_policy_writes_a_summary_of_its_own() -> None:
    def script(request: Any) -> str:
        if "about to be shortened" in request.prompt[-400:]:
            return "I read two pages.<|end|>"
        return "yes<|end|>" if "What was found out" in request.prompt else CALL

    episode = await play(Reads, script, context_tokens=800, compact="summarise", compact_at=0.4)
    assert (episode.reward, episode.counts["compactions"], len(episode.segments)) == (1.0, 1, 2)
    # The summary goes on from the tokens of the conversation, and the next one from the summary.
    assert texts(episode)[0].endswith("I read two pages.<|end|>")
    assert texts(episode)[1] == "Read.\n\nWhat was found out and done so far:\nI read two pages.\nyes<|end|>"


async def test_an_environment_decides_itself() -> None:
    row = {"id": "two", "numbers": {"page2": 17, "page5": 25}}
    env = load_env(EXAMPLES / "compacting_researcher.py")
    calls = [f"<code>\npage{n}\n</code>" for n in range(1, 7)]
    episode = await play(env, [*calls, "42<|end|>"], row=row, context_tokens=1400)
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert episode.counts["compactions"] >= 1
    assert len(episode.segments) == 1 + episode.counts["compactions"]
    assert "found so far: page2: 17" in texts(episode)[-1]


async def test_two_agents_play_each_other() -> None:
    row = {"id": "lamp", "worth": 80, "cost": 20}
    env = load_env(EXAMPLES / "two_agent_game.py")
    said = ["90", "30", "70", "70"]
    episode = await play(env, [f"{one}<|end|>" for one in said], row=row)
    assert (episode.failure, episode.reward, episode.answer) == (None, 1.0, "70")
    # (70 - 20) / 60 and (80 - 70) / 60
    assert episode.agent_rewards == pytest.approx({"seller": 50 / 60, "buyer": 10 / 60})
    assert [segment.agent for segment in episode.segments] == ["seller", "buyer"]
    assert [turn.segment for turn in episode.turns] == [0, 1, 0, 1]


async def test_a_partner_at_an_endpoint_is_not_trained() -> None:
    class Talks(Env):
        def prompt(self, row: Any) -> str:
            return "hello"

        async def reply(self, message: str) -> str | None:
            if message == "yes":
                return None
            return await self.speaker.partner([{"role": "user", "content": message}])

        def reward(self, row: Any, answer: str | None) -> bool:
            return answer == "yes"

    async with serving(completion("are you sure?")) as endpoint:
        settings = {"partner_url": endpoint.url, "partner_model": "m"}
        episode = await play(Talks, ["no<|end|>", "yes<|end|>"], **settings)
    assert (episode.failure, episode.reward, episode.counts["partner_messages"]) == (None, 1.0, 1)
    assert texts(episode) == ["hello\nno<|end|>\nare you sure?\nyes<|end|>"]
    alone = await play(Talks, ["no<|end|>"])
    assert alone.failure is not None
    assert "set rollout.partner_url" in alone.failure.message


async def test_each_agent_is_credited_with_its_own_reward_by_hand() -> None:
    one = await play(Helped, [CALL, "I helped<|end|>", "yes<|end|>"])
    two = await play(Helped, [CALL, "I helped<|end|>", "no<|end|>"])
    object.__setattr__(two, "agent_rewards", {"helper": 0.75})
    estimator = AgentEstimator(AgentEstimator.Settings(normalise="none"))
    batch = CreditBatch(np.array([1.0, 0.0]), np.array([0.5, 0.5]), episodes=(one, two))
    given: Any = estimator(batch)
    # Segments of several lengths are no array: fails where their shape is asked of NumPy.
    sequences = build_sequences(batch.episodes)
    assert [float(one[0]) for one in spread(given, batch.episodes, sequences)] == [0.5, -0.5, -0.5, 0.5]
    # The agent: 1 - .5 and 0 - .5. The helper: .25 less the other's .75, and the other way round.
    assert [[float(segment[0]) for segment in episode] for episode in given] == [[0.5, -0.5], [-0.5, 0.5]]
    assert [[len(segment) for segment in episode] for episode in given] == [
        [len(segment) for segment in episode.segments] for episode in (one, two)
    ]


async def test_an_episode_holds_keys_of_one_conversation_at_a_time() -> None:
    # Fails without the release in `_generate`: a deterministic engine, whose sessions wait for rows, waits for ever.
    released: list[str] = []
    policy = ScriptedPolicy([CALL, "I helped<|end|>", "yes<|end|>"], tokenizer=ByteTokenizer())
    release = policy.release

    async def told(session: str) -> None:
        released.append(session)
        await release(session)

    policy.release = told  # type: ignore[method-assign]
    await run_episode(
        Helped,
        policy,
        make_renderer(ByteTokenizer(), "code", instructions=""),
        row={"answer": "yes"},
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(),
    )
    # Before the helper speaks, before the agent goes on, and at the end.
    assert released == ["t0", "t0/1", "t0", "t0/1"]
