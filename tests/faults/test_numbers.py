"""Numbers mean what their names say: in settings, in rows of metrics, and in what a control compares."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="runs train (pip install agentrl[train])")

import agentrl as package
from agentrl_envs import Env, Transcript

pytestmark = pytest.mark.timeout(300)

Command = Callable[..., tuple[int, str, str]]
MODEL = Path(package.__file__).parent / "demo" / "model"
TAKE_SETTINGS = ("eval", "sft", "check")
"""Commands whose options are settings: a wrong one is an error of settings, not of usage."""
SMALL = (
    *("--stream.batch=4", "--rollout.format=code", "--rollout.max_tokens=16", "--engine.context_tokens=256"),
    *("--engine.slots=8", "--model.threads=1", f"--model.path={MODEL}", "--model.device=cpu", "--quiet"),
)
GAME = """
from agentrl import Env


class Game(Env):
    reward_range = {range}

    def prompt(self, row):
        if row["id"] in row.get("broken", ()):
            raise RuntimeError("this row is broken")
        return row["problem"]

    def reward(self, row, answer):
        low, high = self.reward_range
        return (low, high)[len(answer or "") % 2]
"""


def prepare(folder: Path, name: str = "game.py", range_: str = "(0.0, 1.0)", broken: int = 0) -> None:
    """An environment file and 8 rows, the first of which are broken."""
    (folder / name).write_text(GAME.format(range=range_))
    ids = [f"p{number}" for number in range(8)]
    rows = [{"id": one, "problem": f"{one} + 1 =", "broken": ids[:broken]} for one in ids]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def train(agentrl: Command, folder: Path, *flags: object) -> Path:
    code, _, errors = agentrl("train", "game.py", "--data", "rows.jsonl", "--name", "run", *SMALL, *flags)
    assert code == 0, errors
    return folder / "runs" / "run"


# ---- controls and samplers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [("(0.0, 1.0)", "(-1.0, 1.0)"), ("(0.0, 10.0)", "(-5.0, 0.0)")])
def test_shuffled_rewards_of_mixed_ranges_stay_in_the_range_of_their_environment(
    ranges: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentrl.config.loading import load_settings
    from agentrl.training.train import Options
    from agentrl.training.train import train as train_run

    monkeypatch.chdir(tmp_path)
    for name, range_ in zip(("game.py", "other.py"), ranges, strict=True):
        prepare(tmp_path, name, range_)
    (tmp_path / "run.toml").write_text('[[env]]\nname = "game.py"\n[[env]]\nname = "other.py"\n')
    flags = ["--run.steps=3", "--run.name=run", "--data.train=rows.jsonl", *SMALL[:-1]]
    train_run(load_settings(tmp_path / "run.toml", flags), Options(shuffle_rewards=True))
    steps = rows_of(tmp_path / "runs" / "run", "step")
    assert [row["step"] for row in steps] == [1, 2, 3]
    # Half of the answers earn the least reward of their environment and half the greatest, whoever gets them.
    assert all(0.0 <= row["score_mean"] <= 1.0 for row in steps if "score_mean" in row)


@pytest.mark.parametrize("broken", [2, 4])
def test_prompts_are_drawn_while_any_can_be(broken: int, tmp_path: Path, agentrl: Command) -> None:
    prepare(tmp_path, broken=broken)
    run = train(agentrl, tmp_path, "--steps=6", "--run.deterministic=true")
    last = rows_of(run, "step")[-1]
    assert last["step"] == 6
    played = {json.loads(line)["p"] for line in ledger_of(run) if json.loads(line)["e"] == "pending"}
    assert {f"p{number}" for number in range(broken, 8)} <= played


def ledger_of(run: Path) -> list[str]:
    found: list[str] = []
    for line in (run / "ledger.jsonl").read_text().splitlines():
        found += [json.dumps(one) for one in json.loads(line).get("of", [])] or [line]
    return found


# ---- a resumed run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_steps_that_are_done_again_count_their_tokens_as_before(
    deterministic: str, whole: bool, tmp_path: Path, agentrl: Command
) -> None:
    # Where the files of the steps are whole, their batches are learned from again and no row is written twice.
    prepare(tmp_path)
    flags = ("--steps=4", "--checkpoint.every=2", f"--run.deterministic={deterministic}")
    run = train(agentrl, tmp_path, *flags)
    shutil.rmtree(run / "checkpoints" / "step_000004")
    if not whole:
        for path in (run / "steps").iterdir():
            path.unlink()
    code, _, errors = agentrl("train", "--resume", run, "--steps=5", "--quiet")
    assert code == 0, errors
    rows = rows_of(run, "step")
    first, again = ([row for row in rows if row["attempt"] == attempt] for attempt in (1, 2))
    assert [row["step"] for row in again] == ([5] if whole else [3, 4, 5])
    if deterministic == "true" and not whole:
        # What was generated before the interruption counts from the first row on; nothing counts twice.
        assert again[0]["tokens_generated"] == again[1]["tokens_generated"] == first[3]["tokens_generated"]
    counts = [row["tokens_generated"] for row in ([*first, *again] if whole else again)]
    assert counts == sorted(counts)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tokens"] == counts[-1] or summary["tokens"] > counts[-1]
    assert summary["tokens_learned"] <= summary["tokens"]


# ---- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "range_"),
    [
        ("--learner.learning_rate=nan", "finite and at least 0"),
        ("--learner.learning_rate=-1e-9", "at least 0"),
        ("--learner.betas=[0.9, 2]", "at least 0 and below 1"),
        ("--learner.betas=[-0.1, 0.9]", "at least 0 and below 1"),
        ("--rollout.temperature=inf", "finite and above 0"),
        ("--rollout.temperature=0", "above 0"),
        ("--rollout.max_tokens=0", "at least 1"),
        ("--stream.batch=-4", "at least"),
        ("--learner.clip_low=nan", "learner.clip_low"),
        ("--run.steps=-1", "at least 0"),
    ],
)
def test_dry_run_refuses_a_number_outside_of_its_range(
    flag: str, range_: str, tmp_path: Path, agentrl: Command
) -> None:
    prepare(tmp_path)
    code, out, errors = agentrl("train", "game.py", "--data", "rows.jsonl", *SMALL, "--dry-run", flag)
    assert (code, out) == (1, "")
    assert range_ in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "model", "--limit", "-3"),
        ("eval", "model", "--samples", "-1"),
        ("eval", "model", "--temperature", "inf"),
        ("eval", "model", "--seed", "-1"),
        ("check", "game.py", "--limit", "-2"),
        ("sft", "t.jsonl", "--model", "m", "--out", "o", "--epochs", "-1"),
    ],
)
def test_a_flag_outside_of_its_range_is_refused(arguments: tuple[str, ...], agentrl: Command) -> None:
    code, _, errors = agentrl(*arguments)
    assert code == (1 if arguments[0] in TAKE_SETTINGS else 2)
    assert arguments[-2].lstrip("-").replace("-", "_") in errors.replace("-", "_")
    assert "must be" in errors


def test_no_rollouts_are_played_for_initial_values_unless_they_are_asked_for(
    tmp_path: Path, agentrl: Command
) -> None:
    prepare(tmp_path)
    run = train(agentrl, tmp_path, "--steps=1")
    assert "initial_rollouts = 0" in (run / "config.toml").read_text()
    assert rows_of(run, "initial") == []
    assert json.loads((run / "summary.json").read_text())["episodes_initial"] == 0


def test_what_initial_values_cost_is_said_before_it_is_paid(tmp_path: Path, agentrl: Command) -> None:
    prepare(tmp_path)
    asked = ("--tracker.initial_rollouts=5", "--steps=1")
    code, _, errors = agentrl("train", "game.py", "--data", "rows.jsonl", *SMALL, *asked, "--dry-run")
    assert code == 0
    assert "40 episodes are played for initial values" in errors
    assert not (tmp_path / "runs").exists()


# ---- many at once ------------------------------------------------------------------------------------------


class Idle(Env):
    """Sync hooks, none of which keeps anything but data."""

    def setup(self) -> None:
        self.seen = [1, {"a": "b"}]

    def prompt(self, row: Any) -> str:
        return "?"

    def reward(self, row: Any, answer: str | None) -> float:
        return 1.0

    def close(self) -> None:
        self.seen = []


async def test_thousands_of_episodes_need_few_threads_and_all_of_them_close() -> None:
    most = 0

    async def play() -> float:
        nonlocal most
        env = Idle()
        await env.start({})
        await asyncio.sleep(0.5)
        most = max(most, threading.active_count())
        reward = await env.score({}, "42", Transcript())
        await asyncio.wait_for(env.aclose(), 100)
        return reward.value

    assert await asyncio.gather(*(play() for _ in range(1500))) == [1.0] * 1500
    assert most < 300


class Bound(Env):
    """Keeps what only the thread that made it may use."""

    def setup(self) -> None:
        import sqlite3

        self.db = sqlite3.connect(":memory:")

    def prompt(self, row: Any) -> str:
        self.db.execute("create table t (x)")
        return "?"

    def reward(self, row: Any, answer: str | None) -> float:
        self.db.execute("insert into t values (1)")
        return float(self.db.execute("select count(*) from t").fetchone()[0])

    def close(self) -> None:
        self.db.close()


class Local(Bound):
    """Keeps it where no thread but its own sees it."""

    own = threading.local()

    def setup(self) -> None:
        import sqlite3

        self.kept = {"deep": [sqlite3.connect(":memory:")]}
        self.db = self.kept["deep"][0]


@pytest.mark.parametrize("kind", [Bound, Local])
async def test_an_environment_that_keeps_a_connection_keeps_its_thread(kind: type[Env]) -> None:
    async def play() -> float:
        env = kind()
        await env.start({})
        await asyncio.sleep(0.05)
        reward = await env.score({}, "42", Transcript())
        await env.aclose()
        return reward.value

    assert await asyncio.gather(*(play() for _ in range(60))) == [1.0] * 60


class Stuck(Idle):
    """Never returns in some of its episodes."""

    hook_timeout_s = 2.0

    def prompt(self, row: Any) -> str:
        if row["stuck"]:
            threading.Event().wait(60)
        return "?"


async def test_what_never_returns_costs_its_own_episode_only() -> None:
    async def play(stuck: bool) -> str:
        env = Stuck()
        try:
            await env.start({"stuck": stuck})
        except package.EnvError as error:
            return str(error)
        finally:
            await env.aclose()
        return "played"

    told = await asyncio.gather(*(play(number % 4 == 0) for number in range(200)))
    assert told.count("played") == 150
    assert sum("Stuck.prompt did not return within 2 s" in one for one in told) == 50
