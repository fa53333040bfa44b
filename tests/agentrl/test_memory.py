"""Bytes of a run, counted by hand for a small model and from the public dimensions of Qwen3."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from agentrl.cluster import model_shape
from agentrl.cluster.activations import Pass
from agentrl.cluster.memory import engine_needs, host_needs, learner_needs, make_plans
from agentrl.cluster.model_shape import ModelShape, known_shapes
from agentrl.cluster.placement import Gpu, Machine
from agentrl.config.settings import (
    AdapterSettings,
    CheckpointSettings,
    EngineSettings,
    LearnerSettings,
    LossSettings,
    ModelSettings,
    Settings,
    StreamSettings,
)
from agentrl.errors import ConfigError
from benchmarks.learner import SIZES

HEADS = {"heads": 2, "key_heads": 1, "head_size": 4}
SHAPE = ModelShape(layers=2, hidden=8, intermediate=16, **HEADS, vocabulary=100, tied=True, context=64)
GIB = 2**30
KNOWN = known_shapes()


def machine(*gpus: int) -> Machine:
    found = tuple(Gpu(index, "card", size, size) for index, size in enumerate(gpus))
    return Machine(cores=8, memory=32 * GIB, memory_available=16 * GIB, shared_memory=8 * GIB, gpus=found)


def settings(dtype: str = "float32", *, context: int = 10, **learner: object) -> Settings:
    learner = {"micro_batch_tokens": 10, "mini_batch": 256} | learner
    kl = learner.pop("kl_coefficient", 0.0)
    return Settings(
        loss=LossSettings(kl_coefficient=kl),  # type: ignore[arg-type]
        model=ModelSettings(dtype=dtype),  # type: ignore[arg-type]
        learner=LearnerSettings(**learner),  # type: ignore[arg-type]
        engine=EngineSettings(context_tokens=context),
    )


def learner_bytes(settings: Settings) -> list[int]:
    return [need.bytes for need in learner_needs(SHAPE, settings)]


def test_weights_and_keys_by_hand():
    # attention 8*4*(2*2+2*1) = 192, gated MLP 3*8*16 = 384, norms 16: 592 a layer; embedding 800, last norm 8
    assert SHAPE.parameters == 2 * 592 + 800 + 8 == 1992
    assert replace(SHAPE, tied=False).parameters == SHAPE.parameters + 800
    # keys and values, 2 layers, 1 head of 4, 2 bytes
    assert SHAPE.key_bytes(2) == 2 * 2 * 4 * 2


def test_qwen3_by_hand():
    big = ModelShape.load("Qwen/Qwen3-8B")
    # attention 4096*128*(2*32+2*8) = 41,943,040; MLP 3*4096*12288 = 150,994,944; norms 2*4096 and 2*128
    assert big.per_layer == 41_943_040 + 150_994_944 + 8_192 + 256 == 192_946_432
    # 36 layers; embedding and head 2*151936*4096; last norm
    assert big.parameters == 36 * 192_946_432 + 1_244_659_712 + 4_096 == 8_190_735_360
    # keys and values of 36 layers, 8 heads of 128, 2 bytes: 144 KiB a token
    assert big.key_bytes(2) == 147_456
    small = ModelShape.load("Qwen/Qwen3-1.7B")
    assert small.parameters == 28 * 50_336_000 + 311_164_928 + 2_048 == 1_720_574_976
    assert small.key_bytes(2) == 114_688


def test_names_that_mean_one_shape():
    assert ModelShape.load("Qwen/Qwen2.5-0.5B-Instruct") == KNOWN["Qwen/Qwen2.5-0.5B"]
    assert ModelShape.load("Qwen/Qwen3-4B-Thinking-2507") == KNOWN["Qwen/Qwen3-4B"]
    with pytest.raises(ConfigError, match="'Qwen/Qwen9-8B' .* config.json, .* is not on this machine"):
        ModelShape.load("Qwen/Qwen9-8B")


def test_the_model_s_own_config_goes_before_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    row = json.loads((Path(model_shape.__file__).parent / "model_configs.json").read_text())[
        "Qwen/Qwen3-1.7B"
    ]
    # As the hub's own client keeps it.
    cached = tmp_path / "models--Qwen--Qwen3-1.7B"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0")
    (cached / "snapshots/0").mkdir(parents=True)
    (cached / "snapshots/0/config.json").write_text(
        json.dumps(row | {"num_hidden_layers": 3, "attention_bias": True})
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = ModelShape.load("Qwen/Qwen3-1.7B")
    assert (found.layers, found.hidden, found.head_norms, found.tied) == (3, 2048, True, True)
    # 16 heads of 128 and twice 8, and those of the output.
    assert found.biases == 128 * (16 + 2 * 8) + 2048
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json cannot be read"):
        ModelShape.load(str(tmp_path))


KINDS = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_weights_counted_are_those_that_transformers_makes(name: str):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = replace(KNOWN[name], layers=2)
    kind = "qwen3" if shape.head_norms else "qwen2" if shape.biases else "llama"
    config = getattr(transformers, KINDS[kind])(
        num_hidden_layers=2,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_size,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.context,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    assert ModelShape.from_config(config.to_dict()) == shape


def test_a_config_that_is_no_decoder():
    with pytest.raises(ConfigError, match="num_attention_heads"):
        ModelShape.from_config({"hidden_size": 8})
    with pytest.raises(ConfigError, match="mixture of experts"):
        ModelShape.from_config({"num_experts": 64})
    text = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 100}
    assert ModelShape.from_config({"text_config": text}).intermediate == 32


def test_the_learner_by_hand():
    # 1992 weights: 2 bytes, gradients 4, moments 8, masters 4.
    # A bfloat16 layer saves of a token: rotated queries and keys, values, output 2*2*(8+4) and 2 heads' normalisers,
    # four times the MLP's 16 in 2 bytes, and of each of two norms of 8 its input in 4 bytes, twice 2, and a scale.
    layer = 48 + 8 + 128 + 2 * (64 + 4)
    last = 64 + 16  # the last norm, and the states that the head reads
    # The head, which a CPU multiplies by in float32: 10*100 logits in 4 bytes, 800 weights, their gradient in float32
    # and one piece's.
    head = 4 * 1000 + 4 * 800 + 6 * 800
    assert learner_bytes(settings("bfloat16")) == [3984, 7968, 15936, 7968, 10 * (2 * layer + last), head]
    # Recomputed: the inputs of two layers of 8 numbers. Then one layer, its MLP's gradients (3*2*16), and the gradient
    # of the head (2*800), are less than the head.
    again = 10 * (2 * 16 + last)
    assert 10 * (layer + 96) + 1600 < head
    assert learner_bytes(settings("bfloat16", gradient_checkpointing=True))[4:] == [again, head]
    # float32: 4 bytes of everything; the float32 input of a norm is the input itself.
    wide = 4 * 2 * 12 + 8 + 256 + 2 * (96 + 4)
    kept = 10 * (2 * wide + 96 + 32)
    assert learner_bytes(settings()) == [7968, 7968, 15936, kept, 8 * 1000]
    # The reference of a KL term is one more set of weights.
    assert learner_bytes(settings(kl_coefficient=0.1)) == [7968, 7968, 15936, 7968, kept, 8 * 1000]
    # Two ranks split float32 weights; layers (2 x 592) and embeddings (808) are gathered with float32 gradients.
    assert learner_bytes(settings("bfloat16", ranks=2, place="process")) == [
        3984,
        3984,
        7968,
        (2 * 592 + 808) * (2 + 4),
        10 * (2 * layer + last),
        head,
    ]
    # A sequence longer than a micro-batch is a micro-batch.
    assert learner_bytes(settings(context=30))[3] == 3 * learner_bytes(settings())[3]


def test_what_is_held_for_a_short_time_is_the_most_of_any_moment():
    one = Pass(SHAPE, tokens=10, width=2)
    # A longer pass: the layer on its way back is more than the head with its few logits.
    long = replace(one, tokens=1000, logits=100, recomputed=True)
    assert long.working == 1000 * (long.layer + 96) + 2 * 800
    # An adapter has no gradient of the head, 7 inner numbers of its rank, and norms that are not learned.
    adapter = replace(one, rank=3)
    assert adapter.working == max(8 * 1000, 10 * 96)
    assert adapter.layer == one.layer - 2 * 2 * 8 + 7 * 3 * 2
    # Fused: norms keep input and output in 2 bytes, the MLP the gate once.
    assert replace(one, compiled=True).layer == 48 + 8 + 96 + 2 * (32 + 4)
    # An entropy term takes another float32 number of each logit, the head in float32 a copy of itself.
    assert replace(one, entropy=True).working == 10 * 1000 + 6 * 800
    assert replace(one, float32_head=True).working == max(8 * 1000, 4 * 1000 + 6 * 800) + 4 * 800
    # Hardly a token: two gradients of the embeddings become one, in float32 at last, when all else is gone.
    assert replace(one, tokens=1, logits=1).working + replace(one, tokens=1, logits=1).kept >= 6 * 800
    # Norms of queries and keys (12 numbers, 3 heads): input in float32, normalised in 2 bytes, a scale of each head.
    assert replace(one, shape=replace(SHAPE, head_norms=True)).layer == one.layer + 12 * 6 + 3 * 4


RESULTS = Path(__file__).parents[2] / "docs/results"
MEASURED = [json.loads(line) for line in (RESULTS / "memory/cpu.jsonl").read_text().splitlines()]
ON_GPU = [
    row
    for part in (1, 2)
    for row in map(json.loads, (RESULTS / f"gpu/learner_{part}.jsonl").read_text().splitlines())
    if row["benchmark"] == "step"
]


def foretold_mb(row: dict[str, Any], tokens: int, context: int, **learner: Any) -> float:
    wanted = Settings(
        model=ModelSettings(dtype=row["dtype"]),
        learner=LearnerSettings(
            micro_batch_tokens=tokens,
            gradient_checkpointing=row.get("checkpointing", False),
            adapter=AdapterSettings(rank=row.get("rank", 0)),
            **learner,
        ),
        engine=EngineSettings(context_tokens=context),
    )
    gpu = "device" in row
    return sum(need.bytes for need in learner_needs(SIZES[row["size"]], wanted, gpu=gpu)) / 2**20


@pytest.mark.parametrize(
    "row", MEASURED, ids=lambda row: f"{row['size']}-{row['dtype']}-{row.get('rank', 0)}"
)
def test_the_plan_is_within_15_per_cent_of_recorded_peaks(row: dict[str, Any]):
    # `python -m benchmarks.memory`: full and adapter training, each in a process of its own.
    assert foretold_mb(row, row["tokens"], 256) == pytest.approx(row["measured_mb"], rel=0.15)


@pytest.mark.parametrize("row", ON_GPU, ids=lambda row: f"{row['size']}-{row['rank']}-{row['compile']}")
def test_the_plan_is_within_15_per_cent_of_peaks_on_a_gpu(row: dict[str, Any]):
    found = foretold_mb(row, 16384, 16384, compile=row["compile"])
    assert found == pytest.approx(row["peak_memory_mb"], rel=0.15)


def test_a_copy_is_kept_where_asked_for_while_a_batch_takes_several_steps():
    def copies(given: Settings, *, waits: bool = True, gpus: bool = False) -> list[tuple[str, int]]:
        given = replace(given, checkpoint=CheckpointSettings(asynchronous=not waits))
        return [(need.what, need.bytes) for need in host_needs(SHAPE, given, gpus=gpus)]

    undo = ("learner: copy to undo a failed step", 12 * 1992)
    written = ("learner: copy that a checkpoint is written from", 12 * 1992)
    assert copies(settings(mini_batch=128)) == []
    assert copies(settings(mini_batch=256, undo=True)) == []
    for dtype in ("float32", "bfloat16"):
        assert copies(settings(dtype, mini_batch=128, undo=True)) == [undo]
    # A checkpoint is written from another, while such a step may be under way.
    assert copies(settings(mini_batch=128, undo=True), waits=False) == [undo, written]
    assert copies(settings(adapter=AdapterSettings(rank=3)), waits=False) == [
        (written[0], 12 * SHAPE.adapter(3))
    ]
    # From a GPU it comes through host memory in any case.
    assert copies(settings(), gpus=True) == [written]
    # With GPUs the weights are read into memory first, by every rank: never at the same time as the copies.
    assert copies(settings(mini_batch=128, undo=True), gpus=True) == [undo, written]
    (read,) = host_needs(SHAPE, settings("bfloat16", mini_batch=128, ranks=4, place="process"), gpus=True)
    assert (read.what, read.bytes) == ("learner: weights on their way to the GPUs", 4 * 4 * 1992)


def test_an_adapter_by_hand():
    # A rank-3 adapter beside seven matrices of each layer: 3 numbers for every row and column.
    shape = ModelShape(layers=2, hidden=8, intermediate=20, heads=2, key_heads=1, head_size=4,
                       vocabulary=10, tied=True, context=16)  # fmt: skip
    # q 8+8, k 8+4, v 8+4, o 8+8, three of 8+20: 140 a layer.
    assert shape.adapter(3) == 3 * 2 * 140
    needs = {
        need.what: need.bytes for need in learner_needs(shape, settings(adapter=AdapterSettings(rank=3)))
    }
    assert needs["learner: weights"] == 4 * shape.parameters
    assert needs["learner: adapter"] == needs["learner: gradients, float32"] == 4 * 840
    assert needs["learner: AdamW moments, float32"] == 8 * 840


def test_the_engine_by_hand():
    engine = EngineSettings(slots=3, context_tokens=5, dtype="bfloat16")
    weights, keys = engine_needs(SHAPE, ModelSettings(), engine, embedded=False, share=2)
    assert weights.bytes == 1992 * 2 // 2
    assert (keys.bytes, keys.least) == (3 * 5 * 32 // 2, 5 * 32 // 2)


def test_plans():
    small = Settings(engine=EngineSettings(slots=4, context_tokens=64))
    (memory,) = make_plans(SHAPE, small, machine(), "transformers")
    assert memory.fits
    assert memory.total == sum(need.bytes for need in memory.needs)
    memory, shared_memory = make_plans(SHAPE, small, machine(), "vllm")
    # Two versions at once lie in shared memory: the one in force and the one on its way.
    assert (shared_memory.device, shared_memory.total) == ("/dev/shm", 2 * SHAPE.parameters * 4)
    learner, engine, memory = make_plans(SHAPE, small, machine(GIB, 4 * GIB), "vllm")
    assert not learner.fits  # a CUDA context alone is more than a gibibyte here
    assert engine.fits
    assert engine.capacity == int(4 * GIB * 0.9)
    assert memory.total == SHAPE.parameters * 12  # a checkpoint; weights on their way to the GPU are less
    one = replace(small, engine=replace(small.engine, layout="shared", memory_share=0.25))
    learner, engine, _ = make_plans(SHAPE, one, machine(8 * GIB), "vllm")
    assert (learner.capacity, engine.capacity) == (6 * GIB, 2 * GIB)


def test_vllm_needs_the_keys_of_one_sequence_and_says_how_many_it_holds():
    # 1992 weights of 4 bytes; keys of a sequence of 64 tokens 64 * 64 = 4096 bytes, and four slots of them.
    small = Settings(engine=EngineSettings(slots=4, context_tokens=64), stream=StreamSettings(batch=256))
    room = 1_500_000_000 + 7968 + 2 * 4096
    _, engine, _ = make_plans(SHAPE, small, machine(GIB, int(room / 0.9) + 1), "vllm")
    assert engine.fits
    assert engine.full_share == pytest.approx(0.5, abs=1e-3)
    _, engine, _ = make_plans(SHAPE, small, machine(GIB, int((room - 5000) / 0.9)), "vllm")
    assert not engine.fits
