"""The index of a run: complete, incremental, and made of what is there in broken folders."""

import base64
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from agentrl.report.index import NAME, RunIndex
from agentrl.report.run_view import RunView
from agentrl.report.vocabulary import Vocabulary
from agentrl.storage.durable import LineFile
from agentrl.storage.ledger import Ledger
from tests.agentrl.report.run_files import BEGAN, make_episode, write_run, write_tokenizer


@pytest.fixture
def view(run_folder: Path):
    view = RunView(run_folder)
    view.index.update()
    yield view
    view.close()


def unpack(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_an_episode_has_its_row_its_texts_and_both_log_probabilities(view: RunView):
    episode = view.episode("t6")
    assert episode is not None
    assert (episode["version"], episode["state"], episode["environment"]) == (2, "learned", "sums")
    assert (episode["score"], episode["baseline"], episode["count"], episode["advantage"]) == (
        1.0,
        0.4,
        3.0,
        0.6,
    )
    assert (episode["tokens"], episode["sampled"], episode["calls"], episode["call_errors"]) == (17, 10, 1, 1)
    (segment,) = episode["segments"]
    # The bytes of the sum sign come in two tokens: the character stands at the second.
    assert "".join(segment["texts"]) == "solve 2+3print( 2+3)\n5\n5∑<|end|>"
    assert segment["texts"][14:] == ["", "∑", "<|end|>"]
    assert segment["special"] == [16]
    learner, mask = unpack(segment["learner"], "<f4"), unpack(segment["mask"], "u1")
    assert np.isnan(learner[mask == 0]).all()
    assert learner[mask == 1].tolist() == pytest.approx([-0.6] * 10)
    assert unpack(segment["logprobs"], "<f4")[4:6].tolist() == pytest.approx([-0.5, -0.1])
    assert unpack(segment["advantages"], "<f4")[4] == pytest.approx(0.6)


def test_lists_are_sorted_and_filtered(view: RunView):
    assert view.episodes({})["total"] == 26
    found = view.episodes({"sort": "advantage", "order": "asc", "reward_max": "0.5", "limit": "3"})
    assert found["total"] == 12
    assert {row["reward"] for row in found["rows"]} == {0.0}
    assert view.episodes({"version_min": "2", "version_max": "2"})["total"] == 4
    assert view.episodes({"environment": "hard"})["total"] == 7
    assert view.episodes({"errors": "1", "state": "learned"})["total"] == 8
    assert view.episodes({"q": "my_env.py"})["total"] == 2
    assert view.episodes({"q": "%"})["total"] == view.episodes({"q": "100_"})["total"] == 0
    # A name of a column comes from a list of ours, never from the address.
    assert view.episodes({"sort": "id; DROP TABLE episodes", "order": "x"})["total"] == 26


def test_prompts_have_every_attempt_with_the_value_before_it(view: RunView):
    rows = {row["prompt"]: row for row in view.prompts({})["rows"]}
    assert set(rows) == {f"p{i}" for i in range(5)}
    assert (rows["p1"]["draws"], rows["p1"]["attempts"], rows["p1"]["folds"], rows["p1"]["failed"]) == (
        7,
        5,
        5,
        2,
    )
    attempts = view.prompt("p1")["attempts"]
    assert [row["id"] for row in attempts] == ["t1", "t6", "t11", "t16", "t21", "t24", "t25"]
    assert [row["baseline"] for row in attempts] == [0.4] * 5 + [None] * 2


def test_failures_stand_by_reason_with_the_text_of_the_first(view: RunView):
    (reason,) = view.reasons()
    assert (reason["state"], reason["reason"], reason["count"], reason["id"]) == ("failed", "env", 2, "t24")
    assert reason["error"] == "env: KeyError: 'nested' in my_env.py, line 7"


def test_the_timeline_has_what_was_under_way(view: RunView):
    rows = view.timeline(BEGAN, BEGAN + 1.0)["rows"]
    assert {row["id"] for row in rows} == {"t0", "t1", "t2", "t3"}
    assert view.timeline(BEGAN + 1000.0, BEGAN + 2000.0)["rows"] == []


def test_it_grows_with_the_run(run_folder: Path):
    index = RunIndex(run_folder)
    assert index.update()
    assert not index.update()
    ledger = Ledger(run_folder / "ledger.jsonl")
    ledger.dispatched("t90", "p9", 6)
    with (run_folder / "episodes" / "000001.jsonl").open("a") as file:
        line = json.dumps(make_episode(90, prompt="p9", version=6).to_json())
        file.write(line[:100])
        file.flush()
        index.update()
        assert index.query("SELECT state, reward FROM episodes WHERE id = 't90'") == [
            {"state": "pending", "reward": None}
        ]
        file.write(line[100:] + "\n")
    ledger.finished("t90", 10)
    ledger.close()
    index.update()
    assert index.query("SELECT state, reward FROM episodes WHERE id = 't90'") == [
        {"state": "finished", "reward": 1.0}
    ]
    assert index.record("t90") is not None
    index.close()


def test_rotated_files_are_read_on_and_packed_episodes_are_found(run_folder: Path):
    index = RunIndex(run_folder)
    index.update()
    plain = run_folder / "episodes" / "000001.jsonl"
    more = (json.dumps(make_episode(91, version=6).to_json()) + "\n").encode()
    plain.with_suffix(".jsonl.gz").write_bytes(gzip.compress(plain.read_bytes() + more))
    plain.unlink()
    index.update()
    assert index.query("SELECT count(*) AS n FROM episodes WHERE file = 1")[0]["n"] == 27
    for identity in ("t0", "t13", "t91"):
        record = index.record(identity)
        assert record is not None
        assert record["episode_id"] == identity
    index.close()


def test_files_of_a_killed_attempt_move_into_the_next_packed_one(run_folder: Path):
    # Fails when `unread` takes the position of the plain file for the packed one.
    second = LineFile(run_folder / "episodes" / "000002.jsonl", "episode")
    second.append(make_episode(92, version=6).to_json())
    second.close()
    index = RunIndex(run_folder)
    index.update()
    first = run_folder / "episodes" / "000001.jsonl"
    both = first.read_bytes() + second.path.read_bytes()
    second.path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(both))
    first.unlink()
    second.path.unlink()
    index.update()
    assert index.query("SELECT DISTINCT file FROM episodes WHERE file IS NOT NULL") == [{"file": 2}]
    for identity in ("t0", "t92"):
        record = index.record(identity)
        assert record is not None
        assert record["episode_id"] == identity
    index.close()


def test_a_resumed_run_takes_back_what_is_done_again(run_folder: Path):
    ledger = Ledger(run_folder / "ledger.jsonl")
    ledger.begin_attempt(4)
    ledger.close()
    index = RunIndex(run_folder)
    index.update()
    counts = index.query("SELECT state, count(*) AS n FROM episodes GROUP BY state ORDER BY state")
    assert counts == [
        {"state": "failed", "n": 2},
        {"state": "finished", "n": 8},
        {"state": "learned", "n": 16},
    ]
    index.close()


def test_broken_folders_open_with_what_is_there(run_folder: Path):
    with (run_folder / "episodes" / "000001.jsonl").open("ab") as file:
        file.write(
            b'{"episode_id": 7}\n[1]\n{"episode_id": "t70", "segments": 3, "turns": [1]}\n\xff\xfe\n{"torn'
        )
    with (run_folder / "ledger.jsonl").open("ab") as file:
        file.write(b'{"e": "learned"}\nnonsense\n{"e":"failed","k":"t0","r":"late"}\n')
    with (run_folder / "credit.jsonl").open("ab") as file:
        file.write(b'{"v": 9, "ks": ["t1"]}\n')
    (run_folder / "steps" / "000002.npz").write_bytes(b"half")
    (run_folder / "run.json").write_text("{")
    (run_folder / "weights" / "step_1" / "tokenizer.json").write_text("[]")
    (run_folder / NAME).write_bytes(b"no database at all, but long enough to be read as one" * 100)
    view = RunView(run_folder)
    view.index.update()
    overview = view.overview()
    assert (overview["episodes"], overview["damaged"]) == (27, 3)
    episode = view.episode("t6")  # its step is damaged
    assert episode is not None
    assert "learner" not in episode["segments"][0]
    assert view.episodes({"q": "late"})["rows"][0]["id"] == "t0"
    shutil.rmtree(run_folder / "episodes")
    gone = view.episode("t6")
    assert gone is not None
    assert gone["kept"] is False
    view.close()


def test_a_folder_that_cannot_be_written_is_indexed_in_memory(run_folder: Path):
    (run_folder / NAME).mkdir()  # in the way, also for root
    view = RunView(run_folder)
    view.index.update()
    assert view.episodes({})["total"] == 26
    view.close()


def test_an_empty_folder_has_an_overview(tmp_path: Path):
    view = RunView(tmp_path)
    view.index.update()
    assert view.overview()["health"]["state"] == "unknown"
    assert view.episodes({})["rows"] == view.prompts({})["rows"] == []
    view.close()


def test_texts_of_tokens(tmp_path: Path):
    write_tokenizer(tmp_path)
    vocabulary = Vocabulary(tmp_path / "tokenizer.json")
    assert vocabulary.texts([1, 2, 10, 11, 8, 77]) == ["solve", " 2", "", "∑", "\n", "<77>"]
    assert vocabulary.texts([10]) == ["\ufffd"]
    pieces = {"model": {"vocab": [["▁a", 0], ["<0xE2>", 0], ["<0x88>", 0], ["<0x91>", 0]]}}
    (tmp_path / "pieces.json").write_text(json.dumps(pieces))
    assert Vocabulary(tmp_path / "pieces.json").texts([0, 1, 2, 3]) == [" a", "", "", "∑"]


def test_two_readers_of_one_run_do_not_disturb_each_other(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    one, two = RunIndex(folder), RunIndex(folder)
    one.update()
    two.update()
    assert (
        one.query("SELECT count(*) AS n FROM episodes")
        == two.query("SELECT count(*) AS n FROM episodes")
        == [{"n": 26}]
    )
    one.close()
    two.close()


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("column", ["advantage", "dispatch", "reward"])
def test_what_is_missing_stands_last_in_either_order(tmp_path: Path, order: str, column: str) -> None:
    view = RunView(write_run(tmp_path / "run", steps=2, failed=3))
    view.index.update()
    found = [row[column] for row in view.episodes({"sort": column, "order": order})["rows"]]
    view.close()
    there = [value for value in found if value is not None]
    assert len(found) == 11
    assert found[: len(there)] == sorted(there, reverse=order == "desc")
    assert len(there) == (11 if column == "dispatch" else 8)


def test_the_newest_episodes_are_found_by_an_index(tmp_path: Path) -> None:
    view = RunView(write_run(tmp_path / "run", steps=1))
    plan = view.index.query(
        "EXPLAIN QUERY PLAN SELECT * FROM episodes WHERE 1 ORDER BY dispatch DESC LIMIT 100"
    )
    view.close()
    assert "by_dispatch" in plan[0]["detail"]
