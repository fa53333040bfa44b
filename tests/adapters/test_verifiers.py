"""Environments of the real verifiers library, 0.2 line: its rollouts and its rubrics, our tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers", reason="make test-agents installs it")

from agentrl.cli.main import main
from agentrl.config.settings import RolloutSettings
from agentrl.episode import StopReason
from agentrl_envs import load_env
from agentrl_envs.errors import EnvError, EnvNotFound, SettingsError
from tests.adapters.playing import END, play, shown, tool_call

pytestmark = pytest.mark.filterwarnings("ignore")
TASKS = str(Path(__file__).parent / "vf_tasks.py")


def env_of(**arguments: Any) -> Any:
    return load_env(f"verifiers:{TASKS}", {"arguments": arguments})


def row_of(env: Any) -> dict[str, Any]:
    return env.generate_rows(2, split="train")[1]


async def test_a_single_turn_is_rewarded_by_its_rubric() -> None:
    env = env_of()
    right = await play(env, row_of(env), [f"It is 4{END}"])
    long = await play(env, row_of(env), [f"After long thought I say 4{END}"])
    wrong = await play(env, row_of(env), [f"I do not know at all, sorry{END}"])
    assert [one.failure for one in (right, long, wrong)] == [None] * 3
    assert [one.reward for one in (right, long, wrong)] == [1.0, 0.5, 0.0]
    assert right.answer == "It is 4"
    assert shown(right).startswith(f"[system]Be brief.{END}[user]2 + 2?{END}[assistant]It is 4")


async def test_tools_are_called_in_one_segment_of_exact_tokens() -> None:
    env = env_of(kind="tools")
    calls = [
        tool_call("add", first=2, second=2),
        tool_call("add", first=-1, second=2),
        tool_call("add", first="x"),
    ]
    episode = await play(env, row_of(env), [*calls, f"It is 4{END}"])
    assert (episode.failure, episode.reward, len(episode.turns), len(episode.segments)) == (None, 1.0, 4, 1)
    assert [turn.tool_calls[0].result for turn in episode.turns[:2]] == ["4", "no negative numbers"]
    [segment] = episode.segments
    said = bytes(t for t, own in zip(segment.token_ids, segment.loss_mask, strict=True) if own and t < 256)
    assert said.decode() == "".join([*calls, "It is 4"]).replace(END, "")


async def test_several_turns_and_their_end() -> None:
    env = env_of(kind="guessing")
    episode = await play(env, row_of(env), [f"2?{END}", f"3?{END}", f"4?{END}"])
    assert (episode.failure, episode.reward, len(episode.turns), len(episode.segments)) == (None, 1.0, 3, 1)
    lost = await play(env, row_of(env), [f"2?{END}", f"lost{END}"])
    assert lost.failure is not None
    assert "the game's machine is gone" in lost.failure.message
    slow = env_of(kind="guessing", timeout_seconds=1e-9)
    assert "did not end within its own" in str((await play(slow, row_of(slow), [f"2?{END}"])).failure)


async def test_a_limit_of_the_episode_ends_the_rollout() -> None:
    env = env_of(kind="guessing")
    few = load_env(f"verifiers:{TASKS}", {"arguments": {"kind": "guessing"}, "max_turns": 2})
    episode = await play(lambda **given: few(max_turns=2, **given), row_of(env), [f"2?{END}"])
    assert (episode.failure, episode.reward, len(episode.turns)) == (None, 0.0, 2)
    cut = await play(env, row_of(env), ["2" * 50], limits=RolloutSettings(max_tokens=20))
    assert (cut.failure, cut.reward, len(cut.turns), cut.stop_reason) == (None, 0.0, 1, StopReason.MAX_TOKENS)


async def test_a_reward_function_that_raises() -> None:
    careless, judged = env_of(kind="careless"), env_of(kind="judged")
    wrong = await play(careless, row_of(careless), [f"four{END}"])
    assert (wrong.failure, wrong.reward, wrong.counts["verifiers/reward_errors"]) == (None, 0.0, 1)
    lost = await play(judged, row_of(judged), [f"4{END}"])
    assert "the judge does not answer" in str(lost.failure), "a judge out of reach is no reward of 0"


def test_rows_are_the_environments_own() -> None:
    env = env_of()
    assert [row["id"] for row in env.generate_rows(5, split="train")] == [f"train-{n}" for n in range(5)]
    assert env.generate_rows(5, split="train", seed=1) != env.generate_rows(5, split="train")
    assert [row["answer"] for row in env.generate_rows(1, split="test")] == ["18"]
    with pytest.raises(SettingsError, match="has 5 rows for 'train', and 6 are wanted"):
        env.generate_rows(6, split="train")
    with pytest.raises(SettingsError, match="no evaluation set"):
        env_of(held_out=False).generate_rows(1, split="test")


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("no-such-env", {}, EnvNotFound, "Could not import 'no-such-env'"),
        ("no_such.py", {}, EnvNotFound, "no file no_such.py"),
        (str(Path(__file__).parent / "playing.py"), {}, EnvNotFound, "no function load_environment"),
        (TASKS, {"arguments": {"kind": "grouped"}}, EnvError, "rewards groups"),
        (TASKS, {"argument": {}}, SettingsError, "did you mean 'arguments'"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, settings: Any, kind: type[EnvError], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_env(f"verifiers:{name}", settings)


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    careless = ["--env.settings.arguments.kind=careless", "--truth-reward", "0.5"]
    assert main(["check", f"verifiers:{TASKS}", *careless]) == 0, capsys.readouterr().out
    capsys.readouterr()
    assert main(["check", f"verifiers:{TASKS}"]) == 1
    assert "answer None: reward 0.5, want 0" in capsys.readouterr().out, (
        "it pays short answers, empty ones too"
    )
