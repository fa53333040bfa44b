"""The other model of a game or a simulated conversation: asked at its endpoint, never trained.

One client for each endpoint and event loop, with the limits and retries of `EndpointPolicy`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence

from agentrl.config.settings import RolloutSettings
from agentrl.inference.endpoint.client import EndpointPolicy
from agentrl.inference.endpoint.errors import EndpointError
from agentrl.inference.endpoint.settings import EndpointSettings
from agentrl.inference.policy import Sampling
from agentrl_envs import Message
from agentrl_envs.model import ModelFailure

_CLIENTS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], EndpointPolicy]]
_CLIENTS = weakref.WeakKeyDictionary()


async def ask_partner(settings: RolloutSettings, messages: Sequence[Message], key: str) -> str:
    """Its next message, sampled at the run's temperature.

    Raises:
        ModelFailure: it does not answer, or refuses; says why.
    """
    clients = _CLIENTS.setdefault(asyncio.get_running_loop(), {})
    name = (settings.partner_url, settings.partner_model)
    if name not in clients:
        clients[name] = EndpointPolicy(EndpointSettings(url=name[0], model=name[1]), key=key)
    limit = settings.max_turn_tokens or settings.max_tokens
    try:
        reply = await clients[name].chat(list(messages), (), Sampling(limit, settings.temperature))
    except EndpointError as error:
        raise ModelFailure(f"the partner {name[1]} at {name[0]}: {error}") from error
    return reply.text
