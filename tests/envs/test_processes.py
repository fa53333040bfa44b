"""Programs of the trainer's machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl_envs import EnvError
from agentrl_envs.processes import Program


async def test_the_event_loop_has_heard_of_the_end_of_a_program_that_was_killed(tmp_path: Path) -> None:
    # Otherwise a loop that closes next calls the process running, and warns.
    for _ in range(10):
        program = Program(["sleep", "60"], tmp_path, {}, time_s=0.05, cpu_s=1, memory_mb=0, output_kb=1)
        with pytest.raises(EnvError, match="did not end within"):
            await program.run("")
        assert program._process is not None
        assert program._process.returncode == -9
