"""`agentrl`: finds the command, runs it, and turns errors made on purpose into one clear message.

Exit codes: 0 done, 1 an error with a message, 2 wrong usage, 130 interrupted (the run can be resumed).
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import platform
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from agentrl import __version__
from agentrl.cluster.event_loop import ProcessEnd
from agentrl.errors import AgentRLError, Interrupted

COMMANDS = {
    "demo": "a small model learns to use Python, on this machine, in a few minutes",
    "train": "train a model in an environment, or resume a run",
    "eval": "measure a model, a run or an endpoint on a data set",
    "compare": "compare two evaluations problem by problem",
    "sft": "supervised warm start on written traces",
    "view": "look at a run in the browser",
    "runs": "list runs, newest first",
    "init": "write a small project, or an environment file, to start from",
    "parts": "list what settings may name: losses, estimators, samplers, ... and parts of your own",
    "check": "try an environment on scripted policies before training on it",
    "doctor": "what this machine can run, and what it cannot",
    "launch": "print the file that starts a run on SLURM or Kubernetes",
    "export": "copy a run's weights as a Hugging Face folder",
    "sandbox": "isolated Python: doctor, run, serve, bench",
    "serve": "offer an environment's tools as an MCP server, on standard streams",
    "completion": "a script that completes commands in a shell",
}


EXTRAS = {
    "train": ("torch", "transformers", "safetensors", "accelerate", "peft"),
    "vllm": ("vllm",),
    "docker": ("docker",),
    "ray": ("ray",),
    "mcp": ("mcp", "httpx2"),
    "data": ("datasets", "pyarrow", "huggingface_hub"),
    "completion": ("shtab",),
}
"""Packages that are missing where an extra was not installed."""


def _terminate(*_: object) -> None:
    """As Ctrl-C: what is open is closed, and nothing half is left behind."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background ignores it
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a process of its own ends soon after."""
    if arguments is not None:
        return _main(list(arguments))
    end, code = ProcessEnd(), 1
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _main(sys.argv[1:])
    finally:
        end.begin(code)
    return code


def _main(arguments: list[str]) -> int:
    if platform.system() != "Linux":
        print(
            f"agentrl needs Linux: its sandbox is built on Linux namespaces. On {platform.system()}, "
            "run it in a Linux container or virtual machine (on Windows: WSL 2).",
            file=sys.stderr,
        )
        return 1
    # Before torch is imported: its threads wait for each other asleep. Engine and learner share the
    # cores, and threads that spin take them from whoever is being waited for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if odd := next((argument for argument in arguments if not _is_text(argument)), None):
        shown = os.fsencode(odd).decode(errors="backslashreplace")
        print(f"error: the argument {shown} is not UTF-8; rename what it names", file=sys.stderr)
        return 1
    arguments, settings = split_settings(arguments)
    parser, command = command_parser(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if not hasattr(options, "handler"):
        parser.print_help()
        return 0 if not arguments else 2
    if settings and not hasattr(options, "takes_settings"):
        unknown = [*settings, *unknown]
    if unknown:
        command.error(_unrecognized(unknown, command))
    options.settings = [*getattr(options, "settings", ()), *settings]
    try:
        return options.handler(options) or 0
    except Interrupted as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        text = str(error) if _is_ours(error) else _of_the_machine(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        return 1


def _is_text(argument: str) -> bool:
    """Whether an argument can be written into settings and records."""
    try:
        return argument.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_ours(error: Exception) -> bool:
    """Whether the error was made on purpose: its message is for people, its stack is not."""
    return isinstance(error, AgentRLError) or any(
        kind.__name__ in ("EnvError", "SandboxError") for kind in type(error).__mro__
    )


def _of_the_machine(error: Exception) -> str | None:
    """What to say of an error of a file or of the installation; None for bugs, whose stack is wanted."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), "")
        remedy = f"pip install 'agentrl[{extra}]'" if extra else f"pip install {package}"
        return None if package.startswith("agentrl") else f"this needs the package {package}: {remedy}"
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        return f"cannot write: {error.strerror}; free some space and run the same command again"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(arguments of the command, settings): `--section.key=value`, or `--section.key` and its value.

    No option of a command has a dot in its name, and what a setting's value looks like is no business of
    the parser, which takes `17` and text with blanks for arguments of the command.
    """
    ours: list[str] = []
    settings: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, _ = argument.partition("=")
        if not name.startswith("--") or "." not in name:
            ours.append(argument)
            continue
        settings.append(argument)
        if not equals and rest:
            settings.append(rest.pop(0))
    return ours, settings


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line; the usage of a command of forty options would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help shows its usage)\n")


def _unrecognized(unknown: Sequence[str], command: argparse.ArgumentParser) -> str:
    """What is not known, and the option or setting that it resembles."""
    from agentrl.config.tree import all_keys

    text = f"unrecognized arguments: {' '.join(unknown)}"
    first = unknown[0].partition("=")[0]
    known = [name for action in command._actions for name in action.option_strings]
    if (tree := command.get_default("takes_settings")) is not None:
        wanted = first.lstrip("-").replace("-", "_")
        setting = next((key for key in all_keys(tree) if key.rpartition(".")[2] == wanted), "")
        if setting:
            return f"{text}; did you mean --{setting}?"
    near = difflib.get_close_matches(first, known, n=1)
    return f"{text}; did you mean {near[0]}?" if near else text


def command_parser(arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser of `agentrl`, and that of the command that was asked for."""
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser, commands = _parser_of({wanted} if wanted else set())
    return parser, commands.get(wanted or "", parser)


def whole_parser() -> argparse.ArgumentParser:
    """The parser of `agentrl` with all of every command."""
    return _parser_of(set(COMMANDS))[0]


def _parser_of(wanted: set[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of `agentrl`, and those of the commands that are wanted: only these are imported."""
    parser = _Parser(
        prog="agentrl",
        description="Asynchronous reinforcement learning for language-model agents that use tools.",
    )
    parser.add_argument("--version", action="version", version=f"agentrl {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        if name in wanted:
            importlib.import_module(f"agentrl.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser, {name: subparsers.choices[name] for name in wanted & set(COMMANDS)}


if __name__ == "__main__":
    sys.exit(main())
