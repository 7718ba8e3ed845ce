"""Selection standards: architecture-agnostic rules that choose the layers to supervise."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from math import ceil
from typing import Any, Literal, get_args
from warnings import warn

from imachsr.core.layers import Trace
from imachsr.core.types import LayerInfo, Tap

Placement = Literal["early", "uniform", "late"]
Picked = list[tuple[int, str]]
"""Index into the candidates, and the reason."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Phrase that names what the user may have meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.4) or known[:count]
    return "nearest: " + ", ".join(repr(item) for item in close)


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Knobs that every standard shares.

    Args:
        max_taps: Layers wanted, >= 1. FedDSR (arXiv 2512.06676) finds a moderate number best.
        min_gap: Candidates that must lie between two taps, >= 0.
        placement: Which of the layers that the rule offers are kept when it offers more than ``max_taps``.
        strict: Raise instead of warning when the rule offers fewer.

    """

    max_taps: int = 3
    min_gap: int = 0
    placement: Placement = "uniform"
    strict: bool = False

    def __post_init__(self) -> None:
        if self.max_taps < 1:
            raise ValueError(f"`max_taps >= 1` must hold, but got {self.max_taps}")
        if self.min_gap < 0:
            raise ValueError(f"`min_gap >= 0` must hold, but got {self.min_gap}")
        if self.placement not in get_args(Placement):
            raise ValueError(f"`placement` must be one of {get_args(Placement)}, but got {self.placement!r}")

    def pick(self, layers: Sequence[LayerInfo]) -> Picked:
        """Indices that the rule offers, with reasons, in execution order."""
        raise NotImplementedError

    def select(self, trace: Trace) -> tuple[Tap, ...]:
        """Choose taps among the candidates, in execution order.

        Raises:
            ValueError: If the rule offers fewer than ``max_taps`` layers and ``strict`` is set.

        """
        picked = self._thinned(self.pick(trace.layers))
        if len(picked) < self.max_taps:
            message = f"{self.max_taps} taps were asked for, but this model and rule offer {len(picked)}"
            if self.strict:
                raise ValueError(f"{message}; lower `max_taps` or `min_gap`, or choose another standard")
            warn(message, stacklevel=4)  # select, IMacHSR, the caller
        return tuple(Tap(layer=trace.layers[index], reason=reason) for index, reason in picked)

    def _thinned(self, picked: Picked) -> Picked:
        walk = picked[::-1] if self.placement == "late" else picked
        spaced: Picked = []
        for index, reason in walk:
            if not spaced or abs(index - spaced[-1][0]) > self.min_gap:
                spaced.append((index, reason))
        spaced.sort()
        surplus = len(spaced) - self.max_taps
        if surplus <= 0:
            return spaced
        if self.placement == "early":
            return spaced[: self.max_taps]
        if self.placement == "late":
            return spaced[surplus:]
        count = len(spaced)
        return [spaced[ceil(m * count / (self.max_taps + 1)) - 1] for m in range(1, self.max_taps + 1)]


@dataclass(frozen=True, kw_only=True)
class DepthStandard(_Limits):
    """Equal steps in execution order: 1-based candidates ``ceil(m T / (M + 1))``, m = 1..M; early and late use one half of the net."""

    kind: Literal["depth"] = "depth"

    def pick(self, layers: Sequence[LayerInfo]) -> Picked:
        total = len(layers)
        half = ceil(total / 2)
        start, span = {"early": (0, half), "uniform": (0, total), "late": (total - half, half)}[self.placement]
        steps = sorted({start + ceil(m * span / (self.max_taps + 1)) - 1 for m in range(1, self.max_taps + 1)})
        return [(index, f"depth: candidate {index + 1} of {total}") for index in steps]


@dataclass(frozen=True, kw_only=True)
class ResolutionStandard(_Limits):
    """Where the resolution changes: the last candidate before a change of (h, w), or the first after it.

    Args:
        direction: ``down`` for down-sampling, ``up`` for up-sampling, ``both``.
        side: ``before`` or ``after`` the change.

    """

    kind: Literal["resolution"] = "resolution"
    direction: Literal["down", "up", "both"] = "down"
    side: Literal["before", "after"] = "before"

    def pick(self, layers: Sequence[LayerInfo]) -> Picked:
        picked: Picked = []
        for index, (here, after) in enumerate(zip(layers, layers[1:], strict=False)):
            areas = here.height * here.width, after.height * after.width
            change = "down" if areas[1] < areas[0] else "up" if areas[1] > areas[0] else "neither"
            if (here.height, here.width) == (after.height, after.width) or self.direction not in (change, "both"):
                continue
            sizes = f"{here.height}x{here.width} -> {after.height}x{after.width}"
            picked.append((index + (self.side == "after"), f"resolution: {self.side} {sizes}"))
        picked = [next(same) for _, same in groupby(picked, key=lambda item: item[0])]
        return picked or _by_depth(self, layers, "no change of resolution")


@dataclass(frozen=True, kw_only=True)
class StageStandard(_Limits):
    """Ends of stages: the last block of each run of blocks of one class and output shape in a Sequential or ModuleList.

    A single run that spans the net, as in a plain ViT, is split into ``max_taps`` equal parts.
    """

    kind: Literal["stage"] = "stage"

    def pick(self, layers: Sequence[LayerInfo]) -> Picked:
        blocks = [(index, layer) for index, layer in enumerate(layers) if layer.container]
        runs = [list(run) for _, run in groupby(blocks, key=lambda b: (b[1].container, b[1].block_cls, b[1].channels, b[1].height, b[1].width))]
        if len(runs) == 1 and len(runs[0]) >= self.max_taps:
            run, parts = runs[0], self.max_taps
            ends = [run[ceil(m * len(run) / parts) - 1][0] for m in range(1, parts + 1)]
            return [(index, f"stage: part {m} of {parts} of {run[0][1].container}") for m, index in enumerate(ends, 1)]
        picked = [(run[-1][0], f"stage: end of {len(run)} x {run[-1][1].block_cls} in {run[-1][1].container}") for run in runs]
        return picked or _by_depth(self, layers, "no run of blocks")


@dataclass(frozen=True, kw_only=True)
class AutoStandard(_Limits):
    """The first of resolution, stage and depth that offers something of its own."""

    kind: Literal["auto"] = "auto"

    def pick(self, layers: Sequence[LayerInfo]) -> Picked:
        limits = {"max_taps": self.max_taps, "min_gap": self.min_gap}
        for rule in (ResolutionStandard(**limits), StageStandard(**limits)):  # type: ignore[arg-type]
            picked = rule.pick(layers)
            if not picked[0][1].startswith("depth"):
                return picked
        return DepthStandard(max_taps=self.max_taps, placement=self.placement).pick(layers)


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

    def select(self, trace: Trace) -> tuple[Tap, ...]:
        """Choose the named candidates, in execution order.

        Raises:
            ValueError: If a name matches no candidate; names the nearest ones.

        """
        known = [layer.address for layer in trace.layers]
        chosen: dict[str, str] = {}
        for pattern in self.layers:
            found = [name for name in known if _matches(pattern, name)]
            if not found:
                note = "is a module, but no candidate (the tensor of an outer or a later module, not spatial, without a gradient, or the output)"
                reason = note if pattern in trace.module_names else "is no layer of this model"
                raise ValueError(f"`layers` must name candidates, but {pattern!r} {reason}; {nearest(pattern, known)}")
            chosen.update((name, f"explicit: {pattern}") for name in found if name not in chosen)
        return tuple(Tap(layer=layer, reason=chosen[layer.address]) for layer in trace.layers if layer.address in chosen)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    return name == pattern or ("[" not in pattern and fnmatchcase(name, pattern))


def _by_depth(standard: _Limits, layers: Sequence[LayerInfo], why: str) -> Picked:
    fallback = DepthStandard(max_taps=standard.max_taps, placement=standard.placement)
    return [(index, f"{reason} ({why})") for index, reason in fallback.pick(layers)]


def select(standard: "Standard | str | Callable[[Trace], Sequence[str]]", trace: Trace) -> tuple[Tap, ...]:
    """Apply a standard, its name, an object with ``select(trace)``, or a callable ``trace -> addresses``."""
    if isinstance(standard, str):
        standard = parse_standard(standard)
    if isinstance(standard, type):
        raise TypeError(f"`standard` must be a standard, but got its class; write {standard.__name__}()")
    if hasattr(standard, "select"):
        taps: tuple[Tap, ...] = standard.select(trace)
        return taps
    if callable(standard):
        names = standard(trace)
        layers: Any = names if isinstance(names, str) else tuple(names)  # a string is refused, not taken letter by letter
        return ExplicitStandard(layers=layers).select(trace)
    raise TypeError(f"`standard` must be a name, a standard or a callable, but got {type(standard).__name__}")


def parse_standard(name: str) -> "Standard":
    """The standard of that name, with its defaults.

    Raises:
        ValueError: If no standard has this name; names the nearest ones.

    """
    known = {member.kind: member for member in get_args(Standard) if member is not ExplicitStandard}
    if name not in known:
        raise ValueError(f"`standard` must be one of {sorted(known)}, but got {name!r}; {nearest(name, known)}")
    standard: Standard = known[name]()
    return standard


Standard = AutoStandard | ResolutionStandard | StageStandard | DepthStandard | ExplicitStandard
