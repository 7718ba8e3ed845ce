"""Labels at the resolution of a tap."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class SideLabels:
    """Labels brought to one tap's (h, w).

    Attributes:
        hard: Majority class of the valid pixels, int64 ``[B, h, w]``; -1 where fewer than half of the pixels are valid.
        soft: Class shares among the valid pixels (area average), float32 ``[B, K, h, w]``; 0 where none is valid.
        valid: Share of valid pixels in [0, 1], float32 ``[B, h, w]``.

    """

    hard: Tensor
    soft: Tensor
    valid: Tensor


class TapLabels:
    """One batch of labels, checked once and cached per tap size.

    Args:
        labels: int64 ``[B, H, W]``, classes 0..K-1 or ``ignore_index``.
        num_classes: K, >= 2.
        ignore_index: Label of pixels that do not count.

    Raises:
        TypeError: If the labels are not int64.
        ValueError: If the labels have another rank, or a value outside the classes (value, position and count are told).

    """

    def __init__(self, labels: Tensor, num_classes: int, ignore_index: int) -> None:
        if labels.dtype != torch.int64:
            raise TypeError(f"`labels` must be int64, but got {labels.dtype}; use labels.long()")
        if labels.ndim != 3:
            raise ValueError(f"`labels` must have shape [B, H, W], but got {tuple(labels.shape)}")
        self._labels, self._num_classes = labels, num_classes
        self._is_valid = labels != ignore_index
        wrong = self._is_valid & ((labels < 0) | (labels >= num_classes))
        if bool(wrong.any()):
            first = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"`labels` must be in 0..{num_classes - 1} or {ignore_index} (ignored), but got {int(labels[tuple(first)])} "
                f"at [b, y, x] = {first}, and {int(wrong.sum())} such pixels in all"
            )
        self._cache: dict[tuple[int, int], SideLabels] = {}

    def at(self, size: tuple[int, int]) -> SideLabels:
        """Labels at (h, w)."""
        if size not in self._cache:
            self._cache[size] = self._resized(size)
        return self._cache[size]

    def _resized(self, size: tuple[int, int]) -> SideLabels:
        clean = torch.where(self._is_valid, self._labels, 0)
        one_hot = F.one_hot(clean, self._num_classes).permute(0, 3, 1, 2).float() * self._is_valid.unsqueeze(1)
        shares = F.adaptive_avg_pool2d(one_hot, size)
        valid = F.adaptive_avg_pool2d(self._is_valid.unsqueeze(1).float(), size).squeeze(1)  # the sum of the shares may round to below one half
        soft = shares / valid.unsqueeze(1).clamp(min=1e-6)
        hard = torch.where(valid >= 0.5, shares.argmax(1), -1)
        return SideLabels(hard=hard, soft=soft, valid=valid)
