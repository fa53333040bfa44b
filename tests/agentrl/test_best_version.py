"""The version with the best held-out score is kept, whatever interrupts the run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.cli.main import main
from agentrl.config import loading
from agentrl.errors import AgentRLError, DiskError
from agentrl.inference.run_weights import best_weights
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.storage import durable
from agentrl.storage.metrics import read_metrics
from agentrl.storage.run_folder import RunFolder
from agentrl.training.train import write_config
from tests.agentrl import conftest as parts

FLAGS = ("--run.deterministic=true", "--run.steps=6", "--checkpoint.every=4", "--eval.every=1")
HELD_OUT = [{"id": word, "word": word} for word in parts.WORDS]


SKILL = (0.1, 0.3, 0.6, 0.95, 0.5, 0.95, 0.2)
"""Share of right answers of each version."""


class WrittenLearner(parts.ArithmeticLearner):
    """Its weights say which they are."""

    async def save_weights(self, folder: Path) -> None:
        await super().save_weights(folder)
        (folder / "weights.json").write_text(json.dumps(self.weight))


async def attempt(path: Path, *flags: str) -> bool:
    """One attempt of a run; whether it came to its end."""

    def script(request: Any) -> dict[str, float]:
        skill = SKILL[run.orchestrator.version]
        return {f"{request.prompt.strip()[-2:]}<|end|>": skill, "no<|end|>": 1 - skill}

    run = await parts.make_loop(
        path,
        (*FLAGS, *flags),
        learner=WrittenLearner(),
        held_out=HELD_OUT,
        policy=ScriptedPolicy(script, tokenizer=ByteTokenizer()),
    )
    write_config(run.folder, loading.load_settings(None, [*FLAGS, *flags]))
    try:
        await run.play()
    except AgentRLError as error:
        assert "the disk is gone" in str(error)  # noqa: PT017 - any other failure is one of the test
        return False
    finally:
        await run.close()
    return True


def kept(path: Path) -> tuple[Any, ...]:
    found = RunFolder.open(path).best_version()
    assert found is not None
    return found["version"], found["score"], (path / "best" / "weights.json").read_text()


def first_best(path: Path) -> tuple[int, float]:
    scores = {
        row["version"]: row["reward_mean"]
        for row in read_metrics(path / "metrics.jsonl")
        if row["kind"] == "eval"
    }
    assert len(scores) == 7
    best = max(scores, key=lambda version: (scores[version], -version))
    return best, scores[best]


@pytest.mark.slow
def test_the_best_version_is_kept_through_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "kill_point", count := Counted())
    assert asyncio.run(attempt(tmp_path / "whole"))
    expected = kept(tmp_path / "whole")
    assert expected[:2] == first_best(tmp_path / "whole")
    assert 0 < expected[0] < 6  # neither of the ends, which are kept anyway
    # Wherever the disk goes: also between the score and the weights, and between two renames.
    interrupted = 0
    for moment in range(20, count.passages, 29):
        path = tmp_path / f"cut-{moment}"
        count.passages, count.fails_at = 0, moment
        ended = asyncio.run(attempt(path))
        count.fails_at = 0
        if not ended:
            interrupted += 1
            assert asyncio.run(attempt(path))
        assert kept(path) == expected, moment
        assert not list(path.glob(".best*"))
    # Rows are written in groups, so one run makes more writes than another: the last moments may lie beyond.
    assert interrupted >= 4


class Counted:
    """Counts durable writes; from the moment that `fails_at` is set to, none reaches the disk."""

    def __init__(self) -> None:
        self.passages = self.fails_at = 0

    def __call__(self, name: str) -> None:
        self.passages += 1
        if self.fails_at and self.passages >= self.fails_at:
            raise DiskError(name, OSError(5, "the disk is gone"))


def test_export_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert asyncio.run(attempt(tmp_path / "run"))
    assert best_weights(tmp_path / "run") == tmp_path / "run" / "best"
    assert main(["export", "run", "out", "--best"]) == 0
    assert (tmp_path / "out" / "weights.json").read_text() == kept(tmp_path / "run")[2]
    assert main(["export", "run", "other", "--best", "--version", "2"]) == 1
    assert "give one of them" in capsys.readouterr().err
    assert asyncio.run(attempt(tmp_path / "off", "--checkpoint.best=false"))
    assert not (tmp_path / "off" / "best").exists()
    assert main(["export", "off", "other", "--best"]) == 1
    assert "it was not asked to" in capsys.readouterr().err
