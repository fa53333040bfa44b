"""One session, seen from inside: a supervisor and the interpreter that it forks. Standard library only.

Run by path (`python -P -s -S driver.py` in a container) or loaded by the zygote of the local jail; imports
nothing of the package, and programs cannot import it. It knows nothing of how it is isolated.

**Processes.** The *supervisor* speaks with the host, holds the clock, collects output and reaps; the
*interpreter*, its child, runs the program. The program shares a process with nothing but the interpreter, so
whatever it forges, closes or overwrites harms its own session only. No secret is ever in either process.

**Wire protocol** (host <-> supervisor: one byte stream, or stdin and stdout in a container; the supervisor
moves them to other descriptors at once, so the program never holds them):

    frame   = u32 length of payload, payload                                     (big endian)
    payload = u32 length of header, header (JSON object, UTF-8), blobs one after another
    header["blobs"] = lengths of the blobs

host to supervisor:
    {"kind": "start", "limits": {...Limits}, "seed": int|null, "paths": [library directories],
     "directory": working directory, "environment": {...},
     "alone": true when the session owns its pid namespace (a kill then takes every process in it),
     "limit_processes": set RLIMIT_NPROC, "watch_memory": no control group limits memory: poll and kill,
     "watch_files": directory whose size nothing else limits: poll and kill}
    {"kind": "run", "id": 32 hex digits, "time_s": float, "blobs": [source code UTF-8, stdin UTF-8]}
    {"kind": "interrupt", "id": ...}      the caller has gone: interrupt the run, kill it after the grace
    end of stream                         kill everything and exit
supervisor to host:
    {"kind": "ready", "python": "3.11.2", "pid": int}
    {"kind": "result", "id": ..., "interrupted": bool,
     "cause": null|"time"|"memory"|"files"|"protocol"|"cancelled",
     "wait_status": null | status of wait(2) of the interpreter, when it is dead, "alive": bool,
     "cpu_s": float, "counted_s": float, "truncated": bool,
     "blobs": [what the interpreter says (JSON, untrusted; may be empty), stdout bytes, stderr bytes]}
    After a result with "alive": false the supervisor exits. {"kind": "failed", "reason": text} replaces
    "ready" when the interpreter could not be started.

What the interpreter says: {"kind": "ok"|"error"|"exit", "value": text|null, "error": text|null,
"exit_code": int|null, "files": [[name, size], ...]}. Between supervisor and interpreter: u32 length, 16 bytes
request id, then for a request u32 length of code, code, stdin; for a reply the JSON. A reply with another id,
a second reply, or one that is too long costs the session its life ("protocol").

**Time.** counted = wall time - the longest time that one of the session's processes stood in the run queue
(`/proc/PID/schedstat`), and at least the CPU time of all of them divided by the number of cores, so that a
crowd of processes cannot hide behind the queue it makes. At the limit SIGINT, after `grace_s` SIGKILL.
"""

from __future__ import annotations

import _signal
import ast
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
import types
from typing import Any

_PULSE_S = 0.1
_LOOK_S = 0.02  # longer than the kernel takes to book what a running program has run
_LINE_LOST = 117  # exit code of an interpreter whose line to the supervisor is broken
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FUTURE = 0
for _name in __import__("__future__").all_feature_names:
    _FUTURE |= getattr(__import__("__future__"), _name).compiler_flag


# ------------------------------------------------------------------------------------------------ framing


def write_all(fd, data):
    """Write every byte of `data`; the descriptor blocks."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exactly(fd, count):
    """Read `count` bytes; EOFError at the end of the stream."""
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError("the other end has gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_some(fd):
    """What there is, at least one byte; EOFError at the end of the stream."""
    data = os.read(fd, 65536)
    if not data:
        raise EOFError("the other end has gone")
    return data


def send_frame(fd, header, blobs=()):
    """Send one frame of the wire protocol."""
    head = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    body = b"".join((struct.pack("!I", len(head)), head, *blobs))
    write_all(fd, struct.pack("!I", len(body)) + body)


def receive_frame(fd):
    """Receive one frame: `(header, blobs)`."""
    return split_frame(read_exactly(fd, struct.unpack("!I", read_exactly(fd, 4))[0]))


def split_frame(body):
    """`(header, blobs)` of a payload."""
    end = 4 + struct.unpack_from("!I", body)[0]
    header = json.loads(body[4:end])
    blobs = []
    for length in header.get("blobs", ()):
        blobs.append(body[end : end + length])
        end += length
    return header, blobs


# --------------------------------------------------------------------------------------------- supervisor


class Output:
    """Collects one stream of a run: the first and the last half of `limit` bytes."""

    def __init__(self, limit):
        self.half = limit // 2
        self.head = bytearray()
        self.tail = bytearray()
        self.seen = 0

    def add(self, data):
        """Take the next bytes; what is neither head nor tail is forgotten."""
        self.seen += len(data)
        room = self.half - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data
        if len(self.tail) > 4 * self.half + 65536:
            del self.tail[: -self.half]

    def finish(self):
        """`(bytes, truncated)`; a cut never leaves part of a UTF-8 character at its edges."""
        left_out = self.seen - 2 * self.half
        if left_out <= 0:
            return bytes(self.head + self.tail), False
        head = bytes(self.head).decode("utf-8", "ignore") if _is_text(self.head) else bytes(self.head)
        tail = bytes(self.tail[-self.half :])
        start = 0
        while start < min(4, len(tail)) and tail[start] & 0xC0 == 0x80:
            start += 1
        head = head.encode() if isinstance(head, str) else head
        return head + b"\n... [%d bytes of output left out] ...\n" % left_out + tail[start:], True


def _is_text(data):
    try:
        bytes(data[:-4]).decode()
    except UnicodeDecodeError as error:
        return error.start > len(data) - 8
    return True


def read_small(path):
    """A small file of /proc in three system calls: a supervisor among its program's crowd has little time."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def group_of(pid):
    """Process group; None for a process that has gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return None


class Processes:
    """The processes of the session as /proc shows them: their CPU time, waits and memory."""

    def __init__(self, child, alone):
        self.child = child
        self.alone = alone
        self.me = os.getpid()
        self.waits = {}
        self.base_memory = self._memory(child)
        try:
            self.fd = os.open(f"/proc/{child}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self.schedstat = len(os.pread(self.fd, 100, 0).split()) == 3
        except OSError:
            self.fd, self.schedstat = -1, False

    def pids(self):
        """Process ids of the session, the supervisor apart; empty where /proc is not to be had."""
        try:
            found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        except OSError:
            return [self.child]
        if self.alone:
            return [pid for pid in found if pid not in (1, self.me)]
        return [pid for pid in found if group_of(pid) == self.child]

    def quick(self):
        """`(cpu seconds, wait seconds)` of the interpreter's main thread; one system call."""
        if self.schedstat:
            try:
                ran, waited, _ = os.pread(self.fd, 100, 0).split()
                return int(ran) / 1e9, int(waited) / 1e9
            except (OSError, ValueError):
                return 0.0, 0.0
        return self._cpu(self.child), 0.0

    def booked(self):
        """What the kernel has booked for the interpreter's main thread; it changes whenever that runs."""
        try:
            return os.pread(self.fd, 100, 0)
        except OSError:
            return b""

    def wants_to_run(self):
        """True while the interpreter's main thread runs or stands in the run queue."""
        return self._stat(self.child)[:1] == ["R"]

    def full(self):
        """`(cpu seconds of all, {pid: wait seconds})`."""
        total, waits = self._cpu(self.child), {}
        for pid in self.pids():
            try:
                ran, waited, _ = read_small(f"/proc/{pid}/schedstat").split()
            except (OSError, ValueError):
                continue
            waits[pid] = int(waited) / 1e9
            if pid != self.child:
                total += int(ran) / 1e9
        return total, waits

    def memory(self):
        """Bytes that the processes do not share with the interpreter as it was at its start."""
        return sum(max(0, self._memory(pid) - self.base_memory) for pid in self.pids())

    def sleeping(self):
        """True when no process of the session wants to run."""
        return all(self._stat(pid)[:1] not in (["R"], ["D"]) for pid in self.pids())

    def kill_others(self):
        """Kill all but the interpreter; False when that cannot be done."""
        for _ in range(5):
            if not self._others():
                return True
            # Stop all in one call first: a crowd that forks while it is killed one by one never ends.
            self._signal_all(signal.SIGSTOP)
            for pid in self._others():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGCONT)
            time.sleep(0.002)
        return False

    def _others(self):
        return [pid for pid in self.pids() if pid != self.child and self._stat(pid)[:1] not in ([], ["Z"])]

    def _signal_all(self, number):
        with contextlib.suppress(OSError):
            if self.alone:
                os.kill(-1, number)
            else:
                os.killpg(self.child, number)

    def kill(self):
        """Kill all of them."""
        self._signal_all(signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(self.child, signal.SIGKILL)

    def _stat(self, pid):
        """Fields of /proc/PID/stat from the state on."""
        try:
            return read_small(f"/proc/{pid}/stat").rpartition(b")")[2].decode().split()
        except OSError:
            return []

    def _cpu(self, pid):
        stat = self._stat(pid)
        return sum(map(int, stat[11:15])) / _TICKS if len(stat) > 15 else 0.0

    def _memory(self, pid):
        try:
            _, resident, shared, *_ = read_small(f"/proc/{pid}/statm").split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE


def exceeds(directory, limits):
    """True when the files below `directory` are more, or larger, than the limits."""
    count = size = 0
    for path, directories, names in os.walk(directory):
        count += len(directories) + len(names)
        for name in names[:20000]:
            try:
                size += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
        if count > limits["files"] or size > limits["file_mb"] << 20:
            return True
    return False


class Run:
    """The run in progress: its clock and its output."""

    def __init__(self, request, time_s, limits, processes):
        self.id = request
        self.time_s = time_s
        self.out = Output(limits["output_bytes"])
        self.err = Output(limits["output_bytes"])
        self.began = self.pulse = time.monotonic()
        self.cpu, self.wait = processes.quick()
        self.total_cpu: float | None = None
        self.slept = 0.0
        self.interrupted_at: float | None = None
        self.cause: str | None = None
        self.suspect: bytes | None = None

    def over(self, processes, limit_s):
        """True when `limit_s` has been counted, and none of it is a wait that the kernel has not booked yet.

        A wait is booked when it ends, so a program that stands in the run queue looks busy until it runs
        again. It is therefore looked at twice: in between it must have run, or it must not want to.
        """
        if self.counted(processes) < limit_s:
            self.suspect = None
            return False
        if not processes.schedstat:
            return True
        booked = processes.booked()
        if self.suspect is None:
            self.suspect = booked
            return False
        return booked != self.suspect or not processes.wants_to_run()

    def counted(self, processes):
        """Seconds that count against the limit; see the module's docstring."""
        now = time.monotonic()
        wall = now - self.began
        if not processes.schedstat:
            # Without run queue times: CPU time, and wall time only while nothing wants to run.
            if processes.sleeping():
                self.slept += now - self.pulse
            self.pulse = now
            return min(wall, processes.full()[0] - self.cpu + self.slept)
        cpu, waits = processes.full()
        if self.total_cpu is None:
            self.total_cpu = max(0.0, cpu - wall * len(waits))
        waited = max(
            (wait - (self.wait if pid == processes.child else processes.waits.get(pid, 0.0)))
            for pid, wait in [(processes.child, processes.quick()[1]), *waits.items()]
        )
        return max(wall - max(0.0, waited), (cpu - self.total_cpu) / (os.cpu_count() or 1))


class Supervisor:
    """Stands between the host and the interpreter; see the module's docstring."""

    def __init__(self, host_in, host_out, confine=None):
        self.host_in, self.host_out, self.confine = host_in, host_out, confine
        self.run: Any = None  # the Run in progress
        self.wait_status = None
        self.pending = b""

    def serve(self, start=None):
        """Serve until the host hangs up or the interpreter is dead. `start`: its frame, if read already."""
        self.start = start or receive_frame(self.host_in)[0]
        self.limits = self.start["limits"]
        os.environ.clear()
        os.environ.update(self.start.get("environment", {}))
        wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self._reap)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._spawn()
        answer = os.read(self.line, 4096) if select.select([self.line], [], [], 30)[0] else b"-no answer"
        if answer[:1] != b"+":
            reason = answer[1:] or os.read(self.err, 4096)
            send_frame(self.host_out, {"kind": "failed", "reason": reason.decode(errors="replace")})
            return
        self.processes = Processes(self.child, bool(self.start.get("alone")))
        version = ".".join(map(str, sys.version_info[:3]))
        send_frame(self.host_out, {"kind": "ready", "python": version, "pid": os.getpid()})
        poll = select.poll()
        for fd in (self.host_in, self.line, wake):
            poll.register(fd, select.POLLIN)
        self.poll, self.deaf = poll, True
        while True:
            for fd, _ in poll.poll(self._patience()):
                if fd == wake:
                    os.read(wake, 4096)
                elif fd == self.host_in:
                    if not self._from_host():
                        self.processes.kill()
                        return
                elif fd == self.out or fd == self.err:
                    self._drain(fd, 1)
                    if self.run is None:
                        self._be_deaf()  # a thread that prints for ever must not keep us busy
                elif fd == self.line and self.wait_status is None:
                    self._from_interpreter()
            if self.run and self.wait_status is None:
                self._watch()
            if self.wait_status is not None:
                self.processes.kill()
                if self.run:
                    self._finish(b"", alive=False)
                    return
                # Died between two runs: the next one is told.
                poll.unregister(self.line) if self.line >= 0 else None
                self._bury()
                return

    def _spawn(self):
        import socket

        ours, theirs = socket.socketpair()
        out, out_write = os.pipe2(os.O_CLOEXEC)
        err, err_write = os.pipe2(os.O_CLOEXEC)
        self.child = os.fork()
        if self.child == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                line = theirs.detach()
                os.dup2(out_write, 1)
                os.dup2(err_write, 2)
                keep = {line}
                interpreter = Interpreter(line, self.start, self.confine, keep)
                interpreter.serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        self.line, self.out, self.err = ours.detach(), out, err
        theirs.close()
        os.close(out_write)
        os.close(err_write)
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        with contextlib.suppress(OSError):
            os.setpgid(self.child, self.child)

    def _reap(self, *_):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.wait_status = status
                if self.run and self.run.cause is None and status == _LINE_LOST << 8:
                    self.run.cause = "protocol"

    def _patience(self):
        """Milliseconds until the clock must be looked at."""
        if self.run is None:
            return None
        elapsed = time.monotonic() - self.run.began
        if self.run.interrupted_at is not None or not self.processes.schedstat:
            return 50
        left = max(_LOOK_S, self.run.time_s - elapsed)
        if self.start.get("watch_memory") or self.start.get("watch_files"):
            left = min(left, _PULSE_S)
        return int(left * 1000) + 1

    def _from_host(self):
        try:
            self.pending += read_some(self.host_in)
            while len(self.pending) >= 4:
                end = 4 + struct.unpack_from("!I", self.pending)[0]
                if len(self.pending) < end:
                    self.pending += read_exactly(self.host_in, end - len(self.pending))
                frame, self.pending = self.pending[4:end], self.pending[end:]
                self._obey(*split_frame(frame))
        except (EOFError, OSError, ValueError, KeyError):
            return False
        return True

    def _obey(self, header, blobs):
        if header["kind"] == "run" and self.run is None:
            if self.deaf:
                self.deaf = False
                for fd in (self.out, self.err):
                    self._drain(fd, 64)  # what came between two runs belongs to none
                    self.poll.register(fd, select.POLLIN)
            self.run = Run(header["id"], header["time_s"], self.limits, self.processes)
            code, stdin = blobs
            body = bytes.fromhex(header["id"]) + struct.pack("!I", len(code)) + code + stdin
            try:
                write_all(self.line, struct.pack("!I", len(body)) + body)
            except OSError:
                self._lose("protocol")
        elif header["kind"] == "interrupt" and self.run and self.run.id == header["id"]:
            self._interrupt("cancelled")

    def _from_interpreter(self):
        """One reply to the request in progress, or the session is lost."""
        limit = 16 * self.limits["output_bytes"] + 65536
        try:
            body = os.read(self.line, 65536)
            if not body:
                raise EOFError("closed")
            length = struct.unpack("!I", body[:4] + self._read_line(4 - len(body[:4])))[0]
            if self.run is None or not 16 <= length <= limit:
                raise ValueError("a reply that nobody asked for, or too long")
            body = body[4:]
            if len(body) < length:
                body += self._read_line(length - len(body))
            if len(body) != length or body[:16].hex() != self.run.id:
                raise ValueError("a reply to another request")
        except (EOFError, OSError, ValueError):
            # The end of the line is also how a death looks; give the signal a moment to tell which.
            self._await_death(0.05)
            if self.wait_status is None:
                self._lose("protocol")
            return
        if self.run.interrupted_at is not None and not self.processes.kill_others():
            return self._lose(self.run.cause)
        self._finish(body[16:], alive=True)

    def _read_line(self, count):
        """Like `read_exactly`, but a program that writes half a frame does not stop the clock."""
        parts = []
        end = time.monotonic() + 2.0
        while count:
            if not select.select([self.line], [], [], max(0.0, end - time.monotonic()))[0]:
                raise ValueError("half a reply")
            part = os.read(self.line, min(count, 1 << 20))
            if not part:
                raise EOFError("closed")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _watch(self):
        """Look at the clock and, where nobody else does, at the memory."""
        run = self.run
        elapsed = time.monotonic() - run.began
        watched = self.start.get("watch_memory") and elapsed > _PULSE_S / 2
        if watched and self.processes.memory() > self.limits["memory_mb"] << 20:
            return self._lose("memory")
        watched = self.start.get("watch_files")
        if watched and elapsed > _PULSE_S / 2 and exceeds(watched, self.limits):
            return self._lose("files")
        if run.interrupted_at is not None:
            if run.over(self.processes, run.interrupted_at + self.limits["grace_s"]):
                self._lose(run.cause)
        elif elapsed >= run.time_s and run.over(self.processes, run.time_s):
            self._interrupt("time")

    def _interrupt(self, cause):
        if self.run.interrupted_at is None:
            self.run.cause, self.run.suspect = cause, None
            self.run.interrupted_at = self.run.counted(self.processes)
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGINT)

    def _lose(self, cause):
        """Kill the interpreter; the loop sees its death."""
        self.run.cause = cause
        self.cpu_before = self._cpu_used()
        self.processes.kill()
        self._await_death(5.0)

    def _await_death(self, seconds):
        end = time.monotonic() + seconds
        while self.wait_status is None and time.monotonic() < end:
            time.sleep(0.002)

    def _drain(self, fd, most):
        """Read what is there, at most `most` pieces, so that a flood does not stop the clock."""
        target = None
        if self.run:
            target = self.run.out if fd == self.out else self.run.err
        for _ in range(most):
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            if not data:
                if target is not None:
                    self._forget(fd)
                return
            if target is not None:
                target.add(data)

    def _be_deaf(self):
        """Stop listening to the output until the next run."""
        self.deaf = True
        self._forget(self.out)
        self._forget(self.err)

    def _forget(self, fd):
        with contextlib.suppress(KeyError):
            self.poll.unregister(fd)

    def _cpu_used(self):
        cpu = self.processes.quick()[0] - self.run.cpu
        if time.monotonic() - self.run.began > _PULSE_S / 2 and self.run.total_cpu is not None:
            cpu = max(cpu, self.processes.full()[0] - self.run.total_cpu)
        return max(0.0, cpu)

    def _finish(self, said, alive):
        """Send the result of the run."""
        run = self.run
        ready = self.poll.poll(0) if alive else [(self.out, 0), (self.err, 0)]
        for fd, _ in ready:
            if fd == self.out or fd == self.err:
                self._drain(fd, 64)
        stdout, cut_out = run.out.finish()
        stderr, cut_err = run.err.finish()
        wall = time.monotonic() - run.began
        header = {
            "kind": "result",
            "id": run.id,
            "interrupted": run.interrupted_at is not None,
            "cause": run.cause,
            "wait_status": self.wait_status,
            "alive": alive,
            "cpu_s": self._cpu_used() if alive else getattr(self, "cpu_before", 0.0) or self._dead_cpu(),
            "counted_s": wall if alive else run.interrupted_at or wall,
            "truncated": cut_out or cut_err,
        }
        self.run = None
        send_frame(self.host_out, header, (said, stdout, stderr))

    def _dead_cpu(self):
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return max(0.0, usage.ru_utime + usage.ru_stime - self.run.cpu)

    def _bury(self):
        """The interpreter died between two runs: answer the next one with that, then go."""
        header, _ = receive_frame(self.host_in)
        while header["kind"] != "run":
            header, _ = receive_frame(self.host_in)
        self.run = Run(header["id"], header["time_s"], self.limits, self.processes)
        self._finish(b"", alive=False)


# -------------------------------------------------------------------------------------------- interpreter


class Interpreter:
    """Runs programs with the semantics of a notebook: state kept, last bare expression shown."""

    def __init__(self, line, start, confine, keep):
        self.line, self.pid = line, os.getpid()
        self.start, self.limits = start, start["limits"]
        self.count, self.flags, self.running = 0, 0, False
        self.seen_files, self.directory_mark, self.runner = {}, None, None
        try:
            self._prepare(confine, keep)
        except BaseException as error:
            write_all(line, b"-" + f"{type(error).__name__}: {error}"[:4000].encode())
            os._exit(1)
        write_all(line, b"+")

    def _prepare(self, confine, keep):
        os.setpgid(0, 0)
        self.directory = self.start.get("directory") or os.getcwd()
        os.makedirs(self.directory, exist_ok=True)
        os.chdir(self.directory)
        self.null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(self.null, 0)
        self.private_out = os.dup(1)
        self.private_err = os.dup(2)
        _close_others({0, 1, 2, self.line, self.null, self.private_out, self.private_err} | keep)
        self._streams()
        sys.path[:] = [path for path in sys.path if path] + list(self.start.get("paths", ()))
        sys.argv = [""]
        seed_generators(self.start.get("seed"))
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = __import__("builtins")
        sys.modules["__main__"] = self.main
        for name in ("driver", "jail", "zygote", "seccomp", "landlock"):
            sys.modules.pop(name, None)
        limit_resources(self.limits, self.start)
        if confine is not None:
            confine()
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _streams(self):
        """Text streams over descriptors 0 to 2; the driver keeps its own."""
        self.stdin = open(0, closefd=False, encoding="utf-8", errors="replace")  # noqa: SIM115
        self.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        sys.stdin, sys.stdout, sys.stderr = self.stdin, self.stdout, self.stderr
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = self.stdin, self.stdout, self.stderr

    def _on_interrupt(self, *_):
        if self.running:
            raise KeyboardInterrupt

    def serve(self):
        """Answer requests until the supervisor hangs up."""
        while True:
            try:
                body = os.read(self.line, 65536)
                while len(body) < 4:
                    body += read_exactly(self.line, 4 - len(body))
                missing = 4 + struct.unpack_from("!I", body)[0] - len(body)
                body = body[4:] + (read_exactly(self.line, missing) if missing else b"")
            except (EOFError, OSError, struct.error):
                os._exit(_LINE_LOST)
            request, end = body[:16], 20 + struct.unpack_from("!I", body, 16)[0]
            said = self._answer(body[20:end].decode("utf-8", "surrogatepass"), body[end:])
            if os.getpid() != self.pid:
                os._exit(0)  # a child that the program forked has come back: it must not answer
            reply = request + json.dumps(said).encode()
            try:
                write_all(self.line, struct.pack("!I", len(reply)) + reply)
            except OSError:
                os._exit(_LINE_LOST)

    def _answer(self, code, stdin):
        said = {"kind": "ok", "value": None, "error": None, "exit_code": None, "files": []}
        try:
            try:
                self._restore(stdin)
                self.running = True
                value = self._execute(code)
                if value is not None:
                    said["value"] = self._cut(repr(value))
                    self.main.__dict__["_"] = value
                self._save_figures()
                self._flush()
            finally:
                self.running = False
        except SystemExit as error:
            said.update(kind="exit", **self._exit(error))
        except BaseException as error:
            said.update(kind="error", error=self._describe(error), value=None)
        if os.getpid() == self.pid:
            self._flush()
            said["files"] = self._new_files()
        return said

    def _restore(self, stdin):
        """Undo what an earlier program did to the streams and signals that this one needs."""
        _signal.signal(2, self._on_interrupt)  # the C functions: `signal` wraps them in enumerations
        _signal.pthread_sigmask(1, (2,))
        os.dup2(self.private_out, 1)
        os.dup2(self.private_err, 2)
        if stdin:
            source = os.memfd_create("stdin")
            write_all(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
            os.dup2(source, 0)
            os.close(source)
        else:
            os.dup2(self.null, 0)
        sys.stdin = open(0, closefd=False, encoding="utf-8", errors="replace") if stdin else self.stdin  # noqa: SIM115
        sys.stdout, sys.stderr = self.stdout, self.stderr

    def _execute(self, code):
        """Run the statements; the value of the last one when it is a bare expression."""
        self.count += 1
        name = f"<cell {self.count}>"
        code = code.removeprefix("\ufeff")
        self._remember(name, code)
        flags = self.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = compile(code, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)
        body = compile(tree, name, "exec", flags, dont_inherit=True)
        self.flags |= body.co_flags & _FUTURE
        final = compile(last, name, "eval", flags | self.flags, dont_inherit=True) if last else None
        self._evaluate(body)
        return self._evaluate(final) if final is not None else None

    def _evaluate(self, code):
        if code.co_flags & 0x80:  # CO_COROUTINE: a top-level await
            if self.runner is None:
                import asyncio

                self.runner = asyncio.Runner()
            return self.runner.run(eval(code, self.main.__dict__))
        return eval(code, self.main.__dict__)

    def _remember(self, name, code):
        """Lets tracebacks show lines of the cell."""
        import linecache

        linecache.cache[name] = (len(code), None, [line + "\n" for line in code.splitlines()], name)
        linecache.cache.pop(f"<cell {self.count - 200}>", None)

    def _describe(self, error):
        """Traceback cut to the user's frames."""
        try:
            whole = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
            _cut_frames(whole, set())
            lines = whole.format() if whole.stack else whole.format_exception_only()
            text = "".join(lines)
        except BaseException as broken:
            text = f"{type(error).__name__} (its traceback could not be made: {type(broken).__name__})"
        return self._cut(text.rstrip("\n"))

    def _exit(self, error):
        code = error.code
        if code is None:
            code = 0
        elif not isinstance(code, int):
            self.stderr.write(self._cut(str(code)) + "\n")
            code = 1
        return {"exit_code": max(-(2**31), min(2**31, int(code))), "value": None}

    def _flush(self):
        for stream in (sys.stdout, sys.stderr, self.stdout, self.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue

    def _cut(self, text):
        limit = self.limits["output_bytes"]
        if len(text) <= limit:
            return text
        half = limit // 2
        return f"{text[:half]}\n... [{len(text) - 2 * half} characters left out] ...\n{text[-half:]}"

    def _save_figures(self):
        """Figures that a program left open become files figure_N.png of the working directory."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        for number in pyplot.get_fignums():
            pyplot.figure(number).savefig(f"{self.directory}/figure_{self.count}_{number}.png")
        pyplot.close("all")

    def _new_files(self):
        """Regular files at the top of the working directory, new or changed since the last call."""
        found = []
        try:
            changed = os.stat(self.directory).st_mtime_ns
            if changed == self.directory_mark and not self.seen_files:
                return []
            self.directory_mark = changed
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    if len(found) >= 100 or not entry.is_file(follow_symlinks=False):
                        continue
                    stat = entry.stat(follow_symlinks=False)
                    mark = (stat.st_mtime_ns, stat.st_size)
                    if self.seen_files.get(entry.name) != mark:
                        self.seen_files[entry.name] = mark
                        found.append([entry.name[:200], stat.st_size])
        except OSError:
            return []
        return sorted(found)


def _cut_frames(exception, seen):
    """Drop frames that are not of a cell, also in causes and contexts."""
    if exception is None or id(exception) in seen:
        return
    seen.add(id(exception))
    kept = [frame for frame in exception.stack or () if frame.filename.startswith("<cell ")]
    exception.stack = traceback.StackSummary.from_list(kept)
    _cut_frames(exception.__cause__, seen)
    _cut_frames(exception.__context__, seen)
    for inner in exception.exceptions or ():
        _cut_frames(inner, seen)


def _close_others(keep):
    """Close every descriptor but `keep`: an inherited one would be a way out."""
    start = 0
    for fd in [*sorted(keep), None]:
        end = fd if fd is not None else 1 << 20
        if start < end:  # an empty range would be taken for "up to the last one" and close them all
            os.closerange(start, end)
        start = end + 1


def seed_generators(seed):
    """Every session its own random numbers, or those of `seed`; forks would else repeat each other's."""
    import random

    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(None if seed is None else seed % (1 << 32))


def limit_resources(limits, start):
    """Lower the rlimits, hard ones too. RLIMIT_AS counts from what the interpreter already maps."""
    mib = 1 << 20
    try:
        with open("/proc/self/statm", "rb") as file:
            mapped = int(file.read().split()[0]) * _PAGE
    except OSError:
        mapped = 256 * mib
    wanted = {
        resource.RLIMIT_AS: mapped + int(limits["memory_mb"]) * mib,
        resource.RLIMIT_FSIZE: int(limits["file_mb"]) * mib,
        resource.RLIMIT_NOFILE: int(limits["open_files"]),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 65536,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    if start.get("limit_processes"):
        wanted[resource.RLIMIT_NPROC] = int(start["limit_processes"])
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(name, (value, value))


def main():
    """In a container: the protocol is on stdin and stdout; move it away from the program first."""
    import fcntl

    host_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    host_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    libc = ctypes.CDLL(None)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: /proc of the supervisor is closed to the program
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    Supervisor(host_in, host_out).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
