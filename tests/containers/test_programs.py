"""Programs under training in containers of a real engine: token-exact, limited, and gone when they are over."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.settings import RolloutSettings
from agentrl.episode import Episode
from agentrl.inference.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.renderers.making import make_renderer
from agentrl.rollout.token_completer import Dispatch, run_episode
from agentrl_envs.program import ProgramEnv
from tests.agents.training import two_steps
from tests.containers.conftest import SHELL_IMAGE, of_this_process
from tests.needed import needed

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]
EXAMPLES = Path(__file__).parents[2] / "examples" / "agents"
CALLS = [f"<code>\n{text}\n</code>" for text in ("print(6 * 7)", "print(42 + 1)", "print(43 * 2)")]


async def play(
    command: list[str], *, script: Any = ("86<|end|>",), seconds: float = 0.0, **given: Any
) -> Episode:
    members = given.pop("members", {})
    made: Any = type("Made", (ProgramEnv,), members)
    settings = {"image": SHELL_IMAGE, **given}
    return await run_episode(
        lambda: made(command=shlex.join(command), **settings),
        ScriptedPolicy(list(script), tokenizer=ByteTokenizer(), seconds=seconds),
        make_renderer(ByteTokenizer(), "code", instructions=""),
        row={"problem": "Work it out.", "answer": "86"},
        dispatch=Dispatch("t0", 0, "p0", 0, seed=1),
        settings=RolloutSettings(),
    )


async def test_an_agent_in_a_container_plays_the_tokens_that_it_plays_in_a_process(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES)
    contained, process = [
        await play(["sh", "curl_agent.sh"], script=[*CALLS, "86<|end|>"], image=image)
        for image in (SHELL_IMAGE, "")
    ]
    assert (contained.failure, contained.reward, contained.answer, len(contained.turns)) == (
        None,
        1.0,
        "86",
        4,
    )
    assert (len(contained.segments), contained.counts["gateway/extended"]) == (1, 3)
    (there,), (here,) = contained.segments, process.segments
    assert there.token_ids == here.token_ids
    assert there.loss_mask == here.loss_mask
    assert there.logprobs == here.logprobs


ASK = """
import json, os, urllib.request
body = json.dumps({"model": "m", "stream": STREAM, "messages": [{"role": "user", "content": "p" * 300_000}]}).encode()
head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
print(urllib.request.urlopen(urllib.request.Request(url, body, head)).read().decode())
"""


@pytest.mark.parametrize("stream", [False, True])
async def test_long_requests_and_streams_pass(engine: Any, stream: bool) -> None:
    said = "yes " * 500
    reward = {"reward": lambda self, row, answer: answer.count("yes ") >= 500}
    episode = await play(
        ["python3", "-c", ASK.replace("STREAM", str(stream))], script=[said + "<|end|>"], members=reward
    )
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert episode.segments[0].num_sampled == 2_001


CONNECT = "import socket; socket.create_connection(('{}', {}), 3)"


@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        (["sh", "-c", "echo broken >&2; exit 3"], {}, "exit status 3; it wrote: broken"),
        (["sleep", "60"], {"time_s": 0.3}, r"did not end within 0\.3 s"),
        (
            ["no-such-program"],
            {},
            "cannot be started in a container of image agentrl-test:shell.*No such file",
        ),
        (["sh", "-c", "while :; do :; done"], {"cpu_s": 1}, "signal SIG(XCPU|KILL)"),
        (["python3", "-c", "bytearray(10**9)"], {"memory_mb": 100}, "out of its 100 MB of memory"),
        (["sh", "-c", "while :; do sleep 60 & done"], {"processes": 20}, "exit status 2; it wrote.*fork"),
        (["sh", "-c", "cat /dev/zero > /tmp/work/full"], {"folder_mb": 8}, "No space left"),
        (["sh", "-c", "echo x > /etc/x"], {}, "(?i)read-only"),
        (["python3", "-c", CONNECT.format("1.1.1.1", 53)], {}, "Network is unreachable"),
        (["python3", "-c", CONNECT.format("127.0.0.1", 2375)], {}, "Connection refused"),
        (["true"], {"image": "agentrl-test:none"}, "no such image"),
    ],
    ids=[
        "exit",
        "time",
        "missing",
        "cpu",
        "memory",
        "processes",
        "files",
        "root",
        "network",
        "host",
        "image",
    ],
)
async def test_a_limit_that_is_reached_is_no_reward(
    engine: Any, command: Any, settings: Any, words: str
) -> None:
    episode = await play(command, **settings)
    assert episode.failure is not None
    assert re.search(words, episode.failure.message, re.DOTALL), episode.failure.message
    assert episode.reward is None


QUOTA = """
import os
if os.path.exists("/sys/fs/cgroup/cpu.max"):
    quota, period = open("/sys/fs/cgroup/cpu.max").read().split()
else:
    quota, period = (open(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").read() for name in ("quota", "period"))
print(int(quota) / int(period))
"""


async def test_the_kernel_shares_out_the_cpus(engine: Any) -> None:
    episode = await play(
        ["python3", "-c", QUOTA], cpus=0.5, members={"reward": lambda self, row, answer: True}
    )
    assert episode.answer == "0.5"


async def test_the_container_has_neither_the_answer_nor_the_graders_key(engine: Any, tmp_path: Path) -> None:
    look = "import os\nprint(os.environ)\n" + "\n".join(
        f"try: print(open('/proc/1/{name}', 'rb').read())\nexcept OSError as error: print(error)"
        for name in ("environ", "mem", "maps")
    )
    (tmp_path / "grade.py").write_text(
        "import json, sys, urllib.request\n"
        "given = json.load(sys.stdin)\n"
        "hidden = given['key'] not in given['answer'] and '86' not in given['answer'].split('AGENTRL_ROW')[1]\n"
        "body = json.dumps({'reward': float(hidden and open('left.txt').read() == 'from the container')}).encode()\n"
        "head = {'Authorization': 'Bearer ' + given['key']}\n"
        "urllib.request.urlopen(urllib.request.Request(given['url'], body, head))\n"
    )
    leave = "\nos.symlink('/etc/passwd', 'link'); open('left.txt', 'w').write('from the container')"
    episode = await play(
        ["python3", "-c", look + leave],
        grade_command=shlex.join([sys.executable, str(tmp_path / "grade.py")]),
        members={"hidden": ("answer", "OPENAI_API_KEY")},
    )
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert "Permission denied" in str(episode.answer)
    assert "reward-" not in str(episode.answer)


async def test_a_grader_imports_nothing_that_the_agent_left(engine: Any, tmp_path: Path) -> None:
    grade = (
        "import json, os, sys, urllib.request\n"
        "given = json.load(sys.stdin)\n"
        "body = json.dumps({'reward': float(os.path.exists('json.py'))}).encode()\n"
        "head = {'Authorization': 'Bearer ' + given['key']}\n"
        "urllib.request.urlopen(urllib.request.Request(given['url'], body, head))\n"
    )
    escape = f"open({str(tmp_path / 'escaped')!r}, 'w').write(open('/dev/stdin').read()); raise SystemExit"
    episode = await play(
        ["python3", "-c", f"open('json.py', 'w').write({escape!r})"],
        grade_command=shlex.join([sys.executable, "-c", grade]),
    )
    assert not (tmp_path / "escaped").exists()
    assert (episode.failure, episode.reward) == (None, 1.0)


def test_a_program_in_containers_is_trained_for_two_steps(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed("torch", "the learner needs torch (pip install agentrl[train])")
    monkeypatch.chdir(EXAMPLES)
    steps = two_steps(tmp_path, "program:sh curl_agent.sh", f"image = {SHELL_IMAGE!r}")
    assert all(row["counts"]["gateway/requests"] >= 3 for row in steps)


async def test_a_folder_goes_along(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "number.txt").write_text("86")
    episode = await play(["sh", "-c", "cat data/number.txt; rm data/number.txt"], folder=str(tmp_path))
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert (tmp_path / "data" / "number.txt").exists(), "the container has a copy"


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.3, 2.0])
async def test_a_cancelled_episode_leaves_nothing(engine: Any, wait_s: float) -> None:
    """Whatever it was doing: connecting, making, starting, running (the fixture looks)."""
    playing = asyncio.ensure_future(play(["sleep", "60"]))
    await asyncio.sleep(wait_s)
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing


async def test_twenty_at_once_leave_nothing(engine: Any) -> None:
    before = len(os.listdir("/proc/self/fd"))
    episodes = await asyncio.gather(*(play(["sh", "-c", "sleep 100 & echo 86"]) for _ in range(20)))
    assert [(one.failure, one.reward) for one in episodes] == [(None, 1.0)] * 20
    assert len(os.listdir("/proc/self/fd")) <= before


KILLED = """
import asyncio
from tests.containers.test_programs import play
asyncio.run(play(["sh", "-c", "echo started; sleep 600"]))
"""


def test_a_trainer_that_is_killed_leaves_no_container(engine: Any) -> None:
    from agentrl_sandbox.docker.pool import OWNER_LABEL

    child = subprocess.Popen([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[2])

    def running() -> list[Any]:
        found = engine.containers.list(filters={"label": OWNER_LABEL}, ignore_removed=True)
        return [one for one in found if f"/{child.pid}/" in one.labels[OWNER_LABEL]]

    while not running():
        assert child.poll() is None
        time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    while running():  # the limit of the test is the limit of this
        time.sleep(0.2)
    assert of_this_process(engine) == []
