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

CLUSTER = """
import asyncio, os, signal, sys
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from agentrl.errors import PolicyUnavailable
from agentrl.rollout.worker_pool import rollout_workers
from agentrl.training.assembly import assemble
from agentrl.training.plan import plan_run
from tests.distributed.test_ray_cluster import demo, say

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
folder = Path(sys.argv[1])
settings = demo(folder, "--cluster.rollout_workers=1")
"""

ASKED = """
async def main() -> None:
    async with rollout_workers(settings) as workers:
        await ask(workers)
    print("closed", flush=True)


async def ask(workers) -> None:
    (worker,) = workers._workers
    pid = worker.pid
    cluster.head_node.kill_gcs_server()
    if LOST:
        os.kill(pid, signal.SIGKILL)
    while True:
        try:
            await say(workers, "a")
        except PolicyUnavailable as error:
            if not worker.lost or "head" in str(error):
                print(f"ended: {error}", flush=True)
                break
        await asyncio.sleep(0.5)
"""

# Every slot has an episode that does not end soon: nothing new is asked of the workers.
BUSY = """
(folder / "slow.py").write_text('''
import asyncio
from agentrl_envs.arithmetic import Arithmetic

class Slow(Arithmetic):
    async def reward(self, row, answer):
        await asyncio.sleep(200)
''')
settings = replace(settings, env=(replace(settings.env[0], name=f"{folder}/slow.py:Slow"),))
settings = replace(settings, eval=replace(settings.eval, data=""))




async def main() -> None:
    async with assemble(plan_run(settings)) as orchestrator:
        running = asyncio.ensure_future(orchestrator.run())
        while orchestrator.dispatcher.in_flight < 16:
            await asyncio.sleep(0.1)
        cluster.head_node.kill_gcs_server()
        try:
            await running
        except PolicyUnavailable as error:
            print(f"ended: {error}", flush=True)
    print("closed", flush=True)
"""

END = """
asyncio.run(main())
os._exit(0)  # Ray's own end waits for the head; its other processes end without it
"""


@pytest.mark.parametrize(
    "program",
    ["LOST = False\n" + ASKED, "LOST = True\n" + ASKED, BUSY],
    ids=["asked", "lost_with_a_worker", "busy"],
)
def test_a_head_that_is_gone_ends_the_run_with_the_remedy(tmp_path: Path, program: str) -> None:
    paths = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "RAY_worker_niceness": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER + program + END, str(tmp_path)],
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
