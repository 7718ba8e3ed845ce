"""Losses on the overlap of whole regions.

Symbols: p positions of the tap, z scores ``[B, K, h, w]``, q = softmax(z), y class shares; sums run over the whole batch.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imachsr.core.labels import SideLabels
from imachsr.core.losses.protocol import ToClasses
from imachsr.core.messages import require
from imachsr.core.types import in_full


@dataclass(frozen=True, kw_only=True)
class Tversky(ToClasses):
    """``1 - mean_k TP_k / (TP_k + a FP_k + b FN_k)`` over present classes, in [0, 1]. O(BKhw). Source: Salehi et al. 2017, eq. 4.

    TP = sum v q y, FP = sum v q - TP, FN = sum v y - TP, v the share of valid pixels; over several ranks, sums of all of them.

    Args:
        alpha: a > 0, the weight of false positives.
        beta: b > 0, the weight of false negatives.

    """

    kind: Literal["tversky"] = "tversky"
    alpha: float = 0.3
    beta: float = 0.7
    family: ClassVar[str] = "overlap"

    def __post_init__(self) -> None:
        require(self.alpha > 0, "alpha > 0", self.alpha)
        require(self.beta > 0, "beta > 0", self.beta)

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """One minus the mean index, from z ``[B, K, h, w]``."""
        return _one_minus_index(z, labels, self.alpha, self.beta)


@dataclass(frozen=True, kw_only=True)
class Dice(ToClasses):
    """Soft Dice over present classes: ``1 - mean_k 2 sum_p v_p q_pk y_pk / sum_p v_p (q_pk + y_pk)``, in [0, 1]. O(BKhw).

    v is the share of valid pixels; over several ranks, sums of all of them. Source: Milletari et al. 2016 (V-Net), with a plain sum in the
    denominator.
    """

    kind: Literal["dice"] = "dice"
    family: ClassVar[str] = "overlap"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """One minus the mean Dice coefficient, from z ``[B, K, h, w]``."""
        return _one_minus_index(z, labels, 0.5, 0.5)


def _one_minus_index(z: Tensor, labels: SideLabels, alpha: float, beta: float) -> Tensor:
    weight = labels.valid.unsqueeze(1)
    q = F.softmax(in_full(z), 1)
    # The share of valid pixels counts once in each sum: squared in the hits, it would make a right answer beside void a wrong one.
    y = (labels.soft * weight).to(q.dtype)
    sums = labels.ranks.sum(torch.stack([(q * y).sum((0, 2, 3)), (q * weight).sum((0, 2, 3)), y.sum((0, 2, 3))]))
    hits, predicted, labelled = sums
    is_present = (labelled > 0).to(q.dtype)
    index = hits / (hits + alpha * (predicted - hits) + beta * (labelled - hits)).clamp(min=1e-6)
    total: Tensor = ((1 - index) * is_present).sum() / is_present.sum().clamp(min=1)
    return total


@dataclass(frozen=True, kw_only=True)
class Lovasz(ToClasses):
    """Convex extension of the Jaccard loss, mean over present classes of ``sum_i e_(i) (J_i - J_{i-1})``, in [0, 1]. O(K V log V).

    e_(1) >= e_(2) >= ... are the errors ``|y_p - q_p|`` of one class, J_i the Jaccard loss when the first i of the V valid positions are wrong.
    Computed on the majority class of each position (less than half valid: left out). Each rank takes its own batch. Source: Berman et al.
    2018, algorithm 1 (Lovasz-Softmax).
    """

    kind: Literal["lovasz"] = "lovasz"
    family: ClassVar[str] = "overlap"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Mean extension, from z ``[B, K, h, w]``."""
        q = F.softmax(in_full(z), 1).transpose(0, 1).flatten(1)
        y = labels.hard.flatten()
        is_valid = (y >= 0).to(q.dtype)
        truth = (y == torch.arange(len(q), device=z.device)[:, None]).to(q.dtype)
        # An ignored pixel has no error: it comes last, and adds nothing.
        errors, order = ((truth - q).abs() * is_valid).sort(1, descending=True)
        truth = truth.gather(1, order)
        total = truth.sum(1, keepdim=True)
        left, union = total - truth.cumsum(1), total + (1 - truth).cumsum(1)
        jaccard = 1 - left / union
        steps = jaccard.diff(dim=1, prepend=torch.zeros_like(total))
        is_present = (total.squeeze(1) > 0).to(q.dtype)
        return ((errors * steps).sum(1) * is_present).sum() / is_present.sum().clamp(min=1)


OverlapLoss = Dice | Tversky | Lovasz
