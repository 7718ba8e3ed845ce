"""Selection standards: architecture-agnostic rules that choose the layers to supervise.

A new standard is a class in the file of its kind, and its name in the union on that file's last line.
"""

from imachsr.core.selection.cost import FlopsStandard, ParamsStandard, ReceptiveFieldStandard
from imachsr.core.selection.measured import EntropyStandard, GradientStandard, ProbeStandard
from imachsr.core.selection.structure import (
    AttentionStandard,
    AutoStandard,
    BottleneckStandard,
    DepthStandard,
    FusionStandard,
    ResolutionStandard,
    StageStandard,
    WidthStandard,
)
from imachsr.core.selection.union import ExplicitStandard, Standard, UnionStandard, parse_standard, select

__all__ = [
    "AttentionStandard",
    "AutoStandard",
    "BottleneckStandard",
    "DepthStandard",
    "EntropyStandard",
    "ExplicitStandard",
    "FlopsStandard",
    "FusionStandard",
    "GradientStandard",
    "ParamsStandard",
    "ProbeStandard",
    "ReceptiveFieldStandard",
    "ResolutionStandard",
    "StageStandard",
    "Standard",
    "UnionStandard",
    "WidthStandard",
    "parse_standard",
    "select",
]
