"""The grader's processes: one server that has imported everything, and the children it forks to compare
answers.

`python -m agentrl_envs.graders.child FD`. The server's only work is to fork and to kill; a child answers one
request at a time in its main thread. Limits on time are held by the process that asks (`pool.py`); memory and
CPU limits are set here as well. No model code runs in any of them. Knows nothing of rewards.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from functools import partial

__all__ = ["main", "serve"]

_REQUESTS_PER_CHILD = 2000  # the parser's tables grow with what it reads


def main() -> None:
    """Serve forks over the socket whose number is the first argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _die_with_parent()
    from .symbolic import warm_up

    warm_up()
    gc.collect()
    gc.freeze()  # so that a child's collections do not copy the pages it shares
    control.sendall(b'{"ready": true}\n')
    children: dict[int, int | None] = {}  # each with its wait status once it ended
    while True:
        readable, _, _ = select.select([control], [], [], 1.0)
        _reap(children)
        if not readable:
            continue
        data, ancillary, _, _ = socket.recv_fds(control, 4096, 1)
        if not data:
            break
        request = json.loads(data)
        if "kill" in request:
            status = _kill(request["kill"], children)
            control.sendall(json.dumps({"status": status}).encode() + b"\n")
        else:
            children[_fork(control, ancillary[0], request["memory_mb"])] = None
    for pid in list(children):
        _kill(pid, children)


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks


def _reap(children: dict[int, int | None]) -> None:
    for pid in [pid for pid, status in children.items() if status is None]:
        with contextlib.suppress(ChildProcessError):
            ended, status = os.waitpid(pid, os.WNOHANG)
            children[pid] = status if ended else None


def _kill(pid: int, children: dict[int, int | None]) -> int:
    """Kill a child of ours; its wait status. One that was reaped is left alone.

    Its number may belong to another process by now.
    """
    _reap(children)
    status = children.pop(pid, 0)
    if status is None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
    return status or 0


def _fork(control: socket.socket, descriptor: int, memory_mb: int) -> int:
    pid = os.fork()
    if pid:
        os.close(descriptor)
        control.sendall(json.dumps({"pid": pid}).encode() + b"\n")
        return pid
    status = 1
    try:
        _die_with_parent()
        control.close()
        _limit(memory_mb)
        serve(socket.socket(fileno=descriptor))
        status = 0
    finally:
        os._exit(status)


def _limit(memory_mb: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    ceiling = mapped + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(requests: socket.socket) -> None:
    """Answer requests until the other end closes: one line of JSON each way."""
    with requests, requests.makefile("rb") as lines:
        for number, line in enumerate(lines, 1):
            request = json.loads(line)
            # The kernel's own limit, for the case that nobody is left to watch; the watcher's comes first.
            spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
            resource.setrlimit(resource.RLIMIT_CPU, (spent + request["cpu_s"], resource.RLIM_INFINITY))
            verdict, worn = _verdict(request["answer"], request["gold"], request["tolerance"])
            last = worn or number >= _REQUESTS_PER_CHILD
            requests.sendall(json.dumps({"verdict": verdict, "last": last}).encode() + b"\n")
            if last:
                return


def _verdict(answer: str, gold: str, tolerance: float) -> tuple[str, bool]:
    """(verdict, whether this process should not go on)."""
    from .comparison import CannotParse, equal
    from .symbolic import symbolic_leaf

    try:
        right = equal(answer, gold, partial(symbolic_leaf, tolerance=tolerance))
        return "right" if right else "wrong", False
    except CannotParse:
        return "cannot_parse", False
    except RecursionError:
        return "cannot_parse", True
    except MemoryError:
        return "timed_out", True
    except Exception:  # sympy raises many kinds for what it cannot do; none of them makes an answer right
        return "cannot_parse", False


if __name__ == "__main__":
    main()
