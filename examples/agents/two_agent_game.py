"""A game of two agents of one policy, each with a conversation, a segment of tokens and a reward of its own.

One picks a number, the other bids for it; with `--estimator.kind agents` each learns from its own reward.

    agentrl train examples/agents/two_agent_game.py --estimator.kind agents --model ...
"""

import re

from agentrl_envs import Env


def number_in(text):
    """The last number that was said, within the game's bounds; None where there is none."""
    found = re.findall(r"\d+", text)
    return min(max(int(found[-1]), 0), 100) if found else None


class Haggling(Env):
    """A seller asks, a buyer bids; they divide what the thing is worth if they meet within four bids."""

    example_rows = ({"id": "lamp", "worth": 80, "cost": 20}, {"id": "chair", "worth": 60, "cost": 30})
    bids: int = 4

    async def play(self, row):
        seller = [{"role": "user", "content": f"Sell this. It cost you {row['cost']}. Name a price."}]
        buyer = [{"role": "user", "content": f"Buy this. It is worth {row['worth']} to you. Name a price."}]
        self.price = None
        for _ in range(self.bids):
            asked = await self.say(seller, "seller")
            buyer.append({"role": "user", "content": f"{buyer.pop()['content']}\nThe seller asks {asked}."})
            offered = await self.say(buyer, "buyer")
            if asked is not None and offered is not None and offered >= asked:
                self.price = (asked + offered) / 2
                break
            seller.append({"role": "user", "content": f"The buyer offers {offered}."})
            buyer.append({"role": "user", "content": "That is too little."})
        gain = 0.0 if self.price is None else 1.0 / (row["worth"] - row["cost"])
        self.reward_agent("seller", min(max(gain * ((self.price or 0) - row["cost"]), 0.0), 1.0))
        self.reward_agent("buyer", min(max(gain * (row["worth"] - (self.price or 0)), 0.0), 1.0))
        return None if self.price is None else f"{self.price:g}"

    async def say(self, messages, agent):
        """The next message of one agent, in its own conversation."""
        said = await self.speaker.complete(messages, agent=agent)
        messages.append(said.message)
        return number_in(said.text)

    def reward(self, row, answer):
        return answer is not None
