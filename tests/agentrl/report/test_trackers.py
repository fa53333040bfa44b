"""Tracking services: the real packages, offline, read back; the same run after a resume; secrets stay here."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import ConfigError
from agentrl.report import trackers
from agentrl.report.trackers import Tracker, episode_rows, numbers_of, public_settings, without_secrets
from agentrl.storage.run_folder import RunFolder
from tests.agentrl.report.run_files import evaluation_row, step_row, write_run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(write_run(tmp_path / "one"))


def send(name: str, folder: RunFolder, versions: range) -> None:
    """One attempt of a run: steps, and an evaluation at its end."""
    tracker = Tracker(name, folder, "agentrl-test")
    for version in versions:
        tracker(step_row(version))
    tracker(evaluation_row(versions[-1], 0.5))
    tracker({"kind": "progress", "done": 1})
    tracker.close()
    tracker.close()


def test_numbers_have_the_names_of_their_rows():
    row = {
        "kind": "step",
        "loss": 0.5,
        "bad": float("nan"),
        "on": True,
        "environments": {"sums": {"score_mean": 1}},
    }
    assert numbers_of(row, "train") == {"train/loss": 0.5, "train/environments/sums/score_mean": 1}


def test_secrets_are_no_settings(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(
        '[rollout]\nmax_tokens = 64\n\n[[env]]\napi_key = "sk-1"\nurl = "x"\nhf_token = "hf"\ntoken = ""\n'
    )
    assert public_settings(path) == {
        "rollout": {"max_tokens": 64},
        "env": [{"api_key": "***", "url": "x", "hf_token": "***", "token": ""}],
    }
    assert without_secrets({"clock_tokens": 5, "password": "p"}) == {"clock_tokens": 5, "password": "***"}


def test_episodes_become_rows(folder: RunFolder):
    rows = episode_rows(folder.episodes)
    assert [row[0] for row in rows] == [f"t{number}" for number in range(18, 26)]
    assert rows[0][4].splitlines()[-2:] == ["[python] 5", "The sum is $2 + 3 = 5$, so \\boxed{5}"]


def test_no_service_is_imported_unless_it_is_named():
    code = "import sys, agentrl.training.assembly, agentrl.report.trackers; print([m for m in ('wandb', 'trackio', 'tensorboard', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_that_is_missing_is_named(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        Tracker("wandb", folder, "x")


def test_a_service_that_fails_never_ends_a_run(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog):
    class Broken:
        def __init__(self, *_: object) -> None: ...

        def log(self, step: int, numbers: object) -> None:
            raise ConnectionError("the service is away")

    monkeypatch.setitem(trackers.SERVICES, "wandb", Broken)
    tracker = Tracker("wandb", folder, "x")
    tracker(step_row(1))
    tracker(step_row(2))
    tracker.close()
    assert [record.message for record in caplog.records] == [
        "the tracker wandb failed and is left out from now on: ConnectionError('the service is away')"
    ]


def test_a_service_that_says_nothing_holds_up_nobody(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog
):
    """Fails when rows are sent where they are told: the first one would wait for the service for ever."""
    silent, told = threading.Event(), []

    class Silent:
        def __init__(self, *_: object) -> None: ...

        def log(self, step: int, numbers: object) -> None:
            told.append(threading.current_thread().name)
            silent.wait(20.0)

    monkeypatch.setitem(trackers.SERVICES, "wandb", Silent)
    tracker = Tracker("wandb", folder, "x", limit_s=0.2)
    tracker(step_row(1))
    tracker(step_row(2))
    tracker.close()
    silent.set()
    assert [record.message for record in caplog.records] == [
        "the tracker wandb did not take the last rows within 0.2 s; metrics.jsonl has them all"
    ]
    assert told[0] == "agentrl-tracker-wandb"


def test_a_service_that_does_not_start_is_waited_for_so_long(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    late = threading.Event()
    monkeypatch.setitem(trackers.SERVICES, "mlflow", lambda *_: late.wait(20.0))
    with pytest.raises(ConfigError, match=r"'mlflow' did not start within 0.2 s: is its server reachable"):
        Tracker("mlflow", folder, "x", limit_s=0.2)
    late.set()


def test_tensorboard_reads_what_was_written(folder: RunFolder):
    pytest.importorskip("tensorboard")
    send("tensorboard", folder, range(1, 4))
    send("tensorboard", folder, range(4, 6))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/score_mean")]
    assert steps == [1, 2, 3, 4, 5]
    assert events.Scalars("eval/reward_mean")[-1].value == pytest.approx(0.5)
    assert b"so \\boxed{5}" in events.Tensors("episodes")[0].tensor_proto.string_val[0]


# The others bring servers and threads of their own: each in a process of its own, which must end well.
ATTEMPT = """
import sys
from pathlib import Path
from agentrl.storage.run_folder import RunFolder
from tests.agentrl.report.test_trackers import send
send(sys.argv[1], RunFolder(Path(sys.argv[2])), range(int(sys.argv[3]), int(sys.argv[4])))
"""


def read_back(code: str) -> Any:
    """What a program of its own prints as JSON in its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def attempt_twice(name: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Two attempts of a run, of three steps and of the two that follow."""
    for key, value in (("WANDB_MODE", "offline"), ("TRACKIO_DIR", str(home)), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    monkeypatch.setenv("WANDB_SILENT", "true")
    root = Path(__file__).parents[3]
    paths = [*map(str, (root, root / "envs", root / "sandbox")), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(paths)
    )  # the working folder is where mlflow keeps tables
    for steps in (("1", "4"), ("4", "6")):
        given = [sys.executable, "-c", ATTEMPT, name, str(folder.path), *steps]
        done = subprocess.run(given, capture_output=True, text=True, cwd=home)
        assert done.returncode == 0, done.stderr
        assert "left out from now on" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wandb_offline_writes_one_run(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("wandb")
    attempt_twice("wandb", folder, monkeypatch, tmp_path)
    files = sorted((folder.path / "wandb").glob("offline-run-*/run-abc.wandb"))
    assert len(files) == 2  # one id: `wandb sync` makes one run of both
    assert b"train/score_mean" in files[0].read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trackio_reads_what_was_written(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("trackio")
    home = tmp_path / "trackio"
    home.mkdir()
    attempt_twice("trackio", folder, monkeypatch, home)
    code = "import json; from trackio.sqlite_storage import SQLiteStorage as S; print(json.dumps(S.get_logs('agentrl-test', 'one-abc'), default=str))"
    assert [row["step"] for row in read_back(code) if "train/score_mean" in row] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlflow_reads_what_was_written(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("mlflow")
    attempt_twice("mlflow", folder, monkeypatch, tmp_path)
    code = (
        "import json, mlflow; runs = mlflow.search_runs(experiment_names=['agentrl-test'], output_format='list'); "
        "h = mlflow.MlflowClient().get_metric_history(runs[0].info.run_id, 'train/score_mean'); "
        "print(json.dumps([len(runs), sorted(m.step for m in h)]))"
    )
    assert read_back(code) == [1, [1, 2, 3, 4, 5]]
