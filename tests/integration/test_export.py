"""Weights that a run writes on its way are the ones that its engine sampled with, and load as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the run trains (pip install agentrl[train])")
transformers = pytest.importorskip("transformers")

import agentrl
from agentrl.cli.main import main
from agentrl.config.loading import load_settings
from agentrl.storage.recorder import read_episodes
from agentrl.training.train import train

pytestmark = pytest.mark.slow  # whole runs with the demo's model
DEMO = Path(agentrl.__file__).parent / "demo"
FLAGS = (
    "--run.name=run",
    "--run.steps=4",
    "--engine.slots=16",
    "--stream.batch=16",
    "--learner.mini_batch=8",
    "--learner.learning_rate=1e-3",
    "--eval.data=",
    "--checkpoint.weights_every=2",
)


@pytest.mark.timeout(300)
def test_exported_weights_give_the_log_probabilities_that_the_engine_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # Fails when `_save_weights` is called before the step whose version it writes.
    flags = [f"--model.path={DEMO / 'model'}", f"--run.directory={tmp_path}", *FLAGS]
    train(load_settings(DEMO / "demo.toml", flags))
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "weights").iterdir()) == ["step_2", "step_4"]
    assert main(["export", str(run), str(tmp_path / "second"), "--version", "2"]) == 0
    assert main(["export", str(run), str(tmp_path / "last")]) == 0
    assert main(["export", str(run), str(tmp_path / "none"), "--version", "3"]) == 1
    assert "no weights of version 3; it has the versions 0, 2, 4" in capsys.readouterr().err

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "second")
    assert tokenizer.decode(tokenizer.encode("12*3")) == "12*3"
    second = differences(tmp_path / "second", run, 2)
    last = differences(tmp_path / "last", run, 2)
    assert len(second) > 50
    assert np.abs(second).max() < 1e-3
    # Two steps at this rate move the policy by far more than rounding does.
    assert np.abs(last).mean() > 10 * np.abs(second).mean()


def differences(weights: Path, run: Path, version: int) -> np.ndarray:
    """Log-probability of each token sampled by a version, under exported weights, less what was recorded."""
    model = transformers.AutoModelForCausalLM.from_pretrained(weights).eval()
    found: list[float] = []
    for episode in read_episodes(run / "episodes"):
        (segment,) = episode.segments
        versions = np.frombuffer(segment.policy_versions, dtype=np.int32)
        recorded = np.frombuffer(segment.logprobs, dtype=np.float32)
        if set(versions[versions >= 0].tolist()) != {version}:
            continue
        ids = torch.tensor([segment.token_ids.tolist()])
        with torch.no_grad():
            logprobs = model(ids).logits[0].float().log_softmax(-1)
        found += [
            float(logprobs[place - 1, ids[0, place]]) - float(recorded[place])
            for place in np.flatnonzero(versions == version)
        ]
    return np.array(found)
