"""One session, seen from inside: the supervisor, which forks interpreters. Standard library only.

Loaded by the zygote of the local jail or sent to a container; imports nothing of the package, and programs
cannot import it. It knows nothing of how it is isolated.

**Processes.** The *supervisor* speaks with the host (`frames`), holds the clock, collects output and reaps;
the *interpreter* (`interpreter`), its child, runs the program. The program shares a process with nothing but
the interpreter, so whatever it forges, closes or overwrites harms its own session only. No secret is ever in
either process.

**A room for several programs.** A session without state runs each program in an interpreter of its own,
forked from the supervisor, which no program has touched; namespaces and control group stay. In between
every other process is killed, and the room goes on only if nothing was left in it and no directory was
changed. What passes through the supervisor lies in a few buffers that are wiped then, since a fork would
take a copy of them along.

**Time.** Two counts, and the program has used its time when either reaches the limit: the CPU seconds of all
that it runs (`meter`), and wall time less the longest time that one of its threads stood in the run queue
(`/proc/PID/task/*/schedstat`), so that a busy machine turns no good program into a time-out. A program can
make such waits itself, but not without CPU time, which the first count has. At the limit SIGINT; SIGKILL when
the program has gone on for `grace_s`, for another time limit, or for a quarter of the limit in CPU seconds.
Between two runs what was left behind may use as much CPU time as one run.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from . import frames
    from .interpreter import Interpreter
    from .meter import ClockMeter, GroupMeter, TreeMeter, open_clock
    from .processes import Processes, be_served_soon
    from .room import describe_room, exceeds
else:
    import frames
    from interpreter import Interpreter
    from meter import ClockMeter, GroupMeter, TreeMeter, open_clock
    from processes import Processes, be_served_soon
    from room import describe_room, exceeds

_PULSE_S = 0.1
_LOOK_S = 0.02  # longer than the kernel takes to book what a running program has run
_SAMPLE_S = 0.04  # longest time between two looks of a meter that counts by looking
_REST_S = 5.0  # between two looks at a session where nothing runs
_SHORT_S = 0.05  # what ends sooner is not worth a look at more than its main thread
_GRACE_CPU = 0.25  # of the limit, and as CPU seconds, after the interrupt
_REST_OF_LOOKS = 9  # times as long as a look at memory and files takes, until the next
_SOCKET_BYTES = 212_992  # what the kernel lets a program put into one socket, if it does not raise that


class Output:
    """Collects one stream of a run: the first and the last half of `limit` bytes, in memory that stays."""

    def __init__(self, limit):
        self.half = max(1, limit // 2)
        self.head = self.tail = memoryview(b"")  # made when first needed: most programs print little
        self.seen = 0

    def clear(self):
        """Begin with another run."""
        self.seen = 0

    def add(self, data):
        """Take the next bytes; what is neither head nor tail is forgotten."""
        if not self.head:
            self.head, self.tail = memoryview(bytearray(self.half)), memoryview(bytearray(self.half))
        room = max(0, self.half - self.seen)
        first, rest = data[:room], data[room:]
        self.head[self.seen : self.seen + len(first)] = first
        self.seen += len(data)
        rest = rest[-self.half :]
        # The tail is a ring: byte n after the head lies at n modulo its size.
        at = (self.seen - self.half - len(rest)) % self.half
        split = min(len(rest), self.half - at)
        self.tail[at : at + split] = rest[:split]
        self.tail[: len(rest) - split] = rest[split:]

    def finish(self):
        """`(buffers, truncated)`; a cut never leaves part of a UTF-8 character at its edges."""
        left_out = self.seen - 2 * self.half
        if left_out <= 0:
            return [self.head[: self.seen], self.tail[: max(0, self.seen - self.half)]], False
        at = (self.seen - self.half) % self.half
        first, second = self.tail[at:], self.tail[:at]
        start = 0
        while start < min(4, self.half) and self.tail[(at + start) % self.half] & 0xC0 == 0x80:
            start += 1
        message = b"\n... [%d bytes of output left out] ...\n" % left_out
        whole = self.head[: _whole_characters(self.head)]
        return [whole, message, first[start:], second[max(0, start - len(first)) :]], True

    def wipe(self):
        """Overwrite what was collected."""
        frames.wipe(self.head)
        frames.wipe(self.tail)
        self.seen = 0


def _whole_characters(data):
    """Length of `data` without a UTF-8 character that is cut off at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return len(data) - (back if back < length else 0)
    return len(data)


class Run:
    """The run in progress, or the time between two runs: its clock and its output."""

    def __init__(self, request, time_s, out, err, processes, meter):
        self.id = request
        self.time_s = time_s
        self.out, self.err = out, err
        out.clear()
        err.clear()
        self.processes, self.meter = processes, meter
        self.began = self.pulse = time.monotonic()
        self.main, self.wait = processes.quick()
        self.slept = 0.0
        self._begin_to_count(self.main)
        self.interrupted: tuple[float, float] | None = None  # wall and CPU seconds
        self.cause: str | None = None
        self.suspect: bytes | None = None

    def elapsed(self):
        """Wall seconds."""
        return time.monotonic() - self.began

    def _begin_to_count(self, main):
        """From here on; `main`: CPU seconds of the interpreter's main thread.

        A look at the meter costs as much as half a short program. Without one, what others than the main
        thread have used since the last look is not known; `cpu` finds out how much of it is too old.
        """
        self.since = self.meter.looked = time.monotonic()
        self.counted, self.main_now = False, main
        self.last = self.meter.last
        self.base = self.last + max(0.0, main - self.meter.main)

    def cpu(self):
        """CPU seconds of all that the program ran."""
        self.last = self.meter.look(self.processes.quick()[0])
        most = (time.monotonic() - self.since) * (os.cpu_count() or 1)
        self.base, self.counted = max(self.base, self.last - most), True
        return max(0.0, self.last - self.base)

    def spent(self):
        """CPU seconds for the result; of a short run the main thread's, at the price of one system call."""
        self.main_now, waited = self.processes.quick()
        long = self.counted or self.elapsed() - (waited - self.wait) > _SHORT_S
        return max(0.0, self.main_now - self.main, self.cpu() if long else 0.0)

    def rest(self):
        """The program has ended: what is left behind is charged to the time from here on."""
        self.cause = None
        self._begin_to_count(self.main_now)

    def over(self):
        """True when the time limit has been reached."""
        return self.cpu() >= self.time_s or self._waited_out(0.0, self.time_s)

    def over_again(self, grace_s):
        """True when the program has not ended in the grace after its interrupt."""
        wall, cpu = self.interrupted or (0.0, 0.0)
        if self.cpu() - cpu >= min(grace_s, max(_LOOK_S, _GRACE_CPU * self.time_s)):
            return True
        return self._waited_out(wall, min(grace_s, max(_PULSE_S, self.time_s)))

    def _waited_out(self, since, seconds):
        """True when so much wall time has passed, and none of it is a wait not yet booked by the kernel.

        A wait is booked when it ends, so a program that stands in the run queue looks busy until it runs
        again. It is therefore looked at twice: in between it must have run, or it must not want to.
        """
        if self.elapsed() < since + seconds or self._unwaited() < since + seconds:
            self.suspect = None
            return False
        if not self.processes.schedstat:
            return True
        booked = self.processes.booked()
        if self.suspect is None:
            self.suspect = booked
            return False
        return booked != self.suspect or not self.processes.wants_to_run()

    def _unwaited(self):
        """Wall seconds less those in which the program could have run but for others."""
        now = time.monotonic()
        wall = now - self.began
        if not self.processes.schedstat:
            # Without run queue times: CPU time, and wall time only while nothing wants to run.
            if self.processes.sleeping():
                self.slept += now - self.pulse
            self.pulse = now
            return min(wall, self.last - self.base + self.slept)
        own = self.processes.quick()[1] - self.wait
        return wall - max(0.0, own, *(wait for wait in self.processes.waits() if wait <= wall))

    def patience(self, grace_s, cores):
        """Seconds until the limit can be reached at the earliest, or a first look is due."""
        often = min(_SAMPLE_S, max(_LOOK_S / 2, self.time_s / 30))
        if not self.counted:
            return min(_PULSE_S, self.time_s / 10) if self.meter.exact else often
        if self.suspect is not None:
            return _LOOK_S
        if not self.processes.schedstat:
            return _SAMPLE_S
        cpu_left = self.time_s - (self.last - self.base)
        wall_left = self.time_s - self.elapsed()
        if self.interrupted is not None:
            wall, cpu = self.interrupted
            cpu_left = min(grace_s, _GRACE_CPU * self.time_s) - (self.last - self.base - cpu)
            wall_left = wall + grace_s - self.elapsed()
        if wall_left <= 0:
            wall_left = _SAMPLE_S  # it waits, who knows for how long
        soonest = max(_LOOK_S / 2, min(cpu_left / cores, wall_left))
        return soonest if self.meter.exact else min(soonest, often)


class Supervisor:
    """Stands between the host and the interpreter; see the module's docstring."""

    def __init__(self, host_in, host_out, confine=None, usage_fd=-1):
        self.host_in, self.host_out, self.confine, self.usage_fd = host_in, host_out, confine, usage_fd
        self.run: Any = None  # the Run in progress
        self.between: Any = None  # a Run that stands for the time since the last one
        self.wait_status = None
        self.resting = self.hurried = False
        self.inbox, self.reply = frames.Inbox(host_in), memoryview(bytearray(frames.BUFFER))
        self.scratch = memoryview(b"")
        self.count_at = self.due = 0.0  # when memory and files will be looked at, and when the clock

    def serve(self, start=None):
        """Serve until the host hangs up or the interpreter is dead. `start`: its frame, if read already."""
        self.start = start or frames.receive_frame(self.host_in)[0]
        self.limits = self.start["limits"]
        self.stdout, self.stderr = Output(self.limits["output_bytes"]), Output(self.limits["output_bytes"])
        os.environ.clear()
        os.environ.update(self.start.get("environment", {}))
        wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self._reap)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)
        self.poll, self.wake = select.poll(), wake
        for fd in (self.host_in, wake):
            self.poll.register(fd, select.POLLIN)
        self.clock_fd = open_clock() if self.usage_fd < 0 else -1
        self.room = describe_room(self._directory())
        if not self._begin():
            return
        while True:
            for fd, event in self.poll.poll(self._milliseconds()):
                if fd == wake:
                    os.read(wake, 4096)
                elif fd == self.host_in:
                    if not self._from_host():
                        self.processes.kill()
                        return
                    break  # the other descriptors may have been closed, and their numbers taken
                elif fd == self.out or fd == self.err:
                    self._drain(fd, 1)
                    if self.run is None:
                        self._be_deaf()  # a thread that prints for ever must not keep us busy
                elif fd == self.line and self.wait_status is None:
                    if event & select.POLLOUT and self.unsent:
                        self._send_more()
                    if event & ~select.POLLOUT and self.wait_status is None:
                        self._from_interpreter()
            if self.wait_status is None and not self.resting and time.monotonic() >= self.due:
                if self.run:
                    self._watch()
                else:
                    self._watch_rest()
                self._look_again()
            if self.wait_status is not None and not self.resting:
                self.processes.kill()
                if self.run:
                    self._finish((), alive=False)
                    return
                # Died between two runs: the next one is told.
                self._forget(self.line)
                self._bury()
                return

    def _begin(self):
        """Fork an interpreter and tell the host whether it is ready."""
        self.wait_status, self.resting, self.deaf, self.breach = None, False, True, None
        self.unsent = memoryview(b"")
        self._spawn()
        answer = os.read(self.line, 4096) if select.select([self.line], [], [], 30)[0] else b"-no answer"
        if answer[:1] != b"+":
            reason = answer[1:] or os.read(self.err, 4096)
            frames.send_frame(self.host_out, {"kind": "failed", "reason": reason.decode(errors="replace")})
            return False
        self.processes = Processes(self.child, bool(self.start.get("alone")))
        self.meter = self._find_meter()
        self.meter.look(self.processes.quick()[0])
        self.cores = max(1, min(os.cpu_count() or 1, int(self.limits["processes"])))
        self.watched = self.start.get("watch_memory") or self.start.get("watch_files")
        # The first look at what a program left behind: when it can have used its limit of time.
        self.soon = (
            _PULSE_S if self.watched else min(_REST_S, max(_PULSE_S, self.limits["time_s"] / self.cores))
        )
        self.between = self._new_run(None, self.limits["time_s"])
        self._look_again()
        os.set_blocking(self.line, False)
        self.poll.register(self.line, select.POLLIN)
        version = ".".join(map(str, sys.version_info[:3]))
        frames.send_frame(self.host_out, {"kind": "ready", "python": version, "pid": os.getpid()})
        return True

    def _find_meter(self):
        if self.usage_fd >= 0:
            return GroupMeter(self.usage_fd)
        return ClockMeter(self.clock_fd) if self.clock_fd >= 0 else TreeMeter(self.processes)

    def _directory(self):
        return self.start.get("directory") or os.getcwd()

    def _rest(self):
        """Forget the program: its processes, what passed through here. False when it left anything behind."""
        self.resting = True
        self._be_deaf()
        self._forget(self.line)
        for fd in (self.line, self.out, self.err):
            os.close(fd)
        self.line = self.out = self.err = -1
        self.processes.kill()
        self.processes.close()
        self.inbox.wipe()
        frames.wipe(self.reply)
        frames.wipe(self.scratch)
        self.stdout.wipe()
        self.stderr.wipe()
        return self._alone(2.0) and self.room == describe_room(self._directory())

    def _alone(self, seconds):
        """Wait until no other process is left in our pid namespace, where every orphan becomes our child."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0 and select.select([self.wake], [], [], 0.05)[0]:
                    os.read(self.wake, 4096)
            except ChildProcessError:
                return True
        return False

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
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
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

    def _end(self, *_):
        """Whoever started us has gone: nobody would end the program after us."""
        with contextlib.suppress(AttributeError):  # not yet begun
            self.processes.kill()
        os._exit(1)

    def _reap(self, *_):
        while True:
            try:
                # The interpreter stays a zombie: so long its number names its group and no other.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return
                if found.si_pid == self.child and not self.resting:
                    break
                os.waitpid(found.si_pid, os.WNOHANG)
            except ChildProcessError:
                return
        killed = found.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        self.wait_status = found.si_status if killed else found.si_status << 8
        if self.run and self.run.cause is None and self.wait_status == frames.LINE_LOST << 8:
            self.run.cause = "protocol"

    def _milliseconds(self):
        """Until the clock must be looked at; None when there is nothing to look at."""
        if self.wait_status is not None or self.resting:
            return None
        return int(1000 * max(0.0, self.due - time.monotonic())) + 1

    def _look_again(self):
        """Set the time of the next look: not at every event, of which a program can make many."""
        if self.run is None:
            left = _REST_S if self.between.cause == "at rest" else self._leisure()
        else:
            left = self.run.patience(self.limits["grace_s"], self.cores)
            left = min(left, _PULSE_S) if self.watched else left
        self.due = time.monotonic() + left

    def _leisure(self):
        """Between two runs: seconds until what was left behind can have used as much as one run may."""
        rest = self.between
        left = (self.limits["time_s"] - (rest.last - rest.base)) / self.cores
        return min(self.soon, max(_LOOK_S, left)) if rest.counted else self.soon

    def _from_host(self):
        try:
            self.inbox.read()
            while (payload := self.inbox.take()) is not None:
                header, blobs = frames.split_frame(payload)
                self._obey(header, blobs)
                self.inbox.drop()
                if header["kind"] == "rest" and not (self.run is None and self._rest()):
                    return False
                if header["kind"] == "again" and not (self.resting and self._begin()):
                    return False
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
            self.run = self._new_run(header["id"], header["time_s"])
            self._look_again()
            code, stdin = blobs
            request = bytes.fromhex(header["id"]) + struct.pack("!I", len(code))
            size = struct.pack("!I", len(request) + len(code) + len(stdin))
            self._hand_over([size + request, code, stdin])
        elif header["kind"] == "interrupt" and self.run and self.run.id == header["id"]:
            self._interrupt("cancelled")

    def _hand_over(self, buffers):
        """Write to the interpreter what it takes at once; the loop does the rest, and the clock runs on."""
        try:
            written = os.writev(self.line, buffers)
        except BlockingIOError:
            written = 0
        except OSError:
            return self._lose("protocol")
        left = sum(map(len, buffers)) - written
        if left:
            self.unsent, at = memoryview(bytearray(left)), 0
            for buffer in buffers:
                part = memoryview(buffer)[written:]
                written = max(0, written - len(buffer))
                self.unsent[at : at + len(part)] = part
                at += len(part)
            self.poll.modify(self.line, select.POLLIN | select.POLLOUT)

    def _send_more(self):
        try:
            written = os.write(self.line, self.unsent)
        except BlockingIOError:
            return
        except OSError:
            return self._lose("protocol")
        frames.wipe(self.unsent[:written])
        self.unsent = self.unsent[written:]
        if not self.unsent:
            self.poll.modify(self.line, select.POLLIN)

    def _from_interpreter(self):
        """One reply to the request in progress, or the session is lost."""
        limit = 16 * self.limits["output_bytes"] + 65536
        try:
            have = self._read_line(frames.read_into(self.line, self.reply), 4)
            length = struct.unpack_from("!I", self.reply)[0]
            if self.run is None or self.unsent or not 16 <= length <= limit:
                raise ValueError("a reply that nobody asked for, before its request was whole, or too long")
            if 4 + length > len(self.reply):
                larger = memoryview(bytearray(4 + length))
                larger[:have] = self.reply[:have]
                frames.wipe(self.reply)
                self.reply = larger
            have = self._read_line(have, 4 + length)
            if have != 4 + length or self.reply[4:20].hex() != self.run.id:
                raise ValueError("a reply to another request")
        except (EOFError, OSError, ValueError):
            # The end of the line is also how a death looks; give the signal a moment to tell which.
            self._await_death(0.3)
            if self.wait_status is None:
                self._lose("protocol")
            return
        if self.run.interrupted is not None and not self.processes.kill_others():
            return self._lose(self.run.cause)
        self._finish((self.reply[20 : 4 + length],), alive=True)

    def _read_line(self, have, wanted):
        """Read until `reply` holds `wanted` bytes; who writes half a frame does not stop the clock."""
        end = time.monotonic() + 2.0
        while have < wanted:
            if not select.select([self.line], [], [], max(0.0, end - time.monotonic()))[0]:
                raise ValueError("half a reply")
            have += frames.read_into(self.line, self.reply[have:wanted])
        return have

    def _new_run(self, request, time_s):
        return Run(request, time_s, self.stdout, self.stderr, self.processes, self.meter)

    def _watch(self):
        """Look at the clock and, where nobody else does, at memory and files."""
        run = self.run
        if not self.hurried:
            self.hurried = True
            be_served_soon(True)
        if run.interrupted is not None:
            if run.over_again(self.limits["grace_s"]):
                return self._lose(run.cause)
        elif run.over():
            self._interrupt("time")
        if run.elapsed() > _SHORT_S and (cause := self._overdrawn()):
            self._lose(cause)

    def _watch_rest(self):
        """Between two runs: the same for what was left behind, threads among it, as long as there is any."""
        booked = self.processes.booked()
        if self.between.cause == "at rest" and booked == self.between.suspect and booked:
            return  # there is one thread, and it has not run
        if cause := self._overdrawn():
            return self._lose(cause)
        if self.between.cpu() > self.limits["time_s"]:
            return self._lose("time")
        self.between.cause = "at rest" if self.processes.at_rest() else None
        self.between.suspect = booked

    def _overdrawn(self):
        """What the program has too much of, among the things that the kernel does not limit."""
        if time.monotonic() < self.count_at:
            return None
        began = time.thread_time()
        found = self._count()
        # A crowd takes long to look at: never more than a tenth of a core.
        self.count_at = time.monotonic() + max(_PULSE_S, _REST_OF_LOOKS * (time.thread_time() - began))
        return found

    def _count(self):
        if self.start.get("watch_memory"):
            # Buffers of sockets are in nobody's memory; programs have few, and no more than this in each.
            limit = (self.limits["memory_mb"] << 20) - _SOCKET_BYTES * self.processes.sockets()
            if limit < 0 or self.processes.memory(limit) > limit:
                return "memory"
        if watched := self.start.get("watch_files"):
            device = os.stat(watched).st_dev
            if exceeds(watched, self.limits, lambda: self.processes.nameless(device)):
                return "files"
        return None

    def _interrupt(self, cause):
        if self.run.interrupted is None:
            self.run.cause, self.run.suspect = cause, None
            self.run.interrupted = self.run.elapsed(), self.run.cpu()
            self._look_again()
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGINT)

    def _lose(self, cause):
        """Kill the interpreter; the loop sees its death. The cause is of this run, or of the next one."""
        if self.run is None:
            self.breach = cause
        else:
            self.run.cause = cause
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
        if not self.scratch:
            self.scratch = memoryview(bytearray(65536))
        for _ in range(most):
            try:
                count = frames.read_into(fd, self.scratch)
            except BlockingIOError:
                return
            except EOFError:
                if target is not None:
                    self._forget(fd)
                return
            if target is not None:
                target.add(self.scratch[:count])

    def _be_deaf(self):
        """Stop listening to the output until the next run."""
        self.deaf = True
        self._forget(self.out)
        self._forget(self.err)

    def _forget(self, fd):
        with contextlib.suppress(KeyError):
            self.poll.unregister(fd)

    def _finish(self, said, alive):
        """Send the result of the run."""
        run = self.run
        ready = self.poll.poll(0) if alive else [(self.out, 0), (self.err, 0)]
        for fd, _ in ready:
            if fd == self.out or fd == self.err:
                self._drain(fd, 64)
        stdout, cut_out = run.out.finish()
        stderr, cut_err = run.err.finish()
        header = {
            "kind": "result",
            "id": run.id,
            "interrupted": run.interrupted is not None,
            "cause": run.cause,
            "wait_status": self.wait_status,
            "alive": alive,
            "cpu_s": run.spent() if alive else run.cpu(),
            "truncated": cut_out or cut_err,
        }
        self.run = None
        if self.hurried:
            self.hurried = False
            be_served_soon(False)
        frames.send_frame(self.host_out, header, (said, stdout, stderr))
        if alive:
            self.between = run  # its clock goes on
            run.rest()
            self._look_again()

    def _bury(self):
        """The interpreter died between two runs: answer the next one with that, then go."""
        header = {"kind": None}
        while header["kind"] != "run":
            while (payload := self.inbox.take()) is None:
                self.inbox.read()
            header, _ = frames.split_frame(payload)
            self.inbox.drop()
            if header["kind"] == "rest":
                return
        self.run = self._new_run(header["id"], header["time_s"])
        self.run.cause = self.breach
        self._finish((), alive=False)
