"""What of the vLLM engine needs no server: causes, command lines, labels, headers of weight files, ranks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import PolicyError, StallError, WeightSyncError
from agentrl.inference.policy import Sampling
from agentrl.inference.vllm import fleet as vllm_fleet
from agentrl.inference.vllm.adapters import AdapterTransfer
from agentrl.inference.vllm.client import Received, VLLMClient
from agentrl.inference.vllm.device_link import Address, DeviceLink, ServerControl
from agentrl.inference.vllm.engine import VLLMPolicy, parse_label, request_body, token_versions
from agentrl.inference.vllm.server import (
    ServerSpec,
    free_port,
    likely_cause,
    server_command,
    server_environment,
)
from agentrl.inference.vllm.transfer import DeviceTransfer, FileTransfer, make_transfer, tensor_names
from tests.agentrl.inference.weight_server import HashLink, WeightServer


@pytest.mark.parametrize(
    ("log", "status", "words"),
    [
        ("OSError: [Errno 98] Address already in use", 1, "port is in use"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", 1, "out of memory"),
        ("ValueError: No available memory for the cache blocks.", 1, "engine.memory_share"),
        ("Repository Not Found for url", 1, "no such model"),
        (
            "User-specified max_model_len (9) is greater than the derived max_model_len (4)",
            1,
            "context_tokens",
        ),
        ("ModuleNotFoundError: No module named 'vllm'", 1, "engine.python"),
        ("vllm: error: unrecognized arguments: --foo", 2, "engine.args"),
        ("nothing to see", -9, "killed"),
        ("nothing to see", 1, "unknown"),
    ],
)
def test_likely_causes(log: str, status: int, words: str):
    assert words in likely_cause(log, status)


def test_the_command_line():
    spec = ServerSpec(
        "m",
        python="py",
        dtype="bfloat16",
        slots=7,
        tensor_parallel=2,
        gpus=(1, 2),
        memory_share=0.5,
        args=("--x",),
    )
    command = server_command(spec, 1234)
    text = " ".join(command)
    assert command[:4] == ["py", "-m", "vllm.entrypoints.cli.main", "serve"]
    assert "--host 127.0.0.1 --port 1234" in text
    assert "--tensor-parallel-size 2" in text
    assert "--gpu-memory-utilization 0.5" in text
    # Without this the log-probabilities are those before temperature and truncation.
    assert "--logprobs-mode processed_logprobs" in text
    assert command[-1] == "--x"
    environment = server_environment(spec, "secret", "/tmp/x")
    # The key is not on the command line, which everybody on the machine can read.
    assert "secret" not in text
    assert environment["VLLM_API_KEY"] == "secret"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert environment["PYTHONPATH"] == "/tmp/x"
    assert (
        server_environment(ServerSpec("m", transfer="ipc"), "k", "x")["VLLM_ALLOW_INSECURE_SERIALIZATION"]
        == "1"
    )
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in server_environment(ServerSpec("m"), "k", "x")


def test_labels():
    assert parse_label("2.17") == (2, 17)
    assert parse_label("0.0+9f86d081884c7d65") == (0, 0)
    for other in ("default", "7", "a.b", "1."):
        with pytest.raises(PolicyError, match="did not put there"):
            parse_label(other)


def test_versions_of_tokens_from_spans():
    received = Received(array("i", [1, 2, 3, 4]), array("f", [0.0] * 4), [("1.3", 0, 1), ("1.4", 1, 4)])
    assert token_versions(received) == [3, 4, 4, 4]
    received.labels.pop()
    with pytest.raises(PolicyError, match="which weights"):
        token_versions(received)


def test_the_likeliest_tokens_of_a_message():
    # A server lists the sampled token first, then the likeliest: one more than k was asked for.
    assert (
        request_body([1], Sampling(5, top_logprobs=2), seed=None, salt="s")["sampling_params"]["logprobs"]
        == 3
    )

    def place(token: int, *entries: tuple[int, float]) -> dict[str, Any]:
        listed = [{"token_id": one, "logprob": logprob, "rank": 1} for one, logprob in entries]
        return {"token_id": token, "logprob": entries[0][1], "rank": 1, "top_logprobs": listed}

    client, received = VLLMClient("http://none", "", name="s"), Received()
    content = [
        place(9, (9, -7.0), (4, -0.1), (5, -2.0)),  # the sampled token is none of the likeliest
        place(5, (5, -1.5), (4, -0.5), (6, -3.0)),
    ]
    choice = {"token_ids": [9, 5], "logprobs": {"content": content}, "finish_reason": None}
    client._take({"choices": [choice]}, received, 2)
    assert list(received.top_ids) == [4, 5, 4, 5]
    assert list(received.top_logprobs) == pytest.approx([-0.1, -2.0, -0.5, -1.5])
    with pytest.raises(PolicyError, match="3 of 5"):
        client._take({"choices": [choice]}, received, 5)


def test_the_request():
    body = request_body(
        [1, 2], Sampling(5, top_k=3, stop=("x",), stop_token_ids=(9,)), seed=2**63 + 1, salt="1.0"
    )
    parameters = body["sampling_params"]
    assert (parameters["top_k"], parameters["stop"], parameters["stop_token_ids"]) == (3, ["x"], [9])
    assert parameters["seed"] == 1
    assert parameters["ignore_eos"]
    assert request_body([1], Sampling(5), seed=None, salt="s")["sampling_params"]["top_k"] == -1


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


async def test_weight_files_are_checked_by_their_headers(tmp_path: Path):
    good, other = tmp_path / "good.safetensors", tmp_path / "other.safetensors"
    write_safetensors(good, {"a": (2, 3), "b": (4,)})
    assert tensor_names(str(good)) == {"a": (2, 3), "b": (4,)}
    assert tensor_names(str(tmp_path)) == {"a": (2, 3), "b": (4,)}
    transfer = FileTransfer(folder=tmp_path)
    transfer.expect(str(good))
    assert await transfer.prepare(str(good)) == str(good)
    write_safetensors(other, {"a": (3, 2)})
    with pytest.raises(WeightSyncError, match=r"missing \['b'\], of another shape \['a'\]"):
        await transfer.prepare(str(other))
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(WeightSyncError, match="cut off"):
        await transfer.prepare(str(good))
    with pytest.raises(WeightSyncError, match="no safetensors file"):
        await transfer.prepare(str(tmp_path / "none.safetensors"))
    await transfer.close()


async def test_a_tied_output_matrix_need_not_be_sent(tmp_path: Path):
    model, version = tmp_path / "model", tmp_path / "version.safetensors"
    model.mkdir()
    tied = {"embed": (2, 3), "lm_head.weight": (2, 3), "layers.0.rotary_emb.inv_freq": (2,)}
    write_safetensors(model / "model.safetensors", tied)
    (model / "config.json").write_text('{"tie_word_embeddings": true}')
    write_safetensors(version, {"embed": (2, 3)})
    transfer = FileTransfer(folder=tmp_path)
    transfer.expect(str(model))
    assert await transfer.prepare(str(version)) == str(version)
    (model / "config.json").write_text("{}")
    transfer.expect(str(model))
    with pytest.raises(WeightSyncError, match=r"lm_head\.weight"):
        await transfer.prepare(str(version))
    await transfer.close()


async def test_the_last_file_is_kept_for_servers_that_start_again(tmp_path: Path):
    torch = pytest.importorskip("torch")
    transfer = FileTransfer(folder=tmp_path)
    module = torch.nn.Linear(2, 2)
    first = Path(await transfer.prepare(module))
    transfer.take(str(first), "1.1", 1)
    second = Path(await transfer.prepare(module))
    # Both exist until the second one is in force: deleting earlier leaves a restarted server without.
    assert first.exists()
    transfer.take(str(second), "1.2", 2)
    assert not first.exists()
    assert second.exists()
    await transfer.close()
    assert not second.exists()


async def test_an_adapter_that_somebody_else_wrote_is_kept_while_servers_may_read_it(tmp_path: Path):
    (tmp_path / "there").mkdir()
    write_safetensors(tmp_path / "there" / "adapter_model.safetensors", {"lora": (2,)})
    (tmp_path / "there" / "adapter_config.json").write_text("{}")
    transfer = AdapterTransfer("", 2, set, tmp_path)
    staged = Path(await transfer.prepare(str(tmp_path / "there")))
    shutil.rmtree(tmp_path / "there")  # as a learner in processes of its own does after two more versions
    assert (staged / "adapter_model.safetensors").exists()
    await transfer.close()
    assert not staged.exists()


async def test_a_transfer_across_devices_wants_a_live_module():
    with pytest.raises(WeightSyncError, match="live module"):
        await make_transfer("nccl", "").prepare("/some/path")
    with pytest.raises(WeightSyncError, match="file, nccl and ipc"):
        make_transfer("carrier pigeon", "")


@pytest.fixture
def servers() -> Iterator[list[WeightServer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(WeightServer()) for _ in range(3)]


def addresses(servers: list[WeightServer]) -> tuple[Address, ...]:
    return tuple(
        Address(f"vLLM server {i}", f"http://127.0.0.1:{server.server_port}", f"key{i}")
        for i, server in enumerate(servers)
    )


def test_every_server_gets_its_own_ranks_and_key(servers: list[WeightServer]):
    control = ServerControl(addresses(servers), ranks_per_server=2, limit_s=5)
    control.label = "1.4"
    control.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    control.finish_weight_update()
    # The trainer is rank 0; servers of two ranks each start at 1, 3 and 5.
    assert [server.seen[0][1]["init_info"]["rank_offset"] for server in servers] == [1, 3, 5]
    assert [server.seen[0][2] for server in servers] == ["Bearer key0", "Bearer key1", "Bearer key2"]
    assert all(server.seen[1][1] == {"weight_version": "1.4"} for server in servers)
    assert control.waiting == {}


async def test_a_collective_that_hangs_names_the_server_that_is_missing(
    servers: list[WeightServer], monkeypatch: pytest.MonkeyPatch
):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(DeviceLink, "trainer", HashLink.trainer)  # vLLM's own needs GPUs
    clients = [VLLMClient(one.url, one.key, name=one.name) for one in addresses(servers)]
    transfer, module = DeviceTransfer("nccl"), torch.nn.Linear(2, 2)
    assert await transfer.send(clients, module, "1.1", 5.0) == {}
    servers[1].hang_at = "/update_weights"
    errors = await transfer.send(clients, module, "1.2", 0.3)
    assert set(errors) == {client.name for client in clients}
    error = errors["vLLM server 0"]
    assert isinstance(error, StallError)
    assert error.owner == "vLLM server 1 in /update_weights"
    # The group is formed again after a failure, and not before.
    servers[1].hang_at = ""
    assert await transfer.send(clients, module, "1.3", 5.0) == {}
    assert [path for path, _, _ in servers[0].seen].count("/init_weight_transfer_engine") == 3
    await transfer.close()


@pytest.mark.slow
async def test_a_server_of_somebody_else_may_take_a_whole_start_to_come_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    # Fails when it is given up after as many tries as a server of ours gets: seconds, and a start takes a minute.
    monkeypatch.setattr(vllm_fleet, "MAX_RESTARTS", 1)

    async def synchronise(replica: vllm_fleet.Replica) -> bool:
        return True

    fleet = vllm_fleet.Fleet(
        ServerSpec("m"),
        gpus=[],
        urls=[f"http://127.0.0.1:{free_port()}"],
        key="",
        log_folder=tmp_path,
        start_limit_s=1.0,
        silence_limit_s=1.0,
        synchronise=synchronise,
        warm_up={},
    )
    (replica,) = fleet.replicas
    replica.live = True
    fleet.lose(replica)
    await asyncio.sleep(0.5)
    assert replica.restarts == 1
    assert not replica.given_up
    assert replica.watch is not None
    await asyncio.wait_for(replica.watch, 10)
    assert "does not answer /health" in replica.given_up
    await fleet.close()


async def test_two_models_of_a_hub_have_two_labels(tmp_path: Path):
    # Fails when all that is no folder has one fingerprint: a server left by one would pass for the other's.
    one, other = (VLLMPolicy(ServerSpec(name), log_folder=tmp_path) for name in ("a/one", "a/other"))
    assert one._label() != other._label()
    assert parse_label(one._label()) == (0, 0)
