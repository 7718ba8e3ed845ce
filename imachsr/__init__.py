"""Intermediate supervision for any PyTorch segmentation model."""

from imachsr.core.entropy import ChannelEntropy, ChannelNormEntropy
from imachsr.core.layers import trace
from imachsr.core.losses import Brier, Dice, Hsic, InfoNCE, MiVariational, Prototype
from imachsr.core.output import CrossEntropy, Ohem, OutputDice
from imachsr.core.selection import AutoStandard, DepthStandard, ExplicitStandard, ResolutionStandard, StageStandard
from imachsr.core.types import IGNORE_INDEX, LayerInfo, Losses, Tap
from imachsr.core.wrapper import IMacHSR
from imachsr.version import __version__

__all__ = [
    "IGNORE_INDEX",
    "AutoStandard",
    "Brier",
    "ChannelEntropy",
    "ChannelNormEntropy",
    "CrossEntropy",
    "DepthStandard",
    "Dice",
    "ExplicitStandard",
    "Hsic",
    "IMacHSR",
    "InfoNCE",
    "LayerInfo",
    "Losses",
    "MiVariational",
    "Ohem",
    "OutputDice",
    "Prototype",
    "ResolutionStandard",
    "StageStandard",
    "Tap",
    "__version__",
    "trace",
]
