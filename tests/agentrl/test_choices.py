"""What a run without a settings file leaves open is chosen for the machine; what was said stays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agentrl import train
from agentrl.api import keywords
from agentrl.cli.main import main
from agentrl.cluster.model_shape import known_shapes
from agentrl.cluster.placement import Gpu, Machine
from agentrl.config import bundled, loading
from agentrl.config.settings import Settings
from agentrl.training.choices import Choices, lines, longest_prompt
from agentrl_envs import load_env

CPU = Machine(cores=2, memory=16 * 2**30, memory_available=12 * 2**30, shared_memory=2**30)
GPU = Machine(8, 2**34, 2**34, 2**33, (Gpu(0, "card", 24 * 10**9, 24 * 10**9),))
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M"


def choices(machine: Machine, *flags: str) -> Choices:
    return Choices(loading.load_settings(None, flags), loading.said(flags), machine, imagined=True)


def test_the_bundled_model_comes_with_the_settings_it_was_made_for():
    made = choices(CPU, "--env.name=arithmetic", "--learner.learning_rate=1e-4")
    made.choose_model_and_rows()
    settings = made.settings
    assert bundled.is_bundled(settings.model.path)
    assert settings.learner.learning_rate == 1e-4  # said
    assert (settings.loss.kl_coefficient, settings.rollout.max_tokens, settings.stream.batch) == (0.2, 64, 64)
    assert settings.data.train == "generated:train:250"
    assert settings.eval.data == "generated:test:64"
    text = "\n".join(lines(made.made))
    assert 'model.path = "demo": no model was named' in text
    assert "learning_rate" not in text


def test_nothing_that_was_said_is_chosen():
    told = {
        "stream.batch": "100",
        "engine.slots": "100",
        "rollout.max_tokens": "9",
        "sampler.copies_per_prompt": "7",
        "engine.context_tokens": "77",
        "learner.micro_batch_tokens": "16000",
    }
    flags = [f"--{name}={value}" for name, value in told.items()]
    made = choices(CPU, "--model.path=x", *flags)
    made.choose_model_and_rows()
    made.choose_batch(10)
    made.choose_lengths(known_shapes()[SMOLLM2], 100, 4)
    made.choose_devices(known_shapes()["Qwen/Qwen2.5-0.5B"])
    assert not set(told) & {choice.name for choice in made.made}


def test_python_says_what_flags_say():
    given = {"model": "x", "stream": {"batch": 16}, "preset": "rloo", "learner.learning_rate": 1e-5}
    settings, said = keywords.settings_of("arithmetic", given)
    flags = ["--env.name=arithmetic", "--model.path=x", "--stream.batch=16", "--preset=rloo"]
    assert said == loading.said([*flags, "--learner.learning_rate=1e-5"])
    assert {"stream.batch", "estimator.group_size"} <= said
    assert settings.stream.batch == 16


def test_settings_and_their_files_are_taken_as_they_are(tmp_path: Path):
    (tmp_path / "run.toml").write_text('[model]\npath = "x"\n')
    settings, said = keywords.settings_of(tmp_path / "run.toml", {"steps": 3})
    assert said is None
    assert keywords.settings_of(settings, {"steps": 4})[1] is None


def test_a_preset_is_said():
    assert "tracker.initial_rollouts" in loading.said(["--preset=spo"])
    assert "stream.batch" not in loading.said(["--preset", "spo"])


@pytest.mark.parametrize(("rows", "batch", "copies"), [(1, 8, 16), (40, 32, 1), (20, 16, 2), (10_000, 32, 1)])
def test_a_batch_is_one_that_the_rows_can_fill(rows: int, batch: int, copies: int):
    made = choices(CPU, "--model.path=x")
    made.choose_model_and_rows()
    made.choose_batch(rows)
    assert made.settings.stream.batch == batch
    assert made.settings.sampler.copies_per_prompt == copies
    assert made.settings.engine.slots <= 2 * batch


def test_a_batch_holds_whole_groups():
    made = choices(CPU, "--model.path=x", "--estimator.kind=grpo", "--estimator.group_size=8")
    made.choose_batch(3)
    assert made.settings.stream.batch == 16


def test_a_model_on_a_cpu_fits_its_memory_and_begins_soon():
    made = choices(CPU, f"--model.path={SMOLLM2}")
    made.choose_model_and_rows()
    made.choose_lengths(known_shapes()[SMOLLM2], 200, 4)
    made.choose_devices(known_shapes()[SMOLLM2])
    settings = made.settings
    assert settings.engine.context_tokens < 4096 < known_shapes()[SMOLLM2].context
    assert settings.stream.batch < 32
    assert any("would take about" in choice.why for choice in made.made)
    assert not settings.learner.adapter.rank


def test_one_gpu_is_shared_and_an_adapter_is_the_last_resort():
    made = choices(GPU, "--model.path=Qwen/Qwen3-1.7B")
    made.choose_model_and_rows()
    made.choose_lengths(known_shapes()["Qwen/Qwen3-1.7B"], None, 8)
    made.choose_devices(known_shapes()["Qwen/Qwen3-1.7B"])
    assert made.settings.engine.layout == "shared"
    assert made.settings.learner.adapter.rank == 16
    assert made.settings.learner.learning_rate == 2e-5
    assert made.settings.engine.context_tokens < 16_384


def test_the_same_machine_gives_the_same_choices():
    # No choice is made by a measurement.
    def chosen() -> Settings:
        made = choices(CPU, f"--model.path={SMOLLM2}", "--run.deterministic=true")
        made.choose_model_and_rows()
        made.choose_devices(known_shapes()[SMOLLM2])
        return made.settings

    assert chosen() == chosen()


def test_longer_rows_count_as_longer_prompts():
    assert longest_prompt(50, {"a": "x"}, [{"a": "x" * 301}]) == 150


def test_the_demo_is_a_name_unless_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert loading.load_settings(None, ["--model.path=demo"]).model.path == str(bundled.MODEL)
    (tmp_path / "demo").mkdir()
    assert loading.load_settings(None, ["--model.path=demo"]).model.path == "demo"


@pytest.mark.slow
@pytest.mark.timeout(300)  # on a machine that others load
def test_an_environment_alone_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch", reason="it trains (pip install agentrl[train])")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "double.py").write_text(
        "from agentrl import Env\n\n"
        "class Double(Env):\n"
        "    example_rows = ({'n': 1}, {'n': 2}, {'n': 3})\n"
        "    def prompt(self, row): return f\"2*{row['n']}\"\n"
        "    def reward(self, row, answer): return self.grade(answer, 2 * row['n'])\n"
    )
    assert main(["train", "double.py", "--steps", "1"]) == 0
    assert "chosen for this machine" in capsys.readouterr().err
    written = loading.load_settings(tmp_path / "runs" / "001" / "config.toml")
    assert (written.stream.batch, written.sampler.copies_per_prompt) == (8, 6)
    assert written.data.train == "env:example_rows"
    start = json.loads((tmp_path / "runs" / "001" / "settings.jsonl").read_text().splitlines()[0])
    assert start["chosen"]["stream.batch"] == 8
    # From Python the same is chosen, told and written.
    run = train(load_env("double.py"), steps=1)
    named = dataclasses.replace(run.settings.run, name=written.run.name)
    assert dataclasses.replace(run.settings, run=named, env=written.env) == written
    assert "stream.batch = 8" in capsys.readouterr().err
    # Resumed, it is the run that it was, on any machine.
    assert main(["train", "--resume", "runs/001", "--run.steps=2", "--quiet"]) == 0
    again = loading.load_settings(tmp_path / "runs" / "001" / "config.toml")
    assert loading.changed(again, {"run.steps": 1}) == written
