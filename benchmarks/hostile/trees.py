"""Programs that are made by chance: trees of processes and threads that work, sleep, are born and die.

For tests and measurements of time limits; each runs until it is stopped.
"""

import os
import random

_HEAD = """
import hashlib, os, signal, threading, time
def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass
def fork(work):
    try:
        pid = os.fork()
    except OSError:
        time.sleep(0.002); return None
    if pid == 0:
        try: work()
        finally: os._exit(0)
    return pid
"""


def program(rng: random.Random) -> str:
    """A tree of processes and threads that works, sleeps, is born and dies in a way of its own."""
    lines = [_HEAD]
    if rng.random() < 0.4:
        lines.append("signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    if rng.random() < 0.3:
        lines.append("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    if rng.random() < 0.4:
        lines.append(f"os.sched_setaffinity(0, {{{rng.choice(sorted(os.sched_getaffinity(0)))}}})")
    depth, width = rng.randint(1, 3), rng.randint(1, 4)
    piece = rng.choice((0.003, 0.01, 0.05, 1000.0))
    lines += [
        "def leaf():",
        f"    os.nice({rng.choice((0, 0, 10, 19))})",
        f"    threads = [threading.Thread(target=spin, args=({piece},)) for _ in range({rng.randint(0, 3)})]",
        "    [thread.start() for thread in threads]",
        f"    time.sleep({rng.choice((0, 0, 0.005))}); spin({piece})",
        "def level_0(): leaf()",
    ]
    for level in range(1, depth + 1):
        wait = rng.choice(("pass", "[os.waitpid(pid, 0) for pid in pids if pid]", "spin(0.005)"))
        lines += [
            f"def level_{level}():",
            f"    pids = [fork(level_{level - 1}) for _ in range({width if level == 1 else 2})]",
            f"    try: {wait}",
            "    except OSError: pass",
        ]
    lines += [
        "while True:",
        f"    level_{depth}()",
        f"    {rng.choice(('pass', 'time.sleep(0.01)', 'spin(0.01)'))}",
    ]
    return "\n".join(lines)


DYING = (
    _HEAD
    + """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
except OSError: pass
def leaf():
    os.nice(19); spin(0.003)
while True:
    for _ in range(3): fork(leaf)
    spin(0.02)
"""
)
"""Polite children, on one core with a parent that never rests, die fifty times a second: slowly."""

CHAIN = (
    _HEAD
    + """
first = os.getpid()
while True:
    spin(0.01)
    try:
        if os.fork():
            time.sleep(1000) if os.getpid() == first else os._exit(0)
    except OSError: pass
"""
)
"""Each process works a little, begets the next and ends."""

POOL = (
    _HEAD
    + """
from concurrent.futures import ThreadPoolExecutor
def work(n): return hashlib.pbkdf2_hmac('sha256', b'x', b'y', 20_000)
with ThreadPoolExecutor(8) as pool:
    for _ in pool.map(work, range(10**5)): pass
"""
)
"""Eight threads that work outside of the interpreter's lock."""

SPINNERS = (
    _HEAD
    + """
def polite(): os.nice(19); spin(1000)
for _ in range(10): fork(polite)
os.nice(19)
spin(1000)
"""
)
"""Eleven processes that let everybody else go first."""
