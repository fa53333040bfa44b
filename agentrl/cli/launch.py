"""`agentrl launch`: the file that starts a run on a cluster, printed; nothing is sent anywhere."""

from __future__ import annotations

import argparse
from typing import Any

from agentrl.cli.command import add_command
from agentrl.cli.options import add_settings
from agentrl.cli.run_settings import settings_of
from agentrl.config.ranges import Count, Number, number
from agentrl.config.settings import Settings
from agentrl.config.short_names import TRAIN

EPILOG = """\
examples (send what is printed to a file, for `sbatch FILE` or `kubectl apply -f FILE`):
  agentrl launch slurm run.toml --gpus 8 --cores 96
  agentrl launch k8s run.toml --gpus 8 --image registry/agentrl
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = add_command(
        subparsers, "launch", "print the file that starts a run on SLURM or Kubernetes", EPILOG
    )
    parser.add_argument(
        "where", choices=("slurm", "k8s"), help="a script for sbatch, or a RayJob for kubectl"
    )
    parser.add_argument(
        "file",
        help="settings (.toml) or an environment (.py, .py:Class, a name), as the cluster's machines see it",
    )
    parser.add_argument("--gpus", type=number(Number), default=8, help="GPUs of a machine (default: 8)")
    parser.add_argument("--cores", type=number(Count), default=64, help="cores of a machine (default: 64)")
    parser.add_argument(
        "--nodes", type=number(Number), default=0, help="machines (default: as few as needed)"
    )
    parser.add_argument("--time", default="24:00:00", help="slurm: limit of the job (default: 24:00:00)")
    parser.add_argument(
        "--image", default="agentrl:latest", help="k8s: image with agentrl, its extra ray, an engine"
    )
    parser.add_argument("--claim", default="agentrl", help="k8s: volume claim that is mounted at /workspace")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the file alone, which is all it ever does"
    )
    add_settings(parser, Settings, TRAIN)
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Print the file."""
    from agentrl.cluster.launch import ray_job, shape_of, slurm_script

    settings = settings_of(options.file, [*options.settings, "--cluster.kind=ray"])  # as it is started there
    shape = shape_of(
        settings, options.file, options.settings, gpus=options.gpus, cores=options.cores, nodes=options.nodes
    )
    if options.where == "slurm":
        print(slurm_script(settings, shape, time=options.time), end="")
    else:
        print(ray_job(settings, shape, image=options.image, claim=options.claim), end="")
    return 0
