"""A search from YAML and back."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imachsr.config.load import lines_of, load_yaml, located, merge, nested, parse_overrides
from imachsr.config.schema import ConfigError, near, validate
from imachsr.search.space.check import check
from imachsr.search.space.parameters import FORMS, Parameter
from imachsr.search.space.search import Search


def make_search(raw: Mapping[str, Any]) -> Search:
    """The search that a mapping describes, checked as a whole.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    space = raw.get("space")
    for key, parameter in space.items() if isinstance(space, Mapping) else ():
        for name in parameter if isinstance(parameter, Mapping) else ():
            if name not in FORMS and name not in Parameter.model_fields:
                raise ConfigError(f"space.{key}.{name}: is no setting; {near(name, FORMS)}")
    search: Search = validate(Search, raw)
    try:
        search.base()
    except ConfigError as error:
        raise ConfigError(f"run: {error}") from None
    check(search)
    return search


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """The search of a YAML file, with ``key=value`` overrides (``budget.trials=6``, ``run.optimizer.epochs=4``).

    ``base:`` may name a run's YAML file, relative to this one, that ``run:`` is set over.

    Raises:
        ConfigError: For anything that the user got wrong; names file and key.
    """
    dotted = parse_overrides(overrides)
    raw: Any = load_yaml(path)
    base = raw.pop("base", None)
    if base is not None:
        raw["run"] = merge(load_yaml(Path(path).parent / str(base)), raw.get("run", {}))
    of_space = {key: dotted.pop(key) for key in tuple(dotted) if key.startswith("space.")}
    for layer in nested(dotted):
        raw = merge(raw, layer)
    for key, value in of_space.items():
        raw = merge(raw, _space_layer(key, value, raw))
    try:
        search = make_search(raw)
    except ConfigError as error:
        overridden = [*dotted, *of_space]
        raise ConfigError(located(str(error), path, _places(path, base), overridden)) from None
    for line in _without_effect(search):
        warnings.warn(line, stacklevel=2)
    return search


def _places(path: str | Path, base: Any) -> dict[str, tuple[str | Path, int]]:
    """Where each key stands: in the search's own file, or in that of its base run."""
    found: dict[str, tuple[str | Path, int]] = {}
    if base is not None:
        other = Path(path).parent / str(base)
        found = {f"run.{key}": (other, line) for key, line in lines_of(other).items()}
    return found | {key: (path, line) for key, line in lines_of(path).items()}


def _without_effect(search: Search) -> list[str]:
    """What the user must have set, since it is not the default, and what it has no effect with."""
    lines = []
    for where, part in (("sampler", search.sampler), ("scheduler", search.scheduler)):
        for name in part.without_effect:
            if getattr(part, name) != type(part).model_fields[name].default:
                lines.append(f"{where}.{name} has no effect with {where}.kind {part.kind}")
    for key, parameter in search.space.items():
        if parameter.num is not None and search.sampler.kind != "grid":
            lines.append(f"space.{key}.num has no effect with sampler.kind {search.sampler.kind}: only a grid has a number of values")
    return lines


def _space_layer(key: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """An override of the space, whose keys hold dots themselves: ``space.method.alpha.float`` is ``float`` of ``method.alpha``."""
    rest = key.removeprefix("space.")
    there = raw.get("space")
    searched = [each for each in (there if isinstance(there, Mapping) else ()) if rest == each or rest.startswith(f"{each}.")]
    head, _, last = rest.rpartition(".")
    name = max(searched, key=len) if searched else head if last in FORMS and head else rest
    inner = rest.removeprefix(name).removeprefix(".")
    tree = value
    for part in reversed([part for part in (inner.split(".", 1) if inner.startswith("when.") else [inner]) if part]):
        tree = {part: tree}
    return {"space": {name: tree}}


def search_to_dict(search: Search) -> dict[str, Any]:
    """Plain values that :func:`make_search` reads back."""
    found: dict[str, Any] = search.model_dump(mode="json", by_alias=True, exclude_none=True)
    if search.limits.memory_mib is None:  # alone among what may be null, it is not null by default
        found["limits"]["memory_mib"] = None
    return found
