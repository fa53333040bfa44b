"""Episodes of a rollout worker in this process, handed over in few calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from agentrl.config import bundled, loading
from agentrl.errors import PolicyUnavailable
from agentrl.rollout.completer import Dispatch
from agentrl.rollout.exchange import Ended, Exchange, Start
from agentrl.rollout.worker import RolloutWorker

ENVIRONMENT = """
import asyncio
from agentrl_envs.arithmetic import Arithmetic

class Sleepy(Arithmetic):
    async def reward(self, row, answer):
        await asyncio.sleep(row["sleep"])
        return super().reward(row, answer)
"""


@dataclass(slots=True)
class Calls:
    """The worker's side, and what was asked of it; it dies where it is told to."""

    worker: RolloutWorker
    begun: list[int] = field(default_factory=list[int])
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    async def exchange(self, begin: list[Start], cancel: list[int]) -> list[Ended]:
        self.begun.append(len(begin))
        answered = asyncio.ensure_future(self.worker.exchange(begin, cancel))
        dying = asyncio.ensure_future(self.dead.wait())
        done, left = await asyncio.wait({answered, dying}, return_when=asyncio.FIRST_COMPLETED)
        for one in left:
            one.cancel()
        if answered not in done:
            raise PolicyUnavailable("died")
        return answered.result()


@contextlib.asynccontextmanager
async def started(tmp_path: Path) -> AsyncIterator[Calls]:
    """A worker with the demo's engine."""
    (tmp_path / "sleepy.py").write_text(ENVIRONMENT)
    settings = loading.load_settings(bundled.SETTINGS, [f"--model.path={bundled.MODEL}"])
    environment = replace(settings.env[0], name=f"{tmp_path}/sleepy.py:Sleepy")
    worker = RolloutWorker(loading.to_toml(replace(settings, env=(environment,))), str(Path.cwd()))
    assert (await worker.start())[0] == "done"
    try:
        yield Calls(worker)
    finally:
        assert (await worker.close())[0] == "done"


def play(exchange: Exchange, index: int, sleep: float = 0.0) -> asyncio.Task[tuple[str, object]]:
    """An episode whose reward takes some seconds."""
    dispatch = Dispatch(f"e{index}", index, "p", 0, seed=index)
    row = {"id": "p", "problem": "1+1", "answer": "2", "sleep": sleep}
    return asyncio.ensure_future(exchange.play(dispatch, 0, row))


async def test_many_episodes_in_few_calls(tmp_path: Path) -> None:
    async with started(tmp_path) as calls:
        exchange = Exchange(calls.exchange)
        answers = await asyncio.gather(*(play(exchange, index) for index in range(24)))
        assert [answer[1].episode_id for answer in answers] == [f"e{index}" for index in range(24)]
        assert all(answer[1].failure is None for answer in answers)
        assert calls.begun[0] == 24
        assert len(calls.begun) < 24
        (later,) = await asyncio.gather(play(exchange, 24))
        assert later[1].episode_id == "e24"
        exchange.close()


async def test_one_that_takes_long_keeps_no_other(tmp_path: Path) -> None:
    async with started(tmp_path) as calls:
        exchange = Exchange(calls.exchange)
        long = play(exchange, 0, sleep=300.0)
        await asyncio.sleep(0.1)
        assert (await asyncio.wait_for(play(exchange, 1), 60.0))[1].episode_id == "e1"
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        async with asyncio.timeout(10.0):
            while calls.worker._playing:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        exchange.close()


async def test_a_worker_that_is_gone_costs_all_its_episodes(tmp_path: Path) -> None:
    async with started(tmp_path) as calls:
        exchange = Exchange(calls.exchange)
        playing = [play(exchange, index, sleep=300.0) for index in range(3)]
        await asyncio.sleep(0.1)
        calls.dead.set()
        for one in playing:
            with pytest.raises(PolicyUnavailable, match="died"):
                await one
        with pytest.raises(PolicyUnavailable, match="died"):
            await play(exchange, 3, sleep=300.0)
        exchange.close()
