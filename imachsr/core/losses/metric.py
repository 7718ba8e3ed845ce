"""Losses on a projected, normalised feature space.

Symbols: p, a, n positions of the tap, z features of unit length from ``[B, D, h, w]``, y_p the majority class; positions of which less than a
half is valid do not count.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.adapters import make_projection
from imachsr.core.labels import SideLabels
from imachsr.core.losses.protocol import ToNothing, directions, inverse_length, sample
from imachsr.core.messages import require
from imachsr.core.types import in_full


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """Args: temperature: Of the similarities, > 0. dimension: D of the projection, >= 1."""

    temperature: float = 0.1
    dimension: int = 32
    family: ClassVar[str] = "metric"

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature > 0", self.temperature)
        require(self.dimension >= 1, "dimension >= 1", self.dimension)

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """1x1 projection C -> D."""
        return make_projection(channels, self.dimension, generator)


@dataclass(frozen=True, kw_only=True)
class InfoNCE(_Metric):
    """Supervised pixel contrast over sampled pixels: ``-1/|A| sum_a 1/|P_a| sum_{p in P_a} log softmax_{n != a}(z_a z_n / t)_p``. O(N^2 D).

    A are the sampled valid positions that have positives, P_a the other samples of a's class, t the temperature. Each rank contrasts its own
    samples; the mean is over the anchors of all. Sources: Khosla et al. 2020 (eq. 2), Wang et al. 2021.

    Args:
        temperature: t > 0.
        dimension: D of the projection, >= 1.
        anchors: N, pixels sampled per batch, >= 2.

    """

    kind: Literal["infonce"] = "infonce"
    temperature: float = 0.2
    anchors: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.anchors >= 2, "anchors >= 2", self.anchors)

    @property
    def num_read(self) -> int:
        """Positions that it draws."""
        return self.anchors

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Contrast in nats, from z ``[B, D, h, w]``."""
        x, y, is_valid = sample(z, labels, self.anchors)
        x = directions(x, 1)
        is_self = torch.eye(len(y), dtype=torch.bool, device=z.device)
        # -inf for everything would be NaN: a pixel's own column stays for those that are not valid, whose rows do not count.
        is_out = (is_self | ~is_valid[None, :]) & is_valid[:, None]
        logits = (x @ x.T / self.temperature).masked_fill(is_out, torch.finfo(x.dtype).min)
        is_positive = ((y[:, None] == y[None, :]) & ~is_self & is_valid[None, :] & is_valid[:, None]).to(x.dtype)
        positives = is_positive.sum(1)
        # The mean of log p over the positives, without a log p of every pair.
        per_anchor = (logits * is_positive).sum(1) / positives.clamp(min=1) - (positives > 0) * logits.logsumexp(1)
        return -per_anchor.sum() / labels.ranks.mean((positives > 0).sum().to(x.dtype)).clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class Prototype(_Metric):
    """Cross-entropy of each pixel against the batch's class means: ``-1/V sum_p log softmax_k(z_p c_k / t)_{y_p}``. O(V K D).

    V counts the valid positions of all ranks. c_k is the normalised mean of the normalised features of class k over all ranks, without
    gradient; only present classes compete. Source: after Snell et al. 2017.

    Args:
        temperature: t > 0.
        dimension: D of the projection, >= 1.

    """

    kind: Literal["prototype"] = "prototype"

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Cross-entropy in nats, from z ``[B, D, h, w]``."""
        x = in_full(z).flatten(2)
        y = labels.hard.flatten(1)
        # Lengths are divided out of the products, which are smaller than the features: a normalised copy of these would be the dearest step.
        shrink = inverse_length(x, 1)
        is_class = y[:, None] == torch.arange(labels.num_classes, device=y.device)[:, None]
        members = torch.where(is_class, shrink.detach(), 0.0)
        means = labels.ranks.mean(torch.bmm(members, x.detach().transpose(1, 2)).sum(0))
        is_absent = labels.ranks.mean(members.sum((0, 2))) == 0
        prototypes = F.normalize(means, dim=1) / self.temperature
        logits = torch.bmm(prototypes.expand(len(x), -1, -1), x) * shrink
        logits = logits.masked_fill(is_absent[:, None], torch.finfo(x.dtype).min)
        surprise = F.cross_entropy(logits, y, ignore_index=-1, reduction="none")
        return labels.mean(surprise, (y >= 0).to(x.dtype))


@dataclass(frozen=True, kw_only=True)
class Hsic(ToNothing):
    """One minus the normalised Hilbert-Schmidt independence of features and labels, in [0, 1]. O(N^2 C).

    ``1 - <HKH, HLH> / (|HKH| |HLH|)`` with a Gaussian kernel K on channel-wise standardised features (sigma^2 = C), L = [y_i = y_j],
    H the centring matrix, over the N sampled positions that are valid. Each rank takes its own samples. Sources: Gretton et al. 2005;
    Kornblith et al. 2019 for the normalisation.

    Args:
        samples: N, pixels sampled per batch, >= 2.

    """

    kind: Literal["hsic"] = "hsic"
    samples: int = 256
    family: ClassVar[str] = "dependence"

    def __post_init__(self) -> None:
        require(self.samples >= 2, "samples >= 2", self.samples)

    @property
    def num_read(self) -> int:
        """Positions that it draws."""
        return self.samples

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Lack of dependence, from z ``[B, C, h, w]``; 0 when fewer than two classes are there."""
        x, y, is_valid = sample(z, labels, self.samples)
        weight = is_valid.to(x.dtype)
        count = weight.sum().clamp(min=1)
        x = (x - (x * weight[:, None]).sum(0) / count) * weight[:, None]
        x = x / (x.square().sum(0) / count + 1e-6).sqrt()
        squares = x.square().sum(1)
        distances = (squares[:, None] + squares[None, :] - 2 * x @ x.T).clamp(min=0)
        pairs = weight[:, None] * weight[None, :]
        k = _centred(torch.exp(-distances / (2 * x.shape[1])), weight, count)
        same = _centred((y[:, None] == y[None, :]).to(x.dtype), weight, count)
        strength = (k * same * pairs).sum() / ((k.square() * pairs).sum() * (same.square() * pairs).sum()).clamp(min=1e-12).sqrt()
        has_classes = (same.abs() * pairs > 1e-6).any().to(x.dtype)
        return (1 - strength) * has_classes


def _centred(matrix: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """The kernel matrix of the valid samples, centred in feature space."""
    rows = (matrix @ weight) / count
    return matrix - rows[:, None] - rows[None, :] + (rows * weight).sum() / count


MetricLoss = InfoNCE | Prototype | Hsic
