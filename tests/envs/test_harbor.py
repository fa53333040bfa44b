"""Tasks of Harbor as files: what is read, what is refused, and which numbers are rewards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agentrl_envs import load_env
from agentrl_envs.errors import EnvError
from agentrl_envs.harbor.rewards import reward_of
from agentrl_envs.harbor.task import read_task
from tests.harbor_tasks import write_task


def test_a_task_is_read(tmp_path: Path) -> None:
    task = read_task(write_task(tmp_path / "greeting"))
    assert task.instruction == "Write the word hello into the file greeting.txt."
    assert (task.cpus, task.memory_mb, task.workdir) == (1.0, 256, "/app")
    assert (task.agent_s, task.tests_s, task.build_s) == (60.0, 30.0, 600.0)
    assert (task.tests_variables, task.solution_variables) == ({"WANTED": "hello"}, {"SAID": "hello"})
    assert (task.agent_user, task.tests_user, task.image) == ("", "", "")


def test_older_fields_and_variables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[environment]\nmemory = "2G"\ndocker_image = "made:1"\n[agent]\nuser = 1000\n[verifier.env]\n'
    text += 'KEY = "${MY_KEY}"\nURL = "http://${HOST_NAME:-localhost}:1"\n'
    monkeypatch.setenv("MY_KEY", "k")
    folder = write_task(tmp_path / "old", {"task.toml": text, "environment/Dockerfile": None})
    task = read_task(folder)
    assert (task.memory_mb, task.image, task.tag, task.agent_user) == (2048, "made:1", "made:1", "1000")
    assert task.tests_variables == {"KEY": "k", "URL": "http://localhost:1"}
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(EnvError, match=r"task\.toml: \[verifier\.env\] KEY: the variable MY_KEY is not set"):
        read_task(folder)


def test_an_image_is_named_by_what_it_is_made_of(tmp_path: Path) -> None:
    one, same = (write_task(tmp_path / name) for name in ("one", "same"))
    other = write_task(tmp_path / "other", {"environment/data.txt": "other data\n"})
    assert read_task(one).tag == read_task(same).tag != read_task(other).tag
    (one / "environment" / "data.txt").chmod(0o755)
    assert read_task(one).tag != read_task(same).tag


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task.toml": "cpus = "}, r"task\.toml cannot be read: Invalid value"),
        ({"task.toml": "environment = 3"}, r"task\.toml: environment must be a table"),
        (
            {"task.toml": "[environment]\ncpus = '2'"},
            r"\[environment\] cpus = '2': must be a positive number",
        ),
        ({"task.toml": "[environment]\nmemory = '2 acres'"}, r"memory = '2 acres': must be a size"),
        ({"task.toml": "[verifier]\ntimeout_sec = -1"}, r"\[verifier\] timeout_sec = -1: must be a positive"),
        ({"task.toml": "[agent]\nuser = true"}, r"\[agent\] user = True: must be a name or a number"),
        ({"task.toml": "[verifier]\nenv = ['A']"}, r"\[verifier\] env = \['A'\]: must be a table of texts"),
        ({"task.toml": "[environment]\nos = 'windows'"}, r"os = 'windows': only linux is done"),
        ({"task.toml": "[environment]\ngpus = 1"}, r"\[environment\] gpus = 1: this is not done"),
        ({"task.toml": "[environment]\nnetwork_mode = 'allowlist'"}, r"a list of allowed hosts is not done"),
        ({"task.toml": "[[steps]]\nname = 'a'"}, r"steps: tasks of several steps are not done"),
        ({"task.toml": "[verifier]\nenvironment_mode = 'separate'"}, r"tests run in the agent's container"),
        ({"environment/docker-compose.yaml": "services: {}"}, r"docker-compose\.yaml: tasks of several cont"),
        (
            {"environment/Dockerfile": None},
            r"environment/Dockerfile is missing \(or \[environment\] docker_im",
        ),
        ({"tests/test.sh": None}, r"tests/test\.sh is missing"),
        ({"instruction.md": None}, r"instruction\.md is missing"),
        ({"instruction.md": "# canary x\n\n"}, r"instruction\.md is empty"),
        ({"task.toml": None}, r"want the folder of a task, with a task\.toml"),
    ],
)
def test_a_broken_task_names_file_and_field(tmp_path: Path, changes: Any, words: str) -> None:
    folder = write_task(tmp_path / "broken", changes)
    with pytest.raises(EnvError) as raised:
        load_env(f"harbor:{folder}")
    assert re.search(words, str(raised.value)), str(raised.value)
    assert str(folder) in str(raised.value)


def test_a_folder_of_tasks(tmp_path: Path) -> None:
    for name in "abcdefgh":
        write_task(tmp_path / name)
    env: Any = load_env(f"harbor:{tmp_path}")
    assert [row["task"] for row in env.example_rows] == list("abcdefgh")
    splits = [{row["id"] for row in env.generate_rows(99, split=split)} for split in ("train", "test")]
    assert (splits[0] | splits[1], splits[0] & splits[1]) == (set("abcdefgh"), set())
    assert len(env.generate_rows(2, split="train")) == 2
    alone: Any = load_env(f"harbor:{tmp_path / 'a'}")
    assert len(alone.generate_rows(9, split="train")) == 1
    with pytest.raises(EnvError, match="none of the 1 tasks is in the split 'test'"):
        alone.generate_rows(9, split="test")


@pytest.mark.parametrize(
    ("as_json", "as_text", "reward"),
    [
        (None, b"1\n", 1.0),
        (None, b"0.25", 0.25),
        (b"0.5", b"1", 0.5),
        (b'{"right": 0.75}', None, 0.75),
        (b'{"reward": 1, "style": 0.2}', None, 1.0),
    ],
)
def test_a_reward(as_json: bytes | None, as_text: bytes | None, reward: float) -> None:
    assert reward_of(as_json, as_text, "the tests") == reward


@pytest.mark.parametrize(
    ("as_json", "as_text", "words"),
    [
        (None, None, "the tests left neither"),
        (None, b"", "no number: b''"),
        (None, b"nan", "want a finite number"),
        (b"{", b"1", "no JSON"),
        (b"NaN", None, "want a finite number"),
        (b'{"reward": true}', None, "want a finite number"),
        (b'{"a": 1, "b": 0}', None, "without 'reward'; it has: a, b"),
        (b"{}", None, "it has: nothing"),
        (b"[1]", None, "want a finite number"),
    ],
)
def test_what_is_no_reward_is_none(as_json: bytes | None, as_text: bytes | None, words: str) -> None:
    with pytest.raises(EnvError, match=words):
        reward_of(as_json, as_text, "the tests")
