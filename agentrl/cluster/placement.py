"""Which engine, in which layout: from settings and the machine.

Nothing is loaded, and torch is not imported. What an engine must hold is in `agentrl.cluster.memory`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agentrl.config.settings import EngineSettings, Settings
from agentrl.errors import ConfigError

EngineKind: TypeAlias = str
"""`transformers`, `vllm`, `scripted`, or a class in a file, `my.py:Name`."""

_GPU_QUERY = (
    "nvidia-smi",
    "--query-gpu=index,name,memory.total,memory.free",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    index: int
    name: str
    total: int
    """Bytes."""
    free: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is."""

    cores: int
    memory: int
    """Bytes."""
    memory_available: int
    """Bytes."""
    shared_memory: int
    """Bytes free in /dev/shm."""
    gpus: tuple[Gpu, ...] = ()


@functools.lru_cache(maxsize=1)
def find_gpus() -> tuple[Gpu, ...]:
    """GPUs of this machine, as `nvidia-smi` sees them, limited to CUDA_VISIBLE_DEVICES."""
    try:
        answer = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    gpus = []
    for line in answer.stdout.splitlines():
        index, name, total, free = (part.strip() for part in line.rsplit(",", 3))
        gpus.append(Gpu(int(index), name, int(total) << 20, int(free) << 20))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(gpus)
    wanted = [part.strip() for part in visible.split(",")]
    return tuple(gpu for gpu in gpus if str(gpu.index) in wanted)


def inspect_machine() -> Machine:
    """Look at this machine."""
    memory = dict[str, int]()
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        memory[name] = int(rest.split()[0]) * 1024
    shared = 0
    if os.path.isdir("/dev/shm"):
        stat = os.statvfs("/dev/shm")
        shared = stat.f_bavail * stat.f_frsize
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory=memory["MemTotal"],
        memory_available=memory.get("MemAvailable", memory["MemTotal"]),
        shared_memory=shared,
        gpus=find_gpus(),
    )


def has_vllm(python: str = "") -> bool:
    """Whether vLLM is installed here, or in the environment of another Python."""
    if not python:
        return importlib.util.find_spec("vllm") is not None
    lib = Path(python).parent.parent / "lib"
    return any(lib.glob("python3*/site-packages/vllm/__init__.py"))


def choose_engine(settings: EngineSettings, *, gpus: int, vllm_found: bool) -> tuple[EngineKind, str]:
    """The engine that `engine.kind` means here, and why.

    Raises:
        ConfigError: vLLM is asked for and is not installed.
    """
    if settings.kind == "vllm" and not (vllm_found or settings.urls):
        raise ConfigError(
            'engine.kind = "vllm", but this Python has no vLLM: pip install vllm, or set engine.python '
            "to a Python that has it"
        )
    if settings.kind != "auto":
        return settings.kind, "as set by engine.kind"
    if settings.urls:
        return "vllm", "engine.urls names running servers"
    if gpus and vllm_found:
        return "vllm", f"{gpus} GPU{'s' if gpus > 1 else ''} and vLLM were found"
    if gpus:
        return "transformers", "there is a GPU, but vLLM is not installed"
    return "transformers", "there is no GPU"


@dataclass(frozen=True, slots=True)
class GpuLayout:
    """Which GPUs the learner and each vLLM server take."""

    learner: tuple[int, ...]
    engines: tuple[tuple[int, ...], ...]
    transfer: Literal["nccl", "ipc", "file"]


def gpu_layout(settings: Settings, gpus: Sequence[int]) -> GpuLayout:
    """Deal out GPUs: the learner's ranks first, then each server its tensor-parallel share.

    Raises:
        ConfigError: there are too few.
    """
    engine, ranks = settings.engine, max(1, settings.learner.ranks)
    size = engine.tensor_parallel
    # NCCL and IPC need vLLM where the learner is, and send a model's own weights: servers of another
    # environment and merged adapters go through a file.
    live = not engine.python and settings.learner.adapter.rank == 0
    if not gpus:
        return GpuLayout((), ((),) * engine.replicas, "file")
    if settings.cluster.kind != "none":  # asked by a rollout worker, of the GPUs that Ray lent it
        return GpuLayout((), server_gpus(engine, gpus), "file")
    if engine.layout == "shared":
        if size != 1 or engine.replicas != 1 or ranks != 1:
            raise ConfigError(
                'engine.layout = "shared" puts one learner rank and one vLLM server on one GPU; set '
                'engine.replicas, engine.tensor_parallel and learner.ranks to 1, or layout = "separate"'
            )
        return GpuLayout((gpus[0],), ((gpus[0],),), "ipc" if live else "file")
    needed = ranks + engine.replicas * size
    if needed > len(gpus):
        raise ConfigError(
            f'engine.layout = "separate" needs {ranks} GPU(s) for the learner and {engine.replicas} x {size} '
            f"for vLLM, {needed} together, and there are {len(gpus)}: lower them, or set "
            'engine.layout = "shared"'
        )
    rest = gpus[ranks:]
    engines = tuple(tuple(rest[i * size : (i + 1) * size]) for i in range(engine.replicas))
    return GpuLayout(tuple(gpus[:ranks]), engines, "nccl" if live else "file")


def server_gpus(engine: EngineSettings, gpus: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """GPUs of each server where nothing learns: as many of `engine.replicas` as there are GPUs for.

    Raises:
        ConfigError: there are too few for one.
    """
    size = engine.tensor_parallel
    if not gpus:
        return ((),) * engine.replicas
    if size > len(gpus):
        raise ConfigError(f"engine.tensor_parallel = {size} needs as many GPUs, and there are {len(gpus)}")
    servers = min(engine.replicas, len(gpus) // size)
    return tuple(tuple(gpus[i * size : (i + 1) * size]) for i in range(servers))
