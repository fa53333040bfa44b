import json
import os
from pathlib import Path

import pytest

from agentrl.config.presets import PROTOCOLS, settings_of
from agentrl.errors import DataError
from agentrl.tasks.catalog import BENCHMARKS
from agentrl.tasks.datasets import bare_answer, check_rows, load_data_set, locate

FOLDER = Path(os.environ.get("AGENTRL_DATA", "data"))


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_data_set_at_hand_loads_and_is_the_one_it_says(name):
    benchmark = BENCHMARKS[name]
    if not (FOLDER / benchmark.file).is_file():
        pytest.skip(f"no {benchmark.file} in {FOLDER} (AGENTRL_DATA says where the data sets are)")
    data = load_data_set(name, data_dir=FOLDER)
    assert len(data.rows) == benchmark.rows
    assert len(set(data.ids)) == benchmark.rows
    if benchmark.checksum:
        assert data.checksum == benchmark.checksum


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def aime(count: int = 30) -> list[dict]:
    return [{"id": f"a{i}", "problem": f"What is {i}?", "answer": str(i)} for i in range(count)]


def test_a_changed_benchmark_is_refused_by_checksum(tmp_path):
    write(tmp_path / "aime24.jsonl", aime())
    with pytest.raises(
        DataError, match=r"is not the aime24 that results are compared on.*--data .*aime24.jsonl"
    ):
        load_data_set("aime24", data_dir=tmp_path)
    # under its own name the same file is fine
    assert len(load_data_set(str(tmp_path / "aime24.jsonl")).rows) == 30


def test_counts_and_answers_are_checked(tmp_path):
    write(tmp_path / "aime24.jsonl", aime(29))
    with pytest.raises(DataError, match="has 29 rows and aime24 has 30"):
        load_data_set("aime24", data_dir=tmp_path)
    rows = aime()
    rows[4]["answer"] = "4.5"
    with pytest.raises(DataError, match="row 5: the answer '4.5' is not an integer"):
        check_rows(BENCHMARKS["aime24"], rows, tmp_path)
    rows[4]["answer"] = 4
    with pytest.raises(DataError, match="must be a text, got 4"):
        check_rows(BENCHMARKS["aime24"], rows, tmp_path)


def test_any_file_with_renamed_columns(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"question": "1+1", "final": "2", "n": 3}])
    data = load_data_set(str(path), columns={"problem": "question", "answer": "final"})
    assert data.rows[0]["problem"] == "1+1"
    assert data.rows[0]["answer"] == "2"
    assert data.describe()["map"] == {"problem": "question", "answer": "final"}


def test_the_checksum_ignores_other_columns_and_the_limit(tmp_path):
    one = write(tmp_path / "one.jsonl", aime())
    other = write(tmp_path / "other.jsonl", [row | {"url": "x"} for row in aime()])
    assert load_data_set(str(one)).checksum == load_data_set(str(other), limit=3).checksum
    assert len(load_data_set(str(other), limit=3).rows) == 3


def test_errors_say_what_would_be_right(tmp_path, monkeypatch):
    monkeypatch.delenv("AGENTRL_DATA", raising=False)
    with pytest.raises(DataError, match="did you mean 'gsm8k'"):
        load_data_set("gsm8")
    with pytest.raises(
        DataError, match=r"no file hmmt_feb_2025.jsonl.*--data-dir or AGENTRL_DATA.*local file"
    ):
        locate("hmmt_feb_2025", tmp_path)


def test_the_folder_may_be_named_by_the_environment(tmp_path, monkeypatch):
    write(tmp_path / "aime25.jsonl", aime())
    monkeypatch.setenv("AGENTRL_DATA", str(tmp_path))
    assert locate("aime25") == tmp_path / "aime25.jsonl"


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("some words\n#### 1,234", "hash_marks", "1234"),
        (r"so \boxed{025}", "boxed", "25"),
        (["$2\\pi$"], "first", "2\\pi"),
        ("27.0", "plain", "27"),
        (25, "plain", "25"),
        ("0.5", "plain", "0.5"),
        ("0", "plain", "0"),
        (r"\frac{1}{2}", "plain", r"\frac{1}{2}"),
    ],
)
def test_answers_as_the_hub_writes_them(value, kind, expected):
    assert bare_answer(value, kind) == expected


def test_the_paper_s_protocol():
    settings = settings_of("spo-paper", PROTOCOLS)
    assert settings["eval"] == {"samples": 32, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert settings["rollout"] == {"max_tokens": 32_768, "max_turns": 8}


def test_revisions_are_whole_commits():
    for benchmark in BENCHMARKS.values():
        if benchmark.hub is not None:
            assert len(benchmark.hub.revision) == 40
            int(benchmark.hub.revision, 16)
