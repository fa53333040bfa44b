"""A Ray cluster whose head is gone: the run ends by itself, with the remedy, before Ray ends its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needed import needed

ray = needed("ray", "make test-distributed installs it")

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

PROGRAM = """
import asyncio, logging, os, sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from agentrl.errors import PolicyUnavailable
from tests.distributed.test_ray_cluster import demo, say
from agentrl.rollout.worker_pool import RolloutWorkers

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)


async def main() -> None:
    workers = RolloutWorkers(demo(Path(sys.argv[1]), "--cluster.rollout_workers=1"))
    await workers.start()
    await say(workers, "a")
    cluster.head_node.kill_gcs_server()
    while True:
        try:
            await say(workers, "a")  # the worker is still there
        except PolicyUnavailable as error:
            print(f"ended: {error}", flush=True)
            break
        await asyncio.sleep(0.5)
    await workers.close()
    print("closed", flush=True)


asyncio.run(main())
os._exit(0)  # Ray's own end waits for the head; its other processes end without it
"""


def test_a_head_that_is_gone_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    paths = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "RAY_worker_niceness": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=os.environ | paths,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-2000:]} {done.stderr[-3000:]}"
    told, closed = done.stdout.splitlines()[-2:]
    assert told.startswith("ended: the head of the Ray cluster at ")
    assert "has not answered for 20 s: start the cluster again (`ray start --head` there" in told
    assert "go on with `agentrl train --resume RUN`; no step is lost" in told
    assert closed == "closed"
