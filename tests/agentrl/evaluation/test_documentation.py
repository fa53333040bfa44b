"""Every block of docs/evaluation.md: the Python runs, the file of tasks is read, the commands have their options."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from agentrl.cli import compare, eval
from agentrl.evaluation.settings import experiments_of, load_experiment

PAGE = (Path(__file__).parents[3] / "docs/evaluation.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for kind, text in BLOCKS if not kind for line in text.splitlines() if line.startswith("agentrl ")
]


def blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


def eval_parser() -> argparse.ArgumentParser:
    subparsers = argparse.ArgumentParser().add_subparsers()
    eval.add_parser(subparsers)
    return subparsers.choices["eval"]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_these_options(line: str):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    eval.add_parser(subparsers)
    compare.add_parser(subparsers)
    assert parser.parse_args(shlex.split(line)[1:]).handler


def test_options_in_the_text_are_options():
    known = eval_parser()
    flags = {flag for action in known._actions for flag in action.option_strings}
    named = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--log_samples", "--log-dir"}
    assert named <= flags


def test_the_file_of_tasks_is_read(tmp_path: Path):
    [text] = blocks("toml")
    (tmp_path / "tasks.toml").write_text(text)
    base = load_experiment(None, ["--model.path=x", f"--eval.data={tmp_path / 'tasks.toml'}"])
    physics, brief = (one.eval for one in experiments_of(base))
    assert (physics.map, physics.tolerance, physics.by) == ({"problem": "question"}, 0.01, ("chapter",))
    assert brief.prompt[0].endswith("\\boxed{}, without an explanation.")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    [text] = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "docs/evaluation.md", "exec"), {"__name__": "__main__"})
    assert "4 problems x 2" in capsys.readouterr().out
    assert (tmp_path / "evals/mine/summary.json").is_file()
