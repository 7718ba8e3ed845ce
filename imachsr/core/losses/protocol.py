"""What a side loss must offer, and what all of them share."""

from dataclasses import replace
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
    (``labels.output``) and ``gives_scores`` (z holds class scores). One that neither needs the output nor gives scores, reads a sample of the
    positions by :func:`sample`, and has an adapter that looks at each position by itself, may name their number as ``num_read``: its adapter
    then sees these alone, which is the same and costs next to nothing.
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
    """Pixels drawn without replacement, valid ones before others.

    The draw is a hash of (``labels.draw``, pixel): the same on every device, without a random state, and of a fixed size, so that a compiled
    graph need not break.

    Args:
        z: ``[B, D, h, w]``.
        labels: At (h, w).
        count: Pixels wanted.

    Returns:
        Features ``[N, D]`` in full precision, classes int64 ``[N]`` (-1 when ignored) and whether each is valid ``[N]``; N = min(count, B h w).

    """
    if labels.hard.numel() <= count:  # all of them, as they are
        x, y = z.permute(0, 2, 3, 1).flatten(0, 2), labels.hard.flatten()
        return in_full(x), y, y >= 0
    chosen = _drawn(labels, count)
    area = z.shape[2] * z.shape[3]
    x, y = z.flatten(2)[chosen // area, :, chosen % area], labels.hard.flatten()[chosen]
    return in_full(x), y, y >= 0


def only_drawn(features: Tensor, labels: SideLabels, count: int) -> tuple[Tensor, SideLabels]:
    """What :func:`sample` would read, as one image of a single row, with its labels; everything where no more is there.

    Args:
        features: ``[B, C, h, w]``.
        labels: At (h, w).
        count: Pixels wanted.

    Returns:
        Features ``[1, C, 1, N]`` and labels at (1, N).

    """
    if labels.hard.numel() <= count:
        return features, labels
    chosen, (height, width) = _drawn(labels, count), labels.hard.shape[1:]
    at = chosen // (height * width), chosen // width % height, chosen % width
    # Indexed along its own axes: flattened, a tensor in channels_last would be copied whole.
    read, soft = (each[at[0], :, at[1], at[2]].T[None, :, None] for each in (features, labels.soft))
    return read, replace(labels, hard=labels.hard[at][None, None], soft=soft, valid=labels.valid[at][None, None])


def _drawn(labels: SideLabels, count: int) -> Tensor:
    """Flat indices of the drawn positions, int64 ``[N]``."""
    y = labels.hard.flatten()
    rank = _hash(torch.arange(y.numel(), device=y.device), labels.draw)
    return torch.where(y >= 0, rank, -1).topk(count).indices


def _hash(index: Tensor, draw: Tensor) -> Tensor:
    """31 pseudo-random bits of each index."""
    x = (index + draw * 0x9E3779B1) & 0x7FFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0x7FFFFFFF
    return x ^ (x >> 16)
