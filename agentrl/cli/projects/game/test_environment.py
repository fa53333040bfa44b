"""Plays the game with guesses that are written here: no model, no GPU."""

import json
from pathlib import Path

import pytest
from environment import Guess

from agentrl import run_episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy


def play(*guesses, cost=0.0):
    policy = ScriptedPolicy([f"{guess}<|end|>" for guess in guesses], tokenizer=ByteTokenizer())
    row = {"id": "one", "low": 300, "high": 700, "secret": 370}
    return run_episode({"name": Guess, "settings": {"cost": cost}}, row, policy=policy, renderer="code")


def test_the_game_says_where_the_number_is():
    told = [text.strip() for speaker, text in play(330, "no", 390).conversation() if speaker == "environment"]
    assert told[1:] == ["+", "?"]


@pytest.mark.parametrize(
    ("guesses", "reward"),
    [
        ((370,), 1.0),
        ((330, 390, 370), 1.0),
        ((1, 2, 470), 0.8),
        ((9, 8, 400370), 0.001 / 1.001),
        ((1, 2, "?"), 0.0),
    ],
)
def test_nearer_pays_more(guesses, reward):
    assert play(*guesses).reward == pytest.approx(reward)


def test_another_guess_costs_what_the_settings_say():
    assert play(330, 370, cost=0.25).reward == pytest.approx(0.75)


def test_no_held_out_number_is_learned_from():
    learned, held_out = (
        {json.loads(line)["secret"] for line in Path(__file__).with_name(name).read_text().splitlines()}
        for name in ("rows.jsonl", "held_out.jsonl")
    )
    assert not learned & held_out
