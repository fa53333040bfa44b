"""The machine breaks for a while, or leaves half of something on the disk: the run goes on, or says one sentence.

One run is killed in the middle by SIGKILL; each case damages a copy of its folder and resumes it. Outages are of
an environment file whose service is down for a while. Everything is a person's command, on the bundled model.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentrl as package
from agentrl.storage.checkpoint import read_state
from agentrl.storage.nested import to_bytes

pytestmark = pytest.mark.timeout(240)

MODEL = Path(package.__file__).parent / "demo" / "model"
ENVIRONMENT = '''
import os
import signal

from agentrl_envs import Env, SandboxFailure


class Service(Env):
    """Needs a service that is down for a number of uses, or for ever."""

    max_turns = 1
    calls = 0

    def need(self, place):
        if place != os.environ.get("DOWN_WHERE"):
            return
        kind = type(self)
        kind.calls += 1
        if 0 <= kind.calls - int(os.environ["DOWN_AT"]) < int(os.environ["DOWN_FOR"]):
            raise {"sandbox": SandboxFailure, "hang": TimeoutError}.get(place, ConnectionError)("the service is down")

    async def setup(self):
        for place in ("setup", "sandbox", "hang"):
            self.need(place)

    def prompt(self, row):
        self.need("prompt")
        if row["id"] in os.environ.get("BROKEN_ROWS", "").split():
            raise RuntimeError("this row is broken")
        return row["problem"]

    def reward(self, row, answer):
        self.need("reward")
        if "KILL_AFTER" in os.environ:
            with open("runs/run/ledger.jsonl") as ledger:
                if ledger.read().count("learned") >= int(os.environ["KILL_AFTER"]):
                    os.kill(os.getpid(), signal.SIGKILL)
        return len(answer or "") % 2
'''
SETTINGS = (
    *("--stream.batch=4", "--rollout.format=code", "--rollout.max_tokens=16", "--engine.context_tokens=256"),
    *("--engine.slots=8", "--model.threads=1", "--tracker.clock_tokens=16"),
    *("--checkpoint.every=2", f"--model.path={MODEL}", "--model.device=cpu", "--quiet"),
)
RUN = "sys.exit(next(iter(m.entry_points(group='console_scripts', name='agentrl'))).load()())"
PROGRAM = (
    sys.executable,
    "-c",
    f"import sys, importlib.metadata as m; {RUN}",
)
Command = Callable[..., tuple[int, str, str]]


def prepare(folder: Path, name: str = "service.py") -> Path:
    """An environment file and 12 rows in a folder."""
    (folder / name).write_text(ENVIRONMENT)
    rows = [json.dumps({"id": f"p{number}", "problem": f"{number} + 1 ="}) for number in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(run: Path) -> Iterator[dict[str, Any]]:
    for line in lines(run / "ledger.jsonl"):
        yield from line.get("of", [line])


def check_ledger(run: Path, steps: int, batch: int = 4) -> Counter[str]:
    """Every episode ended in one state, and every step learned from one whole batch; returns the states."""
    state: dict[str, str] = {}
    batches: dict[int, list[str]] = {}
    for event in events(run):
        if event["e"] == "attempt":
            for version in [version for version in batches if version >= event["v"]]:
                state.update(dict.fromkeys(batches.pop(version), "finished"))
        elif event["e"] == "learned":
            assert not set(event["ks"]) & {key for keys in batches.values() for key in keys}
            batches[event["v"]] = event["ks"]
            state.update(dict.fromkeys(event["ks"], "learned"))
        elif event["e"] != "forgiven":
            state[event["k"]] = event["e"]
    assert sorted(batches) == list(range(steps))
    assert {len(keys) for keys in batches.values()} == {batch}
    assert set(state.values()) <= {"learned", "failed", "discarded", "abandoned"}
    recorded = {row["step"] for row in lines(run / "metrics.jsonl") if row["kind"] == "step"}
    assert recorded == set(range(1, steps + 1))
    return Counter(state.values())


def nothing_half(run: Path) -> None:
    """No folder or file of a write that was cut off is left."""
    left = [path for path in run.rglob(".*") if path.name.endswith((".tmp", ".old"))]
    assert not left


@pytest.fixture(scope="module")
def stranger() -> Iterator[None]:
    """A process below this one whose name is not UTF-8 and holds a parenthesis."""
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\xff) \\xfe( 1'); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code])
    yield
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, stranger: None) -> Path:
    """A folder with a run that was killed after its fifth step; it is resumed to its sixth."""
    folder = prepare(tmp_path_factory.mktemp("killed"))
    flags = ("--data", "rows.jsonl", "--steps", "20", "--name", "run")
    result = subprocess.run(
        [*PROGRAM, "train", "service.py", *flags, *SETTINGS],
        cwd=folder,
        env={**os.environ, "KILL_AFTER": "5"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    run = folder / "runs" / "run"
    assert sum(event["e"] == "learned" for event in events(run)) >= 5
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.name[0] != ".") == [
        "step_000002",
        "step_000004",
    ]
    return folder


@pytest.fixture
def copy(killed: Path, tmp_path: Path) -> Path:
    """The run of a copy of that folder."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "run"


def resume(agentrl: Command, run: Path, *flags: object, steps: int = 6) -> tuple[int, str]:
    code, _, errors = agentrl("train", "--resume", run, "--quiet", f"--steps={steps}", *flags)
    assert "Traceback" not in errors, errors
    return code, errors


def cut(path: Path, count: int, tail: bytes = b"") -> None:
    """Cut the last lines of a file off and put something in their place."""
    kept = path.read_bytes().splitlines(keepends=True)[:-count]
    path.write_bytes(b"".join(kept) + tail)


def newest_plain(run: Path) -> Path:
    """The newest file of episodes that has any; where all are packed, as if the run was killed before that."""
    folder = run / "episodes"
    plain = [path for path in folder.glob("*.jsonl") if path.stat().st_size]
    if not plain:
        packed = max(folder.glob("*.jsonl.gz"))
        plain = [packed.with_suffix("")]
        plain[0].write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    return max(plain)


def damage_line(path: Path, number: int) -> None:
    parts = path.read_bytes().splitlines(keepends=True)
    number = min(number, len(parts) - 1)  # the newest file may be young
    parts[number] = b"\0" * (len(parts[number]) - 1) + b"\n"
    path.write_bytes(b"".join(parts))


def pack_badly(run: Path) -> None:
    plain = newest_plain(run)
    packed = gzip.compress(plain.read_bytes())
    plain.with_suffix(".jsonl.gz").write_bytes(packed[: len(packed) // 2])
    plain.unlink()


TORN: dict[str, Callable[[Path], object]] = {
    "an episode's line": lambda run: cut(newest_plain(run), 1),
    "half of an episode's line": lambda run: cut(newest_plain(run), 1, b'{"format":1,"episode_id":"t'),
    "zeros at the end of the episodes": lambda run: cut(newest_plain(run), 3, b"\0" * 700 + b"\n"),
    "the newest episodes": lambda run: newest_plain(run).unlink(),
    "an episode in the middle": lambda run: damage_line(newest_plain(run), 2),
    "a packed file of episodes": pack_badly,
    "the ledger's last lines": lambda run: cut(run / "ledger.jsonl", 3),
    "half of the ledger's line": lambda run: cut(run / "ledger.jsonl", 1, b'{"e":"finis'),
    "zeros at the end of the ledger": lambda run: cut(
        run / "ledger.jsonl", 1, b"\0" * 50 + b"\n" + b"\0" * 9
    ),
    "a row of metrics": lambda run: cut(run / "metrics.jsonl", 1, b'{"kind":"st'),
    "metrics in the middle": lambda run: damage_line(run / "metrics.jsonl", 1),
    "everything's last line": lambda run: [
        cut(path, 1, b"\0\0") for path in (newest_plain(run), run / "ledger.jsonl", run / "metrics.jsonl")
    ],
}


@pytest.mark.parametrize("what", TORN)
def test_what_a_power_cut_tore_is_played_again(what: str, copy: Path, agentrl: Command) -> None:
    TORN[what](copy)
    code, errors = resume(agentrl, copy)
    assert code == 0, errors
    check_ledger(copy, 6) if "middle" not in what or "metrics" not in what else None
    nothing_half(copy)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data) // 3 + 40):
        data[place] ^= 0xFF
    path.write_bytes(data)


NEWEST = "checkpoints/step_000004"
DAMAGED: dict[str, Callable[[Path], object]] = {
    "state cut": lambda run: halve(run / NEWEST / "state.npz"),
    "state changed": lambda run: flip(run / NEWEST / "state.npz"),
    "buffer cut": lambda run: halve(run / NEWEST / "buffer.jsonl.gz"),
    "state empty": lambda run: (run / NEWEST / "state.npz").write_bytes(b""),
    "state gone": lambda run: (run / NEWEST / "state.npz").unlink(),
    "state without fields": lambda run: (run / NEWEST / "state.npz").write_bytes(to_bytes({"format": 2})),
    "learner cut": lambda run: halve(next((run / NEWEST / "learner").glob("*.safetensors"))),
    "learner empty": lambda run: next((run / NEWEST / "learner").glob("*.safetensors")).write_bytes(b""),
    "the learner gone": lambda run: shutil.rmtree(run / NEWEST / "learner"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    what: str, copy: Path, agentrl: Command, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGED[what](copy)
    code, errors = resume(agentrl, copy)
    assert code == 0, errors
    told = errors + caplog.text
    assert "step_000004" in told
    assert "going on from" in told
    assert "step_000002" in told
    assert (copy / "checkpoints" / "damaged_step_000004").exists()
    check_ledger(copy, 6)


def test_a_ledger_shorter_than_the_checkpoint_gives_way_to_the_one_before(
    copy: Path, agentrl: Command
) -> None:
    position = read_state(copy / NEWEST).light["ledger_position"]
    ledger = copy / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[: position - 5])
    code, errors = resume(agentrl, copy)
    assert code == 0, errors
    check_ledger(copy, 6)


def test_half_folders_of_a_killed_writer_are_swept(copy: Path, agentrl: Command) -> None:
    newest = copy / NEWEST
    shutil.copytree(newest, copy / "checkpoints" / ".step_000006.tmp")
    newest.rename(newest.with_name(".step_000004.old"))  # killed between the two renames
    code, errors = resume(agentrl, copy)
    assert code == 0, errors
    check_ledger(copy, 6)
    nothing_half(copy)


SENTENCES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "every checkpoint": (
        lambda run: [halve(path) for path in run.glob("checkpoints/*/state.npz")],
        ("no checkpoint can be loaded", "step_000002", "step_000004", "copy"),
    ),
    "the ledger in the middle": (
        lambda run: damage_line(run / "ledger.jsonl", 4),
        ("ledger.jsonl, line 5", "sed -i '5,$d'"),
    ),
    "settings": (lambda run: (run / "config.toml").write_bytes(b"[run\nsteps"), ("config.toml",)),
    "settings of zeros": (lambda run: (run / "config.toml").write_bytes(b"\0" * 99), ("config.toml",)),
    "identity": (lambda run: (run / "run.json").write_bytes(b""), ("run.json is damaged", "run_id")),
}


@pytest.mark.parametrize("what", SENTENCES)
def test_what_cannot_be_gone_round_is_one_sentence_with_the_remedy(
    what: str, copy: Path, agentrl: Command
) -> None:
    damage, words = SENTENCES[what]
    damage(copy)
    code, errors = resume(agentrl, copy)
    assert code == 1
    assert errors.count("error: ") == 1
    for word in words:
        assert word in errors


def test_the_remedy_for_a_damaged_ledger_works(copy: Path, agentrl: Command) -> None:
    count = len((copy / "ledger.jsonl").read_bytes().splitlines())
    damage_line(copy / "ledger.jsonl", count - 3)
    _, errors = resume(agentrl, copy)
    remedy = errors.split("`")[1]
    subprocess.run(remedy, shell=True, check=True)
    code, errors = resume(agentrl, copy)
    assert code == 0, errors
    check_ledger(copy, 6)


def test_two_processes_do_not_share_a_run(copy: Path, agentrl: Command) -> None:
    with (copy / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, errors = resume(agentrl, copy)
    assert code == 1
    assert "another process" in errors


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Stands for a full disk: no file grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [3_000_000, 7_000_000, 200_000])
def test_a_full_disk_leaves_nothing_half_and_the_run_goes_on_later(
    size: int, copy: Path, agentrl: Command
) -> None:
    # The model's weights take 4.9 MB and its optimizer twice that: each part of a checkpoint fails once.
    with file_limit(size):
        code, errors = resume(agentrl, copy)
    assert code == 1
    # At the start of a line: the disk's own words may have "error: " in them.
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1, errors
    assert "free some space" in errors
    assert "--resume" in errors
    nothing_half(copy)
    code, errors = resume(agentrl, copy)
    assert code == 0, errors
    check_ledger(copy, 6)


@pytest.mark.parametrize("size", [1_000, 200_000, 2_000_000])
@pytest.mark.parametrize("what", ["export", "sft"])
def test_a_full_disk_leaves_no_half_model(
    what: str, size: int, copy: Path, tmp_path: Path, agentrl: Command
) -> None:
    talk = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}]
    (tmp_path / "traces.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    told = {
        "export": ("export", copy, "made"),
        "sft": ("sft", "traces.jsonl", "--model", MODEL, "--out", "made", "--format=code", "--quiet"),
    }[what]
    with file_limit(size):
        code, _, errors = agentrl(*told)
    assert code == 1
    assert "Traceback" not in errors
    assert "free some space and run the same command again" in errors or size < 10_000  # cut off as well
    assert not list(tmp_path.glob("*made*"))
    code, _, errors = agentrl(*told)
    assert code == 0, errors
    assert (tmp_path / "made" / "config.json").exists()


def down(monkeypatch: pytest.MonkeyPatch, where: str, at: int, uses: int) -> None:
    """From its so-manieth use on, the service is down for so many uses."""
    for name, value in (("WHERE", where), ("AT", at), ("FOR", uses)):
        monkeypatch.setenv(f"DOWN_{name}", str(value))


def train(agentrl: Command, folder: Path, *flags: object) -> tuple[int, str, Path]:
    given = (*SETTINGS, *map(str, flags))
    code, _, errors = agentrl("train", "service.py", "--data", "rows.jsonl", "--name", "run", *given)
    assert "Traceback" not in errors, errors
    return code, errors, folder / "runs" / "run"


def one_outage(run: Path, *, failed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of the first outage of a run of five steps, which came back, and the rows of its steps."""
    assert check_ledger(run, 5)["failed"] < failed
    rows = lines(run / "metrics.jsonl")
    outages = [row for row in rows if row["kind"] == "outage"]
    states = [row["state"] for row in outages if row["state"] != "waiting"]
    assert states[:2] == ["paused", "back"]
    return outages[0], [row for row in rows if row["kind"] == "step"]


@pytest.mark.parametrize("where", ["prompt", "setup", "sandbox", "hang", "reward"])
def test_an_outage_pauses_dispatch_and_costs_no_prompt(
    where: str, tmp_path: Path, agentrl: Command, stranger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    # Those graded before the outage may end among its failures; eight in a row must come after the last of them.
    down(monkeypatch, where, 10, 18 if where == "reward" else 12)
    code, errors, run = train(agentrl, tmp_path, "--steps=5")
    assert code == 0, errors
    outage, steps = one_outage(run, failed=30)
    assert outage["environment"] == "service.py"
    assert outage["boundary"] == ("sandbox" if where == "sandbox" else "env")
    assert "the service is down" in outage["last"]
    assert steps[-1]["set_aside"] == {}
    assert steps[-1]["paused"] == {}
    assert steps[-1]["failed"] == {"service.py": steps[-1]["failures"]}


ENGINE = """
import itertools

from agentrl.errors import PolicyUnavailable
from agentrl.inference.embedded.engine import TransformersPolicy

ASKED = itertools.count()


class Unsteady(TransformersPolicy):
    def __init__(self, settings, source, tokenizer, logs):
        engine = settings.engine
        super().__init__(source, tokenizer, slots=engine.slots, context_tokens=engine.context_tokens)

    async def generate(self, *arguments, **options):
        if 14 <= next(ASKED) < 25:
            raise RAISED
        return await super().generate(*arguments, **options)
"""


@pytest.mark.parametrize(
    "raised", ["PolicyUnavailable('the engine is down')", "ConnectionRefusedError(111, 'refused')"]
)
def test_an_engine_that_is_down_pauses_dispatch_and_costs_no_prompt(
    raised: str, tmp_path: Path, agentrl: Command
) -> None:
    prepare(tmp_path)
    (tmp_path / "engine.py").write_text(ENGINE.replace("RAISED", raised))
    code, errors, run = train(agentrl, tmp_path, "--steps=5", "--engine.kind=engine.py:Unsteady")
    assert code == 0, errors
    outage, steps = one_outage(run, failed=40)
    assert outage["boundary"] == "policy"
    assert steps[-1]["set_aside"] == {}


def test_of_a_mixture_the_other_environment_goes_on(
    tmp_path: Path, agentrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, "other.py")
    (tmp_path / "other.py").write_text(ENVIRONMENT.replace("DOWN_WHERE", "NEVER_DOWN"))
    prepare(tmp_path)
    down(monkeypatch, "reward", 4, 14)
    (tmp_path / "run.toml").write_text(
        '[data]\ntrain = "rows.jsonl"\n[[env]]\nname = "service.py"\n[[env]]\nname = "other.py"\n'
    )
    code, _, errors = agentrl("train", "run.toml", "--name", "run", "--steps=8", *SETTINGS)
    assert code == 0, errors
    run = tmp_path / "runs" / "run"
    check_ledger(run, 8)
    rows = lines(run / "metrics.jsonl")
    kinds = [(row["kind"], row.get("environment"), row.get("state")) for row in rows]
    paused = kinds.index(("outage", "service.py", "paused"))
    assert "other.py" not in {row.get("environment") for row in rows if row["kind"] == "outage"}
    assert any(row["kind"] == "step" and row["paused"] == {"service.py": "env"} for row in rows[paused:])
    assert (
        "service.py is paused" in (run / "report.html").read_text()
        or (
            "outage",
            "service.py",
            "back",
        )
        in kinds
    )


def test_a_broken_row_is_set_aside_counted_and_brought_back(
    tmp_path: Path, agentrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.setenv("BROKEN_ROWS", "p10 p11")
    code, errors, run = train(agentrl, tmp_path, "--steps=24", "--run.deterministic=true")
    assert code == 0, errors
    step = [row for row in lines(run / "metrics.jsonl") if row["kind"] == "step"][-1]
    assert step["set_aside"] == {"service.py": 2}
    assert "set aside" in (run / "report.html").read_text()
    monkeypatch.delenv("BROKEN_ROWS")
    code, errors = resume(agentrl, run, "--forgive", steps=26)
    assert code == 0, errors
    row = next(row for row in lines(run / "metrics.jsonl") if row["kind"] == "forgiven")
    assert row["environments"] == {"service.py": 2}
    assert any(event["e"] == "forgiven" for event in events(run))
    check_ledger(run, 26)


def test_an_outage_without_end_stops_the_run_with_its_error_and_resume_goes_on(
    tmp_path: Path, agentrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    down(monkeypatch, "reward", 1, 10**9)
    code, errors, run = train(agentrl, tmp_path, "--steps=2", "--run.outage_limit_s=1")
    assert code == 1
    for word in ("nothing has worked", "the service is down", f"--resume runs/{run.name}"):
        assert word in errors
    monkeypatch.setenv("DOWN_WHERE", "nowhere")
    code, errors = resume(agentrl, run, steps=2)
    assert code == 0, errors
    check_ledger(run, 2)


def test_an_outage_in_initial_rollouts_loses_none(
    tmp_path: Path, agentrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    down(monkeypatch, "setup", 6, 10)
    code, errors, run = train(agentrl, tmp_path, "--steps=1", "--tracker.initial_rollouts=1")
    assert code == 0, errors
    initial = next(row for row in lines(run / "metrics.jsonl") if row["kind"] == "initial")
    assert initial["episodes"] == 12


SLOW_EVALUATION = """
import asyncio
import os
import signal
import threading

import torch
from agentrl_envs import Env


class Slow(Env):
    example_rows = ({"id": "a", "problem": "1 + 1 ="},)
    computing = False  # or asked to end

    def setup(self):
        if "NATIVE" in os.environ and not Slow.computing:
            Slow.computing = True
            threading.Thread(target=self.compute, daemon=True).start()

    def compute(self):
        matrix = torch.ones(100, 100)
        while True:
            matrix @ matrix

    async def prompt(self, row):
        if row["id"].startswith("held") and "SLOW" in os.environ:
            if not Slow.computing:  # a second signal would end the process at once
                Slow.computing = True
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(3600)
        return row["problem"]

    def reward(self, row, answer):
        return len(answer or "") % 2
"""


def test_a_run_that_is_asked_to_end_does_not_wait_for_an_evaluation(
    tmp_path: Path, agentrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW_EVALUATION)
    held = [json.dumps({"id": f"held{number}", "problem": f"{number} - 1 ="}) for number in range(4)]
    (tmp_path / "held.jsonl").write_text("\n".join(held))
    told = ("--eval.data=held.jsonl", "--eval.every=1", "--rollout.limit_s=1000", "--name", "run")
    # The first evaluation is of the untrained model: it is over before the service gets slow.
    code, _, errors = agentrl("train", "slow.py", "--data", "rows.jsonl", "--steps=1", *told, *SETTINGS)
    assert code == 0, errors
    run = tmp_path / "runs" / "run"
    monkeypatch.setenv("SLOW", "1")
    code, told_at_last = resume(agentrl, run, steps=4)
    assert code == 130
    assert "stopped at version 2" in told_at_last
    monkeypatch.delenv("SLOW")
    code, errors = resume(agentrl, run, steps=3)
    assert code == 0, errors
    assert [row["version"] for row in lines(run / "metrics.jsonl") if row["kind"] == "eval"] == [0, 1, 2, 3]


def test_threads_left_in_native_code_do_not_abort_the_end_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_EVALUATION)
    done = subprocess.run(
        [*PROGRAM, "check", "slow.py", "--sandbox=none", "--truth-reward=1"],
        cwd=tmp_path,
        env={**os.environ, "NATIVE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode in (0, 1)  # what the check finds is its own business
    assert "terminate called" not in done.stderr
    assert "check" in done.stdout + done.stderr


@pytest.mark.parametrize("where", ["setup", "prompt", "reward"])
def test_an_evaluation_pauses_in_an_outage_and_loses_no_answer(
    where: str,
    tmp_path: Path,
    agentrl: Command,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepare(tmp_path)
    down(monkeypatch, where, 14, 11)
    told = ("--env=service.py", "--data=rows.jsonl", "--samples=3", "--max-tokens=8", "--concurrency=4")
    code, out, errors = agentrl("eval", MODEL, *told, "--format=code", "--json", "--out=out")
    assert code == 0, errors
    assert json.loads(out)["table"]["counts"]["failed"] == 0
    told_meanwhile = errors + caplog.text
    assert "service.py is paused: its last 8 episodes failed" in told_meanwhile
    assert "service.py works again" in told_meanwhile


def test_an_evaluation_of_what_has_never_worked_is_told_so_soon(
    tmp_path: Path, agentrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    down(monkeypatch, "prompt", 1, 10**9)
    told = ("--env=service.py", "--data=rows.jsonl", "--samples=2", "--max-tokens=8", "--concurrency=24")
    code, _, errors = agentrl("eval", MODEL, *told, "--format=code", "--out=out")
    assert code == 1
    assert (
        "in a row failed, the last one at the env: EnvError: Service.prompt raised ConnectionError" in errors
    )
    assert "paused" not in errors


def test_forgive_without_a_run_says_what_it_is_for(agentrl: Command) -> None:
    code, _, errors = agentrl("train", "service.py", "--forgive")
    assert code == 1
    assert "--resume RUN" in errors
