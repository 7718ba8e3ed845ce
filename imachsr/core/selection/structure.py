"""Standards on the structure of the network: depth, resolution, stages, bottlenecks, width, attention and fusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Literal, get_args
from warnings import warn

from imachsr.core.calibration import Calibration
from imachsr.core.layers import Trace
from imachsr.core.messages import require
from imachsr.core.selection.rule import Picked, Rule, by_depth, free_of, limits_of, ranked_picks
from imachsr.core.types import LayerInfo

Side = Literal["before", "after"]


def _check_side(side: str) -> None:
    if side not in get_args(Side):
        raise ValueError(f"`side` must be one of {get_args(Side)}, but got {side!r}")


@dataclass(frozen=True, kw_only=True)
class DepthStandard(Rule):
    """Equal steps in execution order: 1-based candidates ``ceil(m T / (M + 1))``, m = 1..M; early and late use one half of the net.

    T counts the candidates that ``min_stride`` allows. Where half of a net has no room for M taps, or ``min_gap`` keeps them apart, the
    candidates nearest to those steps stand in: M taps wherever M fit.
    """

    kind: Literal["depth"] = "depth"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        return by_depth(self, trace.layers)


@dataclass(frozen=True, kw_only=True)
class ResolutionStandard(Rule):
    """Where the resolution changes: the last candidate before a change of (h, w), or the first after it. Falls back to depth.

    A dip inside of one block does not count: layers of one other resolution in a module that takes and gives the same. Keys and values of a
    reduced attention are no down-sampling of the features, but would be found in every block.

    Args:
        direction: ``down`` for down-sampling, ``up`` for up-sampling, ``both``.
        side: ``before`` or ``after`` the change.

    """

    kind: Literal["resolution"] = "resolution"
    direction: Literal["down", "up", "both"] = "down"
    side: Side = "before"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.side)
        if self.direction not in ("down", "up", "both"):
            raise ValueError(f"`direction` must be one of ('down', 'up', 'both'), but got {self.direction!r}")

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        return self.own(trace) or by_depth(self, trace.layers, "no change of resolution")

    def own(self, trace: Trace) -> Picked:
        """What the rule itself offers, perhaps nothing."""
        picked: dict[int, str] = {}
        path = _without_dips(trace.layers)
        for index, next_index in zip(path, path[1:], strict=False):
            here, after = trace.layers[index], trace.layers[next_index]
            areas = here.height * here.width, after.height * after.width
            change = "down" if areas[1] < areas[0] else "up" if areas[1] > areas[0] else "neither"
            if (here.height, here.width) == (after.height, after.width) or self.direction not in (change, "both"):
                continue
            sizes = f"{here.height}x{here.width} -> {after.height}x{after.width}"
            picked.setdefault(next_index if self.side == "after" else index, f"resolution: {self.side} {sizes}")
        return list(picked.items())


def _without_dips(layers: Sequence[LayerInfo]) -> list[int]:
    """Indices of the layers that are no dip, see :class:`ResolutionStandard`."""
    dips: set[int] = set()
    for outer in layers:
        inside = [i for i, layer in enumerate(layers) if layer.module.startswith(f"{outer.module}.") and layer.order < outer.order]
        if not inside or inside[0] == 0 or outer.key is not None:
            continue
        before = layers[inside[0] - 1]
        size = outer.height, outer.width
        others = {(layers[i].height, layers[i].width) for i in inside} - {size}
        if len(others) == 1 and (before.height, before.width) == size:
            dips.update(i for i in inside if (layers[i].height, layers[i].width) != size)
    return [i for i in range(len(layers)) if i not in dips]


@dataclass(frozen=True, kw_only=True)
class StageStandard(Rule):
    """Ends of stages: the last block of each run of blocks of one class and output shape in a Sequential or ModuleList. Falls back to resolution.

    What a block is made of is no block: the layers of an inverted residual, a Sequential themselves, would be a stage each. A single run that spans
    the net, as in a plain ViT, is split into ``max_taps`` equal parts, or into its blocks where these are fewer.
    """

    kind: Literal["stage"] = "stage"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        return self.own(trace) or ResolutionStandard(**limits_of(self)).pick(trace, calibration)

    def own(self, trace: Trace) -> Picked:
        """What the rule itself offers, perhaps nothing."""
        containers = {layer.module: layer.container for layer in trace.layers if layer.container}
        blocks = [(index, layer) for index, layer in enumerate(trace.layers) if layer.container and not _is_in_block(layer, containers)]
        runs = [list(run) for _, run in groupby(blocks, key=lambda b: (b[1].container, b[1].block_cls, b[1].channels, b[1].height, b[1].width))]
        if len(runs) == 1:
            run, parts = runs[0], min(self.max_taps, len(runs[0]))
            ends = [run[ceil(m * len(run) / parts) - 1][0] for m in range(1, parts + 1)]
            return [(index, f"stage: part {m} of {parts} of {run[0][1].container}") for m, index in enumerate(ends, 1)]
        return [(run[-1][0], f"stage: end of {len(run)} x {run[-1][1].block_cls} in {run[-1][1].container}") for run in runs]


def _is_in_block(layer: LayerInfo, containers: dict[str, str]) -> bool:
    """Whether a layer's container is a part of a block of another container; ``containers`` holds each block's by its module."""
    parts = layer.container.split(".")
    around = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    # A container whose last block gives its output stands for that block itself.
    return any(containers.get(module, layer.container) != layer.container for module in around)


ENOUGH = 3
"""Layers that a rule must offer before `auto` asks the next one."""


@dataclass(frozen=True, kw_only=True)
class AutoStandard(Rule):
    """Ends of stages; where these are fewer than three the changes of resolution, down or up, then depth; else the first that offers any.

    Ends of stages, in encoder and decoder, are what helped in benchmarks/camvid_study_epyc_2026-11-27.md; three early layers did not. One or two
    would leave most of a net with a dozen blocks to the output: hence the next rule. Layers finer than 1 / ``min_stride`` of the input are left
    out, where there are others: they cost most.
    """

    kind: Literal["auto"] = "auto"
    max_taps: int = 7
    min_stride: float = 8.0

    @property
    def wanted(self) -> int:
        """As many as a network has, up to ``max_taps``; fewer than three are told."""
        return self.max_taps if self.strict else min(self.max_taps, ENOUGH)

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        limits = limits_of(self)
        offers = [StageStandard(**limits).own(trace), ResolutionStandard(direction="both", **limits).own(trace)]
        free = set(free_of(self, trace.layers))
        own = [[(index, reason) for index, reason in offer if index in free] for offer in offers]
        depth = by_depth(self, trace.layers)
        enough = [picked for picked in [*own, depth] if len(self.thinned(picked)) >= min(self.max_taps, ENOUGH)]
        return next((picked for picked in [*enough, *own] if picked), depth)


@dataclass(frozen=True, kw_only=True)
class BottleneckStandard(Rule):
    """Strict local minima of the feature size C h w after collapsing plateaus, the ``max_taps`` deepest ``log(left right / size^2)`` first.

    left and right are the sizes of the plateaus beside it: their logarithms are summed, so that a step down on one side alone is shallow. Of a
    plateau its last layer is taken, which has seen the most; both ends of the net are none, since beside them is nothing to be less than. ``min_gap``
    leaves out what lies too near to a deeper one. Falls back to depth.
    """

    kind: Literal["bottleneck"] = "bottleneck"

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        sizes = [layer.channels * layer.height * layer.width for layer in trace.layers]
        plateaus = [(list(run)[-1], size) for size, run in groupby(range(len(sizes)), key=sizes.__getitem__)]
        found = {}
        for (_, left), (index, size), (_, right) in zip(plateaus, plateaus[1:], plateaus[2:], strict=False):
            if size < left and size < right:
                depth = left * right / size**2  # ranks as the sum of logarithms does, and equals are equal
                found[index] = depth, f"bottleneck: {size:,} values between {left:,} and {right:,}"
        deepest = sorted(found, key=lambda index: (-found[index][0], index))
        picked = sorted((index, found[index][1]) for index in ranked_picks(self, trace.layers, deepest))
        return picked or by_depth(self, trace.layers, "no bottleneck")


@dataclass(frozen=True, kw_only=True)
class WidthStandard(Rule):
    """The last candidate before the number of channels grows to at least ``growth`` times, from block to block where there are blocks.

    Inside of its blocks a residual net widens and narrows all the time; what counts is what the blocks hand on. Falls back to depth.

    Args:
        growth: rho > 1.

    """

    kind: Literal["width"] = "width"
    growth: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.growth > 1, "growth > 1", self.growth)

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        blocks = [index for index, layer in enumerate(trace.layers) if layer.container]
        steps = blocks if len(blocks) > 1 else list(range(len(trace.layers)))
        picked = []
        for here, after in zip(steps, steps[1:], strict=False):
            narrow, wide = trace.layers[here].channels, trace.layers[after].channels
            if wide >= self.growth * narrow:
                picked.append((here, f"width: before {narrow} -> {wide} channels"))
        return picked or by_depth(self, trace.layers, "no growth of channels")


@dataclass(frozen=True, kw_only=True)
class AttentionStandard(Rule):
    """The smallest module that holds an attention (scaled dot product, or softmax and then a matrix product), or what comes before it.

    Empty without attention.

    Where that module's own output is no candidate, the next module around it is taken: windows folded into the batch are no map, and queries that are
    learned, as of a mask transformer, are no positions of the image.

    Args:
        side: ``before`` or ``after`` the attention.

    """

    kind: Literal["attention"] = "attention"
    side: Side = "after"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.side)

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        return _sites(trace, "attention", self.side)


@dataclass(frozen=True, kw_only=True)
class FusionStandard(Rule):
    """Where features meet: the first candidate that holds a concatenation, or a sum of features of different resolution runs. Empty without any.

    Runs differ when the coarsest resolutions that the operands have passed do. Plain residual sums do not count, as their operands have passed the
    same, nor do gates and position embeddings, which do not have the features' shape.

    Args:
        side: ``before`` or ``after`` the fusion.

    """

    kind: Literal["fusion"] = "fusion"
    side: Side = "after"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.side)

    def pick(self, trace: Trace, calibration: Calibration | None) -> Picked:
        return _sites(trace, "fusion", self.side)


def _sites(trace: Trace, kind: str, side: Side) -> Picked:
    index_of = {layer.address: index for index, layer in enumerate(trace.layers)}
    picked: dict[int, str] = {}
    for site in trace.sites:
        address = site.before if side == "before" else site.after
        if site.kind == kind and address is not None:
            picked.setdefault(index_of[address], f"{kind}: {side} {site.detail}" + (f" in {site.module}" if site.module else ""))
    if not picked:
        warn(f"this model has no {kind} that a candidate lies {side} of: standard {kind!r} chooses no layer", stacklevel=5)
    return sorted(picked.items())


StructureStandard = (
    AutoStandard | ResolutionStandard | StageStandard | DepthStandard | BottleneckStandard | AttentionStandard | FusionStandard | WidthStandard
)
