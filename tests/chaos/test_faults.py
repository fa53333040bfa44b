"""Each part of a run may die, stall or slow down: the run recovers by its rule, or ends and says who it was."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import LearnerError, PolicyUnavailable, StallError
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.storage.ledger import State
from agentrl.storage.run_folder import RunFolder
from agentrl.training.resume import resume
from agentrl_envs import SandboxFailure, tool
from tests.agentrl import conftest as parts

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]


NewLoop = Callable[..., Any]


@pytest.fixture
def new_loop(tmp_path: Path) -> NewLoop:
    return lambda *flags, **given: parts.make_loop(RunFolder.create(tmp_path, "run"), flags, **given)


async def test_an_engine_that_is_gone_for_a_while_costs_failures_and_no_rewards(new_loop: NewLoop) -> None:
    calls = itertools.count()

    def script(request: Any) -> Any:
        if 5 <= next(calls) < 20:
            raise PolicyUnavailable("connection refused by 127.0.0.1:1")
        return parts.default_script(request)

    run = await new_loop(
        "--sampler.quarantine_after=20", policy=ScriptedPolicy(script, tokenizer=ByteTokenizer())
    )
    await run.orchestrator.run()
    ledger = run.orchestrator.parts.ledger
    assert ledger.counts[State.LEARNED] == 32
    assert ledger.counts[State.FAILED] == 15
    assert ledger.discarded_by_reason() == {"failed: policy: PolicyUnavailable": 15}
    await run.close()


async def test_a_sandbox_pool_that_is_exhausted_costs_failures_and_no_rewards(new_loop: NewLoop) -> None:
    opened = itertools.count()

    class Pooled(parts.Echo):
        async def setup(self) -> None:
            if next(opened) % 3 == 0:
                raise SandboxFailure("the pool is exhausted: 64 of 64 sessions are open")

    run = await new_loop("--sampler.quarantine_after=50", env=Pooled)
    await run.orchestrator.run()
    ledger = run.orchestrator.parts.ledger
    assert ledger.counts[State.LEARNED] == 32
    assert list(ledger.discarded_by_reason()) == ["failed: sandbox: SandboxFailure"]
    await run.close()


async def test_a_learner_that_stalls_is_named(new_loop: NewLoop) -> None:
    async def forever() -> None:
        await asyncio.sleep(3600)

    run = await new_loop("--run.wait_limit_s=0.5", learner=parts.ArithmeticLearner(seconds=forever))
    with pytest.raises(StallError, match="waited 0 s for the learner's step at version 0|the learner's step"):
        await run.orchestrator.run()
    assert "the learner's step at version 0" in (run.folder.logs / "stalls.txt").read_text()
    await run.close()


async def test_a_learner_that_dies_ends_the_run_which_can_be_resumed(
    new_loop: NewLoop, tmp_path: Path
) -> None:
    steps = itertools.count()

    async def dies() -> None:
        if next(steps) == 2:
            raise LearnerError("the gradient of episode t17 is not finite")

    run = await new_loop("--checkpoint.every=1", learner=parts.ArithmeticLearner(seconds=dies))
    with pytest.raises(LearnerError, match="t17"):
        await run.orchestrator.run()
    assert run.orchestrator.version == 2
    await run.close()
    again = await parts.make_loop(RunFolder.open(tmp_path / "run"), ("--checkpoint.every=1",))
    await resume(again.orchestrator)
    assert again.orchestrator.version == 2
    await again.orchestrator.run()
    assert again.orchestrator.parts.ledger.counts[State.LEARNED] == 32
    await again.close()


async def test_an_environment_that_never_returns_fails_and_the_run_goes_on(new_loop: NewLoop) -> None:
    asked = itertools.count()

    class Hangs(parts.Echo):
        async def setup(self) -> None:
            if next(asked) == 3:
                await asyncio.sleep(3600)

    run = await new_loop("--rollout.limit_s=1", env=Hangs)
    await run.orchestrator.run()
    ledger = run.orchestrator.parts.ledger
    assert ledger.counts[State.LEARNED] == 32
    assert ledger.discarded_by_reason() == {"failed: env: StallError": 1}
    await run.close()


async def test_a_tool_that_returns_a_hundred_megabytes_is_cut(new_loop: NewLoop) -> None:
    class Floods(parts.Echo):
        @tool
        async def python(self, code: str) -> str:
            "Run Python."
            return "x" * 100_000_000

        def reward(self, row: Any, answer: str | None) -> bool:
            return answer == "done"

    script = ["<code>\n```python\n1\n```\n</code>", "done<|end|>"]
    run = await new_loop(
        "--run.steps=1",
        "--stream.batch=2",
        "--learner.mini_batch=2",
        "--stream.in_flight=1",
        "--stream.staleness=0",
        env=Floods,
        policy=ScriptedPolicy(script, tokenizer=ByteTokenizer()),
    )
    await run.orchestrator.run()
    assert run.orchestrator.parts.ledger.counts[State.LEARNED] == 2
    recorded = next((run.folder.episodes).glob("*"))
    assert recorded.stat().st_size < 100_000
    await run.close()


async def test_jumps_of_the_wall_clock_change_nothing(
    new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle((0.0, 1e6, -1e6))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    run = await new_loop()
    await run.orchestrator.run()
    assert run.orchestrator.parts.ledger.summary() == {"learned": 32}
    await run.close()


DISK_FULL = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["loop_process.py", {folder!r}, *{flags!r}]
runpy.run_path({process!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1_500, 5_000, 12_000])
def test_a_disk_that_fills_up_loses_nothing(limit: int, tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk: writes fail in the middle of the run.
    process = str(Path(__file__).with_name("loop_process.py"))
    folder, flags = (
        str(tmp_path / "run"),
        ["--run.steps=6", "--run.deterministic=true", "--checkpoint.every=2"],
    )
    code = DISK_FULL.format(limit=limit, folder=folder, flags=flags, process=process)
    environment = {
        "PYTHONPATH": ":".join(str(ROOT / part) for part in (".", "envs", "sandbox")),
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",  # the limit would cut bytecode files too
    }
    full = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert full.returncode != 0
    assert "File too large" in full.stderr
    resumed, whole = (
        subprocess.run(
            [sys.executable, process, place, *flags],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
        )
        for place in (folder, str(tmp_path / "whole"))
    )
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert resumed.stdout.split('"ledger"')[0] == whole.stdout.split('"ledger"')[0]
