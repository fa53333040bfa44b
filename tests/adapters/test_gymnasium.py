"""Environments of the real Gymnasium, played by a scripted engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("gymnasium", "make test-agents installs it")

from agentrl.cli.main import main
from agentrl_envs import load_env
from agentrl_envs.errors import EnvError, EnvNotFound, SettingsError
from tests.adapters.playing import END, play, shown

pytestmark = pytest.mark.filterwarnings("ignore")
GAMES = Path(__file__).parent / "text_games.py"
LAKE: dict[str, Any] = {"arguments": {"is_slippery": False}, "actions": ["left", "down", "right", "up"]}


def env_of(name: str, **settings: Any) -> Any:
    made = load_env(f"gymnasium:{name}", settings)
    return lambda **given: made(**settings, **given)


async def test_a_map_is_walked_to_its_goal() -> None:
    way = ["down", "down", "right", "right", "down", "right"]
    episode = await play(
        env_of("FrozenLake-v1", **LAKE), {"seed": 1}, [f"<action>{step}</action>{END}" for step in way]
    )
    assert (episode.failure, episode.reward, len(episode.turns)) == (None, 1.0, 6)
    assert [turn.reward for turn in episode.turns] == [0, 0, 0, 0, 0, 1]
    assert "[S]FFF\nFHFH" in shown(episode), "the map shows where the player is"
    assert "0 (left), 1 (down), 2 (right), 3 (up)" in shown(episode)


async def test_a_hole_ends_the_episode_without_reward() -> None:
    episode = await play(env_of("FrozenLake-v1", **LAKE), {"seed": 1}, [f"2{END}", f"1{END}", f"1{END}"])
    assert (episode.failure, episode.reward, len(episode.turns)) == (None, 0.0, 2)


async def test_no_action_is_told_and_counted() -> None:
    script = [
        f"Hm.{END}",
        f"<action>7</action>{END}",
        f"<action>true</action>{END}",
        f"Right{END}",
        f"down{END}",
    ]
    episode = await play(env_of("FrozenLake-v1", **LAKE), {"seed": 1}, script)
    assert (episode.failure, episode.reward) == (None, 0.0)
    assert episode.counts["gymnasium/no_action"] == 3
    assert "No action: 'Hm.'." in shown(episode)


async def test_an_episode_without_any_step_earns_the_least() -> None:
    episode = await play(env_of("Blackjack-v1", lowest=-1, max_turns=2), {"seed": 1}, [f"Hm.{END}"] * 2)
    assert (episode.failure, episode.reward) == (None, -1.0)


async def test_text_is_said_to_a_text_game() -> None:
    env = env_of(f"{GAMES}:Guess-v0")
    wrong = await play(env, {"seed": 3}, [f"pig{END}", f"hen{END}", f"elephant{END}", f"rat{END}"])
    assert (wrong.failure, wrong.reward, wrong.counts["gymnasium/no_action"]) == (None, 0.0, 1)
    words = await play(env, {"seed": 3}, [f"<action>{word}</action>{END}" for word in ("cat", "dog", "cow")])
    assert words.reward == 1.0
    assert "Right." not in shown(wrong)


async def test_seeds_decide_and_splits_share_none() -> None:
    env = load_env("gymnasium:Blackjack-v1", {"lowest": -1})
    train, test = env.generate_rows(50, split="train"), env.generate_rows(50, split="test")
    assert len({row["seed"] for row in [*train, *test]}) == 100
    assert train == env.generate_rows(50, split="train") != env.generate_rows(50, split="train", seed=1)
    first = {(await play(env, train[0], [f"0{END}"])).segments[0].token_ids.tobytes() for _ in range(3)}
    assert len(first) == 1


async def test_vectors_are_json_both_ways() -> None:
    settings = {"lowest": -5000, "highest": 0, "max_turns": 2}
    episode = await play(env_of("Pendulum-v1", **settings), {"seed": 1}, [f"[0.5]{END}", f"[1e99]{END}"])
    assert episode.failure is None
    assert episode.counts["gymnasium/no_action"] == 1, "beyond the bounds of the space"
    assert -5000 < episode.reward < 0


async def test_a_reward_outside_the_range_is_no_reward() -> None:
    episode = await play(env_of("CartPole-v1"), {"seed": 1}, [f"1{END}"])
    assert episode.failure is not None
    assert "outside reward_range (0, 1)" in str(episode.failure)


async def test_a_game_that_breaks_fails_its_episode() -> None:
    episode = await play(env_of(f"{GAMES}:Guess-v0", arguments={"breaks": True}), {"seed": 1}, [f"cat{END}"])
    assert episode.failure is not None
    assert "the game's server is gone" in str(episode.failure)


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("FrozenLak-v1", {}, EnvNotFound, "did you mean FrozenLake-v1"),
        ("no_such_module:Game-v0", {}, EnvNotFound, "knows no environment 'no_such_module:Game-v0'"),
        ("no_such_file.py:Game-v0", {}, EnvNotFound, "no file no_such_file.py"),
        ("CartPole-v1", {"arguments": {"wheels": 3}}, EnvError, "unexpected keyword argument 'wheels'"),
        ("CartPole-v1", {"argument": {}}, SettingsError, "did you mean 'arguments'"),
        ("CartPole-v1", {"lowest": 2}, EnvError, "lowest 2 is not below highest"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, settings: Any, kind: type[EnvError], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_env(f"gymnasium:{name}", settings)


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gymnasium:Blackjack-v1", "--env.settings.lowest=-1"]) == 0, capsys.readouterr().out
