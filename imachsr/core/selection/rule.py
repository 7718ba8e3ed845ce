"""What every standard shares: its knobs, and what becomes of the layers that a rule offers."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Literal, get_args
from warnings import warn

from imachsr.core.calibration import Calibration
from imachsr.core.layers import Trace
from imachsr.core.messages import require
from imachsr.core.types import LayerInfo, Tap

Placement = Literal["early", "uniform", "late"]
Picked = list[tuple[int, str]]
"""Index into the candidates, and the reason."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Knobs that every standard shares.

    Args:
        max_taps: Layers wanted, >= 1. FedDSR (arXiv 2512.06676) finds a moderate number best.
        min_gap: Candidates that must lie between two taps, >= 0.
        placement: Which of the layers that the rule offers are kept when it offers more than ``max_taps``.
        min_stride: Leave out layers finer than 1 / ``min_stride`` of the input, >= 1, unless the rule offers no other; they cost most.
        strict: Raise instead of warning when the rule offers fewer.

    """

    max_taps: int = 3
    min_gap: int = 0
    placement: Placement = "uniform"
    min_stride: float = 1.0
    strict: bool = False

    def __post_init__(self) -> None:
        require(self.max_taps >= 1, "max_taps >= 1", self.max_taps)
        require(self.min_gap >= 0, "min_gap >= 0", self.min_gap)
        require(self.min_stride >= 1, "min_stride >= 1", self.min_stride)
        if self.placement not in get_args(Placement):
            raise ValueError(f"`placement` must be one of {get_args(Placement)}, but got {self.placement!r}")

    @property
    def wanted(self) -> int:
        """Taps asked for."""
        return self.max_taps

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        """Indices that the rule offers, with reasons, in execution order."""
        raise NotImplementedError

    def select(self, trace: Trace, calibration: Calibration | None = None) -> tuple[Tap, ...]:
        """Choose taps among the candidates, in execution order.

        Args:
            trace: Of the model.
            calibration: Data, for the standards that look at them.

        Raises:
            ValueError: If the rule offers fewer than ``max_taps`` layers and ``strict`` is set, or data are needed and not given.

        """
        picked = self.pick(trace, calibration)
        picked = self.thinned(self.allowed(picked, trace) or picked)
        if len(picked) < self.wanted:
            message = f"{self.wanted} taps were asked for, but this model and rule offer {len(picked)}"
            if self.strict:
                raise ValueError(f"{message}; lower `max_taps` or `min_gap`, or choose another standard")
            warn(message, stacklevel=4)  # select, IMacHSR, the caller
        return tuple(Tap(layer=trace.layers[index], reason=reason) for index, reason in picked)

    def allowed(self, picked: Picked, trace: Trace) -> Picked:
        """Without what is finer than ``min_stride`` allows."""
        return [(index, reason) for index, reason in picked if trace.layers[index].stride >= self.min_stride]

    def thinned(self, picked: Picked) -> Picked:
        """At most ``max_taps``, with their gaps."""
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


def quantile_picks(rule: Rule, layers: Sequence[LayerInfo], cumulative: Sequence[float], what: str) -> Picked:
    """For m = 1..M the first candidate at which a quantity that only grows has reached its m-th target, or the last; nothing if none is reached.

    The taps are told apart as :func:`apart` says.

    Args:
        rule: Gives M and the placement: targets lie in all of the range (uniform), or in its first or second half.
        layers: All candidates.
        cumulative: The quantity at each candidate, as a share in [0, 1] of its range.
        what: Of the quantity, for the reasons.

    """
    start, span = {"early": (0.0, 0.5), "uniform": (0.0, 1.0), "late": (0.5, 0.5)}[rule.placement]
    free = free_of(rule, layers)
    count = min(rule.max_taps, room(free, rule.min_gap))
    targets = [start + span * m / (count + 1) for m in range(1, count + 1)]
    ideals = [next((index for index in free if cumulative[index] >= target), free[-1]) for target in targets]
    if cumulative[-1] < targets[0]:
        return []
    picked = []
    for index, ideal, target in zip(apart(ideals, free, rule.min_gap), ideals, targets, strict=True):
        near = "first candidate" if index == ideal else "nearest other candidate to the first"
        picked.append((index, f"{what}: {near} with {target:.0%} ({cumulative[index]:.0%} reached)"))
    return picked


def by_depth(rule: Rule, layers: Sequence[LayerInfo], why: str | None = None) -> Picked:
    """1-based candidates ``ceil(m T / (M + 1))`` of the T that are coarse enough; early and late use one half of the net, as far as it has room.

    The taps are told apart as :func:`apart` says.
    """
    free = free_of(rule, layers)
    half = ceil(len(free) / 2)
    start, span = {"early": (0, half), "uniform": (0, len(free)), "late": (len(free) - half, half)}[rule.placement]
    count = min(rule.max_taps, room(free, rule.min_gap))
    ideals = [free[start + ceil(m * span / (count + 1)) - 1] for m in range(1, count + 1)]
    note = f" ({why})" if why else ""
    return [(index, f"depth: candidate {index + 1} of {len(layers)}{note}") for index in apart(ideals, free, rule.min_gap)]


def ranked_picks(rule: Rule, layers: Sequence[LayerInfo], ranking: Sequence[int]) -> list[int]:
    """The best ``max_taps`` of a ranking, best first, without those that are too fine, unless all are, or too near to a better one."""
    taken: list[int] = []
    for index in [index for index in ranking if layers[index].stride >= rule.min_stride] or ranking:
        if len(taken) < rule.max_taps and all(abs(index - other) > rule.min_gap for other in taken):
            taken.append(index)
    return taken


def free_of(rule: Rule, layers: Sequence[LayerInfo]) -> list[int]:
    """Indices of the candidates that are coarse enough; of all where none is."""
    return [index for index, layer in enumerate(layers) if layer.stride >= rule.min_stride] or list(range(len(layers)))


def room(free: Sequence[int], gap: int) -> int:
    """How many of the candidates can be taps at once."""
    count, least = 0, -1
    for index in free:
        if index >= least:
            count, least = count + 1, index + gap + 1
    return count


def apart(ideals: Sequence[int], free: Sequence[int], gap: int) -> list[int]:
    """Candidates ``p_1 < p_2 < ...``, more than ``gap`` apart, with the least ``sum_m |p_m - ideal_m|``; of several such, those that begin earliest.

    Where two ideals are one layer, or are too near, their neighbours stand in: the taps are as many as asked for.

    Args:
        ideals: Ascending indices, no more than there is room for.
        free: Ascending indices of the candidates.
        gap: Candidates between two taps, >= 0.

    """
    following = [bisect_right(free, index + gap) for index in free]
    tails: list[list[float]] = [[0] * (len(free) + 1)]  # least sum of the ideals from m on, with the candidates from j on
    for ideal in reversed(ideals):
        tail = [inf] * (len(free) + 1)
        for j in reversed(range(len(free))):
            tail[j] = min(tail[j + 1], abs(free[j] - ideal) + tails[0][following[j]])
        tails.insert(0, tail)
    chosen, j = [], 0
    for ideal, tail, rest in zip(ideals, tails, tails[1:], strict=False):
        while abs(free[j] - ideal) + rest[following[j]] > tail[j]:
            j += 1
        chosen.append(free[j])
        j = following[j]
    return chosen


def limits_of(rule: Rule) -> dict[str, Any]:
    """The shared knobs, to hand on to another rule."""
    return {"max_taps": rule.max_taps, "min_gap": rule.min_gap, "placement": rule.placement, "min_stride": rule.min_stride}
