"""What made a run is written down, and no secret with it."""

import pytest

from agentrl.config.secrets import without_secrets
from agentrl.storage.provenance import command, versions
from agentrl_envs.secret_text import masked


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["/opt/bin/agentrl", "train", "my.toml", "--steps", "3"], "agentrl train my.toml --steps 3"),
        (
            ["agentrl", "eval", "--endpoint.api_key=sk-1", "--limit", "2"],
            "agentrl eval --endpoint.api_key=*** --limit 2",
        ),
        (
            ["agentrl", "eval", "--api-key", "sk-1", "--max-tokens", "5"],
            "agentrl eval --api-key *** --max-tokens 5",
        ),
        (["agentrl", "train", "--tracker.clock_tokens=5"], "agentrl train --tracker.clock_tokens=5"),
        ([""], ""),
        (
            ["agentrl", "train", "mcp:https://me:hidden@host/mcp?page=2&api_key=hidden", "--steps", "3"],
            "agentrl train mcp:https://me:***@host/mcp?page=2&api_key=*** --steps 3",
        ),
        (
            [
                "agentrl",
                "train",
                "--env.name=mcp:npx s --api-key hidden -v",
                "--env.name",
                "mcp:A_PAT=hidden s",
            ],
            "agentrl train --env.name=mcp:npx s --api-key *** -v --env.name mcp:A_PAT=*** s",
        ),
        (
            [
                "agentrl",
                "train",
                "--env.settings={password='x y', n=1, headers={Authorization=\"Bearer x\"}}",
            ],
            "agentrl train --env.settings={password='***', n=1, headers={Authorization=\"***\"}}",
        ),
        (
            ["agentrl", "train", '--env.settings={"args": ["--api-key", "x"], "GH_PAT": "x", "n": "1"}'],
            'agentrl train --env.settings={"args": ["--api-key", "***"], "GH_PAT": "***", "n": "1"}',
        ),
        (["agentrl", "train", "--env.settings.api_key=$KEY"], "agentrl train --env.settings.api_key=$KEY"),
        (
            ["agentrl", "train", "--rollout.stop=a=b", "--data.map=key=id"],
            "agentrl train --rollout.stop=a=b --data.map=key=id",
        ),
    ],
)
def test_a_command_is_kept_without_its_secrets(given: list[str], shown: str) -> None:
    assert " ".join(command(given)) == shown


def test_versions_name_what_took_part() -> None:
    assert {"python", "platform", "processor", "agentrl", "numpy"} <= set(versions())


def test_nested_values_lose_their_secrets() -> None:
    given = {"judge": {"api_key": "sk-1", "model": "m"}, "urls": ["a"], "max_tokens": 5}
    assert without_secrets(given) == {
        "judge": {"api_key": "***", "model": "m"},
        "urls": ["a"],
        "max_tokens": 5,
    }


def test_a_message_of_others_is_shown_without_secrets() -> None:
    told = "Client error '401' for url 'https://me:hidden@host/mcp?page=2&key=hidden#a': Unexpected token: }"
    assert masked(told) == (
        "Client error '401' for url 'https://me:***@host/mcp?page=2&key=***#a': Unexpected token: }"
    )
    assert masked(f"it wrote: key = value, sk-{'hidden' * 4}") == "it wrote: key = value, ***"
