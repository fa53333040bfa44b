"""Plays the game with guesses that are written here: no model, no GPU."""

import pytest
from environment import Guess

from agentrl import run_episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy


def play(*guesses):
    policy = ScriptedPolicy([f"{guess}<|end|>" for guess in guesses], tokenizer=ByteTokenizer())
    return run_episode(Guess, {"id": "one", "secret": 7}, policy=policy, renderer="code")


def test_the_game_says_where_the_number_is():
    told = [text for speaker, text in play(3, 9, 7).conversation() if speaker == "environment"]
    assert "higher" in told[1]
    assert "lower" in told[2]


@pytest.mark.parametrize(("guesses", "reward"), [((7,), 1.0), ((3, 9, 7), 0.8), ((1, 2, 3, 4, 5), 0.0)])
def test_sooner_pays_more(guesses, reward):
    assert play(*guesses).reward == pytest.approx(reward)
