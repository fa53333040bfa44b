"""Two steps of the demo's model, on eight sums or on other rows, by whatever environment plays them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import agentrl
from agentrl.config.loading import load_settings
from agentrl.storage.metrics import read_metrics

DEMO = Path(agentrl.__file__).parent / "demo"
SUMS = [{"id": str(n), "problem": f"{n}*8+1", "answer": str(n * 8 + 1)} for n in range(20, 28)]


def two_steps(
    folder: Path,
    env: str,
    settings: str = "",
    *,
    rows: Sequence[dict[str, Any]] = SUMS,
    flags: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The rows of both steps.

    Args:
        folder: of the run.
        env: `env.name`.
        settings: lines of `[env.settings]`.
        rows: of the data.
        flags: more settings of the run.
    """
    from agentrl.training.train import train

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (DEMO / "demo.toml").read_text().replace("generated:train:250", str(folder / "rows.jsonl"))
    text = text.replace('name = "arithmetic"', f"name = {json.dumps(env)}\n\n[env.settings]\n{settings}")
    (folder / "run.toml").write_text(text)
    flags = [
        *flags,
        f"--model.path={DEMO / 'model'}",
        f"--run.directory={folder}",
        "--run.name=run",
        "--run.steps=2",
        "--stream.batch=3",
        "--stream.in_flight=3",
        "--eval.data=",
        "--learner.mini_batch=3",
        "--checkpoint.every=2",
    ]
    train(load_settings(folder / "run.toml", flags))
    steps = [row for row in read_metrics(folder / "run" / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["tokens_learned"] > 0 for row in steps)
    return steps
