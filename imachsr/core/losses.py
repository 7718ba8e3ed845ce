"""Losses for intermediate layers.

A side loss is a frozen dataclass with a ``family``, a ``make_adapter`` and a ``__call__`` from adapted features ``z [B, D, h, w]`` and
:class:`SideLabels` to a scalar in float32 (float64 for features in float64). Means run over valid pixels; with none, the result is a zero that is
still connected to ``z``.
Symbols: V sum of the pixels' valid shares, y area-averaged class probabilities, q = softmax(z), N sampled pixels.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.adapters import make_projection
from imachsr.core.labels import SideLabels
from imachsr.core.selection import nearest
from imachsr.core.types import in_full


@runtime_checkable
class AnySideLoss(Protocol):
    """What a side loss must offer, shipped or the user's own."""

    family: ClassVar[str]

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """Module from the tap's ``[B, C, h, w]`` to the loss's ``[B, D, h, w]``."""

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        """Scalar loss."""


class _ToClasses:
    """Losses that read class scores."""

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """1x1 convolution C -> K."""
        return make_projection(channels, num_classes, generator)


@dataclass(frozen=True, kw_only=True)
class MiVariational(_ToClasses):
    """Variational bound on the mutual information of tap and labels: ``-1/V sum_p sum_k y_pk log q_pk``. O(BKhw).

    With a softmax adapter it *is* pixel cross-entropy at the tap's resolution, hence family ``log_score``. Source: arXiv 2505.00404 v1.
    """

    kind: Literal["mi_variational"] = "mi_variational"
    family: ClassVar[str] = "log_score"

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        """Cross-entropy in nats."""
        score = (labels.soft * F.log_softmax(in_full(z), 1)).sum(1)
        return -_mean(score, labels.valid)


@dataclass(frozen=True, kw_only=True)
class Dice(_ToClasses):
    """Soft Dice over the classes present in the batch: ``1 - mean_k 2 sum_p q_pk y_pk / sum_p (q_pk + y_pk)``, in [0, 1]. O(BKhw).

    Source: Milletari et al. 2016 (V-Net), with a plain sum in the denominator.
    """

    kind: Literal["dice"] = "dice"
    family: ClassVar[str] = "overlap"

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        """One minus the mean Dice coefficient."""
        weight = labels.valid.unsqueeze(1)
        q, y = F.softmax(in_full(z), 1) * weight, labels.soft * weight
        overlap, mass = (q * y).sum((0, 2, 3)), (q + y).sum((0, 2, 3))
        is_present = (y.sum((0, 2, 3)) > 0).float()
        coefficient = 2 * overlap / mass.clamp(min=1e-6)
        return ((1 - coefficient) * is_present).sum() / is_present.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Brier(_ToClasses):
    """Quadratic score ``1/V sum_p sum_k (q_pk - y_pk)^2``, in [0, 2]. O(BKhw). Source: Brier 1950."""

    kind: Literal["brier"] = "brier"
    family: ClassVar[str] = "quadratic"

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        """Mean squared error of the class probabilities, summed over classes."""
        error = (F.softmax(in_full(z), 1) - labels.soft).square().sum(1)
        return _mean(error, labels.valid)


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """Losses on a projected, normalised feature space.

    Args:
        temperature: Of the similarities, > 0.
        dimension: D of the projection, >= 1.

    """

    temperature: float = 0.1
    dimension: int = 32
    family: ClassVar[str] = "metric"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"`temperature > 0` must hold, but got {self.temperature}")
        if self.dimension < 1:
            raise ValueError(f"`dimension >= 1` must hold, but got {self.dimension}")

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """1x1 projection C -> D."""
        return make_projection(channels, self.dimension, generator)


@dataclass(frozen=True, kw_only=True)
class InfoNCE(_Metric):
    """Supervised pixel contrast over sampled pixels: ``-1/|A| sum_a 1/|P_a| sum_{p in P_a} log softmax_{n != a}(z_a z_n / t)_p``. O(N^2 D).

    P_a are the samples of a's class; anchors without positives are skipped. Sources: Khosla et al. 2020 (eq. 2), Wang et al. 2021.

    Args:
        anchors: N, pixels sampled per batch, >= 2.

    """

    kind: Literal["infonce"] = "infonce"
    anchors: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchors < 2:
            raise ValueError(f"`anchors >= 2` must hold, but got {self.anchors}")

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        """Contrast in nats."""
        x, y = _sample(z, labels, self.anchors, generator)
        if len(y) < 2:
            return in_full(z).sum() * 0.0
        x = F.normalize(x, dim=1)
        is_self = torch.eye(len(y), dtype=torch.bool, device=z.device)
        logits = (x @ x.T / self.temperature).masked_fill(is_self, float("-inf"))
        log_p = F.log_softmax(logits, 1).masked_fill(is_self, 0.0)
        is_positive = ((y[:, None] == y[None, :]) & ~is_self).float()
        positives = is_positive.sum(1)
        per_anchor = (log_p * is_positive).sum(1) / positives.clamp(min=1)
        return -per_anchor.sum() / (positives > 0).sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Prototype(_Metric):
    """Cross-entropy of each pixel against the batch's class means: ``-1/V sum_p log softmax_k(z_p c_k / t)_{y_p}``. O(V K D).

    V counts the pixels with a majority class; c_k is the normalised mean of the normalised features of class k, without gradient; only present
    classes compete. Source: after Snell et al. 2017.
    """

    kind: Literal["prototype"] = "prototype"

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        """Cross-entropy in nats."""
        x = F.normalize(in_full(z), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        y = labels.hard.flatten()
        is_valid = (y >= 0).to(x.dtype)
        classes = F.one_hot(y.clamp(min=0), labels.soft.shape[1]) * is_valid.unsqueeze(1)
        means = F.normalize(classes.T @ x.detach(), dim=1)
        is_absent = classes.sum(0) == 0
        logits = (x @ means.T / self.temperature).masked_fill(is_absent, torch.finfo(torch.float32).min)
        return F.nll_loss(F.log_softmax(logits, 1) * is_valid.unsqueeze(1), y.clamp(min=0), reduction="sum") / is_valid.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Hsic:
    """One minus the normalised Hilbert-Schmidt independence of features and labels, in [0, 1]. O(N^2 C).

    ``1 - <HKH, HLH> / (|HKH| |HLH|)`` with a Gaussian kernel K on channel-wise standardised features (sigma^2 = C), L = [y_i = y_j],
    H the centring matrix.
    Sources: Gretton et al. 2005; Kornblith et al. 2019 for the normalisation.

    Args:
        samples: N, pixels sampled per batch, >= 2.

    """

    kind: Literal["hsic"] = "hsic"
    samples: int = 256
    family: ClassVar[str] = "dependence"

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"`samples >= 2` must hold, but got {self.samples}")

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """None is needed."""
        return nn.Identity()

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        """Lack of dependence."""
        x, y = _sample(z, labels, self.samples, generator)
        if len(y) < 2 or bool((y == y[0]).all()):
            return in_full(z).sum() * 0.0
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
        squares = x.square().sum(1)
        distances = (squares[:, None] + squares[None, :] - 2 * x @ x.T).clamp(min=0)
        k = _centred(torch.exp(-distances / (2 * x.shape[1])))
        same = _centred((y[:, None] == y[None, :]).to(k.dtype))
        strength: Tensor = (k * same).sum() / (k.norm() * same.norm()).clamp(min=1e-6)
        return 1 - strength


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)


def _centred(matrix: Tensor) -> Tensor:
    return matrix - matrix.mean(0, keepdim=True) - matrix.mean(1, keepdim=True) + matrix.mean()


def _sample(z: Tensor, labels: SideLabels, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most ``count`` valid pixels, drawn on the CPU so that a seed means the same on every device: features [N, D], classes [N]."""
    y = labels.hard.flatten()
    valid = (y >= 0).nonzero().squeeze(1)
    if len(valid) > count:
        valid = valid[torch.randperm(len(valid), generator=generator)[:count].to(valid.device)]
    x = in_full(z).permute(0, 2, 3, 1).flatten(0, 2)[valid]
    return x, y[valid]


def parse_side_loss(loss: "str | AnySideLoss") -> AnySideLoss:
    """A side loss from its name, or the loss itself.

    Raises:
        ValueError: If no loss has this name; names the nearest ones.
        TypeError: If the object is no side loss.

    """
    if isinstance(loss, str):
        known = {member.kind: member for member in get_args(SideLoss)}
        if loss not in known:
            raise ValueError(f"`loss` must be one of {sorted(known)}, but got {loss!r}; {nearest(loss, known)}")
        made: AnySideLoss = known[loss]()
        return made
    if isinstance(loss, type):
        raise TypeError(f"`loss` must be a side loss, but got its class; write {loss.__name__}()")
    if not isinstance(loss, AnySideLoss):
        raise TypeError(f"`loss` must have `family`, `make_adapter` and `__call__`, but got {type(loss).__name__}")
    return loss


SideLoss = MiVariational | Dice | Brier | InfoNCE | Prototype | Hsic
