"""The process that runs programs, a child of the supervisor. Standard library only.

It is the program's own: nothing that it says is trusted (see `supervisor`).
"""

from __future__ import annotations

import _signal
import ast
import json
import os
import resource
import signal
import struct
import sys
import traceback
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from .frames import LINE_LOST, read_exactly, write_all
else:
    from frames import LINE_LOST, read_exactly, write_all

_PAGE = os.sysconf("SC_PAGE_SIZE")
_FUTURE = 0
for _name in __import__("__future__").all_feature_names:
    _FUTURE |= getattr(__import__("__future__"), _name).compiler_flag
_OURS = (
    "supervisor", "interpreter", "frames", "processes", "room", "meter", "entry", "jail", "zygote", "seccomp",
    "landlock",
)  # fmt: skip


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
        close_others({0, 1, 2, self.line, self.null, self.private_out, self.private_err} | keep)
        self._streams()
        sys.path[:] = [path for path in sys.path if path] + list(self.start.get("paths", ()))
        sys.argv = [""]
        seed_generators(self.start.get("seed"))
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = __import__("builtins")
        sys.modules["__main__"] = self.main
        for name in _OURS:
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
                os._exit(LINE_LOST)
            request, end = body[:16], 20 + struct.unpack_from("!I", body, 16)[0]
            said = self._answer(body[20:end].decode("utf-8", "surrogatepass"), body[end:])
            if os.getpid() != self.pid:
                os._exit(0)  # a child that the program forked has come back: it must not answer
            reply = request + json.dumps(said).encode()
            try:
                write_all(self.line, struct.pack("!I", len(reply)) + reply)
            except OSError:
                os._exit(LINE_LOST)

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


def close_others(keep):
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
