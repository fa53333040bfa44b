"""Generators of the real package reasoning-gym: rows, episodes, scores, and settings it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.needed import needed

needed("reasoning_gym", "make test-agents installs it")

from agentrl.cli.main import main
from agentrl_envs import load_env
from agentrl_envs.errors import EnvError, EnvNotFound, SettingsError
from agentrl_envs.stand_in import StandIn
from tests.adapters.playing import END, play

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]


def scored(env: Any, row: dict[str, Any], answer: str | None) -> float:
    made = env()
    made.attach(StandIn())
    return made.reward(row, answer)


@pytest.mark.parametrize(
    "name", ["chain_sum", "word_ladder", "arc_agi", "rearc", "acre", "prime_factorization"]
)
async def test_an_episode_earns_what_the_package_pays(name: str) -> None:
    env = load_env(f"reasoning_gym:{name}")
    row = json.loads(json.dumps(env.generate_rows(3, split="train")[2]))
    right = await play(env, row, [f"<think>hm</think>It is <answer>{row['answer']}</answer>{END}"])
    wrong = await play(env, row, [f"<answer>no idea</answer>{END}"])
    silent = await play(env, row, [f"{row['answer']}{END}"])
    assert [episode.failure for episode in (right, wrong, silent)] == [None] * 3
    assert [episode.reward for episode in (right, wrong, silent)] == [1.0, 0.0, 0.0]


def test_splits_share_no_question_whatever_the_seeds() -> None:
    env = load_env("reasoning_gym:chain_sum", {"max_terms": 3})
    made = {
        (split, seed): {row["question"] for row in env.generate_rows(200, split=split, seed=seed)}
        for split in ("train", "test")
        for seed in (0, 1)
    }
    assert all(len(questions) == 200 for questions in made.values())
    for seed in (0, 1):
        assert not made["train", seed] & (made["test", 0] | made["test", 1])
    # The package's own seeds are offsets of one another: seed 1 is seed 0 but for its first question.
    assert len(made["train", 0] & made["train", 1]) < 20
    again = env.generate_rows(200, split="train")
    assert {row["question"] for row in again} == made["train", 0]


def test_settings_of_the_generator_are_settings_of_the_environment() -> None:
    env = load_env("reasoning_gym:chain_sum", {"min_terms": "6", "max_terms": 6, "instruction": "Go."})
    (row,) = env.generate_rows(1, split="train")
    assert row["metadata"]["num_terms"] == 6
    assert env(instruction="Go.").prompt(row) == row["question"] + "\n\nGo."


def test_nonsense_is_never_paid() -> None:
    # Its scorer takes any text that is not "True" for "False", and pays it.
    env = load_env("reasoning_gym:game_of_life_halting")
    rows = env.generate_rows(8, split="train")
    right = [scored(env, row, f"<answer>{row['answer']}</answer>") for row in rows]
    nonsense = [scored(env, row, "<answer>blue</answer>") for row in rows]
    assert (right, nonsense) == ([1.0] * 8, [0.0] * 8)


@pytest.mark.parametrize(
    "answer",
    [None, "", "<answer></answer>", "<think><answer>{}</answer>", "<answer>{}", "</answer>{}<answer>"],
)
def test_what_is_no_stated_answer_earns_nothing(answer: str | None) -> None:
    env = load_env("reasoning_gym:chain_sum")
    (row,) = env.generate_rows(1, split="train")
    assert scored(env, row, answer and answer.format(row["answer"])) == 0


def test_a_scorer_that_breaks_on_its_own_answer_is_no_reward() -> None:
    env = load_env("reasoning_gym:n_queens")
    (row,) = env.generate_rows(1, split="train")
    with pytest.raises(KeyError):
        scored(env, {**row, "metadata": {}}, "<answer>Q</answer>")


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("chain_sun", {}, EnvNotFound, "did you mean chain_sum"),
        ("composite", {}, EnvNotFound, "an \\[\\[env\\]\\] of its own"),
        ("chain_sum", {"min_term": 3}, SettingsError, "did you mean 'min_terms'"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, SettingsError, "max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "many"}, SettingsError, "'min_terms': expected an integer"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, settings: Any, kind: type[EnvError], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_env(f"reasoning_gym:{name}", settings)


def test_a_generator_that_runs_out_says_so() -> None:
    env = load_env("reasoning_gym:chain_sum", {"min_terms": 2, "max_terms": 2, "max_digits": 1})
    with pytest.raises(SettingsError, match="different questions for 'test', and 1000 are wanted"):
        env.generate_rows(1000, split="test")


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "reasoning_gym:leg_counting"]) == 0, capsys.readouterr().out
    assert "<answer>...</answer>" in capsys.readouterr().out
