"""The same environment played with tokens and with messages, on one real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentrl.config.settings import RolloutSettings
from agentrl.episode import StopReason
from agentrl.inference.endpoint.client import EndpointPolicy
from agentrl.inference.endpoint.errors import EndpointRefused
from agentrl.inference.endpoint.settings import EndpointSettings
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.inference.vllm.server import MODEL_NAME
from agentrl.renderers.making import make_renderer
from agentrl.rollout.endpoint_completer import run_chat_episode
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, tool
from agentrl_sandbox import Sandbox, open_sandbox
from tests.vllm.conftest import load
from tests.vllm.tiny_models import CALL, save_constant

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Product(Env):
    """Six times seven, by program."""

    max_turns = 3

    async def setup(self) -> None:
        self.session = await self.sandbox.open()

    def prompt(self, row: Mapping[str, Any]) -> str:
        return "6*7?"

    @tool
    async def python(self, code: str) -> str:
        "Run Python."
        return (await self.session.run(code)).text

    def reward(self, row: Mapping[str, Any], answer: str | None, episode: Any) -> float:
        return sum(result.text.strip() == "42" for result in episode.tool_results) / 4


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sandbox() -> AsyncIterator[Sandbox]:
    async with open_sandbox("local", allow_unsafe=True) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


async def say_the_call(policy: VLLMPolicy, tokenizer: Any, tmp_path: Path) -> int:
    """Weights that can only write the tool call."""
    return await load(policy, str(save_constant(tmp_path, tokenizer.convert_tokens_to_ids(CALL))))


async def test_a_tool_loop_with_tokens(policy: VLLMPolicy, sandbox: Sandbox, tokenizer: Any, tmp_path: Path):
    version = await say_the_call(policy, tokenizer, tmp_path)
    tokenizer.chat_template = None
    episode = await run_episode(
        lambda: Product(sandbox=sandbox),
        policy,
        make_renderer(tokenizer, "code"),
        row={},
        dispatch=Dispatch("loop", 0, "p", version),
        settings=RolloutSettings(),
    )
    assert episode.failure is None
    assert episode.stop_reason is StopReason.MAX_TURNS
    assert [(call.result.strip(), call.ok) for call in episode.tool_calls] == [("42", True)] * 2
    assert episode.reward == 0.5
    segment = episode.segments[0]
    # One sampled token a turn: the stop text ends inside it, and it is kept.
    call = tokenizer.convert_tokens_to_ids(CALL)
    sampled = [t for t, mask in zip(segment.token_ids, segment.loss_mask, strict=True) if mask]
    assert sampled == [call] * 3
    assert set(segment.policy_versions) == {-1, version}
    assert "42" in tokenizer.decode(list(segment.token_ids))


async def test_the_same_environment_with_messages(
    policy: VLLMPolicy, sandbox: Sandbox, tokenizer: Any, tmp_path: Path
):
    await say_the_call(policy, tokenizer, tmp_path)
    url, key = policy.endpoint()
    endpoint = EndpointPolicy(EndpointSettings(url=url, model=MODEL_NAME, attempts=2), key=key)
    try:
        await endpoint.start()
        result = await run_chat_episode(
            lambda: Product(sandbox=sandbox),
            endpoint,
            row={},
            dispatch=Dispatch("chat", 0, "p", 0, seed=1),
            settings=RolloutSettings(max_turn_tokens=16, max_turns=2),
            tool_format="code",
        )
    finally:
        await endpoint.close()
    episode = result.episode
    assert episode.failure is None
    assert [call.result.strip() for call in episode.tool_calls] == ["42"]
    assert episode.reward == 0.25
    assert result.usage.completion_tokens == 2
    wrong = EndpointPolicy(EndpointSettings(url=url, model="another"), key=key)
    try:
        await wrong.start()  # not listed: only told
        with pytest.raises(EndpointRefused, match=rf"name 'another' \(it lists {MODEL_NAME}\)"):
            await wrong.chat([{"role": "user", "content": "6*7?"}], [], Sampling(4))
    finally:
        await wrong.close()
