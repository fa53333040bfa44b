"""A teacher on a real vLLM server says what transformers says of the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.errors import ConfigError
from agentrl.inference.vllm.engine import VLLMPolicy
from agentrl.inference.vllm.teacher import ServedTeacher

pytestmark = pytest.mark.asyncio(loop_scope="session")


def make_episode() -> Episode:
    builder = SegmentBuilder()
    builder.append_given([0, 40, 41, 42])
    builder.append_sampled([60, 61, 62], [-1.0] * 3, [0] * 3)
    builder.append_given([70, 71])
    builder.append_sampled([80, 81], [-1.0] * 2, [0] * 2)
    builder.append_given([90])
    return Episode("e", 0, "p", (builder.build(),), (), 1.0, StopReason.ANSWERED, 0, 1.0)


async def test_it_scores_as_transformers_does(fresh: VLLMPolicy, folder: Path, reference: Any) -> None:
    import torch
    from transformers import AutoTokenizer

    client = fresh._fleet.live[0].client
    teacher = ServedTeacher(client.url, client.key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        await teacher.start(tokenizer, 1000)
        with pytest.raises(ConfigError, match=r"--max-model-len 1025"):
            await teacher.start(tokenizer, 1024)
        (segment,) = (await teacher.score(make_episode())).segments
    finally:
        await teacher.close()
    ids = torch.tensor([segment.token_ids.tolist()])
    with torch.no_grad():
        scores = reference(ids).logits[0].log_softmax(-1)
    wanted = [float(scores[at - 1, ids[0, at]]) for at, said in enumerate(segment.loss_mask) if said]
    assert segment.teacher_logprobs.tolist() == pytest.approx(wanted, abs=1e-4)
