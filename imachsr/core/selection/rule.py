"""What every standard shares: its knobs, and what becomes of the layers that a rule offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
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


def quantile_picks(rule: Rule, cumulative: Sequence[float], what: str) -> Picked:
    """For m = 1..M the first candidate at which a quantity that only grows has reached its m-th target.

    Args:
        rule: Gives M and the placement: targets lie in all of the range (uniform), or in its first or second half.
        cumulative: The quantity at each candidate, as a share in [0, 1] of its range.
        what: Of the quantity, for the reasons.

    """
    start, span = {"early": (0.0, 0.5), "uniform": (0.0, 1.0), "late": (0.5, 0.5)}[rule.placement]
    picked: dict[int, str] = {}
    for m in range(1, rule.max_taps + 1):
        target = start + span * m / (rule.max_taps + 1)
        index = next((i for i, value in enumerate(cumulative) if value >= target), None)
        if index is not None:
            picked.setdefault(index, f"{what}: first candidate with {target:.0%} ({cumulative[index]:.0%} reached)")
    return sorted(picked.items())


def by_depth(rule: Rule, layers: Sequence[LayerInfo], why: str | None = None) -> Picked:
    """1-based candidates ``ceil(m T / (M + 1))``; early and late use one half of the net."""
    total = len(layers)
    half = ceil(total / 2)
    start, span = {"early": (0, half), "uniform": (0, total), "late": (total - half, half)}[rule.placement]
    steps = sorted({start + ceil(m * span / (rule.max_taps + 1)) - 1 for m in range(1, rule.max_taps + 1)})
    note = f" ({why})" if why else ""
    return [(index, f"depth: candidate {index + 1} of {total}{note}") for index in steps]


def limits_of(rule: Rule) -> dict[str, Any]:
    """The shared knobs, to hand on to another rule."""
    return {"max_taps": rule.max_taps, "min_gap": rule.min_gap, "placement": rule.placement, "min_stride": rule.min_stride}
