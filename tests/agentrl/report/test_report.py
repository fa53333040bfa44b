"""The page of a run: complete in one file, safe against what models write, and made from half a run too."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest

from agentrl.cli.main import main
from agentrl.cli.view import find_run
from agentrl.errors import ConfigError
from agentrl.report import read_run, write_report
from agentrl.report.health import find_warnings, judge
from agentrl.report.report_data import EPISODES, choose_episodes
from agentrl.report.run_data import duration
from agentrl.report.run_view import RunView
from agentrl.report.runs import run_row
from agentrl.report.server import make_server
from tests.agentrl.report.run_files import BEGAN, HOSTILE, write_run

STEP = {
    "kind": "step",
    "step": 1,
    "version": 1,
    "attempt": 1,
    "time_s": 2.0,
    "learner_idle_s": 0.5,
    "episodes": 64,
    "reward_mean": 0.25,
    "score_mean": 0.25,
    "baseline_mean": 0.5,
    "staleness": {"0": 60, "1": 4},
    "importance_max": None,
    "loss": 0.123456789,
}
EVALUATION = {
    "kind": "eval",
    "step": 0,
    "version": 0,
    "reward_mean": 0.3,
    "interval": [0.25, 0.36],
    "episodes": 256,
}


def make_run(path: Path, rows: list[dict]) -> Path:
    (path / "episodes").mkdir(parents=True)
    (path / "run.json").write_text('{"format": 2, "run_id": "1"}')
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "config.toml").write_text("[run]\nsteps = 2\n")
    return path


def block(page: str, name: str) -> dict:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_run_becomes_columns_tiles_and_a_sentence(tmp_path: Path):
    second = STEP | {
        "step": 2,
        "version": 2,
        "time_s": 4.0,
        "learner_idle_s": 1.5,
        "episodes": 128,
        "loss": None,
    }
    last = EVALUATION | {"step": 2, "version": 2, "reward_mean": 0.97, "interval": [0.94, 0.98]}
    run = read_run(make_run(tmp_path / "a", [EVALUATION, STEP, second, last]))
    assert run["sentence"] == (
        "Mean reward over 256 held-out episodes went from 0.300 to 0.970 (95% interval 0.94 to 0.98); "
        "2 policy versions learned from 128 episodes in 4 s."
    )
    assert run["tiles"][0] == ["held-out reward", "0.30 → 0.97"]
    assert run["columns"]["loss"] == [0.123457, None]
    assert run["columns"]["episodes_total"] == [64, 128]
    assert run["staleness"] == {"0": 120, "1": 8}
    # 0.5 s of the first two were waited, and 1.0 s of the next two.
    assert run["idle_share"] == [0.25, 0.5]
    assert run["config"] == "[run]\nsteps = 2\n"


def test_every_number_that_a_step_logs_is_a_curve(tmp_path: Path):
    rows = [STEP, STEP | {"step": 2, "version": 2, "mine": 0.5, "controlled": {"loss.clip": 0.2}, "on": True}]
    columns = read_run(make_run(tmp_path / "a", rows))["columns"]
    assert columns["mine"] == [None, 0.5]
    assert columns["controlled.loss.clip"] == [None, 0.2]
    assert "on" not in columns


def test_times_of_day_keep_their_seconds(run_folder: Path):
    # Fails when `columns` rounds them as the other numbers: a timeline needs them.
    assert read_run(run_folder)["columns"]["at"] == [BEGAN + 3 * version for version in range(1, 7)]


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path):
    page = write_report(make_run(tmp_path / "new", [])).read_text()
    assert block(page, "data")["overviews"]["new"]["sentence"] == "Nothing has been learned yet."
    (tmp_path / "empty").mkdir()
    assert read_run(tmp_path / "empty")["columns"]["version"] == []


def test_the_page_needs_nothing_besides_itself(run_folder: Path):
    report = write_report(run_folder)
    page = report.read_text()
    assert report.name == "report.html"
    # Names of XML are the only addresses, and comments of libraries.
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in ours.replace("http-equiv", "")
    assert not re.findall(r"@[A-Z]+@", ours)
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", ours)
    assert "default-src 'none'" in page


def test_text_of_a_model_cannot_leave_its_block(tmp_path: Path):
    # Fails when `script_data` writes "<" as it is.
    page = write_report(write_run(tmp_path / "a", texts={3: HOSTILE})).read_text()
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert block(page, "episode-t3")["turns"][1]["text"] == HOSTILE


def test_a_report_holds_episodes_by_its_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_run(tmp_path / "a", steps=140)
    view = RunView(folder)
    view.index.update()
    chosen = choose_episodes(view)
    view.close()
    assert len(chosen) == len(set(chosen)) == EPISODES
    assert {f"t{number}" for number in range(50)} <= set(chosen)  # the first ones
    assert {f"t{number}" for number in range(412, 562)} <= set(
        chosen
    )  # the newest, those that failed among them
    monkeypatch.setattr("agentrl.report.report_data.BYTES", 20_000)
    page = write_report(folder).read_text()
    assert 1 < page.count('id="episode-') < 20


def test_a_second_run_is_laid_over(tmp_path: Path, run_folder: Path):
    page = write_report(run_folder, [write_run(tmp_path / "other")]).read_text()
    assert list(block(page, "data")["overviews"]) == ["one", "other"]


def test_warnings_say_what_was_seen():
    well = [STEP | {"truncated_share": 0.0, "entropy": 0.5, "effective_share": 0.99}] * 12
    assert find_warnings(well) == []
    ill = [*well, *[STEP | {"truncated_share": 0.5, "entropy": 0.01, "effective_share": 0.4}] * 10]
    assert find_warnings(ill) == [
        "entropy fell from 0.500 to 0.010 nats while the score is only 0.25",
        "50% of the episodes were cut off by a token limit",
        "importance weights leave only 40% of the tokens effective",
    ]
    silent = [STEP | {"score_mean": 0.0}] * 10
    assert find_warnings(silent) == [
        "no episode of the last 10 steps was rewarded: there is nothing to learn from"
    ]


def test_every_rule_is_stated_with_its_evidence(tmp_path: Path):
    rows = [STEP | {"failed_share": 0.5, "first_failure": "env: KeyError: 'x'"}]
    broken = [rule for rule in judge(rows) if rule["broken"]]
    assert [(rule["stated"], rule["evidence"]) for rule in broken] == [
        ("at most 5% of the episodes fail", "failed_share")
    ]
    health = read_run(make_run(tmp_path / "a", rows))["health"]
    assert health["text"] == (
        "Worth a look: 50% of the episodes failed, which biases what is learned; the first one: env: KeyError: 'x'."
    )
    assert read_run(make_run(tmp_path / "b", [STEP]))["health"]["text"] == (
        "Healthy: all 13 rules hold over the newest 1 steps."
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(71.4, "71 s"), (250, "4 min 10 s"), (7500, "2 h 05 min"), (119.6, "2 min 00 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def ask(run_folder: Path):
    """Asks a server of the run's folder: (status, text)."""
    with make_server(run_folder.parent, 0) as server:
        port = int(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def get(path: str, host: str = "") -> tuple[int, str]:
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            connection.putrequest("GET", path, skip_host=True)
            connection.putheader("Host", host or f"127.0.0.1:{port}")
            connection.endheaders()
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, text

        yield get
        server.shutdown()
        thread.join()


def test_the_server_answers_what_a_page_asks(ask, run_folder: Path):
    assert "<!doctype html>" in ask("/")[1]
    assert [run["name"] for run in json.loads(ask("/api/runs")[1])] == ["one"]
    before = json.loads(ask("/api/stamp?run=one")[1])
    assert json.loads(ask("/api/overview?run=one")[1])["episodes"] == 26
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(STEP | {"step": 7, "version": 7}) + "\n")
    assert json.loads(ask("/api/overview?run=one")[1])["columns"]["version"] == [1, 2, 3, 4, 5, 6, 7]
    assert json.loads(ask("/api/stamp?run=one")[1]) != before
    assert json.loads(ask("/api/episodes?run=one&state=failed")[1])["total"] == 2
    assert json.loads(ask("/api/episode?run=one&id=t6")[1])["version"] == 2
    assert len(json.loads(ask("/api/prompt?run=one&prompt=p1")[1])["attempts"]) == 7
    assert len(json.loads(ask("/api/timeline?run=one&first=0&last=1e10")[1])["rows"]) == 24


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1:1", "", "[::1"]
)
def test_the_server_refuses_names_that_are_not_its_own(ask, host):
    # Fails without `allowed`: a page of a foreign name that points here (DNS rebinding) could read runs.
    assert ask("/", host or " ")[0] == 403
    assert ask("/api/runs", host or " ")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../run.json",
        "/%2e%2e/run.json",
        "/api/overview?run=..",
        "/api/overview?run=../other",
        "/api/overview?run=/etc",
        "/api/overview",
        "/api/nothing",
        "/api/episode?run=one&id=../../x",
        "/api/timeline?run=one&first=x&last=2",
    ],
)
def test_the_server_has_nothing_outside_its_runs(ask, path):
    assert ask(path)[0] == 404


def test_a_taken_port_is_told(tmp_path: Path):
    with make_server(tmp_path, 0) as server, pytest.raises(ConfigError, match="another --port"):
        make_server(tmp_path, int(server.server_address[1]))


def test_the_run_to_look_at_is_found(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no run"):
        find_run(tmp_path)
    with pytest.raises(ConfigError, match="no run below"):
        find_run(None, tmp_path)
    path = make_run(tmp_path / "001", [])
    assert find_run(None, tmp_path) == path == find_run(path)
    assert find_run(tmp_path) == tmp_path


def test_runs_are_listed(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    write_run(run_folder.parent / "[b]two", steps=2)
    assert main(["runs", str(run_folder.parent)]) == 0
    shown = capsys.readouterr().out
    assert "[b]two" in shown
    assert "0.200 -> 0.500" in shown
    assert main(["runs", str(run_folder / "episodes")]) == 1


def test_a_row_of_the_list_of_runs(run_folder: Path):
    row = run_row(run_folder)
    assert (row["name"], row["running"], row["steps"], row["reward"]) == ("one", False, 6, "0.200 -> 0.500")
    assert row["sentence"] == "6 steps, 18 s, 0.200 -> 0.500"


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["terminal", "background"])
def test_serving_ends_when_it_is_told_to(run_folder: Path, interrupts: signal.Handlers):
    # A shell starts its jobs in the background with SIGINT ignored.
    root = Path(__file__).parents[3]
    path = os.pathsep.join(str(root / part) for part in (".", "envs", "sandbox"))
    process = subprocess.Popen(
        [sys.executable, "-c", "from agentrl.cli.main import main; main()", "view", str(run_folder), "--no-browser"],
        env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert "http://127.0.0.1" in process.stdout.readline()
        process.terminate()
        assert process.wait(20) in (0, 130)
