"""Which engine, and in which layout."""

from __future__ import annotations

import pytest

from agentrl.cluster.placement import choose_engine, gpu_layout, server_gpus
from agentrl.config.settings import EngineSettings, LearnerSettings, Settings
from agentrl.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "gpus", "found", "kind"),
    [
        (EngineSettings(), 0, True, "transformers"),
        (EngineSettings(), 1, True, "vllm"),
        (EngineSettings(), 1, False, "transformers"),
        (EngineSettings(urls=("http://x",)), 0, False, "vllm"),
        (EngineSettings(kind="vllm"), 0, True, "vllm"),
        (EngineSettings(kind="transformers"), 4, True, "transformers"),
    ],
)
def test_the_engine_chosen(settings: EngineSettings, gpus: int, found: bool, kind: str):
    assert choose_engine(settings, gpus=gpus, vllm_found=found)[0] == kind


def test_vllm_that_is_not_there():
    with pytest.raises(ConfigError, match=r"engine\.python"):
        choose_engine(EngineSettings(kind="vllm"), gpus=1, vllm_found=False)


def test_layouts():
    separate = Settings(engine=EngineSettings(replicas=2, tensor_parallel=2))
    layout = gpu_layout(separate, [0, 1, 2, 3, 4])
    assert (layout.learner, layout.engines, layout.transfer) == ((0,), ((1, 2), (3, 4)), "nccl")
    with pytest.raises(ConfigError, match="5 together, and there are 4"):
        gpu_layout(separate, [0, 1, 2, 3])
    # Ranks gather, and the first of them is the trainer of the group.
    ranks = Settings(learner=LearnerSettings(ranks=2, place="process"))
    assert gpu_layout(ranks, [0, 1, 2]).transfer == "nccl"
    shared = Settings(engine=EngineSettings(layout="shared"))
    assert gpu_layout(shared, [0]).transfer == "ipc"
    assert gpu_layout(shared, [0]).engines == ((0,),)
    # Servers of another environment: the learner's process has no vLLM to drive NCCL or IPC with.
    other = Settings(engine=EngineSettings(python="/elsewhere/bin/python"))
    assert gpu_layout(other, [0, 1]).transfer == "file"
    assert gpu_layout(other, []).transfer == "file"
    with pytest.raises(ConfigError, match="shared"):
        gpu_layout(Settings(engine=EngineSettings(layout="shared", replicas=2)), [0, 1])


def test_servers_of_an_evaluation_share_no_gpu():
    four = EngineSettings(replicas=4)
    assert server_gpus(four, [0, 1, 2, 3, 4, 5, 6, 7]) == ((0,), (1,), (2,), (3,))
    # A run of eight GPUs evaluated on a machine with two.
    assert server_gpus(four, [2, 5]) == ((2,), (5,))
    assert server_gpus(EngineSettings(replicas=4, tensor_parallel=2), [0, 1, 2]) == ((0, 1),)
    assert server_gpus(four, []) == ((),) * 4
    with pytest.raises(ConfigError, match="tensor_parallel = 2 needs as many GPUs, and there are 1"):
        server_gpus(EngineSettings(tensor_parallel=2), [0])
