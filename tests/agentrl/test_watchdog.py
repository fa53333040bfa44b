"""Every wait has a limit, and the error names who was waited for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from agentrl.errors import StallError
from agentrl.training.watchdog import Watchdog


async def test_a_wait_past_its_limit_names_the_owner_and_writes_stacks(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path)

    async def forever() -> None:
        await asyncio.sleep(3600)

    with pytest.raises(StallError, match=r"waited 0 s for vLLM server 1; restart it; stacks are in"):
        await watchdog.wait(forever(), "vLLM server 1", 0.05, "restart it")
    assert watchdog.waits() == []
    text = (tmp_path / "stalls.txt").read_text()
    assert "vLLM server 1" in text
    assert "forever" in text


async def test_an_error_inside_the_wait_is_not_a_stall(tmp_path: Path) -> None:
    async def fails() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own") as caught:
        await Watchdog(tmp_path).wait(fails(), "somebody", 5.0)
    assert not isinstance(caught.value, StallError)


async def test_waits_are_known_while_they_last() -> None:
    watchdog = Watchdog()
    gate = asyncio.Event()
    waiting = asyncio.ensure_future(watchdog.wait(gate.wait(), "the gate", 5.0))
    await asyncio.sleep(0)
    assert [wait.owner for wait in watchdog.waits()] == ["the gate"]
    assert watchdog.describe().startswith("the gate: 0.0 s of 5 s")
    gate.set()
    await waiting


async def test_a_loop_that_does_not_turn_is_noticed(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, loop_limit_s=0.1)
    watchdog.start()
    time.sleep(0.6)  # noqa: ASYNC251 - blocking the loop is what is tested
    watchdog.stop()
    assert watchdog.loop_stalls >= 1
    assert "has not turned" in (tmp_path / "stalls.txt").read_text()


async def test_progress_renews_a_limit(tmp_path: Path) -> None:
    watchdog, count = Watchdog(tmp_path), 0

    async def counts() -> str:
        nonlocal count
        for _ in range(8):
            await asyncio.sleep(0.05)
            count += 1
        return "done"

    # 0.4 s in all, with never more than 0.05 s between two signs of life.
    assert await watchdog.wait(counts(), "a counter", 0.3, progress=lambda: count) == "done"
    with pytest.raises(StallError, match="waited 0 s for a counter"):
        await watchdog.wait(counts(), "a counter", 0.3, progress=lambda: None)


async def test_what_does_not_end_when_it_is_cancelled_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentrl.training.watchdog.GRACE_S", 0.05)
    released = asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    work = asyncio.ensure_future(stubborn())
    with pytest.raises(StallError, match="waited 0 s for a stubborn tool"):
        await Watchdog(tmp_path).wait(work, "a stubborn tool", 0.05)
    assert "a stubborn tool did not end" in caplog.text
    released.set()
    await work
