"""Comparisons of presets: what is counted, and that arms are what they are called."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the demo trains (pip install agentrl[train])")
pytest.importorskip("transformers")

from agentrl.config.loading import load_settings
from agentrl.training.credit import make_estimator
from agentrl_envs import load_env
from agentrl_envs.arithmetic import Arithmetic
from benchmarks.demo_run import DEMO, mean_interval
from benchmarks.hindsight import Visits, scores_of_baselines, smooth
from benchmarks.letters import RIGHT, CreditedLetters, Letters
from benchmarks.presets import calibration, curve, drawing, markdown, run_one, summarise, table
from benchmarks.rounded_engine import rounded
from benchmarks.studies import FAST, STUDIES, UNEVEN, Study
from benchmarks.uneven_arithmetic import UnevenArithmetic

STUDY = Study(arms={"SPO": (), "GRPO, groups of 8": ()}, common=FAST, reference="SPO", tokens=2000)


def made_up(arm="SPO", seed=0, initial=0, rewards=(0.2, 0.6, 1.0)):
    """A run evaluated at 0, 1000 and 2000 training tokens."""
    evals = [{"step": 4 * k, "tokens": 1000 * k, "reward": reward} for k, reward in enumerate(rewards)]
    return {
        "arm": arm,
        "seed": seed,
        "initial_tokens": initial,
        "evals": evals,
        "cpu_s": 1.0,
        "steps": [{"entropy": 0.5}],
    }


def test_initial_rollouts_are_a_flat_piece_at_the_start():
    run = made_up(initial=500)
    x, y = curve(run)
    assert np.interp([0, 500, 1500], x, y).tolist() == [0.2, 0.2, 0.6]
    x, y = curve(run, count_initial=False)
    assert np.interp([0, 500, 1000], x, y).tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_numbers_of_a_run():
    found = summarise(made_up(), STUDY)
    assert found["half"] == pytest.approx(0.6)
    assert found["end"] == pytest.approx(1.0)
    assert found["mean"] == pytest.approx(0.6)  # a straight line from 0.2 to 1
    assert found["tokens_to_threshold"] == pytest.approx(1500, abs=4)
    assert summarise(made_up(rewards=(0.2, 0.2, 0.2)), STUDY)["tokens_to_threshold"] == float("inf")


def test_differences_are_paired_by_seed():
    grpo = "GRPO, groups of 8"
    runs = [made_up(seed=0), made_up(seed=1, rewards=(0.2, 0.4, 0.6))]
    runs += [made_up(grpo, 0, rewards=(0.2, 0.6, 0.9)), made_up(grpo, 1, rewards=(0.2, 0.4, 0.5))]
    spo, other = table(runs, STUDY)
    assert spo["seeds"] == other["seeds"] == 2
    assert "end_difference" not in spo
    assert other["end_difference"] == pytest.approx((-0.1, -0.1, -0.1))
    assert other["end"] == pytest.approx(mean_interval([0.9, 0.5]))
    assert "GRPO, groups of 8" in drawing(runs, STUDY)


def test_the_interval_is_students():
    # Three values: t(0.975, 2) = 4.302653, standard deviation 1, so half = 4.302653 / sqrt(3).
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 2.484138, 2.0 + 2.484138), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "arm"), [(name, arm) for name, study in STUDIES.items() for arm in study.arms]
)
def test_the_settings_of_an_arm_can_be_used(name, arm):
    study = STUDIES[name]
    assert study.reference in study.arms
    settings = load_settings(DEMO / "demo.toml", ["--model.path=somewhere", *study.common, *study.arms[arm]])
    make_estimator(settings.estimator)  # refuses a group size that does not fit
    assert settings.run.steps >= 200, "a run is ended by its tokens"


@pytest.mark.slow
def test_a_run_ends_after_its_tokens():
    study = replace(STUDIES["published"], tokens=300)
    flags = [
        "--stream.batch=16",
        "--engine.slots=16",
        "--learner.mini_batch=16",
        "--tracker.initial_rollouts=2",
    ]
    flags += ["--eval.every=1", "--eval.limit=8", "--data.train=generated:train:20"]
    run = run_one(study, "spo", 3, flags=flags)
    assert run["initial_tokens"] > 40 * 5
    assert run["evals"][-1]["tokens"] >= 300 > run["evals"][-2]["tokens"]
    assert len(run["steps"]) == len(run["evals"]) - 1 == run["evals"][-1]["step"]
    assert run["baselines"]["all"]["episodes"] == 16 * len(run["steps"])
    assert run["seed"] == 3
    assert "--run.seed=3" in run["flags"]


@pytest.mark.slow
def test_turns_are_credited_with_what_they_earned():
    run = run_one(replace(STUDIES["credit"], tokens=300), "turns", 0, flags=["--eval.every=1"])
    assert {evaluation["tokens"] % 6 for evaluation in run["evals"]} == {0}  # six tokens an episode


def visits(scores, prompts, versions=None):
    scores = np.array(scores, dtype=float)
    zeros = np.zeros(len(scores), dtype=int)
    seen = np.array([prompt in prompts[:place] for place, prompt in enumerate(prompts)])
    return Visits(
        np.array(prompts), zeros if versions is None else np.array(versions), scores, scores * 0, seen
    )


def test_the_smoother_predicts_each_score_without_itself():
    prompts = np.repeat(np.arange(6), 10)
    scores = (np.arange(60) % 10 < prompts + 2).astype(float)  # prompt k succeeds k + 2 times of 10
    found = smooth(visits(scores, prompts.tolist()), 1.2)
    for left_out in (0, 17, 33, 59):
        others = np.arange(60) != left_out
        # The same fit without this score; its own prediction needs no correction for one score more.
        alone = visits(np.r_[scores[others], 0.5], np.r_[prompts[others], prompts[left_out]].tolist())
        chance = 1 / (1 + np.exp(-found[left_out]))
        assert chance == pytest.approx(1 / (1 + np.exp(-smooth(alone, 1.2)[-1])), abs=0.03)


def test_baselines_of_zero_exceed_the_smoother():
    # Success half of the time, whatever the prompt: baseline 0 has Brier score 1/2, the best possible is 1/4.
    prompts = (np.arange(80) // 8).tolist()
    found = scores_of_baselines(visits(np.arange(80) % 2, prompts))
    assert found["all"]["episodes"] == 80
    assert found["seen before"]["episodes"] == 70
    assert found["all"]["brier"] == 0.5
    assert found["all"]["smoother"] == pytest.approx(0.25, abs=0.02)
    assert found["all"]["excess"] == found["all"]["brier"] - found["all"]["smoother"]


def test_the_table_of_calibration_averages_runs():
    one = {
        "all": {"episodes": 10, "brier": 0.3, "smoother": 0.2, "excess": 0.1},
        "seen before": {"episodes": 0},
    }
    two = {
        "all": {"episodes": 30, "brier": 0.5, "smoother": 0.2, "excess": 0.3},
        "seen before": {"episodes": 0},
    }
    runs = [made_up(seed=0) | {"baselines": one}, made_up(seed=1) | {"baselines": two}]
    assert calibration(runs, STUDY).splitlines()[2].startswith("| SPO | all, 40 | 0.400 | 0.200 | 0.200 [")


def test_a_single_run_has_no_interval():
    lines = markdown(table([made_up(), made_up("GRPO, groups of 8", rewards=(0.2, 0.4, 0.6))], STUDY), STUDY)
    assert "| SPO | 1 | 0.600 | 1.000 | 0.600 |  | 1,500 |" in lines.replace("1,504", "1,500")
    assert "| -0.200 | not reached |" in lines


async def test_turns_sum_to_the_reward_of_the_episode():
    row = Letters.generate_rows(1, split="train")[0]
    env = CreditedLetters()
    await env.start(row)
    for place, letter in enumerate(row["word"]):
        await env.respond(RIGHT[letter] if place < 2 else "x")
    assert await env.reward(row, None) == pytest.approx(1 / 3)
    # Two turns earned a sixth each; the last gives back the third that it gets as the episode's score.
    assert [env.turn_rewards[k] for k in range(6)] == pytest.approx([1 / 6, 1 / 6, 0, 0, 0, -1 / 3])


def test_weights_of_eight_bits():
    torch = pytest.importorskip("torch")
    weight = torch.tensor([[1.27, 0.004, -0.006], [0.0, 0.0, 0.0]])
    assert rounded(weight).tolist() == [pytest.approx([1.27, 0.0, -0.01]), [0.0, 0.0, 0.0]]
    assert torch.equal(rounded(weight[0]), weight[0])  # of norms


def test_half_of_the_uneven_prompts_have_wrong_answers_and_held_out_ones_none():
    train = UnevenArithmetic.generate_rows(40, split="train")
    assert [row["problem"] for row in train] == [
        row["problem"] for row in Arithmetic.generate_rows(40, split="train")
    ]
    assert sum(eval(row["problem"]) != int(row["answer"]) for row in train) == 20
    test = UnevenArithmetic.generate_rows(40, split="test")
    assert all(eval(row["problem"]) == int(row["answer"]) for row in test)
    assert load_env(UNEVEN[0].partition("=")[2]) is UnevenArithmetic
