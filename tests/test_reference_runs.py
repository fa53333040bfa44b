"""The word problems of docs/results/reference: what is paid, and that held-out problems stay apart."""

from pathlib import Path

import pytest

from agentrl.config.loading import load_settings
from agentrl_envs import load_env

FOLDER = Path(__file__).parents[1] / "docs/results/reference"
ROW = {"problem": "Tom has 37 boxes of 33 apples and 5 more apples. How many apples?", "nums": [37, 33, 5],
       "target": 1226, "calculation": "37*33+5"}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("37*33+5", 1),
        ("5 + (33*37)", 1),
        ("37*33-5", 0),
        ("1226", 0),
        ("37*33+5=1226", 1),
        ("", 0),
        (None, 0),
    ],
)
def test_a_calculation_is_paid_that_uses_every_number(answer: str | None, reward: int):
    env = load_env(FOLDER / "word_problems.py")
    assert env().reward(ROW, answer) == reward


def test_every_story_is_answered_by_its_calculation_and_none_is_in_both_splits():
    env = load_env(FOLDER / "word_problems.py")
    splits = [env.generate_rows(300, split=split) for split in ("train", "test")]
    assert all(env().reward(row, row["calculation"]) for rows in splits for row in rows)
    assert not {row["problem"] for row in splits[0]} & {row["problem"] for row in splits[1]}


def test_its_settings_load_from_any_folder_with_the_environment_beside_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(FOLDER / "word_problems.toml")
    assert (settings.stream.batch, settings.eval.data) == (32, "generated:test:200")
    assert load_env(settings.env[0].name).__name__ == "WordProblems"
