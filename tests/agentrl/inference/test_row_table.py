"""Keys stay with their session, whatever is placed, activated, ended and dropped around it."""

from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from agentrl.inference.embedded.kv_cache import RowCache, additive_mask, grouped_attention
from agentrl.inference.embedded.row_table import Request, RowTable, Session, shared_prefix
from agentrl.inference.embedded.stop_rules import StopRule
from agentrl.inference.policy import Sampling

ROWS, CONTEXT = 3, 40


def make_table(evict=True):
    shape = {"layers": 2, "kv_heads": 1, "head_dim": 2, "rows": ROWS, "context": CONTEXT}
    cache = RowCache(**shape, dtype=torch.float32, device=torch.device("cpu"))
    return cache, RowTable(ROWS, cache, evict=evict)


def make_request(number):
    return Request(str(number), array("i", [number]), 1, Sampling(1), StopRule(100), key=number, limit=9)


def write(cache, table, session, count):
    """Append cells that say whose they are and where."""
    start = int(table.lengths[session.row])
    positions = np.arange(start, start + count)
    rows = slice(session.row, session.row + 1)
    cache.point_at(rows, torch.from_numpy(positions)[None], cache.attended(start + count))
    marks = torch.tensor([[float(session.name), float(p)] for p in positions])[None, None]
    for layer in range(2):
        cache.update(marks + layer, -marks - layer, layer)
    table.lengths[session.row] += count


def check(cache, table, session):
    length = int(table.lengths[session.row])
    assert table.owners[session.row] is session
    row = slice(session.row, session.row + 1)
    cache.point_at(row, torch.full((1, 1), -1), max(length, 1))
    for layer in range(2):
        keys, values = cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), layer)
        wanted = torch.tensor([[float(session.name), float(p)] for p in range(length)]).reshape(-1, 2)
        assert torch.equal(keys[0, 0, :length], wanted + layer)
        assert torch.equal(values[0, 0, :length], -wanted - layer)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["speak", "write", "end", "drop"]), st.integers(0, 4)), max_size=40)
)
def test_keys_stay_with_their_session(actions):
    # Fails when `_exchange` swaps owners without their keys, or copies fewer cells than the longer row has.
    cache, table = make_table()
    sessions = [Session(str(i)) for i in range(5)]
    for clock, (action, i) in enumerate(actions):
        session = sessions[i]
        speaking = session.busy
        if action == "speak" and not speaking and table.place(session):
            session.busy, session.used = True, clock
            table.activate(session, make_request(i))
        elif action == "write" and speaking and table.lengths[session.row] < CONTEXT - 3:
            write(cache, table, session, 3)
        elif action == "end" and speaking:
            assert table.deactivate(session.row) is session
            session.busy = False
        elif action == "drop" and not speaking:
            table.drop(session)
        speakers = [s for s in sessions if s.busy]
        assert sorted(s.row for s in speakers) == list(range(table.active))
        assert [table.requests[s.row].session for s in speakers] == [s.name for s in speakers]
        assert [int(table.keys[s.row]) for s in speakers] == [int(s.name) for s in speakers]
        for owner in sessions:
            if owner.row is not None:
                check(cache, table, owner)


def test_who_waited_longest_loses_its_row_first_and_who_speaks_never():
    _, table = make_table()
    sessions = [Session(str(i), used=10 - i) for i in range(5)]
    for session in sessions[:3]:
        assert table.place(session)
    sessions[2].busy = True  # The least recently used, but it waits for its message.
    assert table.place(sessions[3])
    assert [s.row is None for s in sessions[:4]] == [False, True, False, False]
    _, strict = make_table(evict=False)
    strangers = [Session(str(i)) for i in range(4)]
    assert [strict.place(s) for s in strangers] == [True, True, True, False]


def test_shared_prefix():
    assert shared_prefix(array("i", [1, 2, 3]), array("i", [1, 2, 3, 4]), 9) == 3
    assert shared_prefix(array("i", [1, 2, 3]), array("i", [1, 9, 3]), 9) == 1
    assert shared_prefix(array("i", [1, 2, 3]), array("i", [1, 2, 3]), 2) == 2
    assert shared_prefix(array("i"), array("i", [1]), 5) == 0


def test_the_mask_of_padded_rows_by_hand():
    # Row 0 has 3 cells of which the last 2 are new; row 1 has 1, so that its first query is padding.
    mask = additive_mask(torch.tensor([3, 1]), 2, 4, 1, torch.float32)
    assert (mask == 0).int().tolist() == [
        [[[1, 1, 0, 0], [1, 1, 1, 0]]],
        [[[1, 0, 0, 0], [1, 0, 0, 0]]],
    ]


@pytest.mark.parametrize("queries", [1, 5])
def test_grouped_attention_is_attention_with_repeated_keys(queries):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, queries, 4), torch.randn(2, 2, 7, 4), torch.randn(2, 2, 7, 4)
    ends = torch.tensor([7, 5])
    mask = additive_mask(ends, queries, 7, 3, torch.float32)
    plain = additive_mask(ends, queries, 7, 1, torch.float32)
    got, _ = grouped_attention(torch.nn.Identity(), query, key, value, mask, scaling=0.5)
    scores = query @ key.repeat_interleave(3, 1).transpose(-1, -2) * 0.5 + plain
    wanted = scores.softmax(-1) @ value.repeat_interleave(3, 1)
    assert torch.allclose(got, wanted.transpose(1, 2), atol=1e-6)
