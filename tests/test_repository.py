"""The house: what is documented exists, what is imported is light, commands answer."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentrl
from agentrl.cli.main import COMMANDS, main
from agentrl.config import registry
from agentrl.config.settings import Settings
from agentrl.config.tree import all_keys

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / part) for part in (".", "envs", "sandbox")]
    code = f"import sys; sys.path[:0] = {paths!r}; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("package", ["agentrl", "agentrl_envs", "agentrl_sandbox"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'openai', 'docker', 'aiohttp', 'sympy'}"
    result = run_python(f"import {package}; print(sorted({heavy} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


def test_the_sandbox_loads_alone() -> None:
    result = run_python(
        "import agentrl_sandbox; print([m for m in sys.modules if m.split('.')[0] in ('agentrl', 'agentrl_envs')])"
    )
    assert result.stdout.strip() == "[]", result.stderr


def script(name: str) -> Any:
    """A file of scripts/, imported."""
    return importlib.import_module(f"scripts.{name}")


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle() -> None:
    house = script("house")
    files = house.modules(ROOT)
    graph = house.import_graph(files)
    assert len(graph) > 100
    assert (house.circles(graph), house.circles(house.between_rooms(graph, files))) == ([], [])


def test_the_pages_of_algorithms_are_current() -> None:
    pages = script("algorithm_pages").pages()
    folder = ROOT / "docs/algorithms"
    assert sorted(pages) == sorted(path.name for path in folder.iterdir())
    for name, text in pages.items():
        assert (folder / name).read_text() == text, "run: python scripts/algorithm_pages.py"


def test_what_the_page_of_algorithms_names_is_there() -> None:
    known = (ROOT / "docs/configuration.md").read_text()
    named = re.findall("`([^`]+)`", "\n".join(script("algorithm_pages").WHERE.values()))
    for name in named:
        setting, _, kind = name.partition("=")
        if kind:
            assert registry.declared(setting.removesuffix(".kind"), kind).text, name
        elif name.endswith(".py"):
            assert (ROOT / "examples/methods" / name).is_file(), name
        elif "." in name:
            assert f"| `{name}` |" in known, name
    files = {path.name for path in (ROOT / "examples/methods").glob("*.py")}
    assert files <= set(named)


@pytest.mark.parametrize("family", ["loss", "estimator", "shaper"])
def test_every_part_says_where_it_is_from(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parts", "--kind", family]) == 0
    listed = capsys.readouterr().out.split("\n\n")
    for kind in registry.BUILT_IN[family]:
        assert registry.declared(family, kind).provenance, kind
        (text,) = [one for one in listed if one.startswith(f"{family} {kind}: ")]
        assert f"source: {registry.declared(family, kind).provenance}" in text


def test_the_page_of_settings_is_current() -> None:
    page = script("configuration_page").page()
    assert (ROOT / "docs/configuration.md").read_text() == page, "run: python scripts/configuration_page.py"
    for key in all_keys(Settings):
        assert f"`{key}`" in page


def test_the_reference_of_python_is_current_and_whole() -> None:
    page = script("api_page").page()
    assert (ROOT / "docs/api.md").read_text() == page, "run: python scripts/api_page.py"
    for name in agentrl.__all__:
        assert f"### `{name}`" in page or name.startswith("__")


def test_every_setting_has_a_meaning() -> None:
    for line in (ROOT / "docs/configuration.md").read_text().splitlines():
        if line.startswith("| `"):
            assert line.rstrip(" |").count("|") >= 4, line


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name in text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: agentrl" in capsys.readouterr().out


def test_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^agentrl (\w+)", text, flags=re.MULTILINE))
    assert used
    assert used <= set(COMMANDS)
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), (
            f"make {target} is not in the Makefile"
        )


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_an_error_made_on_purpose_is_one_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nowhere.toml"]) == 1
    assert capsys.readouterr().err == (
        "error: cannot read the settings file nowhere.toml: No such file or directory\n"
    )
    assert main(["train"]) == 1
    assert "name a settings file" in capsys.readouterr().err
    assert main(["train", "--resume", "runs/7"]) == 1
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.jsonl"], "no data file nowhere.jsonl"),
        (["--data", "rows.jsonl"], "needs the field"),
        (["--data", "generated:train:20", "--env.name", "countdwn"], "did you mean 'countdown'"),
        (["--data", "generated:train:1", "--sampler.copies_per_prompt=1"], "it could never fill"),
        (["--data", "generated:train:20", "--env.settings.turns=3"], "unknown setting 'turns'"),
    ],
)
def test_bad_data_is_told_before_anything_starts(
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    code = main(
        [
            "train",
            "arithmetic",
            "--model",
            "m",
            "--stream.batch=8",
            "--learner.mini_batch=8",
            "--dry-run",
            *flags,
        ]
    )
    assert code == 1
    assert message in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/001")
    (run / "weights" / "step_4").mkdir(parents=True)
    (run / "weights" / "step_4" / "config.json").write_text("{}")
    (run / "run.json").write_text('{"format": 2, "run_id": "1"}')
    (run / "config.toml").write_text('[run]\nsteps = 4\n[model]\npath = ""\n')
    (run / "summary.json").write_text('{"policy_versions": 4}')
    assert main(["train", "--resume", "runs/001"]) == 0
    assert capsys.readouterr().out == "runs/001 is finished (4 steps); --steps MORE goes on from there\n"
    # More steps, or a summary of an attempt that was ended, start it again; here that fails for its model.
    assert main(["train", "--resume", "runs/001", "--steps", "5"]) == 1
    assert "model.path is empty" in capsys.readouterr().err
    (run / "summary.json").write_text('{"policy_versions": 3}')
    assert main(["train", "--resume", "runs/001"]) == 1


def test_a_missing_model_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="the train extra is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flags = ["--data", "generated:train:20", "--stream.batch=8", "--learner.mini_batch=8", "--quiet"]
    assert main(["train", "arithmetic", "--model", "./no-such-model", *flags]) == 1
    assert "no-such-model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_new_environment_file_is_ready_to_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentrl_envs import load_env

    monkeypatch.chdir(tmp_path)
    assert main(["init", "word_game.py"]) == 0
    # What it says next works as it stands.
    (command,) = re.findall(r"try it: agentrl (.+)", capsys.readouterr().out)
    assert main(command.split()) == 0
    assert "ready to train on" in capsys.readouterr().out
    assert load_env("word_game.py").__name__ == "WordGame"
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    text = (tmp_path / "word_game.py").read_text()
    (command,) = re.findall(r"agentrl (train .+ROWS.jsonl)  ", text)
    flags = ["--sampler.copies_per_prompt=256", "--dry-run"]
    assert main([*command.replace("ROWS.jsonl", "rows.jsonl").split(), *flags]) == 0
    assert max(map(len, text.splitlines())) <= 110
    assert main(["init", "word_game.py"]) == 1
    assert "exists; name another file" in capsys.readouterr().err
    assert main(["init", "other.py", "--kind", "game"]) == 1
    assert "agentrl init other --kind game" in capsys.readouterr().err
    assert main(["init", "nowhere/env.py"]) == 1
    assert "no folder nowhere" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "kept"), [("pass", ["test_one.py::test_a"]), ("raise KeyboardInterrupt", [])]
)
def test_a_run_that_was_ended_remembers_no_failures(tmp_path: Path, last: str, kept: list[str]) -> None:
    # `.ci/run` runs the remembered ones again and no others, so the rest would pass without having run.
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_one.py").write_text(f"def test_a(): assert 0\ndef test_b(): {last}\n")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", ".", "-c", "/dev/null", "-o", "cache_dir=cache"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        timeout=120,
    )
    file = tmp_path / "cache/v/cache/lastfailed"
    assert [*json.loads(file.read_text())] == kept
