"""Files that start a run on SLURM and Kubernetes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.cli.main import main
from agentrl.cluster.launch import ray_job, shape_of, slurm_script
from agentrl.config import bundled
from agentrl.config.loading import load_settings
from agentrl.errors import ConfigError
from agentrl.training.plan import plan_run

FLAGS = ("--cluster.rollout_workers=12", "--cluster.gpus=1", "--cluster.cpus=4")
SHIM = """#!/bin/bash
echo "$(basename "$0") $* [${RAY_ADDRESS:-}]" >> "$CALLS"
case "$(basename "$0")" in
  scontrol) for number in {1..20000}; do echo "node$number"; done ;;  # more than a pipe holds
  srun) [[ " $* " == *" hostname "* ]] && echo '10.0.0.1 fe80::1' ;;
esac
exit 0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "sums"\n[learner]\nplace = "process"\nranks = 4\n')
    return path


def test_a_run_on_a_cluster_without_the_package_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    settings = load_settings(bundled.SETTINGS, [f"--model.path={bundled.MODEL}", "--cluster.kind=ray"])
    with pytest.raises(ConfigError, match=r"needs the package ray: pip install \"agentrl\[ray\]\""):
        plan_run(settings)
    # Looked at only, it may be for another machine.
    assert "needs the package ray" in plan_run(settings, fetch=False).notes[-1]


def test_as_few_machines_as_hold_it(file: Path) -> None:
    settings = load_settings(file, FLAGS)
    # The first has 4 GPUs left beside the learner's 4, and another one 8: 12 workers of one GPU.
    assert shape_of(settings, "run.toml", gpus=8, cores=64).nodes == 2
    # With 16 cores, of which the trainer keeps one, three workers of 4 cores fit the first and four another: 3.25.
    assert shape_of(settings, "run.toml", gpus=8, cores=16).nodes == 4
    assert (
        shape_of(load_settings(file, ["--cluster.rollout_workers=3"]), "run.toml", gpus=0, cores=4).nodes == 1
    )
    with pytest.raises(ConfigError, match="12 rollout workers and 4 learner ranks need 2 machines of 8 GPUs"):
        shape_of(settings, "run.toml", gpus=8, cores=64, nodes=1)
    with pytest.raises(ConfigError, match="learner.ranks = 4 need as many GPUs in one machine, and it has 2"):
        shape_of(settings, "run.toml", gpus=2, cores=64)
    with pytest.raises(ConfigError, match="asks for 4 CPU and 1 GPU .* and a machine has 3 CPU and 8 GPU"):
        shape_of(settings, "run.toml", gpus=8, cores=3)


def test_learner_ranks_on_the_cluster(file: Path) -> None:
    ranks = (
        "--cluster.kind=ray",
        "--learner.place=cluster",
        "--learner.ranks=16",
        "--cluster.learner_gpus=1",
    )
    settings = load_settings(file, [*FLAGS, *ranks, "--cluster.learner_cpus=2"])
    # 12 workers and 16 ranks of one GPU each; none of them needs to be on the first machine.
    shape = shape_of(settings, "run.toml", gpus=8, cores=64)
    assert shape.nodes == 4
    script = slurm_script(settings, shape, time="01:00:00")
    assert "CUDA_VISIBLE_DEVICES" not in script
    assert (
        "# 16 learner ranks with 2 CPU and 1 GPU each, 12 rollout workers with 4 CPU and 1 GPU each" in script
    )
    spec = json.loads(ray_job(settings, shape, image="image", claim="claim"))["spec"]
    assert "entrypointNumGpus" not in spec
    with pytest.raises(ConfigError, match="needs a cluster: set cluster.kind = 'ray'"):
        load_settings(file, [*FLAGS, *ranks[1:]])


def test_the_script_for_slurm(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", str(file), *FLAGS, "--time", "08:00:00", "--dry-run"]) == 0
    script = tmp_path / "run.sbatch"
    script.write_text(capsys.readouterr().out)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    head = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --nodes=2" in head
    before, started, _ = script.read_text().partition("ray start")
    assert started
    assert "\nexport RAY_worker_niceness=0 " in before  # else workers starve beside the learner
    assert "#SBATCH --gpus-per-node=8" in head
    assert "#SBATCH --time=08:00:00" in head
    # Run it with what it calls written down in place of done.
    shims = tmp_path / "bin"
    shims.mkdir()
    for name in ("scontrol", "srun", "ray", "agentrl", "sleep"):
        (shims / name).write_text(SHIM)
        (shims / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = {
        "PATH": f"{shims}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }

    def submit() -> str:
        """All calls so far; what the script leaves in the background holds the pipes, and is waited for."""
        subprocess.run(["bash", script], env=environment, cwd=tmp_path, check=True, capture_output=True)
        return calls.read_text()

    done = submit()
    assert "env CUDA_VISIBLE_DEVICES=4,5,6,7 ray start --head --node-ip-address=10.0.0.1 --port=6379" in done
    assert "--exclude=node1 --overlap ray start --address=10.0.0.1:6379 --num-cpus=64 --num-gpus=8" in done
    # What the machines were counted by is what the run is told.
    last = f"agentrl train {file} {' '.join(FLAGS)} --cluster ray --run.directory=runs --name sums --quiet"
    last += " [10.0.0.1:6379]"
    assert last in done.splitlines()
    # Put back into the queue, it goes on.
    (tmp_path / "runs/sums").mkdir(parents=True)
    (tmp_path / "runs/sums/run.json").write_text("{}")
    assert "\nagentrl train --resume runs/sums --quiet" in submit().removeprefix(done)


def test_an_environment_in_place_of_a_settings_file(capsys: pytest.CaptureFixture[str]) -> None:
    # As `agentrl train` takes it: the machines choose the other settings when the run starts there.
    assert main(["launch", "slurm", "my_env.py", "--gpus", "0", "--cluster.rollout_workers=2"]) == 0
    trained = "agentrl train my_env.py --cluster.rollout_workers=2 --cluster ray --run.directory=runs"
    assert trained in capsys.readouterr().out


def test_the_job_for_kubernetes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "k8s", str(file), *FLAGS, "--image", "registry/agentrl:1"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "sums")
    spec = job["spec"]
    assert spec["entrypoint"].startswith(f"agentrl train {file} {' '.join(FLAGS)} --cluster ray ")
    assert spec["entrypointNumGpus"] == 4
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 1
    for part in (spec["rayClusterSpec"]["headGroupSpec"], group):
        (container,) = part["template"]["spec"]["containers"]
        assert container["image"] == "registry/agentrl:1"
        assert container["env"] == [{"name": "RAY_worker_niceness", "value": "0"}]
        assert container["resources"]["limits"] == {"cpu": "64", "nvidia.com/gpu": "8"}


def test_names_of_jobs_are_those_that_kubernetes_takes(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "k8s", str(file), *FLAGS, "--name", "Qwen3.1 7B_"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert job["metadata"]["name"] == "qwen3-1-7b"
    assert "--name 'Qwen3.1 7B_' --quiet" in job["spec"]["entrypoint"]
