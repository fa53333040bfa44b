"""The server of OpenEnv's protocol, and pages of other places in a browser on this machine."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from agentrl_envs import Env
from agentrl_envs.adapters.serving import EpisodeServer


class Asks(Env):
    """Ask."""

    def prompt(self, row):
        return "p"

    def reward(self, row, answer):
        return 1.0


@pytest.mark.parametrize(
    ("origin", "plays"), [("https://evil.example", False), ("null", False), ("", True), (None, True)]
)
async def test_a_page_of_another_place_may_not_play(origin: str | None, plays: bool) -> None:
    server = EpisodeServer(lambda rng: Asks(rng=rng), ({"answer": "1"},), 2, 60.0)
    async with TestServer(server.app()) as running, aiohttp.ClientSession() as client:
        own = f"http://{running.host}:{running.port}"
        headers = {} if origin is None else {"Origin": origin or own}
        if not plays:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(f"{own}/ws", headers=headers)
            assert refused.value.status == 403
            return
        async with client.ws_connect(f"{own}/ws", headers=headers) as socket:
            await socket.send_json({"type": "reset", "data": {}})
            assert (await socket.receive_json())["data"]["observation"] == {"prompt": "p"}
