"""Tasks of Harbor on a real engine: built, worked on with a shell, and graded by their own tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentrl.cli.main import main
from agentrl.episode import Episode
from agentrl_envs import load_env
from agentrl_envs.check import _Checker
from tests.adapters.playing import END, play, tool_call
from tests.containers.conftest import of_this_process
from tests.harbor_tasks import write_task

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]
DONE = f"Done.{END}"


def bash(command: str) -> str:
    return tool_call("bash", command=command)


async def work(folder: Path, script: list[str], **settings: Any) -> tuple[Episode, list[str]]:
    """The episode of a task, and what its shell said."""
    given = {"build_network": "none", **settings}
    env: Any = load_env(f"harbor:{folder}", given)
    episode = await play(lambda: env(**given), env.example_rows[0], script)
    return episode, [call.result for turn in episode.turns for call in turn.tool_calls]


async def test_a_task_is_solved_with_a_shell(engine: Any, tmp_path: Path) -> None:
    script = [
        bash("pwd; cat data.txt; ls /tests /solution"),
        bash("echo -n hel > greeting.txt; false"),
        bash("echo lo >> greeting.txt"),
        DONE,
    ]
    episode, said = await work(write_task(tmp_path / "greeting"), script)
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert said[0].startswith("/app\nsome data\n")
    assert said[0].count("No such file or directory") == 2, "neither tests nor solution are there meanwhile"
    assert (said[1], said[2]) == ("[exit status 1]", "[exit status 0]")
    lazy, _ = await work(tmp_path / "greeting", [DONE])
    assert (lazy.failure, lazy.reward) == (None, 0.0)


async def test_the_middle_of_long_output_is_left_out(engine: Any, tmp_path: Path) -> None:
    script = [bash("for i in {1..20000}; do echo line $i; done"), DONE]
    episode, (said,) = await work(write_task(tmp_path / "greeting"), script, output_chars=200)
    assert episode.failure is None
    assert said.startswith("line 1\nline 2\n")
    assert "characters were left out" in said
    assert said.endswith("line 20000\n[exit status 0]")


async def test_a_command_ends_at_its_limit_with_what_it_started(engine: Any, tmp_path: Path) -> None:
    look = "for one in /proc/[0-9]*/comm; do read -r name < $one && [ $name != sleep ] || sleep 600; done"
    script = [bash("sleep 100 & sleep 200; echo never"), bash(look), DONE]
    episode, said = await work(write_task(tmp_path / "greeting"), script, command_s=20.0)
    assert (episode.failure, said[0]) == (None, "[killed after 20 s]")
    assert said[1] == "[exit status 0]", "no sleep is left"
    assert episode.counts["harbor/timeouts"] == 1


async def test_the_seconds_of_a_task_are_those_of_its_commands(engine: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "short", {"task.toml": "[agent]\ntimeout_sec = 1\n"})
    episode, said = await work(folder, [bash("sleep 30"), bash("true"), DONE])
    assert (episode.failure, said[0]) == (None, "[killed after 1 s]")
    assert "seconds of this task are used up" in said[1]


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        (
            {"environment/Dockerfile": "FROM agentrl-test:shell\nUSER root\nRUN echo no; exit 7\n"},
            {},
            r"returned.*7",
        ),
        ({"environment/Dockerfile": "FRM x\n"}, {}, "(?i)unknown instruction"),
        ({"tests/test.sh": "#!/bin/bash\necho broken; exit 1\n"}, {}, "wrote: broken.*left neither"),
        ({"tests/test.sh": "#!/no/such\n"}, {}, "cannot execute|bad interpreter"),
        ({"tests/test.sh": "#!/bin/bash\necho good > /logs/verifier/reward.txt\n"}, {}, "no number: b'good"),
        (
            {"task.toml": "[verifier]\ntimeout_sec = 1\n", "tests/test.sh": "#!/bin/bash\nsleep 60\n"},
            {},
            r"did not end within 1 s \(\[verifier\] timeout_sec\)",
        ),
        ({"tests/test.sh": "#!/bin/bash\necho 2 > /logs/verifier/reward.txt\n"}, {}, "reward_range"),
        ({"task.toml": "[environment]\ndocker_image = 'agentrl-test:none'\n"}, {}, "no such image"),
    ],
    ids=["build", "dockerfile", "no reward", "no shell", "no number", "too long", "range", "image"],
)
async def test_a_task_that_breaks_is_no_reward(
    engine: Any, tmp_path: Path, changes: Any, settings: Any, words: str
) -> None:
    import re

    episode, _ = await work(write_task(tmp_path / "broken", changes), [DONE], **settings)
    assert episode.failure is not None
    assert re.search(words, episode.failure.message, re.DOTALL), episode.failure.message
    assert episode.reward is None


FORGED = "#!/bin/bash\nsleep 0.5; echo 0 > /logs/verifier/reward.txt; sleep 0.5\n"
FORGER = (
    "(while :; do echo 1 > /logs/verifier/reward.txt; done) & disown; echo x > /logs/verifier/reward.json"
)


async def test_an_agents_own_reward_is_removed_and_its_processes_can_be(engine: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "forged", {"tests/test.sh": FORGED})
    episode, _ = await work(folder, [bash(FORGER), DONE], end_processes=True)
    assert (episode.failure, episode.reward) == (None, 0.0)


@pytest.mark.parametrize("verifier", ["", "[verifier]\nuser = '1'\n"])
async def test_an_agent_that_is_not_root_writes_no_reward(engine: Any, tmp_path: Path, verifier: str) -> None:
    text = f"[agent]\nuser = '65534'\n{verifier}[environment]\nworkdir = '/tmp'\n"
    folder = write_task(tmp_path / "forged", {"task.toml": text, "tests/test.sh": FORGED})
    episode, _ = await work(folder, [bash(FORGER), DONE])
    assert (episode.failure, episode.reward) == (None, 0.0)


async def test_there_is_no_network_and_memory_has_a_limit(engine: Any, tmp_path: Path) -> None:
    script = [
        bash("python3 -c \"import socket; socket.create_connection(('1.1.1.1', 53), 3)\""),
        bash("python3 -c 'bytearray(10**9)'"),
        bash("echo hello > greeting.txt"),
        DONE,
    ]
    episode, said = await work(write_task(tmp_path / "greeting"), script)
    assert (episode.failure, episode.reward) == (None, 1.0)
    assert "Network is unreachable" in said[0]
    assert said[1].endswith("[exit status 137]")


async def test_users_of_agent_and_tests(engine: Any, tmp_path: Path) -> None:
    text = "[agent]\nuser = 'nobody'\n[environment]\nworkdir = '/tmp'\n"
    folder = write_task(
        tmp_path / "users",
        {"task.toml": text, "tests/test.sh": "#!/bin/bash\necho $UID > /logs/verifier/reward.txt\n"},
    )
    episode, said = await work(folder, [bash("echo $UID; echo x > /etc/x"), DONE])
    assert (episode.reward, said[0].split()[0]) == (0.0, "65534")
    assert "Permission denied" in said[0]


@pytest.mark.parametrize("wait_s", [0.0, 0.3, 2.0])
async def test_a_cancelled_episode_leaves_nothing(engine: Any, tmp_path: Path, wait_s: float) -> None:
    playing = asyncio.ensure_future(work(write_task(tmp_path / "greeting"), [bash("sleep 60"), DONE]))
    await asyncio.sleep(wait_s)
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing


async def test_forty_episodes_leave_nothing(engine: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "greeting")
    await work(folder, [DONE])  # the image, and what is made once in a process
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(4):
        script = [bash("echo hello > greeting.txt; sleep 300 & disown"), DONE]
        episodes = await asyncio.gather(*(work(folder, script) for _ in range(10)))
        assert [(one.failure, one.reward) for one, _ in episodes] == [(None, 1.0)] * 10
    assert len(os.listdir("/proc/self/fd")) <= before
    assert of_this_process(engine) == []


def test_agentrl_check(engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, flag = write_task(tmp_path / "greeting"), "--env.settings.build_network=none"
    assert main(["check", f"harbor:{folder}", flag]) == 0, capsys.readouterr().out
    assert "by 1 solutions of its own" in capsys.readouterr().out


async def test_a_solution_that_does_not_solve_is_found(engine: Any, tmp_path: Path) -> None:
    wrong = {"solution/solve.sh": "#!/bin/bash\necho helo > greeting.txt\n"}
    env: Any = load_env(f"harbor:{write_task(tmp_path / 'greeting', wrong)}")
    checker = _Checker(env, env.example_rows, None, {"build_network": "none"}, "answer")
    assert await checker.truth() == (False, "row 1: its solution has reward 0, want 1")


def test_harbor_itself_reads_the_task(tmp_path: Path) -> None:
    """Against the package (Python 3.12 or newer): `pip install harbor`, its Python in AGENTRL_HARBOR_PYTHON."""
    python = os.environ.get("AGENTRL_HARBOR_PYTHON")
    if not python:
        pytest.skip("AGENTRL_HARBOR_PYTHON names no Python with the package harbor")
    folder = write_task(tmp_path / "greeting")
    code = (
        "import sys; from harbor.models.task.task import Task\n"
        "task = Task(sys.argv[1]); config = task.config\n"
        "print(Task.is_valid_dir(sys.argv[1]), task.instruction.strip(), config.environment.memory_mb,\n"
        "      config.environment.workdir, config.agent.timeout_sec, config.verifier.timeout_sec,\n"
        "      config.verifier.env, sep='|')"
    )
    told = subprocess.run(
        [python, "-c", code, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    ours: Any = load_env(f"harbor:{folder}").tasks["greeting"]
    want = [
        True,
        ours.instruction,
        ours.memory_mb,
        ours.workdir,
        ours.agent_s,
        ours.tests_s,
        ours.tests_variables,
    ]
    assert told.strip() == "|".join(map(str, want))
