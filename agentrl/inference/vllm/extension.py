"""Runs inside a vLLM server: takes weights from a file, and guards every route with the key.

`vllm serve` loads this file by name (`--worker-extension-cls`, `--middleware`), from a folder that holds
nothing else, possibly in another virtual environment: it imports vLLM, torch and safetensors and
nothing of agentrl. It knows nothing of policy versions beyond the label vLLM keeps for it.
"""

from __future__ import annotations

import hmac
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

_OPEN_PATHS = ("/health",)
_PARENT_POLL_S = 2.0


class RequireKey:
    """ASGI middleware: every route but `/health` asks for the server's key.

    vLLM's own check guards `/v1` and `/inference` only, and leaves the development routes (pause, update,
    remote calls) open to every process of the machine. It also ends the server when the process that
    started it is gone, so that a killed run leaves no server behind.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()
        parent = int(os.environ.get("AGENTRL_PARENT", "0"))
        if parent:
            threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b'{"error": "wrong or missing key"}'})
                return
        await self._app(scope, receive, send)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


class ServerExtension:
    """Mixed into vLLM's worker class; importing this module is what registers the file transfer."""


@dataclass
class FileInitInfo:
    """Nothing has to be agreed on before the first file."""


@dataclass
class FileUpdateInfo:
    """One version's weights."""

    path: str
    """A safetensors file, or a folder of them; or of an adapter."""
    base: str = ""
    """The model that the adapter is merged into; empty where the file holds all weights."""


def _register() -> None:
    """Register the transfer `file` with vLLM; every rank imports this module once."""
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    class FileTransferEngine(WeightTransferEngine[Any, Any]):
        """Reads a version's weights from a file in shared memory."""

        init_info_cls = FileInitInfo
        update_info_cls = FileUpdateInfo

        def init_transfer_engine(self, init_info: FileInitInfo) -> None:
            """Nothing to prepare."""

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # The base class synchronises an accelerator afterwards, which a CPU does not have.
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":
                import torch

                torch.accelerator.synchronize()

        def receive_weights(self, update_info: FileUpdateInfo) -> None:
            # Beside this file in the server's folder; in agentrl it is `weights/adapter_files.py`.
            from agentrl_adapter_files import (
                merged_tensors,
                read_tensors,
            )

            path, base = update_info.path, update_info.base
            self.model.load_weights(merged_tensors(base, path) if base else read_tensors(path))

        def finish_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            """Nothing is held between updates."""

    WeightTransferEngineFactory.register_engine("file", FileTransferEngine)


if os.environ.get("AGENTRL_VLLM_SERVER"):
    _register()
