"""Plays the environment with messages that are written here: no model, no GPU."""

from environment import Calculator

from agentrl import run_episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy

ROW = {"problem": "12*34+5", "answer": "413"}


def play(*messages):
    policy = ScriptedPolicy(list(messages), tokenizer=ByteTokenizer())
    return run_episode(Calculator, ROW, policy=policy, renderer="code")


def test_a_program_s_output_reaches_the_model():
    episode = play("<code>\nprint(12*34+5)\n</code>", "\\boxed{413}<|end|>")
    assert episode.reward == 1.0
    assert "413" in dict(episode.conversation())["environment"]


def test_a_wrong_answer_earns_nothing():
    assert play("\\boxed{414}<|end|>").reward == 0.0
