"""Episodes of a scripted engine, for environments of other people's packages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.base import ParsedMessage, Renderer
from agentrl.renderers.hermes import HermesRenderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, ToolSpec

END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Tokenizer(ByteTokenizer):
    """Bytes, in a chat template."""

    chat_template = TEMPLATE

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        import jinja2

        text = jinja2.Template(TEMPLATE).render(messages=messages, **options)
        return self.encode(text) if options.get("tokenize", True) else text


class Thinking(HermesRenderer):
    """Keeps thoughts apart from the text of a message, as families of the format `native` do."""

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> ParsedMessage:
        parsed = super().parse(token_ids, tools)
        thoughts, _, content = parsed.text.rpartition("</think>")
        return replace(
            parsed, message={**parsed.message, "content": content, "reasoning_content": f"{thoughts}</think>"}
        )


def tool_call(name: str, /, **arguments: Any) -> str:
    """A message of the model that calls a tool."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>{END}"


async def play(
    env: Callable[..., Env],
    row: Mapping[str, Any],
    script: Sequence[str],
    *,
    limits: RolloutSettings | None = None,
    renderer: Renderer | None = None,
) -> Episode:
    """One episode in which the model says what stands in the script, message by message."""
    return await run_episode(
        env,
        ScriptedPolicy(list(script), tokenizer=Tokenizer()),
        renderer or HermesRenderer(Tokenizer()),
        row=row,
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=limits or RolloutSettings(max_tokens=20_000),
    )


def shown(episode: Episode) -> str:
    """All text of an episode, as the model saw it."""
    return "\n".join(Tokenizer().decode(segment.token_ids) for segment in episode.segments)
