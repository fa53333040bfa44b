"""BRPO of AnytimeReasoner: an answer is asked for at every budget of thought, and each span of thought is
credited with the answers after it (arXiv 2505.13438, id from memory; code read).

There a thought is cut at budgets of tokens, in mid-sentence, and goes on where it was cut. A message that is
cut ends its episode here, so a budget is a message: the policy thinks in `steps` of them, and after each, in
a conversation beside it, gives the answer that it would give now. The paper has four such answers at each
budget and several thoughts a question; here one of each, so the mean of the group is the tracker's value.
With it `--env.name examples/methods/anytime.py:Anytime`.

agentrl train run.toml --estimator.kind examples/methods/anytime.py:BRPO
"""

import numpy as np

from agentrl.algorithms.advantage import normalise
from agentrl.config.part import Part
from agentrl.config.ranges import Positive
from agentrl_envs import Env

SUMMARY = "answer after "
ASK = "Give the final answer now, in \\boxed{}, and nothing else."


class Anytime(Env):
    """Thinks in steps, and answers after each; the reward is the share of right answers."""

    required_fields = ("problem", "answer")
    example_rows = ({"problem": "What is 2^{10}?", "answer": "1024"},)
    steps: int = 3

    async def play(self, row):
        """Think and answer by turns; the answer is the last one."""
        asked = f"{row['problem']}\nThink in {self.steps} messages; do not answer before you are asked."
        thought, answer = [{"role": "user", "content": asked}], None
        for step in range(self.steps):
            said = await self.speaker.complete(thought)
            thought.append(said.message)
            now = [*thought, {"role": "user", "content": ASK}]
            agent = f"{SUMMARY}{step}"
            answer = (await self.speaker.complete(now, agent=agent)).text.strip()
            self.reward_agent(agent, float(await self.grade(answer, row["answer"])))
            thought.append({"role": "user", "content": "Go on thinking."})
        return answer

    def reward(self, row, answer):
        """Mean over the budgets, each as likely as the others."""
        return sum(self.agent_rewards.values()) / self.steps


class BRPO(Part):
    """Of span s of S: J_s - (s V1 + (S - s) V2) / S, where J_s is what the answers from s on are worth.

    V1 is what the episode's own earlier answers promise, the later ones twice as much each; V2 is the
    tracker's value. Neither contains an answer that the span can change. An answer is credited with its
    reward less the value."""

    requires = ("baselines",)

    class Settings:
        """Settings of the section `[estimator]`."""

        deviation_floor: Positive = 0.1
        """Smallest deviation that advantages are divided by."""

    def __call__(self, batch):
        """Of each episode and segment, [T] advantages."""
        pairs = list(zip(batch.episodes, batch.baselines, strict=True))
        spans = [span_advantages(worth(episode), value) for episode, value in pairs]
        answers = [worth(episode) - value for episode, value in pairs]
        scaled = normalise(np.concatenate([*spans, *answers]), self.settings.deviation_floor)
        ends = np.cumsum([len(part) for part in (*spans, *answers)])[:-1]
        parts = np.split(scaled, ends)
        half = len(spans)
        return [of_tokens(*of) for of in zip(batch.episodes, parts[:half], parts[half:], strict=True)]


def worth(episode):
    """[S] reward of the answer at each budget."""
    rewards = episode.agent_rewards
    return np.array([rewards[f"{SUMMARY}{step}"] for step in range(len(rewards))])


def span_advantages(rewards, value):
    """[S] of the spans of thought, from rewards [S] and the value of the prompt."""
    steps = len(rewards)
    chance, doubling = 1.0 / steps, 2.0 ** np.arange(steps)
    found = np.zeros(steps)
    for step in range(steps):
        left = chance * (steps - step)
        own = doubling[:step] @ rewards[:step] / max(1.0, doubling[:step].sum()) * left
        found[step] = chance * rewards[step:].sum() - (step * own + (steps - step) * value * left) / steps
    return found


def of_tokens(episode, spans, answers):
    """[T] of each segment: the span's advantage in the thought, the answer's in its own segment."""
    result = [np.zeros(len(segment)) for segment in episode.segments]
    thought = 0
    for turn in episode.turns:
        agent = episode.segments[turn.segment].agent
        if agent.startswith(SUMMARY):
            credit = answers[int(agent.removeprefix(SUMMARY))]
        else:
            credit, thought = spans[min(thought, len(spans) - 1)], thought + 1
        result[turn.segment][turn.start : turn.end] = credit
    return result
