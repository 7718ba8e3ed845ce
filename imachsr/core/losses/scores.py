"""Losses on class probabilities, pixel by pixel.

Symbols: p positions of the tap, z scores ``[B, K, h, w]``, q = softmax(z), y_p the class of p (its majority) or y_pk its class shares, v_p
its share of valid pixels. Losses on the majority leave out positions of which less than a half is valid, V being the number of the others;
losses on shares weigh p by v_p, and V = sum_p v_p. Over several ranks, V is that of all of them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from imachsr.core.labels import SideLabels
from imachsr.core.losses.protocol import ToClasses
from imachsr.core.messages import require
from imachsr.core.types import in_full


@dataclass(frozen=True, kw_only=True)
class MiVariational(ToClasses):
    """Variational bound on the mutual information of tap and labels: ``-1/V sum_p log q_p(y_p)`` over valid majorities. O(BKhw).

    With a softmax adapter it *is* pixel cross-entropy at the tap's resolution, hence family ``log_score``. Source: arXiv 2505.00404 v1; the
    bound is that of Barber and Agakov 2003.
    """

    kind: Literal["mi_variational"] = "mi_variational"
    family: ClassVar[str] = "log_score"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Cross-entropy in nats, from z ``[B, K, h, w]``."""
        return labels.mean(_cross_entropy(z, labels), _is_labelled(labels))


@dataclass(frozen=True, kw_only=True)
class SoftCrossEntropy(ToClasses):
    """Cross-entropy against area-averaged labels: ``-1/V sum_p v_p sum_k y_pk log q_pk`` with v_p the share of valid pixels. O(BKhw).

    Equal to ``mi_variational`` where no position holds two classes. Source: Good 1952 for the score; Zhao et al. 2019 for averaged labels.
    """

    kind: Literal["soft_ce"] = "soft_ce"
    family: ClassVar[str] = "log_score"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Cross-entropy in nats, from z ``[B, K, h, w]``."""
        return labels.mean(-(labels.soft * F.log_softmax(in_full(z), 1)).sum(1))


@dataclass(frozen=True, kw_only=True)
class Focal(ToClasses):
    """Cross-entropy that leaves easy pixels alone: ``-1/V sum_p (1 - q_p(y_p))^g log q_p(y_p)`` over valid majorities. O(BKhw).

    Source: Lin et al. 2017, eq. 4.

    Args:
        gamma: g >= 0.

    """

    kind: Literal["focal"] = "focal"
    gamma: float = 2.0
    family: ClassVar[str] = "log_score"

    def __post_init__(self) -> None:
        require(self.gamma >= 0, "gamma >= 0", self.gamma)

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Focal loss in nats, from z ``[B, K, h, w]``."""
        surprise = _cross_entropy(z, labels)
        # 1 - exp(-s) is 0 where a pixel is certain, and 0 ** g has no gradient for g < 1.
        return labels.mean((1 - (-surprise).exp()).clamp(min=1e-7) ** self.gamma * surprise, _is_labelled(labels))


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(ToClasses):
    """One class against the rest: ``-1/(VK) sum_p v_p sum_k y_pk log s_pk + (1 - y_pk) log(1 - s_pk)`` with s = sigmoid(z). O(BKhw).

    v_p is the share of valid pixels. Source: Cox 1958 (logistic regression), one class against the rest.
    """

    kind: Literal["bce"] = "bce"
    family: ClassVar[str] = "log_score"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Mean binary cross-entropy in nats, from z ``[B, K, h, w]``."""
        z = in_full(z)
        return labels.mean(F.binary_cross_entropy_with_logits(z, labels.soft.to(z.dtype), reduction="none").mean(1))


@dataclass(frozen=True, kw_only=True)
class Brier(ToClasses):
    """Quadratic score ``1/V sum_p v_p sum_k (q_pk - y_pk)^2`` with v_p the share of valid pixels, in [0, 2]. O(BKhw). Source: Brier 1950."""

    kind: Literal["brier"] = "brier"
    family: ClassVar[str] = "quadratic"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Mean squared error of the class probabilities, summed over classes, from z ``[B, K, h, w]``."""
        return labels.mean((F.softmax(in_full(z), 1) - labels.soft).square().sum(1))


@dataclass(frozen=True, kw_only=True)
class JensenShannon(ToClasses):
    """Jensen-Shannon divergence ``1/V sum_p v_p (KL(q_p|m_p) + KL(y_p|m_p)) / 2`` with m = (q + y)/2, in [0, log 2]. O(BKhw).

    v_p is the share of valid pixels. Source: Lin 1991.
    """

    kind: Literal["js"] = "js"
    family: ClassVar[str] = "divergence"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Divergence in nats, from z ``[B, K, h, w]``."""
        log_q = F.log_softmax(in_full(z), 1)
        q, y = log_q.exp(), labels.soft.to(log_q.dtype)
        # The logarithm of the mean is kept off 0, where q underflows and y is 0: its factor is 0 there.
        log_m = ((q + y) / 2).clamp(min=1e-30).log()
        entropy_y = -(y * y.clamp(min=1e-30).log()).sum(1)
        return labels.mean(((q * (log_q - log_m)).sum(1) - (y * log_m).sum(1) - entropy_y) / 2)


def _is_labelled(labels: SideLabels) -> Tensor:
    return (labels.hard >= 0).to(labels.valid.dtype)


def _cross_entropy(z: Tensor, labels: SideLabels) -> Tensor:
    return F.cross_entropy(in_full(z), labels.hard, ignore_index=-1, reduction="none")


ScoreLoss = MiVariational | SoftCrossEntropy | Focal | BinaryCrossEntropy | Brier | JensenShannon
