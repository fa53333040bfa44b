"""Files that start a run on a cluster: a batch script for SLURM, a RayJob for Kubernetes.

Both start a Ray head beside the learner and Ray on the other machines, and then run `agentrl train`. Read
from the settings: how many workers there are, and what each asks for.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from agentrl.cluster.ray import Role, named, roles_of
from agentrl.config.settings import Settings
from agentrl.errors import ConfigError

RAY_PORT = 6379
OWN_GPUS = "# The learner has {ranks} of the first machine's GPUs to itself: Ray lends only the others.\n"
SLURM = Template("""\
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=$cores
$gpu_line#SBATCH --time=$time
#SBATCH --requeue
# $what
set -euo pipefail

head=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | awk 'NR == 1')
address=$$(srun --nodes=1 --ntasks=1 --nodelist="$$head" hostname --ip-address | awk '{print $$1}')
export RAY_ADDRESS="$$address:$port"
export RAY_worker_niceness=0  # as the learner beside them

${gpu_note}srun --nodes=1 --ntasks=1 --nodelist="$$head" --overlap \\
  ${lent}ray start --head --node-ip-address="$$address" --port=$port \\
  --num-cpus=$head_cores --num-gpus=$head_gpus --block &
others=$$((SLURM_JOB_NUM_NODES - 1))
if [ "$$others" -gt 0 ]; then
  sleep 10
  srun --nodes="$$others" --ntasks="$$others" --exclude="$$head" --overlap \\
    ray start --address="$$RAY_ADDRESS" --num-cpus=$cores --num-gpus=$gpus --block &
fi
for _ in $$(seq 60); do ray status > /dev/null 2>&1 && break; sleep 5; done
ray status

# A job that was put back into the queue goes on where it was.
run=$run
if [ -e "$$run/run.json" ]; then
  agentrl train --resume "$$run" --quiet
else
  $train
fi
""")


@dataclass(frozen=True, slots=True)
class Shape:
    """The machines of a run."""

    nodes: int
    gpus: int
    """Of each."""
    cores: int
    """Of each."""
    name: str
    """Of the job and of the run."""
    train: str = ""
    """The command that starts the run, for a shell."""


def shape_of(
    settings: Settings, file: str, flags: Sequence[str] = (), *, gpus: int, cores: int, nodes: int = 0
) -> Shape:
    """Machines that hold the learner's ranks and all that Ray places.

    Args:
        settings: of the run, those of flags too.
        file: settings, as the machines see them.
        flags: settings that are said besides.
        gpus, cores: of one machine.
        nodes: machines; 0 takes as few as hold them.

    Raises:
        ConfigError: they do not hold them.
    """
    roles, own = roles_of(settings), _own_gpus(settings, gpus)
    if own > gpus:
        raise ConfigError(
            f"learner.ranks = {own} need as many GPUs in one machine, and it has {gpus}; learner.place = "
            "'cluster' spreads them over several"
        )
    for role in roles:
        if role.gpus > gpus or role.cpus > cores:
            said = ", ".join(filter(None, role.settings[1:]))
            raise ConfigError(
                f"a {role.name} asks for {named(role.bundle)} ({said}), and a machine has {cores} CPU and "
                f"{gpus} GPU"
            )
    least = _machines(roles, gpus=gpus, cores=cores, own=own)
    if nodes and nodes < least:
        asked = [f"{role.count} {role.name}s" for role in roles]
        asked += [f"{own} learner ranks"] if own else []
        raise ConfigError(
            f"{' and '.join(asked)} need {least} machines of {gpus} GPUs and {cores} cores, and there are "
            f"{nodes}"
        )
    name = settings.run.name or "agentrl"
    own = (f"--run.directory={settings.run.directory}", "--name", name, "--quiet")
    train = shlex.join(["agentrl", "train", file, *flags, "--cluster", "ray", *own])
    return Shape(nodes or least, gpus, cores, name, train)


def _own_gpus(settings: Settings, gpus: int) -> int:
    """GPUs of the first machine that the learner has to itself, where Ray does not place it."""
    return settings.learner.ranks if gpus and settings.learner.place != "cluster" else 0


def _machines(roles: Sequence[Role], *, gpus: int, cores: int, own: int) -> int:
    """As few machines as hold all, those of most GPUs first; the run itself keeps a core of the first."""
    free = [[gpus - own, cores - 1.0]]
    for role in sorted(roles, key=lambda role: (role.gpus, role.cpus), reverse=True):
        for _ in range(role.count):
            home = next((one for one in free if one[0] >= role.gpus and one[1] >= role.cpus), None)
            if home is None:
                home = [gpus, float(cores)]
                free.append(home)
            home[0] -= role.gpus
            home[1] -= role.cpus
    return len(free)


def slurm_script(settings: Settings, shape: Shape, *, time: str) -> str:
    """A script for `sbatch`; `time` is the limit as SLURM writes it."""
    ranks = _own_gpus(settings, shape.gpus)
    return SLURM.substitute(
        name=shlex.quote(shape.name),
        nodes=shape.nodes,
        cores=shape.cores,
        gpus=shape.gpus,
        gpu_line=f"#SBATCH --gpus-per-node={shape.gpus}\n" if shape.gpus else "",
        time=time,
        what=_what(settings),
        port=RAY_PORT,
        gpu_note=OWN_GPUS.format(ranks=ranks) if ranks else "",
        head_gpus=shape.gpus - ranks,
        lent=f"env CUDA_VISIBLE_DEVICES={_numbers(ranks, shape.gpus)} " if ranks else "",
        head_cores=shape.cores - 1,
        run=shlex.quote(f"{settings.run.directory}/{shape.name}"),
        train=shape.train,
    )


def ray_job(settings: Settings, shape: Shape, *, image: str, claim: str) -> str:
    """A RayJob of KubeRay, as JSON, which `kubectl apply -f` takes.

    Args:
        settings: of the run.
        shape: the machines.
        image: has agentrl, its extras `train` and `ray`, and an engine.
        claim: a PersistentVolumeClaim that all of them mount at /workspace, for settings, models and runs.
    """
    ranks = _own_gpus(settings, shape.gpus)
    workspace = {"name": "workspace", "mountPath": "/workspace"}

    def template(role: str) -> dict[str, Any]:
        amounts: dict[str, Any] = {"cpu": str(shape.cores)}
        amounts |= {"nvidia.com/gpu": str(shape.gpus)} if shape.gpus else {}
        container: dict[str, Any] = {
            "name": role,
            "image": image,
            "workingDir": "/workspace",
            "env": [{"name": "RAY_worker_niceness", "value": "0"}],
            "resources": {"limits": amounts, "requests": amounts},
            "volumeMounts": [workspace, {"name": "shm", "mountPath": "/dev/shm"}],
        }
        volumes = [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ]
        return {
            "rayStartParams": {"num-cpus": str(shape.cores), "num-gpus": str(shape.gpus)},
            "template": {"spec": {"containers": [container], "volumes": volumes}},
        }

    group = {
        "groupName": "rollouts",
        "replicas": shape.nodes - 1,
        "minReplicas": shape.nodes - 1,
        "maxReplicas": shape.nodes - 1,
        **template("ray-worker"),
    }
    cluster: dict[str, Any] = {"headGroupSpec": template("ray-head")}
    if shape.nodes > 1:
        cluster["workerGroupSpecs"] = [group]
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": re.sub("[^a-z0-9]+", "-", shape.name.lower()).strip("-")[:40] or "agentrl"},
        "spec": {
            "entrypoint": shape.train,
            "entrypointNumCpus": 1,
            **({"entrypointNumGpus": ranks} if ranks else {}),  # the learner's own
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": cluster,
        },
    }
    return json.dumps(job, indent=2) + "\n"


def _numbers(first: int, end: int) -> str:
    return ",".join(map(str, range(first, end)))


def _what(settings: Settings) -> str:
    told = [f"{role.count} {role.name}s with {named(role.bundle)} each" for role in roles_of(settings)]
    if settings.learner.place != "cluster":
        told.append(f"{settings.learner.ranks} learner rank(s) on the first machine")
    return ", ".join(told)
