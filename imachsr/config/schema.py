"""The settings of one training run, checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, ValidationError

from imachsr.config.training import Compute, Optimizer, Recovery, Scoring, Settings
from imachsr.core.entropy import ChannelNormEntropy, Regularizer
from imachsr.core.losses import Brier, SideLoss
from imachsr.core.losses.union import ALIASES
from imachsr.core.objective import Heterogeneity, Objective
from imachsr.core.output import CrossEntropy, OutputLoss
from imachsr.core.schedules import Constant, Profile, Schedule
from imachsr.core.selection import AutoStandard, Standard
from imachsr.data import DatasetSpec, Scenes
from imachsr.data.subset import Subset
from imachsr.data.transforms import Augment
from imachsr.models import ModelSpec, SmpModel

SCORED_ON = ("data", "compute", "output_loss")
"""Parts of a run that may be others where a trained model is scored."""


class ConfigError(ValueError):
    """A mistake in what the user wrote; the message is for them."""


@dataclass(frozen=True, kw_only=True)
class ImportedPart:
    """The user's own standard, side loss or output loss; in YAML ``import: package.module:name`` with arguments beside it.

    A standard is a callable ``trace -> layer addresses``, an output loss a callable ``(output, labels, ignore_index=...) -> scalar``; a function is
    called with the arguments every time, a class is called with them once, for an object that does it. A side loss is what a class or factory gives
    for the arguments.

    Args:
        path: ``package.module:name``.
        kwargs: The arguments.
    """

    kind: Literal["import"] = "import"
    path: str
    kwargs: dict[str, Any] = field(default_factory=dict)


def near(name: object, known: list[str]) -> str:
    """Phrase that names what the user may have meant; all of them when there are few."""
    close = get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(map(repr, close))}" if close else f"known: {', '.join(map(repr, known))}"


def normalized(value: Any) -> Any:
    """A name, or a mapping with ``import``, as the mapping with ``kind`` that it stands for."""
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, Mapping) and value.get("kind", "import") == "import" and ("import" in value or "kind" in value):
        given = dict(value)
        given.pop("kind", None)
        inner = given.pop("kwargs", {})
        # Beside `import`, a path is an argument like any other.
        path = given.pop("import") if "import" in given else given.pop("path", None)
        return {"kind": "import", "path": path, "kwargs": {**(inner if isinstance(inner, Mapping) else {"kwargs": inner}), **given}}
    return value


def _member(union: Any) -> BeforeValidator:
    """Checks kind and keys of a mapping that describes one member of a union of dataclasses; pydantic then picks the member by kind."""
    members = {next(f.default for f in fields(m) if f.name == "kind"): m for m in get_args(union)}

    def check(value: Any) -> Any:
        value = normalized(value)
        if not isinstance(value, Mapping):
            return value
        kind = value.get("kind")
        if isinstance(kind, str) and ALIASES.get(kind) in members:
            kind = ALIASES[kind]
            value = {**value, "kind": kind}
        if not isinstance(kind, str) or kind not in members:
            raise ValueError(f"`kind` must be one of {', '.join(map(str, members))}, but got {kind!r}; {near(kind, list(map(str, members)))}")
        known = [f.name for f in fields(members[kind])]
        for key in value:
            if key not in known:
                raise ValueError(f"{key!r} is no setting of {kind!r}; {near(key, known)}")
        return dict(value)

    return BeforeValidator(check)


_StandardSpec = Annotated[Standard | ImportedPart, Field(discriminator="kind"), _member(Standard | ImportedPart)]
_SideLossSpec = Annotated[SideLoss | ImportedPart, Field(discriminator="kind"), _member(SideLoss | ImportedPart)]
_EntropySpec = Annotated[Regularizer, Field(discriminator="kind"), _member(Regularizer)]
_OutputLossSpec = Annotated[OutputLoss | ImportedPart, Field(discriminator="kind"), _member(OutputLoss | ImportedPart)]
_ScheduleSpec = Annotated[Schedule, Field(discriminator="kind"), _member(Schedule)]
_ModelSpec = Annotated[ModelSpec, Field(discriminator="kind"), _member(ModelSpec)]
_DatasetSpec = Annotated[DatasetSpec, Field(discriminator="kind"), _member(DatasetSpec)]


class ByDepth(Settings):
    """One side loss for the first taps in execution order, and another for the rest.

    Attributes:
        early: Of the first ``share`` of the taps, rounded down, but at least one.
        late: Of the others.
        share: In (0, 1).
    """

    kind: Literal["by_depth"] = "by_depth"
    early: _SideLossSpec
    late: _SideLossSpec
    share: float = Field(0.5, gt=0, lt=1)


def _losses_tag(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "each"
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "by_depth" if kind == "by_depth" else "one"


_LossesSpec = Annotated[
    Annotated[_SideLossSpec, Tag("one")]
    | Annotated[tuple[_SideLossSpec, ...], Field(min_length=1), Tag("each")]
    | Annotated[ByDepth, Tag("by_depth")],
    Discriminator(_losses_tag),
]


class Method(Settings):
    """Intermediate supervision; with ``alpha`` and ``beta`` 0 the model is trained by its output alone.

    Attributes:
        standard: Which layers.
        loss: Side loss of all taps, a list with one a tap, or ``by_depth`` with an ``early`` and a ``late`` one.
        alpha: Total weight >= 0 of the side losses, shared by the taps.
        entropy: Regularizer of the tapped features, or null.
        beta: Total weight >= 0 of the entropy terms, shared by the taps.
        heterogeneity: strict, warn or off, about a side loss of the output loss's family.
        profile: How the taps share alpha and beta: uniform, exp (2^-(M-m)) or linear_depth (m), in execution order.
        schedule: Factor of both over the training: constant, warmup, linear, cosine or stop_at.
        grad_ratio: Gradient of a side loss at its tap over that of everything else there, > 0, followed by the weights; null: fixed weights.
    """

    standard: _StandardSpec = AutoStandard()
    loss: _LossesSpec = Brier()
    alpha: float = Field(Objective.alpha, ge=0, allow_inf_nan=False)
    entropy: _EntropySpec | None = ChannelNormEntropy()
    beta: float = Field(Objective.beta, ge=0, allow_inf_nan=False)
    heterogeneity: Heterogeneity = "warn"
    profile: Profile = "uniform"
    schedule: _ScheduleSpec = Constant()
    grad_ratio: float | None = Field(None, gt=0, allow_inf_nan=False)


class Run(Settings):
    """One training run."""

    name: str = Field("run", min_length=1)
    seed: int = Field(0, ge=0, lt=2**32)
    data: _DatasetSpec = Scenes()
    subset: Subset = Subset()
    model: _ModelSpec = SmpModel()
    method: Method = Method()
    output_loss: _OutputLossSpec = CrossEntropy()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    compute: Compute = Compute()
    scoring: Scoring = Scoring()
    recovery: Recovery = Recovery()

    @property
    def is_output_only(self) -> bool:
        """Whether nothing but the output is supervised."""
        return self.method.alpha == 0 and (self.method.beta == 0 or self.method.entropy is None)


_NOTHING = ("none", "off", "no", "false", "nothing")
_BOUND = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def validate(model: type[BaseModel], raw: Any) -> Any:
    """The settings that a plain structure describes.

    Raises:
        ConfigError: One line a mistake, each with the key.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"settings must be a mapping of keys to values, but got {type(raw).__name__}")
    try:
        found = model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(_line(model, raw, dict(item)) for item in error.errors()))) from None
    if wrong := list(_taken_for_numbers(raw, found.model_dump(by_alias=True), ())):
        raise ConfigError("\n".join(wrong))
    return found


def _taken_for_numbers(raw: Any, found: Any, path: tuple[str, ...]) -> Iterator[str]:
    """A line for each true and false where a number belongs, which pydantic reads as 1 and 0."""
    if isinstance(raw, bool):
        if not isinstance(found, bool) and isinstance(found, (int, float)):
            yield f"{'.'.join(path)}: must be a number, but got {str(raw).lower()}"
    elif isinstance(raw, Mapping) and isinstance(found, Mapping):
        for key in raw.keys() & found.keys():
            yield from _taken_for_numbers(raw[key], found[key], (*path, str(key)))
    elif isinstance(raw, (list, tuple)) and isinstance(found, (list, tuple)):
        for index, (one, other) in enumerate(zip(raw, found, strict=False)):
            yield from _taken_for_numbers(one, other, (*path, str(index)))


def _line(model: type[BaseModel], raw: Any, item: dict[str, Any]) -> str:
    path, where = [], raw
    for part in item["loc"]:
        if isinstance(where, Mapping) and part in where or isinstance(where, (list, tuple)) and isinstance(part, int) and part < len(where):
            path.append(str(part))
            where = where[part]
        elif part == item["loc"][-1] and item["type"] in ("missing", "missing_argument"):
            path.append(str(part))
    key, kind, context = ".".join(path), item["type"], item.get("ctx", {})
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        if len(path) == 1 and key in Run.model_fields and "run" in model.model_fields:
            whole = ".".join([key, *_only_keys(where)])
            return f"{key}: a setting of the base run must begin with run., as in run.{whole}, but got {whole}"
        return f"{key}: is no setting; {near(path[-1], _keys(model, path[:-1]))}"
    if kind in ("missing", "missing_argument"):
        return f"{key}: must be given, but is missing"
    types = list(_types(model, path))
    given = item["input"]["kind"] if isinstance(item["input"], Mapping) and [*item["input"]] == ["kind"] else item["input"]
    null = "; write null to have none" if str(given).lower() in _NOTHING and type(None) in types else ""
    if kind == "value_error":
        return f"{key}: {context['error']}{null}"
    if kind in _BOUND:
        limit = next(iter(context.values()))
        name = next(part for part in reversed(path) if not part.isdigit())  # of a place in a list, the list's
        return f"{key}: `{name} {_BOUND[kind]} {limit:.10g}` must hold, but got {item['input']!r}{null}"
    if kind in ("tuple_type", "list_type"):
        lengths = [len(get_args(each)) for each in types if get_origin(each) is tuple and ... not in get_args(each)]
        such = ", ".join([str(item["input"])] * next(iter(lengths), 1))
        return f"{key}: must be a list, such as [{such}], but got {item['input']!r}{null}"
    message = item["msg"][0].lower() + item["msg"][1:]
    is_misread = kind == "string_type" and isinstance(item["input"], (bool, int, float))
    hint = f"""; text that YAML reads as {item["input"]!r} must stand in quotes, on a command line as {key}='"..."'""" if is_misread else ""
    return f"{key}: {message}, but got {item['input']!r}{hint}{null}"


def _only_keys(tree: Any) -> Iterator[str]:
    """Keys on the way down, as far as there is one: those of a dotted setting."""
    while isinstance(tree, Mapping) and len(tree) == 1:
        key, tree = next(iter(tree.items()))
        yield str(key)


def _types(model: Any, path: list[str]) -> Iterator[Any]:
    """What a key's value may be, in each class that has it."""
    names = [part for part in path if not part.isdigit()]  # a place in a list
    found = [model]
    for depth, name in enumerate(names, 1):
        hints = [get_type_hints(each, include_extras=True) for each in found]
        annotations = [own[field] for own in hints for field in (name, f"{name}_") if field in own]
        if depth == len(names):
            yield from (inner for each in annotations for inner in _alternatives(each))
        found = [each for annotation in annotations for each in _classes(annotation)]


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, of unions in it, and of what is annotated."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        yield from (inner for each in get_args(annotation) for inner in _alternatives(each))
    else:
        yield annotation


def _keys(model: Any, path: list[str]) -> list[str]:
    for part in (part for part in path if not part.isdigit()):  # a place in a list
        found = _classes(model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None)
        # Of a union's dataclasses, the kind and the keys are checked before.
        model = next((c for c in found if hasattr(c, "model_fields")), next(iter(found), None))
    if is_dataclass(model):
        return [f.name for f in fields(model)]
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _classes(annotation: Any) -> list[Any]:
    """Classes with fields anywhere in an annotation."""
    if isinstance(annotation, type) and (is_dataclass(annotation) or hasattr(annotation, "model_fields")):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _classes(inner)]
