"""The remote pool: real servers on loopback with the real local jail behind them, killed and overloaded."""

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from agentrl_sandbox import (
    Limits,
    PoolExhausted,
    Sandbox,
    SandboxClosed,
    SandboxError,
    SandboxUnavailable,
    Session,
    SessionClosed,
    Status,
    open_sandbox,
)
from agentrl_sandbox.server import SandboxServer, ServerSettings

# Connections to a server that was killed are collected late and warn then, in whatever test runs next.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parents[2]
FAST = Limits(time_s=5.0, grace_s=0.3)
# Wherever the tests run, the jail may be as weak as the machine makes it: what is tested here is the pool.
JAILS: list[Any] = []
BACKEND: dict[str, Any] = {"libraries": (), "limits": FAST, "allow_unsafe": True}


class SharedSandbox(Sandbox):
    """One jail behind all servers of this file: finding out what the machine can do takes a second."""

    def __init__(self) -> None:
        self.shared = open_sandbox("local", **BACKEND)

    async def start(self) -> None:
        await self.shared.start()
        self.level = self.shared.level

    async def open(
        self, limits: Limits | None = None, *, stateless: bool = False, seed: int | None = None
    ) -> Session:
        return await self.shared.open(limits, stateless=stateless, seed=seed)

    async def close(self) -> None:
        """The fixture closes it."""

    def describe(self) -> str:
        return self.shared.describe()


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def jail() -> AsyncIterator[None]:
    JAILS.append(SharedSandbox())
    yield
    await JAILS.pop().shared.close()


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[SandboxServer]:
    """A server in this process."""
    server = SandboxServer(JAILS[0], ServerSettings(**{"port": 0, "drain_s": 0.0, **settings}))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def client_of(*urls: str, **settings: Any) -> AsyncIterator[Any]:
    settings = {"limits": FAST, "allow_unsafe": True, "patience_s": 5.0, **settings}
    async with open_sandbox("remote", urls=urls, **settings) as sandbox:
        yield sandbox


@contextlib.asynccontextmanager
async def server_process(*flags: str) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process of its own, and its URL."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "sandbox")}
    program = (
        "import asyncio, sys\nfrom agentrl_sandbox.server import serve\n"
        "asyncio.run(serve('local', settings={'libraries': ()}, allow_unsafe=True, port=int(sys.argv[1]),"
        " drain_s=0.5, announce=lambda url, _: print(url, flush=True)))"
    )
    command = [sys.executable, "-c", program, *(flags or ("0",))]
    process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        url = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        assert url.startswith("http://127.0.0.1:")
        yield process, url
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        if process.stdout is not None:
            process.stdout.close()


async def post(url: str, body: Any, **options: Any) -> tuple[int, dict[str, Any], Any]:
    async with aiohttp.ClientSession() as http, http.post(url, json=body, **options) as response:
        return response.status, await response.json(), response.headers


async def until(condition: Any, what: str, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        await asyncio.sleep(0.02)


# -------------------------------------------------------------------------------------------- the interface


async def test_a_session_keeps_its_state_and_its_outcomes() -> None:
    async with serving() as server, client_of(server.url) as sandbox:
        session = await sandbox.open()
        assert (await session.run("x = 41")).text == "(no output)"
        result = await session.run("print('out'); x + 1")
        assert (result.status, result.stdout, result.value) == (Status.OK, "out\n", "42")
        error = await session.run("1/0")
        assert error.status is Status.ERROR
        assert "ZeroDivisionError" in (error.error or "")
        stopped = await session.run("while True: pass", 0.3)
        assert (stopped.status, stopped.session_alive) == (Status.TIMEOUT, True)
        assert (await session.run("x")).value == "41"
        gone = await session.run("import os; os._exit(5)")
        assert (gone.status, gone.exit_code, gone.session_alive) == (Status.EXITED, 5, False)
        assert (await session.run("1")).value == "1"


async def test_every_field_of_a_result_survives_the_wire() -> None:
    async with serving() as server, client_of(server.url) as sandbox:
        session = await sandbox.open(seed=3)
        code = """
import sys
print('héllo \\U0001f600'); print('err', file=sys.stderr); open('f', 'w').write('123')
input()
"""
        result = await session.run(code, stdin="given\n")
        assert (result.stdout, result.stderr, result.value) == ("héllo \U0001f600\n", "err\n", "'given'")
        assert [(f.name, f.size) for f in result.files] == [("f", 3)]
        assert result.wall_s > 0


async def test_stateless_and_seeded_sessions() -> None:
    async with serving() as server, client_of(server.url) as sandbox:
        stateless = await sandbox.open(stateless=True)
        assert (await stateless.run("x = 1; x")).value == "1"
        assert (await stateless.run("x")).status is Status.ERROR
        draw = "import random; random.random()"
        values = [(await (await sandbox.open(seed=11)).run(draw)).value for _ in range(2)]
        assert values[0] == values[1]


async def test_limits_travel_with_the_session() -> None:
    async with serving() as server, client_of(server.url) as sandbox:
        session = await sandbox.open(Limits(output_bytes=1000))
        result = await session.run("print('x' * 100_000)")
        assert result.truncated
        assert len(result.stdout) < 1200


async def test_close_twice_and_use_after_close() -> None:
    async with serving() as server:
        async with client_of(server.url) as sandbox:
            session = await sandbox.open()
            await session.close()
            await session.close()
            with pytest.raises(SessionClosed):
                await session.run("1")
            await sandbox.open()
        assert len(server.sessions) == 0
        with pytest.raises(SandboxClosed):
            await sandbox.open()


async def test_a_cancelled_call_ends_the_program_and_keeps_the_session() -> None:
    async with serving(max_running=1) as server, client_of(server.url) as sandbox:
        session = await sandbox.open()
        await session.run("kept = 5")
        running = asyncio.create_task(session.run("import time\nwhile True: time.sleep(0.01)", 60.0))
        await until(lambda: server.queue.running == 1, "the start of the program")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        # With one program at a time, this also shows that the cancelled one has given up its turn.
        assert (await session.run("kept")).value == "5"


# -------------------------------------------------------------------------------------- a retry never runs
# twice


async def open_raw(server: SandboxServer) -> str:
    status, body, _ = await post(f"{server.url}/v1/sessions", {"request_id": os.urandom(8).hex()})
    assert status == 200
    return f"{server.url}/v1/sessions/{body['session_id']}/run"


async def test_the_same_request_id_runs_once() -> None:
    # Fails when ReplyStore.once forgets a request as soon as it is done.
    async with serving() as server:
        run = await open_raw(server)
        await post(run, {"request_id": "request-0", "code": "n = 0"})
        body = {"request_id": "request-1", "code": "n += 1; n"}
        first, second = await post(run, body), await post(run, body)
        assert first[1] == second[1]
        assert first[1]["result"]["value"] == "1"
        _, after, _ = await post(run, {"request_id": "request-2", "code": "n"})
        assert after["result"]["value"] == "1"
        assert server.replies.replays == 1


def counting_after(seconds: float) -> dict[str, str]:
    """A request that counts how often it runs."""
    code = f"import time; time.sleep({seconds}); n = globals().get('n', 0) + 1; n"
    return {"request_id": "request-1", "code": code}


async def test_a_retry_while_the_first_still_runs_waits_for_it() -> None:
    async with serving() as server:
        run = await open_raw(server)
        body = counting_after(0.3)
        replies = await asyncio.gather(*(post(run, body) for _ in range(3)))
        assert [reply[1]["result"]["value"] for reply in replies] == ["1", "1", "1"]


async def test_a_client_that_hangs_up_and_asks_again_gets_the_reply() -> None:
    async with serving() as server:
        run = await open_raw(server)
        body = counting_after(0.5)
        with pytest.raises(TimeoutError):
            await post(run, body, timeout=aiohttp.ClientTimeout(total=0.2))
        assert (await post(run, body))[1]["result"]["value"] == "1"


async def test_a_request_id_used_for_something_else_is_refused() -> None:
    async with serving() as server:
        run = await open_raw(server)
        await post(run, {"request_id": "request-1", "code": "1"})
        status, body, _ = await post(run, {"request_id": "request-1", "code": "2"})
        assert (status, body["error"]["code"]) == (409, "request_conflict")


class CuttingProxy:
    """Stands between client and server and drops the first connection after a request has gone through."""

    def __init__(self, port: int, trigger: bytes) -> None:
        self._port, self._trigger = port, trigger
        self.cuts = 0
        self._relays: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._relays.add(asyncio.create_task(self._relay(reader, writer)))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)

        async def answers() -> None:
            while data := await from_server.read(65536):
                writer.write(data)

        answering = asyncio.create_task(answers())
        try:
            while data := await reader.read(65536):
                to_server.write(data)
                if self._trigger in data and not self.cuts:
                    self.cuts += 1
                    await to_server.drain()
                    break
        finally:
            answering.cancel()
            writer.transport.abort()  # before anything is awaited: a second cancellation may come there
            to_server.close()
            await asyncio.gather(answering, return_exceptions=True)


async def test_a_connection_cut_in_the_middle_is_retried_and_runs_once() -> None:
    async with serving() as server:
        proxy = CuttingProxy(int(server.url.rpartition(":")[2]), b"n += 1")
        async with proxy as url, client_of(url) as sandbox:
            session = await sandbox.open()
            await session.run("n = 0")
            assert (await session.run("n += 1; n")).value == "1"
            assert proxy.cuts == 1
            assert (await session.run("n")).value == "1"


# ---------------------------------------------------------------------------------- servers that are lost


@pytest.mark.slow
async def test_a_server_killed_in_the_middle_of_a_call_is_an_infrastructure_failure() -> None:
    # Fails when RemoteSession.run does not catch ServerLost: then the trainer gets an exception.
    async with server_process() as (process, url), client_of(url) as sandbox:
        session = await sandbox.open()
        assert (await session.run("1")).ok
        running = asyncio.create_task(session.run("import time; time.sleep(30)", 60.0))
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        result = await running
        assert result.status is Status.INFRASTRUCTURE_FAILURE
        assert not result.session_alive
        assert url in (result.error or "")
        with pytest.raises(SandboxUnavailable, match="no sandbox server can be reached"):
            await sandbox.open()


@pytest.mark.slow
async def test_sessions_move_to_a_server_that_lives() -> None:
    async with (
        server_process() as (first, first_url),
        serving() as second,
        client_of(first_url, second.url) as sandbox,
    ):
        sessions = [await sandbox.open() for _ in range(4)]
        assert [s.endpoint.url for s in sessions].count(first_url) == 2  # the load is shared
        first.send_signal(signal.SIGKILL)
        results = await asyncio.gather(*(s.run("1") for s in sessions))
        lost = [s for s, r in zip(sessions, results, strict=True) if r.infrastructure_failure]
        assert len(lost) == 2
        again = await asyncio.gather(*(s.run("1 + 1") for s in sessions))
        assert [r.value for r in again] == ["2"] * 4
        assert {s.endpoint.url for s in sessions} == {second.url}


async def test_a_pool_takes_the_servers_that_it_is_told_of() -> None:
    async with serving() as first, serving() as second, client_of(first.url) as sandbox:
        kept = await sandbox.open()
        await sandbox.use_servers([first.url, second.url])
        assert (await kept.run("1 + 1")).value == "2"
        await sandbox.use_servers([second.url])
        assert (await sandbox.open()).endpoint.url == second.url
        with pytest.raises(SandboxError, match="http://127.0.0.1:9"):
            await sandbox.use_servers([second.url, "http://127.0.0.1:9"])
        assert (await sandbox.open()).endpoint.url == second.url  # as it was


@pytest.mark.slow
async def test_a_server_that_was_restarted_has_lost_the_session() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with server_process(str(port)) as (first, url), client_of(url) as sandbox:
        session = await sandbox.open()
        await session.run("x = 1")
        first.send_signal(signal.SIGKILL)
        await asyncio.to_thread(first.wait)
        async with server_process(str(port)):
            result = await session.run("x")
            assert result.status is Status.INFRASTRUCTURE_FAILURE
            assert not result.session_alive
            assert (await session.run("'new'")).value == "'new'"


async def test_no_server_at_all() -> None:
    with pytest.raises(SandboxUnavailable, match=r"127\.0\.0\.1:9"):
        async with client_of("http://127.0.0.1:9"):
            pass


async def test_something_that_is_no_sandbox_server() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    with pytest.raises(SandboxUnavailable, match="not what was agreed"):
        async with client_of(f"http://127.0.0.1:{port}"):
            pass
    other.close()


@pytest.mark.slow
async def test_a_server_that_falls_silent_is_lost() -> None:
    async with serving() as server:
        silent: list[asyncio.StreamWriter] = []

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            silent.append(writer)
            await reader.read()

        trap = await asyncio.start_server(swallow, "127.0.0.1", 0)
        async with client_of(server.url, silence_s=0.3) as sandbox:
            session = await sandbox.open()
            session.endpoint.url = f"http://127.0.0.1:{trap.sockets[0].getsockname()[1]}"
            result = await session.run("1")
            assert result.infrastructure_failure
            assert "timed out" in (result.error or "")
        for writer in silent:
            writer.close()
        trap.close()


@pytest.mark.slow
async def test_a_long_program_is_not_taken_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fails when Routes._answer_when_done waits for the whole reply before it sends a byte.
    monkeypatch.setattr("agentrl_sandbox.server.routes.KEEPALIVE_S", 0.1)
    async with serving() as server, client_of(server.url, silence_s=0.5) as sandbox:
        session = await sandbox.open()
        result = await session.run("import time; time.sleep(1); 'done'")
        assert result.value == "'done'"


# --------------------------------------------------------------------------------------- leases and overload


async def test_a_session_whose_client_is_gone_is_closed() -> None:
    async with serving(lease_s=0.3) as server:
        await open_raw(server)
        assert len(server.sessions) == 1
        await until(lambda: server.sessions.expired == 1, "the end of the lease")
        assert len(server.sessions) == 0


@pytest.mark.slow
async def test_a_lease_does_not_run_out_during_a_call() -> None:
    async with serving(lease_s=1.0) as server:
        run = await open_raw(server)
        _, body, _ = await post(run, {"request_id": "request-1", "code": "import time; time.sleep(1.5); 7"})
        assert body["result"]["value"] == "7"


@pytest.mark.slow
async def test_a_waiting_client_renews_its_leases() -> None:
    # Fails when RemoteSandbox.start does not start `_beat`.
    async with serving(lease_s=1.5) as server, client_of(server.url) as sandbox:
        session = await sandbox.open()
        await session.run("x = 1")
        await asyncio.sleep(2.5)
        assert (await session.run("x")).value == "1"


async def test_a_full_server_says_when_to_come_back() -> None:
    async with serving(max_sessions=1) as server:
        await open_raw(server)
        status, body, headers = await post(f"{server.url}/v1/sessions", {"request_id": "request-9"})
        assert (status, body["error"]["code"]) == (429, "overloaded")
        assert 1 <= int(headers["Retry-After"]) <= 30


async def test_a_full_queue_refuses_at_once_and_runs_nothing() -> None:
    async with serving(max_running=1, max_waiting=1) as server:
        runs = [await open_raw(server) for _ in range(3)]
        endless = {"code": "import time\nwhile True: time.sleep(0.01)", "timeout": 60.0}
        running = asyncio.create_task(post(runs[0], endless | {"request_id": "request-0"}))
        await until(lambda: server.queue.running == 1, "the start of a program")
        waiting = asyncio.create_task(post(runs[1], endless | {"request_id": "request-1"}))
        await until(lambda: server.queue.waiting == 1, "the wait for a turn")
        last = {"code": "1", "request_id": "request-2"}
        status, body, headers = await post(runs[2], last)
        assert (status, body["error"]["code"], "Retry-After" in headers) == (429, "overloaded", True)
        for number in (1, 0):
            cancel = runs[number].replace("/run", "/cancel")
            assert (await post(cancel, {"request_id": f"request-{number}"}))[1] == {"cancelled": True}
        assert [reply[0] for reply in await asyncio.gather(running, waiting)] == [410, 410]
        # The refused request was not run, so that the same request id is run now.
        status, reply, _ = await post(runs[2], last)
        assert (status, reply["result"]["value"]) == (200, "1")


async def test_the_client_waits_for_a_turn_and_queue_time_is_not_the_programs() -> None:
    # Three programs of 0.4 s, one at a time, each with a limit of 1 s: the last waits 0.8 s and is still in
    # time.
    async with (
        serving(max_running=1, max_waiting=1) as server,
        client_of(server.url, patience_s=30.0) as sandbox,
    ):
        sessions = [await sandbox.open() for _ in range(3)]
        code = "import time; time.sleep(0.4); 'in time'"
        results = await asyncio.gather(*(s.run(code, 1.0) for s in sessions))
        assert [r.value for r in results] == ["'in time'"] * 3


async def test_patience_has_an_end() -> None:
    async with serving(max_sessions=1) as server, client_of(server.url, patience_s=0.5) as sandbox:
        await sandbox.open()
        with pytest.raises(PoolExhausted, match=r"no sandbox server had a session free for 0\.5 s"):
            await sandbox.open()


# ------------------------------------------------------------------------------------------- who may do what


async def test_a_wrong_token_is_refused_everywhere_but_at_the_health_check() -> None:
    # Fails when `_check_token` is left out of the middlewares.
    async with serving(token="right") as server, aiohttp.ClientSession() as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            for method, path in (
                ("GET", "/v1/status"), ("GET", "/metrics"), ("POST", "/v1/sessions"), ("POST", "/v1/leases"),
                ("POST", "/v1/sessions/x/run"), ("POST", "/v1/sessions/x/cancel"),
                ("DELETE", "/v1/sessions/x"),
            ):  # fmt: skip
                async with http.request(method, server.url + path, headers=headers, json={}) as response:
                    assert response.status == 401, (method, path, headers)
        async with http.get(server.url + "/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        with pytest.raises(SandboxUnavailable, match="bearer token"):
            async with client_of(server.url, token="wrong"):
                pass
        async with client_of(server.url, token="right") as sandbox:
            assert (await (await sandbox.open()).run("1")).ok


async def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(token="secret-token") as server:
        monkeypatch.setenv("AGENTRL_SANDBOX_TOKEN", "secret-token")
        async with client_of(server.url) as sandbox:
            assert (await (await sandbox.open()).run("1")).ok
    assert "secret-token" not in repr(server.settings)


async def test_one_session_cannot_be_guessed_from_another() -> None:
    async with serving() as server:
        first, second = await open_raw(server), await open_raw(server)
        assert first != second
        assert len(first.split("/")[-2]) >= 24


async def test_limits_above_the_servers_ceiling_are_refused() -> None:
    async with serving(ceiling=Limits(memory_mb=256)) as server, client_of(server.url) as sandbox:
        with pytest.raises(SandboxUnavailable, match="memory_mb 512 is above this server's 256"):
            await sandbox.open()
        assert (await (await sandbox.open(Limits(memory_mb=256))).run("1")).ok


# -------------------------------------------------------------------------------------------- requests that
# lie


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"{}", "'code' is missing"),
        (b'{"code": 1, "request_id": "request-1"}', "'code' must be str, not int"),
        (b'{"code": "1"}', "'request_id' is missing"),
        (b'{"code": "1", "request_id": "x"}', "8 to 100 characters"),
        (b'{"code": "1", "request_id": "request-1", "timeout": "1"}', "'timeout' must be"),
        (b'{"code": "1", "request_id": "request-1", "timeout": true}', "'timeout' must be"),
        (b'{"code": "1", "request_id": "request-1", "timeout": -1}', "above 0"),
        (b'{"code": "1", "request_id": "request-1", "timeout": NaN}', "above 0"),
        (b'{"code": "1", "request_id": "request-1", "stdin": 5}', "'stdin' must be str"),
    ],
)
async def test_garbage_is_refused_with_the_reason(body: bytes, says: str) -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        headers = {"Content-Type": "application/json"}
        url = f"{server.url}/v1/sessions/unknown/run"
        async with http.post(url, data=body, headers=headers) as response:
            assert response.status == 400
            assert says in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ([], "'limits' must be"),
        ({"memory": 5}, "'limits' has no 'memory'"),
        ({"memory_mb": "5"}, "limits.memory_mb must be a number"),
        ({"memory_mb": -5}, "outside"),
        ({"time_s": 1e300}, "outside"),
    ],
)
async def test_bad_limits_are_refused_with_the_reason(limits: Any, says: str) -> None:
    async with serving() as server:
        status, body, _ = await post(
            f"{server.url}/v1/sessions", {"request_id": "request-1", "limits": limits}
        )
        assert status == 400
        assert says in body["error"]["message"]


async def test_other_content_types_bodies_paths_and_sessions() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        async with http.post(f"{server.url}/v1/sessions", data="{}") as response:
            assert response.status == 400
            assert "application/json" in (await response.json())["error"]["message"]
        huge = b'{"code": "' + b"x" * (20 << 20) + b'"}'
        headers = {"Content-Type": "application/json"}
        body = io.BytesIO(huge)
        async with http.post(f"{server.url}/v1/sessions/x/run", data=body, headers=headers) as response:
            assert response.status == 413
        async with http.get(f"{server.url}/nothing") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
        status, body, _ = await post(
            f"{server.url}/v1/sessions/unknown/run", {"request_id": "request-1", "code": "1"}
        )
        assert (status, body["error"]["code"]) == (404, "unknown_session")
        async with http.delete(f"{server.url}/v1/sessions/unknown") as response:
            assert (response.status, await response.json()) == (200, {"closed": False})


async def test_the_server_lives_on_after_bytes_that_are_no_http() -> None:
    async with serving() as server:
        host, port = server.url.removeprefix("http://").split(":")
        for garbage in (
            b"\x00\xff" * 500,
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/sessions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
        async with client_of(server.url) as sandbox:
            assert (await (await sandbox.open()).run("1")).ok


async def test_code_that_is_too_long_is_the_programs_error() -> None:
    async with serving() as server, client_of(server.url) as sandbox:
        session = await sandbox.open(Limits(source_bytes=100))
        result = await session.run("#" * 200)
        assert result.status is Status.ERROR
        assert (await session.run("1")).ok


# --------------------------------------------------------------------------------------- operation of a
# server


async def test_metrics_count_what_happened() -> None:
    async with serving() as server:
        async with client_of(server.url) as sandbox:
            session = await sandbox.open()
            await session.run("1")
            await session.run("1/0")
            await post(f"{server.url}/v1/sessions", {})
            async with aiohttp.ClientSession() as http, http.get(f"{server.url}/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                lines = (await response.text()).splitlines()
        for line in (
            'agentrl_sandbox_runs_total{status="ok"} 1',
            'agentrl_sandbox_runs_total{status="error"} 1',
            'agentrl_sandbox_rejected_total{reason="400"} 1',
            "agentrl_sandbox_sessions_opened_total 1",
            "agentrl_sandbox_sessions_live 1",
            "agentrl_sandbox_run_seconds_count 2",
            'agentrl_sandbox_run_seconds_bucket{le="+Inf"} 2',
        ):
            assert line in lines


async def test_a_draining_server_finishes_what_it_has_and_takes_nothing_new() -> None:
    async with serving(drain_s=20.0) as server, client_of(server.url) as sandbox:
        session = await sandbox.open()
        stopping = asyncio.create_task(server.stop())
        await until(lambda: server.draining, "draining")
        status, body, _ = await post(f"{server.url}/v1/sessions", {"request_id": "request-1"})
        assert (status, body["error"]["code"]) == (503, "draining")
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/healthz") as response:
            assert response.status == 503
        assert (await session.run("'still'")).value == "'still'"
        await session.close()
        await stopping


@pytest.mark.slow
async def test_sigterm_ends_a_server_cleanly() -> None:
    async with server_process() as (process, url), client_of(url) as sandbox:
        await (await sandbox.open()).run("1")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_server_below_the_level_asked_for_is_not_used() -> None:
    async with serving() as server:
        with pytest.raises(SandboxUnavailable, match="below the virtual asked for"):
            async with client_of(server.url, min_level="virtual"):
                pass


async def _raw(server: SandboxServer, *parts: bytes, wait_s: float = 20.0, pause_s: float = 0.0) -> bytes:
    """What a server answers to bytes as they are, until it hangs up."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(wait_s):
            return await reader.read()
    finally:
        writer.close()


def _post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    wanted = {b"Content-Type": b"application/json", b"Authorization": b"Bearer token"}
    for header in headers:
        name, _, value = header.partition(b": ")
        wanted[name] = value
    lines = [b"POST %s HTTP/1.1" % path, b"Host: x", b"Connection: close", b"Content-Length: %d" % len(body)]
    lines += [b"%s: %s" % item for item in wanted.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


BAD_REQUESTS = {
    "a token that is no UTF-8": (_post(b"/v1/sessions", b"{}", b"Authorization: Bearer \xff\xfe"), 401),
    "a scheme that is no UTF-8": (_post(b"/v1/sessions", b"{}", b"Authorization: \xff x"), 401),
    "a token of other letters": (
        _post(b"/v1/sessions", b"{}", "Authorization: Bearer t\N{LATIN SMALL LETTER O WITH STROKE}ken".encode()),
        401,
    ),
    "no scheme": (_post(b"/v1/sessions", b"{}", b"Authorization: token"), 401),
    "a content type that is none": (_post(b"/v1/sessions", b"{}", b"Content-Type: \xff/\xff"), 400),
    "a charset that is none": (_post(b"/v1/leases", b"{}", b"Content-Type: application/json; charset=\xff"), 400),
    "a body that is no UTF-8": (_post(b"/v1/sessions", b"\xff\xfe{}"), 400),
    "a body that says it is packed": (_post(b"/v1/sessions", b"{}", b"Content-Encoding: gzip"), 400),
    "half a surrogate as id": (_post(b"/v1/sessions/x/run", b'{"request_id": "\\ud800aaaaaaaa", "code": "1"}'), 404),
    "half a surrogate in the path": (
        _post(b"/v1/sessions/%ed%a0%80%ff/run", b'{"request_id": "aaaaaaaaaaaa", "code": "1"}'),
        404,
    ),
    "a path with zeros": (_post(b"/v1/sessions/%00/run", b'{"request_id": "aaaaaaaaaaab", "code": "1"}'), 404),
    "deep nesting": (_post(b"/v1/sessions", b"[" * 100_000), 400),
    "a number of 5,000 digits": (_post(b"/v1/sessions", b'{"request_id": "aaaaaaaaaaac", "seed": 1%s}' % (b"0" * 5000)), 400),
    "a limit that is no number": (
        _post(b"/v1/sessions", b'{"request_id": "aaaaaaaaaaad", "limits": {"time_s": NaN}}'),
        400,
    ),
    "an infinite time": (_post(b"/v1/sessions/x/run", b'{"request_id": "aaaaaaaaaaae", "code": "1", "timeout": Infinity}'), 400),
    "a request line that is none": (b"\xff\xfe\r\n\r\n", 400),
    "a header that is none": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\xff\r\nConnection: close\r\n\r\n", 400),
    "a length that is none": (b"POST /v1/leases HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
    "a chunk that is none": (
        _post(b"/v1/leases", b"xyz\r\n", b"Transfer-Encoding: chunked").replace(b"Content-Length: 5", b"X-Y: z"),
        400,
    ),
    "a method that is none": (b"FETCH /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "a method that is not offered": (b"PUT /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_REQUESTS)
async def test_bad_requests_are_refused_and_none_is_an_error_of_the_server(what: str, caplog: Any) -> None:
    # Fails (500 and a traceback in the log) where a token is encoded as if it were UTF-8.
    request, status = BAD_REQUESTS[what]
    async with serving(token="token") as server:
        answer = await _raw(server, request)
    assert answer[8:13] == b" %d " % status, answer[:300]
    assert not [record for record in caplog.records if record.exc_info]


async def test_the_right_token_is_let_in_whatever_its_letters() -> None:
    async with serving(token="t\N{LATIN SMALL LETTER O WITH STROKE}ken") as server:
        header = "Authorization: Bearer t\N{LATIN SMALL LETTER O WITH STROKE}ken".encode()
        answer = await _raw(server, _post(b"/v1/leases", b'{"session_ids": []}', header))
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"POST /v1/leases HTTP/1.1\r\n", b"Host: x\r\n", b"X-A: b\r\n", b"X-B: c\r\n"),
        (_post(b"/v1/leases", b"x" * 1000)[:-900], b"x", b"x", b"x"),
    ],
    ids=["says nothing", "drips headers", "drips a body"],
)
async def test_slow_clients_are_closed(parts: tuple[bytes, ...]) -> None:
    # Fails (no end within 20 s) without `keepalive_timeout` or the limit of `read_body`.
    async with serving(token="token", client_limit_s=0.6) as server:
        answer = await _raw(server, *parts, pause_s=0.1)
    assert not answer or answer.startswith(b"HTTP/1.1 408 "), answer[:300]


@pytest.mark.slow
async def test_who_takes_no_reply_is_closed() -> None:
    # Fails without TCP_USER_TIMEOUT: the reply stays in the server's memory for as long as the client likes.
    limits = Limits(time_s=10.0, output_bytes=32 << 20)
    async with serving(token="token", client_limit_s=1.0) as server:
        server._limits = limits
        session = (await server.open_session(limits, stateless=False, seed=None))["session_id"]
        body = b'{"request_id": "aaaaaaaaaaaa", "code": "print(\'x\' * 30_000_000)"}'
        host, port = server.url.removeprefix("http://").split(":")
        deaf = socket.create_connection((host, int(port)))
        try:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(_post(b"/v1/sessions/%s/run" % session.encode(), body))
            async with asyncio.timeout(60):
                while server.metrics.run_seconds._sum == 0.0:  # noqa: ASYNC110 - until the reply is under way
                    await asyncio.sleep(0.05)
                while server._runner.server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        finally:
            deaf.close()


async def test_a_ceiling_holds_also_for_who_asks_for_nothing() -> None:
    ceiling = Limits(time_s=0.5, output_bytes=1024)
    async with serving(ceiling=ceiling) as server, aiohttp.ClientSession(server.url) as http:
        opened = await http.post("/v1/sessions", json={"request_id": "aaaaaaaa-1"})
        path = f"/v1/sessions/{(await opened.json())['session_id']}/run"
        ran = await http.post(path, json={"request_id": "aaaaaaaa-2", "code": "while True: pass"})
        assert (await ran.json())["result"]["status"] == "timeout"
        refused = await http.post(path, json={"request_id": "aaaaaaaa-3", "code": "1", "timeout": 5})
        assert refused.status == 400


async def test_many_calls_on_one_session_respect_the_length_of_the_queue() -> None:
    async with serving(max_waiting=20, max_running=2) as server, aiohttp.ClientSession(server.url) as http:
        opened = await http.post("/v1/sessions", json={"request_id": "aaaaaaaa-1"})
        path = f"/v1/sessions/{(await opened.json())['session_id']}/run"

        async def call(number: int) -> int:
            body = {"request_id": f"aaaaaaaa-run-{number}", "code": "import time; time.sleep(0.05)"}
            async with http.post(path, json=body) as response:
                return response.status

        statuses = await asyncio.gather(*(call(number) for number in range(100)))
        assert set(statuses) == {200, 429}
        assert 15 <= statuses.count(200) <= 60


async def test_a_retry_whose_reply_had_to_go_is_refused_and_not_run_again() -> None:
    async with serving(reply_mb=1) as server, aiohttp.ClientSession(server.url) as http:
        opened = await http.post("/v1/sessions", json={"request_id": "aaaaaaaa-1"})
        path = f"/v1/sessions/{(await opened.json())['session_id']}/run"
        once = {"request_id": "aaaaaaaa-once", "code": "count = globals().get('count', 0) + 1"}
        await http.post(path, json=once)
        for number in range(30):
            await http.post(path, json={"request_id": f"aaaaaaaa-{number}", "code": "print('x' * 60_000)"})
        again = await http.post(path, json=once)
        assert (again.status, (await again.json())["error"]["code"]) == (410, "reply_forgotten")
        count = await http.post(path, json={"request_id": "aaaaaaaa-count", "code": "count"})
        assert (await count.json())["result"]["value"] == "1"
        assert server.replies.bytes <= 1 << 20
