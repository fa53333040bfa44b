"""Pictures: the policy is given token ids alone, so every entrance refuses them in a sentence, or says that one
was left out; an endpoint under evaluation is sent what the environment has."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.endpoint_completer import _as_code
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs import Env, tool
from agentrl_envs.model import Access
from agentrl_envs.question import QuestionEnv
from tests.adapters.playing import END, Tokenizer, tool_call

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
ASKED = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE]}]
SENTENCE = (
    "a user message has a part of type 'image_url', and the policy is given token ids alone: leave it out, or "
    "describe it in text"
)


class Looking(Env):
    """A tool that gives a picture."""

    def prompt(self, row: Any) -> Any:
        return row["prompt"]

    @tool
    def look(self) -> list[Any]:
        "Look."
        return [{"type": "text", "text": "a cat "}, PICTURE]

    def reward(self, row: Any, answer: str | None) -> bool:
        return answer == "a cat"


async def play(env: Any, script: list[str], format: Any, row: Any) -> Episode:
    tokenizer = ByteTokenizer() if format == "code" else Tokenizer()
    return await run_episode(
        lambda: env(),
        ScriptedPolicy(script, tokenizer=tokenizer),
        make_renderer(tokenizer, format),
        row=row,
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(),
    )


@pytest.mark.parametrize("format", ["code", "hermes"])
@pytest.mark.parametrize("env", [Looking, QuestionEnv], ids=["of an environment", "of a row of the data"])
async def test_a_prompt_with_a_picture_fails_the_episode(env: Any, format: str) -> None:
    if (env, format) == (Looking, "code"):
        pytest.skip("a code block calls no tool of this environment")
    episode = await play(env, [f"a cat{END}"], format, {"prompt": ASKED, "answer": "a cat"})
    assert episode.failure is not None
    assert (episode.failure.message, episode.reward) == (SENTENCE, None)


async def test_the_picture_of_a_tool_is_left_out_and_the_text_says_so() -> None:
    row = {"prompt": "What is there?"}
    episode = await play(Looking, [tool_call("look"), f"a cat{END}"], "hermes", row)
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert episode.turns[0].tool_calls[0].result == "a cat [image_url not shown]"
    assert "base64" not in Tokenizer().decode(list(episode.segments[0].token_ids))


SOURCE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [SOURCE]}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("chat/completions", {"messages": ASKED}, "messages[0]: a part of type 'image_url'"),
        (
            "chat/completions",
            {"messages": [{"role": "tool", "tool_call_id": "t", "content": [PICTURE]}]},
            "messages[0]: a part of type 'image_url'",
        ),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            "a part of type 'input_image'",
        ),
        (
            "responses",
            {
                "input": [
                    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}
                ]
            },
            "a part of type 'input_image'",
        ),
        ("messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [SOURCE]}]}, "type 'image'"),
        ("messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [RESULT]}]}, "type 'image'"),
    ],
    ids=["chat", "chat tool", "responses", "responses tool", "messages", "messages tool"],
)
async def test_a_request_with_a_picture_is_refused_and_counted(path: str, body: Any, words: str) -> None:
    class Through(Env):
        async def play(self, row: Any) -> str:
            async with self.speaker.serve() as access:
                return await ask(access)

        def reward(self, row: Any, answer: str | None) -> bool:
            return answer == "refused"

    async def ask(access: Access) -> str:
        head = {"Authorization": f"Bearer {access.key}"}
        async with (
            aiohttp.ClientSession(f"{access.url}/v1/", headers=head) as http,
            http.post(path, json={"model": "m", **body}) as answer,
        ):
            error = (await answer.json())["error"]
            assert answer.status == 400
            assert words in error["message"], error
            assert error["message"].endswith(
                "the policy is given token ids alone: leave it out, or describe it in text"
            )
        return "refused"

    episode = await play(Through, [], "code", {"problem": "p"})
    assert (episode.failure, episode.reward, episode.segments[0].num_sampled) == (None, 1.0, 0)
    assert episode.counts["gateway/content_not_text"] == 1


def test_an_endpoint_is_sent_the_picture() -> None:
    (sent,) = _as_code(ASKED, Looking.tool_specs())
    assert sent["content"][1:] == ASKED[0]["content"]
    assert "<code>" in sent["content"][0]["text"]
