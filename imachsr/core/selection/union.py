"""Layers by name, several standards at once, and all standards."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from imachsr.core.calibration import Calibration
from imachsr.core.layers import Trace
from imachsr.core.messages import nearest
from imachsr.core.selection.cost import CostStandard
from imachsr.core.selection.measured import MeasuredStandard
from imachsr.core.selection.rule import Picked, Rule
from imachsr.core.selection.structure import StructureStandard
from imachsr.core.types import Tap


@dataclass(frozen=True, kw_only=True)
class ExplicitStandard:
    """The layers that the user names.

    Args:
        layers: Addresses (``encoder.layer1``), globs (``encoder.layer*``) or regular expressions (``re:layer[12]$``).

    """

    kind: Literal["explicit"] = "explicit"
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ValueError(f"`layers` must be a sequence of names, but got the string {self.layers!r}; write ({self.layers!r},)")
        if not self.layers:
            raise ValueError("`layers` must name at least one layer, but got none")
        for pattern in self.layers:
            try:
                re.compile(pattern[3:] if pattern.startswith("re:") else "")
            except re.error as error:
                raise ValueError(f"`layers` must hold regular expressions after 're:', but {pattern!r} is none: {error}") from error

    def select(self, trace: Trace, calibration: Calibration | None = None) -> tuple[Tap, ...]:
        """Choose the named candidates, in execution order.

        Raises:
            ValueError: If a name matches no candidate; names the nearest ones.

        """
        known = [layer.address for layer in trace.layers]
        chosen: dict[str, str] = {}
        for pattern in self.layers:
            found = [name for name in known if _matches(pattern, name)]
            if not found:
                reason = "is no layer of this model"
                if pattern in trace.uncalled:
                    reason = "is a module that the forward does not call"
                elif pattern in trace.module_names:
                    reason = "is a module, but no candidate (an outer or a later module's tensor, not spatial, without a gradient, or the output)"
                raise ValueError(f"`layers` must name candidates, but {pattern!r} {reason}; {nearest(pattern, known)}")
            chosen.update((name, f"explicit: {pattern}") for name in found if name not in chosen)
        return tuple(Tap(layer=layer, reason=chosen[layer.address]) for layer in trace.layers if layer.address in chosen)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    return name == pattern or ("[" not in pattern and fnmatchcase(name, pattern))


@dataclass(frozen=True, kw_only=True)
class UnionStandard(Rule):
    """What several standards choose, each within its own limits; then within this one's.

    Args:
        standards: Names, standards, or mappings with ``kind`` and settings, at least two.

    """

    kind: Literal["union"] = "union"
    standards: tuple[Any, ...]
    max_taps: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.standards, str) or len(self.standards) < 2:
            raise ValueError(f"`standards` must hold at least two standards, but got {self.standards!r}")
        object.__setattr__(self, "standards", tuple(parse_standard(item) for item in self.standards))

    @property
    def wanted(self) -> int:
        """A union may well be smaller than its limit: its members overlap."""
        return self.max_taps if self.strict else 1

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        index_of = {layer.address: index for index, layer in enumerate(trace.layers)}
        picked: dict[int, list[str]] = {}
        for standard in self.standards:
            for tap in standard.select(trace, calibration):
                picked.setdefault(index_of[tap.layer.address], []).append(tap.reason)
        return [(index, "; ".join(reasons)) for index, reasons in sorted(picked.items())]


def select(standard: "Standard | str | Callable[[Trace], Sequence[str]]", trace: Trace, calibration: Calibration | None = None) -> tuple[Tap, ...]:
    """Apply a standard, its name, an object with ``select(trace, calibration)``, or a callable ``trace -> addresses``."""
    if isinstance(standard, (str, Mapping)):
        standard = parse_standard(standard)
    if isinstance(standard, type):
        raise TypeError(f"`standard` must be a standard, but got its class; write {standard.__name__}()")
    if hasattr(standard, "select"):
        taps: tuple[Tap, ...] = standard.select(trace, calibration)
    elif callable(standard):
        names: Any = standard(trace)
        # A string is refused, not taken letter by letter; a candidate stands for its address.
        layers: Any = names if isinstance(names, str) else tuple(getattr(name, "address", name) for name in names)
        taps = ExplicitStandard(layers=layers).select(trace)
    else:
        raise TypeError(f"`standard` must be a name, a standard or a callable, but got {type(standard).__name__}")
    if not taps:
        raise ValueError(f"`standard` must choose at least one layer, but {getattr(standard, 'kind', standard)!r} chose none; take auto or depth")
    return taps


def parse_standard(standard: Any) -> Any:
    """The standard of a name, with its defaults, or of a mapping with ``kind``; a standard itself is given back.

    Raises:
        ValueError: If no standard has this name, or this standard no such setting; names the nearest ones.

    """
    if hasattr(standard, "select") and not isinstance(standard, type):
        return standard
    settings = dict(standard) if isinstance(standard, Mapping) else {"kind": standard}
    name = settings.pop("kind", None)
    known = {member.kind: member for member in get_args(Standard)}
    needs_more = (ExplicitStandard.kind, UnionStandard.kind)
    if name not in known or (name in needs_more and not settings):
        names = sorted(kind for kind in known if kind not in needs_more)
        raise ValueError(f"`standard` must be one of {names}, but got {name!r}; {nearest(str(name), names)}")
    keys = [field.name for field in fields(known[name])]
    for key in settings:
        if key not in keys:
            raise ValueError(f"{key!r} is no setting of {name!r}; {nearest(str(key), keys)}")
    return known[name](**settings)


Standard = StructureStandard | CostStandard | MeasuredStandard | ExplicitStandard | UnionStandard
