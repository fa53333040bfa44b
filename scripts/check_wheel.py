"""Builds the wheel and checks what is in it (`make wheel-check`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TOP = {"agentrl", "agentrl_envs", "agentrl_sandbox"}
NEEDED = (
    "agentrl/cluster/model_configs.json",
    "agentrl/demo/demo.toml",
    "agentrl/demo/model/model.safetensors",
    "agentrl/report/static/page.html",
    "agentrl/report/static/vendor/uPlot.iife.min.js",
    "agentrl/report/static/vendor/temml.LICENSE",
    "agentrl_sandbox/inside/supervisor.py",
    "agentrl_sandbox/docker/seccomp.json",
)


def main() -> None:
    """Exit with a message when something is missing or does not belong."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        size = wheel.stat().st_size
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    missing = [name for name in NEEDED if name not in names]
    if top != TOP or missing:
        sys.exit(f"the wheel ships {sorted(top)} (want {sorted(TOP)}) and lacks {missing}")
    print(f"{wheel.name}: {len(names)} files, {size / 1e6:.1f} MB, {', '.join(sorted(top))}")


if __name__ == "__main__":
    main()
