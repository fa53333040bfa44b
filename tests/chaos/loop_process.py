"""One process of a run that the chaos tests kill: starts the run, or resumes it when it exists.

Usage: loop_process.py FOLDER [FLAG ...]. Prints one JSON line at the end.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.storage.metrics import read_metrics
from tests.agentrl import conftest as parts


async def main(path: Path, flags: list[str]) -> None:
    delays = random.Random(str(path))

    async def learn() -> None:
        await asyncio.sleep(0.002)

    policy = ScriptedPolicy(
        parts.default_script,
        tokenizer=ByteTokenizer(),
        seconds=lambda request, tokens: delays.choice((0.0, 0.001, 0.001, 0.01)),
    )
    run = await parts.make_loop(
        path,
        flags,
        policy=policy,
        learner=parts.ArithmeticLearner(seconds=learn),
        held_out=[{"id": word, "word": word} for word in parts.WORDS]
        if "--eval.every" in " ".join(flags)
        else (),
    )
    await run.play()
    ledger = run.orchestrator.parts.ledger
    values = run.orchestrator.parts.pool.tracker.values(range(len(run.orchestrator.parts.pool)))
    result = {
        "digest": run.learner.digest,
        "values": [float(value) for value in values],
        "evaluations": [
            [row["step"], row["reward_mean"]]
            for row in read_metrics(run.folder.metrics)
            if row["kind"] == "eval"
        ],
        "ledger": ledger.summary(),
        "attempt": ledger.attempt,
    }
    await run.close()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
