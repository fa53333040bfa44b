"""Finding environments: by registered name, by file, by dotted path, by scheme.

`load_env("math_with_python")`, `load_env("my_env.py")`, `load_env("my_env.py:Chess")`,
`load_env("pkg.module:Chess")`, `load_env("program:python my_agent.py")`. A name that `@register` gives is
looked for in the files of the working folder too. Knows nothing of what environments do.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

from .env import Env
from .errors import EnvError, EnvNotFound
from .raised import error_text, place
from .user_code import ends_caller

__all__ = [
    "get_env",
    "hold_env",
    "load_env",
    "load_file",
    "name_of",
    "reads_variables",
    "register",
    "registered",
]

E = TypeVar("E", bound=type[Env])
_ENVIRONMENTS: dict[str, type[Env]] = {}
# Shipped environments are imported when they are asked for, so that importing the package stays quick.
_SHIPPED = {
    "math_with_python": "agentrl_envs.math_with_python:MathWithPython",
    "arithmetic": "agentrl_envs.arithmetic:Arithmetic",
    "countdown": "agentrl_envs.countdown:Countdown",
}
# `env.name = "SCHEME:REST"`: `function(rest, settings)` makes the class; its module is imported no earlier.
_SCHEMES = {
    "program": "agentrl_envs.program:program_env",
    "mcp": "agentrl_envs.mcp.env:mcp_env",
    "remote": "agentrl_envs.isolation.environment:remote_env",
    "reasoning_gym": "agentrl_envs.adapters.reasoning_gym:reasoning_gym_env",
    "gymnasium": "agentrl_envs.adapters.gymnasium:gymnasium_env",
    "trl": "agentrl_envs.adapters.trl:trl_env",
    "verifiers": "agentrl_envs.adapters.verifiers:verifiers_env",
    "harbor": "agentrl_envs.harbor.env:harbor_env",
    "openenv": "agentrl_envs.adapters.openenv:openenv_env",
}
_EXTRAS = {
    "mcp": "agentrl[mcp]",
    "reasoning_gym": "agentrl[reasoning-gym]",
    "gymnasium": "agentrl[gymnasium]",
    "verifiers": "agentrl[verifiers]",
}
"""What to install where a package that a scheme needs is missing, such as `agentrl[mcp]`."""


@overload
def register(name: str, /) -> Callable[[E], E]: ...
@overload
def register(name: str, cls: E, /) -> E: ...
def register(name: str, cls: Any = None, /) -> Any:
    """Give an environment class a name: `@register("chess")` or `register("chess", Chess)`."""

    def add(added: E) -> E:
        if not (isinstance(added, type) and issubclass(added, Env)):
            raise EnvError(f"register({name!r}): {added!r} is not an Env class")
        present = _ENVIRONMENTS.get(name)
        known = _SHIPPED.get(name) if present is None else f"{present.__module__}:{present.__qualname__}"
        # The same class again is fine: a file may be loaded twice.
        if known is not None and known.partition(":")[2] != added.__qualname__:
            raise EnvError(f"the environment name {name!r} is taken by {known}")
        _ENVIRONMENTS[name] = added
        return added

    return add if cls is None else add(cls)


def hold_env(env: type[Env], name: str = "") -> str:
    """Let `load_env` find a class that is handed in ready made; returns the name it goes by (`name_of`)."""
    name = name or name_of(env)
    _ENVIRONMENTS[name] = env
    return name


def name_of(ready: Any) -> str:
    """Where something was defined: `my.py:Name`, `package.module:Name`, `__main__:Name`.

    Of what stands in a file the name finds it again in another process. What was made in a notebook, in the
    program itself (`__main__`) or inside of a function can only be handed in again.
    """
    made = ready if isinstance(ready, type) or hasattr(ready, "__qualname__") else type(ready)
    module, name = made.__module__, made.__qualname__
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None or module == "__main__" or made is not ready or not name.isidentifier() or "." in module:
        return f"{module}:{name}"
    file = Path(path)
    return f"{file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}:{name}"


def registered() -> tuple[str, ...]:
    """Names that `get_env` knows, sorted."""
    return tuple(sorted({*_ENVIRONMENTS, *_SHIPPED}))


def get_env(name: str) -> type[Env]:
    """The class registered under `name`. Raises EnvNotFound with the nearest name."""
    if name in _ENVIRONMENTS:
        return _ENVIRONMENTS[name]
    if name in _SHIPPED:
        return _from_module(_SHIPPED[name])
    here = _files_that_register(name)
    if len(here) == 1:
        load_file(here[0])
        if name in _ENVIRONMENTS:
            return _ENVIRONMENTS[name]
    if len(here) > 1:
        raise EnvNotFound(f"several files here register {name!r}: {', '.join(map(str, here))}; name the file")
    near = difflib.get_close_matches(name, registered(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise EnvNotFound(
        f"no environment {name!r}; {hint}known: {', '.join(registered())}; "
        'or give a file ("my_env.py", "my_env.py:Class") or a dotted path ("package.module:Class")'
    )


def _files_that_register(name: str) -> list[Path]:
    """Python files of the working folder in which `register("name")` is written."""
    written = re.compile(rf"""\bregister\(\s*["']{re.escape(name)}["']""")
    found = []
    for path in sorted(Path().glob("*.py")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if written.search(path.read_text(encoding="utf-8")):
                found.append(path)
    return found


def load_env(spec: str | Path | type[Env], settings: Mapping[str, Any] | None = None) -> type[Env]:
    """The environment class that `spec` names.

    Args:
        spec: a registered name, a file, a dotted path, `SCHEME:REST`, or the class itself.
        settings: with which the class is going to be used. A class made from a scheme may depend on them (the
            tools that it has, the rows that it generates); every other takes them when an instance is made.

    Raises:
        EnvNotFound: there is none.
        EnvError: it cannot be loaded.
    """
    if isinstance(spec, type):
        if issubclass(spec, Env):
            return spec
        raise EnvNotFound(f"{spec!r} is not an Env class")
    text = str(spec)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SCHEMES:
        return _of_scheme(scheme, rest.strip(), settings or {})
    if text in _ENVIRONMENTS or text in _SHIPPED:
        return get_env(text)
    path, colon, name = text.rpartition(":")
    path, name = (path, name) if colon else (text, "")
    if path.endswith(".py") or Path(path).is_file():
        return _class_of(load_file(Path(path)), name, path)
    if colon or "." in text:
        return _from_module(text if colon else ":".join(text.rpartition(".")[::2]))
    return get_env(text)


def reads_variables(spec: str) -> tuple[str, ...]:
    """Settings in which the environment that `spec` names reads `$NAME` itself while it is loaded."""
    return ("variables", "headers") if spec.startswith(("mcp:", "remote:")) else ()


def _of_scheme(scheme: str, rest: str, settings: Mapping[str, Any]) -> type[Env]:
    """The class that a scheme makes of what follows its colon."""
    if not rest:
        raise EnvNotFound(f'nothing follows "{scheme}:"; write what it names, as in docs/environments.md')
    module, _, function = _SCHEMES[scheme].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(rest, settings)
    except ModuleNotFoundError as error:
        if scheme not in _EXTRAS or (error.name or "").startswith("agentrl"):
            raise
        raise EnvError(
            f"{scheme}:{rest} needs the package {error.name}: pip install '{_EXTRAS[scheme]}'"
        ) from error


def load_file(path: Path) -> ModuleType:
    """The module that a file of a user's is; imported once.

    Raises:
        EnvNotFound: there is no such file.
        EnvError: it raised while it was imported; names file and line.
    """
    if not path.is_file():
        raise EnvNotFound(f"no file {path} (looked in {Path.cwd()})")
    resolved = path.resolve()
    # A name of its own per path: two files called env.py must not replace each other in sys.modules.
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    module_name = f"agentrl_env_{resolved.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, resolved)
    if spec is None or spec.loader is None:
        raise EnvNotFound(f"{path} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(resolved.parent))  # so that the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if ends_caller(error):
            raise
        where = place(error)
        raise EnvError(f"{path} raised while it was imported: {error_text(error)} ({where})") from error
    finally:
        sys.path.remove(str(resolved.parent))
    return module


def _class_of(module: ModuleType, name: str, where: str) -> type[Env]:
    own = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Env) and value.__module__ == module.__name__
    }
    if name:
        value = getattr(module, name, None)
        if isinstance(value, type) and issubclass(value, Env):
            return value
        raise EnvNotFound(f"{where} has no Env class {name!r}; it defines: {', '.join(own) or 'none'}")
    if len(own) == 1:
        return next(iter(own.values()))
    if not own:
        raise EnvNotFound(f"{where} defines no Env class; write `class MyEnv(Env): ...` in it")
    raise EnvNotFound(
        f"{where} defines several Env classes ({', '.join(own)}); say which: {where}:{next(iter(own))}"
    )


def _from_module(spec: str) -> type[Env]:
    module_name, _, name = spec.partition(":")
    if module_name == "__main__" and not hasattr(sys.modules["__main__"], name):
        raise EnvNotFound(
            f"{spec} was defined in a notebook or a program, and only there it is known: hand it in again "
            f"(in Python: agentrl.resume(folder, env={name}))"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        near = difflib.get_close_matches(module_name, _SCHEMES, n=1)
        hint = f"did you mean {near[0]}:{name}? " if near else ""
        raise EnvNotFound(
            f"no module {error.name!r} for the environment {spec!r}; {hint}schemes are {', '.join(_SCHEMES)}"
        ) from error
    return _class_of(module, name, module_name)
