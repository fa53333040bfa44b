"""What is evaluated: weights, a run, a vLLM server, an endpoint or a script; opened and closed around a loop.

Knows engines and renderers; knows nothing of data, estimators or files of results.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentrl.config import bundled, loading
from agentrl.config.registry import load_function
from agentrl.config.settings import EngineSettings, RolloutSettings, Settings
from agentrl.errors import ConfigError, StallError
from agentrl.evaluation.run import MakeEnv, Play, chat_player, token_player
from agentrl.evaluation.settings import Experiment
from agentrl.inference.endpoint.settings import EndpointSettings, Usage
from agentrl.inference.run_weights import run_weights
from agentrl.renderers.making import choose_format, read_options
from agentrl.rollout.token_completer import Decoding
from agentrl.storage.cost import spent
from agentrl.storage.metrics import read_metrics
from agentrl.storage.run_folder import RunFolder
from agentrl.weights.adapter_files import is_adapter
from agentrl.weights.fingerprint import fingerprint
from agentrl.weights.handle import WeightHandle
from agentrl.weights.model_files import base_model, find_model, load_tokenizer, trained_format, what_it_is
from agentrl_envs import ToolSpec

SCRIPT = "scripted:"
START_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class SubjectOptions:
    """What is evaluated, and with which engine."""

    subject: str = ""
    """A run folder, a folder of weights, a Hugging Face id, or `scripted:file.py:function`."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    """Asked in place of an engine where it has a URL; its prices hold for engines too."""
    policy: Any = None
    """An engine that is handed in ready made, in place of a subject, with its `tokenizer`."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    device: str = "auto"
    concurrency: int = 64
    seed: int = 0
    spent: Usage = field(default_factory=Usage)
    """What an earlier attempt used of the endpoint's budget, which is for all of them together."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An open policy: makes players, and says what it is."""

    identity: dict[str, Any]
    """Equal for equal policies: a resumed evaluation must find the same."""
    player: Callable[[MakeEnv, RolloutSettings, Decoding], Play]
    version: Callable[[], int]
    rollout: RolloutSettings
    """As given, with the format that was decided."""
    address: str = ""
    """URL of an endpoint."""
    decode: Callable[[Sequence[int]], str] = lambda token_ids: ""
    """Token ids to text; an endpoint has none."""


def subject_of(experiment: Experiment) -> SubjectOptions:
    """What an experiment evaluates."""
    measure, path = experiment.eval, experiment.model.path
    endpoint = experiment.endpoint
    engine = replace(experiment.engine, slots=min(experiment.engine.slots, measure.concurrency))
    return SubjectOptions(
        "" if endpoint.url else path,
        replace(endpoint, model=endpoint.model or path) if endpoint.url else endpoint,
        engine=engine,
        device=experiment.model.device,
        concurrency=measure.concurrency,
        seed=measure.seed,
    )


def run_settings(subject: str) -> Settings | None:
    """The settings of a run when `subject` is the folder of one."""
    path = Path(subject)
    if not subject or not (path / "run.json").exists():
        return None
    return loading.load_settings(RunFolder.open(path).config)


def weights_of(subject: str) -> str:
    """The folder of weights a subject means: the newest version of a run, also where a checkpoint has it.

    An adapter (LoRA) apart is one too; its base model is looked for besides.

    Raises:
        ConfigError: the folder holds neither a run nor weights, or a run without any.
    """
    if is_adapter(subject):
        find_model(base_model(subject), "the adapter's base model", fetch=False)
        return subject
    if (Path(subject) / "run.json").exists():
        return str(run_weights(Path(subject)))
    if Path(subject).is_dir() and not (Path(subject) / "config.json").is_file():
        raise ConfigError(
            f"{subject} holds neither a run (run.json) nor Hugging Face weights (config.json)"
            f"{what_it_is(Path(subject))}"
        )
    if not Path(subject).is_dir():
        find_model(subject, "the model", fetch=False)
    return subject


def training_cost(subject: str) -> dict[str, Any]:
    """What the training run behind a subject spent, rollouts for initial values included.

    Up to the version of the weights that are evaluated; empty where the subject is no run.
    """
    path = Path(subject)
    if not subject or not (path / "run.json").exists():
        return {}
    folder = RunFolder.open(path)
    newest = folder.newest_weights()
    version = 0 if newest is None else int(newest.name.removeprefix("step_"))
    rows = read_metrics(folder.metrics) if folder.metrics.exists() else []
    return spent(rows, version).as_row() if version else {}


def check_subject(options: SubjectOptions) -> None:
    """Whether there is something to open, before the seconds that engines take to import.

    Raises:
        ConfigError: there is not.
    """
    if options.endpoint.url or options.policy is not None:
        return
    if not options.subject:
        raise ConfigError(
            "name what is evaluated: a run, a folder of weights, or --endpoint URL --model NAME"
        )
    if options.subject.startswith(SCRIPT):
        load_script(options.subject.removeprefix(SCRIPT))
    else:
        weights_of(options.subject)


@contextlib.asynccontextmanager
async def open_subject(
    options: SubjectOptions, rollout: RolloutSettings, logs: Path, tools: Sequence[ToolSpec] = ()
) -> AsyncIterator[Subject]:
    """Start the policy, and close it afterwards.

    Args:
        options: what is opened.
        rollout: how it talks; a format that is left open is decided by the model and the tools.
        logs: folder for logs of servers.
        tools: those of the environment.

    Raises:
        ConfigError: it cannot be what was meant.
        PolicyUnavailable: it does not start.
    """
    if options.endpoint.url:
        async with _endpoint(options, rollout) as subject:
            yield subject
        return
    if options.policy is not None:
        opened = options.policy, options.policy.tokenizer, {"kind": type(options.policy).__name__}
    elif options.subject.startswith(SCRIPT):
        opened = _scripted(options)
    elif _engine_kind(options.engine) == "vllm":
        opened = await _vllm(options, logs)
    else:
        opened = await asyncio.to_thread(_transformers, options)
    policy, tokenizer, identity = opened
    try:
        try:
            await asyncio.wait_for(policy.start(), options.engine.start_limit_s)
        except TimeoutError:
            raise StallError("the engine to start", options.engine.start_limit_s) from None
        if identity["kind"] == "vllm" and is_adapter(identity["weights"]):
            await policy.load(WeightHandle(version=1, attempt=0, source=identity["weights"]))
        rollout = _with_format(rollout, tokenizer, tools, options.subject)
        renderer = await asyncio.to_thread(_renderer, tokenizer, rollout)
        prices = options.endpoint
        yield Subject(
            identity,
            lambda make_env, settings, decoding: token_player(
                policy,
                renderer,
                make_env,
                settings,
                decoding,
                price_prompt=prices.price_prompt,
                price_completion=prices.price_completion,
            ),
            lambda: policy.version,
            rollout,
            decode=renderer.decode,
        )
    finally:
        if options.policy is None:  # else it belongs to who made it
            await policy.close()


def _with_format(
    rollout: RolloutSettings, tokenizer: Any, tools: Sequence[ToolSpec], subject: str
) -> RolloutSettings:
    if rollout.format != "auto":
        return rollout
    return replace(
        rollout,
        format=trained_format(subject)
        or choose_format(tokenizer, [tools], read_options(rollout.template_options)),
    )


def _engine_kind(engine: EngineSettings) -> str:
    from agentrl.cluster.placement import choose_engine, find_gpus, has_vllm

    return choose_engine(engine, gpus=len(find_gpus()), vllm_found=has_vllm(engine.python))[0]


def _renderer(tokenizer: Any, rollout: RolloutSettings) -> Any:
    from agentrl.renderers.making import rollout_renderer

    return rollout_renderer(tokenizer, rollout)


def _transformers(options: SubjectOptions) -> tuple[Any, Any, dict[str, Any]]:
    from transformers.utils import logging as transformers_logging

    from agentrl.inference.embedded.engine import TransformersPolicy

    transformers_logging.disable_progress_bar()  # it would write over the running estimate
    path = weights_of(options.subject)
    tokenizer = load_tokenizer(base_model(path), "the model")
    policy = TransformersPolicy(
        path,
        tokenizer,
        slots=options.engine.slots,
        context_tokens=options.engine.context_tokens,
        dtype=options.engine.dtype,
        device=options.device,
        seed=options.seed,
    )
    return policy, tokenizer, _identity("transformers", path)


async def _vllm(options: SubjectOptions, logs: Path) -> tuple[Any, Any, dict[str, Any]]:
    from agentrl.cluster.placement import find_gpus, server_gpus
    from agentrl.inference.vllm.engine import VLLMPolicy
    from agentrl.inference.vllm.server import ServerSpec

    path, engine = weights_of(options.subject), options.engine
    model = base_model(path)
    gpus = server_gpus(engine, [gpu.index for gpu in find_gpus()])
    spec = ServerSpec(
        model=model,
        python=engine.python,
        dtype=engine.dtype,
        context_tokens=engine.context_tokens,
        slots=engine.slots,
        tensor_parallel=engine.tensor_parallel,
        memory_share=engine.memory_share,
        args=engine.args,
        seed=options.seed,
    )
    policy = VLLMPolicy(
        spec,
        log_folder=logs,
        replicas=len(gpus),
        gpus=gpus,
        urls=engine.urls,
        key=os.environ.get("VLLM_API_KEY", ""),
        start_limit_s=engine.start_limit_s,
    )
    tokenizer = await asyncio.to_thread(load_tokenizer, model, "the model")
    return policy, tokenizer, _identity("vllm", path)


def _identity(kind: str, path: str) -> dict[str, str]:
    """What results say of weights that an engine of ours ran."""
    return {"kind": kind, "weights": bundled.shown(path), "fingerprint": fingerprint(path)}


def _scripted(options: SubjectOptions) -> tuple[Any, Any, dict[str, Any]]:
    from agentrl.inference.scripted import ScriptedPolicy

    script = load_script(options.subject.removeprefix(SCRIPT))
    policy = ScriptedPolicy(script, seed=options.seed)
    return policy, policy.tokenizer, {"kind": "scripted", "script": options.subject.removeprefix(SCRIPT)}


def load_script(spec: str) -> Callable[..., Any]:
    """The function of `file.py:function`, which answers a `ScriptedRequest`.

    Raises:
        ConfigError: no such file or function.
    """
    return load_function(spec, SCRIPT)


@contextlib.asynccontextmanager
async def _endpoint(options: SubjectOptions, rollout: RolloutSettings) -> AsyncIterator[Subject]:
    from agentrl.inference.endpoint.client import EndpointPolicy

    endpoint = options.endpoint
    policy = EndpointPolicy(endpoint, concurrency=options.concurrency, seed=options.seed, spent=options.spent)
    try:
        await policy.start()
        yield Subject(
            endpoint.identity(),
            lambda make_env, settings, decoding: chat_player(
                policy, make_env, settings, decoding, endpoint.tool_format
            ),
            lambda: 0,
            rollout if rollout.format != "auto" else replace(rollout, format="code"),
            endpoint.url,
        )
    finally:
        await policy.close()
