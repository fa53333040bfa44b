"""A run whose baselines are predicted from hidden states of the sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the run trains (pip install agentrl[train])")
transformers = pytest.importorskip("transformers")

import agentrl
from agentrl.cli.main import main
from agentrl.config.loading import load_settings
from agentrl.storage.checkpoint import checkpoint_folders, read_state
from agentrl.storage.recorder import read_episodes
from agentrl.storage.run_folder import RunFolder
from agentrl.training.train import train

DEMO = Path(agentrl.__file__).parent / "demo"
POISE = Path(__file__).parents[2] / "examples" / "methods" / "poise.py"
FLAGS = (
    f"--model.path={DEMO / 'model'}",
    "--run.deterministic=true",
    "--stream.batch=8",
    "--engine.slots=8",
    "--eval.data=",
    "--checkpoint.every=1",
    f"--estimator.kind={POISE}:PromptPrior",
    "--estimator.buffer=12",
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hidden_states_travel_with_episodes_and_the_buffer_survives_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(load_settings(DEMO / "demo.toml", [*FLAGS, "--run.steps=2", "--run.name=whole"]))
    train(load_settings(DEMO / "demo.toml", [*FLAGS, "--run.steps=1", "--run.name=parted"]))
    assert main(["train", "--resume", "runs/parted", "--run.steps=2"]) == 0
    whole, parted = RunFolder(tmp_path / "runs" / "whole"), RunFolder(tmp_path / "runs" / "parted")
    memories = [
        read_state(checkpoint_folders(one.checkpoints)[-1]).light["parts"]["estimator"]
        for one in (whole, parted)
    ]
    assert memories[0] == memories[1]
    assert len(memories[0]["scores"]) == 12
    digests = [(one.newest_weights() / "model.safetensors").read_bytes() for one in (whole, parted)]
    assert digests[0] == digests[1]
    # What the engine gave at version 0 is the mean hidden state of the first weights; the demo is in float32.
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    first = [one for one in read_episodes(whole.episodes) if one.start_version == 0]
    assert len(first) >= 8
    for segment in (one.segments[0] for one in first):
        prompt = torch.tensor([segment.token_ids[: segment.loss_mask.find(1)].tolist()])
        with torch.no_grad():
            states = model(prompt, output_hidden_states=True).hidden_states[-1][0, -10:]
        np.testing.assert_allclose(segment.prompt_features, states.mean(0), atol=1e-4)
