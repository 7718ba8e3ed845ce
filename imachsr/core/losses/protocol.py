"""What a side loss must offer, and what all of them share."""

from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from imachsr.core.adapters import make_projection
from imachsr.core.labels import SideLabels
from imachsr.core.types import in_full


@runtime_checkable
class AnySideLoss(Protocol):
    """What a side loss must offer, shipped or the user's own.

    It may declare, as class attributes that are False without: ``needs_dense`` (labels of pixels in the plane), ``needs_output``
    (``labels.output``) and ``gives_scores`` (z holds class scores).
    """

    family: ClassVar[str]

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """Module from the tap's ``[B, C, h, w]`` to the loss's ``[B, D, h, w]``."""

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Scalar loss."""


class ToClasses:
    """Losses that read class scores."""

    gives_scores: ClassVar[bool] = True

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """1x1 convolution C -> K."""
        return make_projection(channels, num_classes, generator)


class ToNothing:
    """Losses that read the features themselves."""

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """None is needed."""
        return nn.Identity()


def inverse_length(x: Tensor, axis: int) -> Tensor:
    """One over the length of the vectors along an axis, which is kept with size 1.

    Vectors shorter than 1e-3 count as that long: at exactly 0, where an inactive position of a tap may lie, the slope of a full
    normalisation is infinite.
    """
    # A sum of squares is twice as fast as F.normalize's norm along an axis that is not the last.
    return x.square().sum(axis, keepdim=True).clamp(min=1e-6).rsqrt()


def directions(x: Tensor, axis: int) -> Tensor:
    """Unit vectors along an axis, in full precision; see :func:`inverse_length` for very short ones."""
    x = in_full(x)
    return x * inverse_length(x, axis)


def sample(z: Tensor, labels: SideLabels, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels drawn without replacement, valid ones first.

    The draw is a hash of (``labels.draw``, pixel): the same on every device, without a random state, and of a fixed size, so that a compiled
    graph need not break.

    Args:
        z: ``[B, D, h, w]``.
        labels: At (h, w).
        count: Pixels wanted.

    Returns:
        Features ``[N, D]`` in full precision, classes int64 ``[N]`` (-1 when ignored) and whether each is valid ``[N]``; N = min(count, B h w).

    """
    y = labels.hard.flatten()
    rank = _hash(torch.arange(y.numel(), device=y.device), labels.draw)
    chosen = torch.where(y >= 0, rank, -1).topk(min(count, y.numel())).indices
    area = z.shape[2] * z.shape[3]
    x = z.flatten(2)[chosen // area, :, chosen % area]
    return in_full(x), y[chosen], y[chosen] >= 0


def _hash(index: Tensor, draw: Tensor) -> Tensor:
    """31 pseudo-random bits of each index."""
    x = (index + draw * 0x9E3779B1) & 0x7FFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0x7FFFFFFF
    return x ^ (x >> 16)
