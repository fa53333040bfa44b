"""Parts of a run that need neither torch nor a model, wired by `assemble`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.config.loading import load_settings
from agentrl.config.settings import Settings
from agentrl.episode import Episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.storage.run_folder import RunFolder
from agentrl.tasks.task import Task
from agentrl.training.assembly import assemble
from agentrl.training.held_out import HeldOut
from agentrl.training.orchestrator import Orchestrator
from agentrl.training.plan import RunPlan
from agentrl.training.resume import resume
from agentrl.weights.handle import WeightHandle
from agentrl_envs import Env
from agentrl_sandbox import open_sandbox


class Echo(Env):
    """The reward is 1 when the answer is the row's word."""

    max_turns = 2

    def prompt(self, row: Any) -> str:
        return row["word"]

    def reward(self, row: Any, answer: str | None) -> bool:
        return answer is not None and answer.strip() == row["word"]


@dataclass
class ArithmeticLearner:
    """A learner whose weights are one number and a digest of all it was given: exact, and no torch."""

    weight: float = 0.0
    digest: str = ""
    batches: list[list[str]] = field(default_factory=list)
    seconds: Callable[[], Any] | None = None
    disk: Callable[[], bool] = lambda: True
    """Whether it is done with what was saved without waiting for it."""
    _staged: tuple[Path, str] | None = None

    async def step(
        self, episodes: Sequence[Episode], advantages: np.ndarray, *, clock_tokens: int, **more: Any
    ) -> dict[str, Any]:
        if self.seconds is not None:
            await self.seconds()
        self.batches.append([episode.episode_id for episode in episodes])
        for episode, advantage in zip(episodes, advantages, strict=True):
            text = f"{self.digest}/{episode.segments[0].token_ids.tolist()}/{float(advantage):.12g}"
            self.digest = hashlib.sha256(text.encode()).hexdigest()
            self.weight += float(advantage) * episode.num_sampled
        return {
            "drift": 0.01,
            "tokens_learned": sum(e.num_trainable for e in episodes),
            "effective_share": 1.0,
        }

    async def score(self, episodes: Sequence[Episode]) -> list[list[np.ndarray]]:
        return [
            [np.frombuffer(segment.logprobs, dtype=np.float32) for segment in episode.segments]
            for episode in episodes
        ]

    async def save(self, folder: Path, *, wait: bool = True) -> None:
        assert self._staged is None, "two at once"
        folder.mkdir()
        self._staged = folder / "state.json", json.dumps([self.weight, self.digest])
        if wait:
            self._write()

    async def saved(self) -> bool:
        if self._staged is not None and self.disk():
            self._write()
        return self._staged is None

    def _write(self) -> None:
        assert self._staged is not None
        path, text = self._staged
        self._staged = None
        path.write_text(text)

    async def load(self, folder: Path) -> None:
        self.weight, self.digest = json.loads((folder / "state.json").read_text())

    async def save_weights(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    async def handle(self, version: int, attempt: int) -> WeightHandle:
        return WeightHandle(version=version, attempt=attempt, source=self)

    async def close(self) -> None:
        pass


@dataclass
class LoopRun:
    """One attempt of a run made of these parts."""

    orchestrator: Orchestrator
    learner: ArithmeticLearner
    policy: ScriptedPolicy
    folder: RunFolder
    stack: contextlib.AsyncExitStack
    resuming: bool = False

    async def play(self) -> None:
        """Run to the end, from where the attempt before this one was."""
        if self.resuming:
            await resume(self.orchestrator)
        await self.orchestrator.run()

    async def close(self) -> None:
        await self.stack.aclose()
        self.folder.unlock()


WORDS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st", "uv", "wx")


def default_script(request: Any) -> dict[str, float]:
    """Says the word of the prompt half of the time."""
    word = request.prompt.strip()[-2:]
    return {f"{word}<|end|>": 0.5, "no<|end|>": 0.5}


async def make_loop(
    folder: RunFolder | Path,
    flags: Sequence[str] = (),
    *,
    env: type[Env] = Echo,
    rows: Sequence[dict[str, Any]] | None = None,
    policy: ScriptedPolicy | None = None,
    learner: ArithmeticLearner | None = None,
    held_out: Sequence[dict[str, Any]] = (),
) -> LoopRun:
    """A run of these parts; one more attempt of it, where its path is given and there is one."""
    resuming = isinstance(folder, Path) and (folder / "run.json").exists()
    if isinstance(folder, Path):
        folder = RunFolder.open(folder) if resuming else RunFolder.create(folder.parent, folder.name)
    settings: Settings = load_settings(
        None,
        [
            "--run.steps=4",
            "--stream.batch=8",
            "--learner.mini_batch=8",
            "--stream.in_flight=6",
            "--tracker.initial_rollouts=0",
            *flags,
        ],
    )
    rows = rows if rows is not None else [{"id": word, "word": word} for word in WORDS]
    task = Task("echo", env, {}, 1.0, tuple(rows))
    policy = policy or ScriptedPolicy(default_script, tokenizer=ByteTokenizer(), seed=settings.run.seed)
    learner = learner or ArithmeticLearner()
    renderer = make_renderer(ByteTokenizer(), "code", instructions="")
    folder.lock()
    stack = contextlib.AsyncExitStack()
    plan = RunPlan(settings, (task,), (HeldOut(task, tuple(held_out)),) if held_out else ())
    orchestrator = await stack.enter_async_context(
        assemble(
            plan, folder, policy=policy, learner=learner, renderer=renderer, sandbox=open_sandbox("broken")
        )
    )
    return LoopRun(orchestrator, learner, policy, folder, stack, resuming)


@pytest.fixture
def new_loop(tmp_path: Path) -> Callable[..., Awaitable[LoopRun]]:
    """Makes a new run in its own folder."""

    async def make(*flags: str, name: str = "run", **parts: Any) -> LoopRun:
        return await make_loop(RunFolder.create(tmp_path, name), flags, **parts)

    return make


@pytest.fixture
def reopen(tmp_path: Path) -> Callable[..., Awaitable[LoopRun]]:
    """Opens a run that `new_loop` made, for another attempt."""

    async def make(*flags: str, name: str = "run", **parts: Any) -> LoopRun:
        return await make_loop(RunFolder.open(tmp_path / name), flags, **parts)

    return make
