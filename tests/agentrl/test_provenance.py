"""What made a run is written down, and no secret with it."""

import pytest

from agentrl.config.secrets import without_secrets
from agentrl.storage.provenance import command, versions


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
    ],
)
def test_a_command_is_kept_without_its_secrets(given: list[str], shown: str) -> None:
    assert " ".join(command(given)) == shown


def test_versions_name_what_took_part() -> None:
    assert {"python", "platform", "agentrl", "numpy"} <= set(versions())


def test_nested_values_lose_their_secrets() -> None:
    given = {"judge": {"api_key": "sk-1", "model": "m"}, "urls": ["a"], "max_tokens": 5}
    assert without_secrets(given) == {
        "judge": {"api_key": "***", "model": "m"},
        "urls": ["a"],
        "max_tokens": 5,
    }
