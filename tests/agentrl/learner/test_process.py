"""Two ranks on the CPU (gloo) against one learner in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")

from safetensors.torch import load_file

from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.episode import Episode
from agentrl.errors import CheckpointError, ConfigError, DataError, LearnerError, LearnerLost, StallError
from agentrl.learner import remote
from agentrl.learner.checkpoint import Saved, file_of
from agentrl.learner.learner import Learner
from agentrl.learner.process import LearnerProcesses, RankProcess
from agentrl.training import learner_thread
from agentrl.training.watchdog import Watchdog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = {"learning_rate": 1e-3, "mini_batch": 3, "micro_batch_tokens": 40, "epochs": 2, "undo": True}


def start(folder: Path, ranks: int = 2, **settings: Any) -> LearnerProcesses:
    return LearnerProcesses(
        ModelSettings(path=str(folder), device="cpu", threads=1),
        LearnerSettings(**(SETTINGS | settings), place="process", ranks=ranks),
        limit_s=200.0,
    )


def pids(learner: LearnerProcesses) -> list[int]:
    """The processes of the ranks."""
    return [cast("RankProcess", rank).pid or 0 for rank in learner._ranks]


@pytest.fixture(scope="module")
def pair(model_folder: Path) -> Iterator[LearnerProcesses]:
    with start(model_folder) as learner:
        yield learner


def test_two_ranks_learn_what_one_learns(
    pair: LearnerProcesses,
    make_learner: Callable[..., Learner],
    episodes: list[Episode],
    advantages: list[float],
    tmp_path: Path,
) -> None:
    one = make_learner(**SETTINGS)
    for expected, found in zip(one.score(episodes), pair.score(episodes), strict=True):
        assert found[0].tolist() == pytest.approx(expected[0].tolist(), abs=1e-5)
    for _ in range(2):
        expected = one.step(episodes, advantages, clock_tokens=20)
        found = pair.step(episodes, advantages, clock_tokens=20)
        for name in ("loss", "grad_norm", "entropy", "drift", "effective_share", "importance_max"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3), name
        assert found.tokens_learned == expected.tokens_learned
        assert found.optimizer_steps == 6
    pair.save_weights(tmp_path / "weights")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), parameter, atol=2e-4, rtol=1e-3)

    pair.save(tmp_path / "state")
    first = pair.step(episodes, advantages)
    pair.load(tmp_path / "state")
    again = pair.step(episodes, advantages)
    assert (again.loss, again.grad_norm) == (first.loss, first.grad_norm)
    # One learner reads what two saved, and goes on as they do.
    one.load(tmp_path / "state")
    alone = one.step(episodes, advantages)
    assert (alone.loss, alone.grad_norm) == pytest.approx((first.loss, first.grad_norm), rel=1e-3)
    # And two read what one saved: nothing is lost on the way there and back.
    one.save(tmp_path / "one")
    pair.load(tmp_path / "one")
    pair.save(tmp_path / "two")
    found, expected = Saved.open(tmp_path / "two"), Saved.open(tmp_path / "one")
    assert {**found.counters} == {**expected.counters, "ranks": 2}
    assert found.shapes == expected.shapes
    tensors = {name: torch.full(shape, torch.nan) for name, shape in expected.shapes.items()}
    found.read_into(tensors)
    for name, tensor in load_file(file_of(tmp_path / "one", 0, 1)).items():
        assert torch.equal(tensors[name], tensor), name
    pair.load(tmp_path / "state")

    # What follows a save that is not waited for stays out of it, on every rank.
    pair.save(tmp_path / "during", wait=False)
    again = pair.step(episodes, advantages)
    until_saved(pair)
    pair.save(tmp_path / "after")
    for rank in range(2):
        before, during, after = (
            file_of(tmp_path / name, rank, 2).read_bytes() for name in ("state", "during", "after")
        )
        assert before == during != after
    assert (again.loss, again.grad_norm) == (first.loss, first.grad_norm)
    # One that a rank cannot write is told in its words, and the ranks go on.
    file_of(tmp_path / "refused", 1, 2).mkdir(parents=True)
    pair.save(tmp_path / "refused", wait=False)
    with pytest.raises(CheckpointError, match=f"state cannot be written to {tmp_path / 'refused'}: "):
        until_saved(pair)
    until_saved(pair)
    pair.load(tmp_path / "during")

    # What a rank refuses is refused once, in the same words, and the ranks go on.
    with pytest.raises(DataError, match="7 episodes came with"):
        pair.step(episodes, [1.0])
    with pytest.raises(LearnerError, match="episode e1 has the advantage nan"):
        pair.step(episodes, [1.0, float("nan"), *advantages[2:]])
    with pytest.raises(LearnerError, match="is not finite for episodes e3$"):
        pair.step(episodes, [*advantages[:3], 3e38, *advantages[4:]])
    # The failed step left no trace: from the same state the same step follows.
    pair.load(tmp_path / "state")
    with pytest.raises(LearnerError):
        pair.step(episodes, [*advantages[:3], 3e38, *advantages[4:]])
    assert pair.step(episodes, advantages).loss == first.loss


def test_a_state_saved_after_scoring_is_read_again(
    pair: LearnerProcesses, episodes: list[Episode], advantages: list[float], tmp_path: Path
) -> None:
    # Scoring leaves the weights outside of the layers gathered: what is saved and read are the parts.
    before = pair.score(episodes)
    pair.save(tmp_path / "state")
    pair.step(episodes, advantages)
    pair.score(episodes)
    pair.load(tmp_path / "state")
    assert [found[0].tolist() for found in pair.score(episodes)] == [found[0].tolist() for found in before]


def until_saved(learner: LearnerProcesses, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not learner.saved():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_signal_to_the_whole_group_ends_no_rank(pair: LearnerProcesses, episodes: list[Episode]) -> None:
    # As Ctrl-C in a terminal and `scancel` do: the run is asked to stop, and its learner is still needed.
    before = pair.score(episodes)
    for pid in pids(pair):
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert [found[0].tolist() for found in pair.score(episodes)] == [found[0].tolist() for found in before]


def test_a_rank_that_dies_is_named(pair: LearnerProcesses, episodes: list[Episode], tmp_path: Path) -> None:
    # Nobody uses the pair after this.
    victim = pids(pair)[1]
    pair.save(tmp_path, wait=False)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(LearnerError, match=r"learner rank 1 died \(exit code -9\)"):
        until_saved(pair)
    with pytest.raises(LearnerError, match="processes have ended"):
        pair.step(episodes, [1.0] * 7)
    with pytest.raises(LearnerError, match="processes have ended"):
        pair.score(episodes)
    pair.close()


def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config.json"):
        start(tmp_path, ranks=1)


def alive(pid: int) -> bool:
    """Whether a process is there, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_a_rank_that_hangs_is_killed(
    model_folder: Path, episodes: list[Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fails without `LearnerProcesses.kill` in `LearnerThread._abort`: the stopped rank stays.
    monkeypatch.setattr(learner_thread, "CLOSE_LIMIT_S", 2.0)
    ranks = start(model_folder, ranks=1)
    (victim,) = pids(ranks)

    async def hang() -> None:
        learner = learner_thread.LearnerThread(ranks)
        os.kill(victim, signal.SIGSTOP)
        with pytest.raises(StallError, match="waited 1 s for the learner's step"):
            await Watchdog().wait(
                learner.step(episodes, np.ones(len(episodes)), clock_tokens=0), "the learner's step", 1.0
            )
        await learner.close()

    asyncio.run(hang())
    assert gone(victim, 5.0)


def test_a_rank_that_does_not_read_is_named(
    model_folder: Path, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than a pipe holds. Fails when `_call` writes to the pipe itself: it would never return.
    with start(model_folder, ranks=1) as ranks:
        (victim,) = pids(ranks)
        os.kill(victim, signal.SIGSTOP)
        monkeypatch.setattr(ranks, "_limit_s", 1.0)
        with pytest.raises(StallError, match="waited 1 s for learner rank 0 to take the call of score"):
            ranks.score([replace(episodes[0], answer="x" * 1_000_000)])
        assert gone(victim, 5.0)


ABANDONS = """
import os, signal, sys, time
from agentrl.learner.process import LearnerProcesses
from agentrl.config.settings import LearnerSettings, ModelSettings
class Busy:
    "Keeps who reads it busy for a minute."
    def __reduce__(self):
        return time.sleep, (60,)
if __name__ == "__main__":
    ranks = LearnerProcesses(
        ModelSettings(path={model!r}, device="cpu", threads=1), LearnerSettings(place="process", ranks=1)
    )
    pid = ranks._ranks[0].pid
    print(pid, flush=True)
    if {end!r} == "exit":
        os.kill(pid, signal.SIGSTOP)  # hangs, and nobody closes it
        sys.exit(0)
    ranks._send(("score", (Busy(),), {{}}), 1.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_no_rank_outlives_its_program(end: str, model_folder: Path, tmp_path: Path) -> None:
    # Fails without `atexit` (multiprocessing waits for the stopped rank for ever) and `_end_with_parent`.
    script = tmp_path / "abandons.py"
    script.write_text(ABANDONS.format(model=str(model_folder), end=end))
    path = os.pathsep.join(str(Path(__file__).parents[3] / part) for part in (".", "envs", "sandbox"))
    program = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert program.returncode == (0 if end == "exit" else -signal.SIGKILL), program.stderr[-2000:]
    assert gone(int(program.stdout), 10.0)


class Answered:
    """A rank that has answered, or never does."""

    def __init__(self, *answers: tuple[str, Any]) -> None:
        self._answers, self.pid = list(answers), 0

    def send(self, message: Any) -> None: ...

    def poll(self, seconds: float) -> bool:
        time.sleep(0.01)
        return bool(self._answers)

    def receive(self) -> tuple[str, Any]:
        return self._answers.pop(0)

    def kill(self) -> None: ...

    def close(self, limit_s: float) -> None: ...


def test_a_collective_that_breaks_beside_a_silent_rank_is_a_lost_learner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where a machine vanishes: the others' sockets break long before anybody knows that it is gone.
    monkeypatch.setattr(remote, "GRACE_S", 0.2)
    ready = ("done", None)
    broken = remote.report(0, RuntimeError("Connection closed by peer"))
    ranks = remote.RemoteLearner([Answered(ready, broken), Answered(ready)], lambda call: call, 5.0)
    with pytest.raises(
        LearnerLost, match="Connection closed by peer(.|\n)*learner rank 1 did not answer at all"
    ):
        ranks.score([])
    # What the learner itself says of an episode is no loss.
    told = remote.report(0, DataError("e7 failed"))
    ranks = remote.RemoteLearner([Answered(ready, told), Answered(ready)], lambda call: call, 5.0)
    with pytest.raises(DataError, match="e7 failed"):
        ranks.score([])
