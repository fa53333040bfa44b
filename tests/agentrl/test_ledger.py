"""The ledger: what is on disk is what is in memory, and impossible transitions do not happen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.errors import LedgerError
from agentrl.storage.durable import LineFile, read_lines, write_file
from agentrl.storage.ledger import Ledger, State


def test_an_episode_ends_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.dispatched("t0", "p", 0)
    ledger.finished("t0")
    ledger.learned(["t0"], 0)
    for again in (lambda: ledger.finished("t0"), lambda: ledger.learned(["t0"], 1)):
        with pytest.raises(LedgerError, match="is learned and cannot become"):
            again()
    with pytest.raises(LedgerError, match="is learned and cannot be dispatched again"):
        ledger.dispatched("t0", "p", 0)
    with pytest.raises(LedgerError, match="never dispatched"):
        ledger.finished("t1")
    ledger.close()


def test_a_new_attempt_gives_back_what_was_learned_after_its_version(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.begin_attempt(0)
    for number in range(6):
        ledger.dispatched(f"t{number}", "p", 0)
    for number in range(5):
        ledger.finished(f"t{number}")
    ledger.learned(["t1", "t0"], 0)
    ledger.learned(["t3", "t2"], 1, masked={"t2": "truncated"})
    assert ledger.learned_batches(1) == {1: ["t3", "t2"]}
    assert ledger.begin_attempt(1) == 2
    assert ledger.summary() == {"pending": 1, "finished": 3, "learned": 2}
    ledger.dispatched("t5", "p", 1)  # pending in an earlier attempt: started again under its own index
    ledger.close()
    assert Ledger(tmp_path / "ledger.jsonl").entries == ledger.entries


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    file = LineFile(path, "test")
    file.append({"a": 1})
    file.close()
    with path.open("ab") as torn:
        torn.write(b'{"a": 2')
    assert list(read_lines(path)) == [{"a": 1}]
    file = LineFile(path, "test")
    file.append({"a": 3})
    file.close()
    assert list(read_lines(path)) == [{"a": 1}, {"a": 3}]


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old", "test")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new", "test")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


operations = st.lists(
    st.tuples(
        st.sampled_from(["dispatch", "finish", "fail", "learn", "abandon", "attempt", "read"]),
        st.integers(0, 7),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=operations)
def test_disk_and_memory_agree_under_any_sequence(
    operations: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(path)
    version = 0
    for name, number in operations:
        key = f"t{number}"
        try:
            if name == "dispatch":
                ledger.dispatched(key, "p", version)
            elif name == "finish":
                ledger.finished(key)
            elif name == "fail":
                ledger.failed(key, "env: E")
            elif name == "learn":
                ledger.learned([entry.key for entry in ledger.in_state(State.FINISHED)], version)
                version += 1
            elif name == "abandon":
                ledger.abandoned([key], "end")
            elif name == "attempt":
                version = min(version, number)
                ledger.begin_attempt(version)
            else:
                ledger.close()
                ledger = Ledger(path)
        except LedgerError:
            pass
        assert sum(ledger.counts.values()) == len(ledger.entries)
    ledger.close()
    assert Ledger(path).entries == ledger.entries
