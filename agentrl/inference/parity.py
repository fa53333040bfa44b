"""The parity gate: do engine and learner give the same tokens the same log-probabilities?

Fresh sequences, each sampled by one version, are scored by the learner. Where they differ by more
than the settings allow, training would follow the difference instead of the reward, so the run stops
with the probable cause. This module compares numbers; it knows nothing of engines beyond the policy
protocol, and nothing of the learner beyond a function that scores episodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from agentrl.config.settings import EngineSettings
from agentrl.episode import Episode, SegmentBuilder, StopReason
from agentrl.errors import AgentRLError, ContextOverflow, ParityError, PolicyError
from agentrl.inference.policy import Generation, Policy, PromptFeatures, Sampling
from agentrl_envs import EnvError, Finish
from agentrl_envs.raised import error_text, message_of

logger = logging.getLogger(__name__)

FloatArray: TypeAlias = npt.NDArray[Any]
Score: TypeAlias = Callable[[Sequence[Episode]], Awaitable[list[list[FloatArray]]]]
Cause = Literal["stale weights", "temperature", "unlike weights"]

_RATIO_BOUND = 0.2
_TEMPERATURES = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0)

_REMEDIES: dict[Cause, str] = {
    "stale weights": "the engine still samples from older weights: the last update did not reach it",
    "temperature": "`rollout.temperature` and what the engine samples at differ",
    "unlike weights": "engine and learner do not compute the same; a mean of half a nat and more is no "
    "rounding: a tensor arrived damaged or was left out, the engine was started from another model, or saw "
    "another prompt (chat template, begin-of-text token); less is rounding: give both one type "
    "(`engine.dtype`, `model.dtype`), try `model.attention`, or raise `engine.parity_max_mean`",
}


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Engine against learner, over T sampled tokens."""

    version: int
    tokens: int
    mean: float
    """Mean |difference of log-probabilities|, nats."""
    max: float
    share: float
    """Share of tokens whose probability ratio is off by more than 0.2."""
    bias: float
    """Mean of learner less engine, nats."""
    cause: Cause | None = None
    """Probable cause, when beyond the bounds."""
    detail: str = ""

    def as_row(self) -> dict[str, Any]:
        """A row of metrics."""
        return {"kind": "parity", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Scored:
    """One sequence of T tokens, scored by both."""

    token_ids: tuple[int, ...]
    engine: FloatArray
    """[T] nats."""
    learner: FloatArray
    """[T] nats."""


def measure(sequences: Sequence[Scored], version: int) -> ParityReport:
    """The differences over all tokens of all sequences.

    Raises:
        PolicyError: there are no tokens.
    """
    if not any(len(sequence.token_ids) for sequence in sequences):
        raise PolicyError("the parity gate got no tokens to compare")
    difference = np.concatenate([s.learner - s.engine for s in sequences]).astype(np.float64)
    size = np.abs(difference)
    return ParityReport(
        version=version,
        tokens=len(difference),
        mean=float(size.mean()),
        max=float(size.max()),
        share=float((np.abs(np.expm1(np.minimum(difference, 50.0))) > _RATIO_BOUND).mean()),
        bias=float(difference.mean()),
    )


def is_stale(now: Sequence[Scored], before: Sequence[Scored], mean: float) -> bool:
    """Whether the engine stayed where it was while the learner moved.

    Both rounds sampled the same prompts with the same seeds, so an engine with the same weights says the
    same again; the tokens both rounds share are compared.
    """
    engine_moves, learner_moves = [], []
    for new, old in zip(now, before, strict=False):
        shared = 0
        for a, b in zip(new.token_ids, old.token_ids, strict=False):
            if a != b:
                break
            shared += 1
        engine_moves.append(np.abs(new.engine[:shared] - old.engine[:shared]))
        learner_moves.append(np.abs(new.learner[:shared] - old.learner[:shared]))
    if not engine_moves or not sum(map(len, engine_moves)):
        return False
    engine_move = float(np.concatenate(engine_moves).mean())
    learner_move = float(np.concatenate(learner_moves).mean())
    return engine_move < 0.2 * mean and learner_move > 4 * engine_move and learner_move > 0.25 * mean


async def rendered_prompts(
    render: Callable[[int], Awaitable[list[int]]], names: Sequence[str], count: int, context_tokens: int
) -> tuple[list[list[int]], dict[str, str]]:
    """Token ids of `count` prompts to compare on, and why others cannot be used.

    Args:
        render: token ids of the prompt of a row, by its number.
        names: of the rows to look at, in order.
        count: of prompts that suffice.
        context_tokens: what the engine holds.

    Returns:
        The prompts, and the reason by name of each row that was looked at twice and cannot be used.

    Raises:
        PolicyError: no row can be used; the text has the first reason.
    """
    prompts: list[list[int]] = []
    left_out: dict[str, str] = {}
    numbers = {name: number for number, name in enumerate(names)}

    async def rendered(name: str) -> list[int]:
        token_ids = await render(numbers[name])
        if len(token_ids) + 1 >= context_tokens:
            raise ContextOverflow(len(token_ids), context_tokens)
        return token_ids

    for name in names:
        if len(prompts) == count:
            break
        try:
            prompts.append(await rendered(name))
        except Finish:
            logger.info("the episode of prompt %s ends before the model is asked", name)
        except Exception as error:  # whatever it is, episodes of the other rows can be played
            left_out[name] = _reason(error)
    if not prompts:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        reasons = reasons or "their episodes end before the model is asked"
        raise PolicyError(f"none of the first {len(names)} prompts can be given to the model: {reasons}")
    for name in [*left_out]:  # once more: others worked since, so it is the row that does not
        try:
            await rendered(name)
            del left_out[name]
        except Finish:
            del left_out[name]
        except Exception as error:
            left_out[name] = _reason(error)
            logger.warning("prompt %s is set aside, it cannot be played: %s", name, left_out[name])
    return prompts, left_out


def _reason(error: Exception) -> str:
    return message_of(error) if isinstance(error, AgentRLError | EnvError) else error_text(error)


class ParityGate:
    """Compares at the start and every N versions.

    Args:
        policy: the engine.
        score: scores episodes with the learner's present weights, each at its temperature.
        prompts: token ids of some prompts of the run; the same ones are used every time.
        settings: bounds and how often.
        temperature: that of the rollouts.
        tokens: sampled per prompt.
        top_logprobs: likeliest tokens that the engine must report at each place.
        prompt_features: hidden states of each prompt that it must report.
        limit_s: longest wait for engine or learner.
        log: told every report.
    """

    def __init__(
        self,
        policy: Policy,
        score: Score,
        prompts: Sequence[Sequence[int]],
        settings: EngineSettings,
        *,
        temperature: float = 1.0,
        tokens: int = 64,
        top_logprobs: int = 0,
        prompt_features: PromptFeatures | None = None,
        limit_s: float = 600.0,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._policy, self._score = policy, score
        self._prompts = [list(prompt) for prompt in prompts]
        self._settings = settings
        self._limit_s = limit_s
        self._sampling = Sampling(
            tokens, temperature=temperature, top_logprobs=top_logprobs, prompt_features=prompt_features
        )
        self._log = log
        self._before: list[Scored] = []
        self._round = self._compared = 0

    async def after_update(self, version: int) -> None:
        """Compare when it is time to (`engine.parity_every`), or was at a version that was not published.

        Raises:
            ParityError: they disagree; the text has the probable cause.
        """
        every = self._settings.parity_every
        if every and version // every > self._compared // every:
            await self.check(version)

    async def check(self, version: int) -> ParityReport:
        """Compare now.

        Raises:
            ParityError: they disagree beyond the bounds; the text has the probable cause.
            PolicyError: the engine or the learner did not answer.
        """
        self._compared = version
        episodes = await self._sample(version)
        scored = await self._compare(episodes)
        report = measure(scored, version)
        settings = self._settings
        if report.mean > settings.parity_max_mean or report.share > settings.parity_max_share:
            report = await self._diagnose(report, episodes, scored)
        self._before = scored
        if self._log is not None:
            self._log(report.as_row())
        if report.cause is not None:
            raise ParityError(self._text(report))
        return report

    async def _sample(self, version: int) -> list[Episode]:
        """One fresh sequence per prompt, each of the expected version alone."""
        self._round += 1
        generations = await self._limited(
            asyncio.gather(*(self._generate(index, prompt) for index, prompt in enumerate(self._prompts))),
            "the engine",
        )
        found = {int(v) for generation in generations for v in generation.policy_versions}
        if found != {version}:
            raise ParityError(
                f"the engine samples from version {sorted(found)} where the learner is at {version}; "
                f"probable cause: stale weights: {_REMEDIES['stale weights']}"
            )
        return [
            self._episode(index, prompt, generation)
            for index, (prompt, generation) in enumerate(zip(self._prompts, generations, strict=True))
        ]

    async def _generate(self, index: int, prompt: Sequence[int]) -> Generation:
        # A session of its own each time, so that no older keys are met; the same seed each time, so that
        # an engine whose weights did not change says the same again.
        session = f"parity-{self._round}-{index}"
        sampling = replace(self._sampling, seed=1000 + index)
        try:
            return await self._policy.generate(
                prompt, sampling, session=session, start_version=self._policy.version
            )
        finally:
            await self._policy.release(session)

    def _episode(self, index: int, prompt: Sequence[int], generation: Generation) -> Episode:
        segment = SegmentBuilder()
        segment.append_given(prompt)
        segment.append_sampled(generation.token_ids, generation.logprobs, generation.policy_versions)
        wanted = self._sampling.top_logprobs * len(generation.token_ids)
        if len(generation.top_ids) != wanted:
            raise PolicyError(
                f"the engine gave {len(generation.top_ids)} likeliest tokens where {wanted} were asked for"
            )
        if self._sampling.prompt_features is not None and not generation.prompt_features:
            raise PolicyError("the engine gave no hidden state of a prompt where one was asked for")
        return Episode(
            episode_id=f"parity-{self._round}-{index}",
            dispatch_index=index,
            prompt_id=f"parity-{index}",
            segments=(segment.build(),),
            turns=(),
            reward=0.0,
            stop_reason=StopReason.ANSWERED,
            start_version=int(generation.policy_versions[0]),
            temperature=self._sampling.temperature,
        )

    async def _compare(self, episodes: Sequence[Episode]) -> list[Scored]:
        scores = await self._limited(self._score(episodes), "the learner")
        result: list[Scored] = []
        for episode, (learner,) in zip(episodes, scores, strict=True):
            segment = episode.segments[0]
            sampled = np.frombuffer(segment.loss_mask, dtype=np.uint8).astype(bool)
            result.append(
                Scored(
                    tuple(int(t) for t in np.asarray(segment.token_ids)[sampled]),
                    np.asarray(segment.logprobs, dtype=np.float64)[sampled],
                    np.asarray(learner, dtype=np.float64)[sampled],
                )
            )
        return result

    async def _diagnose(
        self, report: ParityReport, episodes: Sequence[Episode], scored: Sequence[Scored]
    ) -> ParityReport:
        """Name the probable cause, most certain test first."""
        if self._before and is_stale(scored, self._before, report.mean):
            return replace(report, cause="stale weights")
        temperature, mean = await self._best_temperature(episodes)
        if mean < min(0.25 * report.mean, self._settings.parity_max_mean):
            own = self._sampling.temperature
            detail = f"the learner agrees at temperature {temperature:.2f}, not at {own:.2f}"
            return replace(report, cause="temperature", detail=detail)
        return replace(report, cause="unlike weights")

    async def _best_temperature(self, episodes: Sequence[Episode]) -> tuple[float, float]:
        """The temperature at which the learner agrees best, and how well."""

        async def mean_at(temperature: float) -> float:
            changed = [replace(episode, temperature=temperature) for episode in episodes]
            return measure(await self._compare(changed), 0).mean

        grid = [(await mean_at(t), t) for t in _TEMPERATURES]
        best_mean, best = min(grid)
        width = 0.1 * best
        for _ in range(4):
            width /= 2
            for candidate in (best - width, best + width):
                mean = await mean_at(candidate)
                if mean < best_mean:
                    best_mean, best = mean, candidate
        return best, best_mean

    async def _limited(self, work: Awaitable[Any], owner: str) -> Any:
        try:
            return await asyncio.wait_for(work, self._limit_s)
        except TimeoutError as error:
            raise PolicyError(f"the parity gate waited {self._limit_s:.0f} s for {owner}") from error

    def _text(self, report: ParityReport) -> str:
        settings = self._settings
        assert report.cause is not None
        detail = f" ({report.detail})" if report.detail else ""
        return (
            f"engine and learner disagree about version {report.version}: mean |difference| "
            f"{report.mean:.3f} nats (bound {settings.parity_max_mean:g}), max {report.max:.3f}, "
            f"{report.share:.1%} of ratios beyond 0.2 (bound {settings.parity_max_share:.1%}), over "
            f"{report.tokens} tokens; probable cause: {report.cause}{detail}: {_REMEDIES[report.cause]}"
        )
