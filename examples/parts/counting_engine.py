"""An engine: the embedded one, which tells how often it was asked.

agentrl train run.toml --engine.kind examples/parts/counting_engine.py:Counting
"""

from agentrl.inference.embedded.engine import TransformersPolicy


class Counting(TransformersPolicy):
    """Counts messages, and reports them as `engine_asked` with every step."""

    def __init__(self, settings, source, tokenizer, logs):
        engine = settings.engine
        super().__init__(source, tokenizer, slots=engine.slots, context_tokens=engine.context_tokens)
        self.asked = 0

    async def generate(self, *arguments, **options):
        """Sample one message."""
        self.asked += 1
        return await super().generate(*arguments, **options)

    def statistics(self):
        """Counters since the start."""
        return super().statistics() | {"asked": float(self.asked)}
