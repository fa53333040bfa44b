"""Runs the agent with messages that are written here in place of a model."""

from environment import Agent

from agentrl import run_episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy

ROW = {"problem": "12*34+5", "answer": "413"}


def play(*messages):
    policy = ScriptedPolicy([f"{text}<|end|>" for text in messages], tokenizer=ByteTokenizer())
    return run_episode(Agent, ROW, policy=policy, renderer="code")


def test_a_right_answer_is_paid():
    assert play("\\boxed{413}").reward == 1.0


def test_an_answer_without_a_box_is_asked_for_again():
    episode = play("413, I think", "\\boxed{413}")
    assert (episode.reward, len(episode.segments)) == (1.0, 1)
