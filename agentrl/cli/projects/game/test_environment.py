"""Plays the game with guesses that are written here: no model, no GPU."""

import json
from pathlib import Path

import pytest
from environment import Guess

from agentrl import run_episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy


def play(*guesses):
    policy = ScriptedPolicy([f"{guess}<|end|>" for guess in guesses], tokenizer=ByteTokenizer())
    return run_episode(
        Guess, {"id": "one", "low": 31, "high": 39, "secret": 37}, policy=policy, renderer="code"
    )


def test_the_game_says_where_the_number_is():
    told = [text for speaker, text in play(33, 39, 37).conversation() if speaker == "environment"]
    assert "higher" in told[1]
    assert "lower" in told[2]


@pytest.mark.parametrize(
    ("guesses", "reward"), [((37,), 1.0), ((33, 39, 37), 0.8), ((31, 32, 33, 34, 35), 0.0)]
)
def test_sooner_pays_more(guesses, reward):
    assert play(*guesses).reward == pytest.approx(reward)


def test_no_held_out_number_is_learned_from():
    learned, held_out = (
        {json.loads(line)["secret"] for line in Path(__file__).with_name(name).read_text().splitlines()}
        for name in ("rows.jsonl", "held_out.jsonl")
    )
    assert not learned & held_out
