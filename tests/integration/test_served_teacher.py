"""A run that learns from a teacher behind a server."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the run trains (pip install agentrl[train])")
transformers = pytest.importorskip("transformers")

import agentrl
from agentrl.config.loading import load_settings
from agentrl.errors import ConfigError
from agentrl.storage.metrics import read_metrics
from agentrl.storage.recorder import read_episodes
from agentrl.training.plan import plan_run
from agentrl.training.train import train
from tests.agentrl.scoring_server import ScoringServer

DEMO = Path(agentrl.__file__).parent / "demo"
URL = "http://127.0.0.1:9"
FLAGS = (
    f"--model.path={DEMO / 'model'}",
    "--run.name=run",
    "--engine.slots=16",
    "--stream.batch=8",
    "--eval.data=",
    "--loss.kind=distillation",
)


def test_a_server_gives_log_probabilities_at_temperature_1_only() -> None:
    with pytest.raises(ConfigError, match=r"loss.teacher is a server, .* rollout.temperature = 0.7"):
        load_settings(DEMO / "demo.toml", [*FLAGS, f"--loss.teacher={URL}", "--rollout.temperature=0.7"])


def test_a_teacher_that_the_loss_does_not_ask_is_refused() -> None:
    settings = load_settings(DEMO / "demo.toml", [*FLAGS, "--loss.kind=clipped", f"--loss.teacher={URL}"])
    with pytest.raises(ConfigError, match=r"loss.kind = 'clipped' asks none"):
        plan_run(settings)
    with pytest.raises(ConfigError, match=r"requires a teacher: name its weights, .* or a vLLM server"):
        plan_run(load_settings(DEMO / "demo.toml", FLAGS))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_learns_from_a_served_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "model")
    with ScoringServer(model, tokenizer, troubles=[503]).running() as server:
        # The first request of all is the proof at the start, which an outage ends.
        flags = [*FLAGS, f"--loss.teacher={server.url}", "--run.steps=2"]
        with pytest.raises(
            agentrl.errors.PolicyError, match=r"the teacher answered /v1/completions with 503"
        ):
            train(load_settings(DEMO / "demo.toml", flags))
        train(load_settings(DEMO / "demo.toml", [*flags, "--run.name=again"]))
    run = tmp_path / "runs" / "again"
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["version"] for row in rows] == [1, 2]
    # The teacher's weights are those that the policy began with; the demo computes in float32.
    assert abs(rows[0]["teacher_divergence"]) < 1e-4
    taught = [segment for one in read_episodes(run / "episodes") for segment in one.segments]
    assert all(len(segment.teacher_logprobs) == segment.num_sampled > 0 for segment in taught)
