"""Presets: one name for the settings of a published algorithm or protocol. What a file or a flag says wins.

A section whose `kind` is said elsewhere to be another keeps nothing of the preset: its settings were that
kind's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.errors import ConfigError

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings that go by one name."""

    values: Values
    """By dotted name."""
    source: str
    """Where they are from, and what to know of it."""


_GROUPS: Values = {"estimator.kind": "grpo", "estimator.group_size": 8, "sampler.kind": "uniform"}
_CLIP: Values = {"loss.kind": "clipped", "loss.clip_low": 0.2, "loss.clip_high": 0.2, "loss.dual_clip": 0.0}

ALGORITHMS: Mapping[str, Preset] = {
    "spo": Preset(
        {
            "estimator.kind": "spo",
            "tracker.kind": "spo",
            "tracker.initial_rollouts": 8,
            "sampler.kind": "priority",
            "loss.kind": "clipped",
            "aggregator.kind": "tokens",
        },
        source="arXiv 2509.13232, as published: 8 initial rollouts a prompt, charged",
    ),
    "spo_plus": Preset(
        {
            "estimator.kind": "spo",
            "tracker.kind": "trend",
            "tracker.drift": "constant",
            "tracker.rho_constant": 0.96,
            "sampler.kind": "deviation",
            "sampler.fresh_copies": 8,
            "loss.kind": "clipped",
            "aggregator.kind": "tokens",
        },
        source="SPO with fresh copies and a trend (docs/spo.md); not of a paper",
    ),
    "grpo": Preset(
        {**_GROUPS, **_CLIP, "aggregator.kind": "sequences"},
        source="arXiv 2402.03300; its KL term of 0.04 is not set",
    ),
    "dr_grpo": Preset(
        {**_GROUPS, **_CLIP, "estimator.normalise": "none", "aggregator.kind": "constant"},
        source="arXiv 2503.20783",
    ),
    "dapo": Preset(
        {
            **_GROUPS,
            **_CLIP,
            "estimator.dynamic_sampling": True,
            "loss.clip_high": 0.28,
            "aggregator.kind": "tokens",
            "shaper.kind": "soft_length",
        },
        source="arXiv 2503.14476; set `shaper.limit` to `rollout.max_tokens`",
    ),
    "rloo": Preset(
        {
            "estimator.kind": "rloo",
            "estimator.group_size": 8,
            "sampler.kind": "uniform",
            **_CLIP,
            "aggregator.kind": "constant",
        },
        source="arXiv 2402.14740; one optimizer step a batch makes the clip do nothing",
    ),
    "reinforce_pp": Preset(
        {
            "estimator.kind": "no_baseline",
            "sampler.kind": "uniform",
            **_CLIP,
            "loss.kl": "k1",
            "aggregator.kind": "tokens",
        },
        source="arXiv 2501.03262; `loss.kl_coefficient` puts k1 in the reward",
    ),
    "gspo": Preset(
        {**_GROUPS, "loss.kind": "gspo", "aggregator.kind": "sequences"}, source="arXiv 2507.18071"
    ),
    "cispo": Preset(
        {**_GROUPS, "loss.kind": "cispo", "aggregator.kind": "tokens"}, source="arXiv 2506.13585"
    ),
}
"""Whole algorithms, for training. A divergence from the first weights is left out of all:
`loss.kl_coefficient` adds it."""

PROTOCOLS: Mapping[str, Preset] = {
    "spo-paper": Preset(
        {
            "eval.samples": 32,
            "eval.temperature": 0.6,
            "eval.top_p": 0.95,
            "eval.top_k": 20,
            "rollout.max_tokens": 32_768,
            "rollout.max_turns": 8,
        },
        source="Single-stream Policy Optimization, appendix D",
    )
}
"""How answers are sampled and what limits them, for evaluation."""


def settings_of(name: str, presets: Mapping[str, Preset]) -> dict[str, dict[str, Any]]:
    """Settings of a preset, by section.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no preset {name!r}; {hint}there are {', '.join(presets)}")
    result: dict[str, dict[str, Any]] = {}
    for key, value in presets[name].values.items():
        section, _, setting = key.partition(".")
        result.setdefault(section, {})[setting] = value
    return result


def below(table: dict[str, Any]) -> dict[str, Any]:
    """What the preset of an algorithm says below a table; takes the key `preset` out of the table.

    Raises:
        ConfigError: there is no such preset.
    """
    name = str(table.pop("preset", ""))
    result = settings_of(name, ALGORITHMS) if name else {}
    return {section: values for section, values in result.items() if not _replaced(table, section, values)}


def _replaced(table: Values, section: str, values: Values) -> bool:
    """Whether a table names another kind than the preset does."""
    said = table.get(section)
    kind = said.get("kind") if isinstance(said, Mapping) else None
    return kind is not None and "kind" in values and str(kind) != values["kind"]
