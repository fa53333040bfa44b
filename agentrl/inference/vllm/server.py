"""One vLLM server as a child process: its command line, its health, and why it did not start.

It knows processes, ports and log files. It knows nothing of tokens, sessions or weights; and it
imports neither vLLM nor torch, since the server may live in another virtual environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from agentrl.config.secrets import words_with_secrets
from agentrl.errors import PolicyError, PolicyUnavailable
from agentrl.inference.vllm.client import VLLMClient
from agentrl.weights import adapter_files

MODEL_NAME = "policy"
EXTENSION = "agentrl_vllm_extension"
_OWN_FILES = {
    f"{EXTENSION}.py": Path(__file__).with_name("extension.py"),
    "agentrl_adapter_files.py": Path(adapter_files.__file__),
}
"""What a server imports of agentrl, under the names it imports."""
_TAIL_LINES = 15
_STOP_LIMIT_S = 15.0

_NO_MODEL = (
    r"Repository Not Found|does not appear to have a file named|is not a valid model identifier|"
    r"Can't load the configuration|HFValidationError|LocalEntryNotFoundError|not a local folder|"
    r"No such file or directory: '[^']*config.json'|Invalid repository ID"
)
_NO_MEMORY = (
    r"OutOfMemory|out of memory|No available memory for the cache blocks|Cannot allocate memory|"
    r"less than desired|MemoryError|Not enough memory|is larger than the available KV cache memory"
)
_LESS_MEMORY = (
    "out of memory: lower `engine.memory_share`, `engine.slots` or `engine.context_tokens` "
    "(`agentrl doctor` says what fits)"
)
_CAUSES: tuple[tuple[str, str], ...] = (
    ("address already in use|Errno 98", "the port is in use: stop the other server or take another port"),
    (_NO_MODEL, "there is no such model: check `model.path`"),
    (_NO_MEMORY, _LESS_MEMORY),
    ("greater than the derived max_model_len", "`engine.context_tokens` exceeds the model's context"),
    ("No module named '?vllm", "this Python has no vLLM: set `engine.python` to one that has"),
    ("unrecognized arguments|invalid choice", "`engine.args` holds an argument this vLLM does not know"),
    ("world size .* is larger than", "`engine.tensor_parallel` needs more GPUs than there are"),
    ("No CUDA GPUs|no NVIDIA driver|Failed to infer device", "vLLM found no device it can run on"),
)


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What is started."""

    model: str
    """Folder of weights, or a Hugging Face id."""
    python: str = ""
    """Python that has vLLM; empty takes this one."""
    dtype: str = "auto"
    context_tokens: int = 0
    slots: int = 64
    tensor_parallel: int = 1
    gpus: tuple[int, ...] = ()
    """Devices of this server; empty leaves the environment's."""
    memory_share: float = 0.9
    transfer: str = "file"
    """Weight transfer: `file`, `nccl` or `ipc`."""
    sleep_mode: bool = False
    adapters: int = 0
    """Adapters served apart that it holds at once; 0 where there are none, or merged ones."""
    adapter_rank: int = 0
    args: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    seed: int = 0
    environment: tuple[tuple[str, str], ...] = field(default_factory=tuple)
    """More environment variables."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Refuse a port somebody listens on, before a minute is spent on starting a server.

    Raises:
        PolicyUnavailable: it is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PolicyUnavailable(
                f"vLLM cannot listen on {host}:{port}: the port is in use; "
                "stop the other server, or leave the port to agentrl"
            ) from error


def likely_cause(log: str, returncode: int | None) -> str:
    """The likely cause of a failed start in one sentence, from the server's log and exit status."""
    for pattern, cause in _CAUSES:
        if re.search(pattern, log, re.IGNORECASE):
            return cause
    if returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "it was killed: most likely the machine ran out of memory"
    return "unknown; the log says more"


def server_command(spec: ServerSpec, port: int) -> list[str]:
    """The command line of a server."""
    python = spec.python or sys.executable
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", spec.model]
    command += ["--served-model-name", MODEL_NAME, "--host", spec.host, "--port", str(port)]
    command += ["--dtype", spec.dtype, "--max-num-seqs", str(spec.slots), "--seed", str(spec.seed)]
    command += ["--tensor-parallel-size", str(spec.tensor_parallel)]
    command += ["--enable-prefix-caching", "--enable-scale-out", "--generation-config", "vllm"]
    # Log-probabilities of the distribution sampled from: after temperature, top-p and top-k.
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs=-1"]
    command += ["--worker-extension-cls", f"{EXTENSION}.ServerExtension"]
    command += ["--middleware", f"{EXTENSION}.RequireKey", "--disable-uvicorn-access-log"]
    command += ["--weight-transfer-config", json.dumps({"backend": spec.transfer})]
    if spec.context_tokens:
        command += ["--max-model-len", str(spec.context_tokens)]
    if spec.sleep_mode:
        command += ["--enable-sleep-mode"]
    if spec.adapters:
        command += adapter_arguments(spec.adapter_rank, spec.adapters)
    if spec.gpus or _has_gpu():
        command += ["--gpu-memory-utilization", str(spec.memory_share)]
    else:
        # A prompt that is read in pieces makes vLLM 0.32 take back a random draw, which a seeded generator of
        # the CPU cannot: the server would die of it ("CPU Generator does not use offset").
        command += ["--no-enable-chunked-prefill"]
    return [*command, *words_with_secrets(spec.args)]


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""


def adapter_arguments(rank: int, resident: int) -> list[str]:
    """Arguments of `vllm serve` for adapters of a rank, so many at once.

    Raises:
        PolicyUnavailable: vLLM has no room for the rank.
    """
    room = next((one for one in RANKS if one >= rank), None)
    if room is None:
        raise PolicyUnavailable(
            f"vLLM takes adapters up to rank {RANKS[-1]}, and learner.adapter.rank is {rank}: lower it, or "
            'set engine.adapter = "merged"'
        )
    count = str(resident)
    return ["--enable-lora", "--max-loras", count, "--max-cpu-loras", count, "--max-lora-rank", str(room)]


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/gpus").exists() or Path("/dev/nvidia0").exists()


def server_environment(spec: ServerSpec, key: str, extension_folder: str) -> dict[str, str]:
    """The environment of a server: development routes on, loopback key, no telemetry."""
    environment = dict(os.environ)
    environment.update(
        VLLM_SERVER_DEV_MODE="1",
        VLLM_API_KEY=key,
        VLLM_NO_USAGE_STATS="1",
        VLLM_DO_NOT_TRACK="1",
        AGENTRL_VLLM_SERVER="1",
        AGENTRL_PARENT=str(os.getpid()),
        PYTHONPATH=extension_folder,
        PYTHONUNBUFFERED="1",
    )
    if spec.adapters:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if Path(spec.model).exists():
        environment.setdefault("HF_HUB_OFFLINE", "1")
    if spec.transfer == "ipc":
        # Handles of CUDA memory travel pickled; the route is on loopback and behind the key.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if spec.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, spec.gpus))
    elif not _has_gpu():
        _set_cpu_environment(environment, spec)
    environment.update(spec.environment)
    return environment


def _set_cpu_environment(environment: dict[str, str], spec: ServerSpec) -> None:
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    # Threads bound to cores starve whoever else runs there: the learner, the sandbox.
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    environment.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    environment.setdefault("KMP_BLOCKTIME", "1")
    openmp = Path(spec.python or sys.executable).parent.parent / "lib" / "libiomp5.so"
    if openmp.exists():
        environment.setdefault("LD_PRELOAD", str(openmp))


class VLLMServer:
    """One child process that serves the policy.

    Args:
        spec: what to start.
        name: how errors call it.
        log_file: where its output goes.
    """

    def __init__(self, spec: ServerSpec, *, name: str, log_file: Path) -> None:
        self.spec = spec
        self.name = name
        self.log_file = log_file
        self.key = secrets.token_urlsafe(32)
        self.port = spec.port
        self._process: asyncio.subprocess.Process | None = None
        self._folder: str | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.spec.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self.returncode is None else None

    @property
    def returncode(self) -> int | None:
        """Exit status, None while it runs or before it was started."""
        return None if self._process is None else self._process.returncode

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of its log."""
        try:
            text = self.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(line[:300] for line in text.splitlines()[-lines:])

    async def spawn(self) -> None:
        """Start the process; `wait_healthy` waits for it.

        Raises:
            PolicyUnavailable: its port is in use or its Python does not exist.
        """
        if self.spec.port:
            check_port(self.spec.host, self.spec.port)
        self.port = self.spec.port or free_port(self.spec.host)
        # A folder of its own: the server must not import whatever else lies beside this file.
        self._folder = tempfile.mkdtemp(prefix="agentrl-vllm-")
        for name, source in _OWN_FILES.items():
            shutil.copy(source, Path(self._folder) / name)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *server_command(self.spec, self.port),
                    env=server_environment(self.spec, self.key, self._folder),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise PolicyUnavailable(
                    f"{self.name} cannot be started with {self.spec.python or sys.executable}: {error}; "
                    "set `engine.python` to a Python that has vLLM"
                ) from error

    async def wait_healthy(self, client: VLLMClient, limit_s: float) -> None:
        """Wait until the server answers and serves our model.

        Raises:
            PolicyUnavailable: it ended, or did not become healthy within `limit_s`; the text has the
                likely cause and the end of its log.
        """
        assert self._process is not None, "spawn() comes first"
        started = time.monotonic()
        while not await client.healthy(limit_s=5.0):
            if self._process.returncode is not None:
                raise self._failure(f"ended with status {self._process.returncode} before it was healthy")
            if time.monotonic() - started > limit_s:
                await self.stop()
                raise self._failure(f"was not healthy after {limit_s:.0f} s (`engine.start_limit_s`)")
            await asyncio.sleep(0.25)
        try:
            await client.model()
        except PolicyError as error:
            await self.stop()
            raise PolicyUnavailable(f"somebody else answers at {self.url}: {error}") from error

    def _failure(self, what: str) -> PolicyUnavailable:
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        cause = likely_cause(text, self.returncode)
        return PolicyUnavailable(
            f"{self.name} {what}; likely cause: {cause}\nend of {self.log_file}:\n{self.log_tail()}"
        )

    async def wait_ended(self) -> int:
        """Wait until the process is gone (the watch of a replica); its exit status."""
        assert self._process is not None, "spawn() comes first"
        return await self._process.wait()

    async def stop(self) -> None:
        """End the server and every process it started. Idempotent."""
        process = self._process
        if process is not None:
            if process.returncode is None:
                _signal_group(process.pid, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
            # Its engine processes are in the same group, and outlive it when it was killed.
            _signal_group(process.pid, signal.SIGKILL)
            if process.returncode is None:
                await process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
