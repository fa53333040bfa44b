"""Rows of a data set from jsonl, json, csv, parquet, a list or the Hugging Face hub, each with a stable key.

Knows nothing of environments: which fields a row must have is `Env.check_rows`' business.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DatasetError

__all__ = ["load_rows", "prompt_id"]

Row = dict[str, Any]
logger = logging.getLogger(__name__)


def prompt_id(row: Mapping[str, Any]) -> str:
    """Stable key of a row.

    Its "id" when it has one, else the sha256 of its canonical JSON (16 hex digits).
    """
    if row.get("id") not in (None, ""):
        return str(row["id"])
    canonical = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def load_rows(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    map: Mapping[str, str] | None = None,
    limit: int | None = None,
    split: str = "train",
) -> list[Row]:
    """Rows of a data set, in order.

    source: a .jsonl, .json, .csv or .parquet file, a Hugging Face id ("owner/name"), or rows.
    map: {new name: name in the data}; the old name goes away. limit: the first so many rows.
    split: of a Hugging Face data set.

    Duplicates: a row equal to an earlier one (same id, same fields) is dropped, and counted in a warning; two
    different rows with one id are an error, because the value tracker could not tell them apart.
    Raises DatasetError naming the file and the line.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"limit={limit}: want at least 1")
    rows: dict[str, Row] = {}
    places: dict[str, str] = {}
    equal = 0
    for place, raw in _read(source, split):
        row = _renamed(raw, map or {}, place)
        key = prompt_id(row)
        if key in rows and rows[key] != row:
            raise DatasetError(
                f"{place}: the id {key!r} is already that of {places[key]}, whose fields differ"
            )
        equal += key in rows
        rows.setdefault(key, row)
        places.setdefault(key, place)
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise DatasetError(f"{source}: no rows")
    if equal:
        logger.warning("%s: %d rows are equal to earlier ones and are left out", source, equal)
    return list(rows.values())


def _renamed(row: Row, names: Mapping[str, str], place: str) -> Row:
    missing = [old for old in names.values() if old not in row]
    if missing:
        have = ", ".join(map(repr, row)) or "no fields"
        raise DatasetError(f"{place}: map names the field {missing[0]!r}, but the row has {have}")
    taken = set(names.values())
    kept = {key: value for key, value in row.items() if key not in taken}
    return kept | {new: row[old] for new, old in names.items()}


def _read(source: str | Path | Iterable[Mapping[str, Any]], split: str) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of every row."""
    if not isinstance(source, str | Path):
        for number, row in enumerate(source, 1):
            if not isinstance(row, Mapping):
                raise DatasetError(f"row {number}: want a mapping of fields, got {type(row).__name__}")
            yield f"row {number}", dict(row)
        return
    path = Path(source)
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if path.is_file():
        if reader is None:
            raise DatasetError(f"{path}: unknown kind of file; want {', '.join(readers)}")
        yield from reader(path)
    elif reader is not None or str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise DatasetError(f"no data file {path} (looked in {Path.cwd()})")
    else:
        yield from _hub(str(source), split)


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DatasetError(f"{place}: want a JSON object of fields, got {type(value).__name__}")
    return value


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                yield place, _object(json.loads(line), place)
            except (ValueError, RecursionError) as error:
                if isinstance(error, DatasetError):
                    raise
                raise DatasetError(f"{place}: not JSON: {error}") from None


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        items = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON: {error}") from None
    if not isinstance(items, list):
        raise DatasetError(f"{path}: want a list of objects, got {type(items).__name__}")
    for number, item in enumerate(items, 1):
        yield f"{path}, item {number}", _object(item, f"{path}, item {number}")


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(newline="", encoding="utf-8") as text:
        reader = csv.DictReader(text)
        try:
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DatasetError(
                        f"{place}: want {len(reader.fieldnames or ())} columns, as in the first line"
                    )
                yield place, dict(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}, line {reader.line_num}: not CSV in UTF-8: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise DatasetError(f"{path}: parquet needs pyarrow: pip install pyarrow") from None
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not a parquet file: {error}") from None


def _hub(name: str, split: str) -> Iterator[tuple[str, Row]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DatasetError(
            f"no data file {name}; to read it as a Hugging Face data set, pip install datasets"
        ) from None
    try:
        rows = load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds; each becomes one clear sentence
        raise DatasetError(
            f"Hugging Face data set {name!r}, split {split!r}: {type(error).__name__}: {error}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}[{split}], row {number}", dict(row)
