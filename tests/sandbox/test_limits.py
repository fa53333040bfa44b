"""What is checked before a program runs, what is counted while it runs, and what is left to the host."""

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from agentrl_sandbox import (
    Level,
    Limits,
    SandboxConfigError,
    SandboxUnavailable,
    Status,
    open_sandbox,
)
from agentrl_sandbox.control import CONTROL, Control, arrives
from agentrl_sandbox.errors import LibraryBroken
from agentrl_sandbox.inside.meter import TreeMeter
from agentrl_sandbox.inside.processes import Directories, Usage
from agentrl_sandbox.inside.room import exceeds
from agentrl_sandbox.local import probe
from agentrl_sandbox.local.removal import remove_tree

LIMITS = Limits(time_s=2.0, memory_mb=256, grace_s=0.3)


@pytest.mark.parametrize("timeout", [math.inf, math.nan, -1, -0.5, True, "5", 1e9, [1]])
async def test_a_timeout_that_is_no_time_is_refused_before_anything_runs(timeout):
    async with open_sandbox("local", limits=LIMITS, zygotes=1) as sandbox, await sandbox.open() as session:
        with pytest.raises(SandboxConfigError, match="timeout"):
            await session.run("1", timeout=timeout)
        assert (await session.run("1 + 1", timeout=2)).value == "2"


def test_limits_are_whole_numbers_where_they_count_things():
    assert Limits(memory_mb=512.0).memory_mb == 512  # type: ignore[arg-type]
    assert isinstance(Limits(memory_mb=512.0).memory_mb, int)  # type: ignore[arg-type]
    assert Limits(time_s=0.5, grace_s=1).time_s == 0.5
    for wrong in ({"output_bytes": 1000.5}, {"memory_mb": math.inf}, {"time_s": math.nan}, {"files": True}):
        with pytest.raises(SandboxConfigError, match=next(iter(wrong))):
            Limits(**wrong)


def _nest(top, name, depth):
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    return here


@pytest.mark.parametrize(("name", "depth"), [("d", 1500), ("n" * 250, 60), ("x", 3)])
def test_a_tree_of_any_depth_is_removed(tmp_path, name, depth):
    # Fails when the removal recurs, or goes by paths.
    top, outside = tmp_path / "top", tmp_path / "outside"
    top.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("x")
    last = _nest(top, name, depth)
    os.symlink(outside, "link", dir_fd=last)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=last))
    os.fchmod(last, 0)
    os.close(last)
    (top / "closed").mkdir(mode=0)
    assert remove_tree(str(top))
    assert not top.exists()
    assert (outside / "kept").exists()
    assert remove_tree(str(top))


def test_files_are_counted_behind_closed_doors_and_far_down(tmp_path):
    limits = {"files": 500, "file_mb": 1}
    os.close(_nest(tmp_path, "n" * 250, 40))
    assert not exceeds(str(tmp_path), limits, lambda: 0)
    (tmp_path / "many names").write_bytes(bytes(300 << 10))
    for number in range(20):
        os.link(tmp_path / "many names", tmp_path / f"name {number}")
    assert not exceeds(str(tmp_path), limits, lambda: 0)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "large").write_bytes(bytes(2 << 20))
    (tmp_path / "closed").chmod(0o300)
    assert exceeds(str(tmp_path), limits, lambda: 0)
    remove_tree(str(tmp_path / "closed"))
    assert exceeds(str(tmp_path), limits, lambda: 2 << 20)  # without a name
    assert exceeds(str(tmp_path), {"files": 30, "file_mb": 1}, lambda: 0)


def test_filtered_has_to_be_asked_for(monkeypatch):
    real = probe._try_level

    def no_namespaces(level, python, wish, reasons):
        if level is Level.NAMESPACED:
            reasons.append("namespaced: user namespaces are refused here")
            return None
        return real(level, python, wish, reasons)

    monkeypatch.setattr(probe, "_try_level", no_namespaces)

    async def level(**settings):
        async with open_sandbox("local", zygotes=1, **settings) as sandbox:
            return sandbox.level

    with pytest.raises(SandboxUnavailable, match=r"namespaced was asked for.*min_level='filtered'"):
        asyncio.run(level())
    assert asyncio.run(level(min_level="filtered")) is Level.FILTERED
    assert asyncio.run(level(max_level="filtered")) is Level.FILTERED
    assert asyncio.run(level(allow_unsafe=True)) is Level.FILTERED


@pytest.fixture
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("libraries")
    for directory in (path, *path.parents):
        if os.stat(directory).st_uid == os.geteuid() and directory != directory.parent:
            with contextlib.suppress(OSError):
                directory.chmod(directory.stat().st_mode | 0o055)

    def make(source):
        (path / "made.py").write_text(textwrap.dedent(source))
        return {"libraries": ("made",), "library_path": str(path), "zygotes": 1, "limits": LIMITS}

    return make


@pytest.mark.parametrize(
    "source", ["1 / 0", "import no_such_module", "raise SystemExit(3)", "import os; os._exit(1)"]
)
async def test_a_library_that_does_not_import_is_an_error_and_lowers_no_level(library, source):
    sandbox = open_sandbox("local", min_level="filtered", **library(source))
    with pytest.raises(LibraryBroken, match="made"):
        await sandbox.start()


CACHE = """
    import os, random, tempfile
    generators = [random.Random(), random.Random(5)]
    for name in ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        with open(os.path.join(os.environ[name], "cache-" + name), "w") as file:
            file.write("warm")
    tempfile.TemporaryFile().close()
"""


@pytest.mark.parametrize("highest", ["contained", "namespaced", "filtered"])
async def test_a_library_that_writes_a_cache_is_given_a_place(library, highest):
    try:
        async with open_sandbox("local", max_level=highest, **library(CACHE)) as sandbox:
            if highest != "contained":
                assert sandbox.level is Level.parse(highest)
            drawn = {}
            for seed in (None, None, 7, 7, 8):
                async with await sandbox.open(seed=seed) as session:
                    result = await session.run("import made\n[g.random() for g in made.generators]")
                    assert result.status is Status.OK, result.text
                    drawn.setdefault(seed, []).append(result.value)
    except SandboxUnavailable as error:
        pytest.skip(str(error)[:200])
    # Fails when only `random` itself is seeded.
    assert drawn[None][0] != drawn[None][1]
    assert drawn[7][0] == drawn[7][1]
    assert drawn[7][0] != drawn[8][0]


@pytest.mark.slow
async def test_a_supervisor_that_is_silent_is_the_programs_time_out():
    async with open_sandbox("local", limits=LIMITS, zygotes=1) as sandbox, await sandbox.open() as session:
        await session.run("x = 1")
        os.kill(session.pid, signal.SIGSTOP)  # type: ignore[attr-defined]
        result = await session.run("x", timeout=0.3)
        # Fails when the back-stop counts as a failure of the machine.
        assert result.status is Status.TIMEOUT, result.text
        assert not result.session_alive
        assert (await session.run("1 + 1")).value == "2"
    assert CONTROL.waiting() == 0.0  # nobody waits, so there is no control process


async def test_an_answer_is_waited_for_as_long_as_a_control_process_waits_for_a_core(monkeypatch):
    never = asyncio.get_running_loop().create_future()
    for share, least, most in ((0.0, 0.1, 5.0), (0.8, 1.0, 10.0)):
        monkeypatch.setattr(Control, "waiting", lambda self, share=share: share)
        began = time.monotonic()
        assert not await arrives(never, began, 0.2)
        assert least <= time.monotonic() - began < most


def test_the_control_process_measures_and_ends():
    with Control() as control:
        end = time.monotonic() + 30
        while (share := control.waiting()) is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert 0.0 <= share <= 0.98
        process = control._process
        assert process is not None
    assert process.returncode is not None


class Scripted:
    """Processes that are written down: what /proc would show at each look, of which there is one every 50 ms."""

    def __init__(self, monkeypatch):
        self.now, self.clock = {}, 100.0
        monkeypatch.setattr("agentrl_sandbox.inside.meter.time.monotonic", lambda: self.clock)
        monkeypatch.setattr("agentrl_sandbox.inside.meter.cpu_of_children", lambda: 0.0)
        self.meter = TreeMeter(self)

    def usage(self):
        return self.now

    def look(self, now):
        """What the meter counts after a look at these."""
        self.now = now
        self.clock += 0.05
        return self.meter.seconds()


@pytest.fixture
def kernel(monkeypatch):
    return Scripted(monkeypatch)


def test_the_dead_are_counted_whoever_waited_for_them(kernel):
    # A parent with a child: both live, 1 s and 2 s.
    assert (
        kernel.look({(2, "a"): Usage(1.0, 0.0, 0.0, False, 1), (3, "b"): Usage(2.0, 0.0, 0.0, True, 1)})
        == 3.0
    )
    # The child died and was waited for: 2.1 s of it are in the parent's account now.
    assert abs(kernel.look({(2, "a"): Usage(1.0, 0.0, 2.1, False, 1)}) - 3.1) < 1e-9
    # Another one, whom the kernel forgets: it was last seen with half a second.
    assert (
        abs(
            kernel.look({(2, "a"): Usage(1.0, 0.0, 2.1, False, 1), (4, "c"): Usage(0.5, 0.0, 0.0, True, 1)})
            - 3.6
        )
        < 1e-9
    )
    assert abs(kernel.look({(2, "a"): Usage(1.0, 0.0, 2.1, False, 1)}) - 3.6) < 1e-9


def test_a_clock_of_the_kernel_counts_children_that_nobody_waited_for():
    # In a process of its own: the clock is inherited by all that is forked after it.
    code = """
import os, signal, time
from agentrl_sandbox.inside.meter import ClockMeter, open_clock
fd = open_clock()
if fd < 0:
    print("none"); raise SystemExit
meter = ClockMeter(fd)
before = meter.seconds()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(10):
    if os.fork() == 0:
        end = time.process_time() + 0.03
        while time.process_time() < end: pass
        os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
print(meter.seconds() - before)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if said.strip() == "none":
        pytest.skip("the kernel gives ordinary users no clock (kernel.perf_event_paranoid)")
    assert 0.25 < float(said) < 3.0


def test_one_that_is_seen_once_stands_for_those_that_are_not_seen(kernel):
    # A chain of processes of a few milliseconds: at each of 40 looks, another one that is running.
    for look in range(40):
        total = kernel.look(
            {
                (2, "a"): Usage(0.0, 0.0, 0.0, False, 1),
                (10 + look, "x"): Usage(0.002, 0.0, 0.0, True, 1),
            }
        )
    # 40 looks of 0.05 s, the last of which is still alive: 39 * 0.05 + 0.002.
    assert abs(total - 1.952) < 1e-9


_TAKE_ALL = """
import ctypes, os, socket
kept = []
def pipes():
    for _ in range(55): kept.append(os.pipe())
for _ in range(22):
    r, w = os.pipe()
    if os.fork() == 0:
        try: pipes()
        except OSError: pass
        os.close(w)
        import time; time.sleep(1000)
    os.close(w); os.read(r, 1)
a, b = socket.socketpair()
sent = 0
try:
    while sent < 1000: socket.send_fds(a, [b'x'], [0] * 50); sent += 50
except OSError: pass
watchers = [ctypes.CDLL(None).inotify_init1(0) for _ in range(200)]
print(sent)
"""
_WHAT_IS_LEFT = """
import ctypes, fcntl, os, socket
sizes = {fcntl.fcntl(os.pipe()[1], 1032) for _ in range(3)}
a, b = socket.socketpair()
socket.send_fds(a, [b'x'], [0] * 50)
print(sizes, len(socket.recv_fds(b, 1, 100)[1]), ctypes.CDLL(None).inotify_init1(0) >= 0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has one user for all sessions")
@pytest.mark.parametrize("level", [Level.CONTAINED, Level.NAMESPACED])
async def test_what_the_kernel_gives_to_each_user_a_session_has_for_itself(level):
    # Fails when sessions have one user: the second one's pipes hold two pages, and no descriptor can be sent.
    try:
        sandbox = open_sandbox("local", max_level=level, min_level=level, zygotes=1)
        await sandbox.start()
    except SandboxUnavailable as error:
        pytest.skip(str(error)[:200])
    limits = Limits(memory_mb=512, processes=32, open_files=120)
    async with sandbox, await sandbox.open(limits) as greedy, await sandbox.open(limits) as other:
        taken = await greedy.run(_TAKE_ALL, 10)
        assert taken.status is Status.OK, taken.text
        assert int(taken.stdout) >= 100, taken.text
        left = await other.run(_WHAT_IS_LEFT, 10)
        assert left.stdout == "{65536} 50 True\n", left.text


def test_a_process_is_looked_up_once_and_forgotten_when_it_has_gone(monkeypatch):
    # Fails where files of /proc are opened by their whole path: the kernel holds who looks up a dying process.
    opened, really_open = [], os.open
    with subprocess.Popen(["sleep", "60"]) as child:
        monkeypatch.setattr(
            os, "open", lambda path, *a, **k: opened.append(path) or really_open(path, *a, **k)
        )
        proc = Directories()
        for _ in range(3):
            assert proc.read(f"{child.pid}/stat").startswith(str(child.pid).encode())
            assert proc.list(f"{child.pid}/task") == [str(child.pid)]
            proc.read(f"{child.pid}/task/{child.pid}/schedstat")
            proc.keep([child.pid])
        assert opened.count(str(child.pid)) == 2  # its own directory and that of its one thread
        assert not [path for path in opened if str(path).startswith("/proc/")]
        child.kill()
    with pytest.raises(OSError):
        proc.read(f"{child.pid}/stat")
    assert proc.list(f"{child.pid}/task") == []
    proc.keep([])
    assert list(proc.held) == [""]
    proc.close()
    assert not proc.held
