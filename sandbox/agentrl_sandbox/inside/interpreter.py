"""The process that runs programs, a child of the supervisor. Standard library only.

It is the program's own: nothing that it says is trusted (see `supervisor`). Functions that it needs after a
program has run are taken from their modules at the start, because programs replace them.
"""

from __future__ import annotations

import _signal
import ast
import contextlib
import linecache
import os
import resource
import signal
import struct
import sys
import traceback
import types
from _json import make_encoder
from json.encoder import encode_basestring_ascii
from os import _exit, dup2, getpid, read, scandir
from sys import exc_info
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from . import cells, generators
    from .frames import LINE_LOST, read_exactly, write_all
    from .notebook import Notebook
    from .upkeep import Unusable, Upkeep, name_of, outline
else:
    import cells
    import generators
    from frames import LINE_LOST, read_exactly, write_all
    from notebook import Notebook
    from upkeep import Unusable, Upkeep, name_of, outline

_PAGE = os.sysconf("SC_PAGE_SIZE")
_FUTURE = 0
for _name in __import__("__future__").all_feature_names:
    _FUTURE |= getattr(__import__("__future__"), _name).compiler_flag
_OURS = (
    "supervisor", "interpreter", "frames", "processes", "room", "meter", "generators", "cells", "notebook",
    "upkeep", "entry", "jail", "zygote", "seccomp", "landlock",
)  # fmt: skip
_BLOCK, _UNBLOCK = 0, 1
_eval = eval  # a program may replace the name
_ALL_SIGNALS = tuple(int(number) for number in signal.valid_signals())
_LENGTH = struct.Struct("!I")
_RESTART = b'{"kind": "error", "value": null, "error": null, "exit_code": null, "files": [], "restart": "%s"}'
_NO_MEMORY = _RESTART % b"it left no memory to go on with"
_NO_TOOLS = _RESTART % b"it replaced what the interpreter itself needs"
_OF_THE_TEXT = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)
"""What compile() raises for a text; anything else comes of what a program did to compile()."""
_VALUE = " value"
"""Where the value of a cell's last expression lies for a moment; programs cannot name a variable so."""
_encoder = make_encoder(None, str, encode_basestring_ascii, None, ": ", ", ", False, False, True)


class Furnishing:
    """What an interpreter has that is the same in every session. Made before the fork, or by who needs it."""

    made: Furnishing | None = None

    def __init__(self):
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = __import__("builtins")
        self.notebook = Notebook()
        for name in _OURS:
            sys.modules.pop(name, None)
        self.upkeep = Upkeep(self.main)
        self.streams = Streams()
        Furnishing.made = self


class Streams:
    """Text streams over descriptors 0 to 2, with what they remember of being given pipes."""

    def __init__(self):
        saved = [(fd, os.dup(fd)) for fd in (0, 1, 2)]
        null, pipe = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        try:
            for fd, other in ((0, null), (1, pipe[1]), (2, pipe[1])):
                dup2(other, fd)
            self.stdin, self.stdout, self.stderr = _reader(), _writer(1), _writer(2)
        finally:
            for fd, copy in saved:
                dup2(copy, fd)
            for fd in (*(copy for _, copy in saved), null, *pipe):
                os.close(fd)

    def renew(self):
        """Make anew what a program closed or detached."""
        # A stream of the program's own over ours closes ours when it goes: let it go first.
        self.use()
        try:
            if not (self.stdin.closed or self.stdout.closed or self.stderr.closed):
                return
        except ValueError:
            pass  # detached
        if not _usable(self.stdin):
            self.stdin = _reader()
        if not _usable(self.stdout):
            self.stdout = _writer(1)
        if not _usable(self.stderr):
            self.stderr = _writer(2)
        self.use()

    def use(self):
        """Let programs find them in `sys`."""
        sys.stdin, sys.stdout, sys.stderr = self.stdin, self.stdout, self.stderr
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = self.stdin, self.stdout, self.stderr


class Interpreter:
    """Runs programs with the semantics of a notebook: state kept, last bare expression shown."""

    def __init__(self, line, start, confine, keep):
        self.line, self.pid = line, os.getpid()
        self.start, self.limits = start, start["limits"]
        self.count, self.flags, self.running = 0, 0, False
        self.seen_files, self.directory_mark, self.loop = {}, None, None
        self.shown, self.fed = [], False
        try:
            self._prepare(confine, keep)
        except BaseException as error:
            write_all(line, b"-" + f"{type(error).__name__}: {error}"[:4000].encode())
            os._exit(1)
        write_all(line, b"+")

    def _prepare(self, confine, keep):
        os.setpgid(0, 0)
        self.directory = self.start.get("directory") or os.getcwd()
        if not os.path.isdir(self.directory):
            os.makedirs(self.directory, exist_ok=True)
        os.chdir(self.directory)
        self.null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(self.null, 0)
        self.private_out = os.dup(1)
        self.private_err = os.dup(2)
        close_others({0, 1, 2, self.line, self.null, self.private_out, self.private_err} | keep)
        self.spare = os.memfd_create("stdin") if self.start.get("watch_memory") else -1
        extra = list(self.start.get("paths", ()))
        if extra or "" in sys.path:
            sys.path[:] = [path for path in sys.path if path] + extra
        sys.argv = [""]
        generators.seed(self.start.get("seed"))
        furnishing = Furnishing.made or Furnishing()
        self.streams, self.main = furnishing.streams, furnishing.main
        self.notebook, self.upkeep = furnishing.notebook, furnishing.upkeep
        self.streams.use()
        sys.modules["__main__"] = self.main
        limit_resources(self.limits, self.start)
        if confine is not None:
            confine()
        signal.signal(signal.SIGINT, self._on_interrupt)
        self.notebook.begin_session(self.directory)
        self.upkeep.begin_session(self.directory)

    def _on_interrupt(self, *_):
        if self.running:
            raise KeyboardInterrupt

    def serve(self):
        """Answer requests until the supervisor hangs up."""
        while True:
            try:
                body = read(self.line, 65536)
                while len(body) < 4:
                    body += read_exactly(self.line, 4 - len(body))
                missing = 4 + _LENGTH.unpack_from(body)[0] - len(body)
                body = body[4:] + (read_exactly(self.line, missing) if missing else b"")
            except (EOFError, OSError, struct.error):
                _exit(LINE_LOST)
            request, end = body[:16], 20 + _LENGTH.unpack_from(body, 16)[0]
            try:
                said = encode(self._answer(body[20:end].decode("utf-8", "surrogatepass"), body[end:]))
            except BaseException:
                said = _NO_MEMORY if exc_info()[0] is MemoryError else _NO_TOOLS
            if getpid() != self.pid:
                _exit(0)  # a child that the program forked has come back: it must not answer
            reply = request + said
            try:
                write_all(self.line, _LENGTH.pack(len(reply)) + reply)
            except OSError:
                _exit(LINE_LOST)

    def _answer(self, code, stdin):
        said = {
            "kind": "ok", "value": None, "error": None, "exit_code": None, "files": [], "notes": [],
            "restart": None,
        }  # fmt: skip
        self.lost = []
        try:
            try:
                self._begin(stdin)
                self.running = True
                said["value"] = self._show(self._execute(code, said["notes"]))
                self._flush()
            finally:
                self.running = False
        except BaseException as failure:
            said.update(self._report(failure))
        if getpid() == self.pid:
            self._end(said)
        return said

    def _begin(self, stdin):
        """Undo what an earlier program did to the streams and signals that this one needs."""
        if self.upkeep.wary:
            _signal.signal(2, _signal.SIG_IGN)  # forgets an interrupt that came too late for the last program
            _signal.signal(2, self._on_interrupt)  # the C functions: `signal` wraps them in enumerations
            self._restore_descriptors()
        if stdin or self.fed or self.upkeep.wary:
            self._feed(stdin)
        self.count += 1
        self.notebook.begin(self.count, None if stdin else self.streams.stdin)
        if self.upkeep.wary:
            _signal.pthread_sigmask(_UNBLOCK, _ALL_SIGNALS)

    def _feed(self, stdin):
        """Streams as they should be, and what the program may read."""
        self.fed = bool(stdin)
        if stdin:
            source = self._empty_file()
            write_all(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
            dup2(source, 0)
            os.close(source)
        else:
            dup2(self.null, 0)
        self.streams.renew()
        if stdin:
            sys.stdin = sys.__stdin__ = _reader()  # of its own: it may read ahead

    def _empty_file(self):
        """A file in memory; where programs may not make such files, one that was made before they came."""
        if self.spare < 0:
            return os.memfd_create("stdin")
        os.ftruncate(self.spare, 0)
        os.lseek(self.spare, 0, os.SEEK_SET)
        return os.dup(self.spare)

    def _restore_descriptors(self):
        try:
            dup2(self.private_out, 1)
            dup2(self.private_err, 2)
        except OSError:
            raise Unusable("it closed descriptors that the interpreter needs") from None

    def _end(self, said):
        """What follows a program: repairs, its last words, its files. No signal handler of it runs now."""
        if self.upkeep.wary:
            _signal.pthread_sigmask(_BLOCK, _ALL_SIGNALS)
            for timer in (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF):
                _signal.setitimer(timer, 0)  # an alarm is for the program that set it
        try:
            said["notes"] += self.upkeep.mend(self.lost)
            if not (_flush(self.streams.stdout) and _flush(self.streams.stderr)):
                self._restore_descriptors()  # what is stuck would come out in the next run
                _flush(self.streams.stdout)
                _flush(self.streams.stderr)
        except Unusable as error:
            said["restart"] = said["restart"] or str(error)
        said["files"] = self._new_files()

    def _execute(self, code, notes):
        """Run the statements; the value of the last one when it is a bare expression."""
        name = f"<cell {self.count}>"
        code = code.removeprefix("\ufeff")
        self._remember(name, code)
        flags = self.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

        def parse(text):
            try:
                return compile(text, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
            except _OF_THE_TEXT:
                raise
            except Exception as error:
                raise Unusable(f"compile() raises {name_of(type(error))}") from None

        tree, text, left_out = cells.read(code, parse)
        notes += left_out
        if text is not code:
            self._remember(name, text)
        body = tree.body
        shown = body and isinstance(body[-1], ast.Expr) and not cells.ends_quietly(body[-1], text)
        if shown:
            body[-1] = _keep(body[-1])
        program = compile(tree, name, "exec", flags, dont_inherit=True)
        self.flags |= program.co_flags & _FUTURE
        self.upkeep.begin_program(code)
        try:
            self._evaluate(program)
        finally:
            self.lost = self.upkeep.end_program()
            value = self.main.__dict__.pop(_VALUE, None)
        return value if shown else None

    def _evaluate(self, program):
        """Run a compiled cell; in the event loop of the session when it has a top-level await."""
        coroutine = _eval(program, self.main.__dict__)
        if not program.co_flags & 0x80:  # CO_COROUTINE
            return
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)  # kept: tasks live on from cell to cell
        task = self.loop.create_task(coroutine)
        try:
            self.loop.run_until_complete(task)
        finally:
            task.cancel()  # of no effect on a task that is done

    def _show(self, value):
        """Text of the last expression; figures that are open become files first, as in a notebook."""
        text = None
        if value is not None:
            text = self._cut(plain_text(repr(value)))
            self._keep_value(value)
        self.notebook.save_open_figures()
        return text

    def _keep_value(self, value):
        """`_`, `__` and `___` are the last three values, unless the program uses `_` for something else."""
        names = self.main.__dict__
        if "_" in names and not (self.shown and names["_"] is self.shown[0]):
            return
        if self.shown:
            names["__"] = self.shown[0]
            if len(self.shown) > 1:
                names["___"] = self.shown[1]
        names["_"] = value
        self.shown = [value, *self.shown[:1]]

    def _remember(self, name, code):
        """Lets tracebacks show lines of the cell."""
        lines = [line + "\n" for line in cells.split_lines(code)]
        try:
            linecache.cache[name] = (len(code), None, lines, name)
            if self.count > 200:
                linecache.cache.pop(f"<cell {self.count - 200}>", None)
        except Exception:
            return  # the program has replaced it

    def _report(self, failure):
        """What is said of the exception that ended a program. Code of the program may run here."""
        if type(failure) is Unusable:
            return {"kind": "error", "restart": f"{failure}; this program was not run"}
        try:
            try:
                self.running = True
                with contextlib.suppress(Exception):
                    self.notebook.save_open_figures()  # else they would be the next program's
                self._flush()
                if issubclass(type(failure), SystemExit):
                    return {"kind": "exit", "value": None, "exit_code": self._exit_code(failure)}
                return {"kind": "error", "value": None, "error": self._describe(failure)}
            finally:
                self.running = False
        except BaseException:
            return {"kind": "error", "value": None, "error": self._cut(outline(failure))}

    def _describe(self, error):
        """Traceback cut to the user's frames."""
        whole = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
        _cut_frames(whole)
        lines = whole.format() if whole.stack else whole.format_exception_only()
        text = plain_text("".join(lines)).rstrip("\n")
        if not text:
            raise ValueError("an exception without a word")
        return self._cut(text)

    def _exit_code(self, error):
        code = error.code
        if code is None:
            return 0
        if not isinstance(code, int):
            self.streams.renew()  # the program may have closed its own
            sys.stderr.write(self._cut(plain_text(str(code))) + "\n")
            return 1
        return max(-(2**31), min(2**31, int(code)))

    def _flush(self):
        ours = self.streams
        for stream in (ours.stdout, ours.stderr):
            _flush(stream)
        if sys.stdout is not ours.stdout or sys.stderr is not ours.stderr:
            _flush(sys.stdout)
            _flush(sys.stderr)

    def _cut(self, text):
        limit = self.limits["output_bytes"]
        if len(text) <= limit:
            return text
        half = limit // 2
        return f"{text[:half]}\n... [{len(text) - 2 * half} characters left out] ...\n{text[-half:]}"

    def _new_files(self):
        """Regular files at the top of the working directory, new or changed since the last call."""
        found = []
        try:
            changed = self.upkeep.changed
            if changed == self.directory_mark and not self.seen_files:
                return []
            self.directory_mark = changed
            with scandir(self.directory) as entries:
                for entry in entries:
                    if len(found) >= 100 or not entry.is_file(follow_symlinks=False):
                        continue
                    about = entry.stat(follow_symlinks=False)
                    mark = (about.st_mtime_ns, about.st_size)
                    if self.seen_files.get(entry.name) != mark:
                        self.seen_files[entry.name] = mark
                        found.append([entry.name[:200], about.st_size])
        except OSError:
            return []
        return sorted(found)


def encode(said):
    """JSON, by a part of the json module that a program cannot reach."""
    return "".join(_encoder(said, 0)).encode()


def _keep(expression):
    """A statement that keeps the value of an expression statement."""
    where = {
        "lineno": expression.lineno,
        "col_offset": expression.col_offset,
        "end_lineno": expression.end_lineno,
        "end_col_offset": expression.end_col_offset,
    }
    return ast.Assign([ast.Name(_VALUE, ast.Store(), **where)], expression.value, **where)


def plain_text(text):
    """A str of no subclass."""
    return "".join((text, ""))


def _usable(stream):
    """True for a stream that can be read or written to."""
    try:
        stream.flush()
        return not stream.closed
    except Exception:
        return False


def _reader():
    return open(0, closefd=False, encoding="utf-8", errors="replace")


def _writer(fd):
    return open(fd, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")


def _flush(stream):
    """False when what was written to it cannot go where it should."""
    try:
        stream.flush()
        return True
    except Exception:
        return False


def _cut_frames(exception):
    """Drop frames that are not of a cell, also in causes and contexts, and contexts that have no other."""
    waiting, seen = [exception], set()
    while waiting:
        exception = waiting.pop()
        if exception is None or id(exception) in seen:
            continue
        seen.add(id(exception))
        exception.stack = traceback.StackSummary.from_list(filter(_of_a_cell, exception.stack or ()))
        while (inner := exception.__context__) is not None and not any(map(_of_a_cell, inner.stack or ())):
            exception.__context__ = inner.__context__  # how a library got from one error to another
        waiting += [exception.__cause__, exception.__context__, *(exception.exceptions or ())]


def _of_a_cell(frame):
    return frame.filename.startswith("<cell ")


def close_others(keep):
    """Close every descriptor but `keep`: an inherited one would be a way out."""
    start = 0
    for fd in [*sorted(keep), None]:
        end = fd if fd is not None else 1 << 20
        if start < end:  # an empty range would be taken for "up to the last one" and close them all
            os.closerange(start, end)
        start = end + 1


def limit_resources(limits, start):
    """Lower the rlimits, hard ones too. RLIMIT_AS counts from what the interpreter already maps."""
    mib = 1 << 20
    try:
        with open("/proc/self/statm") as file:
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
