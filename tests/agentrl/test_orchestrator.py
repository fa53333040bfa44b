"""The loop as a whole, with a scripted policy and an exact learner."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from agentrl.algorithms.advantage import advantages, normalise
from agentrl.config.loading import load_settings
from agentrl.episode import Episode
from agentrl.errors import AgentRLError, ConfigError, DiskError, Interrupted, LearnerError, StallError
from agentrl.inference.engines import check_engine
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.storage.checkpoint import checkpoint_folders
from agentrl.storage.ledger import State
from agentrl.storage.metrics import read_metrics
from agentrl.storage.recorder import read_episodes
from agentrl.storage.run_folder import RunFolder
from agentrl.training.dispatcher import Dispatcher
from agentrl.training.drift_replay import DriftReplay
from agentrl.training.resume import resume
from agentrl.weights.handle import WeightHandle
from agentrl_envs import Env
from tests.agentrl.conftest import ArithmeticLearner, Echo, default_script, make_loop

if TYPE_CHECKING:
    from agentrl.training.learner_thread import AsyncLearner


async def test_a_run_learns_from_every_episode_it_dispatched(new_loop: Callable[..., Any]) -> None:
    run = await new_loop()
    await run.orchestrator.run()
    ledger = run.orchestrator.parts.ledger
    assert ledger.summary() == {"learned": 32}
    assert [len(batch) for batch in run.learner.batches] == [8, 8, 8, 8]
    rows = read_metrics(run.folder.metrics)
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4]
    await run.close()


class Updated(ScriptedPolicy):
    """Remembers the versions that it took."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.taken: list[int] = []

    async def load(self, weights: WeightHandle) -> None:
        self.taken.append(weights.version)
        await super().load(weights)


def updated() -> Updated:
    return Updated(default_script, tokenizer=ByteTokenizer(), seed=0)


async def test_engines_are_updated_every_k_steps(new_loop: Callable[..., Any]) -> None:
    flags = ("--run.steps=6", "--learner.publish_every=2", "--stream.stale_policy=wait")
    run = await new_loop(*flags, policy=updated())
    await run.orchestrator.run()
    assert run.policy.taken == [2, 4, 6]
    rows = [row for row in read_metrics(run.folder.metrics) if row["kind"] == "step"]
    assert [row["publish_s"] > 0 for row in rows] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]  # by the step before
    # The hard bound counts from what sampled the tokens: versions 0, 2 and 4, at steps one later at most.
    assert {age for row in rows for age in row["staleness"]} <= {"0", "1"}
    ids = [key for batch in run.learner.batches for key in batch]
    episodes = read_episodes(run.folder.episodes, set(ids))
    for episode in episodes:
        sampled = {
            int(version) for part in episode.segments for version in part.policy_versions if version >= 0
        }
        assert min(sampled) == episode.start_version
        assert sampled <= {0, 2, 4}
    assert len(ids) == 48
    await run.close()


async def test_a_version_that_is_evaluated_is_published(new_loop: Callable[..., Any]) -> None:
    flags = ("--run.steps=5", "--learner.publish_every=2", "--eval.every=3")
    run = await new_loop(*flags, policy=updated(), held_out=[{"id": "ab", "word": "ab"}])
    await run.orchestrator.run()
    assert run.policy.taken == [2, 3, 4, 5]
    rows = [row for row in read_metrics(run.folder.metrics) if row["kind"] == "eval"]
    assert [row["version"] for row in rows] == [0, 3, 5]
    await run.close()


async def test_a_resumed_run_publishes_where_it_goes_on(
    new_loop: Callable[..., Any], reopen: Callable[..., Any]
) -> None:
    flags = ("--run.steps=6", "--learner.publish_every=2", "--checkpoint.every=2")

    async def killed() -> None:
        if len(learner.batches) == 3:
            raise LearnerError("killed here")

    learner = ArithmeticLearner(seconds=lambda: killed())
    run = await new_loop(*flags, policy=updated(), learner=learner)
    with pytest.raises(LearnerError):
        await run.orchestrator.run()
    assert run.policy.taken == [2]
    await run.close()
    again = await reopen(*flags, policy=updated())
    await resume(again.orchestrator)
    # The learner is at 3, and so is the engine: no episode of this attempt begins under an older version.
    assert again.policy.taken == [3]
    assert again.orchestrator.buffer.published == 3
    await again.orchestrator.run()
    assert again.policy.taken == [3, 4, 6]
    assert again.orchestrator.parts.ledger.summary() == {"learned": 48}
    await again.close()


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        (("--stream.staleness=1",), "stream.staleness = 1 allows 1"),
        (("--run.deterministic=true",), "allows 0"),
    ],
)
def test_engines_that_would_be_too_far_behind_are_refused(flags: tuple[str, ...], allowed: str) -> None:
    with pytest.raises(
        ConfigError, match=f"learner.publish_every = 3 makes episodes 2 versions old .*{allowed}"
    ):
        load_settings(None, ["--learner.publish_every=3", *flags])
    assert (
        load_settings(None, ["--learner.publish_every=3", "--stream.staleness=2"]).learner.publish_every == 3
    )


async def test_all_baselines_are_read_before_any_reward_of_the_batch_is_folded(
    new_loop: Callable[..., Any],
) -> None:
    # Fails when `_fold` is called before `_advantages` in `Orchestrator._one_step`.
    run = await new_loop("--run.steps=1", "--run.deterministic=true")
    seen: list[np.ndarray] = []
    step = run.learner.step

    async def spy(episodes: Any, given: np.ndarray, *, clock_tokens: int) -> Any:
        seen.append(given)
        scores = [episode.score for episode in episodes]
        # Nothing was folded yet, so every baseline is the value of a prompt never seen: 1/2.
        np.testing.assert_allclose(given, normalise(advantages(scores, [0.5] * 8), 0.1))
        return await step(episodes, given, clock_tokens=clock_tokens)

    run.learner.step = spy
    await run.orchestrator.run()
    assert len(seen) == 1
    await run.close()


async def test_deterministic_runs_are_equal(new_loop: Callable[..., Any]) -> None:
    digests = []
    for name in ("one", "two"):
        run = await new_loop("--run.deterministic=true", name=name)
        await run.orchestrator.run()
        digests.append(run.learner.digest)
        await run.close()
    assert digests[0] == digests[1]


class Broken(Env):
    """Raises in its reward."""

    def prompt(self, row: Any) -> str:
        return row["word"]

    def reward(self, row: Any, answer: str | None) -> bool:
        raise RuntimeError("no idea")


def test_a_loss_that_needs_likeliest_tokens_is_refused_where_an_engine_gives_none() -> None:
    settings = load_settings(None, ["--loss.kind=score_centering"])
    with pytest.raises(ConfigError, match=r"20 likeliest tokens at each place.*ScriptedPolicy does not"):
        check_engine(settings, ScriptedPolicy(default_script))


def test_an_estimator_that_needs_hidden_states_is_refused_where_an_engine_gives_none() -> None:
    estimator = "--estimator.kind=examples/methods/poise.py:PromptPrior"
    wanted = r"requires hidden states of the prompt, and the engine \w+ does not report them"
    with pytest.raises(ConfigError, match=wanted):
        check_engine(load_settings(None, [estimator]), ScriptedPolicy(default_script))
    with pytest.raises(ConfigError, match=wanted):  # before it is started, though it is not installed
        check_engine(load_settings(None, [estimator, "--engine.kind=vllm"]))
    check_engine(load_settings(None, [estimator, "--engine.kind=transformers"]))


@pytest.mark.slow
async def test_an_environment_that_always_raises_ends_the_run_with_its_error(
    new_loop: Callable[..., Any],
) -> None:
    run = await new_loop("--run.outage_limit_s=1", env=Broken)
    with pytest.raises(
        AgentRLError, match=r"nothing has worked yet.*no idea \(.*:\d+\); mend that and go on with .*run`"
    ):
        await run.orchestrator.run()
    assert set(run.orchestrator.parts.ledger.summary()) == {State.FAILED.value}
    await run.close()


async def test_groups_are_learned_from_whole(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--estimator.kind=grpo", "--estimator.group_size=4")
    await run.orchestrator.run()
    entries = run.orchestrator.parts.ledger.entries
    for batch in run.learner.batches:
        groups = [entries[key].group for key in batch]
        assert all(groups.count(group) == 4 for group in groups)
    await run.close()


async def test_dynamic_sampling_discards_groups_of_equal_rewards(new_loop: Callable[..., Any]) -> None:
    run = await new_loop(
        "--estimator.kind=grpo", "--estimator.group_size=2", "--estimator.dynamic_sampling=true"
    )
    await run.orchestrator.run()
    ledger = run.orchestrator.parts.ledger
    assert ledger.counts[State.LEARNED] == 32
    assert ledger.counts[State.DISCARDED] > 0
    await run.close()


async def test_initial_rollouts_set_values_and_are_never_learned_from(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--tracker.initial_rollouts=2")
    await run.orchestrator.run()
    ledger = run.orchestrator.parts.ledger
    assert ledger.counts[State.EVALUATED] == 24
    assert ledger.counts[State.LEARNED] == 32
    assert run.orchestrator.progress.totals.values["episodes_initial"] == 24
    await run.close()


async def test_replay_measures_drift_of_previous_episodes(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--tracker.drift=replay")
    await run.orchestrator.run()
    rows = [row for row in read_metrics(run.folder.metrics) if row["kind"] == "step"]
    # The learner of these tests never changes its log-probabilities, so nothing drifts: rho is at its maximum.
    assert rows[-1]["rho_mean"] == pytest.approx(0.96)
    await run.close()


async def test_one_drift_is_counted_once_for_all_episodes_of_its_prompt(new_loop: Callable[..., Any]) -> None:
    # Fails when each episode of a batch gets the drift since the batch before: eight folds would forget
    # eight times what the policy moved once.
    run = await new_loop("--run.steps=1")
    await run.orchestrator.run()
    recorded = sorted(read_episodes(run.folder.episodes), key=lambda episode: episode.dispatch_index)
    await run.close()

    class Moved:
        async def score(self, episodes: Sequence[Episode]) -> list[list[np.ndarray]]:
            return [
                [np.frombuffer(one.logprobs, dtype=np.float32) - 0.25 for one in episode.segments]
                for episode in episodes
            ]

    replay = DriftReplay(cast("AsyncLearner", Moved()))
    one, two, three = (replace(episode, prompt_id="ab") for episode in recorded[:3])
    other = replace(recorded[3], prompt_id="cd")
    assert await replay.after_step([one]) == [None]
    # In any order of the batch, the episode dispatched first (it is folded first) has it.
    moved = await replay.after_step([three, other, two])
    assert moved == [0.0, None, pytest.approx(0.25)]


class Slow(Env):
    """Fails for one word; every other word is right."""

    def prompt(self, row: Any) -> str:
        return row["word"]

    def reward(self, row: Any, answer: str | None) -> bool:
        if row["word"] == "ab":
            raise RuntimeError("no idea about ab")
        return True


@pytest.mark.slow
async def test_a_prompt_without_which_no_batch_can_fill_is_named(new_loop: Callable[..., Any]) -> None:
    rows = [{"id": word, "word": word} for word in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")]
    run = await new_loop("--run.outage_limit_s=1", env=Slow, rows=rows)
    # Set aside where others succeeded between its failures, else tried until the limit.
    named = (
        r"1 of 8 prompts were set aside.*\(ab, .*no idea about ab|\(all of prompt ab\), .*no idea about ab"
    )
    with pytest.raises(AgentRLError, match=named):
        await run.orchestrator.run()
    await run.close()


async def test_nothing_is_played_that_no_step_will_use(new_loop: Callable[..., Any]) -> None:
    # Fails when `TrainingStream.next` counts learned batches by version: a batch in the learner is in neither.
    run = await new_loop("--stream.staleness=3", "--sampler.copies_per_prompt=8", "--stream.in_flight=32")
    await run.orchestrator.run()
    assert run.orchestrator.parts.ledger.summary() == {"learned": 32}
    await run.close()


async def test_the_audit_sees_a_buffer_that_drops_episodes(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--run.steps=8", "--sampler.copies_per_prompt=9")
    buffer, seen = run.orchestrator.buffer, []
    put = buffer.put

    def first_finishers(episode: Any) -> Any:
        seen.append(episode)
        if len(seen) % 3 == 0:
            buffer.dropped(episode.episode_id)  # thrown away, as a first-finisher rule would
            run.orchestrator.dispatcher.wake()
            return []
        return put(episode)

    buffer.put = first_finishers
    await run.orchestrator.run()
    rows = [row for row in read_metrics(run.folder.metrics) if row["kind"] == "step"]
    assert rows[-1]["learned_share"] < 0.8
    await run.close()


async def test_a_group_that_lost_a_member_for_good_does_not_stall_the_run(
    new_loop: Callable[..., Any],
) -> None:
    class Unlucky(Env):
        played = 0

        def prompt(self, row: Any) -> str:
            return row["word"]

        def reward(self, row: Any, answer: str | None) -> bool:
            type(self).played += 1
            if row["word"] == "cd" and type(self).played < 20:
                raise RuntimeError("unlucky")
            return bool(type(self).played % 2)

    run = await new_loop(
        "--estimator.kind=grpo", "--estimator.group_size=4", "--run.wait_limit_s=20", env=Unlucky
    )
    await run.orchestrator.run()
    ledger = run.orchestrator.parts.ledger
    assert ledger.counts[State.LEARNED] == 32
    assert ledger.counts[State.PENDING] == ledger.counts[State.FINISHED] == 0
    await run.close()


async def test_a_ledger_that_cannot_be_written_ends_the_run_with_its_path(
    new_loop: Callable[..., Any],
) -> None:
    run = await new_loop()
    ledger, finished = run.orchestrator.parts.ledger, run.orchestrator.parts.ledger.finished

    def full(key: str, tokens: int) -> None:
        if key == "t5":
            raise DiskError("ledger.jsonl", OSError(28, "No space left on device"))
        finished(key, tokens)

    ledger.finished = full
    with pytest.raises(DiskError, match="cannot write ledger.jsonl: No space left"):
        await asyncio.wait_for(run.orchestrator.run(), 20)
    await run.close()


async def test_ctrl_c_in_the_first_evaluation_can_be_resumed(
    new_loop: Callable[..., Any], tmp_path: Path
) -> None:
    run = await new_loop("--tracker.initial_rollouts=1")

    async def evaluate(version: int, number: int, ended: Any, outages: Any) -> dict[str, Any]:
        run.orchestrator.stop()
        await asyncio.sleep(3600)
        return {}

    run.orchestrator.parts = replace(run.orchestrator.parts, evaluate=evaluate)
    with pytest.raises(Interrupted, match="--resume"):
        await asyncio.wait_for(run.orchestrator.run(), 20)
    await run.close()
    again = await make_loop(RunFolder.open(tmp_path / "run"), ("--tracker.initial_rollouts=1",))
    await resume(again.orchestrator)
    await again.orchestrator.run()
    assert again.orchestrator.parts.ledger.summary() == {"learned": 32, "evaluated": 12}
    assert again.orchestrator.progress.totals.values["episodes_initial"] == 12
    await again.close()


async def test_ctrl_c_in_the_last_evaluation_does_not_lose_the_end(new_loop: Callable[..., Any]) -> None:
    run = await new_loop()

    async def evaluate(version: int, number: int, ended: Any, outages: Any) -> dict[str, Any]:
        if version:
            run.orchestrator.stop()
            await asyncio.sleep(0.05)
        return {"reward_mean": 0.5}

    run.orchestrator.parts = replace(run.orchestrator.parts, evaluate=evaluate)
    await run.orchestrator.run()
    assert run.folder.newest_weights() is not None
    assert [row["step"] for row in read_metrics(run.folder.metrics) if row["kind"] == "eval"] == [0, 4]
    await run.close()


async def test_initial_values_from_a_file(new_loop: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "initial.jsonl"
    path.write_text(
        '{"prompt_id": "ab", "rewards": [1, 1, 1, 1, 0, 0, 0, 0]}\n{"prompt_id": "zz", "rewards": [1]}\n'
    )
    run = await new_loop("--run.steps=0", f"--tracker.initial_file={path}")
    await run.orchestrator.run()
    # s = 4 of n0 = 8 and N0 = 8: alpha = 8 * 4.5 / 9 = 4, so v = 1/2 with weight 8.
    pool = run.orchestrator.parts.pool
    # Read at drift 0 the weight is discounted once by rho_max: 8 * .96.
    prompts = [pool.index["ab"], pool.index["cd"]]
    assert pool.tracker.effective_counts(prompts)[0] == pytest.approx(7.68)
    assert pool.tracker.values(prompts)[0] == pytest.approx(0.5)
    assert pool.tracker.seen(prompts).tolist() == [True, False]
    await run.close()


@pytest.mark.slow
async def test_an_evaluation_that_stalls_is_named(new_loop: Callable[..., Any]) -> None:
    # Fails when `Orchestrator._evaluate` awaits the evaluation itself.
    run = await new_loop("--run.wait_limit_s=0.4")

    async def evaluate(version: int, number: int, ended: Callable[[], None], outages: Any) -> dict[str, Any]:
        for _ in range(4):  # longer than the limit, but it gets on
            await asyncio.sleep(0.2)
            ended()
        await asyncio.sleep(3600)
        return {}

    run.orchestrator.parts = replace(run.orchestrator.parts, evaluate=evaluate)
    with pytest.raises(StallError, match="another episode of the evaluation of version 0 to end"):
        await asyncio.wait_for(run.orchestrator.run(), 20)
    assert "evaluation of version 0" in (run.folder.logs / "stalls.txt").read_text()
    await run.close()


class Hangs(Env):
    """Never answers."""

    def prompt(self, row: Any) -> str:
        return row["word"]

    async def reward(self, row: Any, answer: str | None) -> bool:
        await asyncio.sleep(3600)
        return True


async def test_initial_rollouts_that_stall_are_named(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--run.wait_limit_s=0.4", "--tracker.initial_rollouts=1", env=Hangs)
    with pytest.raises(StallError, match="another rollout for an initial value to end"):
        await asyncio.wait_for(run.orchestrator.run(), 20)
    await run.close()


async def test_a_batch_may_take_longer_than_one_wait(new_loop: Callable[..., Any]) -> None:
    # Fails when the limit counts from the beginning of the batch: eight episodes, one after the other,
    # take twice as long as the longest wait, and each of them a quarter.
    def slow(request: Any, text: str) -> float:
        return 0.1

    policy = ScriptedPolicy(default_script, tokenizer=ByteTokenizer(), seconds=slow)
    flags = ("--run.steps=1", "--stream.in_flight=1", "--run.wait_limit_s=0.4")
    run = await new_loop(*flags, policy=policy)
    await run.orchestrator.run()
    assert run.orchestrator.parts.ledger.summary() == {"learned": 8}
    await run.close()


async def test_a_batch_that_stalls_says_what_it_has(new_loop: Callable[..., Any]) -> None:
    class Sticks(Echo):
        async def setup(self) -> None:
            await asyncio.sleep(60)

    run = await new_loop("--run.wait_limit_s=0.3", env=Sticks)
    with pytest.raises(StallError, match=r"another episode for a batch of 8 .*6 are in flight, 0 wait"):
        await run.orchestrator.run()
    await run.close()


async def test_a_disk_that_hangs_is_named(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--run.wait_limit_s=0.5")
    recorder, lock = run.orchestrator.parts.recorder, threading.Lock()
    lock.acquire()
    write = recorder._write

    def hangs(items: Any) -> None:
        with lock:  # as a write to a server that is gone
            write(items)

    recorder._write = hangs
    with pytest.raises(StallError, match="the disk to write .*/episodes"):
        await run.orchestrator._flush()
    with pytest.raises(StallError, match="the disk to write episodes to .*/000001.jsonl"):
        await recorder.close(limit_s=0.1)
    lock.release()
    await run.close()


async def test_an_episode_that_swallows_its_cancellation_does_not_hold_up_the_end(
    new_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = asyncio.Event()

    class Stubborn(Env):
        def prompt(self, row: Any) -> str:
            return row["word"]

        async def reward(self, row: Any, answer: str | None) -> bool:
            while row["word"] == "ab" and not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()
            return True

    monkeypatch.setattr(Dispatcher.stop, "__defaults__", (0.2,))
    run = await new_loop("--stream.staleness=3", env=Stubborn)

    async def stop() -> None:
        if run.orchestrator.version == 2:
            run.orchestrator.stop()

    run.learner.seconds = stop
    with pytest.raises(Interrupted):
        await asyncio.wait_for(run.orchestrator.run(), 30)
    assert "waited 0 s for 1 cancelled episodes to end (t" in caplog.text
    assert "swallows its cancellation" in caplog.text
    # It left by `cancelled`: the checkpoint was written, and a resumed run would start it again.
    assert run.orchestrator.version == 3
    assert len(checkpoint_folders(run.folder.checkpoints)) > 0
    pending = run.orchestrator.parts.ledger.counts[State.PENDING]
    released.set()
    await asyncio.sleep(0.05)
    assert run.orchestrator.parts.ledger.counts[State.PENDING] == pending > 0
    await run.close()
