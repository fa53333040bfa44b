"""The rows can be used, and right and wrong answers are told apart."""

import json
from pathlib import Path

import pytest
from environment import Problems

from agentrl import run_episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["rows.jsonl", "held_out.jsonl"])
def test_every_row_has_what_the_environment_needs(name):
    rows = [json.loads(line) for line in (HERE / name).read_text().splitlines()]
    Problems.check_rows(rows, where=name)


def test_no_held_out_problem_is_learned_from():
    learned, held_out = ((HERE / name).read_text().splitlines() for name in ("rows.jsonl", "held_out.jsonl"))
    assert not set(learned) & set(held_out)


@pytest.mark.parametrize(
    ("said", "reward"), [("\\boxed{413}", 1.0), ("\\boxed{414}", 0.0), ("413, or so", 0.0)]
)
def test_answers_are_compared(said, reward):
    policy = ScriptedPolicy([f"{said}<|end|>"], tokenizer=ByteTokenizer())
    row = {"problem": "12*34+5", "answer": "413"}
    assert run_episode(Problems, row, policy=policy, renderer="code").reward == reward
