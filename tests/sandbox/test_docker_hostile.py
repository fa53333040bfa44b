"""The hostile programs of `benchmarks.hostile` in containers of a real engine (`make test-docker`)."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from agentrl_sandbox import open_sandbox
from benchmarks.hostile import CASES
from benchmarks.hostile.harness import LIMITS, endure
from tests.needed import docker_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.hostile,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Any]:
    with docker_engine():
        async with open_sandbox("docker", limits=LIMITS, warm=2) as opened:
            yield opened


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_contained(sandbox: Any, case: Any) -> None:
    if case.needs is not None and case.needs not in ("numpy", "sympy"):
        pytest.skip(f"the image of the tests has no {case.needs}")
    if "jail" in case.tags:
        pytest.skip("an engine tells every container where its files lie on the host")
    complaint = await endure(sandbox, case)
    assert complaint is None, complaint
