"""Directories of the host that sessions live in: none stays, whatever way their owner ended."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agentrl_sandbox import Level, SandboxUnavailable, open_sandbox
from agentrl_sandbox.local.rooms import PREFIX, Rooms, sweep

HOLD = """
import sys, time
from agentrl_sandbox.local.rooms import Rooms
rooms = Rooms()
print(rooms.make(), flush=True)
time.sleep(60)
"""
RUN = """
import asyncio, sys, time
from agentrl_sandbox import open_sandbox
async def main():
    sandbox = open_sandbox(max_level=sys.argv[1], min_level=sys.argv[1], zygotes=1)
    session = await sandbox.open()
    await session.run("open('left', 'w').write('x')")
    print("open", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def temporary(monkeypatch):
    """A directory for temporary files of this test alone, which other users may enter."""
    with tempfile.TemporaryDirectory(prefix="rooms-test-") as path:
        os.chmod(path, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", path)
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


def _child(program, *arguments):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})


def test_rooms_go_one_by_one_and_their_directory_with_the_last(temporary):
    rooms = Rooms()
    first, second = rooms.make(), rooms.make()
    rooms.remove(first)
    assert [path.name[: len(PREFIX)] for path in temporary.iterdir()] == [PREFIX]
    rooms.remove(second)
    assert list(temporary.iterdir()) == []
    third = rooms.make()
    Path(third, "work", "closed").mkdir(mode=0)
    rooms.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(temporary):
    # Fails when `_abandoned` does not ask for the lock, or the lock is not held.
    mine = Rooms()
    room = mine.make()
    with _child(HOLD) as other:
        assert other.stdout is not None
        theirs = other.stdout.readline().strip()
        assert sweep() == 0
        assert os.path.isdir(theirs)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert os.path.isdir(theirs)
    assert sweep() == 1
    assert not os.path.exists(os.path.dirname(theirs))
    assert os.path.isdir(room)
    mine.close()


def test_strangers_and_look_alikes_are_left_alone(temporary):
    (temporary / f"{PREFIX}link").symlink_to(temporary)
    (temporary / f"{PREFIX}file").write_text("x")
    (temporary / "agentrl-sandbox-making-now").mkdir()
    (temporary / f"{PREFIX}fifo").mkdir()
    os.mkfifo(temporary / f"{PREFIX}fifo" / "owner.lock")
    if os.geteuid() == 0:
        (temporary / f"{PREFIX}other").mkdir()
        os.chown(temporary / f"{PREFIX}other", 65534, 65534)
    before = sorted(path.name for path in temporary.iterdir() if not path.name.endswith("fifo"))
    sweep()
    assert sorted(path.name for path in temporary.iterdir() if not path.name.endswith("fifo")) == before


@pytest.mark.parametrize("level", ["filtered", "namespaced", "contained"])
def test_a_start_leaves_nothing_and_the_next_one_sweeps(temporary, level):
    with _child(RUN, level) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "open":
            process.wait()
            pytest.skip(f"this machine does not offer {level}")
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = list(temporary.iterdir())
    # The session's room, and what libraries wrote while they were made warm.
    assert len(left) == (2 if level == "filtered" else 0), left

    async def again():
        async with open_sandbox(max_level=level, min_level=level, zygotes=1) as sandbox, await sandbox.open():
            pass

    import asyncio

    asyncio.run(again())
    assert list(temporary.iterdir()) == []


def test_a_start_that_is_refused_leaves_nothing(temporary):
    import asyncio

    with pytest.raises(SandboxUnavailable):
        asyncio.run(open_sandbox(max_level=Level.FILTERED, min_level=Level.CONTAINED).start())
    assert list(temporary.iterdir()) == []
