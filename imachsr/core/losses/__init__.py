"""Losses for intermediate layers.

A side loss is a frozen dataclass with a ``family``, a ``make_adapter`` and a ``__call__`` from adapted features ``z [B, D, h, w]`` and
:class:`SideLabels` to a scalar in full precision. Means run over valid pixels; with none, the result is a zero that is still connected to
``z``. A new loss is a class in the file of its kind, and its name in the union on that file's last line.
"""

from imachsr.core.losses.metric import Hsic, InfoNCE, Prototype
from imachsr.core.losses.overlap import Dice, Lovasz, Tversky
from imachsr.core.losses.protocol import AnySideLoss
from imachsr.core.losses.scores import BinaryCrossEntropy, Brier, Focal, JensenShannon, MiVariational, SoftCrossEntropy
from imachsr.core.losses.structure import Affinity, Boundary, Presence, RegionMutualInformation, Synergy
from imachsr.core.losses.union import DepthRule, SideLoss, losses_of, parse_side_loss

__all__ = [
    "Affinity",
    "AnySideLoss",
    "BinaryCrossEntropy",
    "Boundary",
    "Brier",
    "DepthRule",
    "Dice",
    "Focal",
    "Hsic",
    "InfoNCE",
    "JensenShannon",
    "Lovasz",
    "MiVariational",
    "Presence",
    "Prototype",
    "RegionMutualInformation",
    "SideLoss",
    "SoftCrossEntropy",
    "Synergy",
    "Tversky",
    "losses_of",
    "parse_side_loss",
]
