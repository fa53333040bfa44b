"""Real vLLM servers on loopback, shared between tests: each takes most of a minute to start on two cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.inference.vllm.server import ServerSpec
from agentrl.weights.handle import WeightHandle
from tests.vllm.tiny_models import make_model, save_constant, save_random

REPOSITORY = Path(__file__).parents[2]
A, B = 40, 41
"""What the two constant models say."""


def vllm_python() -> str:
    """The Python that has vLLM: this one, or that of .venv-vllm."""
    beside = REPOSITORY / ".venv-vllm" / "bin" / "python"
    return os.environ.get("AGENTRL_VLLM_PYTHON") or (str(beside) if beside.exists() else "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent.name == "vllm":
            item.add_marker(pytest.mark.vllm)
            # The first test of a server pays for its start; on a busy machine that takes minutes.
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model with its tokenizer; `a/` and `b/` hold the constant ones."""
    root = tmp_path_factory.mktemp("tiny")
    save_random(root)
    save_constant(root / "a", A)
    save_constant(root / "b", B)
    return root


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """The random model, by transformers."""
    return make_model(seed=0)


@pytest.fixture(scope="session")
def spec(folder: Path) -> ServerSpec:
    return ServerSpec(
        str(folder),
        python=vllm_python(),
        dtype="float32",
        context_tokens=1024,
        slots=32,
        args=("--enforce-eager",),
        environment=(("VLLM_CPU_KVCACHE_SPACE", "1"),),
    )


@contextlib.asynccontextmanager
async def serving(spec: ServerSpec, logs: Path, **more: Any) -> AsyncIterator[VLLMPolicy]:
    """Servers that are up."""
    made = VLLMPolicy(spec, log_folder=logs, start_limit_s=280, update_limit_s=60, **more)
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def policy(spec: ServerSpec, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VLLMPolicy]:
    """One server, for all tests that break nothing.

    While working on the tests, AGENTRL_VLLM_URL and AGENTRL_VLLM_KEY attach them to a running one.
    """
    url = os.environ.get("AGENTRL_VLLM_URL")
    key = os.environ.get("AGENTRL_VLLM_KEY", "")
    async with serving(spec, tmp_path_factory.mktemp("logs"), urls=[url] if url else [], key=key) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(spec: ServerSpec, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VLLMPolicy]:
    """Two replicas that tests may kill."""
    async with serving(replace(spec, slots=16), tmp_path_factory.mktemp("pair"), replicas=2) as made:
        yield made


async def load(policy: VLLMPolicy, source: Any) -> int:
    """Give a policy new weights under the next version; returns it."""
    version = policy.version + 1
    await policy.load(WeightHandle(version, 1, source))
    return version


@pytest_asyncio.fixture(loop_scope="session")
async def fresh(policy: VLLMPolicy, folder: Path) -> VLLMPolicy:
    """The shared server, holding the random model."""
    if policy.version:
        await load(policy, str(folder / "model.safetensors"))
    return policy
