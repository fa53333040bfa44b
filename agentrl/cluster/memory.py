"""What a run must hold in memory, in bytes per device, before anything is started.

Counted from the shape of the model and the settings. Weights, gradients, optimizer and keys are exact; what a
pass through the model holds is in `activations`. What the allocator wastes is in `RUNTIME`. Knows not how
an engine or the learner works, only what it must hold. `docs/results/memory` has measured peaks beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.cluster.activations import LOGITS_AT_ONCE, LOGITS_AT_ONCE_GPU, Pass
from agentrl.cluster.model_shape import ModelShape
from agentrl.cluster.placement import EngineKind, Gpu, Machine, gpu_layout
from agentrl.config import registry
from agentrl.config.settings import EngineSettings, ModelSettings, Settings

BYTES = {"float32": 4, "bfloat16": 2}
RUNTIME = 1_500_000_000
"""What a CUDA context, kernels and fragmentation take of a GPU, per process."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that takes memory."""

    what: str
    bytes: int
    least: int | None = None
    """What suffices, where that is less: vLLM starts when the keys of one sequence fit; others wait."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one device must hold, and what it has."""

    device: str
    capacity: int
    needs: tuple[Need, ...]
    role: str = ""
    """What the device is used for, where it is one of several."""

    @property
    def total(self) -> int:
        """Bytes of all needs."""
        return sum(need.bytes for need in self.needs)

    @property
    def least(self) -> int:
        """Bytes without which it does not run."""
        return sum(need.bytes if need.least is None else need.least for need in self.needs)

    @property
    def fits(self) -> bool:
        """Whether the device can hold it."""
        return self.least <= self.capacity

    @property
    def full_share(self) -> float:
        """Share of what may wait (the keys of vLLM's slots at full length) that there is room for at once."""
        waiting = sum(need.bytes for need in self.needs if need.least is not None)
        return min(1.0, (self.capacity - (self.total - waiting)) / waiting) if waiting else 1.0


def _has_reference(settings: Settings) -> bool:
    requires = registry.declared("loss", settings.loss.kind).requires
    return settings.loss.kl_coefficient > 0 or "reference" in requires


def learner_needs(shape: ModelShape, settings: Settings, *, gpu: bool = False) -> tuple[Need, ...]:
    """What one learner rank holds when it holds most, in bytes.

    One rank keeps bfloat16 weights beside float32 masters. Several ranks (FSDP2) split float32 weights and
    all that belongs to them, and gather a layer at a time in the model's type. Gradients are float32.
    Activations are those of one micro-batch, or of the longest sequence where that is longer.
    """
    model, learner = settings.model, settings.learner
    count, width, ranks = shape.parameters, BYTES[model.dtype], max(1, learner.ranks)
    longest = settings.engine.context_tokens or shape.context
    tokens = max(learner.micro_batch_tokens, -(-longest // learner.sequence_parallel))
    own = 4 if ranks > 1 else width
    learned = shape.adapter(learner.adapter.rank) if learner.adapter.rank else count
    one = _pass(shape, settings, tokens, gpu=gpu)
    needs = [
        Need("learner: weights", count * own // ranks),
        Need("learner: adapter", learned * own // ranks if learner.adapter.rank else 0),
        *(() if gpu and learner.offload else _optimizer(learned, ranks, separate=own < 4 or learner.offload)),
        Need("learner: reference weights (KL)", count * own // ranks if _has_reference(settings) else 0),
        Need("learner: gathered layers and embeddings", _gathered(shape, width) if ranks > 1 else 0),
        Need(f"learner: activations of {tokens} tokens", one.kept),
        Need("learner: logits in pieces and gradients on their way", one.working),
    ]
    return tuple(need for need in needs if need.bytes)


def _pass(shape: ModelShape, settings: Settings, tokens: int, *, gpu: bool) -> Pass:
    learner = settings.learner
    return Pass(
        shape,
        tokens,
        BYTES[settings.model.dtype],
        rank=learner.adapter.rank,
        compiled=learner.compile,
        recomputed=learner.gradient_checkpointing,
        # Most CPUs multiply by the head in float32 anyway (`learner.products`); those with AMX hold less.
        float32_head=learner.float32_head or (not gpu and learner.cpu_products != "bfloat16"),
        entropy=settings.loss.entropy_coefficient > 0,
        logits=LOGITS_AT_ONCE_GPU if gpu else LOGITS_AT_ONCE,
    )


def _optimizer(learned: int, ranks: int, *, separate: bool) -> tuple[Need, ...]:
    """What belongs to each weight that is learned; split weights are their own masters."""
    return (
        Need("learner: gradients, float32", learned * 4 // ranks),
        Need("learner: AdamW moments, float32", learned * 8 // ranks),
        Need("learner: float32 masters", learned * 4 if separate and ranks == 1 else 0),
    )


def _gathered(shape: ModelShape, width: int) -> int:
    """Two layers (one is fetched ahead) and the embeddings, which stay; with gradients on their way."""
    return (2 * shape.per_layer + shape.embeddings) * (width + 4)


def host_needs(shape: ModelShape, settings: Settings, *, gpus: bool = False) -> tuple[Need, ...]:
    """What the learner keeps in the machine's own memory besides what is on its device, in bytes.

    With `learner.undo` a batch of several optimizer steps begins with a copy of weights and optimizer, so
    that a step that fails can be undone; a checkpoint is written from another while steps go on. With GPUs
    every rank has read all weights into memory before that, and let go of them.
    """
    learner, count = settings.learner, shape.parameters
    several = learner.undo and (0 < learner.mini_batch < settings.stream.batch or learner.epochs > 1)
    learned = shape.adapter(learner.adapter.rank) if learner.adapter.rank else count
    copy = learned * 12
    asynchronous = settings.checkpoint.asynchronous and settings.checkpoint.every > 0
    copies = (
        *((Need("learner: copy to undo a failed step", copy),) if several else ()),
        *((Need("learner: copy that a checkpoint is written from", copy),) if asynchronous or gpus else ()),
    )
    width = 4 if learner.ranks > 1 else BYTES[settings.model.dtype]
    start = Need("learner: weights on their way to the GPUs", count * width * max(1, learner.ranks))
    at_start = (start,) if gpus else ()
    largest = max(copies, at_start, key=lambda needs: sum(need.bytes for need in needs))
    away = _optimizer(learned, 1, separate=True) if gpus and learner.offload else ()
    return (*largest, *away)


def engine_needs(
    shape: ModelShape,
    model: ModelSettings,
    engine: EngineSettings,
    *,
    embedded: bool,
    share: int = 1,
    adapters: int = 0,
) -> tuple[Need, ...]:
    """Weights and keys of one engine, in bytes per device (`share` devices in tensor parallel).

    `adapters` are numbers of all adapters that are served apart.
    """
    width = BYTES[model.dtype if engine.dtype == "auto" else engine.dtype]
    context = engine.context_tokens or shape.context
    one = context * shape.key_bytes(width) // share
    name = "engine (embedded)" if embedded else "vLLM"
    return (
        Need(f"{name}: weights", shape.parameters * width // share),
        *((Need(f"{name}: adapters served apart", adapters * width),) if adapters else ()),
        Need(
            f"{name}: keys and values of {engine.slots} x {context} tokens",
            engine.slots * one,
            None if embedded else one,
        ),
    )


def make_plans(shape: ModelShape, settings: Settings, machine: Machine, kind: EngineKind) -> tuple[Plan, ...]:
    """What every device must hold under these settings.

    Raises:
        ConfigError: the layout needs more GPUs than there are.
    """
    model, engine = settings.model, settings.engine
    gpus = bool(machine.gpus)
    learning = learner_needs(shape, settings, gpu=gpus)
    host = host_needs(shape, settings, gpus=gpus)
    embedded = kind != "vllm"
    share = 1 if embedded else engine.tensor_parallel
    apart = 0 if embedded else settings.resident_adapters * shape.adapter(settings.learner.adapter.rank)
    sampling = engine_needs(shape, model, engine, embedded=embedded, share=share, adapters=apart)
    if not machine.gpus:
        ranks = max(1, settings.learner.ranks)
        needs = (*learning * ranks, *host, *sampling * (1 if embedded else engine.replicas))
        plans = [Plan("memory", machine.memory_available, needs)]
        if not embedded or settings.learner.place == "process":
            plans.append(_shared_memory(shape, settings, machine))
        return tuple(plans)
    memory = (Plan("memory", machine.memory_available, host),) if host else ()
    runtime = Need("CUDA context and fragmentation", RUNTIME)
    gpu = machine.gpus[0]
    if embedded:
        if settings.learner.place == "process":
            memory = (*memory, _shared_memory(shape, settings, machine))
        return (_gpu_plan(gpu, (runtime, *learning, *sampling)), *memory)
    used = gpu_layout(settings, [gpu.index for gpu in machine.gpus])
    if used.transfer == "file":
        memory = (*memory, _shared_memory(shape, settings, machine))
    if engine.layout == "shared":
        return (
            _gpu_plan(gpu, (runtime, *learning), 1 - engine.memory_share, "the learner's share"),
            _gpu_plan(gpu, (runtime, *sampling), engine.memory_share, "vLLM's share"),
            *memory,
        )
    by_index = {gpu.index: gpu for gpu in machine.gpus}
    plans = [_gpu_plan(by_index[index], (runtime, *learning), role="learner") for index in used.learner]
    for devices in used.engines:
        plans += [
            _gpu_plan(by_index[at], (runtime, *sampling), engine.memory_share, "vLLM") for at in devices
        ]
    return (*plans, *memory)


def _shared_memory(shape: ModelShape, settings: Settings, machine: Machine) -> Plan:
    """Two versions lie there at once, the one in force and the one on its way; of adapters all held ones."""
    width, rank = BYTES[settings.model.dtype], settings.learner.adapter.rank
    if rank:
        one = Need("adapter of one version, on its way", shape.adapter(rank) * width)
        return Plan("/dev/shm", machine.shared_memory, (one,) * max(2, settings.resident_adapters + 1))
    file = Need("weights of one version, on their way", shape.parameters * width)
    return Plan("/dev/shm", machine.shared_memory, (file, file))


def _gpu_plan(gpu: Gpu, needs: tuple[Need, ...], share: float = 1.0, role: str = "") -> Plan:
    return Plan(f"GPU {gpu.index} ({gpu.name})", int(gpu.total * share), needs, role)
