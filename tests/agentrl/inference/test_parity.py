"""The parity gate on a bigram model: small enough to know every log-probability exactly."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agentrl.config.settings import EngineSettings
from agentrl.episode import Episode
from agentrl.errors import ParityError, PolicyError
from agentrl.inference.parity import ParityGate, Scored, is_stale, measure
from agentrl.inference.policy import FinishReason, Generation, PromptFeatures, Sampling
from agentrl.weights.handle import WeightHandle

VOCABULARY = 32
PROMPTS = [[index, index + 1, index + 2] for index in range(8)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class BigramPolicy:
    """An engine whose weights are a table of logits."""

    context_tokens = 4096

    def __init__(self, table: np.ndarray, temperature: float | None = None) -> None:
        self.table, self.version, self._temperature = table, 0, temperature

    async def start(self) -> None: ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str, start_version: int
    ) -> Generation:
        rng = np.random.default_rng(sampling.seed)
        last, tokens, logprobs = prompt_ids[-1], [], []
        for _ in range(sampling.max_new_tokens):
            scores = log_softmax(self.table[last] / (self._temperature or sampling.temperature))
            last = int(rng.choice(VOCABULARY, p=np.exp(scores)))
            tokens.append(last)
            logprobs.append(float(scores[last]))
        versions = array("i", [self.version] * len(tokens))
        return Generation(array("i", tokens), array("f", logprobs), versions, FinishReason.LENGTH)

    async def release(self, session: str) -> None: ...

    async def load(self, weights: WeightHandle) -> None:
        self.table, self.version = weights.source, weights.version

    async def close(self) -> None: ...

    def statistics(self) -> dict[str, float]:
        return {}


class BigramLearner:
    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    async def score(self, episodes: Sequence[Episode]) -> list[list[Any]]:
        result = []
        for episode in episodes:
            segment = episode.segments[0]
            scores = np.zeros(len(segment))
            for at in range(1, len(segment)):
                if segment.loss_mask[at]:
                    row = log_softmax(self.table[segment.token_ids[at - 1]] / episode.temperature)
                    scores[at] = row[segment.token_ids[at]]
            result.append([scores])
        return result


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)) * 1.5


def gate(policy: Any, learner: Any, temperature: float = 1.0, **settings: Any) -> ParityGate:
    return ParityGate(
        policy, learner.score, PROMPTS, EngineSettings(**settings), temperature=temperature, tokens=48
    )


async def test_an_engine_that_gives_no_hidden_states_is_found_at_the_start(table: np.ndarray):
    learner, asked = BigramLearner(table), PromptFeatures()
    check = ParityGate(BigramPolicy(table), learner.score, PROMPTS, EngineSettings(), prompt_features=asked)
    with pytest.raises(PolicyError, match="gave no hidden state of a prompt where one was asked for"):
        await check.check(0)


async def test_equal_weights_agree(table: np.ndarray):
    rows: list[dict[str, Any]] = []
    policy = BigramPolicy(table)
    check = ParityGate(
        policy, BigramLearner(table).score, PROMPTS, EngineSettings(), tokens=48, log=rows.append
    )
    report = await check.check(0)
    assert report.tokens == 8 * 48
    assert report.mean < 1e-6
    assert report.share == 0.0
    assert rows[0]["kind"] == "parity"
    assert rows[0]["cause"] is None


async def test_a_corrupted_weight_is_named(table: np.ndarray):
    broken = table.copy()
    broken[:, :8] += 4.0
    with pytest.raises(ParityError, match="probable cause: unlike weights"):
        await gate(BigramPolicy(broken), BigramLearner(table)).check(0)


@pytest.mark.parametrize(("engine", "learner"), [(1.0, 0.7), (0.6, 1.0), (1.0, 1.4)])
async def test_a_wrong_temperature_is_named(table: np.ndarray, engine: float, learner: float):
    policy = BigramPolicy(table, temperature=engine)
    with pytest.raises(ParityError, match=rf"temperature \(the learner agrees at temperature {engine:.2f}"):
        await gate(policy, BigramLearner(table), temperature=learner, parity_max_mean=0.05).check(0)


async def test_a_missed_update_is_named_by_its_version(table: np.ndarray):
    check = gate(BigramPolicy(table), BigramLearner(table))
    await check.check(0)
    with pytest.raises(ParityError, match=r"version \[0\] where the learner is at 1.*stale weights"):
        await check.check(1)


async def test_a_missed_update_is_named_though_the_engine_claims_the_version(table: np.ndarray):
    # The engine says 1 and holds 0. Without comparing with the round before, this is "unlike weights".
    policy, learner = BigramPolicy(table), BigramLearner(table)
    check = gate(policy, learner)
    await check.check(0)
    learner.table = table + np.random.default_rng(1).normal(size=table.shape)
    policy.version = 1
    with pytest.raises(ParityError, match="probable cause: stale weights"):
        await check.check(1)


async def test_an_update_that_arrived_damaged_is_not_called_stale(table: np.ndarray):
    policy, learner = BigramPolicy(table), BigramLearner(table)
    check = gate(policy, learner)
    await check.check(0)
    learner.table = table + 0.1
    damaged = learner.table.copy()
    damaged[:, ::2] *= -1
    await policy.load(WeightHandle(1, 0, damaged))
    with pytest.raises(ParityError, match="probable cause: unlike weights"):
        await check.check(1)


async def test_rounding_is_named_with_its_size_and_remedy(table: np.ndarray):
    rounded = table + np.random.default_rng(2).normal(size=table.shape) * 0.15
    with pytest.raises(
        ParityError, match=r"mean \|difference\| 0\.[0-4].*probable cause: unlike weights.*`engine.dtype`"
    ):
        await gate(BigramPolicy(rounded), BigramLearner(table), parity_max_mean=0.05).check(0)


async def test_it_compares_only_when_it_is_time(table: np.ndarray):
    policy, learner = BigramPolicy(table), BigramLearner(table)
    check = gate(policy, learner, parity_every=3)
    policy.version = 7  # would be found out by any comparison
    await check.after_update(1)
    await check.after_update(2)
    with pytest.raises(ParityError):
        await check.after_update(3)
    await gate(policy, learner, parity_every=0).after_update(3)


async def test_a_version_that_was_not_published_is_made_up_for_at_the_next(table: np.ndarray):
    # Published every 2 versions and compared every 3: at 0, 4 (for 3), 6 and 10 (for 9).
    reports: list[dict[str, Any]] = []
    policy, learner = BigramPolicy(table), BigramLearner(table)
    settings = EngineSettings(parity_every=3)
    check = ParityGate(policy, learner.score, PROMPTS, settings, tokens=48, log=reports.append)
    await check.check(0)
    for policy.version in (2, 4, 6, 8, 10):
        await check.after_update(policy.version)
    assert [report["version"] for report in reports] == [0, 4, 6, 10]


async def test_an_engine_that_hangs_is_named(table: np.ndarray):
    class Hanging(BigramPolicy):
        async def generate(self, *args: Any, **options: Any) -> Generation:
            await asyncio.sleep(60)
            raise AssertionError

    check = ParityGate(Hanging(table), BigramLearner(table).score, PROMPTS, EngineSettings(), limit_s=0.05)
    with pytest.raises(PolicyError, match="for the engine"):
        await check.check(0)


def test_the_measures_by_hand():
    # Differences 0, ln 1.1, -ln 2: ratios 1, 1.1 and 0.5, of which one is off by more than 0.2.
    engine = np.array([-1.0, -1.0, -1.0])
    learner = engine + np.array([0.0, np.log(1.1), -np.log(2.0)])
    report = measure([Scored((1, 2, 3), engine, learner)], 4)
    assert report.tokens == 3
    assert report.mean == pytest.approx((0.09531 + 0.69315) / 3, abs=1e-5)
    assert report.max == pytest.approx(0.69315, abs=1e-5)
    assert report.share == pytest.approx(1 / 3)
    assert report.bias == pytest.approx((0.09531 - 0.69315) / 3, abs=1e-5)
    with pytest.raises(PolicyError, match="no tokens"):
        measure([], 0)


def test_stale_needs_tokens_in_common():
    one = [Scored((1, 2), np.zeros(2), np.zeros(2))]
    other = [Scored((3, 4), np.zeros(2), np.ones(2))]
    assert not is_stale(one, other, 1.0)
