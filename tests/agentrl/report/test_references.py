"""Bands of several runs: worked out by hand, read from files and folders, refused in a sentence."""

import json
from pathlib import Path

import pytest

from agentrl.cli.main import main
from agentrl.errors import ConfigError
from agentrl.report.references import band, collect, find_reference, known_references, write_reference
from tests.agentrl.report.run_files import write_run
from tests.agentrl.report.test_report import EVALUATION, STEP, block, make_run


def runs_of(place: Path) -> list[Path]:
    """Three runs: scores .1, .2; .3, .3; .2, and the last stopped after one step."""
    found = []
    for name, scores, end in (("a", (0.1, 0.2), 0.5), ("b", (0.3, 0.3), 0.75), ("c", (0.2,), 0.25)):
        steps = [
            STEP | {"step": at, "version": at, "score_mean": score, "episodes": 4 * at, "learn_s": 9.0}
            for at, score in enumerate(scores, 1)
        ]
        last = EVALUATION | {"step": 2, "version": 2, "reward_mean": end}
        found.append(make_run(place / name, [EVALUATION, *steps, last]))
    return found


def test_a_band_is_of_the_runs_that_reached_a_version(tmp_path: Path):
    found = band(collect(runs_of(tmp_path), "mine", "By hand."))
    assert found["axes"]["version"] == [1, 2]
    assert found["axes"]["episodes_total"] == [4, 8]
    assert found["curves"]["score_mean"] == {"low": [0.1, 0.2], "middle": [0.2, 0.25], "high": [0.3, 0.3]}
    assert "learn_s" not in found["curves"]  # of the machine
    assert found["sentence"] == (
        "Reference mine (3 runs): held-out reward 0.30 to 0.30 at first, 0.25 to 0.75 at the end. By hand."
    )


def test_a_file_and_a_folder_of_runs_give_the_same_band(tmp_path: Path):
    runs = runs_of(tmp_path / "runs")
    write_reference(collect(runs, "runs"), tmp_path / "mine.json")
    assert find_reference(str(tmp_path / "mine.json")) == find_reference(str(tmp_path / "runs"))


def test_references_ship_with_the_package():
    assert "demo" in known_references()
    for name in known_references():
        found = find_reference(name)
        assert found["name"] == name
        assert len(found["axes"]["version"]) == len(found["curves"]["score_mean"]["low"]) > 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2, "name": "x", "runs": []}', '{"format": 1, "name": "x", "runs": [1]}',
             '{"format": 1, "name": "x", "runs": [{"columns": {"version": [1], "score_mean": ["high"]}, "evaluations": []}]}',
             '{"format": 1, "name": "x", "runs": [{"columns": {"version": [1], "score_mean": [NaN]}, "evaluations": []}]}',
             '{"format": 1, "name": "x", "runs": [{"columns": {"version": [1], "score_mean": [1e999]}, "evaluations": []}]}',
             '{"format": 1, "name": "x", "runs": [{"columns": {"version": [1], "score_mean": [1' + "0" * 400 + ']}, "evaluations": []}]}',
             '{"format": 1, "name": "x", "runs": [{"columns": {"version": ["a"], "score_mean": [1]}, "evaluations": []}]}',
             '{"format": 1, "name": "x", "runs": [{"columns": {"version": [1], "score_mean": [1]}, "evaluations": [[1], [2]]}]}',
             "[" * 100_000],
    ids=range(12),
)  # fmt: skip
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path, text: str):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ConfigError, match="broken.json is no reference of format 1, or is damaged"):
        find_reference(str(tmp_path / "broken.json"))


def test_an_unknown_name_lists_those_that_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "runs" / "one")
    assert main(["view", str(run), "--write", "--reference", "demmo"]) == 1
    told = capsys.readouterr().err
    assert "there is no reference 'demmo'; known: " in told
    assert "demo" in told.partition("known:")[2]


def test_a_run_without_steps_is_no_part_of_a_band(tmp_path: Path):
    with pytest.raises(ConfigError, match="took no step"):
        collect([make_run(tmp_path / "new", [])], "new")


def test_a_report_holds_the_band(tmp_path: Path):
    run = write_run(tmp_path / "runs" / "one")
    write_reference(collect(runs_of(tmp_path / "others"), "mine"), tmp_path / "mine.json")
    assert main(["view", str(run), "--write", "--reference", str(tmp_path / "mine.json")]) == 0
    data = block((run / "report.html").read_text(), "data")
    assert data["reference"]["curves"]["score_mean"]["high"] == [0.3, 0.3]
    json.dumps(data, allow_nan=False)


def test_up_to_three_runs_are_laid_over(tmp_path: Path):
    run, *others = (write_run(tmp_path / "runs" / name) for name in ("one", "two", "three"))
    assert main(["view", str(run), "--write", "--with", *map(str, others)]) == 0
    assert list(block((run / "report.html").read_text(), "data")["overviews"]) == ["one", "two", "three"]


def test_runs_of_one_name_are_not_taken_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The page knows runs by their names: the second would stand in the place of the first."""
    run, other = (write_run(tmp_path / place / "one") for place in ("a", "b"))
    assert main(["view", str(run), "--write", "--with", str(other)]) == 1
    assert "another run of the page is called 'one' too" in capsys.readouterr().err


def test_markup_in_a_reference_stays_text(tmp_path: Path):
    run = write_run(tmp_path / "runs" / "one")
    name = "</script><img src=x onerror=alert(1)>"
    write_reference(collect(runs_of(tmp_path / "others"), name, note="<b>x</b>"), tmp_path / "mine.json")
    assert main(["view", str(run), "--write", "--reference", str(tmp_path / "mine.json")]) == 0
    page = (run / "report.html").read_text()
    assert "<img src=x" not in page
    assert block(page, "data")["reference"]["name"] == name
