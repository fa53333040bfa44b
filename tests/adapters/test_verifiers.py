"""Environments of the real verifiers library, 0.2 line: its rollouts and its rubrics, our tokens."""

from __future__ import annotations

import asyncio
import functools
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("verifiers", "make test-agents installs it")

from agentrl.cli.main import main
from agentrl.config.settings import EnvSettings, RolloutSettings
from agentrl.episode import StopReason
from agentrl.tasks.task import Task, env_class
from agentrl_envs import load_env
from agentrl_envs.errors import EnvError, EnvNotFound, SettingsError
from tests.adapters.playing import END, Thinking, Tokenizer, play, shown, tool_call

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


async def test_equal_messages_keep_their_own_tokens() -> None:
    """verifiers sees the same text three times; the thoughts before it differ."""
    env, renderer = env_of(kind="guessing"), Thinking(Tokenizer())
    thoughts = ("low", "lower", "lowest")
    script = [*(f"<think>{n}</think>2?{END}" for n in thoughts), f"<think>up</think>4?{END}"]
    shot = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2?"}]
    for prompt in ([], shot):
        row = {**row_of(env), "prompt": [*prompt, {"role": "user", "content": "2 + 2?"}]}
        episode = await play(env, row, script, renderer=renderer)
        assert (episode.failure, len(episode.turns), len(episode.segments)) == (None, 4, 1)


async def test_an_edited_result_is_shown_as_edited() -> None:
    env = env_of(kind="forgetful")
    calls = [tool_call("add", first=20, second=n) for n in (1, 2)]
    episode = await play(env, row_of(env), [*calls, f"4{END}"])
    assert episode.failure is None
    last = Tokenizer().decode(episode.segments[-1].token_ids)
    assert ("21" in last, "(left out)" in last, "22" in last) == (False, True, True)


@pytest.mark.parametrize("kind", ["meeting", "meeting_tools", "grouped_meeting"])
async def test_what_blocks_in_one_rollout_stops_no_other(kind: str) -> None:
    """Three rollouts meet at a barrier inside of a sync function; one after another they would not."""
    env = env_of(kind=kind)
    row = row_of(env)
    script = [*([tool_call("meet")] if kind == "meeting_tools" else []), f"4{END}"]
    episodes = await asyncio.gather(*(play(env, row, script) for _ in range(3)))
    assert [(one.failure, one.reward) for one in episodes] == [(None, 0.5)] * 3
    results = [call.result for one in episodes for turn in one.turns for call in turn.tool_calls]
    assert results == (["met"] * 3 if kind == "meeting_tools" else [])


async def test_a_coroutine_that_blocks_holds_up_the_rollouts_of_its_own_loop_alone() -> None:
    """Three rollouts meet at a barrier inside of a coroutine; in one loop none would ever come through."""
    env = env_of(kind="blocking")
    row = row_of(env)
    three = functools.partial(env, loops=3)
    episodes = await asyncio.gather(*(play(three, row, [f"4{END}"]) for _ in range(3)))
    assert [(one.failure, one.reward) for one in episodes] == [(None, 0.5)] * 3


async def test_a_connection_of_another_thread_is_no_error_of_the_model() -> None:
    env = env_of(kind="looking_up")
    episode = await play(env, row_of(env), [tool_call("look_up"), f"4{END}"])
    assert "can only be used in that same thread" in str(episode.failure)


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
    among = env_of(kind="grouped_judged")
    lost = await play(among, row_of(among), [f"4{END}"])
    assert "the judge does not answer" in str(lost.failure), "nor is one of an environment in a group"
    leaving = env_of(kind="leaving")
    left = await play(leaving, row_of(leaving), [f"4{END}"])
    assert (left.failure, left.reward, left.counts["verifiers/reward_errors"]) == (None, 0.0, 1)


async def test_signals_are_the_runs_and_an_environment_can_be_made_in_any_thread() -> None:
    """A run in a notebook has its loop in a thread of its own."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]
    env = env_of(timeout_seconds=71)
    there = await asyncio.to_thread(env_of, timeout_seconds=72)
    assert [signal.getsignal(kind) for kind in kinds] == before
    for one in (env, there):
        episode = await play(one, row_of(one), [f"It is 4{END}"])
        assert (episode.failure, episode.reward) == (None, 1.0)


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


async def test_arguments_are_those_of_the_episode_and_read_from_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keyed.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(Path(TASKS).parent)!r})\n"
        "import vf_tasks\n"
        "def load_environment(judge_api_key, kind='single'):\n"
        "    assert judge_api_key == 'the key', judge_api_key\n"
        "    return vf_tasks.load_environment(kind)\n"
    )
    monkeypatch.setenv("JUDGE_KEY", "the key")
    written = EnvSettings(name=f"verifiers:{file}", settings={"arguments": {"judge_api_key": "$JUDGE_KEY"}})
    env = env_class(written.name, written.settings, written)
    row = row_of(env)
    task = Task(written.name, env, env.check_settings(written.settings), 1.0, (row,))
    episode = await play(lambda: task.make(None, None), row, [f"It is 4{END}"])
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert "the key" not in repr(vars(env)) + repr(task)
