"""What is defined inline: environments, rows, parts; in a notebook's running loop and in a program's own file."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentrl
from agentrl import Env
from agentrl_envs.registry import load_file
from tests.agentrl.inference.faulty_endpoint import completion, serving

pytest.importorskip("torch", reason="these train (pip install agentrl[train])")
pytestmark = pytest.mark.timeout(300)

SMALL: dict[str, Any] = {
    "model": "models/demo",
    "stream": {"batch": 8},
    "max_tokens": 16,
    "tracker": {"initial_rollouts": 0},
    "quiet": True,
}
ROWS = [{"problem": f"{n}+{n}", "answer": str(2 * n)} for n in range(12)]


class Sums(Env):
    """Add; any number at all is worth something."""

    max_turns = 1

    def prompt(self, row: Any) -> str:
        return row["problem"]

    def reward(self, row: Any, answer: str | None) -> float:
        return float(any(letter.isdigit() for letter in answer or ""))


def half(batch: Any) -> Any:
    return batch.scores - 0.5


class Doubled:
    """A loss of its own."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.calls = 0

    def __call__(self, inputs: Any) -> Any:
        self.calls += 1
        return -(inputs.current - inputs.behaviour).exp() * inputs.advantage * self.width, {}


def longest(batch: Any) -> dict[str, float]:
    return {"longest": float(max(episode.num_tokens for episode in batch.episodes))}


@pytest.mark.slow
async def test_a_run_in_a_running_loop_takes_everything_ready_made(place: Path):
    told: list[dict[str, Any]] = []
    loss = Doubled(2.0)
    run = agentrl.train(
        Sums,
        data=ROWS,
        eval_data=ROWS[:2],
        steps=2,
        estimator=half,
        loss=loss,
        metrics=[longest],
        listeners=[told.append],
        **SMALL,
    )
    assert (run.version, loss.calls > 0) == (2, True)
    steps = [row for row in run.metrics if row["kind"] == "step"]
    assert all(row["longest"] > 3 for row in steps)
    assert [row["step"] for row in told if row["kind"] == "step"] == [1, 2]
    config = (run.folder / "config.toml").read_text()
    for name in ("Sums", "half", "Doubled", "longest"):
        assert f'{__name__}:{name}"' in config
    assert run.settings.data.train.startswith("runs/rows/")
    assert agentrl.replay(run).same


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT is heard, also where the tests were started in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heard")
async def test_an_interrupt_in_a_running_loop_ends_a_run_cleanly_and_it_goes_on(place: Path):
    def stop(row: dict[str, Any]) -> None:
        if row["kind"] == "step":
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(agentrl.Interrupted, match="stopped at version 1"):
        agentrl.train(Sums, data=ROWS, steps=3, name="stopped", listeners=[stop], **SMALL)
    assert signal.getsignal(signal.SIGINT) is before
    assert agentrl.Run("runs/stopped").version == 1
    run = agentrl.resume("runs/stopped", env=Sums, quiet=True)
    assert (run.version, run.summary["attempts"]) == (3, 2)


class Twice:
    """A loss during whose second step Ctrl-C is pressed twice."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, inputs: Any) -> Any:
        self.steps += 1
        if self.steps == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(2.0)  # the first waits for this step, the second does not
        return -(inputs.current - inputs.behaviour).exp() * inputs.advantage, {}


def pressed_twice() -> None:
    small = SMALL | {"stream": {"batch": 8, "staleness": 0}, "learner": {"micro_batch_tokens": 4096}}
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(agentrl.Interrupted, match=r"version 1 is kept, .* lost: the step under way"):
        agentrl.train(Sums, data=ROWS, steps=3, name="stopped", loss=Twice(), **small)
    assert signal.getsignal(signal.SIGINT) is before
    assert agentrl.Run("runs/stopped").version == 1
    run = agentrl.resume("runs/stopped", env=Sums, loss=Doubled(1.0), quiet=True)
    assert (run.version, run.summary["attempts"]) == (3, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("heard")
def test_a_second_interrupt_ends_at_once_and_tells_what_is_lost(place: Path):
    pressed_twice()


@pytest.mark.slow
@pytest.mark.usefixtures("heard")
async def test_a_second_interrupt_in_a_running_loop(place: Path):
    pressed_twice()


@pytest.mark.slow
def test_a_policy_that_is_handed_in_samples_for_a_run(place: Path):
    file = Path(__file__).parents[3] / "examples" / "parts" / "counting_engine.py"
    Counting = load_file(file).Counting
    run = agentrl.train(Sums, data=ROWS, steps=1, name="own", policy=Counting, **SMALL)
    (row,) = [row for row in run.metrics if row["kind"] == "step"]
    assert row["engine_asked"] >= 8


async def test_an_episode_and_an_evaluation_with_an_endpoint(place: Path):
    async with serving(completion("the answer is 12")) as server:
        told = {"endpoint": server.url, "model": "m"}
        episode = await asyncio.to_thread(agentrl.run_episode, Sums, ROWS[6], **told)
        found = await asyncio.to_thread(agentrl.evaluate, Sums, data=ROWS[:3], samples=2, **told)
    assert (episode.reward, episode.num_sampled) == (1.0, 0)
    assert [text for who, text in episode.conversation() if who == "policy"] == ["the answer is 12"]
    assert (found.mean, len(found.records)) == (1.0, 6)
    assert {request["model"] for request in server.requests} == {"m"}
    assert len(server.requests) == 7


def test_an_episode_of_an_inline_class_with_a_policy_that_is_ready(place: Path):
    from agentrl.inference.scripted import ScriptedPolicy

    policy = ScriptedPolicy(["the answer is 12<|end|>"])
    episode = agentrl.run_episode(Sums, ROWS[6], policy=policy)
    assert (episode.reward, [text for who, text in episode.conversation() if who == "policy"]) == (
        1.0,
        ["the answer is 12<|end|>"],
    )
    assert "the answer is 12" in episode._repr_html_()
    sampled = [token for token in episode.tokens() if token.sampled]
    assert [token.logprob for token in sampled] == [0.0] * episode.num_sampled
    found = agentrl.evaluate(Sums, data=ROWS[:3], policy=policy, samples=2)
    assert (found.mean, len(found.records)) == (1.0, 6)


def test_rows_that_json_cannot_keep_are_refused_by_number(place: Path):
    with pytest.raises(agentrl.ConfigError, match="row 2 cannot be kept with the run"):
        agentrl.train(Sums, data=[ROWS[0], {"problem": {1, 2}}], **SMALL)
    with pytest.raises(agentrl.ConfigError, match="row 1 must be a mapping"):
        agentrl.train(Sums, data=["1+1"], **SMALL)
    assert not list(place.glob("runs/*"))


@pytest.mark.parametrize(("identity", "found"), [('{"run_id": "1"}', 1), ('{"run_id": "1", "format": 3}', 3)])
def test_a_run_of_another_format_is_refused_in_one_sentence(identity: str, found: int, place: Path):
    old = place / "runs" / "old"
    (old / "checkpoints" / "step_3").mkdir(parents=True)
    (old / "run.json").write_text(identity)
    (old / "config.toml").write_text("[run]\nsteps = 5\n")
    (old / "ledger.jsonl").write_text('{"kind": "attempt", "attempt": 1, "version": 0}\n')
    sentence = (
        f"^runs/old is a run of format {found}, and this agentrl reads format 2: go on with the agentrl "
    )
    for use in (agentrl.resume, agentrl.replay, agentrl.Run, lambda run: next(agentrl.episodes(run))):
        with pytest.raises(agentrl.ConfigError, match=sentence):
            use("runs/old")


PROGRAM = """
import sys
import agentrl
class Words(agentrl.Env):
    max_turns = 1
    def prompt(self, row): return row["word"]
    def reward(self, row, answer): return len(answer or "") % 2
def half(batch): return batch.scores - 0.5
rows = [{"word": str(n)} for n in range(9)]
if sys.argv[1] == "train":
    agentrl.train(Words, data=rows, estimator=half, steps=1, model="models/demo", stream={"batch": 8},
                  max_tokens=8, tracker={"initial_rollouts": 0}, name="own", quiet=True)
else:
    print(agentrl.resume("runs/own", env=Words, estimator=half, steps=2, quiet=True))
"""


@pytest.mark.slow
def test_a_run_of_a_program_s_own_class_says_so_and_is_resumed_by_it_alone(place: Path):
    Path("own.py").write_text(PROGRAM)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200)

    assert call("own.py", "train").stderr == ""
    config = Path("runs/own/config.toml").read_text()
    assert 'name = "__main__:Words"' in config
    assert 'kind = "__main__:half"' in config
    refused = call("-m", "agentrl.cli.main", "train", "--resume", "runs/own")
    assert refused.returncode != 0
    assert "'__main__:half' was defined in a notebook or a program" in refused.stderr
    assert "Traceback" not in refused.stderr
    told = call("own.py", "resume")
    assert told.stdout == "Run('runs/own', version 2 of 2)\n", told.stderr


def test_the_bundled_model_goes_by_its_name(place: Path):
    # Fails when `subject_of` passes the name on: a hub was asked for a model called demo.
    del place
    episode = agentrl.run_episode(Sums, ROWS[0], model="demo", max_tokens=4)
    assert sum(token.sampled for token in episode.tokens()) == 4
