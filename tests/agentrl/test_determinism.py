"""A deterministic run is a plain synchronous loop; what a run recorded gives its weights again.

Real parts throughout: the demo's model in the embedded engine, its environment in a sandbox, the learner.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
pytest.importorskip("transformers", reason="the learner needs transformers")

import agentrl
from agentrl.algorithms.advantage import advantages, normalise
from agentrl.algorithms.prompt_sampler import PriorityWeights, PromptSampler
from agentrl.algorithms.value_tracker import ValueTracker
from agentrl.config.loading import load_settings
from agentrl.config.settings import Settings
from agentrl.errors import DataError
from agentrl.inference.embedded.engine import TransformersPolicy
from agentrl.learner.learner import Learner
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, episode_seed, run_episode
from agentrl.storage.checkpoint import checkpoint_folders, read_state
from agentrl.storage.metrics import read_metrics
from agentrl.storage.run_folder import RunFolder
from agentrl.tasks.task import load_tasks, make_sandbox
from agentrl.training.replay import replay
from agentrl.training.train import train
from agentrl.weights.handle import WeightHandle
from agentrl.weights.model_files import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DEMO = Path(agentrl.__file__).parent / "demo"
STEPS, BATCH = 3, 8
POISE = f"{Path(__file__).parents[2] / 'examples' / 'methods' / 'poise.py'}:PromptPrior"


def demo(tmp_path: Path, *flags: str) -> Settings:
    """The demo, shortened, with steps so large that a wrong one shows."""
    short = (
        f"--model.path={DEMO / 'model'}",
        f"--run.directory={tmp_path}",
        "--run.name=run",
        f"--run.steps={STEPS}",
        f"--stream.batch={BATCH}",
        "--data.train=generated:train:24",
        "--eval.data=",
        "--learner.mini_batch=4",
        "--learner.learning_rate=0.001",
        "--engine.slots=5",
    )
    return load_settings(DEMO / "demo.toml", [*short, *flags])


def run(settings: Settings) -> RunFolder:
    train(settings)
    return RunFolder(Path(settings.run.directory) / settings.run.name)


def weights(folder: Path | None) -> bytes:
    assert folder is not None
    return (folder / "model.safetensors").read_bytes()


async def plain_loop(settings: Settings, output: Path) -> tuple[ValueTracker, PromptSampler]:
    """SPO as the paper writes it: draw a batch, play it one by one, learn, fold; nothing at once."""
    (task,) = load_tasks(settings.env, settings.data)
    ids = [str(row["id"]) for row in task.rows]
    tracker = ValueTracker(len(ids), settings.tracker)
    priority = PriorityWeights(PriorityWeights.Settings(gamma=0.5))
    sampler = PromptSampler(tracker, settings.sampler, priority, seed=settings.run.seed * 1000)
    learner = Learner(settings.model, settings.learner, settings.loss, seed=settings.run.seed)
    tokenizer = load_tokenizer(settings.model.path)
    renderer = make_renderer(tokenizer, "code")
    engine = settings.engine
    policy = TransformersPolicy(
        learner.model,
        tokenizer,
        slots=engine.slots,
        context_tokens=engine.context_tokens,
        deterministic=True,
    )
    await policy.start()
    async with make_sandbox(settings.sandbox) as sandbox:
        for version in range(settings.run.steps):
            start_clock = tracker.clock
            prompts = [prompt for _ in range(BATCH) if (prompt := sampler.draw()) is not None]
            batch: list[Any] = []
            for index, prompt in enumerate(prompts, version * BATCH):
                seed = episode_seed(settings.run.seed, "t", index)
                episode = await run_episode(
                    lambda seed=seed: task.make(sandbox, seed),
                    policy,
                    renderer,
                    row=task.rows[prompt],
                    dispatch=Dispatch(f"t{index}", index, ids[prompt], version, task.name, seed),
                    settings=settings.rollout,
                )
                batch.append(episode)
            scores = [episode.score for episode in batch]
            given = normalise(advantages(scores, tracker.values(prompts)), 0.1)
            metrics = learner.step(batch, given, clock_tokens=settings.tracker.clock_tokens)
            tracker.advance_clock(float(metrics.as_dict()["drift"]))
            await policy.load(WeightHandle(version=version + 1, attempt=1, source=learner.model))
            for prompt, score in zip(prompts, scores, strict=True):
                tracker.fold(prompt, score, start_clock=start_clock)
            for prompt in prompts:
                sampler.folded(prompt)
    await policy.close()
    learner.save_weights(output)
    return tracker, sampler


def test_a_deterministic_run_equals_a_plain_synchronous_loop_bit_for_bit(tmp_path: Path) -> None:
    # Fails when batches are not sorted by dispatch index (`EpisodeBuffer._select`), when an episode's
    # seed depends on who was first, or when the engine's shapes are not fixed.
    settings = demo(tmp_path, "--run.deterministic=true", "--sampler.gamma=0.5")
    folder = run(settings)
    tracker, sampler = asyncio.run(plain_loop(settings, tmp_path / "plain"))
    assert weights(folder.newest_weights()) == weights(tmp_path / "plain") != weights(DEMO / "model")
    saved = read_state(checkpoint_folders(folder.checkpoints)[-1]).light["pool"]
    for name, value in tracker.state_dict().items():
        np.testing.assert_array_equal(saved["tracker"][name], value, err_msg=name)
    for name, value in sampler.state_dict().items():
        np.testing.assert_array_equal(saved["samplers"][0][name], value, err_msg=name)


@pytest.mark.parametrize(
    "flags",
    [
        ("--stream.staleness=2", "--stream.in_flight=16", "--tracker.initial_rollouts=1"),
        ("--tracker.drift=replay", "--rollout.truncated=mask", "--rollout.max_tokens=24"),
        ("--estimator.kind=grpo", "--estimator.group_size=4", "--estimator.dynamic_sampling=true"),
        ("--sampler.fresh_copies=3", "--tracker.kind=trend", "--stream.staleness=2", "--engine.slots=16"),
        ("--loss.kind=score_centering", "--loss.behaviour_top_k=5", "--stream.staleness=2"),
        (f"--estimator.kind={POISE}", "--stream.staleness=2"),
    ],
    ids=["asynchronous", "drift-replay", "grpo", "copies", "score-centering", "poise"],
)
def test_recorded_episodes_give_the_same_weights_again(flags: tuple[str, ...], tmp_path: Path) -> None:
    # Fails when `replay_steps` takes batches in order of dispatch, or leaves initial values out.
    folder = run(demo(tmp_path, *flags))
    tracker = replay(folder.path, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(folder.newest_weights()) != weights(DEMO / "model")
    if "--estimator.kind=grpo" not in flags:
        saved = read_state(checkpoint_folders(folder.checkpoints)[-1]).light["pool"]["tracker"]
        for name, value in tracker.state_dict().items():
            np.testing.assert_array_equal(saved[name], value, err_msg=name)
    assert len([row for row in read_metrics(folder.metrics) if row["kind"] == "step"]) == STEPS


def test_a_run_whose_episodes_are_gone_cannot_be_replayed(tmp_path: Path) -> None:
    folder = run(demo(tmp_path, "--run.steps=1"))
    for path in folder.episodes.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"8 of 8 episodes \(t0, t1, t2, ...\).*run.episodes_kept"):
        replay(folder.path, tmp_path / "again")
