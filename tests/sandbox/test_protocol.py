"""The host's side of the wire: whatever the stream carries, it ends in a result or in a clear loss."""

import asyncio
import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl_sandbox import Limits, Status
from agentrl_sandbox.inside import frames, supervisor
from agentrl_sandbox.inside.meter import Meter
from agentrl_sandbox.inside.seccomp import Surroundings, build, build_guard
from agentrl_sandbox.outcome import clean, parse_reply, readable, result_from_frame
from agentrl_sandbox.result import Result, plain
from agentrl_sandbox.wire import (
    Line,
    Lost,
    decode_frame,
    encode_frame,
)

LIMITS = Limits()
WELL = {"kind": "ok", "value": "1", "error": None, "exit_code": None, "files": [["a", 1]]}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9)),
    st.lists(st.binary(max_size=50)),
)
def test_frames_come_back_as_they_were(header, blobs):
    header.pop("blobs", None)
    frame = encode_frame(header, tuple(blobs))
    decoded, parts = decode_frame(frame[4:])
    assert ({k: v for k, v in decoded.items() if k != "blobs"}, parts) == (header, blobs)
    assert frames.split_frame(frame[4:]) == (decoded, blobs)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=8))
def test_any_bytes_end_in_frames_or_in_a_loss(data, cuts):
    line = Line(1 << 16)
    for cut in cuts:
        line.data_received(data[:cut])
        data = data[cut:]
    line.data_received(data)


def test_a_frame_of_four_gigabytes_is_a_loss_before_it_is_read():
    line = Line(1 << 16)
    line.data_received(struct.pack("!I", 4_000_000_000))
    assert "4000000000 bytes" in line.lost
    with pytest.raises(Lost):
        asyncio.run(line.receive())


async def test_who_is_cancelled_while_a_frame_arrives_takes_it_not_along():
    # Fails where the frame is handed to the one who waits: a host that looks at the clock at the moment of the
    # answer had none, and took the program's time-out for a machine that had broken.
    line = Line(1 << 16)
    first = asyncio.create_task(line.receive())
    await asyncio.sleep(0)
    line.data_received(encode_frame({"kind": "result"}))
    line.connection_lost(None)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await line.receive())[0]["kind"] == "result"
    with pytest.raises(Lost, match="ended"):
        await line.receive()


def test_more_frames_than_were_asked_for_are_a_loss():
    line = Line(1 << 16)
    line.data_received(encode_frame({"kind": "result"}) * 9)
    assert "nobody asked" in line.lost


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 14) + b'{"blobs": [9]}',
        struct.pack("!I", 15) + b'{"blobs": [-1]}',
        struct.pack("!I", 17) + b'{"blobs": ["no"]}',
        struct.pack("!I", 2) + b"{}" + b"extra",
        struct.pack("!I", 900) + b"{}",
    ],
)
def test_frames_whose_lengths_disagree_are_refused(body):
    with pytest.raises(ValueError):
        decode_frame(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(WELL, JSON)))
def test_a_reply_of_any_shape_is_read_or_refused(reply):
    said = json.dumps(reply).encode()
    header = {"alive": True, "cpu_s": 0.1}
    result = result_from_frame(header, [said, b"", b""], LIMITS, 0.2, time_s=1.0)
    assert isinstance(result, Result)
    assert result.wall_s == 0.2
    result.text.encode()


@pytest.mark.parametrize(
    "said", [b"", b"[" * 200_000, b"null", b"{}", b"\xff", b'{"kind": "infrastructure_failure"}']
)
def test_what_cannot_be_read_is_a_lost_protocol(said):
    result = result_from_frame({"alive": True}, [said, b"out", b""], LIMITS, 0.2, time_s=1.0)
    assert (result.status, result.stdout, result.session_alive) == (Status.PROTOCOL_LOST, "out", False)


def test_the_program_cannot_set_times_or_statuses():
    said = json.dumps(
        {**WELL, "wall_s": 0, "cpu_s": -5, "status": "timeout", "session_alive": False}
    ).encode()
    result = result_from_frame({"alive": True, "cpu_s": 0.5}, [said, b"", b""], LIMITS, 2.0, time_s=1.0)
    assert (result.status, result.wall_s, result.cpu_s, result.session_alive) == (Status.OK, 2.0, 0.5, True)


def test_names_of_files_cannot_climb():
    for name in ("../x", "/etc/passwd", "x" * 300, 7):
        assert parse_reply(json.dumps({**WELL, "files": [[name, 1]]}).encode(), 100) is None
    assert parse_reply(json.dumps({**WELL, "files": [["a", 1]] * 101}).encode(), 100) is None


@pytest.mark.parametrize(
    ("header", "status", "words"),
    [
        ({"wait_status": 9}, Status.KILLED, "SIGKILL"),
        ({"wait_status": 11}, Status.CRASHED, "SIGSEGV"),
        ({"wait_status": 31}, Status.CRASHED, "SIGSYS"),
        ({"wait_status": 5 << 8}, Status.EXITED, "code 5"),
        ({"wait_status": 9, "cause": "time"}, Status.TIMEOUT, "1 s"),
        ({"wait_status": 9, "cause": "memory"}, Status.OUT_OF_MEMORY, "512 MiB"),
        ({"wait_status": 9, "cause": "files"}, Status.KILLED, "2000 files"),
        ({"wait_status": 9, "cause": "protocol"}, Status.PROTOCOL_LOST, "connection"),
    ],
)
def test_deaths_are_told_apart(header, status, words):
    result = result_from_frame({**header, "alive": False}, [b"", b"", b""], LIMITS, 0.1, time_s=1.0)
    assert result.status is status
    assert words in result.text
    assert "lost" in result.text


def test_text_for_models_has_no_terminal_controls():
    assert plain("\x1b[31mred\x1b[0m") == "red"
    assert plain("10%\r20%\rdone\nnext\r\n") == "done\nnext\n"
    assert plain("a\x07\x08b\tc") == "ab\tc"
    assert readable(b"\xffok\0") == "\ufffdok"
    assert clean("\ud800x\0") == "?x"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=5000), st.integers(16, 400))
def test_output_is_whole_or_head_and_tail(data, limit):
    output = supervisor.Output(limit)
    for start in range(0, len(data), 97):
        output.add(data[start : start + 97])
    pieces, cut = output.finish()
    kept = b"".join(pieces)
    half = limit // 2
    if len(data) <= 2 * half:
        assert (kept, cut) == (data, False)
    else:
        assert cut
        assert len(kept) <= 2 * half + 60
        # Up to three bytes at either edge may have been part of a character.
        assert kept.startswith(data[: half - 3])
        assert kept.endswith(data[len(data) - half + 4 :])
    output.wipe()
    output.add(b"again")
    assert b"".join(output.finish()[0]) == b"again"
    assert not any(output.head[5:])
    assert not any(output.tail)


def test_a_cut_never_splits_a_character():
    output = supervisor.Output(1001)
    output.add("é".encode() * 5000)
    pieces, cut = output.finish()
    kept = b"".join(pieces)
    assert cut
    assert "\ufffd" not in kept.decode("utf-8", "replace")


def test_the_filter_is_whole_for_both_machines():
    for machine in ("x86_64", "aarch64"):
        for on_host in (False, True):
            program = build(machine, Surroundings(on_host, 42, on_host, on_host, on_host))
            instructions = [program[i : i + 8] for i in range(0, len(program), 8)]
            assert 100 < len(instructions) < 4096
            for index, raw in enumerate(instructions):
                code, if_true, if_false, _ = struct.unpack("=HBBI", raw)
                if code & 7 == 5:  # a jump stays inside
                    assert index + 1 + max(if_true, if_false) < len(instructions)
            assert instructions[-1] == struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
    with pytest.raises(ValueError, match="riscv64"):
        build("riscv64")


class Kernel:
    """Runs a filter as the kernel does: `answer(number, arguments)` is what it returns."""

    def __init__(self, program):
        self.code = [struct.unpack("=HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]

    def answer(self, number, arguments=()):
        words = [*arguments, *[0] * (6 - len(arguments))]
        data = struct.pack("=IIQ6Q", number, 0xC000003E, 0, *(word % (1 << 64) for word in words))
        at = held = 0
        while True:
            code, if_true, if_false, value = self.code[at]
            at += 1
            if code == 0x06:
                return value
            if code == 0x20:
                held = struct.unpack_from("=I", data, value)[0]
            elif code == 0x05:
                at += value
            else:
                holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
                at += if_true if holds else if_false


@pytest.mark.parametrize("on_host", [False, True])
def test_one_filter_denies_what_the_two_that_it_is_made_of_deny(on_host):
    # Fails when a test of the guard allows a call that a later test has something against.
    around = Surroundings(on_host, 42, on_host, on_host, on_host)
    whole = Kernel(build("x86_64", replace(around, protected=(1,))))
    parts = [Kernel(build("x86_64", around)), Kernel(build_guard("x86_64", (1,)))]
    values = (-1, 0, 1, 2, 3, 8, 42, 1024, 1026, 1031, 0x5412, 0x541C, 0x8901, 0x40086602)
    looked_into = (16, 44, 53, 54, 56, 62, 72, 109, 129, 141, 142, 157, 200, 203, 234, 251, 297, 302, 434)
    for number in range(470):
        for first in values if number in looked_into else (0,):
            for second in values if number in looked_into else (0,):
                got = whole.answer(number, (first, second))
                wanted = min(part.answer(number, (first, second)) for part in parts)
                assert got == wanted, (number, first, second)


def test_what_runs_inside_imports_nothing_else_of_the_package():
    for path in Path(frames.__file__).parent.glob("*.py"):
        lines = [
            line.strip() for line in path.read_text().splitlines() if "import" in line.split("#")[0].split()
        ]
        ours = [line for line in lines if line.startswith(("from .", "import agentrl", "from agentrl"))]
        assert all(re.match(r"from \.[a-z]* ?import", line) for line in ours), ours


class Scripted(Meter):
    """What the kernel says of an interpreter, written down: booked runs and waits, and its state."""

    schedstat = True

    def __init__(self):
        self.ran_ns, self.waited_s, self.runnable = 0, 0.0, True

    def booked(self):
        return f"{self.ran_ns} {self.waited_s}".encode()

    def wants_to_run(self):
        return self.runnable

    def quick(self):
        return self.ran_ns / 1e9, self.waited_s

    def waits(self):
        return [self.waited_s]

    def seconds(self):
        return self.ran_ns / 1e9


def test_a_wait_that_is_not_booked_yet_is_no_time_out(monkeypatch):
    now = 100.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    kernel = Scripted()
    run = supervisor.Run("id", 1.0, supervisor.Output(100), supervisor.Output(100), kernel, kernel)
    now = 102.0  # two seconds in the queue, of which nothing is booked
    assert not run.over()
    assert not run.over()
    kernel.ran_ns, kernel.waited_s = 4_000_000, 1.996  # it ran for a moment, and the wait is booked
    assert not run.over()
    now = 103.5  # it has run or slept since, and it is over at the second look
    kernel.ran_ns = 904_000_000
    assert not run.over()
    kernel.ran_ns = 924_000_000
    assert run.over()


def test_a_program_that_sleeps_past_its_limit_is_over_at_the_second_look(monkeypatch):
    now = 100.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    kernel = Scripted()
    kernel.runnable = False
    run = supervisor.Run("id", 1.0, supervisor.Output(100), supervisor.Output(100), kernel, kernel)
    now = 101.5
    assert not run.over()
    assert run.over()
