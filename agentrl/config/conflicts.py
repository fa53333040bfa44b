"""Parts that do not go together: some are refused, some only spoken of before a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from agentrl.config.part_settings import (
    AggregatorSettings,
    EstimatorSettings,
    LossSettings,
    Rules,
    SamplerSettings,
    ShaperSettings,
)


class Rollout(Protocol):
    """How an episode is sampled, and its limit."""

    @property
    def max_tokens(self) -> int:
        """Tokens the policy may sample in it."""
        ...

    @property
    def temperature(self) -> float:
        """Sampling temperature."""
        ...


class Parts(Protocol):
    """The sections of a run whose parts must go together."""

    @property
    def rollout(self) -> Rollout: ...  # noqa: D102

    @property
    def sampler(self) -> SamplerSettings: ...  # noqa: D102

    @property
    def shaper(self) -> ShaperSettings: ...  # noqa: D102

    @property
    def estimator(self) -> EstimatorSettings: ...  # noqa: D102

    @property
    def loss(self) -> LossSettings: ...  # noqa: D102

    @property
    def aggregator(self) -> AggregatorSettings: ...  # noqa: D102


def refused(settings: Parts) -> Rules:
    """Parts that work against each other, or of which one does nothing."""
    shaper, estimator, loss = settings.shaper, settings.estimator, settings.loss
    if shaper.kind == "otc" and estimator.kind == "aspo":
        yield (
            ("shaper.kind", "estimator.kind"),
            (
                "shaper.kind = 'otc' makes the first tool call cost reward where none was needed, and "
                "estimator.kind = 'aspo' rewards early calls: choose one"
            ),
        )
    if shaper.kind != "none" and estimator.kind in ("gdpo", "gdpo_value"):
        yield (
            ("shaper.kind", "estimator.kind"),
            (
                f"estimator.kind = {estimator.kind!r} reads the parts of the reward, which "
                f"shaper.kind = {shaper.kind!r} does not change: give the shaper's "
                "wish a part of its own in the environment"
            ),
        )
    if loss.teacher_is_served and settings.rollout.temperature != 1.0:
        yield (
            ("loss.teacher", "rollout.temperature"),
            (
                "loss.teacher is a server, which gives log-probabilities at temperature 1, and "
                f"rollout.temperature = {settings.rollout.temperature:g}: set it to 1, or name weights"
            ),
        )
    if loss.kind == "real" and loss.own.get("compare") == "groups" and estimator.group_size < 2:
        yield (
            ("loss.compare", "loss.kind", "estimator.group_size"),
            (
                "loss.compare = 'groups' compares the episodes of a prompt and needs estimator.group_size "
                "of at least 2"
            ),
        )
    if shaper.kind == "soft_length" and "limit" in shaper.own:
        begins = shaper.own["limit"] - shaper.own.get("margin", 4096)
        if begins >= settings.rollout.max_tokens:
            yield (
                ("shaper.limit", "shaper.margin", "rollout.max_tokens"),
                (
                    "shaper.kind = 'soft_length' never acts: it begins at shaper.limit - shaper.margin = "
                    f"{begins} tokens, and rollout.max_tokens = {settings.rollout.max_tokens}"
                ),
            )


def notes(settings: Parts) -> Iterator[str]:
    """Parts that count one thing twice, or whose formula was made for another neighbour."""
    estimator, loss, sampler = settings.estimator, settings.loss, settings.sampler
    weighs = estimator.kind == "dgpo_value" and estimator.own.get("temperature", 2.0) > 0.0
    if weighs and sampler.kind in ("priority", "deviation", "gaussian"):
        yield (
            f"estimator.kind = 'dgpo_value' weighs hard prompts, and sampler.kind = {sampler.kind!r} draws "
            "by difficulty too: estimator.temperature = 0 or sampler.kind = 'uniform' counts it once"
        )
    if loss.kind in ("real", "tbrm"):
        yield (
            f"loss.kind = {loss.kind!r} reads rewards: what estimator.kind = {estimator.kind!r} and a shaper "
            "give is not used"
        )
    if loss.kind in ("gspo", "real", "tbrm") and settings.aggregator.kind != "sequences":
        yield (
            f"loss.kind = {loss.kind!r} is one number for a sequence and was made for aggregator.kind = "
            f"'sequences'; {settings.aggregator.kind!r} weighs long sequences more"
        )
    if loss.kind == "gtpo" and estimator.own.get("normalise", "batch") == "batch":
        yield "loss.kind = 'gtpo' was made for advantages that are centred and not divided"
