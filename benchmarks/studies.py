"""The studies of `benchmarks.presets`: which arms meet on which task, for how many tokens.

A study of the demo learns faster than the demo so that a run takes half a CPU minute: a higher learning rate
and no KL term (with one, an arm whose advantages are smaller would also be held more firmly).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import countdown, letters

Flags = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Arms that differ by some flags, at equal numbers of tokens."""

    arms: Mapping[str, Flags]
    common: Flags
    reference: str
    """The arm that others are compared with."""
    tokens: int
    """Generated tokens that the arms are compared at."""
    threshold: float = 0.8
    """Of the reward; tokens to it are counted."""
    model: Callable[[Path, int], Path] | None = None
    """Writes the model of a seed into a folder and says where it is; the demo's where there is none."""


def demo_flags(rate: float, every: int, limit: int) -> Flags:
    """Settings of the demo for a run that ends early."""
    learning = f"--learner.learning_rate={rate}", "--loss.kl_coefficient=0"
    return ("--run.steps=200", *learning, f"--eval.every={every}", f"--eval.limit={limit}")


SLOW, FAST = demo_flags(1e-4, 4, 128), demo_flags(2e-4, 3, 96)
UNEVEN = ("--env.name=benchmarks.uneven_arithmetic:UnevenArithmetic",)
GRPO = (
    "--estimator.kind=grpo",
    "--estimator.group_size=8",
    "--sampler.kind=uniform",
    "--tracker.drift=constant",  # nobody reads the tracker
)
ABLATIONS: Mapping[str, Flags] = {
    "SPO": (),
    "GRPO, groups of 8": GRPO,
    "SPO, no baseline": ("--estimator.kind=no_baseline",),
    "SPO, no normalisation": ("--estimator.normalise=none",),
    "SPO, uniform sampling": ("--sampler.kind=uniform",),
    "SPO, constant rho": ("--tracker.drift=constant",),
    "SPO, 2 initial rollouts": ("--tracker.initial_rollouts=2",),
    "SPO, 8 initial rollouts": ("--tracker.initial_rollouts=8",),
}
PRESETS: Mapping[str, Flags] = {
    "spo": ("--preset=spo", "--tracker.initial_rollouts=0"),
    "spo_plus": ("--preset=spo_plus",),
    "grpo": ("--preset=grpo", "--tracker.drift=constant"),
    "rloo": ("--preset=rloo", "--tracker.drift=constant"),
}
GAINS: Mapping[str, Flags] = {
    **{arm: PRESETS[arm] for arm in ("spo", "spo_plus")},
    "spo_plus, gain .5": (*PRESETS["spo_plus"], "--tracker.gain=0.5"),
}
PUBLISHED: Mapping[str, Flags] = {
    "spo": ("--preset=spo", "--tracker.initial_rollouts=0"),
    "spo, 8 initial rollouts": ("--preset=spo",),
}
LETTERS = (
    *("--env.name=benchmarks.letters:Letters", "--rollout.format=benchmarks/letters.py:OneToken"),
    *("--run.steps=400", "--data.train=generated:train:64", "--rollout.max_tokens=16"),
    *("--engine.context_tokens=64", "--loss.kl_coefficient=0", "--learner.mini_batch=64"),
    *("--learner.learning_rate=1e-2", "--eval.every=10", "--eval.limit=64", "--tracker.drift=constant"),
)
CREDITED = ("--env.name=benchmarks.letters:CreditedLetters", "--estimator.kind=turns")
CREDIT: Mapping[str, Flags] = {
    "episode": (),
    "turns": CREDITED,
    "turns, discount 0": (*CREDITED, "--estimator.discount=0"),
}
LOSSES: Mapping[str, Flags] = {
    "clip": (),
    "minpro": ("--loss.kind=minpro",),
    "cispo": ("--loss.kind=cispo",),
    "score centering": ("--loss.kind=score_centering", "--loss.behaviour_top_k=18"),  # all letters
}
METHODS: Mapping[str, Flags] = {
    "spo": (),
    **{kind: (f"--estimator.kind={kind}",) for kind in ("no_baseline", "bnpo", "dgpo_value", "d3s")},
    **{kind: (f"--estimator.kind={kind}", "--estimator.group_size=8") for kind in ("grpo", "rloo", "dgpo")},
    **{
        kind: (f"--loss.kind={kind}",)
        for kind in ("cispo", "minpro", "gspo", "bpo", "real", "gtpo", "hapo", "tbrm", "d3s_tokens")
    },
    "trend": ("--tracker.kind=trend",),
    "kalman": ("--tracker.kind=kalman",),
    "fresh copies": ("--sampler.fresh_copies=8",),
    "uniform": ("--sampler.kind=uniform",),
    "gaussian": ("--sampler.kind=gaussian",),
    "lion": ("--learner.optimizer=lion", "--learner.learning_rate=1e-3"),
    "sto_sign": ("--learner.optimizer=sto_sign", "--learner.learning_rate=1e-3"),
}
"""Each alone against SPO; the sign optimizers at the tenth of the rate that their papers give."""
ROUNDED = ("--engine.kind=benchmarks/rounded_engine.py:RoundedPolicy", "--engine.parity_max_share=1")


COUNTDOWN = (
    *("--env.name=benchmarks.countdown:SmallCountdown", "--data.train=generated:train:1000"),
    *("--eval.data=generated:test:128", "--rollout.max_tokens=24", "--engine.context_tokens=128"),
    *demo_flags(5e-5, 8, 128),
)


def stale_flags(staleness: int) -> Flags:
    """Settings under which episodes reach that staleness: so many are decoded together, of as many prompts."""
    together = 64 * (staleness + 1)
    slots = f"--engine.slots={together}", f"--stream.in_flight={together}"
    return (*LETTERS, "--data.train=generated:train:1024", f"--stream.staleness={staleness}", *slots)


STUDIES: Mapping[str, Study] = {
    "demo": Study(arms=PRESETS, common=FAST, reference="spo", tokens=10_000),
    "gain": Study(arms=GAINS, common=FAST, reference="spo", tokens=10_000),
    "uneven": Study(arms=PRESETS, common=(*FAST, *UNEVEN), reference="spo", tokens=10_000),
    "rare": Study(
        arms=PRESETS, common=(*FAST, "--data.train=generated:train:4000"), reference="spo", tokens=10_000
    ),
    "published": Study(arms=PUBLISHED, common=FAST, reference="spo", tokens=34_000),
    "countdown": Study(
        arms={arm: PRESETS[arm] for arm in ("spo_plus", "rloo")},
        common=COUNTDOWN,
        reference="rloo",
        tokens=60_000,
        threshold=0.5,
        model=countdown.shared_model,
    ),
    "ablations": Study(arms=ABLATIONS, common=SLOW, reference="SPO", tokens=28_000),
    "ablations_uneven": Study(
        arms={arm: ABLATIONS[arm] for arm in list(ABLATIONS)[:5]},
        common=(*SLOW, *UNEVEN),
        reference="SPO",
        tokens=28_000,
    ),
    "credit": Study(
        arms=CREDIT, common=LETTERS, reference="episode", tokens=20_000, model=letters.make_model
    ),
    **{
        f"stale_{staleness}": Study(
            arms=LOSSES,
            common=stale_flags(staleness),
            reference="clip",
            tokens=12_000,
            model=letters.make_model,
        )
        for staleness in (0, 2, 8)
    },
    "rounded": Study(
        arms=LOSSES,
        common=(*stale_flags(2), *ROUNDED),
        reference="clip",
        tokens=12_000,
        model=letters.make_model,
    ),
    "methods": Study(arms=METHODS, common=LETTERS, reference="spo", tokens=12_000, model=letters.make_model),
}
