"""Settings: every mistake is told, with its place and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.cli.check import CheckSettings
from agentrl.config.loading import load_settings, to_toml
from agentrl.config.settings import Settings
from agentrl.config.tree import names_of, sections_of, texts_of
from agentrl.errors import ConfigError
from agentrl.evaluation.settings import Experiment
from agentrl.training.sft import SftSettings


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.toml",
        "[learner]\nlearnign_rate = 1e-3\nmini_batch = 'many'\n\n[stream]\nstale_polcy = 'wait'\n"
        "\n[engine]\nkind = 'vlm'\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(path, ["--strem.batch=3"])
    text = str(caught.value)
    assert "4 mistakes" not in text
    assert "5 mistakes" in text
    assert (
        "run.toml, line 2: unknown setting 'learner.learnign_rate'; did you mean 'learner.learning_rate'?"
        in text
    )
    assert "run.toml, line 3: learner.mini_batch = 'many' must be a whole number" in text
    assert "line 6: unknown setting 'stream.stale_polcy'; did you mean 'stream.stale_policy'?" in text
    assert "line 9: engine.kind = 'vlm': there is no engine 'vlm'; did you mean 'vllm'?" in text
    assert "--strem.batch: unknown setting 'strem'; did you mean 'stream'?" in text


def test_a_mistake_in_one_of_several_environments_has_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[[env]]\nname = 'a'\n\n[[env]]\nnam = 'b'\n")
    with pytest.raises(ConfigError, match="line 5: unknown setting 'env.1.nam'; did you mean 'env.1.name'"):
        load_settings(path)


def test_a_key_of_another_section_is_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'learner.learning_rate'\?"):
        load_settings(None, ["--learning_rate=3"])


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[stream]\nbatch = 16\n[learner]\nmini_batch = 8\n")
    settings = load_settings(path, ["--stream.batch=32", "--env.name", "arithmetic"])
    assert settings.stream.batch == 32
    assert settings.learner.mini_batch == 8
    assert [env.name for env in settings.env] == ["arithmetic"]


def test_resolved_settings_read_back_equal(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.toml",
        '[data]\ntrain = "rows \\"quoted\\".jsonl"\nmap = {problem = "question"}\n'
        '[[env]]\nname = "a"\nweight = 2\n[env.settings]\nturns = 3\n[[env]]\nname = "b"\n'
        '[env.data]\ntrain = "b.jsonl"\n[learner]\nbetas = [0.9, 0.95]\n',
    )
    settings = load_settings(path)
    again = write(tmp_path / "again.toml", to_toml(settings))
    assert load_settings(again) == settings
    assert settings.env[1].data.train == "b.jsonl"
    assert settings.env[0].settings == {"turns": 3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learner.mini_batch=-1"], "learner.mini_batch = -1 must be at least 0"),
        (["--stream.batch=0", "--learner.mini_batch=1"], "stream.batch = 0 must be at least 1"),
        (["--rollout.temperature=0"], "rollout.temperature = 0.0 must be above 0"),
        (["--tracker.rho_min=0.99"], "must not exceed tracker.rho_max"),
        (["--estimator.kind=grpo", "--estimator.group_size=7"], "not a multiple"),
        (["--sandbox.runtime=runsc"], "sandbox.runtime is for sandbox.backend = 'docker', not 'local'"),
        (["--sandbox.urls=http://a:1"], "sandbox.urls is for sandbox.backend = 'remote', not 'local'"),
        (["--sandbox.backend=remote"], "needs sandbox.urls"),
        (
            ["--sandbox.backend=remote", "--sandbox.urls=http://a:1", "--sandbox.libraries=numpy"],
            "name them where the pool is started",
        ),
        (["steps=3"], "unexpected argument"),
        (["--run.steps"], "needs a value"),
    ],
)
def test_rules_between_settings(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(None, flags)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the settings file .*nowhere.toml"):
        load_settings(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_settings(write(tmp_path / "broken.toml", "[run\n"))


@pytest.mark.parametrize("name", ["game.py", "game.py:Game", "my.pyproj/game.py"])
def test_an_environment_stands_beside_the_settings_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path, tmp_path / "my.pyproj"):
        folder.mkdir(exist_ok=True)
        (folder / "game.py").touch()
    (tmp_path / "run.toml").write_text(f"[[env]]\nname = '{name}'\n[[env]]\nname = 'gsm8k'\n")
    assert [env.name for env in load_settings(Path("../run.toml")).env] == [f"../{name}", "gsm8k"]
    for folder in (tmp_path / "here", tmp_path / "here" / "my.pyproj"):
        folder.mkdir(exist_ok=True)
        (folder / "game.py").touch()  # the folder one works in comes first
    assert load_settings(Path("../run.toml")).env[0].name == name


@pytest.mark.parametrize("tree", [Settings, Experiment, SftSettings, CheckSettings])
def test_every_setting_is_documented(tree: type) -> None:
    for section, kind in sections_of(tree).items():
        assert [name for name in names_of(kind) if not texts_of(kind).get(name)] == [], section


def test_docker_settings_reach_the_backend() -> None:
    from agentrl.tasks.task import make_sandbox
    from agentrl_sandbox import Level

    flags = ["--sandbox.backend=docker", "--sandbox.runtime=runsc", "--sandbox.image=mine:1"]
    sandbox = make_sandbox(load_settings(None, [*flags, "--sandbox.libraries=numpy"]).sandbox)
    assert sandbox.level == Level.VIRTUAL
    container = sandbox._settings
    assert (container.image, container.runtime, container.libraries) == ("mine:1", "runsc", ("numpy",))


def test_a_hub_id_that_has_a_name_here_is_sent_to_it() -> None:
    from agentrl.tasks.task import known_data

    with pytest.raises(ConfigError, match="openai/gsm8k has a name here.*give gsm8k or gsm8k_train"):
        known_data("openai/gsm8k")
    assert known_data("somebody/something") == "somebody/something"
