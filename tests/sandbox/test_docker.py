"""The Docker backend against a real engine. `scripts/test_docker.sh` provides the engine and the image."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentrl_sandbox import (
    Level,
    Limits,
    PoolExhausted,
    SandboxClosed,
    SandboxUnavailable,
    SessionClosed,
    Status,
    open_sandbox,
)
from agentrl_sandbox.docker.pool import OWNER_LABEL, SANDBOX_LABEL, boot_id, remove_abandoned
from tests.needed import docker_engine
from tests.sandbox.starting import cancelled

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """A client of the engine."""
    with docker_engine() as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(engine: Any) -> AsyncIterator[Any]:
    async with open_sandbox("docker", warm=1, limits=Limits(time_s=5.0)) as opened:
        yield opened


@contextlib.asynccontextmanager
async def new_session(sandbox: Any, limits: Limits | None = None, **options: Any) -> AsyncIterator[Any]:
    session = await sandbox.open(limits, **options)
    try:
        yield session
    finally:
        await session.close()


def containers_of(engine: Any, sandbox: Any) -> list[Any]:
    found = engine.containers.list(all=True, filters={"label": SANDBOX_LABEL}, ignore_removed=True)
    return [c for c in found if c.labels[SANDBOX_LABEL] == sandbox._id]


async def until(condition: Any, what: str, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        await asyncio.sleep(0.1)


# ------------------------------------------------------------------------------------------------- programs


async def test_state_is_kept_and_the_last_expression_is_shown(sandbox: Any) -> None:
    async with new_session(sandbox) as session:
        assert (await session.run("x = 20")).text == "(no output)"
        result = await session.run("print('hello')\nx + 1")
        assert (result.status, result.stdout, result.value) == (Status.OK, "hello\n", "21")


async def test_libraries_are_there_at_once(sandbox: Any) -> None:
    async with new_session(sandbox) as session:
        loaded = await session.run("import sys; 'sympy' in sys.modules and 'numpy' in sys.modules")
        assert loaded.value == "True"
        integral = await session.run("from sympy import *; x = Symbol('x'); integrate(x * exp(x), x)")
        assert integral.value == "(x - 1)*exp(x)"


async def test_stdin_seed_and_files(sandbox: Any) -> None:
    values = []
    for _ in range(2):
        async with new_session(sandbox, seed=7) as session:
            assert (await session.run("input()", stdin="given\n")).value == "'given'"
            values.append((await session.run("import random; random.random()")).value)
            written = await session.run("open('out.txt', 'w').write('12345')")
            assert [(f.name, f.size) for f in written.files] == [("out.txt", 5)]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("code", "status", "alive"),
    [
        ("1/0", Status.ERROR, True),
        ("import sys; sys.exit(3)", Status.EXITED, True),
        ("import os; os._exit(3)", Status.EXITED, False),
        ("import os; os.kill(os.getpid(), 9)", Status.KILLED, False),
        ("import ctypes; ctypes.string_at(0)", Status.CRASHED, False),
        ("bytearray(8 << 30)", Status.ERROR, True),
        ("import os; os.kill(os.getppid(), 9)", Status.ERROR, True),
        ("import os; os.kill(1, 9)", Status.ERROR, True),
        ("import os; os.kill(-1, 9)", Status.ERROR, True),
        ("import os; os.setpgid(0, os.getppid())", Status.ERROR, True),
    ],
)
async def test_outcomes_are_told_apart(sandbox: Any, code: str, status: Status, alive: bool) -> None:
    async with new_session(sandbox) as session:
        await session.run("kept = 1")
        result = await session.run(code)
        assert (result.status, result.session_alive) == (status, alive), result
        after = await session.run("kept")
        assert after.status is (Status.OK if alive else Status.ERROR)


async def test_a_time_limit_interrupts_and_keeps_the_state(sandbox: Any) -> None:
    async with new_session(sandbox) as session:
        await session.run("kept = 1")
        result = await session.run("while True: pass", 0.5)
        assert (result.status, result.session_alive) == (Status.TIMEOUT, True)
        assert (await session.run("kept")).value == "1"


async def test_a_program_that_ignores_interrupts_is_killed(sandbox: Any) -> None:
    async with new_session(sandbox) as session:
        code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
        result = await session.run(code, 0.5)
        assert (result.status, result.session_alive) == (Status.TIMEOUT, False)
        assert (await session.run("1 + 1")).value == "2"


async def test_as_many_threads_as_the_limit_of_processes_allows(sandbox: Any) -> None:
    # Fails without MALLOC_ARENA_MAX: seven threads that map 64 MiB each fill what a process may map.
    code = (
        "import threading, time\n"
        "threads = [threading.Thread(target=time.sleep, args=(1,), daemon=True) for _ in range(28)]\n"
        "for thread in threads: thread.start()\nprint(len(threads))"
    )
    async with new_session(sandbox, Limits(processes=32)) as session:
        result = await session.run(code, 10)
        assert result.stdout == "28\n", result


async def test_memory_of_several_processes_counts_together(sandbox: Any) -> None:
    # Every process stays below RLIMIT_AS (96 MiB more than at its start); together they pass the container's
    # limit (96 MiB and what the interpreter needs). The first process is the largest, so it is the one that
    # is killed. Fails as KILLED when docker_entry.ContainerSupervisor._finish no longer asks what the kernel
    # killed for.
    code = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        time.sleep(0.5); held = bytearray(b"x" * (35 << 20)); time.sleep(60); os._exit(0)
held = bytearray(b"x" * (44 << 20))
time.sleep(60)
"""
    async with new_session(sandbox, Limits(memory_mb=96, time_s=20.0)) as session:
        result = await session.run(code)
        assert (result.status, result.session_alive) == (Status.OUT_OF_MEMORY, False), result
        assert (await session.run("1 + 1")).value == "2"


async def test_output_is_cut_and_a_flood_does_not_stop_the_clock(sandbox: Any) -> None:
    async with new_session(sandbox, Limits(output_bytes=1000, time_s=1.0)) as session:
        result = await session.run("while True: print('flood')")
        assert result.status is Status.TIMEOUT
        assert result.truncated
        assert len(result.stdout) < 1200


async def test_a_fork_bomb_stays_inside(sandbox: Any) -> None:
    code = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    async with new_session(sandbox, Limits(time_s=1.0)) as session:
        result = await session.run(code)
        assert result.status in (Status.TIMEOUT, Status.KILLED, Status.PROTOCOL_LOST), result
        assert (await session.run("6 * 7")).value == "42"


async def test_a_supervisor_that_was_stopped_is_the_programs_doing(sandbox: Any) -> None:
    # The filter keeps the program from stopping its supervisor, so the test does it from outside. Fails when
    # `_await_reply` no longer asks whether a process was stopped: a program that found a way could choose to
    # end as an infrastructure failure, which is never graded.
    async with new_session(sandbox, Limits(time_s=0.5, grace_s=0.2)) as session:
        running = asyncio.create_task(session.run("while True: pass", 0.5))
        container = session._container
        listed = await asyncio.to_thread(container._container.top, ps_args="-o pid,ppid")
        pids = [row[0] for row in listed["Processes"]]
        supervisor = next(int(row[0]) for row in listed["Processes"] if row[1] not in pids)
        os.kill(supervisor, signal.SIGSTOP)
        result = await running
        assert result.status is Status.PROTOCOL_LOST, result
        assert (await session.run("1")).value == "1"


async def test_orphans_are_reaped(sandbox: Any) -> None:
    # Fails when the supervisor no longer waits for processes that it did not start: as process 1 of the
    # container it is who they fall to, and dead ones would use up the limit on processes.
    code = """
import os, time
for _ in range(60):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.01)
        os._exit(0)
    os.wait()
time.sleep(0.3)
[n for n in os.listdir('/proc') if n.isdigit() and open(f'/proc/{n}/stat').read().split(')')[1].split()[0] == 'Z']
"""
    async with new_session(sandbox) as session:
        assert (await session.run("import os; os.getppid()")).value == "1"
        result = await session.run(code)
        assert (result.status, result.value) == (Status.OK, "[]"), result


async def test_a_program_sees_its_own_part_of_proc(sandbox: Any) -> None:
    async with new_session(sandbox) as session:
        result = await session.run(
            "import os; open('/dev/stdout', 'w').write('seen'); len(os.listdir('/proc/self/fd')) > 2"
        )
        assert (result.stdout, result.value) == ("seen", "True"), result


async def test_stateless_runs_share_nothing(sandbox: Any) -> None:
    async with new_session(sandbox, stateless=True) as session:
        assert (await session.run("x = 1; x")).value == "1"
        assert (await session.run("x")).status is Status.ERROR


# ------------------------------------------------------------------------------------------------ isolation


async def test_every_right_is_gone(sandbox: Any) -> None:
    code = """
def field(name):
    return [line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":")][0]
import os
capabilities = [field(n) for n in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
capabilities, field("NoNewPrivs"), field("Seccomp"), os.getuid()
"""
    async with new_session(sandbox) as session:
        zero = "'0000000000000000'"
        assert (await session.run(code)).value == f"([{', '.join([zero] * 5)}], '1', '2', 65534)"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (101, "ptrace"), (250, "keyctl"), (248, "add_key"), (425, "io_uring_setup"), (321, "bpf"),
        (323, "userfaultfd"), (298, "perf_event_open"), (310, "process_vm_readv"), (272, "unshare"),
        (165, "mount"), (308, "setns"), (155, "pivot_root"), (135, "personality"), (429, "move_mount"),
        (246, "kexec_load"), (303, "name_to_handle_at"), (304, "open_by_handle_at"),
    ],
)  # fmt: skip
async def test_system_calls_that_are_denied(sandbox: Any, number: int, name: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    code = (
        f"import ctypes; l = ctypes.CDLL(None, use_errno=True); l.syscall({number}, 1 << 28, 0, 0, 0, 0, 0)"
    )
    async with new_session(sandbox) as session:
        assert (await session.run(code + ", ctypes.get_errno()")).value == "(-1, 1)", name


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/canary', 'w')",
        "open('/usr/local/lib/canary', 'w')",
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
        "import socket; socket.socket(socket.AF_INET)",
        "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "open('/etc/shadow').read()",
        "open('/proc/sysrq-trigger', 'w').write('b')",
        "open('/proc/sys/kernel/core_pattern', 'w')",
        "open('/sys/kernel/uevent_helper', 'w')",
        "import os; os.mknod('/tmp/device', 0o60600, os.makedev(254, 0)); open('/tmp/device', 'rb')",
        "import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()",
        "import os; os.open(f'/proc/{os.getppid()}/fd/10', os.O_RDWR)",
        "open('/proc/1/environ', 'rb')",
        "open('/proc/1/maps', 'rb')",
        "open('/proc/1/mem', 'rb+')",
        "import os; os.setuid(0)",
        "import os; os.kill(1, 9) or os.stat('/var/run/docker.sock')",
    ],
)
async def test_what_a_program_may_not_do(sandbox: Any, code: str) -> None:
    async with new_session(sandbox) as session:
        result = await session.run(code)
        assert result.status is Status.ERROR
        assert "Error" in (result.error or "")
        assert (await session.run("1")).value == "1"


async def test_files_are_bounded_in_size_and_number(sandbox: Any) -> None:
    async with new_session(sandbox, Limits(file_mb=2, files=64)) as session:
        big = await session.run("f = open('a', 'wb')\nfor _ in range(99): f.write(bytes(1 << 20))")
        assert big.status in (Status.ERROR, Status.KILLED)
        await session.run("import os; os.path.exists('a') and os.remove('a')")
        many = await session.run("for i in range(999): open(f'f{i}', 'w').close()")
        assert "No space left" in (many.error or "")


async def test_sessions_do_not_see_each_other(sandbox: Any) -> None:
    async with new_session(sandbox) as first, new_session(sandbox) as second:
        await first.run("open('/tmp/secret', 'w').write('mine'); secret = 1")
        await first.run("import time\nopen('/dev/shm/secret', 'w').write('mine')")
        seen = await second.run("import os; os.listdir('/tmp'), os.listdir('/dev/shm')")
        assert "secret" not in (seen.value or "secret")


async def test_the_environment_is_an_allow_list(sandbox: Any) -> None:
    os.environ["CANARY_SECRET"] = "canary"
    try:
        async with new_session(sandbox) as session:
            everything = await session.run("import os; dict(os.environ), open('/proc/self/environ').read()")
            assert "canary" not in everything.text
    finally:
        del os.environ["CANARY_SECRET"]


# ---------------------------------------------------------------------------------------------- life cycles


async def test_a_cancelled_run_is_interrupted_and_the_session_goes_on(sandbox: Any) -> None:
    async with new_session(sandbox) as session:
        await session.run("kept = 5")
        await cancelled(session.run("import time\nwhile True: time.sleep(0.01)"))
        assert (await session.run("kept")).value == "5"


async def test_calls_on_one_session_are_serialised(sandbox: Any) -> None:
    async with new_session(sandbox) as session:
        await session.run("n = 0")
        code = "import time; m = n; time.sleep(0.02); n = m + 1"
        await asyncio.gather(*(session.run(code) for _ in range(5)))
        assert (await session.run("n")).value == "5"


async def test_close_ends_a_run_and_removes_the_container(sandbox: Any, engine: Any) -> None:
    session = await sandbox.open()
    name = session._container.container_id
    running = asyncio.create_task(session.run("while True: pass", 30.0))
    await asyncio.sleep(0.3)
    await session.close()
    await session.close()
    assert (await running).infrastructure_failure
    with pytest.raises(SessionClosed):
        await session.run("1")
    await until(lambda: name not in [c.id for c in containers_of(engine, sandbox)], "the container's removal")


async def test_a_container_removed_by_someone_else_is_an_infrastructure_failure_or_a_kill(
    sandbox: Any, engine: Any
) -> None:
    async with new_session(sandbox) as session:
        running = asyncio.create_task(session.run("while True: pass", 30.0))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(engine.api.remove_container, session._container.container_id, force=True)
        result = await running
        assert not result.ok
        assert not result.session_alive
        assert (await session.run("1")).value == "1"


async def test_the_pool_has_an_end_and_says_so(engine: Any) -> None:
    async with open_sandbox("docker", warm=1, most=1, wait_s=1.0, libraries=()) as small:
        async with new_session(small):
            with pytest.raises(
                PoolExhausted, match="all 1 containers of the docker sandbox were taken for 1 s"
            ):
                await small.open()
        async with new_session(small) as session:
            assert (await session.run("1")).value == "1"


async def test_closing_the_sandbox_leaves_nothing(engine: Any) -> None:
    opened = open_sandbox("docker", warm=1, libraries=())
    await opened.start()
    session = await opened.open()
    await opened.close()
    await opened.close()
    assert containers_of(engine, opened) == []
    with pytest.raises(SessionClosed):
        await session.run("1")
    with pytest.raises(SandboxClosed):
        await opened.open()


OWNER = """
import asyncio, sys
from agentrl_sandbox import open_sandbox
async def main():
    async with open_sandbox("docker", warm=1, libraries=()) as sandbox:
        session = await sandbox.open()
        await session.run("1")
        print(sandbox._id, flush=True)
        await session.run("while True: pass", 60.0)
asyncio.run(main())
"""


async def test_containers_end_with_an_owner_that_was_killed(engine: Any) -> None:
    # Fails without `stdin_open` (with it the engine closes stdin as its client goes) or without
    # `auto_remove`.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "sandbox")}
    command = [sys.executable, "-c", OWNER]
    owner = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, env=environment)
    assert owner.stdout is not None
    with owner.stdout:
        sandbox_id = (await asyncio.to_thread(owner.stdout.readline)).decode().strip()
    assert sandbox_id
    owner.send_signal(signal.SIGKILL)
    owner.wait()

    def gone() -> bool:
        label = {"label": f"{SANDBOX_LABEL}={sandbox_id}"}
        return not engine.containers.list(all=True, filters=label, ignore_removed=True)

    await until(gone, "the end of a dead owner's containers")


async def test_containers_of_a_dead_owner_are_collected(engine: Any, sandbox: Any) -> None:
    # A dead process of this boot owns this one, and nothing ends it by itself.
    labels = {OWNER_LABEL: f"{boot_id()}/4194305/1", SANDBOX_LABEL: "left-over"}
    image = sandbox._settings.image
    left = engine.containers.create(image, ["python3", "-c", "1"], labels=labels, network_mode="none")
    assert await asyncio.to_thread(remove_abandoned, engine) >= 1
    assert left.id not in [c.id for c in engine.containers.list(all=True, ignore_removed=True)]
    async with new_session(sandbox) as session:
        assert (await session.run("1")).value == "1"


async def test_a_missing_image_says_how_to_build_one(engine: Any) -> None:
    opened = open_sandbox("docker", image="agentrl-sandbox:absent")
    with pytest.raises(SandboxUnavailable, match=r"python -m agentrl_sandbox\.docker\.image"):
        await opened.start()
    await opened.close()


async def test_a_missing_engine_is_named() -> None:
    opened = open_sandbox("docker", base_url="unix:///nonexistent.sock")
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        await opened.start()
    await opened.close()


async def test_the_level_is_stated_and_held_to(sandbox: Any) -> None:
    assert sandbox.level is Level.CONTAINED
    assert "level contained" in sandbox.describe()
    opened = open_sandbox("docker", min_level="virtual")
    with pytest.raises(SandboxUnavailable, match="runsc"):
        await opened.start()
    await opened.close()


async def test_options_of_the_container_are_set(sandbox: Any, engine: Any) -> None:
    async with new_session(sandbox, Limits(memory_mb=64, processes=16)) as session:
        shown = engine.containers.get(session._container.container_id).attrs["HostConfig"]
        mib = 1 << 20
        assert (shown["Memory"], shown["MemorySwap"]) == (192 * mib, 192 * mib)
        assert shown["PidsLimit"] == 17
        assert shown["NanoCpus"] == 10**9
        assert shown["NetworkMode"] == "none"
        assert shown["ReadonlyRootfs"] is True
        assert shown["CapDrop"] == ["ALL"]
        assert shown["Init"] is False  # the supervisor is process 1
        assert shown["ShmSize"] == 4 * mib
        assert "no-new-privileges" in shown["SecurityOpt"]
        profile = next(o for o in shown["SecurityOpt"] if o.startswith("seccomp="))
        assert json.loads(profile.removeprefix("seccomp="))["defaultAction"] == "SCMP_ACT_ERRNO"


async def test_gvisor_runs_programs(engine: Any) -> None:
    if "runsc" not in engine.info()["Runtimes"]:
        pytest.skip("this engine has no runtime runsc")
    async with open_sandbox("docker", warm=0, runtime="runsc", libraries=()) as opened:
        assert opened.level is Level.VIRTUAL
        async with new_session(opened) as session:
            assert (await session.run("6 * 7")).value == "42"
