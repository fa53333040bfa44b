"""Builds the image of the Docker sandbox from a Python that is already on this machine, without any registry.

The image holds an interpreter, its standard library, the shared libraries they need and a few pure or
compiled packages, nothing else: no package manager, no setuid program, and no shell but where one is asked
for. It does NOT hold the session program (`inside`): that is sent over the attached socket when a session
starts, so an image never goes out of date with the host, and any image that has `python3` works.
`sandbox/docker/Dockerfile` is the same for people who build images with Docker itself.

    python -m agentrl_sandbox.docker.image --tag agentrl-sandbox:local --packages numpy,sympy
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import SandboxError
from .container import DEFAULT_TAG

DEFAULT_PACKAGES = ("numpy", "sympy")
BUILD_LIMIT_S = 600.0
# Parts of the standard library that a session has no use for; they are half of its size.
SKIPPED = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "lib2to3",
    }
)

# Asked of the interpreter that is copied, which need not be the one that runs this file.
_QUESTION = """
import importlib.metadata as m, json, re, sys, sysconfig
files, missing, seen, todo = [], [], set(), json.loads(sys.argv[1])
while todo:
    name = todo.pop()
    key = name.lower().replace("-", "_")
    if key in seen: continue
    seen.add(key)
    try: d = m.distribution(name)
    except m.PackageNotFoundError: missing.append(name); continue
    for f in d.files or (): files.append([str(d.locate_file(f)), str(f)])
    for r in d.requires or ():
        if ";" not in r: todo.append(re.match(r"[A-Za-z0-9._-]+", r).group())
print(json.dumps({"executable": sys._base_executable, "version": "%d.%d" % sys.version_info[:2],
  "stdlib": sysconfig.get_path("stdlib"), "platstdlib": sysconfig.get_path("platstdlib"),
  "files": files, "missing": missing}))
"""

_PASSWD = "root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/work:/bin/false\n"
_ROOT_FILES = {
    "etc/passwd": _PASSWD,
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_CHANGES = ("ENV PATH=/usr/local/bin:/usr/bin:/bin", "WORKDIR /work", "USER 65534:65534")
_ROOT_FOLDERS = ("tmp", "work", "proc", "dev", "sys", "etc", "usr/local/bin", "usr/bin")


def inspect_python(python: str, packages: Iterable[str]) -> dict[str, Any]:
    """Where `python` keeps its executable, standard library and the files of `packages` with what they need.

    Raises `SandboxError` when the interpreter does not run or has not one of the packages.
    """
    command = [python, "-I", "-c", _QUESTION, json.dumps(list(packages))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"cannot build an image from {python}: it does not run ({error})") from error
    found = json.loads(done.stdout)
    if found["missing"]:
        names = ", ".join(sorted(found["missing"]))
        raise SandboxError(
            f"{python} has no package {names}: install it there, or leave it out of `packages`"
        )
    return found


def _shared_libraries(binaries: Iterable[Path]) -> set[str]:
    """The absolute paths that `ldd` names, the dynamic loader among them."""
    found: set[str] = set()
    batch = [str(b) for b in binaries]
    for start in range(0, len(batch), 200):
        done = subprocess.run(
            ["ldd", *batch[start : start + 200]], capture_output=True, text=True, timeout=120, check=False
        )
        for line in done.stdout.splitlines():
            words = line.replace("=>", " ").split()
            found.update(os.path.normpath(w) for w in words if w.startswith("/") and not w.endswith(":"))
    return found


def _tree(top: Path, below: PurePosixPath) -> Iterator[tuple[Path, PurePosixPath]]:
    for folder, names, files in os.walk(top):
        names[:] = [n for n in names if n not in SKIPPED and not n.startswith("config-")]
        relative = PurePosixPath(Path(folder).relative_to(top).as_posix())
        for name in files:
            if name.startswith("_tkinter"):  # it alone would bring the X11 libraries in
                continue
            yield Path(folder) / name, below / relative / name


def _programs(names: Iterable[str]) -> dict[PurePosixPath, Path]:
    """Programs of this machine: path inside -> path here. SandboxError where one is missing."""
    found = {name: shutil.which(name) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        raise SandboxError(f"cannot build an image: this machine has no program {', '.join(missing)}")
    return {PurePosixPath("usr/bin") / name: Path(str(path)).resolve() for name, path in found.items()}


def _layout(found: dict[str, Any], programs: Mapping[PurePosixPath, Path]) -> dict[PurePosixPath, Path]:
    """Every file of the image: path inside -> path on this machine."""
    library = PurePosixPath("usr/local/lib") / f"python{found['version']}"
    layout: dict[PurePosixPath, Path] = {}
    for top in {found["stdlib"], found["platstdlib"]}:
        layout.update({inside: outside for outside, inside in _tree(Path(top), library)})
    for outside, relative in found["files"]:
        inside = PurePosixPath(os.path.normpath(library / "site-packages" / relative))
        wanted = PurePosixPath(library / "site-packages") in inside.parents
        if wanted and "tests" not in inside.parts and Path(outside).is_file():
            layout[inside] = Path(outside)
    layout[PurePosixPath("usr/local/bin/python3")] = Path(found["executable"]).resolve()
    layout.update(programs)
    binaries = [*programs.values()]
    binaries += [p for inside, p in layout.items() if ".so" in inside.name or inside.name == "python3"]
    # Libraries that a wheel carries with it are found by their relative paths and are in the layout already.
    carried = {os.path.normpath(p) for p in layout.values()}
    libraries = _shared_libraries(binaries) - carried
    system = {p for p in libraries if p.startswith(("/lib", "/usr/lib"))}
    # One that lies elsewhere (a Python built at home has its libpython there) moves to where the loader looks
    # anyway.
    home = next(
        (os.path.dirname(p) for p in sorted(system) if os.path.basename(p).startswith("libc.")), "/usr/lib"
    )
    for path in libraries:
        inside = path if path in system else os.path.join(home, os.path.basename(path))
        layout[PurePosixPath(inside.lstrip("/"))] = Path(path).resolve()
    return layout


def _text_entry(
    name: str, mode: int = 0o644, kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname = mode, kind, target
    return info


def write_root_filesystem(
    stream: IO[bytes], found: dict[str, Any], programs: Mapping[PurePosixPath, Path]
) -> None:
    """Writes the root filesystem as a tar archive; every file belongs to root and can be read by all."""
    library = f"usr/local/lib/python{found['version']}"
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for folder in _ROOT_FOLDERS:
            mode = 0o1777 if folder in ("tmp", "work") else 0o755
            archive.addfile(_text_entry(folder, mode, tarfile.DIRTYPE))
        for name, text in _ROOT_FILES.items():
            info = _text_entry(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
        archive.addfile(_text_entry("bin", 0o777, tarfile.SYMTYPE, "usr/bin"))
        # Debian's own Python looks into dist-packages, every other one into site-packages.
        archive.addfile(_text_entry(f"{library}/dist-packages", 0o777, tarfile.SYMTYPE, "site-packages"))
        for inside, outside in sorted(_layout(found, programs).items()):
            info = archive.gettarinfo(str(outside), str(inside))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mode = 0o755 if info.mode & 0o100 else 0o644
            info.type, info.linkname = tarfile.REGTYPE, ""
            info.size = outside.stat().st_size
            with outside.open("rb") as content:
                archive.addfile(info, content)


def build_image(
    tag: str = DEFAULT_TAG,
    *,
    packages: Iterable[str] = DEFAULT_PACKAGES,
    programs: Iterable[str] = (),
    python: str = sys.executable,
    base_url: str | None = None,
) -> str:
    """Builds and tags the image; returns its id. Takes some seconds and writes a temporary file.

    `python`: the interpreter that is copied and that has `packages` installed. `programs`: of this machine,
    such as a shell, copied with the libraries that they need. `base_url`: the engine, by
    default the one of the environment (`DOCKER_HOST`). Raises `SandboxError` when the engine or the
    interpreter is missing.
    """
    import tempfile

    from .engine import connect, engine_errors

    found, copied = inspect_python(python, packages), _programs(programs)
    repository, _, label = tag.partition(":")
    with tempfile.TemporaryFile() as archive, engine_errors(f"build image {tag}"):
        write_root_filesystem(archive, found, copied)
        archive.seek(0)
        client = connect(base_url, timeout_s=BUILD_LIMIT_S)
        try:
            # docker-py announces chunks and then sends a file object unchunked; an iterator it does chunk.
            pieces = iter(lambda: archive.read(1 << 20), b"")
            client.api.import_image_from_stream(
                pieces, repository=repository, tag=label or "latest", changes=list(_CHANGES)
            )
            return str(client.images.get(tag).id)
        finally:
            client.close()


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl_sandbox.docker.image", description="Build an image of this Python."
    )
    parser.add_argument("--tag", default=DEFAULT_TAG)
    parser.add_argument(
        "--packages", default=",".join(DEFAULT_PACKAGES), help="comma-separated; taken from --python"
    )
    parser.add_argument("--programs", default="", help="comma-separated; of this machine, such as sh,curl")
    parser.add_argument(
        "--python", default=sys.executable, help="the interpreter that is copied into the image"
    )
    parser.add_argument("--base-url", default=None, help="the Docker engine (default: DOCKER_HOST)")
    given = parser.parse_args(arguments)
    packages, programs = (
        [name for name in text.split(",") if name] for text in (given.packages, given.programs)
    )
    image = build_image(
        given.tag, packages=packages, programs=programs, python=given.python, base_url=given.base_url
    )
    sys.stdout.write(f"{given.tag} {image}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
