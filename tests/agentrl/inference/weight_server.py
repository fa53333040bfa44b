"""A server with the routes by which weights arrive, and a link over which hashes go in place of GPU memory."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agentrl.inference.vllm.device_link import DeviceLink, ServerControl


class WeightServer(ThreadingHTTPServer):
    """Notes what it is told; a context. It answers at once but where it is told to hang or to refuse."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, Any, str]] = []
        """Path, body and key of each request."""
        self.hang_at = self.refuse_at = ""
        self.released = threading.Event()

    def __enter__(self) -> WeightServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: WeightServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers["Authorization"]))
        if self.path == self.server.hang_at:
            self.server.released.wait(20)
        self.send_response(500 if self.path == self.server.refuse_at else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None: ...


class HashLink(DeviceLink):
    """A link that calls servers and iterates the source as vLLM's broadcast does."""

    def trainer(self, control: ServerControl, source: Any) -> Any:
        control.init_weight_transfer_engine({"rank_offset": 1})
        return _HashTrainer(control, source)


class _HashTrainer:
    def __init__(self, control: ServerControl, source: Any) -> None:
        self._control, self._source = control, source

    def send_weights(self) -> None:
        import torch

        meta = self._source.metadata()
        info: dict[str, Any] = {
            "names": [one.name for one in meta],
            "dtype_names": [str(one.dtype).removeprefix("torch.") for one in meta],
            "shapes": [list(one.shape) for one in meta],
        }
        self._control.start_weight_update()
        hashes = info["hashes"] = []
        for declared, (name, tensor) in zip(meta, self._source, strict=True):
            assert tuple(declared) == (name, tensor.dtype, tuple(tensor.shape))
            assert not hasattr(tensor, "full_tensor")
            content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            hashes.append(hashlib.sha256(content).hexdigest())
        self._control.update_weights(info)
        self._control.finish_weight_update()

    def shutdown(self) -> None: ...
