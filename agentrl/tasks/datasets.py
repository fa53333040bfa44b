"""Rows of a benchmark by name, from a local data folder or the hub, or of any file; counted and checked.

A name is looked for in `--data-dir`, in the folder of the environment variable AGENTRL_DATA, in `./data`,
and then on the Hugging Face hub at its pinned revision. Knows nothing of environments and policies.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import os
import re
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.errors import DataError
from agentrl.storage.durable import write_file
from agentrl.tasks.catalog import BENCHMARKS, Benchmark, GitHubSource, HubSource
from agentrl.weights.model_files import hub_trouble
from agentrl_envs import EnvError, last_answer, load_rows
from agentrl_envs.dataset import prompt_id

FOLDER_VARIABLE = "AGENTRL_DATA"
_INTEGER = re.compile(r"-?\d+\Z")


@dataclass(frozen=True, slots=True)
class DataSet:
    """Rows, and what identifies them."""

    name: str
    """Name of the benchmark, or the path as given."""
    path: str
    """File the rows came from."""
    rows: tuple[Mapping[str, Any], ...]
    checksum: str
    """sha256 of all problems and answers, in order (before `limit`)."""
    revision: str = ""
    """Commit on the hub, where the rows came from there."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    set_aside: tuple[Mapping[str, Any], ...] = ()
    """Rows whose gold answer cannot be compared: their `problem`, `answer` and `why`."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Key of each row."""
        return tuple(prompt_id(row) for row in self.rows)

    def describe(self) -> dict[str, Any]:
        """What a summary says of the data."""
        return {
            "name": self.name,
            "path": self.path,
            "rows": len(self.rows),
            "checksum": self.checksum,
            "revision": self.revision,
            "map": dict(self.columns),
            "set_aside": [dict(row) for row in self.set_aside],
        }


def load_data_set(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int = 0,
    data_dir: str | Path | None = None,
) -> DataSet:
    """Rows of a benchmark, or of a file.

    Args:
        source: name of a benchmark, or a .jsonl, .json, .csv or .parquet file.
        columns: `{"problem": "question"}` reads the field `problem` from the column `question`.
        limit: takes the first rows only; 0 takes all.
        data_dir: folder with the files of the benchmarks.

    Raises:
        DataError: unknown name, no file, or rows that are not what the benchmark's name promises.
    """
    benchmark = BENCHMARKS.get(source)
    if benchmark is None and _looks_like_a_name(source):
        raise DataError(_unknown(source))
    path = Path(source) if benchmark is None else locate(source, data_dir)
    try:
        rows = load_rows(path, map=columns or {})
    except EnvError as error:
        raise DataError(str(error)) from error
    total = checksum(rows)
    revision = ""
    if benchmark is not None:
        origin = benchmark.hub or benchmark.github
        if origin is not None and origin.revision in path.name:
            revision = origin.revision
        check_rows(benchmark, rows, path, from_hub=bool(revision))
    kept = rows[:limit] if limit else rows
    return DataSet(source, str(path), tuple(kept), total, revision, dict(columns or {}))


def locate(name: str, data_dir: str | Path | None = None) -> Path:
    """The file of a benchmark, fetched from the hub where no folder has it.

    Raises:
        DataError: unknown name; or no folder has the file and the hub cannot be reached.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise DataError(_unknown(name))
    folders = [Path(data_dir)] if data_dir else []
    if os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(os.environ[FOLDER_VARIABLE]))
    folders.append(Path("data"))
    for folder in folders:
        if (folder / benchmark.file).is_file():
            return folder / benchmark.file
    looked = ", ".join(str(folder) for folder in folders)
    missing = (
        f"no file {benchmark.file} for the data set {name!r} (looked in {looked}; "
        f"say where with --data-dir or {FOLDER_VARIABLE})"
    )
    source = benchmark.hub or benchmark.github
    if source is None:
        raise DataError(f"{missing}; it has no pinned revision on the hub, so it needs a local file")
    try:
        return _fetched(benchmark, source)
    except DataError as error:
        where = "the hub"
        if isinstance(source, GitHubSource):
            where = f"GitHub, without which it needs a local file: {source.url}"
        raise DataError(f"{missing}; and {where}: {error}") from error


def checksum(rows: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over problem and answer of every row, in order; other columns do not matter."""
    digest = hashlib.sha256()
    for row in rows:
        for key in ("problem", "answer"):
            digest.update(str(row.get(key, "")).strip().encode("utf-8", "surrogatepass"))
            digest.update(b"\x1f")
    return digest.hexdigest()


def check_rows(
    benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], path: Path, *, from_hub: bool = False
) -> None:
    """That the rows are the benchmark's: their number, their answers, and their checksum where it is known.

    Raises:
        DataError: they are not.
    """
    remedy = f"to use the file as it is, name it: --data {path}"
    wanted = benchmark.rows
    if from_hub and benchmark.hub is not None and benchmark.hub.rows:
        wanted = benchmark.hub.rows
    if len(rows) != wanted:
        raise DataError(f"{path} has {len(rows)} rows and {benchmark.name} has {wanted}; {remedy}")
    for number, row in enumerate(rows, 1):
        fault = _fault(row, benchmark.answers)
        if fault:
            raise DataError(f"{path}, row {number}: {fault}; {remedy}")
    if benchmark.checksum and not from_hub and checksum(rows) != benchmark.checksum:
        raise DataError(
            f"{path} is not the {benchmark.name} that results are compared on: its content has the checksum "
            f"{checksum(rows)[:12]}..., expected {benchmark.checksum[:12]}...; {remedy}"
        )


def _fault(row: Mapping[str, Any], answers: str) -> str:
    problem, answer = row.get("problem"), row.get("answer")
    if not isinstance(problem, str) or not problem.strip():
        return "no problem"
    if not isinstance(answer, str) or not answer.strip():
        return f"the answer must be a text, got {answer!r}"
    if answers == "integer" and not _INTEGER.match(answer):
        return f"the answer {answer!r} is not an integer"
    if answers == "countdown" and not (
        isinstance(row.get("nums"), list) and isinstance(row.get("target"), int)
    ):
        return "a countdown needs the fields `nums` (a list) and `target` (an integer)"
    return ""


def _looks_like_a_name(source: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_\-]+", source) is not None and not Path(source).exists()


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, list(BENCHMARKS), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no data set {name!r}; {hint}known: {', '.join(BENCHMARKS)}; or give a jsonl or parquet file"


# ---- the hub -----------------------------------------------------------------------------------------------


def _fetched(benchmark: Benchmark, source: HubSource | GitHubSource) -> Path:
    """Fetch at the pinned revision and write as rows with `id`, `problem` and `answer`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentrl" / "data"
    target = root / f"{benchmark.name}-{source.revision}.jsonl"
    if target.is_file():
        return target
    root.mkdir(parents=True, exist_ok=True)
    fetch = _from_hub(source) if isinstance(source, HubSource) else _from_github(source, root)
    try:
        raw = load_rows(fetch)
    except EnvError as error:
        raise DataError(str(error)) from error
    rows = [_row(benchmark.name, number, item, source) for number, item in enumerate(raw)]
    check_rows(benchmark, rows, target, from_hub=isinstance(source, HubSource))
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    temporary.replace(target)
    return target


def _from_github(source: GitHubSource, root: Path) -> Path:
    """Fetch a file at its commit, which fixes the content."""
    target = root / f"{source.revision}-{Path(source.file).name}"
    try:
        with urllib.request.urlopen(source.url, timeout=60) as answer:
            write_file(target, answer.read(), "data")
    except OSError as error:
        raise DataError(f"it could not be fetched: {error}") from error
    return target


def _from_hub(hub: HubSource) -> Path:
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise DataError("pip install huggingface_hub to fetch it") from None
    trouble = hub_trouble(f"datasets/{hub.repository}")
    if trouble is not None:
        raise DataError(f"{hub.repository} could not be fetched: {trouble}")
    try:
        names = HfApi().list_repo_files(hub.repository, repo_type="dataset", revision=hub.revision)
        found = [name for name in names if fnmatch.fnmatch(name, hub.file)]
        if len(found) != 1:
            raise DataError(f"{hub.repository} has {len(found)} files like {hub.file!r}, expected one")
        return Path(hf_hub_download(hub.repository, found[0], repo_type="dataset", revision=hub.revision))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds; each becomes one clear sentence
        raise DataError(
            f"{hub.repository} could not be fetched: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _row(name: str, number: int, item: Mapping[str, Any], source: HubSource | GitHubSource) -> dict[str, str]:
    values = {new: item.get(old) for new, old in source.columns.items()}
    return {
        "id": f"{name}-{number}",
        "problem": str(values["problem"] or "").strip().removesuffix(getattr(source, "suffix", "")).strip(),
        "answer": bare_answer(values["answer"], source.answer),
    }


def bare_answer(value: Any, kind: str) -> str:
    r"""The answer inside a column: after `####`, in the last box, the first item of a list, or itself."""
    if kind == "first":
        value = value[0] if isinstance(value, list) and value else value
    text = "" if value is None else str(value).strip()
    if kind == "hash_marks":
        return text.rpartition("####")[2].replace(",", "").strip()
    if kind == "boxed":
        text = (last_answer(text) or "").strip()
    text = text.strip("$").strip()
    whole = re.fullmatch(r"(-?\d+)\.0", text)  # 27.0
    if whole:
        text = whole[1]
    padded = re.fullmatch(r"(-?)0+(\d+)", text)  # 025
    return padded[1] + padded[2] if padded else text
