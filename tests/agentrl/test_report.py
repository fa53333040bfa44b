"""The page of a run: complete in one file, safe against what models write, and made from half a run too."""

import json
import re
import threading
import urllib.request
from http.client import HTTPConnection
from pathlib import Path

import pytest

from agentrl.cli.view import find_run
from agentrl.errors import ConfigError
from agentrl.report import read_run, render_page, write_report
from agentrl.report.health import find_warnings
from agentrl.report.run_data import COLUMNS, duration
from agentrl.report.server import make_server

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
CLOSING = "</script><script>alert(1)</script>"


def make_run(path: Path, rows: list[dict], episodes: list[dict] | None = None) -> Path:
    (path / "episodes").mkdir(parents=True)
    (path / "run.json").write_text('{"format": 2, "run_id": "1"}')
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "config.toml").write_text("[run]\nsteps = 2\n")
    lines = "".join(json.dumps(episode) + "\n" for episode in episodes or [])
    (path / "episodes" / "000001.jsonl").write_text(lines)
    return path


def make_episode(index: int, reward: float | None, text: str = "\\boxed{1}") -> dict:
    return {
        "episode_id": f"t{index}",
        "dispatch_index": index,
        "prompt_id": f"p{index}",
        "turns": [{"text": text, "tool_calls": [["python", {"code": "1"}, "1", "ok", 0.1]]}],
        "reward": reward,
        "stop_reason": "answered",
        "start_version": index,
    }


def data_of(page: str) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])["run"]


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
    assert set(run["columns"]) == set(COLUMNS)
    assert run["staleness"] == {"0": 120, "1": 8}
    # 0.5 s of the first two were waited, and 1.0 s of the next two.
    assert run["idle_share"] == [0.25, 0.5]
    assert run["config"] == "[run]\nsteps = 2\n"


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path):
    page = render_page(read_run(make_run(tmp_path / "new", [])))
    assert data_of(page)["sentence"] == "Nothing has been learned yet."
    (tmp_path / "empty").mkdir()
    assert read_run(tmp_path / "empty")["columns"]["version"] == []


def test_the_page_needs_nothing_besides_itself(tmp_path: Path):
    report = write_report(make_run(tmp_path / "a", [EVALUATION, STEP]))
    page = report.read_text()
    assert report.name == "report.html"
    # Names of XML are the only addresses.
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@DATA@" not in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)


def test_text_of_a_model_cannot_leave_its_script(tmp_path: Path):
    # Fails when `render_page` writes "<" as it is.
    page = render_page(read_run(make_run(tmp_path / "a", [STEP], [make_episode(0, 1.0, CLOSING)])))
    assert CLOSING not in page
    assert data_of(page)["episodes"][0]["steps"][0] == ["model", CLOSING]


def test_first_and_last_rewarded_episodes_are_shown(tmp_path: Path):
    episodes = [make_episode(i, None if i == 1 else 0.0) for i in range(20)]
    path = make_run(tmp_path / "a", [STEP], [*episodes, make_episode(99, 1.0) | {"episode_id": "e0-99"}])
    (path / "episodes" / "000002.jsonl").write_text("")
    with (path / "episodes" / "000001.jsonl").open("a") as file:
        file.write('{"torn')
    shown = read_run(path)["episodes"]
    assert [item["id"] for item in shown] == ["t0", "t2", "t3", "t4", "t16", "t17", "t18", "t19"]
    assert [item["when"] for item in shown] == ["early"] * 4 + ["late"] * 4


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


@pytest.mark.parametrize(
    ("seconds", "text"), [(71.4, "71 s"), (250, "4 min 10 s"), (7500, "2 h 05 min"), (119.6, "2 min 00 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_server_serves_the_page_and_newer_data(tmp_path: Path):
    path = make_run(tmp_path / "a", [STEP])
    with make_server(path, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            with urllib.request.urlopen(f"{address}/", timeout=10) as answer:
                assert "<!doctype html>" in answer.read().decode()
            with (path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(STEP | {"step": 2, "version": 2}) + "\n")
            with urllib.request.urlopen(f"{address}/data.json", timeout=10) as answer:
                assert json.load(answer)["columns"]["version"] == [1, 2]
            connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
            connection.request("GET", "/../run.json")
            assert connection.getresponse().status == 404
            connection.close()
        finally:
            server.shutdown()
            thread.join()


def test_a_taken_port_is_told(tmp_path: Path):
    with make_server(tmp_path, "127.0.0.1", 0) as server, pytest.raises(ConfigError, match="another --port"):
        make_server(tmp_path, "127.0.0.1", int(server.server_address[1]))


def test_the_run_to_look_at_is_found(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no run"):
        find_run(tmp_path)
    with pytest.raises(ConfigError, match="no run below"):
        find_run(None, tmp_path)
    path = make_run(tmp_path / "001", [])
    assert find_run(None, tmp_path) == path == find_run(path)
