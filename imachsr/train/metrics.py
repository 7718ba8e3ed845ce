"""Segmentation metrics from counts that add up over batches and ranks."""

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


class Reliability:
    """How often a prediction is right beside how sure it was, in bins of confidence; sums that add up over batches and ranks.

    Args:
        num_bins: Of equal width in [0, 1].
    """

    def __init__(self, num_bins: int = 15) -> None:
        self.num_bins = num_bins
        self.sums = torch.zeros(3, num_bins, dtype=torch.float64)
        """Pixels, sum of their confidence, and those of them that are right; ``[3, bins]``."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count pixels of logits ``[B, K, H, W]`` against labels ``[B, H, W]``; ignored ones do not count."""
        # The largest softmax value without the softmax: exp(max - logsumexp).
        best, predicted = logits.max(1)
        confidence = (best - logits.logsumexp(1)).exp()
        is_valid = labels != IGNORE_INDEX
        confidence, is_right = confidence[is_valid].double(), (predicted == labels)[is_valid].double()
        bins = (confidence.nan_to_num() * self.num_bins).long().clamp(max=self.num_bins - 1)
        for row, weights in enumerate((None, confidence, is_right)):
            self.sums[row] += torch.bincount(bins, weights=weights, minlength=self.num_bins).double().cpu()

    def sum_over_ranks(self) -> None:
        """Add what the other ranks of a distributed run counted."""
        self.sums = sum_over_ranks(self.sums)

    def ece(self) -> float:
        """Expected calibration error (Guo et al., arXiv 1706.04599, eq. 3) over pixels, percent; NaN when nothing was counted.

        The mean over the bins of |share that is right - mean confidence|, weighted by their pixels.
        """
        count, confidence, right = self.sums
        return float(100 * (right - confidence).abs().sum() / count.sum())
