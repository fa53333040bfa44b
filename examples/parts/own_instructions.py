"""A renderer: the code format, with instructions of one's own before the first message.

agentrl train run.toml --rollout.format examples/parts/own_instructions.py:OwnInstructions
"""

from agentrl.renderers.code import INSTRUCTIONS, CodeRenderer


class OwnInstructions(CodeRenderer):
    """Fenced Python in `<code>` tags, asked for in capitals."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, instructions=INSTRUCTIONS.upper())
