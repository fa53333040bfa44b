"""What a run's steps leave on disk: light state as differences, advantages for good, values of tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import DataError
from agentrl.storage import nested
from agentrl.storage.steps import StepFiles, StepRecord, TokenValues, read_credit, read_learned

numbers = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from(["a", "b"]), st.floats(0, 1))
arrays = st.lists(st.integers(0, 3), max_size=4).map(lambda values: np.array(values, dtype=np.int64))
pairs = st.integers(0, 3).map(lambda size: np.arange(2 * size).reshape(size, 2))
nested_values = st.recursive(
    st.one_of(numbers, arrays, pairs),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner)),
    max_leaves=8,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(two, np.ndarray) and one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return isinstance(two, list) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


@settings(deadline=None)
@given(old=nested_values, new=nested_values)
def test_a_difference_leads_from_one_to_the_other(old: Any, new: Any) -> None:
    change = nested.difference(old, new)
    assert same(nested.applied(old, change), new)


@settings(deadline=None)
@given(value=nested_values)
def test_no_difference_is_empty_and_a_file_keeps_all(value: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("nested") / "value.npz"
    path.write_bytes(nested.to_bytes({"of": value}))
    assert same(nested.read(path)["of"], value)
    if not isinstance(value, list | dict):
        assert nested.difference(value, value) == {}


def test_only_entries_that_changed_are_kept() -> None:
    old = {"pool": {"alpha": np.zeros(1000), "draws": 3}, "clocks": np.array([0.0, 0.1])}
    alpha = np.zeros(1000)
    alpha[[7, 9]] = 0.5
    new = {"pool": {"alpha": alpha, "draws": 3}, "clocks": np.array([0.0, 0.1, 0.3])}
    change = nested.difference(old, new)
    assert change["in"]["pool"]["in"].keys() == {"alpha"}
    assert change["in"]["pool"]["in"]["alpha"]["at"].tolist() == [7, 9]
    assert change["in"]["clocks"]["at"].tolist() == [2]


def record(version: int = 1, **more: Any) -> StepRecord:
    """Of three episodes, the second of which was masked; the third has two segments."""
    tokens = TokenValues(
        segments=np.array([[0, 6], [1, 3], [1, 4]], dtype=np.int32),
        # e0 says positions 2, 3 and 5; e2 says 1 and 2 of its first segment, nothing in its second.
        runs=np.array([[0, 2, 2], [0, 5, 1], [1, 1, 2]], dtype=np.int32),
        logprobs=np.array([-1, -2, -3, -4, -5], dtype=np.float32),
        entropies=np.array([0.5, 1, 1.5, 2, 2.5], dtype=np.float16),
        top_ids=np.arange(10, dtype=np.int32).reshape(5, 2),
        top_logprobs=-np.arange(10, dtype=np.float16).reshape(5, 2),
    )
    given: dict[str, Any] = {
        "version": version,
        "attempt": 1,
        "episode_ids": ["e0", "e1", "e2"],
        "scores": np.array([1.0, 0.0, 0.5]),
        "baselines": np.array([0.25, 0.25, 0.75]),
        "advantages": np.array([0.75, np.nan, -0.25]),
        "values": {},
        "light": {"set": {"a": 1}},
        "progress": {"version": version},
        "tokens": tokens,
    }
    return StepRecord(**(given | more))


def test_an_episode_is_looked_up_with_the_values_of_its_tokens(tmp_path: Path) -> None:
    files = StepFiles(tmp_path, keep=10)
    files.write(record())
    nan = float("nan")
    one = read_learned(tmp_path, "e0")
    assert (one.version, one.score, one.baseline, one.advantage) == (1, 1.0, 0.25, 0.75)
    assert one.segments is not None
    np.testing.assert_array_equal(one.segments[0].logprobs, [nan, nan, -1, -2, nan, -3])
    np.testing.assert_array_equal(one.segments[0].advantages, [nan, nan, 0.75, 0.75, nan, 0.75])
    two = read_learned(tmp_path, "e2").segments
    assert two is not None
    np.testing.assert_array_equal(two[0].entropies, [nan, 2, 2.5])
    np.testing.assert_array_equal(two[0].top_ids, [[-1, -1], [6, 7], [8, 9]])
    np.testing.assert_array_equal(two[1].logprobs, [nan] * 4)
    masked = read_learned(tmp_path, "e1")
    assert masked.advantage is None
    assert masked.segments is None
    with pytest.raises(DataError, match=r"no step of .* was made of episode 'e9'"):
        read_learned(tmp_path, "e9")


def test_tokens_with_advantages_of_their_own_have_them(tmp_path: Path) -> None:
    own = [[np.arange(6.0, dtype=np.float32)], [np.zeros(3, np.float32), np.zeros(4, np.float32)]]
    StepFiles(tmp_path, keep=10).write(record(of_tokens=own))
    segments = read_learned(tmp_path, "e0").segments
    assert segments is not None
    np.testing.assert_array_equal(segments[0].advantages, [np.nan, np.nan, 2, 3, np.nan, 5])
    assert [part.tolist() for part in StepFiles(tmp_path).read(1).given()[0]] == [own[0][0].tolist()]


def test_advantages_stay_when_the_values_of_tokens_go(tmp_path: Path) -> None:
    files = StepFiles(tmp_path, keep=4)  # of three episodes a step: two steps
    for version in range(1, 7):
        files.write(record(version, episode_ids=[f"{version}e{number}" for number in range(3)]))
    files.delete_old(needed=3, batch=3)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == [
        f"00000{version}.npz"
        for version in (4, 5, 6)  # after version 3 a resumed run needs them
    ]
    files.delete_old(needed=6, batch=3)
    assert not files.path(4).exists()
    assert read_learned(tmp_path, "1e0").advantage == 0.75
    assert read_learned(tmp_path, "1e0").segments is None
    assert read_learned(tmp_path, "6e0").segments is not None
    assert [row["version"] for row in read_credit(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_without_retention_no_value_of_a_token_is_written(tmp_path: Path) -> None:
    StepFiles(tmp_path, keep=0).write(record())
    assert read_learned(tmp_path, "e0").segments is None
    assert StepFiles(tmp_path).read(1).light == {"set": {"a": 1}}


async def test_a_run_leaves_the_advantage_of_every_learned_episode(new_loop: Callable[..., Any]) -> None:
    run = await new_loop("--checkpoint.every=1")
    await run.orchestrator.run()
    rows = read_credit(run.folder.path)
    assert [row["version"] for row in rows] == [1, 2, 3, 4]
    assert [row["episode_ids"] for row in rows] == run.learner.batches
    for row in rows:
        raw = np.array(row["scores"]) - np.array(row["baselines"])
        expected = (raw - raw.mean()) / max(raw.std(ddof=1), 0.1)
        np.testing.assert_allclose(row["advantages"], expected, atol=1e-6)
    await run.close()
