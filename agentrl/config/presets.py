"""Presets: one name for the settings of a published algorithm. What a file or a flag says wins.

A section whose `kind` is said elsewhere to be another keeps nothing of the preset: its settings were that
kind's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from agentrl.errors import ConfigError

Values = Mapping[str, Any]

_GROUPS: Values = {"estimator.kind": "grpo", "estimator.group_size": 8, "sampler.kind": "uniform"}
_CLIP: Values = {"loss.kind": "clipped", "loss.clip_low": 0.2, "loss.clip_high": 0.2, "loss.dual_clip": 0.0}

PRESETS: Mapping[str, Values] = {
    "spo": {
        "estimator.kind": "spo",
        "tracker.kind": "spo",
        "tracker.initial_rollouts": 8,
        "sampler.kind": "priority",
        "loss.kind": "clipped",
        "aggregator.kind": "tokens",
    },
    "spo_plus": {
        "estimator.kind": "spo",
        "tracker.kind": "trend",
        "tracker.drift": "constant",
        "tracker.rho_constant": 0.96,
        "sampler.kind": "priority",
        "sampler.fresh_copies": 8,
        "loss.kind": "clipped",
        "aggregator.kind": "tokens",
    },
    "grpo": {**_GROUPS, **_CLIP, "aggregator.kind": "sequences"},
    "dr_grpo": {**_GROUPS, **_CLIP, "estimator.normalise": "none", "aggregator.kind": "constant"},
    "dapo": {
        **_GROUPS,
        **_CLIP,
        "estimator.dynamic_sampling": True,
        "loss.clip_high": 0.28,
        "aggregator.kind": "tokens",
        "shaper.kind": "soft_length",
    },
    "rloo": {
        "estimator.kind": "rloo",
        "estimator.group_size": 8,
        "sampler.kind": "uniform",
        **_CLIP,
        "aggregator.kind": "constant",
    },
    "reinforce_pp": {
        "estimator.kind": "no_baseline",
        "sampler.kind": "uniform",
        **_CLIP,
        "loss.kl": "k1",
        "aggregator.kind": "tokens",
    },
    "gspo": {**_GROUPS, "loss.kind": "gspo", "aggregator.kind": "sequences"},
    "cispo": {**_GROUPS, "loss.kind": "cispo", "aggregator.kind": "tokens"},
}
"""Dotted settings of each. A divergence from the first weights is left out of all: `loss.kl_coefficient` adds
it."""

SOURCES: Mapping[str, str] = {
    "spo": "arXiv 2509.13232, as published: 8 initial rollouts a prompt, charged",
    "spo_plus": "SPO with fresh copies and a trend (docs/spo.md); not of a paper",
    "grpo": "arXiv 2402.03300; its KL term of 0.04 is not set",
    "dr_grpo": "arXiv 2503.20783",
    "dapo": "arXiv 2503.14476; set `shaper.limit` to `rollout.max_tokens`",
    "rloo": "arXiv 2402.14740; one optimizer step a batch makes the clip do nothing",
    "reinforce_pp": "arXiv 2501.03262; `loss.kl_coefficient` puts k1 in the reward",
    "gspo": "arXiv 2507.18071",
    "cispo": "arXiv 2506.13585",
}
"""Where each is from, and what to know of it."""


def below(table: dict[str, Any]) -> dict[str, Any]:
    """What a preset says below a table of settings; takes the key `preset` out of the table.

    Raises:
        ConfigError: there is no such preset.
    """
    name = str(table.pop("preset", ""))
    if not name:
        return {}
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no preset {name!r}; {hint}there are {', '.join(PRESETS)}")
    result: dict[str, Any] = {}
    for key, value in PRESETS[name].items():
        section, _, setting = key.partition(".")
        result.setdefault(section, {})[setting] = value
    return {section: values for section, values in result.items() if not _replaced(table, section, values)}


def _replaced(table: Values, section: str, values: Values) -> bool:
    """Whether a table names another kind than the preset does."""
    said = table.get(section)
    kind = said.get("kind") if isinstance(said, Mapping) else None
    return kind is not None and "kind" in values and str(kind) != values["kind"]
