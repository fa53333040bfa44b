"""The model that ships in the package: the name it goes by, and the settings that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "demo"
FOLDER = Path(__file__).parents[1] / "demo"
MODEL = FOLDER / "model"
SETTINGS = FOLDER / "demo.toml"


def model_path(name: str) -> str:
    """The folder that `demo` names, unless a folder of that name is here; any other name as it is."""
    return str(MODEL) if name == NAME and not Path(NAME).exists() else name


def is_bundled(path: str) -> bool:
    """Whether a path is that of the bundled model."""
    return bool(path) and Path(path).expanduser().absolute() == MODEL.absolute()


def shown(path: str) -> str:
    """What weights are called in results: the bundled model by its name, wherever it is installed."""
    return NAME if is_bundled(path) else path


def put_model(table: Mapping[str, Any]) -> None:
    """Write the folder of the bundled model into a table of settings that names it."""
    section = table.get("model")
    if isinstance(section, dict) and isinstance(path := section.get("path"), str):
        section["path"] = type(path)(model_path(path))
