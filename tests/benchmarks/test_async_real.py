"""The comparison of schedules by wall time: latencies, threshold, and one real run."""

import random
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="the demo trains (pip install agentrl[train])")
pytest.importorskip("transformers")

from agentrl.config.loading import load_settings
from agentrl.training.credit import make_estimator
from agentrl_envs import Transcript
from benchmarks import async_real, slow_arithmetic
from benchmarks.async_real import ARMS, COMMON, arm_flags, reached_at, run_one, summarise, table
from benchmarks.demo_run import DEMO
from benchmarks.slow_arithmetic import GRADED, SlowArithmetic

ROW = {"problem": "2*3", "answer": "6"}


def env(seed: int, **settings) -> SlowArithmetic:
    return SlowArithmetic(rng=random.Random(seed), **settings)


def test_latencies_are_those_of_the_mixture_and_fixed_by_the_seed():
    latencies = [env(seed, slow=0.25).latency_s for seed in range(2000)]
    assert latencies[:100] == [env(seed, slow=0.25).latency_s for seed in range(100)]
    slow = [latency for latency in latencies if latency > 2.5]
    assert len(slow) / 2000 == pytest.approx(0.25, abs=0.04)
    assert sum(slow) / len(slow) == pytest.approx(4.8, abs=0.1)
    assert env(7, slow=0.25, scale=0.02).latency_s == pytest.approx(2 * env(7, slow=0.25).latency_s)


async def test_an_episode_waits_once(monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(slow_arithmetic, "asyncio", SimpleNamespace(sleep=sleep))
    transcript = Transcript(messages=(), tool_calls=(), tool_results=(), turns=1, stop_reason="answered")
    graded = len(GRADED)
    for act in (True, False):
        one = env(1, slow=1.0, scale=0.001)
        waits.clear()
        if act:
            await one.call_tools([])
            assert waits == [one.latency_s]
        reward = await one.score(ROW, "\\boxed{6}", transcript)
        assert waits == [one.latency_s]
        assert reward.value == 1.0
        await one.aclose()
    assert [reward for _, reward in GRADED[graded:]] == [1.0, 1.0]


def test_the_threshold_is_reached_by_a_whole_window(monkeypatch):
    monkeypatch.setattr(async_real, "WINDOW", 4)
    assert reached_at([1, 1, 1], 0.5) is None
    assert reached_at([0, 0, 0, 1, 1, 0], 0.5) == 4
    assert reached_at([0, 0, 1, 0, 0, 0], 0.5) is None


def made_up(arm: str, seed: int, seconds: float):
    """A run of one window of failures and one of successes, the last of them after `seconds`."""
    window = async_real.WINDOW
    graded = [[seconds * k / (2 * window - 1), float(k >= window)] for k in range(2 * window)]
    step = {"seconds": seconds, "cpu_s": 2.0, "learner_idle_s": seconds / 2, "staleness": {"0": 24, "2": 8}}
    return {
        "arm": arm,
        "slow_share": 0.15,
        "seed": seed,
        "graded": graded,
        "steps": [step],
        "discarded": 32,
        "python_calls": 0,
    }


def test_numbers_of_a_run():
    found = summarise(made_up("x", 0, 100.0), 1.0)
    assert found["seconds"] == pytest.approx(100.0)
    assert found["episodes"] == 2 * async_real.WINDOW
    assert found["staleness_mean"] == pytest.approx(0.5)
    assert found["staleness_max"] == 2
    assert found["discarded_share"] == pytest.approx(0.5)
    assert found["learner_idle_share"] == pytest.approx(0.5)


@pytest.mark.slow
def test_waiting_alone_is_what_the_latencies_allow():
    streaming, synchronous, barrier, *_, dynamic = (
        async_real.waiting_alone(arm, 0.15, 12, 5) for arm in ARMS
    )
    assert dynamic is None
    assert synchronous == barrier
    # No faster than 32 slots with the mean latency, 0.85 * 1.015 + 0.15 * 4.8 s; no slower than the slowest of 32.
    assert streaming is not None
    assert barrier is not None
    assert 1.5 < streaming < 2.2
    assert 4.8 < barrier < 6.0


def test_speed_up_is_taken_by_seed():
    names = "GRPO with barrier", "streaming SPO"
    runs = [made_up(names[0], 0, 100.0), made_up(names[0], 1, 300.0)]
    runs += [made_up(names[1], 0, 50.0), made_up(names[1], 1, 100.0)]
    streaming, barrier = table(runs, 1.0)
    assert barrier["speed_up_each"] == pytest.approx([1.0, 1.0])
    assert streaming["speed_up_each"] == pytest.approx([2.0, 3.0])
    assert streaming["speed_up"] == pytest.approx(2.5)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_the_settings_of_an_arm_can_be_used(arm):
    flags = ["--model.path=somewhere", *COMMON, *arm_flags(arm)]
    settings = load_settings(DEMO / "demo.toml", flags)
    assert settings.estimator.group_size == arm.group
    assert (getattr(make_estimator(settings.estimator), "keep", None) is not None) == arm.dynamic_sampling
    assert settings.stream.batch == settings.engine.slots


@pytest.mark.slow
def test_a_real_run_ends_at_the_threshold(monkeypatch):
    monkeypatch.setattr(async_real, "WINDOW", 16)
    dynamic = ARMS[-1]
    flags = [
        "--stream.batch=16",
        "--engine.slots=16",
        "--learner.mini_batch=16",
        "--env.settings.scale=0.001",
    ]
    run = run_one(dynamic, 0.15, 0, threshold=0.0, flags=flags)
    assert len(run["steps"]) == 1
    assert len(run["graded"]) >= 16
    times = [seconds for seconds, _ in run["graded"]]
    assert times == sorted(times)
    assert run["graded"][0][0] > 0.02  # nothing is graded before its latency
    numbers = summarise(run, 0.0)
    assert numbers["seconds"] == run["graded"][15][0]
    assert run["discarded"] % 8 == 0
