"""Parts that settings name: their declarations are read without running them, and mistakes name file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agentrl.algorithms.advantage import CreditBatch
from agentrl.config import registry
from agentrl.config.loading import load_settings, to_toml
from agentrl.config.settings import EstimatorSettings
from agentrl.config.tree import parts_of
from agentrl.errors import ConfigError, PartError
from agentrl.training.credit import make_estimator

HEAVY = '''
"""A loss that cannot be imported here."""
import a_module_that_is_nowhere

class Mine:
    """Squared."""

    requires = ("reference", "proximal")

    class Settings:
        steps: int
        width: Positive = 0.5
        """How wide."""
        mode: Literal["a", "b"] = "a"
'''


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    path = tmp_path / "heavy.py"
    path.write_text(HEAVY)
    return path


def test_a_declaration_is_read_without_running_the_file(heavy: Path) -> None:
    part = registry.declared("loss", f"{heavy}:Mine")
    assert part.requires == ("reference", "proximal")
    assert part.text == "Squared."
    assert part.texts == {"width": "How wide."}
    assert part.defaults() == {"width": 0.5, "mode": "a"}
    assert part.needed() == ["steps"]


def test_settings_of_a_part_stand_in_its_section(heavy: Path) -> None:
    flags = [f"--loss.kind={heavy}:Mine", "--loss.width=0.25", "--loss.steps=3", "--loss.kl_coefficient=0.1"]
    settings = load_settings(None, flags)
    assert settings.loss.own == {"width": 0.25, "steps": 3}
    assert settings.loss.kl_coefficient == 0.1
    assert [str(part) for part in parts_of(settings)] == [f"the loss {heavy}:Mine"]


def test_all_mistakes_are_told_with_what_would_be_right(heavy: Path) -> None:
    flags = [
        f"--loss.kind={heavy}:Mine",
        "--loss.widht=1",
        "--loss.width=-1",
        "--loss.mode=c",
        "--loss.importance_min=0.1",
        "--estimator.dynamic_sampling=true",
        "--sampler.kind=priorty",
        f"--shaper.kind={heavy}:Min",
        "--tracker.kind=nowhere.py:Tracker",
    ]
    with pytest.raises(ConfigError) as caught:
        load_settings(None, flags)
    text = str(caught.value)
    for line in (
        "--loss.widht: unknown setting 'loss.widht'; did you mean 'loss.width'?",
        "--loss.width: loss.width = -1.0 must be above 0",
        "--loss.mode: loss.mode = 'c' must be one of 'a', 'b'",
        "--loss.importance_min: 'loss.importance_min' is a setting of the loss 'clipped' or 'score_centering' only",
        f"loss '{heavy}:Mine' needs loss.steps",
        "--estimator.dynamic_sampling: 'estimator.dynamic_sampling' is a setting of the estimator 'grpo' only",
        "there is no sampler 'priorty'; did you mean 'priority'?",
        "has no class or function 'Min'; did you mean 'Mine'?",
        "the tracker 'nowhere.py:Tracker': cannot read nowhere.py: No such file or directory",
    ):
        assert line in text, (line, text)


def test_a_file_may_stand_beside_the_settings(
    heavy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text('[loss]\nkind = "heavy.py:Mine"\nsteps = 1\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    settings = load_settings(tmp_path / "run.toml")
    assert settings.loss.kind == f"{heavy}:Mine"
    for flags in (["--run.metrics=heavy.py:Mine"], ["--run.metrics=heavy.py:Mine"] * 2):
        assert load_settings(tmp_path / "run.toml", flags).run.metrics == (f"{heavy}:Mine",) * len(flags)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(settings))
    assert load_settings(again) == settings
    assert "steps = 1\n" in to_toml(settings)
    assert "width = 0.5\n" in to_toml(settings), "the file of settings shows defaults too"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    class Settings:\n        width: torch.Tensor = 1\n", r"line 3: .* name 'torch' is not defined"),
        ("    class Settings:\n        width: int = 1 / 0\n", r"line 3: .* division by zero"),
        ("    requires = ('teacher of mine',)\n", r"line 2: a part cannot require 'teacher of mine'"),
        ("    requires = wanted()\n", r"line 2: `requires` must be a tuple of texts"),
        ("    def broken(:\n", "cannot read .*invalid syntax"),
    ],
)
def test_a_declaration_that_cannot_be_read(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text("class Mine:\n" + body)
    with pytest.raises(ConfigError, match=message):
        registry.declared("loss", f"{path}:Mine")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("heavy.py", "say which class or function of it, 'heavy.py:Name'"),
        ("heavy:Mine", "a class of the file is 'heavy.py:Mine'"),
    ],
)
def test_a_name_that_is_nearly_one(
    heavy: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    monkeypatch.chdir(heavy.parent)
    with pytest.raises(ConfigError, match=message):
        registry.declared("loss", kind)


def test_a_class_that_is_not_made_as_parts_of_its_family_are(tmp_path: Path) -> None:
    path = tmp_path / "few.py"
    path.write_text("class Few:\n    def __init__(self, tokenizer):\n        pass\n")
    with pytest.raises(ConfigError, match=r"few\.py:Few.* is made as Few\(int, str\): too many positional"):
        registry.make("tracker", f"{path}:Few", {}, 3, "clock")


def test_a_setting_of_a_part_cannot_have_a_name_of_its_section(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[learner]\nbatch = 3\n[loss]\nkind = "mine.py:Mine"\n')
    (tmp_path / "mine.py").write_text("class Mine:\n    class Settings:\n        kl: float = 1.0\n")
    with pytest.raises(ConfigError) as told:
        load_settings(tmp_path / "run.toml")
    text = str(told.value)
    assert "run.toml, line 4: the loss" in text
    assert "has a setting 'kl', which is one of [loss] itself" in text
    assert "run.toml, line 2" in text, "all mistakes at once"


def test_a_registered_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})

    @registry.register("estimator", "median")
    class Median:
        """Score less the median."""

        def __call__(self, batch: CreditBatch) -> np.ndarray:
            return batch.scores - np.median(batch.scores)

    @registry.register("shaper", "halved")
    class Halved:
        """Half of the reward."""

        class Settings:
            share: float = 0.5

    assert registry.declared("shaper", "halved").defaults() == {"share": 0.5}
    assert registry.kinds("estimator") == (*registry.BUILT_IN["estimator"], "median")
    settings = load_settings(None, ["--estimator.kind=median"])
    estimator = make_estimator(settings.estimator)
    assert estimator(CreditBatch(np.array([0.0, 0.5, 1.0]))).tolist() == [-0.5, 0.0, 0.5]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="a part of agentrl has this name"):
        registry.register("estimator", "spo")
    with pytest.raises(ConfigError, match="no family of parts 'estimater'"):
        registry.register("estimater", "x")


def test_what_a_part_raises_names_it_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text("class Raises:\n    def __init__(self):\n        raise KeyError('weights')\n")
    with pytest.raises(PartError, match=r"the estimator '.*raises.py:Raises' raised KeyError.*raises.py:3\)"):
        make_estimator(EstimatorSettings(kind=f"{path}:Raises"))


def test_settings_are_read_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom agentrl.config.loading import load_settings\n"
        "load_settings(None, ['--loss.clip_low=0.1', '--engine.kind=vllm', '--rollout.format=hermes'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_a_part_may_go_on_from_another(tmp_path: Path) -> None:
    """Settings and requirements of bases count, of agentrl's and of those in the same file or beside it."""
    (tmp_path / "basis.py").write_text(
        "from agentrl.learner.losses.centering import CenteredLoss as Centre\n\n\n"
        "class Milder(Centre):\n    pass\n"
    )
    (tmp_path / "mine.py").write_text(
        "from basis import Milder\n"
        "from agentrl.learner.losses.clipped import ClippedLoss\n\n\n"
        "class Plain(ClippedLoss):\n    pass\n\n\n"
        "class Wider(Plain):\n"
        "    class Settings(ClippedLoss.Settings):\n"
        "        clip_high: float = 0.5\n"
        '        """Wider than usual."""\n'
        "        width: float = 2.0\n\n\n"
        "class Far(Milder):\n    pass\n"
    )
    plain, wider, far = (
        registry.declared("loss", f"{tmp_path}/mine.py:{name}") for name in ("Plain", "Wider", "Far")
    )
    usual = registry.declared("loss", "clipped")
    assert plain.defaults() == usual.defaults()
    assert wider.defaults() == usual.defaults() | {"clip_high": 0.5, "width": 2.0}
    assert wider.texts["clip_high"] == "Wider than usual."
    assert wider.texts["clip_low"] == usual.texts["clip_low"]
    assert (far.requires, far.defaults()["behaviour_top_k"]) == (("behaviour_top",), 20)
    settings = load_settings(None, [f"--loss.kind={tmp_path}/mine.py:Wider", "--loss.clip_low=0.1"])
    assert settings.loss.own == {"clip_low": 0.1}
    with pytest.raises(ConfigError, match=r"loss.clip_low = 2.0 must be"):
        load_settings(None, [f"--loss.kind={tmp_path}/mine.py:Plain", "--loss.clip_low=2"])


def test_settings_that_go_on_from_elsewhere_are_told(tmp_path: Path) -> None:
    text = "import far_away\n\n\nclass Mine:\n    class Settings(far_away.Settings):\n        width: float = 1.0\n"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=r"mine.py, line 5: the settings .* 'far_away.Settings'.*write its"):
        registry.declared("loss", f"{tmp_path}/mine.py:Mine")
    (tmp_path / "basis.py").write_text("class (")
    (tmp_path / "round.py").write_text("class Round(Round):\n    pass\n")
    (tmp_path / "torn.py").write_text("from basis import Base\n\n\nclass Torn(Base):\n    pass\n")
    for name in ("round", "torn"):
        with pytest.raises(ConfigError, match="cannot read what it goes on from"):
            registry.declared("loss", f"{tmp_path}/{name}.py:{name.title()}")
