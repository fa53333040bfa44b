"""Engines as the settings of a run name them."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agentrl.cluster.placement import choose_engine, find_gpus, gpu_layout, has_vllm
from agentrl.config import registry
from agentrl.config.settings import Settings
from agentrl.inference.policy import Policy
from agentrl.weights.handle import WeightHandle

logger = logging.getLogger(__name__)


async def make_policy(
    settings: Settings, handle: Callable[[int, int], Awaitable[WeightHandle]], tokenizer: Any, logs: Path
) -> Policy:
    """The engine that the settings name, over the weights that `handle(version, attempt)` gives."""

    engine = settings.engine
    kind, reason = choose_engine(engine, gpus=len(find_gpus()), vllm_found=has_vllm(engine.python))
    logger.info("engine: %s, %s", kind, reason)
    if kind == "vllm":
        return make_vllm_policy(settings, logs)
    source = (await handle(0, 1)).source
    if kind != "transformers":
        return registry.make("engine", kind, {}, settings, source, tokenizer, logs)
    from agentrl.inference.embedded.engine import TransformersPolicy

    return TransformersPolicy(
        source,
        tokenizer,
        slots=engine.slots,
        context_tokens=engine.context_tokens,
        dtype=engine.dtype,
        deterministic=settings.run.deterministic,
        keep_keys=engine.keep_keys,
        seed=settings.run.seed,
        attempt=1,
        update_limit_s=engine.update_limit_s,
    )


def make_vllm_policy(settings: Settings, log_folder: Path) -> Policy:
    """vLLM servers as the settings describe them; starts nothing yet.

    Raises:
        ConfigError: the layout needs more GPUs than there are.
    """
    from agentrl.inference.vllm.engine import VLLMPolicy
    from agentrl.inference.vllm.server import ServerSpec

    engine = settings.engine
    layout = gpu_layout(settings, [gpu.index for gpu in find_gpus()])
    spec = ServerSpec(
        model=settings.model.path,
        python=engine.python,
        dtype=settings.model.dtype if engine.dtype == "auto" else engine.dtype,
        context_tokens=engine.context_tokens,
        slots=engine.slots,
        tensor_parallel=engine.tensor_parallel,
        memory_share=engine.memory_share,
        transfer=layout.transfer,
        sleep_mode=engine.layout == "shared" and bool(layout.learner),
        adapters=settings.resident_adapters,
        adapter_rank=settings.learner.adapter.rank,
        args=engine.args,
        seed=settings.run.seed,
    )
    return VLLMPolicy(
        spec,
        log_folder=log_folder,
        replicas=engine.replicas,
        gpus=layout.engines,
        urls=engine.urls,
        key=os.environ.get("VLLM_API_KEY", ""),
        keep_keys=engine.keep_keys,
        start_limit_s=engine.start_limit_s,
        update_limit_s=engine.update_limit_s,
        silence_limit_s=settings.run.wait_limit_s,
    )
