"""Every example loads, checks, and has an estimate of its memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import agentrl
from agentrl.cli.main import COMMANDS, main
from agentrl.cluster.memory import Plan, make_plans
from agentrl.cluster.model_shape import ModelShape
from agentrl.cluster.placement import EngineKind, Gpu, Machine
from agentrl.config.loading import load_settings
from agentrl.config.settings import Settings
from agentrl.errors import ConfigError
from agentrl.evaluation.results import read_records
from agentrl.evaluation.settings import SHORT, load_experiment
from agentrl.tasks.catalog import BENCHMARKS
from agentrl.training.plan import plan_run

EXAMPLES = Path(__file__).parents[1] / "examples"
EVALUATION = EXAMPLES / "eval.toml"
SETTINGS = sorted(set(EXAMPLES.glob("*.toml")) - {EVALUATION})
ENVIRONMENTS = sorted(EXAMPLES.glob("*.py"))
GB = 10**9
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M"


@dataclass(frozen=True)
class Expected:
    """A machine that an example is written for, and what its devices must hold there, in bytes."""

    gpus: tuple[int, ...]
    memory: int
    """In GB."""
    totals: tuple[tuple[str, int], ...]
    model: str = ""
    """Where the example names a folder: what is in it."""
    kind: EngineKind = "vllm"


def micro_batch(
    tokens: int, layers: int, hidden: int, layer: int, inner: int, vocabulary: int, *, learned: bool = True
) -> int:
    """Bytes of T tokens in bfloat16 whose layers are done again, on a GPU, with one matrix as embedding and head.

    Inputs of the layers and of the norm and head after them. Besides, the larger of the head (2^27 logits in float32
    and bfloat16, its gradient and one piece's) and of one layer with the gradients inside its MLP, while the head's
    gradient waits.
    """
    head = vocabulary * hidden if learned else 0
    kept = tokens * hidden * (2 * layers + (10 if learned else 8))
    return kept + max(8 * 2**27, 6 * 2**27 + 6 * head, tokens * (layer + 6 * inner) + 2 * head)


# Memory of the machine with GPUs: every rank reads all weights into it before they go there.
# What a layer of Qwen3 saves of a token in bfloat16: 16 bytes of every hidden number (two norms), 8 of the MLP's, 10 of
# queries and keys with their norms, 4 of each head, of each head's norm and of the two norms. With an
# adapter of rank 16 norms are not learned (12, 8), and seven matrices have 16 inner numbers.
QWEN3_8B_LAYER = 16 * 4096 + 8 * 12_288 + 10 * 128 * 40 + 4 * (32 + 40 + 2)
QWEN3_1P7B_LAYER = 16 * 2048 + 8 * 6144 + 10 * 128 * 24 + 4 * (16 + 24 + 2)
# Qwen3-8B, 8,190,735,360 weights (P); 4 ranks. Learner: P float32 weights, P float32 gradients and 2 P moments in four
# parts: 4 P. Gathered: (2 * 192,946,432 + 1,244,663,808) * 6. Embedding and head are two matrices. 1.5 GB for CUDA.
QWEN3_8B_KEPT = 24_576 * 4096 * (2 * 36 + 10)
QWEN3_8B_WORKING = max(6 * 2**27 + 6 * 151_936 * 4096, 24_576 * (QWEN3_8B_LAYER + 6 * 12_288))
QWEN3_8B_LEARNER = 4 * 8_190_735_360 + 9_783_340_032 + QWEN3_8B_KEPT + QWEN3_8B_WORKING + 1_500_000_000
# bfloat16 weights, and 64 sequences of 24,576 tokens at 147,456 bytes a token.
QWEN3_8B_ENGINE = 2 * 8_190_735_360 + 64 * 24_576 * 147_456 + 1_500_000_000
# Qwen3-1.7B, 1,720,574,976 weights: 18 bytes each (2 weights, 4 gradients, 8 moments, 4 masters).
QWEN3_1P7B = 18 * 1_720_574_976 + 1_500_000_000


def qwen3_1p7b(tokens: int) -> int:
    """Bytes of the learner with a micro-batch of so many tokens."""
    return QWEN3_1P7B + micro_batch(tokens, 28, 2048, QWEN3_1P7B_LAYER, 6144, 151_936)


# Qwen2.5-0.5B, 494,032,768 weights; a layer has no norms of heads: 4 of queries and keys.
QWEN2_0P5B = 18 * 494_032_768 + 1_500_000_000
QWEN2_0P5B += micro_batch(8192, 24, 896, 16 * 896 + 8 * 4864 + 4 * 64 * 16 + 4 * (14 + 2), 4864, 151_936)
# SmolLM2-135M, 134,515,008 weights. In float32 a layer saves 24 bytes of every hidden number, 16 of the MLP's, 8 of
# queries and keys; 16 bytes a weight. After 30 layers 16 bytes. The head: 2^25 logits twice. Keys in bfloat16
# take 23,040 bytes a token.
SMOLLM2_LAYER = 24 * 576 + 16 * 1536 + 8 * 64 * 12 + 4 * (9 + 2)
SMOLLM2_LEARNER = 16 * 134_515_008 + 2048 * (30 * SMOLLM2_LAYER + 16 * 576) + 8 * 2**25
# The same in bfloat16, with masters. On a CPU the head is multiplied in float32: one piece's logits once, and beside
# the head's gradient (6 bytes a weight) its copy (4).
SMOLLM2_HALF = 18 * 134_515_008 + 4 * 2**25 + 10 * 49_152 * 576
SMOLLM2_HALF += 2048 * (30 * (16 * 576 + 8 * 1536 + 4 * 64 * 12 + 4 * (9 + 2)) + 10 * 576)

# Adapters of rank 16: 16 numbers for every row and column of seven matrices. Qwen3-1.7B, 28 layers: q and o 2048+2048,
# k and v 2048+1024, three of 2048+6144; 18 bytes each, and no gradient of the head. Qwen3-8B, 36 layers: q and o 4096+4096,
# k and v 4096+1024, three of 4096+12288. Weights of the model: 2 bytes.
LORA_1P7B = 16 * 28 * (2 * 4096 + 2 * 3072 + 3 * 8192)
LORA_8B = 16 * 36 * (2 * 8192 + 2 * 5120 + 3 * 16_384)
LORA_1P7B_LAYER = 12 * 2048 + 8 * 6144 + 8 * 128 * 24 + 4 * (16 + 24 + 2) + 14 * 16
LORA_8B_LAYER = 12 * 4096 + 8 * 12_288 + 8 * 128 * 40 + 4 * (32 + 40 + 2) + 14 * 16


def lora_plan(weights: int, adapter: int, learning: int, keys: int) -> tuple[tuple[str, int], ...]:
    """Bytes of a run with adapters on one GPU, from numbers of weights, bytes of a micro-batch and of keys a token."""
    return (
        ("GPU 0", 2 * weights + 18 * adapter + learning + 1_500_000_000),
        ("GPU 0", 2 * weights + 32 * 4096 * keys + 1_500_000_000),
        ("memory", 2 * weights),
        ("/dev/shm", 2 * 2 * adapter),  # two versions, of which only the adapter travels
    )


EXPECTED = {
    "lora_24gb": Expected(
        (24,),
        32,
        lora_plan(
            1_720_574_976,
            LORA_1P7B,
            micro_batch(8192, 28, 2048, LORA_1P7B_LAYER, 6144, 151_936, learned=False),
            114_688,
        ),
    ),
    "lora_48gb": Expected(
        (48,),
        96,
        lora_plan(
            8_190_735_360,
            LORA_8B,
            micro_batch(6144, 36, 4096, LORA_8B_LAYER, 12_288, 151_936, learned=False),
            147_456,
        ),
    ),
    "qwen3_8b_dapo": Expected(
        (80,) * 8,
        160,
        (("GPU 0", QWEN3_8B_LEARNER),) * 4
        + (("GPU 4", QWEN3_8B_ENGINE),) * 4
        + (("memory", 4 * 4 * 8_190_735_360),),
    ),
    "qwen3_1p7b_gsm8k": Expected(
        (80,),
        32,
        (
            ("GPU 0", qwen3_1p7b(8192)),
            ("GPU 0", 2 * 1_720_574_976 + 64 * 6144 * 114_688 + 1_500_000_000),
            (
                "memory",
                12 * 1_720_574_976,
            ),  # a copy of weights and optimizer, from which checkpoints are written
        ),
    ),
    "one_gpu_shared": Expected(
        (24,),
        16,
        (
            ("GPU 0", QWEN2_0P5B),
            ("GPU 0", 2 * 494_032_768 + 64 * 4096 * 12_288 + 1_500_000_000),
            ("memory", 12 * 494_032_768),
        ),
    ),
    "separate_gpus": Expected(
        (80,) * 3,
        32,
        (("GPU 0", qwen3_1p7b(16384)),)
        + (("GPU 1", 2 * 1_720_574_976 + 256 * 8192 * 114_688 + 1_500_000_000),) * 2
        + (("memory", 12 * 1_720_574_976),),
    ),
    "gsm8k_python": Expected(
        (),
        16,
        (
            # A bfloat16 learner with float32 masters (18 bytes a weight) that takes one step a batch and so keeps
            # nothing to undo one; the copy of a checkpoint on its way; the engine's weights and keys in bfloat16.
            ("memory", SMOLLM2_HALF + 12 * 134_515_008 + 2 * 134_515_008 + 32 * 1024 * 23_040),
        ),
        SMOLLM2,
        "transformers",
    ),
    "gsm8k_vllm_cpu": Expected(
        (),
        16,
        (
            # vLLM on a CPU in bfloat16; two versions in float32 on their way in shared memory.
            ("memory", SMOLLM2_LEARNER + 2 * 134_515_008 + 16 * 1024 * 23_040),
            ("/dev/shm", 2 * 4 * 134_515_008),
        ),
        SMOLLM2,
    ),
}


def plans_of(example: str) -> tuple[Settings, tuple[Plan, ...]]:
    expected = EXPECTED[example]
    settings = load_settings(EXAMPLES / f"{example}.toml")
    gpus = tuple(Gpu(index, "card", size * GB, size * GB) for index, size in enumerate(expected.gpus))
    size = expected.memory * GB
    machine = Machine(cores=16, memory=size, memory_available=size, shared_memory=size // 2, gpus=gpus)
    shape = ModelShape.load(expected.model or settings.model.path)
    return settings, make_plans(shape, settings, machine, expected.kind)


def test_every_example_has_its_numbers():
    assert {path.stem for path in SETTINGS} == set(EXPECTED)


@pytest.mark.parametrize("example", sorted(EXPECTED))
def test_the_memory_of_an_example_by_hand(example: str):
    _, plans = plans_of(example)
    names = [re.sub(r" \(.*", "", plan.device) for plan in plans]
    assert [plan.total for plan in plans] == [total for _, total in EXPECTED[example].totals]
    for name, (first, _) in zip(names, EXPECTED[example].totals, strict=True):
        assert name.split()[0] == first.split()[0]
    assert [plan.device for plan in plans if not plan.fits] == []


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.name)
def test_an_example_can_start_once_its_model_and_data_are_there(path: Path, tmp_path: Path):
    settings = load_settings(path)
    for name in (settings.data.train, settings.eval.data):
        # A benchmark that the hub or $AGENTRL_DATA has, or a file that the comments say how to get.
        assert not name or name in BENCHMARKS or name in path.read_text().split("[run]")[0]
    rows = [
        f'{{"problem": "What is {number}?", "answer": "{number}"}}\n'
        for number in range(settings.stream.batch)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    flags = [
        f"--data.train={tmp_path / 'rows.jsonl'}",
        "--data.limit=0",
        "--eval.data=",
        "--tracker.initial_file=",
    ]
    plan_run(load_settings(path, flags), fetch=False)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:-1]))
    with pytest.raises(ConfigError, match="it could never fill"):
        plan_run(load_settings(path, flags), fetch=False)


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.name)
def test_the_commands_of_an_example_exist(path: Path, capsys: pytest.CaptureFixture[str]):
    head = path.read_text().split("[run]")[0]
    commands = re.findall(r"^#\s+agentrl (\w+)(.*)$", head, flags=re.MULTILINE)
    assert "train" in {name for name, _ in commands}
    assert {name for name, _ in commands} <= set(COMMANDS)
    for _, rest in commands:
        for file in re.findall(r"examples/\S+", rest):
            assert (EXAMPLES.parent / file).exists()
    for script in re.findall(r"scripts/\S+", head):
        assert (EXAMPLES.parent / script).exists(), script


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.name)
def test_an_example_environment_passes_its_check(path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(path)]) == 0, capsys.readouterr().out


def test_the_paper_s_settings():
    settings = load_settings(EXAMPLES / "qwen3_8b_dapo.toml")
    learner, tracker = settings.learner, settings.tracker
    assert (settings.stream.batch, learner.mini_batch) == (2048, 256)
    assert learner.learning_rate == 1e-6
    assert settings.loss.own == {}, "the clip of the paper is the default"
    assert (tracker.rho_min, tracker.rho_max, tracker.initial_rollouts) == (0.875, 0.96, 8)
    assert (settings.sampler.kind, settings.sampler.own) == ("priority", {})
    # Eight turns that call the tool, and one that answers.
    assert (settings.rollout.max_turns, settings.rollout.max_tokens) == (9, 16_384)
    assert (settings.loss.kl_coefficient, settings.loss.entropy_coefficient) == (0.0, 0.0)
    assert settings.estimator.kind == "spo"


@pytest.mark.timeout(300)
def test_the_evaluation_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "1+1", "answer": "2"}\n')
    model = Path(agentrl.__file__).parent / "demo" / "model"
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(model), "--data", "rows.jsonl", "--max-tokens", "16", "--context-tokens", "400"]
    assert main(["eval", str(EVALUATION), "--samples=8", "--out", "out", "--quiet", *flags]) == 0
    resolved = load_experiment(tmp_path / "out" / "config.toml")
    told = load_experiment(EVALUATION, ["--eval.samples=8", "--eval.out=out", *long(flags)])
    assert (told.rollout.format, resolved.rollout.format) == ("auto", "code")
    assert resolved == replace(told, rollout=resolved.rollout)
    assert len(read_records(tmp_path / "out")) == 8


def long(flags: list[str]) -> list[str]:
    return [
        f"--{SHORT[name[2:].replace('-', '_')]}={value}"
        for name, value in zip(flags[::2], flags[1::2], strict=True)
    ]
