"""Evaluations beside a run on its page: found, told apart, and compared as `agentrl compare` does."""

import json
import threading
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest

from agentrl.cli.compare import comparison_values
from agentrl.report.evaluations import comparison, evaluation_rows, find_evaluations, pairs
from agentrl.report.report_data import report_parts
from agentrl.report.server import make_server
from tests.agentrl.report.run_files import write_evaluations, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evaluated")
    write_evaluations(place)
    return write_run(place / "runs" / "one", steps=1)


def test_a_run_has_the_evaluations_beside_it(run: Path) -> None:
    rows = {row["name"]: row for row in evaluation_rows(run)}
    assert set(rows) == {"before", "after", "apart"}
    assert rows["after"]["mean"] == 1.0
    assert rows["after"]["problems"] == 8
    low, high = rows["before"]["interval"]
    assert low < rows["before"]["mean"] < high
    assert rows["after"]["command"]
    assert not rows["after"]["own"]


def test_an_evaluation_of_the_run_s_own_weights_is_marked(run: Path) -> None:
    summary = run.parent.parent / "evals" / "apart" / "summary.json"
    told = json.loads(summary.read_text())
    try:
        for weights, own in (
            ("runs/one/weights/step_1", True),
            (str(run), True),
            ("runs/other", False),
            ("", False),
        ):
            summary.write_text(json.dumps(told | {"policy": {"weights": weights}}))
            (row,) = [row for row in evaluation_rows(run) if row["name"] == "apart"]
            assert row["own"] is own, weights
    finally:
        summary.write_text(json.dumps(told))


def test_only_evaluations_of_the_same_problems_are_paired(run: Path) -> None:
    assert list(pairs(evaluation_rows(run))) == [("before", "after")]


def test_a_comparison_is_that_of_the_command(run: Path) -> None:
    found = comparison(run, "before", "after", comparison_values)
    folders = find_evaluations(run)
    told = comparison_values(folders["before"], folders["after"])
    assert found is not None
    assert (found["difference"], found["p_value"]) == (told["difference"], told["p_value"])
    assert found["difference"] > 0
    assert comparison(run, "before", "none", comparison_values) is None
    assert "error" in (comparison(run, "before", "apart", comparison_values) or {})


def test_a_file_holds_its_comparisons(run: Path) -> None:
    data = dict(report_parts(run, compare=comparison_values))["data"]
    assert [(one["a"], one["b"]) for one in data["comparisons"]] == [("before", "after")]
    assert len(data["overviews"]["one"]["saved"]) == 3
    assert dict(report_parts(run))["data"]["comparisons"] == []


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"table": 3}', '{"table": {"avg@k": []}, "policy": 7}'])
def test_a_damaged_summary_is_no_reason_for_no_page(run: Path, damage: str) -> None:
    folder = run.parent.parent / "evals" / "damaged"
    folder.mkdir(exist_ok=True)
    try:
        (folder / "summary.json").write_text(damage)
        assert {"before", "after", "apart"} <= {row["name"] for row in evaluation_rows(run)}
    finally:
        (folder / "summary.json").unlink()


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [("before", "after", 200), ("before", "../../runs/one", 404), ("/etc", "after", 404), ("", "", 404)],
)
def test_the_server_compares_what_it_lists_and_nothing_else(run: Path, a: str, b: str, status: int) -> None:
    with make_server(run.parent, 0, comparison_values) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        connection = HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=10)
        connection.request("GET", "/api/comparison?" + urlencode({"run": "one", "a": a, "b": b}))
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        server.shutdown()
        thread.join()
    assert answer.status == status
    if status == 200:
        assert json.loads(text)["better"] > 0
