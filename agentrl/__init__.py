"""Asynchronous reinforcement learning for language-model agents that use tools.

From Python as from the command line: `Env` and `tool` make an environment, `run_episode` plays one episode,
`evaluate` measures, `train`, `resume` and `replay` make runs, `episodes` reads what they recorded. All of
them block until they are done, in a notebook too (`docs/python.md`). Importing this package imports neither
torch nor transformers; what needs them is imported when it is first used.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentrl_envs import Env, EnvError, Finish, ToolError, function_env, tool
from agentrl_envs import register as _register_env

if TYPE_CHECKING:
    from agentrl.api.episodes import ReadableEpisode, Token, episodes, run_episode
    from agentrl.api.evaluation import Evaluation, evaluate
    from agentrl.api.runs import Replayed, Run, load_settings, replay, resume, train
    from agentrl.config.settings import Settings
    from agentrl.episode import Episode
    from agentrl.errors import AgentRLError, ConfigError, Interrupted

__version__ = "0.1.0"

__all__ = [
    "AgentRLError",
    "ConfigError",
    "Env",
    "EnvError",
    "Episode",
    "Evaluation",
    "Finish",
    "Interrupted",
    "ReadableEpisode",
    "Replayed",
    "Run",
    "Settings",
    "Token",
    "ToolError",
    "__version__",
    "episodes",
    "evaluate",
    "function_env",
    "load_settings",
    "register",
    "replay",
    "resume",
    "run_episode",
    "tool",
    "train",
]

_PLACES = {
    "agentrl.api.episodes": ("ReadableEpisode", "Token", "episodes", "run_episode"),
    "agentrl.api.evaluation": ("Evaluation", "evaluate"),
    "agentrl.api.runs": ("Replayed", "Run", "load_settings", "replay", "resume", "train"),
    "agentrl.config.settings": ("Settings",),
    "agentrl.episode": ("Episode",),
    "agentrl.errors": ("AgentRLError", "ConfigError", "Interrupted"),
}
"""Where the names stand that are imported when they are first used."""


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(module), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
