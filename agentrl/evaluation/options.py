"""Everything an evaluation is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.config.settings import RolloutSettings, SandboxSettings
from agentrl.evaluation.scoring import JudgeOptions
from agentrl.evaluation.subjects import SubjectOptions
from agentrl.rollout.token_completer import Decoding


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything an evaluation is told."""

    subject: SubjectOptions
    data: str
    out: Path
    env: str = "math_with_python"
    env_settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tools: bool = True
    """Without tools the environment's are hidden and there is one turn."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    limit: int = 0
    data_dir: str = ""
    name: str = ""
    """Of the task among several; empty takes that of the data."""
    prompt: str = ""
    """Template of the first message, with `{column}`, or `@file`; empty leaves it to the environment."""
    shots: int = 0
    """Worked examples before the problem, from `shots_data` or the benchmark's training set."""
    shots_data: str = ""
    choices: str = ""
    """Column with the choices of multiple choice."""
    grader: str = "equivalence"
    """`equivalence`, `strict` or `file.py:function`."""
    tolerance: float = 0.0
    """Relative difference up to which numbers are equal."""
    conventions: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How answers of this data set are read: fields of `agentrl_envs.graders.Conventions`."""
    by: tuple[str, ...] = ()
    """Columns by whose values accuracy is broken down."""
    judge: JudgeOptions | None = None
    samples: int = 1
    decoding: Decoding = field(default_factory=Decoding)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    seed: int = 0
    votes: str = "equivalence"
    """`equivalence`, `canonical`, `text` or `none`."""
    retry_failures: bool = False
    keep_text: bool = True
    preset: str = ""
    command: Sequence[str] = ()

    @property
    def task_name(self) -> str:
        """What the task is called."""
        return self.name or (Path(self.data).stem if Path(self.data).suffix else self.data)
