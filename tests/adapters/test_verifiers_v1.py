"""Tasksets of the real verifiers library, 0.4 line: its harness and its rewards, our tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("verifiers.v1", "make test-agents installs it")

from agentrl.config.settings import EnvSettings, RolloutSettings
from agentrl.episode import StopReason
from agentrl.tasks.task import env_class
from agentrl_envs import load_env
from agentrl_envs.errors import EnvError, EnvNotFound, SettingsError
from tests.adapters.playing import END, play, shown, tool_call

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(400), pytest.mark.slow]
TASKS = str(Path(__file__).parent / "vf1_tasks.py")


def env_of(**settings: Any) -> Any:
    return load_env(f"verifiers:{TASKS}", settings)


def rows_of(env: Any, count: int = 2) -> list[Any]:
    return env.generate_rows(count, split="train")


def given(env: Any, settings: dict[str, Any]) -> Any:
    return lambda **more: env(**settings, **more)


async def test_its_harness_plays_with_exact_tokens_and_its_reward_counts() -> None:
    env = env_of()
    row = rows_of(env)[1]
    assert (row["prompt"], row["task"]["answer"]) == ("2 + 2?", "4")
    calls = [tool_call("tools_add", first=2, second=2), tool_call("tools_add", first=1, second=3)]
    right = await play(env, row, [*calls, f"It is 4{END}"])
    assert (right.failure, right.reward, len(right.turns), len(right.segments)) == (None, 1.0, 3, 1)
    assert right.answer == "It is 4"
    assert [turn.tool_calls[0].result for turn in right.turns[:2]] == ["4", "4"]
    assert (right.counts["gateway/requests"], right.counts["gateway/extended"]) == (3, 2)
    assert "Add two numbers." in shown(right)
    [segment] = right.segments
    said = bytes(t for t, own in zip(segment.token_ids, segment.loss_mask, strict=True) if own and t < 256)
    assert said.decode() == "".join([*calls, "It is 4"]).replace(END, "")
    wrong = await play(env, row, [f"I do not know{END}"])
    assert (wrong.failure, wrong.reward) == (None, 0.0)


async def test_what_fails_is_no_reward_and_a_limit_ends_it() -> None:
    env = env_of(arguments={"task": {"fails": True}})
    lost = await play(given(env, {"arguments": {"task": {"fails": True}}}), rows_of(env)[1], [f"4{END}"])
    assert "the judge does not answer" in str(lost.failure)
    plain = env_of()
    cut = await play(plain, rows_of(plain)[1], ["2" * 50], limits=RolloutSettings(max_tokens=20))
    assert (cut.failure, cut.reward, cut.stop_reason) == (None, 0.0, StopReason.MAX_TOKENS)


async def test_in_a_process_of_its_own() -> None:
    env = env_class(f"verifiers:{TASKS}", {}, EnvSettings(isolation="process"))
    row = env.generate_rows(2, split="train")[1]
    episode = await play(env, row, [tool_call("tools_add", first=2, second=2), f"It is 4{END}"])
    assert (episode.failure, episode.reward, len(episode.turns), len(episode.segments)) == (None, 1.0, 2, 1)


def test_rows_never_share_a_task() -> None:
    env = env_of(arguments={"count": 20})
    train = [row["prompt"] for row in env.generate_rows(18, split="train")]
    test = [row["prompt"] for row in env.generate_rows(2, split="test")]
    assert test == ["10 + 10?", "20 + 20?"]
    assert not set(train) & set(test)
    with pytest.raises(SettingsError, match="has 2 tasks for 'test', and 3 are wanted"):
        env.generate_rows(3, split="test")


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("no-such-taskset", {}, EnvNotFound, "no-such-taskset"),
        ("no_such.py", {}, EnvNotFound, "no file no_such.py"),
        (TASKS, {"arguments": {"counts": 3}}, EnvError, "counts"),
        (TASKS, {"harness": "bash"}, EnvError, "runs what the model writes: set runtime to docker"),
        (TASKS, {"harness": "nothing"}, EnvNotFound, "nothing"),
        (TASKS, {"loop": 2}, SettingsError, "did you mean 'loops'"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, settings: Any, kind: type[EnvError], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_env(f"verifiers:{name}", settings)
