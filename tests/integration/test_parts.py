"""A run whose every part comes from a file outside the package; each is one of `examples/parts`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the run trains (pip install agentrl[train])")

import agentrl
from agentrl.cli.main import main
from agentrl.config.loading import load_settings
from agentrl.errors import PartError
from agentrl.storage.metrics import read_metrics
from agentrl.training.train import train

pytestmark = pytest.mark.slow  # whole runs with the demo's model
DEMO = Path(agentrl.__file__).parent / "demo"
EXAMPLES = Path(__file__).parents[2] / "examples" / "parts"
FLAGS = (
    f"--model.path={DEMO / 'model'}",
    "--run.name=run",
    "--engine.slots=16",
    "--stream.batch=16",
    "--learner.mini_batch=8",
    "--eval.data=",
    "--checkpoint.every=1",
)
PARTS = (
    "--loss.kind=sequence_loss.py:SequenceLoss",
    "--loss.width=0.1",
    "--aggregator.kind=square_root.py:square_root",
    "--estimator.kind=late_credit.py:LateCredit",
    "--estimator.half_life=20",
    "--sampler.kind=rare_first.py:RareFirst",
    "--tracker.kind=shrunk_values.py:Shrunk",
    "--shaper.kind=short_answers.py:ShortAnswers",
    "--shaper.tokens=20",
    "--controller.kind=entropy_floor.py:EntropyFloor",
    "--controller.floor=5",
    "--rollout.format=own_instructions.py:OwnInstructions",
    "--engine.kind=counting_engine.py:Counting",
    "--run.metrics=counts.py:right_per_call",
    "--run.listeners=counts.py:Lines",
)


@pytest.mark.timeout(300)
def test_a_run_of_parts_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = load_settings(DEMO / "demo.toml", [*FLAGS, *PARTS, "--run.steps=2"])
    train(settings)
    run = tmp_path / "runs" / "run"
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["version"] for row in rows] == [1, 2]
    assert len((tmp_path / "steps.txt").read_text().splitlines()) == 2
    for row in rows:
        assert "right_per_call" in row
        assert "loss.entropy_coefficient" in row["controlled"]
        assert 0.0 <= row["clipped"] <= 1.0
        assert "clip_low" not in row
        assert row["engine_asked"] > 0
    # The entropy is below a floor of 5 nats, so the bonus grows from step to step.
    coefficients = [row["controlled"]["loss.entropy_coefficient"] for row in rows]
    assert coefficients[0] == 0.0 < coefficients[1]
    config = (run / "config.toml").read_text()
    assert 'kind = "late_credit.py:LateCredit"' in config
    assert "half_life = 20.0" in config

    # Resumed: the parts are the same, and one whose file changed since is named.
    changed = tmp_path / "rare_first.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    assert main(["train", "--resume", str(run), "--run.steps=3"]) == 0
    assert "source of the sampler rare_first.py:RareFirst has changed" in caplog.text
    resumed = [json.loads(line) for line in (run / "settings.jsonl").read_text().splitlines()]
    assert [list(row["changed"]) for row in resumed if row["kind"] == "resume"] == [
        ["run.steps", "source of the sampler rare_first.py:RareFirst"]
    ]
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["version"] == 3
    assert last["controlled"]["loss.entropy_coefficient"] > coefficients[1]


@pytest.mark.parametrize(
    ("flag", "code", "message"),
    [
        (
            "estimator",
            "def part(batch):\n    return batch.scores[:3]\n",
            r"the estimator 'part.py:part' gave 3 advantages for 16 episodes",
        ),
        ("estimator", "def part(batch):\n    pass\n", r"the estimator 'part.py:part' raised TypeError"),
        ("loss", "def part(inputs):\n    return inputs.current, {'x': 1.0}\n", r"gave 'x' of shape \[\] for"),
        (
            "loss",
            "def part(inputs):\n    return inputs.current.sum(), {}\n",
            r"loss.kind = 'part.py:part' gave 'loss' of shape \[\] for",
        ),
        (
            "shaper",
            "def part(episode):\n    return 7.0\n",
            r"the shaper 'part.py:part' gave episode .* the reward 7.0; .* lie in \[0.0, 1.0\]",
        ),
        (
            "aggregator",
            "def part(counts):\n    return counts[:1] / 0\n",
            r"aggregator.kind = 'part.py:part' gave .*inf|divide by zero",
        ),
    ],
)
@pytest.mark.timeout(300)
def test_what_a_part_does_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, code: str, message: str
) -> None:
    (tmp_path / "part.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    settings = load_settings(DEMO / "demo.toml", [*FLAGS, f"--{flag}.kind=part.py:part", "--run.steps=1"])
    with pytest.raises(PartError, match=message):
        train(settings)
