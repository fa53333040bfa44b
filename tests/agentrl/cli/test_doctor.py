"""`agentrl doctor` on machines that exist and machines that do not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import agentrl
from agentrl.cli.doctor import diagnose, report
from agentrl.cli.main import main
from agentrl.cluster.placement import Gpu, Machine
from agentrl.config.settings import EngineSettings, ModelSettings, Settings

CONFIG = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}
SMALL = Machine(cores=2, memory=2**31, memory_available=2**30, shared_memory=2**30)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def settings_for(path: Path, **engine: object) -> Settings:
    return Settings(model=ModelSettings(path=str(path)), engine=EngineSettings(**engine))  # type: ignore[arg-type]


def test_what_fits(model: Path):
    found = diagnose(settings_for(model), SMALL)
    assert found.problems == ()
    assert found.engine == "transformers"
    text = "\n".join(report(found))
    assert "there is no GPU" in text
    assert "fits" in text


def test_what_does_not_fit_says_by_how_many_bytes(model: Path):
    found = diagnose(settings_for(model, slots=10_000), replace(SMALL, memory_available=10**8))
    (problem,) = found.problems
    assert "does not fit: memory has 100,000,000 bytes and needs" in problem
    plan = found.models[str(model)][0]
    assert f"short of {plan.least - 100_000_000:,} bytes" in "\n".join(report(found))


def test_too_few_gpus_for_a_layout(model: Path):
    one = replace(SMALL, gpus=(Gpu(0, "card", 2**36, 2**36),))
    found = diagnose(settings_for(model, kind="vllm", urls=("http://x",)), one)
    assert "2 together, and there are 1" in found.problems[0]


def test_a_missing_model():
    found = diagnose(settings_for(Path("/nowhere")), SMALL)
    assert "there is no such folder" in found.problems[0]


def test_the_command(model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--model", str(model), "--json", "--engine.context_tokens=128"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engine"] in ("transformers", "vllm")
    (plan, *_) = found["models"][str(model)]
    assert plan["fits"]
    assert main(["doctor"]) == 0
    assert "Qwen/Qwen3-8B, 8,190,735,360 weights" in capsys.readouterr().out
    assert main(["doctor", "--model", "/nowhere"]) == 1


def test_a_machine_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    example = ["doctor", "examples/qwen3_8b_dapo.toml"]
    assert main([*example, "--gpus", "8x80", "--memory", "256"]) == 0
    text = capsys.readouterr().out
    assert "GPU 0 (80 GB, imagined) to GPU 3 (80 GB, imagined), each, learner: 59,404,708,608 of" in text
    assert "GPU 4 (80 GB, imagined) to GPU 7 (80 GB, imagined), each, vLLM" in text
    assert "with keys for 23% of the slots at full length" in text
    assert main([*example, "--gpus", "8x40", "--memory", "64"]) == 1
    text = capsys.readouterr().out
    # The learner is short on every GPU, the weights that four ranks read in memory; vLLM fits with a few sequences.
    assert text.count("problem: Qwen/Qwen3-8B does not fit") == 5
    assert main([*example, "--gpus", "eight"]) == 1
    assert "--gpus 'eight': want a number and a size" in capsys.readouterr().err


def test_a_dry_run_says_what_the_machine_would_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = Path(agentrl.__file__).parent / "demo" / "model"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"problem": "{n}+1", "answer": "{n + 1}"}}\n' for n in range(8)))
    flags = [f"--model.path={model}", f"--data.train={data}", "--stream.batch=8"]
    example = str(Path(agentrl.__file__).parents[1] / "examples/gsm8k_python.toml")
    more = ["--data.limit=0", "--eval.data=", "--tracker.initial_file="]
    assert main(["train", example, "--dry-run", *flags, *more]) == 0
    told = capsys.readouterr().err
    assert re.search(r"^memory: [\d,]+ of [\d,]+ bytes: (fits|DOES NOT FIT)", told, flags=re.MULTILINE), told
