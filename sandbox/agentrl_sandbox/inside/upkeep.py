"""Keeps an interpreter usable after a program has changed what it stands on. Standard library only.

What can be put right is put right, and said; what cannot costs the session its life (`Unusable`), which is
said too. What a program may want to keep is left alone: a function of `builtins` that it replaced by another
one is the program's until it ends and again when the next one begins, while the interpreter itself uses the
real one.
"""

from __future__ import annotations

import builtins
import resource
import sys
from operator import is_, itemgetter
from os import W_OK, X_OK, access, chdir, chmod, getcwd, makedirs, stat
from os.path import dirname, isdir

_LIVE = builtins.__dict__
_FEWEST_FILES = 32
_SHALLOWEST = 100
_MEMORY_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK, resource.RLIMIT_FSIZE)
_CORE = (
    "sys",
    "builtins",
    "os",
    "io",
    "encodings",
    "encodings.utf_8",
    "_frozen_importlib",
    "types",
    "warnings",
)
# A program with none of these words can reach nothing that an interpreter stands on, or hides that it does.
_REACHING = ("__", "exec", "eval", "open", "compile", "globals", "locals", "vars", "frame", "std")
# The same of those that import modules, here or in a cell before.
_REACHING_MODULES = (
    "os", "sys", "builtins", "IO", "Path", "gc", "ctypes", "importlib", "inspect", "resource", "signal",
    "alarm", "shutil", "process", "tempfile", "hread", "runpy", "pydoc", "pdb", "trace", "profile",
    "faulthandler", "fcntl", "tty", "socket", "select", "mmap", "asyncio", "marshal", "codeop", "site",
    "weakref", "cffi", "recursion",
)  # fmt: skip


class Unusable(Exception):
    """The interpreter cannot go on; the text says what the program did to it."""


class Upkeep:
    """What the interpreter stood on when the session began, and how to get back there."""

    def __init__(self, main):
        self.main, self.replaced, self.imports, self.wary = main, {}, False, False
        self.builtins = dict(_LIVE)
        self.modules, self.all_modules = sys.modules, {**sys.modules, "__main__": main}
        self.core = {name: sys.modules[name] for name in _CORE if name in sys.modules}
        self._core_of, self.core_modules = itemgetter(*self.core), tuple(self.core.values())
        self.importers = dict(sys.path_importer_cache)

    def begin_session(self, directory):
        """What differs from one session to the next; for the process that runs its programs."""
        self.directory, self.changed = directory, None
        self.path, self.finders, self.hooks = list(sys.path), list(sys.meta_path), list(sys.path_hooks)
        self.limits = {kind: resource.getrlimit(kind) for kind in (*_MEMORY_LIMITS, resource.RLIMIT_NOFILE)}
        self.recursion = sys.getrecursionlimit()

    def begin_program(self, code):
        """Give the program back the functions of `builtins` that an earlier one replaced.

        From the first program on that could do damage, everything is looked at after each; until then there
        is nothing to look at but files. Who gets past this harms no session but its own, which is restarted
        when the interpreter comes to grief.
        """
        if not self.wary:
            self.imports = self.imports or "import" in code
            for word in _REACHING + _REACHING_MODULES if self.imports else _REACHING:
                if word in code:
                    self.wary = True
                    break
        if self.replaced:
            _LIVE.update(self.replaced)

    def end_program(self):
        """Take the real functions of `builtins` back; the names of those that were missing or of no use.

        Until this has run no name of `builtins` can be relied on here, so it uses none.
        """
        if not self.wary:
            return []
        real, lost, self.replaced = self.builtins, [], {}
        try:
            if real == _LIVE:
                return lost
        except:  # noqa: E722 - the names of exceptions may be gone, and a program's own comparison may raise
            pass
        for name, value in real.items():
            if name not in _LIVE:
                lost.append(name)
                _LIVE[name] = value
            elif _LIVE[name] is not value:
                self.replaced[name] = _LIVE[name]
                _LIVE[name] = value
        for name in list(self.replaced):
            if callable(real[name]) and not callable(self.replaced[name]):
                lost.append(name)
                del self.replaced[name]
        return lost

    def mend(self, lost):
        """Put right what can be put right; what was, as sentences. Raises `Unusable`.

        `lost`: of `end_program`.
        """
        if not self.wary:
            self._look_at_directory()
            return []
        mended = []
        if lost:
            shown = ", ".join(sorted(lost, key=str.swapcase)[:5]) + (", ..." if len(lost) > 5 else "")
            mended.append(f"builtins ({shown})")
        sys.settrace(None)  # it would be called in every function of ours
        sys.setprofile(None)
        if sys.getrecursionlimit() < _SHALLOWEST:
            sys.setrecursionlimit(self.recursion)
            mended.append("the recursion limit")
        if self.main.__dict__.get("__builtins__") is not builtins or not self._imports_are_sound():
            mended += self._mend_main()
            mended += self._mend_imports()
        if not self._directory_is_sound():
            mended += self._mend_directory()
        self._check_limits()
        return [f"The program had damaged {', '.join(mended)}; that was put right."] if mended else []

    def _imports_are_sound(self):
        """True when nothing is other than at first; in as few steps as can be, for it is asked every time."""
        try:
            return (
                sys.modules is self.modules
                and all(map(is_, self._core_of(self.modules), self.core_modules))
                and self.modules.get("__main__") is self.main
                and sys.path == self.path
                and sys.meta_path == self.finders
                and sys.path_hooks == self.hooks
                and len(sys.path_importer_cache) >= len(self.importers)
                and type(self.main.__dict__.get("__name__")) is str
            )
        except Exception:
            return False  # a module or a name is missing, or something of the program's was compared

    def _mend_main(self):
        names, mended = self.main.__dict__, []
        if names.get("__builtins__") is not builtins:
            names["__builtins__"] = builtins
            mended.append("__builtins__")
        if type(names.get("__name__")) is not str:
            names["__name__"] = "__main__"
        return mended

    def _mend_imports(self):
        mended = []
        if len(sys.path_importer_cache) < len(self.importers):
            for path, finder in self.importers.items():  # what they know may not be found out again
                sys.path_importer_cache.setdefault(path, finder)
        if sys.modules is not self.modules or any(self.modules.get(n) is not m for n, m in self.core.items()):
            sys.modules = self.modules
            for name, module in self.all_modules.items():
                if self.modules.get(name) is None:
                    self.modules[name] = module
            self.modules.update(self.core)
            mended.append("sys.modules")
        self.modules["__main__"] = self.main
        for name, wanted in (("path", self.path), ("meta_path", self.finders), ("path_hooks", self.hooks)):
            have = getattr(sys, name, None)
            if have == wanted:
                continue
            if type(have) is not list:
                setattr(sys, name, list(wanted))
            elif missing := [
                entry for entry in wanted if not any(entry is other or entry == other for other in have)
            ]:
                have += missing
            else:
                continue
            mended.append(f"sys.{name}")
        return mended

    def _directory_is_sound(self):
        """True when it can be worked in."""
        try:
            getcwd()
        except OSError:
            return False
        found = self._look_at_directory()
        return found is not None and found.st_mode & 0o700 == 0o700

    def _look_at_directory(self):
        """Its status, None where it has gone; sets `changed`, the time of its last change."""
        try:
            found = stat(self.directory)
        except OSError:
            self.changed = None
            return None
        self.changed = found.st_mtime_ns
        return found

    def _mend_directory(self):
        mended, parent = ["the working directory"], dirname(self.directory)
        try:
            if not access(parent, X_OK | W_OK):
                chmod(parent, 0o700)
            if not isdir(self.directory):
                makedirs(self.directory)
                mended = ["the working directory (it is empty now)"]
            chmod(self.directory, 0o700)
            chdir(self.directory)
        except OSError as error:
            raise Unusable(f"its working directory cannot be used ({error.strerror})") from None
        return mended

    def _check_limits(self):
        """A limit that the program lowered for itself holds, unless nothing works under it."""
        kind = resource.RLIMIT_NOFILE
        soft, hard = resource.getrlimit(kind)
        if 0 <= soft < min(_FEWEST_FILES, self.limits[kind][0]):
            if 0 <= hard < _FEWEST_FILES:
                raise Unusable(f"its limit of open files was lowered to {hard}")
            resource.setrlimit(
                kind, (min(hard, self.limits[kind][0]) if hard >= 0 else self.limits[kind][0], hard)
            )
        if all(resource.getrlimit(kind) == self.limits[kind] for kind in _MEMORY_LIMITS):
            return
        for raised in (False, True):
            try:
                bytearray(1 << 22)
                return
            except MemoryError:
                if raised:
                    break
            for kind in _MEMORY_LIMITS[:3]:
                hard = resource.getrlimit(kind)[1]
                resource.setrlimit(kind, (hard, hard))
        raise Unusable("its memory limit was lowered to less than it has in use")


def outline(error):
    """A traceback for an exception that cannot be shown otherwise; calls nothing that a program defined."""
    lines, trace = [], _TRACEBACK(error)
    while trace is not None and len(lines) < 20:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith("<cell "):
            lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}')
        trace = trace.tb_next
    if lines:
        lines.insert(0, "Traceback (most recent call last):")
    arguments = _ARGUMENTS(error)
    message = str.__str__(arguments[0]) if len(arguments) == 1 and type(arguments[0]) is str else ""
    return "\n".join([*lines, name_of(type(error)) + (f": {message}" if message else "")])


def name_of(kind):
    """Name of a class, whatever its metaclass says."""
    return _NAME(kind)


_NAME = type.__dict__["__name__"].__get__
_TRACEBACK = BaseException.__dict__["__traceback__"].__get__
_ARGUMENTS = BaseException.__dict__["args"].__get__
