"""What runs in the container of a program: starts it, and carries its connections and its output to the host.

Sent over the attached socket after `inside/frames.py`; standard library only. It is process 1 of a container
without a network: it listens at a port of the loopback interface, and each connection there travels in frames
over stdin and stdout to the host, which connects it to the one address that it chose. The frames:

    host to guest:  {"kind": "start", "arguments", "variables", "limits", "blobs": [files as tar, stdin]}
                    {"kind": "data", "id", "blobs": [bytes]}, {"kind": "end", "id"} of a connection
                    end of stream: kill everything and exit
    guest to host:  {"kind": "warm", "port", "python"}
                    {"kind": "open", "id"}, {"kind": "data", ...}, {"kind": "end", "id"} of a connection
                    {"kind": "out" | "err", "blobs": [bytes]} of the program, `output_bytes` of each at most
                    {"kind": "exit", "code", "memory", "cut", "blobs": [files as tar]}, or
                    {"kind": "failed", "reason"} where it could not be started
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..inside import frames
    from . import cgroup
else:
    import cgroup
    import frames

_PIECE = 1 << 16
_FOLDER = "/tmp/work"


class Guest:
    """One program, its connections, and the line to the host."""

    def __init__(self, host_in, host_out):
        self.host_in = host_in
        self.host_out = host_out
        self.sending = threading.Lock()
        self.connections = {}
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.cut = False
        self.limits = {}

    def send(self, header, *blobs):
        """Send one frame."""
        with self.sending:
            frames.send_frame(self.host_out, header, [[blob] for blob in blobs])

    def serve(self):
        """Run the program that the host names to its end."""
        version = ".".join(map(str, sys.version_info[:3]))
        self.send({"kind": "warm", "port": self.listener.getsockname()[1], "python": version})
        header, (files, given) = frames.receive_frame(self.host_in)
        self.limits = header["limits"]
        os.makedirs(_FOLDER, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            archive.extractall(_FOLDER)
        try:
            process = self.start(header["arguments"], header["variables"])
        except OSError as error:
            self.send({"kind": "failed", "reason": str(error)})
            return
        threads = [
            self.thread(self.carry_output, name, getattr(process, "std" + name)) for name in ("out", "err")
        ]
        self.thread(self.write_input, process.stdin, given)
        self.thread(self.accept)
        self.thread(self.receive)
        status = reap_until(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # of all processes here but this one
        for thread in threads:
            thread.join()
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        said = {"kind": "exit", "code": code, "memory": cgroup.oom_kills() > 0, "cut": self.cut}
        self.send(said, packed(_FOLDER) if self.limits["files_back"] else b"")

    def start(self, arguments, variables):
        """The process of the program."""
        return subprocess.Popen(
            arguments,
            cwd=_FOLDER,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=self.limit,
        )

    def limit(self):
        """Called in the program's process before it begins."""
        resource.setrlimit(resource.RLIMIT_CPU, (self.limits["cpu_s"], self.limits["cpu_s"]))

    def thread(self, target, *arguments):
        """Run something beside the rest."""
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    def write_input(self, pipe, given):
        """Give the program its standard input; it may end without reading."""
        with contextlib.suppress(OSError), pipe:
            pipe.write(given)

    def carry_output(self, name, pipe):
        """Send what the program writes, up to the limit; the rest is read and dropped."""
        room = self.limits["output_bytes"]
        while True:
            piece = os.read(pipe.fileno(), _PIECE)
            if not piece:
                return
            self.cut = self.cut or len(piece) > room
            if room:
                self.send({"kind": name}, piece[:room])
            room = max(0, room - len(piece))

    def accept(self):
        """Carry each connection to the port."""
        number = 0
        while True:
            connection, _ = self.listener.accept()
            if len(self.connections) >= self.limits["connections"]:
                connection.close()
                continue
            number += 1
            self.connections[number] = connection
            self.send({"kind": "open", "id": number})
            self.thread(self.carry, number, connection)

    def carry(self, number, connection):
        """Send what one connection says, until it says no more."""
        with contextlib.suppress(OSError):
            while True:
                piece = connection.recv(_PIECE)
                if not piece:
                    break
                self.send({"kind": "data", "id": number}, piece)
        self.send({"kind": "end", "id": number})

    def receive(self):
        """Take the frames of the host until it has gone, which ends everything."""
        try:
            while True:
                header, blobs = frames.receive_frame(self.host_in)
                connection = self.connections.get(header["id"])
                if connection is None:
                    continue
                with contextlib.suppress(OSError):  # its client has gone
                    if header["kind"] == "data":
                        connection.sendall(blobs[0])
                    else:
                        del self.connections[header["id"]]
                        connection.shutdown(socket.SHUT_RDWR)
                        connection.close()
        finally:
            os._exit(1)


def reap_until(wanted):
    """Wait for every child, orphans of the program among them, until one has ended; its status."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == wanted:
            return status


def packed(folder):
    """The files of a folder as a tar archive; links and the like are left out."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(folder, "", filter=lambda one: one if one.isreg() or one.isdir() else None)
    return out.getvalue()


def become_guest():
    """Move the line off stdin and stdout, and serve one program."""
    import fcntl

    host_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    host_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: what it holds is closed to the program
    Guest(host_in, host_out).serve()
    os._exit(0)
