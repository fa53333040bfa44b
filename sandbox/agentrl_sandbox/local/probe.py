"""Finds the strongest level of isolation that this machine really gives, by trying.

Each candidate is built, a session is opened in it, and the canaries run there with a limit on time. What did
not hold is a reason in the report. Nothing unsafe is used unless allowed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from ..errors import LibraryBroken, SandboxError, SandboxUnavailable
from ..interface import Session
from ..level import Level
from .canaries import escapes, readable_by
from .cgroups import Groups
from .libraries import import_names, install
from .zygote_handle import Zygote, ZygoteSettings

START_LIMIT_S = 60.0
CANARY_LIMIT_S = 5.0
_HOW = (
    "How to get there: run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, on "
    "Ubuntu 24.04 also kernel.apparmor_restrict_unprivileged_userns=0; in a container --security-opt "
    "seccomp=unconfined or --privileged), or use backend='docker'. min_level='filtered' accepts less: see "
    "docs/sandbox.md for what that does not hold."
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller of the sandbox asks for."""

    open_session: Callable[[Found], Awaitable[Session]]
    """Opens a session at a level that was found, for canaries to try it from the inside."""
    python: str | None = None
    libraries: tuple[str, ...] = ()
    library_path: str | None = None
    max_level: Level = Level.CONTAINED
    min_level: Level = Level.NAMESPACED
    allow_unsafe: bool = False
    control_groups: bool = True
    own_network: bool = True
    uid: int = 65534


@dataclass(slots=True)
class Found:
    """The strongest level, its first zygote, and why it is not a stronger one."""

    level: Level
    settings: ZygoteSettings
    zygote: Zygote
    groups: Groups | None
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter for programs: its executable, its home, its version ("3.11")."""

    executable: str
    prefix: str
    version: str


def find_level(wish: Wish) -> Found:
    """Try the levels from the strongest allowed one down. Blocks for a second or less.

    Raises:
        SandboxUnavailable: nothing, or nothing as strong as `min_level`; the text says what to do.
    """
    reasons: list[str] = []
    if wish.min_level > wish.max_level:
        raise SandboxUnavailable(
            f"level {wish.min_level.name.lower()} is more than the local backend gives "
            f"({wish.max_level.name.lower()}); use backend='docker' with runtime='runsc' for 'virtual'"
        )
    for level in (Level.NAMESPACED, Level.FILTERED, Level.UNSAFE):
        if level > wish.max_level or (level is Level.UNSAFE and not wish.allow_unsafe):
            continue
        found = _try_pythons(level, wish, reasons)
        if found is None:
            continue
        if found.level < wish.min_level:
            _close(found)
            raise SandboxUnavailable(_too_weak(found.level, wish.min_level, reasons + found.reasons))
        found.reasons = reasons + found.reasons
        return found
    raise SandboxUnavailable(
        f"this machine offers no isolation: {'; '.join(reasons)}. {_HOW} "
        "allow_unsafe=True runs programs without isolation; only do so with programs you trust"
    )


def _too_weak(level: Level, wanted: Level, reasons: list[str]) -> str:
    why = "; ".join(reasons) or "unknown"
    return (
        f"isolation level {wanted.name.lower()} was asked for, this machine offers {level.name.lower()}: "
        f"{why}. {_HOW}"
    )


def _try_pythons(level: Level, wish: Wish, reasons: list[str]) -> Found | None:
    """The level with the first interpreter that has it. Raises LibraryBroken: a library lowers no level."""
    broken: LibraryBroken | None = None
    for python in pythons(wish.python):
        try:
            found = _try_level(level, python, wish, reasons)
        except LibraryBroken as error:
            broken = broken or error
            continue
        if found is not None:
            return found
    if broken is not None:
        raise broken
    return None


def _try_level(level: Level, python: Python, wish: Wish, reasons: list[str]) -> Found | None:
    name = level.name.lower()
    settings = _settings(level, python, wish)
    try:
        _check_readable(level, settings, wish)
        zygote = _start(settings)
    except LibraryBroken:
        raise
    except SandboxUnavailable as error:
        if f"{name}: {error}" not in reasons:
            reasons.append(f"{name}: {error}")
        return None
    found = Found(level, settings, zygote, None)
    if level is Level.NAMESPACED and wish.max_level >= Level.CONTAINED:
        if wish.control_groups:
            found.groups, why = Groups.find()
        else:
            why = "control groups are switched off"
        if found.groups is not None:
            found.level = Level.CONTAINED
        else:
            found.reasons.append(f"contained: {why}")
    got_out = ["nothing was tried"]
    for _ in range(2):  # a busy machine may keep them from running once
        try:
            got_out = asyncio.run(_run_canaries(found, wish))
        except SandboxError as error:
            got_out = [str(error)]
        if not got_out:
            break
    if got_out and level is not Level.UNSAFE:
        reasons.append(f"{name}: {'; '.join(got_out)}")
        _close(found)
        return None
    return found


def _start(settings: ZygoteSettings) -> Zygote:
    """A zygote; LibraryBroken also where a library took the interpreter along, which only comparing shows."""
    try:
        return Zygote.start(settings, START_LIMIT_S)
    except LibraryBroken:
        raise
    except SandboxUnavailable as error:
        if settings.warm:
            Zygote.start(replace(settings, warm=()), START_LIMIT_S).close()
            raise LibraryBroken(
                f"the interpreter died while it imported {', '.join(settings.warm)}: {error}"
            ) from error
        raise


async def _run_canaries(found: Found, wish: Wish) -> list[str]:
    session = await wish.open_session(found)
    try:
        return await escapes(session, timeout_s=CANARY_LIMIT_S)
    finally:
        await session.close()


def _close(found: Found) -> None:
    found.zygote.close()
    if found.groups is not None:
        found.groups.close()


def _settings(level: Level, python: Python, wish: Wish) -> ZygoteSettings:
    paths: tuple[str, ...] = ()
    if wish.library_path is not None:
        if not os.path.isdir(wish.library_path):
            raise SandboxUnavailable(f"library_path {wish.library_path} is not a directory")
        paths = (os.path.realpath(wish.library_path),)
    elif wish.libraries:
        paths = (install(wish.libraries, python.executable, python.version),)
    return ZygoteSettings(
        python=python.executable,
        prefix=python.prefix,
        library_paths=paths,
        warm=import_names(wish.libraries),
        namespaces=level is Level.NAMESPACED,
        protect=level is not Level.UNSAFE,
        own_network=wish.own_network,
        uid=wish.uid,
    )


def _check_readable(level: Level, settings: ZygoteSettings, wish: Wish) -> None:
    """Without a private root sessions read interpreter and libraries by real paths, as another user."""
    if os.geteuid() != 0 or level is not Level.FILTERED:
        return
    for path in (settings.python, *settings.library_paths):
        if not readable_by(path, wish.uid):
            what = "python=/usr/bin/python3" if path == settings.python else "library_path="
            raise SandboxUnavailable(
                f"{path} cannot be read by other users (below a home directory closed to them?); "
                f"give {what} or another place that everybody may read"
            )


def pythons(wanted: str | None) -> list[Python]:
    """Interpreters to try: the one asked for, or this process's own and then the system's."""
    if wanted is not None:
        return [inspect_python(wanted)]
    own = Python(
        os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
        sys.base_prefix,
        "{}.{}".format(*sys.version_info[:2]),
    )
    found = [own]
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path) and os.path.realpath(path) != own.executable:
            try:
                found.append(inspect_python(path))
            except SandboxUnavailable:
                continue
    return found


def inspect_python(path: str) -> Python:
    """Ask an interpreter for its real executable, home and version. Raises SandboxUnavailable."""
    code = (
        "import json,os,sys;print(json.dumps([os.path.realpath(sys._base_executable),sys.base_prefix,"
        "list(sys.version_info[:2])]))"
    )
    try:
        done = subprocess.run(
            [path, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd="/"
        )
        executable, prefix, version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SandboxUnavailable(f"{path} is no usable Python: {error}") from error
    if tuple(version) < (3, 11):
        raise SandboxUnavailable(f"{path} is Python {version[0]}.{version[1]}; 3.11 or newer is needed")
    return Python(executable, prefix, "{}.{}".format(*version))
