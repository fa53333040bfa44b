"""A shell completes commands, options and settings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("shtab", reason="completion borrows it (pip install agentrl[completion])")

from agentrl.cli.completion import SHELLS
from agentrl.cli.main import COMMANDS, main


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SHELLS:
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    return folder


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_names_every_command_and_settings(scripts: Path, shell: str):
    text = (scripts / shell).read_text()
    for word in (*COMMANDS, "forgive", "learner.learning_rate", "sampler.kind"):
        assert word in text
    if program := shutil.which(shell):
        subprocess.run([program, "-n", scripts / shell], check=True, timeout=30)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["agentrl", "do"], ["doctor"]),
        (["agentrl", "train", "--run.see"], ["--run.seed"]),
        (["agentrl", "train", "--learner.place", ""], ["cluster", "process", "thread"]),
        (["agentrl", "init", "--kind", "g"], ["game"]),
        (["agentrl", "sandbox", "do"], ["doctor"]),
    ],
)
def test_bash_completes(scripts: Path, words: list[str], completed: list[str]):
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {scripts / 'bash'}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_TYPE=9; "
        "_shtab_agentrl 2> /dev/null; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30)
    assert sorted(done.stdout.split()) == completed, done.stderr
