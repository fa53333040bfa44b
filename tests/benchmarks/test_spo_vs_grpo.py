"""The comparison of SPO and GRPO: what is counted, and that its arms are what they are called."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the demo trains (pip install agentrl[train])")
pytest.importorskip("transformers")

from agentrl.config.loading import load_settings
from agentrl.training.credit import make_estimator
from agentrl_envs import load_env
from agentrl_envs.arithmetic import Arithmetic
from benchmarks.demo_run import DEMO, mean_interval
from benchmarks.spo_vs_grpo import ARMS, COMMON, UNEVEN, curve, drawing, run_one, summarise, table
from benchmarks.uneven_arithmetic import UnevenArithmetic


def made_up(arm="SPO", seed=0, initial=0, rewards=(0.2, 0.6, 1.0)):
    """A run evaluated at 0, 1000 and 2000 training tokens."""
    evals = [{"step": 4 * k, "tokens": 1000 * k, "reward": reward} for k, reward in enumerate(rewards)]
    return {"arm": arm, "seed": seed, "initial_tokens": initial, "evals": evals, "cpu_s": 1.0}


def test_initial_rollouts_are_a_flat_piece_at_the_start():
    run = made_up(initial=500)
    x, y = curve(run)
    assert np.interp([0, 500, 1500], x, y).tolist() == [0.2, 0.2, 0.6]
    x, y = curve(run, count_initial=False)
    assert np.interp([0, 500, 1000], x, y).tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_numbers_of_a_run():
    found = summarise(made_up(), 2000)
    assert found["half"] == pytest.approx(0.6)
    assert found["end"] == pytest.approx(1.0)
    assert found["mean"] == pytest.approx(0.6)  # a straight line from 0.2 to 1
    assert found["tokens_to_threshold"] == pytest.approx(1500, abs=4)
    assert summarise(made_up(rewards=(0.2, 0.2, 0.2)), 2000)["tokens_to_threshold"] == float("inf")


def test_differences_are_paired_by_seed():
    grpo = "GRPO, groups of 8"
    runs = [made_up(seed=0), made_up(seed=1, rewards=(0.2, 0.4, 0.6))]
    runs += [made_up(grpo, 0, rewards=(0.2, 0.6, 0.9)), made_up(grpo, 1, rewards=(0.2, 0.4, 0.5))]
    spo, other = table(runs, 2000)
    assert spo["seeds"] == other["seeds"] == 2
    assert "end_difference" not in spo
    assert other["end_difference"] == pytest.approx((-0.1, -0.1, -0.1))
    assert other["end"] == pytest.approx(mean_interval([0.9, 0.5]))
    assert "GRPO, groups of 8" in drawing(runs, 2000)


def test_the_interval_is_students():
    # Three values: t(0.975, 2) = 4.302653, standard deviation 1, so half = 4.302653 / sqrt(3).
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_the_settings_of_an_arm_can_be_used(arm):
    settings = load_settings(DEMO / "demo.toml", ["--model.path=somewhere", *COMMON, *ARMS[arm]])
    make_estimator(settings.estimator)  # refuses a group size that does not fit
    assert settings.estimator.group_size == (8 if arm.startswith("GRPO") else 1)


@pytest.mark.slow
def test_a_run_ends_after_its_tokens():
    flags = ["--stream.batch=16", "--engine.slots=16", "--learner.mini_batch=16"]
    flags += ["--eval.every=1", "--eval.limit=8", "--data.train=generated:train:20"]
    run = run_one("SPO, 2 initial rollouts", 3, tokens=300, flags=flags)
    assert run["initial_tokens"] > 40 * 5
    assert run["evals"][-1]["tokens"] >= 300 > run["evals"][-2]["tokens"]
    assert len(run["steps"]) == len(run["evals"]) - 1 == run["evals"][-1]["step"]
    assert run["seed"] == 3
    assert "--run.seed=3" in run["flags"]


def test_half_of_the_uneven_prompts_have_wrong_answers_and_held_out_ones_none():
    train = UnevenArithmetic.generate_rows(40, split="train")
    assert [row["problem"] for row in train] == [
        row["problem"] for row in Arithmetic.generate_rows(40, split="train")
    ]
    assert sum(eval(row["problem"]) != int(row["answer"]) for row in train) == 20
    test = UnevenArithmetic.generate_rows(40, split="test")
    assert all(eval(row["problem"]) == int(row["answer"]) for row in test)
    assert load_env(UNEVEN[0].partition("=")[2]) is UnevenArithmetic
