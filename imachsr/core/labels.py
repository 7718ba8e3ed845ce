"""Labels at the resolution of a tap.

The tap's h x w cells share the label map's H x W pixels out: pixel (y, x) belongs to cell (floor(y h / H), floor(x w / W)) and to no other. A
tap finer than its labels sees each label several times: cell i reads pixel floor(i H / h). The same holds along the depth of volumes.
"""

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imachsr.core.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class SideLabels:
    """What a side loss compares with: labels brought to one tap's (h, w).

    Attributes:
        hard: Majority class of the valid pixels, int64 ``[B, h, w]``; -1 where fewer than half of the pixels are valid.
        soft: Class shares among the valid pixels (area average), float ``[B, K, h, w]``; 0 where none is valid.
        valid: Share of valid pixels in [0, 1], float ``[B, h, w]``.
        is_dense: Whether labels are given for pixels; False for one label an image, where h = w = 1.
        draw: Number of this random draw, int64 scalar; see :func:`imachsr.core.losses.protocol.sample`.
        output: Detached scores of the model's own output at (h, w), float ``[B, K, h, w]``; only for losses that ask for it.
        ranks: The processes that share the batch.

    """

    hard: Tensor
    soft: Tensor
    valid: Tensor
    is_dense: bool = True
    draw: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    output: Tensor | None = None
    ranks: Ranks = Ranks()

    @property
    def num_classes(self) -> int:
        """K."""
        return self.soft.shape[1]

    def mean(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean of ``[B, h, w]`` values over the valid pixels of all ranks; a zero that is connected to them when there are none.

        Args:
            values: One a pixel.
            weight: Instead of ``valid``, >= 0.

        """
        weight = self.valid if weight is None else weight
        count = self.ranks.mean(weight.sum())
        return (values * weight).sum() / torch.where(count > 0, count, 1)


class TapLabels:
    """One batch of labels, checked once and cached per tap size.

    Args:
        labels: int64 ``[B, H, W]``, ``[B, D, H, W]`` or ``[B]``, classes 0..K-1 or ``ignore_index``.
        num_classes: K, >= 2.
        ignore_index: Label of pixels that do not count.
        draw: See :class:`SideLabels`.
        ranks: See :class:`SideLabels`.
        is_checked: Look at every value; costs a synchronisation on a GPU.

    Raises:
        TypeError: If the labels are not int64.
        ValueError: If the labels have another rank, or a value outside the classes (value, position and count are told).

    """

    def __init__(
        self, labels: Tensor, num_classes: int, ignore_index: int, *, draw: Tensor | None = None, ranks: Ranks | None = None, is_checked: bool = True
    ) -> None:
        if labels.dtype != torch.int64:
            raise TypeError(f"`labels` must be int64, but got {labels.dtype}; use labels.long()")
        if labels.ndim not in (1, 3, 4):
            raise ValueError(f"`labels` must have shape [B, H, W], [B, D, H, W] or [B] (one an image), but got {tuple(labels.shape)}")
        self._labels, self._num_classes = labels, num_classes
        self._is_valid = labels != ignore_index
        self.is_dense = labels.ndim > 1
        self._draw = torch.zeros((), dtype=torch.int64, device=labels.device) if draw is None else draw
        self._ranks = ranks or Ranks()
        if is_checked:
            self._check(ignore_index)
        self._cache: dict[tuple[int, ...], SideLabels] = {}
        self._counts_at: dict[tuple[int, ...], Tensor] = {}

    def _check(self, ignore_index: int) -> None:
        wrong = self._is_valid & ((self._labels < 0) | (self._labels >= self._num_classes))
        if bool(wrong.any()):
            first = wrong.nonzero()[0].tolist()
            axes = {1: "[b]", 3: "[b, y, x]", 4: "[b, z, y, x]"}[self._labels.ndim]
            raise ValueError(
                f"`labels` must be in 0..{self._num_classes - 1} or {ignore_index} (ignored), but got {int(self._labels[tuple(first)])} "
                f"at {axes} = {first}, and {int(wrong.sum())} such labels in all"
            )

    def at(self, size: tuple[int, ...]) -> SideLabels:
        """Labels at (h, w); at (d, h, w) with the slices below each other: (d h, w); at (1, 1), whatever is asked, for one label an image."""
        if size not in self._cache:
            self._cache[size] = self._resized(size)
        return self._cache[size]

    def _resized(self, size: tuple[int, ...]) -> SideLabels:
        counts, pixels = self._counts(size if self.is_dense else (1, 1))
        total = counts.sum(1)
        valid = total / pixels
        soft = counts / total.unsqueeze(1).clamp(min=1)
        hard = torch.where(valid >= 0.5, counts.max(1).indices, -1)  # max is ten times as fast as argmax here
        return SideLabels(hard=hard, soft=soft, valid=valid, is_dense=self.is_dense, draw=self._draw, ranks=self._ranks)

    def _counts(self, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Valid pixels a class and cell, float32 ``[B, K, h, w]``, and all pixels a cell, ``[B, h, w]``."""
        labels = self._counted() if self.is_dense else self._counted().view(-1, 1, 1)
        given = tuple(labels.shape[1:])
        is_finer = any(wanted > have for wanted, have in zip(size, given, strict=True))
        counts = None if is_finer else self._from_finer(size)
        if counts is None:
            counts = _histograms(_repeated(labels, size) if is_finer else labels, self._num_classes + 1, size)
        if not is_finer:
            self._counts_at[size] = counts
        counts = counts.flatten(2, -2)
        return counts[:, :-1], counts.sum(1)

    def _counted(self) -> Tensor:
        """The labels, with a class of their own for ignored pixels."""
        return torch.where(self._is_valid, self._labels, self._num_classes)

    def _from_finer(self, size: tuple[int, ...]) -> Tensor | None:
        """Counts from those of a size that this one divides: cells are then unions of its cells, as floor(floor(k n x) / k) = floor(n x)."""
        for finer, counts in self._counts_at.items():
            if all(have % wanted == 0 for have, wanted in zip(finer, size, strict=True)):
                for axis, (have, wanted) in enumerate(zip(finer, size, strict=True), start=2):
                    # Strided slices: torch sums a short axis that lies inside ten times slower.
                    parts = counts.unflatten(axis, (wanted, have // wanted)).unbind(axis + 1)
                    counts = functools.reduce(torch.add, parts)
                return counts
        return None


def _repeated(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Labels ``[B, ...]``, repeated along the axes on which they are coarser than the cells."""
    for axis, (wanted, have) in enumerate(zip(size, labels.shape[1:], strict=True), start=1):
        if wanted > have:
            labels = labels.index_select(axis, torch.arange(wanted, device=labels.device) * have // wanted)
    return labels


def _histograms(labels: Tensor, num_values: int, size: tuple[int, ...]) -> Tensor:
    """How often each value is in each cell, float32 ``[B, values, *size]``; exact whatever the order of the sum."""
    given = labels.shape[1:]
    cell = torch.zeros((1,) * len(given), dtype=torch.int64, device=labels.device)
    for axis, (wanted, have) in enumerate(zip(size, given, strict=True)):
        position = torch.arange(have, device=labels.device) * wanted // have
        cell = cell * wanted + position.view([-1 if axis == a else 1 for a in range(len(given))])
    cells = math.prod(size)
    index = (labels * cells + cell).flatten(1)
    counts = torch.zeros(len(labels), num_values * cells, device=labels.device)
    counts.scatter_add_(1, index, torch.ones((), device=labels.device).expand_as(index))
    return counts.view(len(labels), num_values, *size)
