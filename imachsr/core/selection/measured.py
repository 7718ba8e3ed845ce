"""Standards on what the network does with data: gradients, overconfidence, information about the labels."""

from dataclasses import dataclass
from typing import Literal

from imachsr.core.calibration import Calibration
from imachsr.core.layers import Trace
from imachsr.core.messages import require
from imachsr.core.selection.rule import Picked, Rule, quantile_picks, ranked_picks


@dataclass(frozen=True, kw_only=True)
class _Measured(Rule):
    """Args: batches: Batches of the calibration data that are looked at, at most, >= 1."""

    batches: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batches >= 1, "batches >= 1", self.batches)

    def data(self, calibration: Calibration | None) -> Calibration:
        if calibration is None:
            kind = getattr(self, "kind", "?")
            raise ValueError(f"`calibration` must give batches (images, labels) for the standard {kind!r}, but is None")
        return calibration


@dataclass(frozen=True, kw_only=True)
class GradientStandard(_Measured):
    """Layers that learn least from the output: smallest ``|dL/dh| / |h|``, L the cross-entropy of the output. Source: CNDS, arXiv 1505.02496.

    Args:
        take: ``minima``: local minima along the network first, lowest first, then the other layers, lowest first; ``quantiles``: the first
            candidates at which the summed ratios reach m / (M + 1) of the total, M taps wherever M fit.

    """

    kind: Literal["gradient"] = "gradient"
    take: Literal["minima", "quantiles"] = "minima"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.take not in ("minima", "quantiles"):
            raise ValueError(f"`take` must be one of ('minima', 'quantiles'), but got {self.take!r}")

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        ratios = self.data(calibration).gradient_ratios(trace.layers, self.batches)
        if self.take == "quantiles":
            total, run, cumulative = sum(ratios), 0.0, []
            for ratio in ratios:
                run += ratio
                cumulative.append(run / total if total > 0 else 1.0)
            return quantile_picks(self, trace.layers, cumulative, "gradient ratio, summed")
        edges = [float("inf"), *ratios, float("inf")]
        is_minimum = [edges[i] > edges[i + 1] < edges[i + 2] for i in range(len(ratios))]
        ranking = sorted(range(len(ratios)), key=lambda i: (not is_minimum[i], ratios[i], i))
        told = ["a local minimum" if is_one else "among the lowest" for is_one in is_minimum]
        return sorted((i, f"gradient: |dL/dh| / |h| is {ratios[i]:.3g}, {told[i]}") for i in ranked_picks(self, trace.layers, ranking))


@dataclass(frozen=True, kw_only=True)
class EntropyStandard(_Measured):
    """The most overconfident layers: lowest entropy over channels, ``H / log C``, mean over positions. The lowest first, ``min_gap`` apart."""

    kind: Literal["entropy"] = "entropy"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        entropies = self.data(calibration).channel_entropies(trace.layers, self.batches)
        ranking = sorted(range(len(entropies)), key=lambda i: (entropies[i], i))
        ranks = {index: rank for rank, index in enumerate(ranking, 1)}
        taken = ranked_picks(self, trace.layers, ranking)
        return sorted((i, f"entropy: H / log C is {entropies[i]:.3g}, rank {ranks[i]} of {len(ranking)}") for i in taken)


@dataclass(frozen=True, kw_only=True)
class ProbeStandard(_Measured):
    """Equal steps of what a linear probe reads: the first candidates at which ``I = H(Y) - CE`` reaches ``I_min + m / (M + 1) (I_max - I_min)``.

    I >= 0 counts as the largest so far in execution order, since a layer may lose what an earlier one showed. The probe is a linear discriminant
    with one calibrated factor: a logistic regression is so sure of itself in wide layers that its I falls far below 0, and I_min with it. M taps
    wherever M fit, as with flops.
    """

    kind: Literal["probe"] = "probe"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        information = self.data(calibration).probe_information(trace.layers, self.batches)
        low, high = min(information), max(information)
        grown, highest = [], 0.0
        for value in information:
            highest = max(highest, (value - low) / (high - low) if high > low else 1.0)
            grown.append(highest)
        return quantile_picks(self, trace.layers, grown, f"probe information from {low:.3g} to {high:.3g} nats")


MeasuredStandard = GradientStandard | EntropyStandard | ProbeStandard
