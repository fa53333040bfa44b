"""Weights on their way to an engine: names, shapes and bits of what a live model gives."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the learner needs torch (pip install agentrl[train])")
transformers = pytest.importorskip("transformers", reason="the learner needs transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from agentrl.config.settings import AdapterSettings, LearnerSettings, ModelSettings
from agentrl.episode import Episode
from agentrl.errors import LearnerLost, WeightSyncError
from agentrl.inference.vllm.device_link import Address
from agentrl.inference.vllm.transfer import write_module
from agentrl.learner import remote
from agentrl.learner.adapter import plain_weights
from agentrl.learner.learner import Learner
from agentrl.learner.process import LearnerProcesses
from agentrl.learner.weight_source import WeightSource
from agentrl.training.learner_thread import LearnerThread
from agentrl.weights.shared_memory import SHARED_MEMORY
from tests.agentrl.inference.weight_server import HashLink, WeightServer


@pytest.mark.parametrize("rank", [0, 4])
def test_the_metadata_says_what_comes_and_the_file_holds_it(
    make_learner: Callable[..., Learner],
    episodes: list[Episode],
    advantages: list[float],
    tmp_path: Path,
    rank,
) -> None:
    learner = make_learner(adapter=AdapterSettings(rank=rank), dtype="bfloat16")
    learner.step(episodes, advantages)
    source = WeightSource(learner.model)
    given = list(source)
    found = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in given]
    assert [tuple(one) for one in source.metadata()] == found
    source.write(tmp_path / "model.safetensors")
    read = safetensors_torch.load_file(tmp_path / "model.safetensors")
    assert read.keys() == dict(given).keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in given)
    assert source.size == sum(tensor.nbytes for tensor in read.values())


def test_a_tied_weight_comes_once_and_narrow_types_shift_no_wide_ones(
    make_model: Callable[..., Path], make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    model = make_learner(make_model(tmp_path / "tied", tied=True)).model
    names = [name for name, _ in WeightSource(model)]
    assert "lm_head.weight" not in names
    assert names == [name for name, _ in plain_weights(model)]
    mixed = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 1).bfloat16(), "b": torch.nn.Linear(2, 2)})
    WeightSource(mixed).write(tmp_path / "mixed.safetensors")
    read = safetensors_torch.load_file(tmp_path / "mixed.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in mixed.state_dict().items())


def two_ranks(folder: Path) -> LearnerProcesses:
    return LearnerProcesses(
        ModelSettings(path=str(folder), device="cpu", threads=1, dtype="bfloat16"),
        LearnerSettings(place="process", ranks=2),
        limit_s=200.0,
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_two_ranks_publish_into_shared_memory_what_the_model_holds(model_folder: Path) -> None:
    expected = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    learner = LearnerThread(two_ranks(model_folder))
    try:
        folders = [(await learner.handle(version, 1)).source for version in range(3)]
        assert folders[0].is_relative_to(SHARED_MEMORY)
        # The one before the newest is kept for a server that starts again, and no other.
        assert [folder.exists() for folder in folders] == [False, True, True]
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folders[2], dtype="auto")
        for name, weight in expected.named_parameters():
            found = loaded.get_parameter(name)
            assert found.dtype == weight.dtype
            assert torch.equal(found, weight), name
    finally:
        await learner.close()
    assert not folders[2].parent.exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_two_ranks_send_what_a_file_would_hold_and_outlive_a_server_that_refuses(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "tied", tied=True)
    write_module(
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        tmp_path / "file.safetensors",
        "",
    )
    expected = {
        name: ("bfloat16", list(tensor.shape), hashlib.sha256(tensor.view(torch.uint8).numpy()).hexdigest())
        for name, tensor in safetensors_torch.load_file(tmp_path / "file.safetensors").items()
    }
    ranks = two_ranks(folder)
    learner = LearnerThread(ranks, live=True)
    with WeightServer() as server:
        link = HashLink("nccl", (Address("s", f"http://127.0.0.1:{server.server_port}", "k"),), limit_s=60.0)
        try:
            for version in (1, 2):
                await (await learner.handle(version, 1)).source.transmit(link, f"1.{version}")
                *_, (_, update, _), (_, finish, _) = server.seen
                info = update["update_info"]
                columns = (info["dtype_names"], info["shapes"], info["hashes"])
                assert dict(zip(info["names"], zip(*columns, strict=True), strict=True)) == expected
                assert len(info["names"]) == len(expected)
                assert finish == {"weight_version": f"1.{version}"}
            server.refuse_at = "/start_weight_update"
            with pytest.raises(WeightSyncError, match="s answered /start_weight_update with 500"):
                ranks.transmit(link, "1.3")
            # The ranks gathered to the end all the same, so that they are not one collective apart.
            server.refuse_at = ""
            ranks.transmit(link, "1.4")
            paths = [path for path, _, _ in server.seen]
            assert paths.count("/init_weight_transfer_engine") == 2  # at first, and after the failure
            server.hang_at = "/update_weights"
            short = HashLink(link.backend, link.servers, limit_s=1.0)
            with pytest.raises(LearnerLost, match=r"waited 1 s for s in /update_weights; raise `engine.upd"):
                ranks.transmit(short, "1.5")
            with pytest.raises(LearnerLost, match="have ended"):
                ranks.transmit(link, "1.6")
        finally:
            await learner.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rank_that_does_not_come_to_gather_is_named(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "GRACE_S", 3.0)
    with two_ranks(model_folder) as ranks, WeightServer() as server:
        link = HashLink("nccl", (Address("s", f"http://127.0.0.1:{server.server_port}", "k"),), limit_s=2.0)
        victim = ranks._ranks[1].pid
        assert victim is not None
        os.kill(victim, signal.SIGSTOP)
        with pytest.raises(LearnerLost, match=r"every server has answered.*learner rank 1 did not answer"):
            ranks.transmit(link, "1.1")
