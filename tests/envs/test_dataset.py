"""Rows from files; what is wrong is said with its file and line."""

import json
from pathlib import Path

import pytest

from agentrl_envs import DatasetError, load_rows, prompt_id


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path):
    rows = [{"id": "a", "problem": "1+1", "answer": "2"}, {"id": "b", "problem": "é", "answer": "3"}]
    lines = [json.dumps(row) for row in rows]
    assert load_rows(write(tmp_path / "d.jsonl", *lines)) == rows
    assert load_rows(write(tmp_path / "blank.jsonl", lines[0], "", lines[1])) == rows
    assert load_rows(write(tmp_path / "d.json", json.dumps(rows))) == rows
    assert load_rows(write(tmp_path / "d.csv", "id,problem,answer", "a,1+1,2", "b,é,3")) == rows
    assert load_rows(rows) == rows
    assert load_rows(rows, limit=1) == rows[:1]


def test_map_renames(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", '{"question": "q", "final": "a", "level": 3}')
    assert load_rows(path, map={"problem": "question", "answer": "final"}) == [
        {"level": 3, "problem": "q", "answer": "a"}
    ]
    with pytest.raises(
        DatasetError, match=r"d\.jsonl, line 1: map names the field 'quest', but the row has 'question'"
    ):
        load_rows(path, map={"problem": "quest"})


def test_prompt_ids_are_stable():
    assert prompt_id({"id": 7, "x": 1}) == "7"
    # Literal: the key of the value tracker must not change between versions.
    assert (
        prompt_id({"problem": "1+1", "answer": "2"})
        == prompt_id({"answer": "2", "problem": "1+1"})
        == "529210e50a215bb6"
    )
    assert prompt_id({"problem": "1+1", "answer": "3"}) != prompt_id({"problem": "1+1", "answer": "2"})


def test_duplicates():
    row = {"problem": "p", "answer": "1"}
    assert load_rows([row, dict(row), {"problem": "q", "answer": "1"}]) == [
        row,
        {"problem": "q", "answer": "1"},
    ]
    with pytest.raises(DatasetError, match="row 2: the id 'x' is already that of row 1"):
        load_rows([{"id": "x", "answer": "1"}, {"id": "x", "answer": "2"}])


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("d.jsonl", ['{"a": 1}', "{oops"], "d.jsonl, line 2: not JSON"),
        ("d.jsonl", ["[1, 2]"], "d.jsonl, line 1: want a JSON object of fields, got list"),
        ("d.jsonl", [""], "no rows"),
        ("d.json", ['{"a": 1}'], "want a list of objects, got dict"),
        ("d.json", ["[1]"], "item 1: want a JSON object"),
        ("d.csv", ["a,b", "1,2,3"], "d.csv, line 2: want 2 columns"),
        ("d.txt", ["x"], "unknown kind of file; want .jsonl"),
        ("d.parquet", ["x"], "parquet"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, lines: list[str], words: str):
    with pytest.raises(DatasetError, match=words.replace(".", r"\.")):
        load_rows(write(tmp_path / name, *lines))


def test_missing_sources(tmp_path: Path):
    with pytest.raises(DatasetError, match="no data file"):
        load_rows(tmp_path / "none.jsonl")
    with pytest.raises(DatasetError, match="limit=0"):
        load_rows([{"a": 1}], limit=0)
    with pytest.raises(DatasetError, match="row 1: want a mapping"):
        load_rows([3])
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(DatasetError, match="pip install datasets"):
            load_rows("owner/name")


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"problem": ["p", "q"]}), tmp_path / "d.parquet")
    assert load_rows(tmp_path / "d.parquet") == [{"problem": "p"}, {"problem": "q"}]
