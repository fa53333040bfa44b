"""What an experiment plays: its rows, the environment with prompt, examples and choices, and its grader.

Rows whose gold answer cannot be compared are set aside here, by name, before anything is played. Knows
nothing of policies.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.config.registry import load_function
from agentrl.config.secrets import check_secrets
from agentrl.config.settings import DataSettings
from agentrl.errors import ConfigError, DataError
from agentrl.tasks.catalog import BENCHMARKS
from agentrl.tasks.datasets import DataSet, checksum, load_data_set
from agentrl.tasks.task import env_class
from agentrl_envs import (
    Env,
    EnvError,
    Grader,
    Message,
    Verdict,
    asks_grader,
    prompt_id,
    usable_rows,
)
from agentrl_envs.graders import Conventions

if TYPE_CHECKING:
    from agentrl.evaluation.settings import Experiment, MeasureSettings

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Task:
    """What is played."""

    env: type[Env]
    data: DataSet
    grader: Grader
    labels: Mapping[str, Mapping[str, str]]
    """Column -> problem -> value, for accuracy by column."""


def prepare(experiment: Experiment) -> Task:
    """The task of an experiment.

    Raises:
        ConfigError, DataError: it cannot be what was meant.
    """
    check_secrets(asdict(experiment))
    measure, env = experiment.eval, _environment(experiment)
    if not asks_grader(env) and (measure.grader != "equivalence" or measure.tolerance or measure.conventions):
        raise ConfigError(
            f"{env.__name__}.reward asks no grader (self.grade), so --grader and --tolerance change nothing; "
            "--rescore can compare stored answers with their gold answers"
        )
    grader = make_grader(
        measure.grader, measure.tolerance, measure.conventions, choices=bool(measure.choices)
    )
    data = _data(measure, env)
    if measure.choices:
        data = replace(data, rows=tuple(with_choices(row, measure.choices) for row in data.rows))
    data = _without_bad_golds(data, env, grader)
    labels = {column: column_labels(data.rows, column) for column in measure.by}
    return Task(_shaped(env, measure, data), data, grader, labels)


def _environment(experiment: Experiment) -> type[Env]:
    try:
        env = env_class(experiment.env.name, experiment.env.settings, experiment.env)
        env.check_settings(experiment.env.settings)
    except EnvError as error:
        raise ConfigError(f"--env {experiment.env.name}: {error}") from error
    return env if experiment.eval.tools else without_tools(env)


def without_tools(env: type[Env]) -> type[Env]:
    """The same environment with its tools hidden from the policy."""

    def tool_specs(cls: type[Env]) -> tuple[()]:
        return ()

    return type(f"{env.__name__}WithoutTools", (env,), {"tool_specs": classmethod(tool_specs)})


def make_grader(
    name: str,
    tolerance: float = 0.0,
    conventions: Mapping[str, Any] | None = None,
    *,
    choices: bool = False,
) -> Grader:
    """The grader of a name: `equivalence`, `strict`, or `file.py:function`, called with answer and gold.

    Raises:
        ConfigError: there is none, a tolerance that is no relative difference, or unknown conventions.
    """
    kind = ChoiceGrader if choices else Grader
    try:
        read = Conventions(**(conventions or {}))
        if name in ("equivalence", "strict"):
            return kind(name, tolerance=tolerance, conventions=read)
        return kind(function=load_function(name, "--grader "))
    except TypeError:
        known = ", ".join(field.name for field in fields(Conventions))
        unknown = ", ".join(conventions or ())
        raise ConfigError(f"conventions of a data set are {known}; got {unknown}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from error


# ---- rows --------------------------------------------------------------------------------------------------


def _data(measure: MeasureSettings, env: type[Env]) -> DataSet:
    [source] = measure.data
    if source.startswith(("generated:", "env:")):
        from agentrl.tasks.task import load_data

        rows = load_data(DataSettings(source, limit=measure.limit), env, "--data")
        return DataSet(source, "", tuple(rows), checksum(rows))
    data = load_data_set(source, columns=measure.map, limit=measure.limit, data_dir=measure.data_dir or None)
    try:
        env.check_rows(data.rows, where=f"{data.path}, row")
    except EnvError as error:
        raise DataError(str(error)) from error
    return data


def _without_bad_golds(data: DataSet, env: type[Env], grader: Grader) -> DataSet:
    """The rows whose gold answers can be compared; the others are set aside and named.

    Raises:
        DataError: no row is left.
    """
    kept, aside = usable_rows(env, data.rows, grader)
    if not kept:
        raise DataError(
            f"{data.path}: no gold answer can be compared; the first is {aside[0].answer!r}: {aside[0].why}"
        )
    return replace(data, rows=tuple(kept), set_aside=tuple(asdict(one) for one in aside))


def column_labels(rows: Sequence[Row], column: str) -> dict[str, str]:
    """The value of a column for each problem.

    Raises:
        DataError: no row has it.
    """
    if not any(column in row for row in rows):
        raise DataError(f"--by {column}: the rows have no such column, they have {', '.join(rows[0])}")
    return {prompt_id(row): _label(row.get(column, "")) for row in rows}


def _label(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---- multiple choice ---------------------------------------------------------------------------------------

# Bounded blanks: five runs of them one after the other would take the fifth power of a long one.
_LETTER = re.compile(
    r"\s{0,3}(?:\\text[a-z]{0,8}\s?\{)?\s?\(?\s?([A-Z])\s?\)?\s?\}?\s?(?:[.):,]|\\[ ;,]|\s-)\s{0,3}\S",
    re.ASCII,
)


class ChoiceGrader(Grader):
    """Takes `B. because of this` for `B` where letters name the answers."""

    def grade_sync(self, answer: str | None, gold: str | Sequence[str]) -> Verdict:
        """As `Grader.grade_sync`."""
        return super().grade_sync(self._letter(answer, gold), gold)

    async def grade(self, answer: str | None, gold: str | Sequence[str]) -> Verdict:
        """As `Grader.grade`."""
        return await super().grade(self._letter(answer, gold), gold)

    def canonical(self, answer: str | None) -> str | None:
        """As `Grader.canonical`: votes for a letter with and without its text are one class."""
        found = None if answer is None else _LETTER.match(answer)
        return super().canonical(answer if found is None else found[1])

    @staticmethod
    def _letter(answer: str | None, gold: str | Sequence[str]) -> str | None:
        from agentrl_envs import last_answer

        stated = last_answer(answer)
        found = None if stated is None or stated == gold or stated in gold else _LETTER.match(stated)
        return answer if found is None else f"\\boxed{{{found[1]}}}"


def with_choices(row: Row, column: str) -> dict[str, Any]:
    """A row of multiple choice as a problem that lists its choices, with the letter and its text as answers.

    Args:
        row: its `column` is a list of texts, or `{"text": [...], "label": [...]}`; its `answer` is a letter,
            a label, the text of a choice, or an index from 0.
        column: of the choices.

    Raises:
        DataError: they are no choices, or the answer is none of them.
    """
    key, found = prompt_id(row), row.get(column)
    labels = found.get("label", found.get("labels")) if isinstance(found, Mapping) else None
    texts = found.get("text", found.get("texts")) if isinstance(found, Mapping) else found
    if not isinstance(texts, list | tuple) or not 2 <= len(texts) <= 26:
        raise DataError(f"row {key!r}: want 2 to 26 choices as a list in {column!r}, got {found!r:.100}")
    letters = [chr(ord("A") + index) for index in range(len(texts))]
    names = [str(label) for label in labels] if labels else letters
    answer = row.get("answer")
    places = [i for i, (name, text) in enumerate(zip(names, texts, strict=True)) if answer in (name, text)]
    text = str(answer).strip()
    if not places and text in letters:
        places = [letters.index(text)]
    if not places and text.isdigit() and int(text) < len(texts):
        places = [int(text)]
    if len(places) != 1:
        raise DataError(f"row {key!r}: the answer {answer!r} is not one of the choices {list(texts)!r:.200}")
    place = places[0]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    problem = (
        f"{str(row.get('problem', '')).rstrip()}\n\n{listed}\n\nAnswer with the letter of the right choice."
    )
    return {**row, "id": key, "problem": problem, "answer": [letters[place], str(texts[place])]}


# ---- prompts -----------------------------------------------------------------------------------------------


def _shaped(env: type[Env], measure: MeasureSettings, data: DataSet) -> type[Env]:
    """The environment with the experiment's prompt and examples."""
    members: dict[str, Any] = {}
    if measure.prompt:
        template = _template(measure.prompt[0], data.rows[0])
        members["prompt"] = lambda self, row: template(row)
    if measure.shots:
        members["start"] = _start_with(_shots(measure, data), env)
    return type(env.__name__, (env,), members) if members else env


def _template(text: str, row: Row) -> Callable[[Row], str]:
    """The prompt of a row: `{column}` is its text there; other braces stand as they are."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompt {text}: {error}") from error
    used = {name for name in _FIELD.findall(text) if name in row}
    if "answer" in used:
        raise ConfigError("--prompt: {answer} would tell the gold answer")
    if not used:
        raise ConfigError(
            f"--prompt names no column of the rows, such as {{{next(iter(row))}}}: {text!r:.100}"
        )

    def fill(row: Row) -> str:
        return _FIELD.sub(lambda m: str(row.get(m[1], "")) if m[1] in used else m[0], text)

    return fill


def _shots(measure: MeasureSettings, data: DataSet) -> list[Row]:
    """The first rows of the examples' file that are not among the problems."""
    source = measure.shots_data
    if not source and f"{measure.data[0]}_train" in BENCHMARKS:
        source = f"{measure.data[0]}_train"
    if not source:
        raise ConfigError(f"--shots {measure.shots} needs --shots-data: rows with worked answers")
    examples = load_data_set(source, columns=measure.map, data_dir=measure.data_dir or None).rows
    problems = {str(row.get("problem")) for row in data.rows}
    if measure.choices:
        examples = tuple(with_choices(row, measure.choices) for row in examples)
    found = [row for row in examples if str(row.get("problem")) not in problems][: measure.shots]
    if len(found) < measure.shots:
        raise DataError(
            f"{source} has {len(found)} rows that are not evaluated, --shots wants {measure.shots}"
        )
    return found


def _start_with(shots: Sequence[Row], env: type[Env]) -> Callable[..., Any]:
    """A `start` that puts worked examples before the first message of the user."""

    async def start(self: Env, row: Row) -> list[Message]:
        opening = await env.start(self, row)
        place = next((i for i, message in enumerate(opening) if message["role"] != "system"), len(opening))
        for shot in reversed(shots):
            asked = self._messages(await self._hook("prompt", partial(self.prompt, shot)))
            asked = [message for message in asked if message["role"] != "system"]
            opening[place:place] = [*asked, {"role": "assistant", "content": _worked(shot)}]
        return opening

    return start


def _worked(shot: Row) -> str:
    """What a model that was right would have said."""
    gold = shot.get("answer")
    gold = gold[0] if isinstance(gold, list | tuple) else gold
    solution = shot.get("solution")
    boxed = f"\\boxed{{{gold}}}"
    if not isinstance(solution, str):
        return boxed
    return solution if "\\boxed" in solution else f"{solution.rstrip()}\n{boxed}"
