"""Evaluation inside training: held-out rows of every environment of a run, played by the live policy.

Knows nothing of when it is asked; the orchestrator does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentrl.config.settings import DataSettings, Settings
from agentrl.tasks.task import Task, load_data

if TYPE_CHECKING:
    from agentrl.inference.policy import Policy
    from agentrl.renderers.base import Renderer
    from agentrl.rollout.outage import Outages
    from agentrl.training.parts import Evaluate
    from agentrl_sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An environment with the rows that it is measured on."""

    task: Task
    rows: tuple[Mapping[str, Any], ...]


def load_held_out(settings: Settings, tasks: Sequence[Task]) -> tuple[HeldOut, ...]:
    """Held-out rows of the environments that have some: their own `eval_data`, else `eval.data`.

    Raises:
        ConfigError: rows cannot be read, or their environment cannot use them.
    """
    found: list[HeldOut] = []
    for number, (env, task) in enumerate(zip(settings.env, tasks, strict=True), 1):
        source = env.eval_data or settings.eval.data
        if not source:
            continue
        where = ("" if len(tasks) == 1 else f"env {number} ({task.name!r}): ") + (
            "env.eval_data" if env.eval_data else "eval.data"
        )
        own = env.data if env.data.train else settings.data
        data = DataSettings(train=source, map=own.map, limit=settings.eval.limit)
        found.append(HeldOut(task, load_data(data, task.env, where)))
    return tuple(found)


def make_evaluation(
    settings: Settings, held_out: Sequence[HeldOut], policy: Policy, renderer: Renderer, sandbox: Sandbox
) -> Evaluate | None:
    """From (version, index of the evaluation, what to call after each episode) to a row of metrics.

    Of a mixture the row describes all problems together, and under `environments` those of each.
    """
    if not held_out:
        return None
    from agentrl.evaluation.run import EvalResult, evaluate_policy
    from agentrl.evaluation.summary import summarise
    from agentrl.rollout.token_completer import Decoding

    options = settings.eval

    async def evaluate(
        version: int, number: int, ended: Callable[[], None], outages: Outages
    ) -> dict[str, Any]:
        results: dict[str, EvalResult] = {}
        for index, part in enumerate(held_out):
            results[part.task.name] = await evaluate_policy(
                policy,
                renderer,
                lambda seed, task=part.task: task.make(sandbox, seed),
                part.rows,
                samples=options.samples,
                decoding=Decoding(options.temperature, options.top_p, options.top_k),
                rollout=settings.rollout,
                concurrency=settings.stream.in_flight or settings.engine.slots,
                seed=settings.run.seed,
                name=f"v{version}-{number}" if len(held_out) == 1 else f"v{version}-{number}-{index}",
                environment=part.task.name,
                on_record=lambda record: ended(),
                outages=outages,
            )
        if len(results) == 1:
            return next(iter(results.values())).as_row()
        # Two environments may know one problem; they are two problems here.
        together = tuple(
            replace(record, problem=f"{name}/{record.problem}")
            for name, result in results.items()
            for record in result.records
        )
        row = EvalResult(together, await summarise(together)).as_row()
        if len({record.reward_range for record in together}) > 1:
            row["interval"] = row["interval_method"] = None  # no common scale
        return row | {"environments": {name: result.as_row() for name, result in results.items()}}

    return evaluate
