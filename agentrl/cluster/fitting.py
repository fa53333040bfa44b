"""Settings that make a run fit: which one to change when a device is too small, and changes until all fit.

Changes are tried from those that cost least speed to those that change what is learned. Nothing is started.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from agentrl.cluster.memory import Plan
from agentrl.config.settings import Settings
from agentrl.errors import ConfigError

Planner: TypeAlias = Callable[[Settings], tuple[Plan, ...]]
"""Settings to what every device must hold."""

LEAST_TOKENS = 1024
"""Of a micro-batch: fewer make a device idle."""
LEAST_SHARE, SHARE_STEP = 0.2, 0.1
FIT_RANK = 16
"""Of the adapter that is proposed where all weights do not fit in any other way."""


def changed(settings: Settings, name: str, value: Any) -> Settings:
    """Settings with another value at a dotted name."""
    path, _, rest = name.partition(".")
    fields: dict[str, Any] = {path: changed(getattr(settings, path), rest, value) if rest else value}
    return replace(settings, **fields)


def _changes(settings: Settings) -> Iterator[tuple[str, Any]]:
    """What could be changed next, the cheapest first."""
    learner, engine, model = settings.learner, settings.engine, settings.model
    if settings.checkpoint.asynchronous:
        yield "checkpoint.asynchronous", False
    if learner.undo:
        yield "learner.undo", False
    if not learner.gradient_checkpointing:
        yield "learner.gradient_checkpointing", True
    if learner.micro_batch_tokens // 2 >= LEAST_TOKENS:
        yield "learner.micro_batch_tokens", learner.micro_batch_tokens // 2
    if model.dtype == "float32":
        yield "model.dtype", "bfloat16"
    if engine.layout == "shared":
        for share in (engine.memory_share - SHARE_STEP, engine.memory_share + SHARE_STEP):
            if LEAST_SHARE <= share < 1.0:
                yield "engine.memory_share", round(share, 2)
    if engine.slots > 1:
        yield "engine.slots", engine.slots // 2
    yield "engine.tensor_parallel", 2 * engine.tensor_parallel
    yield "learner.ranks", 2 * learner.ranks
    if not learner.offload:
        yield "learner.offload", True
    if not learner.adapter.rank:
        yield "learner.adapter.rank", FIT_RANK


def lacking(plans: tuple[Plan, ...]) -> int:
    """Bytes that devices are short of, all together."""
    return sum(max(0, plan.least - plan.capacity) for plan in plans)


def _tried(settings: Settings, name: str, value: Any, plan: Planner) -> tuple[int, Settings] | None:
    """What a change leaves lacking; None where the machine has no room for such a layout."""
    other = changed(settings, name, value)
    if name == "learner.ranks":
        other = changed(other, "learner.place", "process")
    try:
        return lacking(plan(other)), other
    except ConfigError:
        return None


def remedy(settings: Settings, plan: Planner) -> str:
    """The setting whose change helps most with least harm, as a flag; empty where none helps."""
    now = lacking(plan(settings))
    for name, value in _changes(settings):
        found = _tried(settings, name, value, plan)
        if found is not None and found[0] < now:
            return flag(name, value)
    return ""


def fit(settings: Settings, plan: Planner, allowed: Collection[str] | None = None) -> dict[str, Any] | None:
    """Changes with which a run fits, by dotted name; None where there are none.

    Args:
        settings: that need not fit.
        plan: what every device must hold under settings.
        allowed: names of the settings that may change; None lets all.
    """
    found: dict[str, Any] = {}
    now = lacking(plan(settings))
    while now > 0:
        for name, value in _changes(settings):
            if allowed is not None and name not in allowed:
                continue
            better = _tried(settings, name, value, plan)
            if better is not None and better[0] < now:
                now, settings = better
                found[name] = value
                break
        else:
            return None
    if "learner.ranks" in found:
        found["learner.place"] = "process"
    return found


def flag(name: str, value: Any) -> str:
    """A setting as it is typed."""
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
