"""Parts of a run that a setting names: of this package, registered, or a class in a user's file.

`loss.kind = "clipped"` is a part of this package, `loss.kind = "my.py:Name"` one in a file. A part is a class
or a function. A class may hold `Settings`, a dataclass whose fields are settings of the part's section, and
`requires`, a tuple of `REQUIREMENTS`. Both are read from the source without running it: a file of a loss
imports torch, and the process that reads settings must not.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from agentrl.config import ranges
from agentrl.config.ranges import check_ranges
from agentrl.errors import AgentRLError, ConfigError, PartError
from agentrl_envs import EnvError
from agentrl_envs.raised import error_text, place
from agentrl_envs.registry import load_file, name_of

T = TypeVar("T")

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "estimator": {
        "spo": "agentrl.algorithms.advantage:SPOEstimator",
        "grpo": "agentrl.algorithms.advantage:GRPOEstimator",
        "no_baseline": "agentrl.algorithms.advantage:NoBaselineEstimator",
        "rloo": "agentrl.algorithms.group_estimators:RLOOEstimator",
        "gdpo": "agentrl.algorithms.group_estimators:GDPOEstimator",
        "gdpo_value": "agentrl.algorithms.part_values:GDPOValueEstimator",
        "dgpo": "agentrl.algorithms.group_estimators:DGPOEstimator",
        "dgpo_value": "agentrl.algorithms.value_estimators:DGPOValueEstimator",
        "bnpo": "agentrl.algorithms.value_estimators:BNPOEstimator",
        "aspo": "agentrl.algorithms.value_estimators:ASPOEstimator",
        "d3s": "agentrl.algorithms.selection:D3SEstimator",
        "turns": "agentrl.algorithms.turn_credit:TurnEstimator",
        "agents": "agentrl.algorithms.agent_credit:AgentEstimator",
    },
    "loss": {
        "clipped": "agentrl.learner.losses.clipped:ClippedLoss",
        "cross_entropy": "agentrl.learner.losses.cross_entropy:CrossEntropyLoss",
        "cispo": "agentrl.learner.losses.soft_clip:CISPOLoss",
        "minpro": "agentrl.learner.losses.soft_clip:MinPROLoss",
        "gspo": "agentrl.learner.losses.sequence_ratio:GSPOLoss",
        "bpo": "agentrl.learner.losses.bounded:BPOLoss",
        "real": "agentrl.learner.losses.labels:REALLoss",
        "gtpo": "agentrl.learner.losses.entropy:GTPOLoss",
        "hapo": "agentrl.learner.losses.entropy:HAPOLoss",
        "d3s_tokens": "agentrl.learner.losses.entropy:D3STokensLoss",
        "score_centering": "agentrl.learner.losses.centering:CenteredLoss",
        "tbrm": "agentrl.learner.losses.bellman:TBRMLoss",
        "distillation": "agentrl.learner.losses.distillation:DistillationLoss",
    },
    "tracker": {
        "spo": "agentrl.algorithms.value_tracker:ValueTracker",
        "kalman": "agentrl.algorithms.kalman_tracker:KalmanTracker",
        "trend": "agentrl.algorithms.trend_tracker:TrendTracker",
    },
    "sampler": {
        "priority": "agentrl.algorithms.prompt_sampler:PriorityWeights",
        "deviation": "agentrl.algorithms.prompt_sampler:DeviationWeights",
        "uniform": "agentrl.algorithms.prompt_sampler:UniformWeights",
        "gaussian": "agentrl.algorithms.curriculum:GaussianWeights",
    },
    "shaper": {
        "otc": "agentrl.algorithms.shapers:OTCShaper",
        "soft_length": "agentrl.algorithms.shapers:SoftLengthShaper",
    },
    "renderer": {
        "code": "agentrl.renderers.code:CodeRenderer",
        "hermes": "agentrl.renderers.hermes:HermesRenderer",
        "native": "agentrl.renderers.native:NativeRenderer",
    },
    "engine": {
        "transformers": "agentrl.inference.embedded.engine:TransformersPolicy",
        "vllm": "agentrl.inference.vllm.engine:VLLMPolicy",
    },
    "controller": {
        "effective_share": "agentrl.algorithms.controllers:EffectiveShare",
        "target_kl": "agentrl.algorithms.controllers:TargetKL",
        "target_entropy": "agentrl.algorithms.controllers:TargetEntropy",
        "accuracy_kl": "agentrl.algorithms.gates:AccuracyKL",
        "improvement_gate": "agentrl.algorithms.gates:ImprovementGate",
    },
    "listener": {},
    "metric": {},
    "aggregator": {
        "tokens": "agentrl.learner.aggregators:token_mean",
        "sequences": "agentrl.learner.aggregators:sequence_mean",
        "constant": "agentrl.learner.aggregators:ConstantSum",
    },
}
"""Families of parts, and where the source of each of this package stands."""

REQUIREMENTS = {
    "baselines": "the value of each prompt, from the tracker",
    "deviations": "the standard deviation of each prompt's scores, from the tracker",
    "groups": "several episodes of each prompt (estimator.group_size of at least 2)",
    "reference": "log-probabilities of the weights that the run began with",
    "proximal": "log-probabilities of the whole batch under the weights before its first step",
    "teacher": "log-probabilities of other weights or of a server, which the setting loss.teacher names",
    "behaviour_top": "log-probabilities of the sampler's likeliest tokens (as many as loss.behaviour_top_k)",
    "prompt_features": "the sampler's hidden state at the end of each prompt (feature_tokens, feature_layer)",
    "gold": "a gold answer in every row (the column `answer`)",
}
"""What a part may require of a run."""

_REGISTERED: dict[tuple[str, str], Any] = {}


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a part says of itself."""

    family: str
    kind: str
    settings: type | None = None
    """Dataclass of its own settings."""
    requires: tuple[str, ...] = ()
    text: str = ""
    """Its docstring."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What each of its settings means."""
    source: str = ""
    """Digest of its source; empty where there is none to be read."""

    def __str__(self) -> str:
        return f"the {self.family} {self.kind}"

    @property
    def provenance(self) -> str:
        """The paragraph `Source: ...` of its docstring, without that word; empty where there is none."""
        paragraphs = inspect.cleandoc(self.text).split("\n\n")
        found = next((one for one in paragraphs if one.startswith("Source: ")), "")
        return " ".join(found.removeprefix("Source: ").split())

    def defaults(self) -> dict[str, Any]:
        """Its settings as they are where nothing is said; those without a default are left out."""
        if self.settings is None:
            return {}
        return {one.name: _default(one) for one in fields(self.settings) if not _is_needed(one)}

    def needed(self) -> list[str]:
        """Settings that have no default."""
        return [one.name for one in fields(self.settings) if _is_needed(one)] if self.settings else []


def _is_needed(one: dataclasses.Field[Any]) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _default(one: dataclasses.Field[Any]) -> Any:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def register(family: str, kind: str) -> Callable[[T], T]:
    """Give a part a name that settings can use: `@register("estimator", "median")`.

    For notebooks and programs; a settings file can name a part by its file, without registering it.

    Args:
        family: one of `BUILT_IN`.
        kind: the name.

    Raises:
        ConfigError: no such family, or a part of this package has this name.
    """
    if kind in _known(family):
        raise ConfigError(f"register({family!r}, {kind!r}): a part of agentrl has this name")

    def add(part: T) -> T:
        _REGISTERED[family, kind] = part
        return part

    return add


def hold(family: str, part: Any, kind: str = "") -> str:
    """Let settings name a part that is handed in ready made: a class, a function, or an object.

    Args:
        family: one of `BUILT_IN`.
        part: what is handed in.
        kind: the name it goes by; empty takes where it was defined (`agentrl_envs.registry.name_of`).
    """
    _known(family)
    kind = kind or name_of(part)
    _REGISTERED[family, kind] = part
    return kind


def kinds(family: str) -> tuple[str, ...]:
    """Names of a family's parts, registered ones included."""
    return (*_known(family), *(name for of, name in _REGISTERED if of == family))


def _known(family: str) -> Mapping[str, str]:
    if family not in BUILT_IN:
        raise ConfigError(f"there is no family of parts {family!r}; there are {', '.join(BUILT_IN)}")
    return BUILT_IN[family]


def declared(family: str, kind: str) -> Declaration:
    """What a part says of itself; nothing is imported for it.

    Raises:
        ConfigError: there is no such part, or its declaration cannot be read; names file and line.
    """
    if (family, kind) in _REGISTERED:
        return _of_object(family, kind, _REGISTERED[family, kind])
    path, name = _place(family, kind)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"the {family} {kind!r}: cannot read {path}: {error.strerror}") from error
    return _read(family, kind, path, name, changed)


def load(family: str, kind: str) -> Any:
    """The class or function of a part; imports its file.

    Raises:
        ConfigError: there is no such part, or its file raised while it was imported.
    """
    if (family, kind) in _REGISTERED:
        return _REGISTERED[family, kind]
    path, name = _place(family, kind)
    spec = _known(family).get(kind)
    try:
        module = importlib.import_module(spec.partition(":")[0]) if spec else load_file(path)
        return getattr(module, name)
    except (EnvError, AttributeError) as error:
        raise ConfigError(f"the {family} {kind!r}: {error}") from error


def make(family: str, kind: str, own: Mapping[str, Any], *context: Any) -> Any:
    """A part: a function as it is; a class called with its settings, where it has some, and with `context`.

    Raises:
        ConfigError: there is no such part, or it refuses its settings.
    """
    part = load(family, kind)
    if not isinstance(part, type):
        return part
    with blame(family, kind):
        kind_of = _settings_of(part)
        known = () if kind_of is None else tuple(one.name for one in fields(cast("Any", kind_of)))
        for name in own:
            if name not in known:
                raise ConfigError(f"{family}.{name} is no setting of the {family} {kind!r}: {known}")
        if kind_of is not None:
            values = cast("Any", kind_of)(**own)
            check_ranges(values, family)
            context = (values, *context)
        _check_call(part, context, f"the {family} {kind!r}")
        return part(*context)


def _check_call(part: type, given: tuple[Any, ...], what: str) -> None:
    try:
        inspect.signature(part).bind(*given)
    except TypeError as error:
        shown = ", ".join(type(one).__name__ for one in given)
        raise ConfigError(f"{what} is made as {part.__name__}({shown}): {error}") from error
    except ValueError:  # classes of C have no signature
        pass


def _settings_of(part: Any) -> type[Any] | None:
    """The class `Settings` of a part; who writes fields alone means a dataclass."""
    kind = cast("type[Any] | None", getattr(part, "Settings", None))
    return kind if kind is None or dataclasses.is_dataclass(kind) else dataclass(frozen=True)(kind)


@contextlib.contextmanager
def blame(family: str, kind: str) -> Iterator[None]:
    """Name the part in what it raises.

    Raises:
        PartError: with the file and line where the part raised; errors of agentrl's own pass as they are.
    """
    try:
        yield
    except AgentRLError:
        raise
    except Exception as error:
        raise PartError(f"the {family} {kind!r} raised {error_text(error)} ({place(error)})") from error


def beside(kind: str, folder: Path) -> str:
    """A kind whose file stands beside the settings file, with that folder; others as they are."""
    path, colon, name = (kind, "", "") if kind.endswith(".py") else kind.rpartition(":")
    there = folder / path
    if path.endswith(".py") and not Path(path).is_file() and there.is_file():
        return f"{there}{colon}{name}"
    return kind


def _module_file(module: str) -> Path:
    """The file of a module of agentrl; only the package at its top is imported."""
    top, *rest = module.split(".")
    return Path(str(importlib.import_module(top).__file__)).parent.joinpath(*rest).with_suffix(".py")


def _place(family: str, kind: str) -> tuple[Path, str]:
    """File and name of a part."""
    spec = _known(family).get(kind)
    if spec is not None:
        module, _, name = spec.partition(":")
        return _module_file(module), name
    path, colon, name = kind.rpartition(":")
    if colon and path.endswith(".py"):
        return Path(path), name
    if kind.endswith(".py"):
        raise ConfigError(f"the {family} {kind!r}: say which class or function of it, {kind + ':Name'!r}")
    if colon:
        file = Path(f"{path}.py")
        hint = f"; a class of the file is {f'{file}:{name}'!r}" if file.is_file() else ""
        raise ConfigError(
            f"the {family} {kind!r} was defined in a notebook or a program, and only there it is known: hand "
            f"it in again (in Python: agentrl.resume(folder, {family}=...)){hint}"
        )
    near = difflib.get_close_matches(kind, kinds(family), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"there is no {family} {kind!r}; {hint}known: {', '.join(kinds(family)) or 'none by name'}; "
        f'or "file.py:Name" takes it from a file'
    )


def behaviour_top_k(kind: str, own: Mapping[str, Any]) -> int:
    """Likeliest tokens of the sampler that a loss is shown at each place; 0 where it requires none."""
    found = declared("loss", kind)
    if "behaviour_top" not in found.requires:
        return 0
    return int((found.defaults() | dict(own)).get("behaviour_top_k", 20))


def parsed(text: str, name: str) -> ast.Module:
    """The syntax tree of a source text; `name` stands in its errors."""
    try:
        return ast.parse(text, name)
    except SystemError:  # CPython 3.11 now and then, where something else runs in between (gh-106905)
        return ast.parse(text, name)


def prompt_features(kind: str, own: Mapping[str, Any]) -> dict[str, int] | None:
    """`tokens` and `layer` of the hidden states that an estimator is shown, as far as it has such settings.

    None where it requires none.
    """
    found = declared("estimator", kind)
    if "prompt_features" not in found.requires:
        return None
    said = found.defaults() | dict(own)
    return {name: int(said[f"feature_{name}"]) for name in ("tokens", "layer") if f"feature_{name}" in said}


@lru_cache(maxsize=256)
def _read(family: str, kind: str, path: Path, name: str, changed: int) -> Declaration:
    """Read a declaration; `changed` is when the file was, so that a file changed since is read again."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = parsed(text, str(path))
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"the {family} {kind!r}: cannot read {path}: {error}") from error
    found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(found) or 'none'}"
        raise ConfigError(f"the {family} {kind!r}: {path} has no class or function {name!r}; {hint}")
    node = found[name]
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    if isinstance(node, ast.FunctionDef):
        return Declaration(family, kind, text=ast.get_docstring(node) or "", source=digest)
    part = _Class(node, tree, path)
    try:
        settings, texts = _settings_in(part)
        requires = next((wants for one in _lineage(part) if (wants := _requires(one))), ())
    except (OSError, ValueError, SyntaxError, RecursionError) as error:  # of a file it goes on from
        raise ConfigError(f"the {family} {kind!r}: cannot read what it goes on from: {error}") from error
    return Declaration(
        family,
        kind,
        settings=settings,
        requires=requires,
        text=ast.get_docstring(node) or "",
        texts=texts,
        source=digest,
    )


@dataclass(frozen=True, slots=True)
class _Class:
    """A class as its source has it."""

    node: ast.ClassDef
    tree: ast.Module
    path: Path

    @property
    def own_settings(self) -> _Class | None:
        found = (one for one in self.node.body if isinstance(one, ast.ClassDef) and one.name == "Settings")
        return next((_Class(one, self.tree, self.path) for one in found), None)


def _lineage(one: _Class) -> Iterator[_Class]:
    """A class and the bases that can be read: of the same file, of one beside it, or of agentrl."""
    yield one
    for base in one.node.bases:
        if (found := _class_named(base, one)) is not None:
            yield from _lineage(found)


def _class_named(expression: ast.expr, seen_from: _Class) -> _Class | None:
    """The class that a name means in a file; None where its source is somewhere else."""
    if isinstance(expression, ast.Attribute) and expression.attr == "Settings":
        owner = _class_named(expression.value, seen_from)
        found = () if owner is None else (one.own_settings for one in _lineage(owner))
        return next((one for one in found if one is not None), None)
    if not isinstance(expression, ast.Name):
        return None
    for one in seen_from.tree.body:
        if isinstance(one, ast.ClassDef) and one.name == expression.id:
            return _Class(one, seen_from.tree, seen_from.path)
        if isinstance(one, ast.ImportFrom) and one.module and not one.level:
            imported = {alias.asname or alias.name: alias.name for alias in one.names}
            beside = seen_from.path.parent / f"{one.module.replace('.', '/')}.py"
            path = _module_file(one.module) if one.module.startswith("agentrl") else beside
            if expression.id in imported and path.is_file():
                tree = parsed(path.read_text(encoding="utf-8"), str(path))
                name = ast.Name(imported[expression.id])
                return _class_named(name, _Class(seen_from.node, tree, path))
    return None


def _settings_in(part: _Class) -> tuple[type | None, dict[str, str]]:
    """The settings of a class, inherited ones too, and what each of them means."""
    node = next((own for one in _lineage(part) if (own := one.own_settings) is not None), None)
    if node is None:
        return None, {}
    made, texts = object, dict[str, str]()
    for one in reversed([node, *_bases_of_settings(node)]):
        made = _settings_class(one.node, one.path, made)
        texts |= field_texts(one.node)
    return made, texts


def _bases_of_settings(one: _Class) -> Iterator[_Class]:
    """The classes that a class `Settings` goes on from.

    Raises:
        ConfigError: the source of one is somewhere else.
    """
    for base in one.node.bases[:1]:
        found = _class_named(base, one)
        if found is None:
            raise ConfigError(
                f"{one.path}, line {one.node.lineno}: the settings of a part go on from "
                f"{ast.unparse(base)!r}, whose source is not in this file, beside it or in agentrl: write "
                "its fields out"
            )
        yield found
        yield from _bases_of_settings(found)


def _of_object(family: str, kind: str, part: Any) -> Declaration:
    return Declaration(
        family,
        kind,
        settings=_settings_of(part) if isinstance(part, type) else None,  # an object has its own
        requires=_checked(tuple(getattr(part, "requires", ())), f"the {family} {kind!r}"),
        text=inspect.getdoc(part) or "",
        source=_source_of(kind, part),
    )


def _source_of(kind: str, part: Any) -> str:
    """Digest of the source of a part that is at hand; empty where there is none to be read."""
    path = kind.rpartition(":")[0]
    try:
        if path.endswith(".py"):
            text = Path(path).read_text(encoding="utf-8")
        else:
            text = inspect.getsource(
                part if isinstance(part, type) or inspect.isroutine(part) else type(part)
            )
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _requires(part: _Class) -> tuple[str, ...]:
    for one in part.node.body:
        targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
        if isinstance(one, ast.Assign | ast.AnnAssign) and any(
            isinstance(target, ast.Name) and target.id == "requires" for target in targets
        ):
            where = f"{part.path}, line {one.lineno}"
            try:
                requires = tuple(ast.literal_eval(one.value or ast.Tuple([])))
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{where}: `requires` must be a tuple of texts as they are written"
                ) from error
            return _checked(requires, where)
    return ()


def _checked(requires: tuple[str, ...], where: str) -> tuple[str, ...]:
    for one in requires:
        if one not in REQUIREMENTS:
            raise ConfigError(
                f"{where}: a part cannot require {one!r}; it can require {', '.join(map(repr, REQUIREMENTS))}"
            )
    return requires


_NAMES: Mapping[str, Any] = {
    "Annotated": Annotated,
    "Any": Any,
    "Literal": Literal,
    "dataclass": dataclass,
    "field": field,
    **{name: value for name, value in vars(ranges).items() if name[0].isupper()},
}
"""What the class `Settings` of a part may use besides Python's own types."""


def _settings_class(node: ast.ClassDef, path: Path, base: type) -> type:
    """The class `Settings` of a part, made from its source alone."""
    # Its decorators are not ours to run, and its base was read before.
    plain = ast.ClassDef(
        node.name, [ast.copy_location(ast.Name("_base", ast.Load()), node)], [], node.body, []
    )
    module = ast.Module([ast.copy_location(plain, node)], [])
    space: dict[str, Any] = {**_NAMES, "__name__": str(path), "_base": base}
    try:
        # The file's own rules for annotations do not hold here: names are looked up now, with their line.
        exec(compile(module, str(path), "exec", dont_inherit=True), space)
        return dataclass(frozen=True)(space[node.name])
    except Exception as error:  # it is somebody else's code
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        line = (
            traceback.tb_lineno if traceback and traceback.tb_frame.f_code.co_filename == str(path) else None
        )
        raise ConfigError(
            f"{path}, line {line or node.lineno}: the settings of a part cannot be read: {error}; they may "
            "use Python's own types, Literal, Annotated and the names of agentrl.config.ranges"
        ) from error


def field_texts(node: ast.ClassDef) -> dict[str, str]:
    """The text under each field of a class."""
    texts: dict[str, str] = {}
    for one, text in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[one.target.id] = " ".join(str(text.value.value).split())
    return texts


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """The function of `file.py:function`.

    Raises:
        ConfigError: no such file or function.
    """
    path, _, name = spec.rpartition(":")
    if not path or not Path(path).is_file():
        raise ConfigError(f"{what}{spec}: want {what}file.py:function, with a file that exists")
    try:
        function = getattr(load_file(Path(path)), name, None)
    except EnvError as error:
        raise ConfigError(f"{what}{spec}: {error}") from error
    if not callable(function):
        raise ConfigError(f"{path} has no function {name!r}")
    return function
