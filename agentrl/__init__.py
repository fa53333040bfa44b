"""Asynchronous reinforcement learning for language-model agents that use tools.

An environment is a class (`Env`, `tool`, `Finish`, `ToolError`) or a few functions (`function_env`), and may
have a name (`register`); everything else is `agentrl train`, `agentrl eval` and
`agentrl.training.train.train`. Importing this package imports neither torch nor transformers.
"""

from agentrl_envs import Env, EnvError, Finish, ToolError, function_env, register, tool

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
