"""Every setting of a run and of a search, as their schemas know it."""

import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from imachsr.config.schema import ConfigError, Run, near
from imachsr.search.space import Search

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false"}
# What has no docstring of its own.
_MEANINGS = {
    "name": "Shown in tables; names the default folder of results.",
    "seed": "Of the weights, the order of samples and their augmentation.",
    "data": "Data set.",
    "model": "Network.",
    "output_loss": "Loss of the network's own output.",
    "augment": "Random changes of training samples.",
    "metric": "What is compared.",
    "selection": "How samples to select on are cut out of train.",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        of: run, search or study; in the YAML of the latter two, or over it, a run's keys begin with ``run.``.
        key: Dotted; N stands for an item's place in a list, NAME for its name.
        only_with: Kinds under which it exists, () for all.
        values: What it takes, in words.
        default: As in YAML, or "must be given".
        meaning: With its unit.
    """

    of: Literal["run", "search", "study"]
    key: str
    only_with: tuple[str, ...]
    values: str
    default: str
    meaning: str


def settings(prefix: str = "", *, beside: Mapping[str, type[BaseModel]] = types.MappingProxyType({})) -> list[Setting]:
    """All settings whose key is the prefix, or lies below it.

    Args:
        prefix: "" for all.
        beside: Further schemas that are listed too, by what they are of.

    Raises:
        ConfigError: If there is none; names the nearest.
    """
    found = [*_walk(Run, "run", ""), *_walk(Search, "search", "")]
    found += [each for of, model in beside.items() for each in _walk(model, of, "")]
    if not prefix:
        return found
    wanted = prefix.removeprefix("run.")
    chosen = [each for each in found if each.key == wanted or each.key.startswith(f"{wanted}.")]
    chosen = [each for each in chosen if each.of == "run"] if wanted != prefix else chosen
    if not chosen:
        known = {".".join(parts[: end + 1]) for each in found for parts in [each.key.split(".")] for end in range(len(parts))}
        raise ConfigError(f"a prefix must be a setting, or the beginning of some, but got {prefix!r}; {near(wanted, sorted(known))}")
    return chosen


def _walk(model: type[BaseModel], of: Any, above: str) -> Iterator[Setting]:
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        shown = field.alias or name
        key = f"{above}{shown}"
        default = MISSING if field.is_required() else field.default
        meaning = meanings.get(name) or _MEANINGS.get(shown, "")
        yield from _field(of, key, (), field.annotation, field.metadata, default, meaning)


def _field(of: Any, key: str, only_with: tuple[str, ...], annotation: Any, metadata: Any, default: Any, meaning: str) -> Iterator[Setting]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _walk(annotation, of, f"{key}.")
        return
    members = list(_members(annotation))
    if is_dataclass(annotation) and not _kind(annotation):
        yield from _dataclass(of, key, (annotation,))
        return
    if members:
        kinds = [_kind(member) for member in members]
        values = ", ".join([*("null" if kind is None else kind for kind in kinds), *(["or a list of them"] if _is_list(annotation) else [])])
        values += ", or null" if type(None) in _flat(annotation) else ""
        yield Setting(of=of, key=key, only_with=only_with, values=values, default=_kind(type(default)) or _text(default), meaning=meaning)
        yield from _dataclass(of, key, tuple(members))
        return
    yield Setting(of=of, key=key, only_with=only_with, values=_values(annotation, metadata), default=_text(default), meaning=meaning)
    for between, model in _inner(annotation):
        yield from _walk(model, of, f"{key}.{between}")


def _inner(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Schemas that a value holds, as it is, as items of a list (N. before their keys) or of a mapping (NAME.)."""
    for part in _flat(annotation):
        origin, between = get_origin(part), {tuple: "N.", dict: "NAME."}.get(get_origin(part), "")
        for each in get_args(part) if origin in (tuple, dict) else (part,):
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield between, each


def _dataclass(of: Any, key: str, members: tuple[Any, ...]) -> Iterator[Setting]:
    """Fields of the members of a union; one line for those that several members have alike."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for member in members:
        hints, meanings, kind = get_type_hints(member, include_extras=True), _meanings(member), _kind(member)
        for each in fields(member):
            if each.name == "kind" or kind == "import" and each.name == "kwargs":
                continue
            name = "import" if kind == "import" and each.name == "path" else each.name
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found.setdefault((name, _values(hints[each.name], ()), _text(default), meanings.get(each.name, "")), []).append(kind or "")
    for (name, values, default, meaning), kinds in found.items():
        only = () if len(kinds) == len(members) else tuple(kinds)
        yield Setting(of=of, key=f"{key}.{name}", only_with=only, values=values, default=default, meaning=meaning)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _flat(annotation: Any) -> list[Any]:
    """The parts of a union, without the annotations around them."""
    if get_origin(annotation) is Annotated:
        return _flat(get_args(annotation)[0])
    if _is_union(annotation):
        return [part for each in get_args(annotation) for part in _flat(each)]
    return [annotation]


def _members(annotation: Any) -> Iterator[Any]:
    yield from (part for part in _flat(annotation) if is_dataclass(part) and _kind(part))


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) is tuple for part in _flat(annotation))


def _kind(member: Any) -> str | None:
    return next((str(each.default) for each in fields(member) if each.name == "kind"), None) if is_dataclass(member) else None


def _values(annotation: Any, metadata: Any) -> str:
    """A type and its bounds in words."""
    parts = [_type(part) for part in _flat(annotation) if part is not type(None)]
    items = [*metadata, *_metadata(annotation)]
    bounds = [f"{sign} {getattr(item, name):.10g}" for item in items for name, sign in _BOUNDS.items() if getattr(item, name, None) is not None]
    words = " ".join([" or ".join(dict.fromkeys(parts)), *([", ".join(bounds)] if bounds else [])])
    return f"{words}, or null" if type(None) in _flat(annotation) else words


def _metadata(annotation: Any) -> list[Any]:
    """What is annotated of the single type of a union with None; of several types it would not be known whose bounds they are."""
    parts = [part for part in (get_args(annotation) if _is_union(annotation) else ()) if part is not type(None)]
    if len(parts) != 1 or get_origin(parts[0]) is not Annotated:
        return []
    return [item for field in get_args(parts[0])[1:] for item in getattr(field, "metadata", ())]


def _type(part: Any) -> str:
    if get_origin(part) is Literal:
        return ", ".join(map(str, get_args(part)))
    if get_origin(part) is tuple:
        inner = get_args(part)
        names = ["..." if each is Ellipsis else _values(each, ()) for each in inner]
        return f"list [{', '.join(names)}]"
    if get_origin(part) is dict or part is dict:
        inner = (*get_args(part), None, None)[1]
        return f"mapping to {_type(inner)}" if isinstance(inner, type) and issubclass(inner, BaseModel) else "mapping"
    if isinstance(part, type) and issubclass(part, BaseModel):
        return f"mapping ({', '.join(field.alias or name for name, field in part.model_fields.items())})"
    return _NAMES.get(part, "any value")


def _text(default: Any) -> str:
    if default is MISSING:
        return "must be given"
    text = json.dumps(default, default=lambda value: value.model_dump(by_alias=True, exclude_none=True))
    return str(default) if isinstance(default, str) and default else text


def _meanings(member: Any) -> dict[str, str]:
    """What the docstrings of a class and of those that it extends say of its fields."""
    found: dict[str, str] = {}
    for cls in reversed(inspect.getmro(member)):
        section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", inspect.cleandoc(cls.__doc__ or ""), re.M)
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section[1] if section else "", re.M):
            found[name] = " ".join(text.split()).replace("``", "")
    return found
