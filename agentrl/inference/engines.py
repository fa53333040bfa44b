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
from agentrl.errors import ConfigError
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
    import torch

    from agentrl.inference.embedded.engine import TransformersPolicy

    if settings.model.threads > 0:  # a learner in a process of its own sets them there only
        torch.set_num_threads(settings.model.threads)
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


def takes_live_weights(settings: Settings) -> bool:
    """Whether weights go to the engine from device to device, and not as files or copies."""
    if settings.cluster.kind != "none":
        return False
    gpus, found = [gpu.index for gpu in find_gpus()], has_vllm(settings.engine.python)
    kind, _ = choose_engine(settings.engine, gpus=len(gpus), vllm_found=found)
    return kind == "vllm" and gpu_layout(settings, gpus).transfer != "file"


def check_engine(settings: Settings, policy: Policy | None = None) -> None:
    """Refuse parts that need what the engine does not give.

    Args:
        settings: of the run.
        policy: its engine; None looks at the one of this package that `make_policy` would take.

    Raises:
        ConfigError: it reports no likeliest tokens or no hidden states, and a part requires them.
    """
    loss, estimator = settings.loss, settings.estimator
    top = registry.behaviour_top_k(loss.kind, loss.own)
    features = registry.prompt_features(estimator.kind, estimator.own)
    engine = _class_of(settings) if policy is None and (top or features is not None) else policy
    if engine is None:
        return
    name = getattr(engine, "__name__", type(engine).__name__)
    if top and not getattr(engine, "gives_top_logprobs", False):
        raise ConfigError(
            f"loss.kind = {loss.kind!r} requires the sampler's {top} likeliest tokens at each place, and the "
            f"engine {name} does not report them (one that does says gives_top_logprobs = "
            "True): take engine.kind transformers or vllm, or another loss"
        )
    if features is not None and not getattr(engine, "gives_prompt_features", False):
        raise ConfigError(
            f"estimator.kind = {estimator.kind!r} requires hidden states of the prompt, and the engine "
            f"{name} does not report them (one that does says gives_prompt_features = True): take "
            "engine.kind transformers, or another estimator"
        )


def _class_of(settings: Settings) -> type[Any] | None:
    """The engine of this package that a run would have; None where it is not, or not known here."""
    engine = settings.engine
    kind: str = engine.kind
    if kind == "auto" and settings.cluster.kind == "none":
        kind, _ = choose_engine(engine, gpus=len(find_gpus()), vllm_found=has_vllm(engine.python))
    return registry.load("engine", kind) if kind in registry.BUILT_IN["engine"] else None


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
