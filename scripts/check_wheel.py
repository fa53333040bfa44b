"""Builds the wheel, checks what is in it, and uses it in a virtual environment of its own (`make wheel-check`).

Its dependencies are those of the environment that runs this; `--install` has pip fetch them as a user's would.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from pathlib import Path

TOP = {"agentrl", "agentrl_envs", "agentrl_sandbox"}
NEEDED = (
    "agentrl/cluster/model_configs.json",
    "agentrl/demo/demo.toml",
    "agentrl/demo/model/model.safetensors",
    "agentrl/cli/projects/settings.toml",
    "agentrl/cli/projects/agent/agent.py",
    "agentrl/report/static/page.html",
    "agentrl/report/static/vendor/uPlot.iife.min.js",
    "agentrl/report/static/vendor/temml.LICENSE",
    "agentrl_sandbox/inside/supervisor.py",
    "agentrl_sandbox/docker/seccomp.json",
)


USES = (
    "demo --steps 2 --eval.limit=8 --quiet --name demo",
    "init mine --kind game",
    "train arithmetic --model demo --steps 1 --eval.limit=4 --quiet --name alone",
    "eval runs/demo --data generated:test:2 --quiet",
    "export runs/demo weights",
    "doctor arithmetic",
)
"""What must work in an empty folder."""


def check_content(wheel: Path) -> None:
    """Exit with a message when something is missing or does not belong."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    missing = [name for name in NEEDED if name not in names]
    if top != TOP or missing:
        sys.exit(f"the wheel ships {sorted(top)} (want {sorted(TOP)}) and lacks {missing}")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB, {', '.join(sorted(top))}")


def installed(wheel: Path, folder: Path, *, fetch: bool) -> Path:
    """A new environment with the wheel in it; returns its folder of programs."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    wanted = [f"{wheel}[train]"] if fetch else ["--no-deps", str(wheel)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", *wanted], check=True)
    if not fetch:
        # Packages beside ours are found there; an editable install of ours is not, for its .pth is not read.
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        others = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("-packages"))]
        (folder / "lib" / version / "site-packages" / "others.pth").write_text("\n".join(others) + "\n")
    return python.parent


def use(programs: Path, folder: Path) -> None:
    """Do what a user does first; exits with the output of what does not work."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            sys.exit(
                f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout

    found = run(programs / "python", "-c", "import agentrl; print(agentrl.__file__)").strip()
    if not Path(found).is_relative_to(programs.parent):
        sys.exit(f"{found} was imported, which is not the wheel's")
    for words in USES:
        started = time.monotonic()
        run(programs / "agentrl", *words.split())
        print(f"agentrl {words}: {time.monotonic() - started:.1f} s")


def main() -> None:
    """Build, look, install, use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="fetch dependencies, as a user's pip does")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], check=True)
        (wheel,) = folder.glob("*.whl")
        check_content(wheel)
        started = time.monotonic()
        programs = installed(wheel, folder / "environment", fetch=options.install)
        print(f"installed in {time.monotonic() - started:.1f} s")
        (folder / "work").mkdir()
        use(programs, folder / "work")


if __name__ == "__main__":
    main()
