"""A key, a password or a token reaches no file, page, log or tracking service of a run."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.secrets import check_secrets, with_secrets
from agentrl.errors import ConfigError

CANARY = "canary-7fd1c0ffee"
ENV = """
import os
from agentrl import Env, tool

class Searching(Env):
    api_key: str = ""
    variables: dict = {}
    example_rows = ({"problem": "1*2+3", "answer": "5"}, {"problem": "2*3+4", "answer": "10"})
    required_fields = ("problem", "answer")
    system_prompt = ""

    async def setup(self):
        # They arrive: the environment can use what no file holds.
        assert self.api_key == self.variables["SEARCH_TOKEN"] == os.environ["SEARCH_KEY"], "not read"
        self.session = await self.sandbox.open()

    def prompt(self, row):
        return row["problem"]

    @tool
    async def python(self, code: str) -> str:
        "Run Python."
        return (await self.session.run("import os\\nprint(dict(os.environ))\\n" + code)).text

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])
"""
SETTINGS = ("--env.settings.api_key=$SEARCH_KEY", '--env.settings.variables={"SEARCH_TOKEN": "$SEARCH_KEY"}')
NAMES = (
    "SEARCH_KEY",
    "HF_TOKEN",
    "OPENAI_API_KEY",
    "AGENTRL_PARTNER_KEY",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
)
TRACKERS = [name for name in ("tensorboard", "wandb") if importlib.util.find_spec(name)]


SECRET = (
    "openai_key",
    "private_key",
    "slack_token",
    "refresh_token",
    "GH_PAT",
    "apiKey",
    "authToken",
    "db_pwd",
)
DATA = (
    "key",
    "sort_key",
    "answer_key",
    "eos_token",
    "stop_token",
    "tokenizer",
    "max_tokens",
    "prompt_tokens",
)
DATA += ("token_ids", "keyboard", "path", "patience", "compatible", "key_variable", "public_key", "meta_key")


def of_env(name: str = "env.py", /, **settings: Any) -> dict[str, Any]:
    return {"env": ({"name": name, "settings": settings},)}


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            yield path, gzip.decompress(data) if path.suffix == ".gz" else data


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_no_secret_reaches_a_sink(tmp_path: Path):
    pytest.importorskip("torch", reason="it trains (pip install agentrl[train])")
    (tmp_path / "env.py").write_text(ENV)
    environment = {
        **os.environ,
        **dict.fromkeys(NAMES, CANARY),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }

    def agentrl(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "agentrl.cli.main", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=130,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    trackers = [f"--run.trackers={json.dumps(TRACKERS)}"]
    told = agentrl("train", "env.py", "--steps=2", "--name=run", "--checkpoint.every=1", *SETTINGS, *trackers)
    told += agentrl("train", "--resume", "runs/run", "--run.steps=3", "--env.settings.api_key=$SEARCH_KEY")
    told += agentrl(
        "eval", "runs/run", "--data", "env:example_rows", "--out", "evals/a", "--env", "env.py", *SETTINGS
    )
    (tmp_path / "told.txt").write_text(told)
    found = dict(contents(tmp_path))
    for name in ("config.toml", "settings.jsonl", "run.json", "metrics.jsonl", "report.html", "ledger.jsonl"):
        assert tmp_path / "runs" / "run" / name in found
    assert any("episodes" in path.parts for path in found)
    assert any("evals" in path.parts for path in found)
    assert [str(path) for path, data in found.items() if CANARY.encode() in data] == []
    assert b"$SEARCH_KEY" in found[tmp_path / "runs" / "run" / "config.toml"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env": ({"settings": {"api_key": CANARY}},)}, "env.settings.api_key would be written"),
        (
            {"env": ({"settings": {"headers": {"Authorization": f"Bearer {CANARY}"}}},)},
            "headers.Authorization",
        ),
        ({"env": ({"settings": {"variables": {"HF_TOKEN": CANARY}}},)}, "variables.HF_TOKEN"),
        ({"endpoint": {"body": {"note": "sk-" + CANARY * 2}}}, "what looks like a key"),
        ({"rollout": {"partner_url": f"https://me:{CANARY}@host/v1"}}, "the URL holds a password"),
        ({"engine": {"args": ("--api-key", CANARY)}}, "engine.args"),
        (of_env(password=f"{CANARY}$two"), "settings.password"),
        (of_env(password=f"$KEY{CANARY}"), "settings.password"),
        (of_env(password=f"{CANARY} $KEY"), "settings.password"),
        (of_env(note=f"sk-{CANARY * 2}$y"), "what looks like a key"),
        (of_env(note=f"github_pat_{'Canary7' * 4}"), "what looks like a key"),
        (of_env(credentials={"user": CANARY}), "credentials.user"),
        (of_env(password=71), "settings.password"),
        (of_env(address=f"https://me:{CANARY}$word@host/"), "the URL holds a password"),
        (of_env(address=f"https://host/?a=1&sig={CANARY}"), "the URL holds a key"),
        (of_env(args=["-H", f"Authorization: Bearer {CANARY}"]), "an argument"),
        (of_env(args=[f"--api-key={CANARY}"]), "an argument"),
        (of_env(f"mcp:https://host/mcp?api_key={CANARY}"), "env.name .*the URL holds a key"),
        (of_env(f"mcp:npx server --api-key '{CANARY}'"), "env.name .*an argument"),
        (of_env(f"mcp:env GH_PAT={CANARY} npx server"), "env.name .*an argument"),
        (of_env(command=f"agent --token {CANARY}"), "settings.command .*an argument"),
        ({"rollout": {"partner_url": "https://me:$KEY@host/v1"}}, "no \\$NAME is read there"),
        ({"endpoint": {"body": {"api_key": "$KEY"}}}, "no \\$NAME is read there"),
        *((of_env(**{name: CANARY}), f"settings.{name}") for name in SECRET),
    ],
)
def test_a_secret_as_it_is_is_refused_and_not_shown(settings: dict, words: str):
    with pytest.raises(ConfigError, match=words) as refused:
        check_secrets(settings)
    assert not re.search(f"{CANARY}|Canary7|71", str(refused.value))
    assert "$NAME" in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        of_env(args=["--api-key", "$KEY"]),
        of_env(args=["--api-key=${KEY}", "-H", "Authorization: Bearer $KEY"]),
        of_env(address="https://me:$KEY@host/?token=$KEY&page=2"),
        of_env("mcp:https://host/mcp?api_key=$KEY"),
        of_env("mcp:npx server --api-key $KEY --max-tokens 5 --sort-key name"),
        of_env(system_prompt="A password: say it. The token is next; see https://host/a?page=2&key_of=b"),
        of_env(use_auth_token=True, price_per_token=0.1, key={"a": "b"}, rows=[{"key": "a"}]),
        of_env(**dict.fromkeys(DATA, "a")),
        {"engine": {"args": ("--hf-token", "$KEY", "--tokenizer", "a")}},
        {"env": ({"settings": {"api_key": "$KEY", "headers": {"Authorization": "Bearer $KEY"}}},)},
        {"env": ({"settings": {"api_key": ""}},)},
        {"endpoint": {"key_variable": "OPENAI_API_KEY"}, "rollout": {"max_tokens": 5}},
        {
            "tracker": {"clock_tokens": 2048},
            "engine": {"args": ("--max-num-seqs", "8"), "urls": ("http://h:1",)},
        },
    ],
)
def test_what_is_no_secret_is_let_through(settings: dict):
    check_secrets(settings)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SEARCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="SEARCH_KEY, which is not set"):
        with_secrets({"api_key": "$SEARCH_KEY"})
    monkeypatch.setenv("SEARCH_KEY", "k")
    given = {"api_key": "${SEARCH_KEY}", "text": "$SEARCH_KEY", "headers": {"cookie": "$SEARCH_KEY"}}
    assert with_secrets(given, ("headers",)) == {**given, "api_key": "k"}
    assert with_secrets(given)["headers"] == {"cookie": "k"}


def test_variables_are_read_wherever_the_gate_lets_them_through(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEARCH_KEY", "k$x")
    written: dict[str, Any] = {
        "args": ["--api-key", "$SEARCH_KEY", "--name", "$SEARCH_KEY", "--token=$SEARCH_KEY"],
        "address": "https://me:$SEARCH_KEY@host/?page=$SEARCH_KEY&sig=${SEARCH_KEY}",
        "judge": {"authorization": "Bearer $SEARCH_KEY", "api_keys": ("$SEARCH_KEY",)},
        "credentials": {"user": "$SEARCH_KEY"},
    }
    check_secrets(of_env(**written))
    assert with_secrets(written) == {
        "args": ["--api-key", "k$x", "--name", "$SEARCH_KEY", "--token=k$x"],
        "address": "https://me:k$x@host/?page=$SEARCH_KEY&sig=k$x",
        "judge": {"authorization": "Bearer k$x", "api_keys": ("k$x",)},
        "credentials": {"user": "k$x"},
    }
    monkeypatch.delenv("SEARCH_KEY")
    for name, value in written.items():
        with pytest.raises(ConfigError, match="SEARCH_KEY, which is not set"):
            with_secrets({name: value})


def test_a_class_is_loaded_with_what_the_variables_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from agentrl.config.settings import EnvSettings
    from agentrl.tasks.task import env_class
    from agentrl_envs import EnvError
    from agentrl_envs.isolation import end_hosts

    file = tmp_path / "loading.py"
    file.write_text(
        "from agentrl_envs import Env, EnvError\n"
        "class Loading(Env):\n"
        "    api_key: str = ''\n"
        "    @classmethod\n"
        "    def check_settings(cls, settings):\n"
        "        if settings['api_key'] != 'the key':\n"
        "            raise EnvError('loaded with ' + settings['api_key'])\n"
        "        return dict(settings)\n"
        "    def prompt(self, row): return ''\n"
        "    def reward(self, row, answer): return 0.0\n"
    )
    monkeypatch.setenv("SEARCH_KEY", "the key")
    named = EnvSettings(name=str(file), settings={"api_key": "$SEARCH_KEY"}, isolation="process")
    try:
        loaded = env_class(named.name, named.settings, named)
        assert loaded.__name__ == "Loading"
        assert "the key" not in repr(vars(loaded)) + repr(loaded.hosts)
        monkeypatch.setenv("SEARCH_KEY", CANARY)
        with pytest.raises(EnvError, match=r"loaded with \$SEARCH_KEY$"):
            env_class(named.name, named.settings, named)
    finally:
        end_hosts()
    assert named.settings == {"api_key": "$SEARCH_KEY"}
    monkeypatch.delenv("SEARCH_KEY")
    with pytest.raises(ConfigError, match="api_key is read from the variable SEARCH_KEY, which is not set"):
        env_class("arithmetic", named.settings, EnvSettings())


def test_a_run_with_a_secret_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from agentrl.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "env.py").write_text(ENV)
    assert main(["train", "env.py", f"--env.settings.api_key={CANARY}"]) == 1
    told = capsys.readouterr()
    assert "env.settings.api_key would be written" in told.err
    assert CANARY not in told.err + told.out
    assert not (tmp_path / "runs").exists()
    assert main(["train", f"trl:missing.py --token {CANARY}"]) == 1
    told = capsys.readouterr()
    assert "env.name would be written" in told.err
    assert CANARY not in told.err + told.out


def test_what_a_page_is_served_from_holds_none(tmp_path: Path):
    # The class may have read its key itself: then it is no setting that was written, and none is shown.
    from agentrl.tasks.task import Task
    from agentrl.training.settings_log import describe_tasks
    from agentrl_envs import Env

    class Holding(Env):
        api_key: str = CANARY

    (row,) = describe_tasks([Task("holding", Holding, {}, 1.0, ({"id": "1"},))])
    assert CANARY not in json.dumps(row)


def test_serving_runs_reads_variables_before_it_listens(monkeypatch: pytest.MonkeyPatch, capsys):
    from agentrl.cli.main import main

    monkeypatch.delenv("SEARCH_KEY", raising=False)
    monkeypatch.delenv("AGENTRL_ENV_KEY", raising=False)  # without which it serves nothing in any case
    words = ["serve", "arithmetic", "--serve.address=127.0.0.1:0", "--env.settings.api_key=$SEARCH_KEY"]
    assert main(words) == 1
    assert "api_key is read from the variable SEARCH_KEY, which is not set" in capsys.readouterr().err


def test_no_example_is_taken_for_a_secret():
    from dataclasses import asdict

    from agentrl.config.loading import load_settings

    files = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
    assert files
    for file in files:
        check_secrets(asdict(load_settings(file)))
