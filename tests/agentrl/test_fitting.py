"""Settings that make a run fit, and the seconds of a step, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.cli.main import main
from agentrl.cluster.fitting import changed, fit, flag, lacking, remedy
from agentrl.cluster.memory import Plan, make_plans
from agentrl.cluster.model_shape import ModelShape
from agentrl.cluster.placement import Gpu, Machine
from agentrl.cluster.step_time import Rates, forward_operations, gpu_rates, step_time
from agentrl.config.settings import (
    EngineSettings,
    LearnerSettings,
    ModelSettings,
    RolloutSettings,
    Settings,
    StreamSettings,
)

SHAPE = ModelShape(24, 1024, 3072, 16, 8, 64, 50_000, True, 4096)
SETTINGS = Settings(
    model=ModelSettings(path="x", dtype="bfloat16"),
    engine=EngineSettings(kind="vllm", context_tokens=2048, slots=16),
    learner=LearnerSettings(micro_batch_tokens=16384, mini_batch=256),
)


def machine(count: int, gigabytes: float) -> Machine:
    size = int(gigabytes * 10**9)
    gpus = tuple(Gpu(index, "card", size, size) for index in range(count))
    return Machine(cores=8, memory=2**38, memory_available=2**38, shared_memory=2**36, gpus=gpus)


def test_what_fits_is_left_alone() -> None:
    assert fit(SETTINGS, lambda one: make_plans(SHAPE, one, machine(2, 80), "vllm")) == {}


@given(st.integers(2, 8), st.floats(4.0, 40.0))
def test_what_is_proposed_fits(count: int, gigabytes: float) -> None:
    def plan(one: Settings) -> tuple[Plan, ...]:
        return make_plans(SHAPE, one, machine(count, gigabytes), "vllm")

    found = fit(SETTINGS, plan)
    if found is None:
        return
    settings = SETTINGS
    for name, value in found.items():
        settings = changed(settings, name, value)
    # Taking changes that help without counting what the next one undoes fails here.
    assert lacking(plan(settings)) == 0
    first = remedy(SETTINGS, plan)
    assert not first or first.split("=")[0] in {flag(name, "").split("=")[0] for name in found} or found == {}


def test_a_card_that_holds_no_weights_has_no_settings() -> None:
    assert fit(SETTINGS, lambda one: make_plans(SHAPE, one, machine(2, 1.0), "vllm")) is None


def test_operations_and_seconds_by_hand() -> None:
    small = ModelShape(2, 8, 16, 2, 1, 4, 100, True, 64)
    # Layers 2 * 2 * 592 * 10, attention 2 * 2 layers * 2 heads * 4 * 10^2, head 2 * 100 * 8 * 10.
    assert forward_operations(small, 10) == 23_680 + 3_200 + 16_000
    settings = Settings(
        model=ModelSettings(dtype="bfloat16"),
        engine=EngineSettings(context_tokens=20, slots=4),
        learner=LearnerSettings(mini_batch=0),
        rollout=RolloutSettings(max_tokens=100),
        stream=StreamSettings(batch=8, staleness=1),
    )
    found = step_time(small, settings, Rates("x", 1e6, 1e9, gpu=True))
    assert found.tokens == 10
    assert found.learn_s == pytest.approx(8 * 3 * 42_880 / (0.28 * 1e6))
    # 8 * 10 tokens in rounds of 4: each reads 1,992 weights and 4 x 5 tokens of 2 * 2 * 1 * 4 numbers.
    read_s = (1992 * 2 + 4 * 5 * 16 * 2) / 0.5e9
    work_s = 4 * (2 * 2 * 592 + 2 * 2 * 2 * 4 + 1600) / 0.5e6
    assert found.sample_s == pytest.approx(20 * max(read_s, work_s))
    assert found.step_s == max(found.learn_s, found.sample_s)


def test_gpus_are_known_by_name_or_by_size() -> None:
    assert gpu_rates("NVIDIA H200", 0) == Rates("H200", 989e12, 4.8e12, gpu=True)
    by_size = gpu_rates("imagined", 80 * 10**9)
    assert by_size is not None
    assert by_size.name == "H100"


def test_the_command_proposes_and_names_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text(
        '[model]\npath = "Qwen/Qwen3-8B"\ndtype = "bfloat16"\n'
    )  # a file is as it is
    flags = [str(tmp_path / "run.toml"), "--engine.kind=vllm", "--gpus", "8x80"]
    flags += ["--memory", "1000", "--engine.context_tokens=4096"]
    assert main(["doctor", *flags]) == 1
    assert "first change: --learner.gradient_checkpointing=true" in capsys.readouterr().out
    assert main(["doctor", *flags, "--nodes", "2", "--fit"]) == 1
    text = capsys.readouterr().out
    assert "fits with: --learner." in text
    assert "on H100 (989 TFLOP/s" in text
    changes = text.split("fits with: ")[1].splitlines()[0].split()
    assert main(["doctor", *flags, "--nodes", "2", *changes]) == 0
