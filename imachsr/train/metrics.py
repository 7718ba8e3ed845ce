"""Segmentation metrics from one confusion matrix."""

import torch
from torch import Tensor

from imachsr.core.types import IGNORE_INDEX
from imachsr.train.parallel import sum_over_ranks


class ConfusionMatrix:
    """Counts of pixels, rows by label and columns by prediction, ``[K, K]`` int64.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count predicted classes against labels, both int64 ``[B, H, W]``; ignored pixels do not count.

        Raises:
            ValueError: If one is outside the classes.
        """
        is_valid = labels != IGNORE_INDEX
        labels, predicted = labels[is_valid], predicted[is_valid]
        for name, values in (("labels", labels), ("predicted", predicted)):
            wrong = values[(values < 0) | (values >= self.num_classes)]
            if len(wrong):
                raise ValueError(f"`0 <= {name} < {self.num_classes}` must hold (or {IGNORE_INDEX}, ignored, for labels), but got {int(wrong[0])}")
        pairs = labels * self.num_classes + predicted
        self.counts += torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, self.num_classes).cpu()

    def sum_over_ranks(self) -> None:
        """Add what the other ranks of a distributed run counted."""
        self.counts = sum_over_ranks(self.counts)

    def iou(self) -> Tensor:
        """Intersection over union a class, percent, float64 ``[K]``; NaN for a class that is neither labelled nor predicted."""
        hits = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return 100 * hits / union

    def miou(self) -> float:
        """Mean of :meth:`iou` over the classes that occur, percent; NaN when nothing was counted."""
        return float(self.iou().nanmean())

    def accuracy(self) -> float:
        """Share of pixels that are right, percent."""
        return float(100 * self.counts.diagonal().sum().double() / self.counts.sum())
