"""A controller: more entropy bonus while the policy is too sure of itself, less when it is not.

agentrl train run.toml --controller.kind examples/parts/entropy_floor.py:EntropyFloor --controller.floor 0.3
"""

from agentrl.config.ranges import Positive


class EntropyFloor:
    """Moves the coefficient of the entropy bonus by how far a running mean of the entropy is from a floor."""

    controls = ("loss.entropy_coefficient",)

    class Settings:
        """Settings of the section `[controller]`."""

        floor: Positive = 0.3
        """Entropy, in nats a token, below which the bonus grows."""
        gain: Positive = 0.001
        """Change of the coefficient for each nat and step."""

    def __init__(self, settings):
        self.settings, self.mean = settings, None

    def __call__(self, metrics, batch, values):
        """The coefficient of the next step, at least 0."""
        self.mean = metrics["entropy"] if self.mean is None else 0.9 * self.mean + 0.1 * metrics["entropy"]
        missing = self.settings.floor - self.mean
        coefficient = values["loss.entropy_coefficient"] + self.settings.gain * missing
        return {"loss.entropy_coefficient": max(0.0, coefficient)}

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]
