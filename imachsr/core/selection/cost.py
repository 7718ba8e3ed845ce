"""Standards on what the network has spent or seen so far: FLOPs, parameters, receptive field."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

from imachsr.core.calibration import Calibration
from imachsr.core.layers import Trace
from imachsr.core.selection.rule import Picked, Rule, by_depth, quantile_picks


@dataclass(frozen=True, kw_only=True)
class FlopsStandard(Rule):
    """For m = 1..M the first candidate with at least m / (M + 1) of the forward's FLOPs behind it. Falls back to depth.

    Where one layer has several of these shares behind it, or ``min_gap`` keeps the taps apart, the nearest other candidates stand in: M taps
    wherever M fit. Shares that no candidate reaches (a costly head) go to the last.
    """

    kind: Literal["flops"] = "flops"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        if trace.flops == 0:
            return by_depth(self, trace.layers, "no FLOPs were counted")
        spent = [layer.flops / trace.flops for layer in trace.layers]
        return _by_share(self, trace, spent, f"flops of {trace.flops / 1e9:.3g} G", "FLOPs")


@dataclass(frozen=True, kw_only=True)
class ParamsStandard(Rule):
    """For m = 1..M the first candidate with at least m / (M + 1) of the parameters behind it, each counted at its first use. Falls back to depth.

    M taps wherever M fit, as with flops.
    """

    kind: Literal["params"] = "params"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        if trace.params == 0:
            return by_depth(self, trace.layers, "no parameters")
        used = [layer.params_used / trace.params for layer in trace.layers]
        return _by_share(self, trace, used, f"params of {trace.params / 1e6:.3g} M", "parameters")


@dataclass(frozen=True, kw_only=True)
class ReceptiveFieldStandard(Rule):
    """For m = 1..M the first candidate whose receptive field reaches ``r_1 (r_T / r_1)^(m / (M + 1))``.

    r_1 is the smallest field, r_T the largest; falls back to depth when they are equal. A field counts up to twice the longer side of the
    input less one, where a corner sees the opposite corner. It is that of convolutions, poolings, resizes and attention; gates (squeeze and
    excitation) and norms do not count, since they would let every position see the whole image from the first block on. It counts as the largest so
    far in execution order. M taps wherever M fit, as with flops.
    """

    kind: Literal["receptive_field"] = "receptive_field"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        fields = [layer.receptive_field for layer in trace.layers]
        smallest, largest = max(1.0, min(fields)), max(fields)
        if largest <= smallest:
            return by_depth(self, trace.layers, "one receptive field")
        grown, highest = [], 0.0
        for field in fields:
            highest = max(highest, log(max(field, smallest) / smallest) / log(largest / smallest))
            grown.append(highest)
        return quantile_picks(self, trace.layers, grown, f"receptive field from {smallest:g} to {largest:g} pixels")


def _by_share(rule: Rule, trace: Trace, shares: Sequence[float], what: str, parts: str) -> Picked:
    """Where a sum over the forward reaches its targets, or by depth where it has not begun at the last candidate."""
    return quantile_picks(rule, trace.layers, shares, what) or by_depth(rule, trace.layers, f"all {parts} come after the candidates")


CostStandard = FlopsStandard | ParamsStandard | ReceptiveFieldStandard
