"""Weights that the learner writes are a model that vLLM serves as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentrl.config.settings import LearnerSettings, ModelSettings
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.inference.vllm.server import ServerSpec
from agentrl.learner.learner import Learner
from tests.vllm.tiny_models import make_model, reference_logprobs

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [10, 20, 30, 40, 50]


def episode(number: int) -> Episode:
    builder = SegmentBuilder()
    builder.append_given(PROMPT)
    builder.append_sampled([60 + number, 70, 80], [-1.0] * 3, [0] * 3)
    segments, reason = (builder.build(),), StopReason.ANSWERED
    return Episode(f"e{number}", number, f"p{number}", segments, (), 1.0, reason, 0, 1.0)


async def test_vllm_serves_what_the_learner_wrote(spec: ServerSpec, folder: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    learner = Learner(
        ModelSettings(path=str(folder), device="cpu"), LearnerSettings(learning_rate=1e-2, mini_batch=2)
    )
    learner.step([episode(number) for number in range(4)], [1.0, -1.0, 0.5, 1.0])
    written = tmp_path / "step_1"
    learner.save_weights(written)
    policy = VLLMPolicy(
        replace(spec, model=str(written), slots=4),
        log_folder=tmp_path / "logs",
        start_limit_s=600,
        update_limit_s=60,
    )
    try:
        await policy.start()
        result = await policy.generate(PROMPT, Sampling(24), session="x", start_version=0)
    finally:
        await policy.close()
    again = AutoModelForCausalLM.from_pretrained(written).eval()
    expected = reference_logprobs(again, PROMPT, result.token_ids)
    assert list(result.logprobs) == pytest.approx(expected, abs=1e-3)
    # Not the model it started from: the step moved it.
    start = reference_logprobs(make_model(seed=0), PROMPT, result.token_ids)
    assert max(abs(a - b) for a, b in zip(start, expected, strict=True)) > 0.1
