"""Plays whole episodes of a run in a process of its own: an engine, a renderer, a sandbox.

What a run sends is a dispatch and a row; what comes back is the episode. Weights arrive as bytes. It knows
nothing of who sends them, of other workers, of batches or of the learner.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from agentrl.cluster.log_records import LogRecords, Told
from agentrl.cluster.ray import hide_gpus_not_lent
from agentrl.config import loading
from agentrl.config.settings import Settings
from agentrl.errors import AgentRLError, PolicyError
from agentrl.inference.engines import make_policy
from agentrl.inference.policy import GIVES, Policy, Sampling
from agentrl.renderers.making import rollout_renderer
from agentrl.rollout.completer import Decoding
from agentrl.rollout.exchange import LINGER_S, Answer, Ended, Start
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl.tasks.task import load_environments, make_sandbox
from agentrl.weights.handle import WeightHandle
from agentrl.weights.model_files import find_model, load_tokenizer
from agentrl.weights.shared_memory import weights_folder
from agentrl_sandbox import PoolExhausted
from agentrl_sandbox.remote import RemoteSandbox


class RolloutWorker:
    """One worker; `start` it first.

    Args:
        config: settings of the run, as TOML.
        folder: where the run was started, from which relative paths count; it may not exist here.
        token: for the sandbox servers that the settings name, where they are the run's own.
    """

    def __init__(self, config: str, folder: str, token: str = "") -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
        hide_gpus_not_lent()
        self._token = token
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "config.toml"
            file.write_text(config)
            self._settings = loading.load_settings(file)
        self._records = LogRecords()
        self._decoding = Decoding.of(self._settings)
        self._folder = weights_folder()
        self._loaded: Path | None = None
        self._policy: Policy | None = None
        self._playing: dict[int, asyncio.Task[None]] = {}
        self._ended: list[Ended] = []
        self._more = asyncio.Event()
        """Set once the newest exchange need not wait: an episode has ended, or another exchange has come."""
        self._left = contextlib.AsyncExitStack()

    async def start(self) -> Answer:
        """Start engine and sandbox; what the run must know of them."""
        return await answered(self._start())

    async def _start(self) -> dict[str, Any]:
        settings, path = self._settings, self._settings.model.path
        self._environments = load_environments(settings.env)
        tokenizer = load_tokenizer(path)
        self._renderer = rollout_renderer(tokenizer, settings.rollout)
        self._sandbox = await self._left.enter_async_context(make_sandbox(settings.sandbox, self._token))
        logs = self._left.enter_context(tempfile.TemporaryDirectory(prefix="agentrl-worker-"))
        policy = await make_policy(_engine_settings(settings), self._first, tokenizer, Path(logs))
        self._left.push_async_callback(policy.close)
        await policy.start()
        self._policy = policy
        return {
            "context_tokens": policy.context_tokens,
            **{name: getattr(policy, name, False) for name in GIVES},
            "pid": os.getpid(),
        }

    async def _first(self, version: int, attempt: int) -> WeightHandle:
        """The model's own weights: those of the run, where it goes on, are loaded next."""
        path = find_model(self._settings.model.path) or self._settings.model.path
        return WeightHandle(version=version, attempt=attempt, source=str(path))

    @property
    def policy(self) -> Policy:
        """The engine of this worker."""
        assert self._policy is not None, "start() was not called"
        return self._policy

    async def exchange(self, begin: Sequence[Start], cancel: Sequence[int]) -> list[Ended]:
        """Begin episodes, cancel others, and give those that have ended, once there are some.

        Nothing is given where nothing is left to wait for, and where another exchange has come meanwhile.
        """
        for number, dispatch, environment, row in begin:
            playing = self._play(number, dispatch, environment, row)
            self._playing[number] = asyncio.ensure_future(playing)
        for number in cancel:
            if (task := self._playing.pop(number, None)) is not None:
                task.cancel()
        self._more.set()
        self._more = more = asyncio.Event()
        if self._playing and not self._ended:
            await more.wait()
        if self._ended:
            await asyncio.sleep(LINGER_S)
        ended, self._ended = self._ended, []
        return ended

    async def _play(self, number: int, dispatch: Dispatch, environment: int, row: Mapping[str, Any]) -> None:
        answer = await answered(
            run_episode(
                lambda: self._environments[environment].make(self._sandbox, dispatch.seed),
                self.policy,
                self._renderer,
                row=row,
                dispatch=dispatch,
                settings=self._settings.rollout,
                decoding=self._decoding,
            )
        )
        if self._playing.pop(number, None) is not None:
            self._ended.append((number, answer))
            self._more.set()

    async def check_sandbox(self) -> Answer:
        """Open a session of the sandbox and close it; one that is only full is fine."""
        # A pool elsewhere is not this worker's: another worker would find it as it is.
        if self._settings.sandbox.backend == "remote":
            return ("done", None)
        return await answered(self._check_sandbox())

    async def _check_sandbox(self) -> None:
        with contextlib.suppress(PoolExhausted):
            await (await self._sandbox.open()).close()

    async def use_sandbox_servers(self, urls: Sequence[str]) -> Answer:
        """Let the pool of sandbox servers be these from now on."""
        return await answered(cast("RemoteSandbox", self._sandbox).use_servers(urls))

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, start_version: int
    ) -> Answer:
        """Sample one message; see `Policy.generate`."""
        sampled = self.policy.generate(prompt_ids, sampling, session=session, start_version=start_version)
        return await answered(sampled)

    async def release(self, session: str) -> Answer:
        """Forget a session; see `Policy.release`."""
        return await answered(self.policy.release(session))

    async def load(
        self, version: int, attempt: int, names: Sequence[str], *files: NDArray[np.uint8]
    ) -> Answer:
        """Take weights: the bytes of files of these names, one file or those of a folder.

        Gives the engine's statistics, and what was logged since the last call.
        """
        return await answered(self._load(version, attempt, names, files))

    async def _load(
        self, version: int, attempt: int, names: Sequence[str], files: Sequence[NDArray[np.uint8]]
    ) -> tuple[dict[str, float], list[Told]]:
        target = self._folder / f"{attempt}.{version}"
        target.mkdir(exist_ok=True)
        for name, data in zip(names, files, strict=True):
            await asyncio.to_thread(data.tofile, target / name)  # gigabytes, and episodes go on meanwhile
        source = target / names[0] if len(names) == 1 else target
        await self.policy.load(WeightHandle(version=version, attempt=attempt, source=str(source)))
        if self._loaded is not None and self._loaded != target:
            shutil.rmtree(self._loaded, ignore_errors=True)
        self._loaded = target  # kept: a server of it that dies reads them again
        return self.policy.statistics(), self._records.take()

    async def close(self) -> Answer:
        """Stop the engine and the sandbox; what was logged since the last weights."""
        return await answered(self._close())

    async def _close(self) -> list[Told]:
        playing = list(self._playing.values())
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        await self._left.aclose()
        return self._records.take()


def _engine_settings(settings: Settings) -> Settings:
    """Weights come from files here, and are kept in the type that the learner computes in."""
    engine = settings.engine
    return replace(
        settings,
        engine=replace(
            engine, dtype=settings.model.dtype if engine.dtype == "auto" else engine.dtype, replicas=1
        ),
    )


async def answered(work: Any) -> Answer:
    """What awaiting this gave, or its error in words."""
    try:
        return ("done", await work)
    except AgentRLError as error:
        return (type(error).__name__, str(error))
    except Exception as error:  # the run must learn of it, whatever it is
        return (PolicyError.__name__, f"{type(error).__name__}: {error}")
