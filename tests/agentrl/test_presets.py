"""Presets: each is a whole algorithm in one line, and what a person says wins."""

from __future__ import annotations

from pathlib import Path

import pytest

import agentrl
from agentrl.cli.main import main
from agentrl.config import conflicts
from agentrl.config.loading import load_settings, to_toml
from agentrl.config.presets import ALGORITHMS
from agentrl.errors import ConfigError
from agentrl.training.credit import make_estimator

DEMO = Path(agentrl.__file__).parent / "demo"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_preset_loads_and_is_written_out(name: str, tmp_path: Path) -> None:
    settings = load_settings(None, [f"--preset={name}"])
    for key, value in ALGORITHMS[name].values.items():
        section, _, setting = key.partition(".")
        part = getattr(settings, section)
        if hasattr(part, setting):
            assert getattr(part, setting) == value, key
        else:
            assert f"{setting} = " in to_toml(settings), key
    make_estimator(settings.estimator)
    assert list(conflicts.notes(settings)) == []
    # config.toml holds what the preset meant, and reads back to it without the preset.
    path = tmp_path / "config.toml"
    path.write_text(to_toml(settings))
    assert "preset" not in path.read_text()
    assert load_settings(path) == settings
    assert ALGORITHMS[name].source


def test_what_is_said_wins_over_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "dapo"\n[loss]\nclip_high = 0.5\n')
    settings = load_settings(path, ["--estimator.group_size=4"])
    assert settings.loss.own == {"clip_high": 0.5, "dual_clip": 0.0}
    assert settings.estimator.group_size == 4
    assert settings.estimator.own == {"dynamic_sampling": True}
    assert load_settings(path, ["--preset=gspo"]).loss.kind == "gspo"


def test_of_a_section_of_another_kind_nothing_is_taken() -> None:
    settings = load_settings(None, ["--preset=dapo", "--estimator.kind=spo", "--loss.kind=cispo"])
    assert (settings.estimator.group_size, settings.estimator.own) == (1, {})
    assert settings.loss.own == {}
    assert settings.sampler.kind == "uniform"


def test_a_preset_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'grop'; did you mean 'grpo'\? there are spo, "):
        load_settings(None, ["--preset=grop"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shaper.kind=otc", "--estimator.kind=aspo"], "rewards early calls: choose one"),
        (["--shaper.kind=otc", "--estimator.kind=gdpo"], "reads the parts of the reward"),
        (["--loss.kind=real", "--loss.compare=groups"], "needs estimator.group_size of at least 2"),
        (["--shaper.kind=soft_length", "--shaper.limit=40000"], "never acts: .* at .* 35904 tokens"),
    ],
)
def test_parts_that_work_against_each_other_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(None, flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--estimator.kind=dgpo_value"], "counts it once"),
        (["--loss.kind=real", "--aggregator.kind=sequences"], "reads rewards: what estimator.kind = 'spo'"),
        (["--loss.kind=gspo"], "made for aggregator.kind = 'sequences'"),
        (["--loss.kind=gtpo"], "centred and not divided"),
    ],
)
def test_parts_made_for_other_neighbours_are_spoken_of(flags: list[str], message: str) -> None:
    assert [note for note in conflicts.notes(load_settings(None, flags)) if message in note]


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_demo_takes_every_preset(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the run trains (pip install agentrl[train])")
    monkeypatch.chdir(tmp_path)
    flags = ["--stream.batch=16", "--engine.slots=16", "--eval.data=", "--data.train=generated:train:32"]
    assert main(["demo", "--preset", name, "--steps=1", "--name=run", "--quiet", *flags]) == 0
    settings, meant = load_settings(tmp_path / "runs" / "run" / "config.toml"), ALGORITHMS[name].values
    assert settings.estimator.kind == meant["estimator.kind"]
    # Fails when the demo's own file hides what the preset says.
    assert settings.tracker.initial_rollouts == meant.get("tracker.initial_rollouts", 0)
