"""Asynchronous reinforcement learning for language-model agents that use tools.

An environment is a class (`Env`, `tool`, `Finish`, `ToolError`) or a few functions (`function_env`), and may
have a name (`register`), and so may losses, estimators and other parts (`docs/parts.md`); everything else
is `agentrl train`, `agentrl eval` and `agentrl.training.train.train`. Importing this package imports neither
torch nor transformers.
"""

from collections.abc import Callable
from typing import Any

from agentrl_envs import Env, EnvError, Finish, ToolError, function_env, tool
from agentrl_envs import register as _register_env

__version__ = "0.1.0"

__all__ = [
    "Env",
    "EnvError",
    "Finish",
    "ToolError",
    "__version__",
    "function_env",
    "register",
    "tool",
]


def register(name: str, kind: Any = None, /) -> Callable[[Any], Any]:
    """Give an environment or a part a name that settings can use.

    Args:
        name: of an environment: `@register("chess")`, or `register("chess", Chess)`; or a family of parts.
        kind: the name of a part: `@register("estimator", "median")`; `agentrl parts` lists the families.

    Raises:
        EnvError: the class is no environment, or the name is taken.
        ConfigError: there is no such family, or the name is taken.

    Example:
        >>> @register("estimator", "halved")
        ... class Halved:
        ...     def __call__(self, batch):
        ...         return batch.scores / 2
    """
    if isinstance(kind, str):
        from agentrl.config import registry

        return registry.register(name, kind)
    return _register_env(name) if kind is None else _register_env(name, kind)
