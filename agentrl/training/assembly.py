"""Assembly of a run: from a plan to an orchestrator with every part made and started.

This is the one place that wires a run, in tests too. What needs torch is imported when it is needed, so that
errors in settings come before the seconds that this takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentrl.cluster.ray import RayCluster, open_cluster
from agentrl.config import registry
from agentrl.config.settings import LossSettings, Settings
from agentrl.episode import Episode
from agentrl.inference.engines import check_engine, make_policy, takes_live_weights
from agentrl.inference.policy import Policy
from agentrl.inference.vllm.teacher import ServedTeacher
from agentrl.renderers.base import Renderer
from agentrl.renderers.making import rollout_renderer
from agentrl.report.trackers import Tracker
from agentrl.rollout.token_completer import Decoding, Dispatch, run_episode
from agentrl.storage.ledger import Ledger
from agentrl.storage.metrics import MetricsWriter
from agentrl.storage.recorder import EpisodeRecorder
from agentrl.storage.run_folder import RunFolder
from agentrl.tasks.task import make_sandbox
from agentrl.training.credit import make_estimator
from agentrl.training.held_out import make_evaluation
from agentrl.training.learner_thread import AsyncLearner, LearnerThread
from agentrl.training.orchestrator import Orchestrator
from agentrl.training.parts import Options, Parts
from agentrl.training.plan import RunPlan, make_pool, plan_run
from agentrl.training.watchdog import Watchdog
from agentrl_envs import EnvError
from agentrl_sandbox import Sandbox

TEACHER_KEY = "AGENTRL_TEACHER_KEY"
logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def assemble(
    run: Settings | RunPlan,
    folder: RunFolder | None = None,
    options: Options | None = None,
    *,
    policy: Policy | None = None,
    learner: AsyncLearner | None = None,
    renderer: Renderer | None = None,
    sandbox: Sandbox | None = None,
) -> AsyncIterator[Orchestrator]:
    """Make and start every part of a run, and close it afterwards.

    Parts that are handed in ready made are taken as they are: nobody starts, compares or closes them here.
    Environments, estimators, losses and what else a setting names are handed in by `agentrl.load_settings`.

    Args:
        run: its plan (`plan_run`), or the settings to plan it from.
        folder: where it is recorded, locked by the caller; None makes one.
        options: what it is told besides its settings.
        policy: an engine that was started.
        learner: whose weights the engine has; without the parity gate.
        renderer: from messages to tokens of that engine.
        sandbox: for environments that run programs.

    Raises:
        PolicyUnavailable: the engine does not start.
        SandboxUnavailable: this machine has not the isolation asked for.
    """
    plan = run if isinstance(run, RunPlan) else await asyncio.to_thread(plan_run, run)
    settings, options, compared = plan.settings, options or Options(), learner is None
    async with contextlib.AsyncExitStack() as stack:
        if folder is None:
            folder = RunFolder.create(Path(settings.run.directory), settings.run.name)
            folder.lock()
            stack.callback(folder.unlock)
        renderer = renderer or rollout_renderer(plan.tokenizer, settings.rollout)
        sandbox = sandbox or await stack.enter_async_context(make_sandbox(settings.sandbox))
        watchdog = Watchdog(folder.logs)
        cluster: RayCluster | None = None
        if settings.cluster.kind == "ray" and None in (policy, learner):
            cluster = await stack.enter_async_context(open_cluster(settings, options.on_ready or logger.info))
        if learner is None:
            made = await asyncio.to_thread(make_learner, settings, cluster)
            learner = LearnerThread(made, live=takes_live_weights(settings))
            stack.push_async_callback(learner.close)
        if policy is None:
            policy = await _engine(plan, learner, folder, cluster)
            stack.push_async_callback(policy.close)
            # The engine has limits of its own, and says why it did not start; this one is the back-stop.
            longest = max(settings.engine.start_limit_s, settings.cluster.start_limit_s)
            await watchdog.wait(policy.start(), "the engine to start", 2 * longest + 60)
        check_engine(settings, policy)
        if options.on_ready is not None:
            options.on_ready(sandbox.describe())
        if settings.run.trackers:
            services = [Tracker(name, folder, settings.run.tracker_project) for name in settings.run.trackers]
            for service in services:
                stack.push_async_callback(asyncio.to_thread, service.close)
            options = replace(options, listeners=(*options.listeners, *services))
        parts = _wired(plan, folder, options, policy, learner, renderer, sandbox, watchdog)
        stack.push_async_callback(parts.close)
        if settings.loss.teacher_is_served:
            teacher = make_teacher(settings.loss)
            stack.push_async_callback(teacher.close)
            await teacher.start(plan.tokenizer, policy.context_tokens)
            parts = replace(parts, teacher=teacher.score)
        if compared:
            gate = await _parity_gate(settings, parts, renderer, sandbox)
            parts = replace(parts, before_start=gate.check, after_update=gate.after_update)
        yield Orchestrator(settings, parts)


async def _engine(
    plan: RunPlan, learner: AsyncLearner, folder: RunFolder, cluster: RayCluster | None
) -> Policy:
    """The engine of this process or its servers, or the workers of a cluster; none is started yet."""
    if cluster is None:
        return await make_policy(plan.settings, learner.handle, plan.tokenizer, folder.logs)
    from agentrl.rollout.worker_pool import RolloutWorkers

    return RolloutWorkers(plan.settings, cluster)


def _wired(
    plan: RunPlan,
    folder: RunFolder,
    options: Options,
    policy: Policy,
    learner: AsyncLearner,
    renderer: Renderer,
    sandbox: Sandbox,
    watchdog: Watchdog,
) -> Parts:
    """An engine, a learner and a renderer that are ready, with the prompts and the files of a run."""
    settings, pool = plan.settings, make_pool(plan.tasks, plan.settings)
    decoding = Decoding.of(settings)
    elsewhere = getattr(policy, "play_episode", None)

    async def play(dispatch: Dispatch) -> Episode:
        prompt = pool.index[dispatch.prompt_id]
        task = pool.task(prompt)
        if elsewhere is not None:
            return await elsewhere(dispatch, plan.tasks.index(task), pool.row(prompt))
        return await run_episode(
            lambda: task.make(sandbox, dispatch.seed),
            policy,
            renderer,
            row=pool.row(prompt),
            dispatch=dispatch,
            settings=settings.rollout,
            decoding=decoding,
        )

    named = [registry.make("listener", kind, {}) for kind in settings.run.listeners]
    return Parts(
        folder=folder,
        pool=pool,
        policy=policy,
        learner=learner,
        estimator=make_estimator(settings.estimator),
        ledger=Ledger(folder.ledger),
        recorder=EpisodeRecorder(folder.episodes, keep=settings.run.episodes_kept),
        metrics=MetricsWriter(folder.metrics, (*options.listeners, *named)),
        watchdog=watchdog,
        play=play,
        evaluate=make_evaluation(settings, plan.held_out, policy, renderer, sandbox),
        shuffle_rewards=options.shuffle_rewards,
    )


def make_teacher(loss: LossSettings) -> ServedTeacher:
    """The server that `loss.teacher` names."""
    return ServedTeacher(
        loss.teacher,
        os.environ.get(TEACHER_KEY, ""),
        at_once=loss.teacher_at_once,
        limit_s=loss.teacher_limit_s,
    )


def make_learner(settings: Settings, cluster: RayCluster | None = None) -> Any:
    """The learner that the settings name: in this process, or one process or actor per rank.

    Args:
        settings: of the run.
        cluster: with a place for each rank of a learner that lives on it; None takes processes in its place.
    """
    steps = settings.learner.schedule_steps or settings.optimizer_steps
    settings = replace(settings, learner=replace(settings.learner, schedule_steps=steps))
    parts = (settings.model, settings.learner, settings.loss, settings.aggregator)
    # Before the run's own: it names the rank.
    options: dict[str, Any] = {"seed": settings.run.seed, "limit_s": 0.9 * settings.run.wait_limit_s}
    if settings.learner.place == "cluster" and cluster is not None:
        from agentrl.learner.actors import LearnerActors

        return LearnerActors(cluster, *parts, start_limit_s=settings.cluster.start_limit_s, **options)
    if settings.learner.place != "thread":
        from agentrl.learner.process import LearnerProcesses

        return LearnerProcesses(*parts, **options)
    from agentrl.learner.learner import Learner

    return Learner(*parts, seed=settings.run.seed)


PARITY_PROMPTS, PARITY_ROWS = 8, 64
"""Prompts that engine and learner are compared on, and rows that are looked at to find them."""


async def _parity_gate(settings: Settings, parts: Parts, renderer: Renderer, sandbox: Sandbox) -> Any:
    """The gate that stops a run whose engine and learner disagree."""
    from agentrl.inference.parity import ParityGate, rendered_prompts

    pool, policy, watchdog = parts.pool, parts.policy, parts.watchdog

    async def render(prompt: int) -> list[int]:
        task, row = pool.task(prompt), copy.deepcopy(pool.row(prompt))
        env, limit_s = task.make(sandbox, settings.run.seed), settings.rollout.limit_s
        try:
            messages = await watchdog.wait(
                env.start(row), f"{task.name} to begin an episode for the parity gate", limit_s
            )
            # An environment that plays by itself may have no opening.
            opening = messages or [{"role": "user", "content": "Begin."}]
            return renderer.start(opening, task.env.tool_specs())
        finally:
            with contextlib.suppress(EnvError):  # in an episode it would be told, and nothing more
                await watchdog.wait(env.aclose(), f"{task.name} to close it again", limit_s)

    prompts, left_out = await rendered_prompts(
        render, pool.prompt_ids[:PARITY_ROWS], PARITY_PROMPTS, policy.context_tokens
    )
    for name in left_out:
        pool.put_aside(pool.index[name])
    if left_out:
        parts.metrics.write("left_out", rows=left_out)

    decoding = Decoding.of(settings)

    def log(row: dict[str, Any]) -> None:
        parts.metrics.write(**row)

    return ParityGate(
        policy,
        parts.learner.score,
        prompts,
        settings.engine,
        temperature=decoding.temperature,
        tokens=min(64, settings.rollout.max_tokens),
        top_logprobs=decoding.top_logprobs,
        prompt_features=decoding.prompt_features,
        limit_s=settings.run.wait_limit_s,
        log=log,
    )
