"""Segmentation metrics from counts that add up over batches and ranks."""

import math
from collections.abc import Callable

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

    def bins(self) -> list[dict[str, float]]:
        """What a reliability diagram shows, a row for each bin that holds pixels: their number, mean confidence and share that is right, percent."""
        return [
            {"pixels": int(pixels), "confidence": 100 * confidence / pixels, "right": 100 * right / pixels}
            for pixels, confidence, right in zip(*self.sums.tolist(), strict=True)
            if pixels
        ]


class BoundaryIoU:
    """IoU of the pixels near contours (Cheng et al., arXiv 2103.16562), a class at a time over all images: what a shift by a few pixels costs.

    Of a mask counts the band that lies within ``d`` pixels of its contour, inside of it; the image's border is a contour, as in the authors' code,
    and ignored pixels are none. ``d`` is 2 % of the image's diagonal, at least a pixel.

    Args:
        num_classes: K.
        share: Of the diagonal, in (0, 1).
    """

    def __init__(self, num_classes: int, share: float = 0.02) -> None:
        self.num_classes, self.share = num_classes, share
        self.sums = torch.zeros(3, num_classes, dtype=torch.int64)
        """Pixels of bands by class: of label and prediction both, of the label's, of the prediction's; ``[3, K]``."""

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count predicted classes against labels, both int64 ``[B, H, W]``; ignored pixels do not count."""
        is_valid = labels != IGNORE_INDEX
        width = max(1, round(self.share * math.hypot(*labels.shape[-2:])))
        of_label, of_prediction = (_band(classes, is_valid, width) for classes in (labels, predicted))
        both = of_label & of_prediction & (labels == predicted)
        for row, (classes, chosen) in enumerate(((labels, both), (labels, of_label), (predicted, of_prediction))):
            self.sums[row] += torch.bincount(classes[chosen], minlength=self.num_classes).cpu()

    def sum_over_ranks(self) -> None:
        """Add what the other ranks of a distributed run counted."""
        self.sums = sum_over_ranks(self.sums)

    def mean(self) -> float:
        """Mean over the classes whose bands occur, percent; NaN when nothing was counted."""
        both, label, prediction = self.sums.double()
        return float((100 * both / (label + prediction - both)).nanmean())


def _band(classes: Tensor, is_valid: Tensor, width: int) -> Tensor:
    """Valid pixels with another class, or the image's border, at most ``width`` rows and columns away, ``[B, H, W]`` bool.

    All classes at once: a pixel is inside of its mask where the largest and the smallest class around it are equal.
    """
    found = is_valid.clone()
    if min(classes.shape[-2:]) > 2 * width:
        # In bytes: with 255 classes at most, neither 255 for the smallest nor 0 for the largest, of one more, is a class.
        smallest = _extreme(classes.where(is_valid, 255).to(torch.uint8), width, torch.minimum)
        largest = _extreme((classes + 1).where(is_valid, 0).to(torch.uint8), width, torch.maximum)
        found[:, width:-width, width:-width] &= largest != smallest + 1
    return found


def _extreme(values: Tensor, width: int, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of the ``2 width + 1`` rows and columns around each pixel that has them, ``[B, H - 2 width, W - 2 width]``; in few steps, by doubling."""
    size = 2 * width + 1
    for axis in (1, 2):
        reached = 1
        while reached < size:
            step = min(reached, size - reached)
            rest = values.shape[axis] - step
            values = of(values.narrow(axis, 0, rest), values.narrow(axis, step, rest))
            reached += step
    return values


class NegativeLogLikelihood:
    """How improbable the labels are to a model, whatever it was trained by; sums that add up over batches and ranks."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)
        """Sum over pixels of -log p(label), nats, and their number."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count pixels of logits ``[B, K, H, W]`` against labels ``[B, H, W]``; ignored ones do not count."""
        is_valid = labels != IGNORE_INDEX
        chosen = logits.gather(1, labels.where(is_valid, 0)[:, None])[:, 0]
        lost = (logits.logsumexp(1) - chosen)[is_valid]
        self.sums += torch.stack([lost.double().sum(), is_valid.sum().double()]).cpu()

    def sum_over_ranks(self) -> None:
        """Add what the other ranks of a distributed run counted."""
        self.sums = sum_over_ranks(self.sums)

    def mean(self) -> float:
        """Mean over pixels, nats; NaN when nothing was counted."""
        return float(self.sums[0] / self.sums[1])
