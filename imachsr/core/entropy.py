"""Entropy regularizers of hidden features, in nats.

All of them hold the *negative* entropy (or grow with it) and are minimised, so that training raises the entropy; only this sign discourages
overconfident features. Symbols: h features ``[B, C, h, w]``, V valid pixels, p = softmax(h / tau) along an axis.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imachsr.core.labels import SideLabels
from imachsr.core.messages import by_name, require
from imachsr.core.types import in_full

_CHUNK, _CHUNK_ELSEWHERE = 2**18, 2**26
"""Values that are worked on at a time, on a CPU and elsewhere: temporaries in full precision stay small, and there in the cache; a GPU has more than
that at once, and each piece costs it some twenty launches."""


def _chunks(features: Tensor) -> list[slice]:
    """Runs of positions of ``[B, C, N]`` that hold about as many values as are worked on at a time."""
    positions = features.shape[2]
    if torch.compiler.is_compiling():
        return [slice(0, positions)]
    most = _CHUNK if features.device.type == "cpu" else _CHUNK_ELSEWHERE
    length = max(1, most // max(1, features.shape[0] * features.shape[1]))
    return [slice(start, start + length) for start in range(0, positions, length)]


def _over(features: Tensor, temperature: float) -> Tensor:
    features = in_full(features)
    return features if temperature == 1 else features / temperature


class _NegativeEntropy(torch.autograd.Function):
    """``sum_c p_c log p_c`` along axis 1 of ``[B, C, N]``, in full precision.

    With the shifted maximum m, s = sum e^(z-m) and t = sum e^(z-m) (z-m), it is t/s - log s. Backward is ``p_c (log p_c + H)``: it needs
    the features, which the next layer has kept anyway, and two numbers a position; plain operators keep two to four tensors of the
    features' size in full precision.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, temperature: float) -> Tensor:
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        log_total = torch.empty((features.shape[0], features.shape[2]), dtype=dtype, device=features.device)
        negative = torch.empty_like(log_total)
        for part in _chunks(features):
            z = _over(features[:, :, part], temperature)
            top = z.amax(1)
            shifted = z - top.unsqueeze(1)
            weight = shifted.exp()
            total = weight.sum(1)
            log_part = total.log()
            negative[:, part] = weight.mul_(shifted).sum(1) / total - log_part
            log_total[:, part] = log_part + top
        ctx.save_for_backward(features, log_total, negative)
        ctx.temperature = temperature
        return negative

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, log_total, negative = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for (create_graph): plain operators have one
            log_p = F.log_softmax(in_full(features) / ctx.temperature, 1)
            surplus = log_p - (log_p.exp() * log_p).sum(1, keepdim=True)
            return (log_p.exp() * surplus * gradient.unsqueeze(1) / ctx.temperature).to(features.dtype), None
        slope = torch.empty_like(features)
        for part in _chunks(features):
            log_p = _over(features[:, :, part], ctx.temperature) - log_total[:, None, part]
            factor = (gradient[:, None, part] / ctx.temperature).to(log_p.dtype)
            if torch.compiler.is_compiling():  # one chunk, and dynamo takes no `out` that is not contiguous
                return (log_p.exp() * (log_p - negative[:, None, part]) * factor).to(features.dtype), None
            torch.mul(log_p.exp(), log_p.sub_(negative[:, None, part]).mul_(factor), out=slope[:, :, part])
        return slope, None


def negative_entropy(features: Tensor, temperature: float) -> Tensor:
    """``sum_c p_c log p_c`` of features ``[B, C, ...]`` along axis 1, in [-log C, 0]: ``[B, ...]`` in full precision."""
    result: Tensor = _NegativeEntropy.apply(features.flatten(2), temperature)
    return result.view(len(features), *features.shape[2:])


@dataclass(frozen=True, kw_only=True)
class _Regularizer:
    """Args: temperature: tau > 0.

    standardize: Standardise each position's channels first, so that the feature scale cannot be shrunk to please the term.
    """

    temperature: float = 1.0
    standardize: bool = False
    reads: ClassVar[Literal["features", "scores"]] = "features"

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature > 0", self.temperature)

    def prepared(self, features: Tensor) -> Tensor:
        """The features, standardised if that is asked for."""
        if not self.standardize:
            return features
        features = in_full(features)
        return (features - features.mean(1, keepdim=True)) / (features.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    def lack(self, features: Tensor, labels: SideLabels) -> Tensor:
        """``1 - H / log C`` with H the entropy along axis 1 of ``[B, C, h, w]``, mean over valid positions, in [0, 1]."""
        negative = negative_entropy(self.prepared(features), self.temperature)
        return labels.mean(1 + negative / math.log(features.shape[1]))


@dataclass(frozen=True, kw_only=True)
class ChannelEntropy(_Regularizer):
    """Negative entropy over channels, ``1/V sum_p sum_c p_c log p_c`` with p over the channels of a position, in [-log C, 0].

    Source: arXiv 2505.00404 v1.

    Nearly inert on unit-variance features (H / log C = .91 at C = 256); ``channel_norm`` is recommended.

    Args:
        temperature: tau > 0.
        standardize: Standardise each position's channels first, so that the feature scale cannot be shrunk to please the term.

    """

    kind: Literal["channel"] = "channel"

    def __call__(self, features: Tensor, labels: SideLabels) -> Tensor:
        """Scalar from features ``[B, C, h, w]``."""
        return labels.mean(negative_entropy(self.prepared(features), self.temperature))


@dataclass(frozen=True, kw_only=True)
class ChannelNormEntropy(_Regularizer):
    """``1 - H / log C`` with H the entropy over channels, in [0, 1]: comparable between taps of any width.

    Args:
        temperature: tau > 0.
        standardize: Standardise each position's channels first, so that the feature scale cannot be shrunk to please the term.

    """

    kind: Literal["channel_norm"] = "channel_norm"

    def __call__(self, features: Tensor, labels: SideLabels) -> Tensor:
        """Scalar from features ``[B, C, h, w]``."""
        return self.lack(features, labels)


@dataclass(frozen=True, kw_only=True)
class SpatialEntropy(_Regularizer):
    """``1 - H / log(h w)`` with H the entropy of each channel over positions, mean over channels and images, in [0, 1]; 0 for a single position.

    Args:
        temperature: tau > 0.
        standardize: Standardise each position's channels first.

    """

    kind: Literal["spatial"] = "spatial"

    def __call__(self, features: Tensor, labels: SideLabels) -> Tensor:
        """Scalar from features ``[B, C, h, w]``."""
        positions = features.shape[2] * features.shape[3]
        if positions < 2:
            return features.sum() * 0.0
        negative = negative_entropy(self.prepared(features).flatten(2).transpose(1, 2), self.temperature)
        has_pixels = (labels.valid.amax((1, 2)) > 0).to(negative.dtype)
        return labels.mean(1 + negative.mean(1) / math.log(positions), has_pixels)


@dataclass(frozen=True, kw_only=True)
class MarginalEntropy(_Regularizer):
    """``1 - H(mean_p) / log C`` with the mean over valid positions of the batch, in [0, 1]: against a collapse onto few channels.

    Over several ranks, the mean of all of them.

    Args:
        temperature: tau > 0.
        standardize: Standardise each position's channels first.

    """

    kind: Literal["marginal"] = "marginal"

    def __call__(self, features: Tensor, labels: SideLabels) -> Tensor:
        """Scalar from features ``[B, C, h, w]``."""
        p = F.softmax(in_full(self.prepared(features)) / self.temperature, 1)
        weight = labels.valid.unsqueeze(1).to(p.dtype)
        total = labels.ranks.sum((p * weight).sum((0, 2, 3)))
        mean = total / total.sum().clamp(min=1e-6)
        negative = (mean * mean.clamp(min=1e-12).log()).sum()
        return (1 + negative / math.log(features.shape[1])) * (total.sum() > 0).to(p.dtype)


@dataclass(frozen=True, kw_only=True)
class AdapterEntropy(_Regularizer):
    """``1 - H / log K`` of the class probabilities behind a tap's adapter, in [0, 1]: a confidence penalty.

    Taps whose loss gives no class scores have none. Source: Pereyra et al. 2017, scaled to [0, 1].

    Args:
        temperature: tau > 0.
        standardize: Standardise each position's scores first.

    """

    kind: Literal["adapter"] = "adapter"
    reads: ClassVar[Literal["features", "scores"]] = "scores"

    def __call__(self, features: Tensor, labels: SideLabels) -> Tensor:
        """Scalar from class scores ``[B, K, h, w]``."""
        return self.lack(features, labels)


@dataclass(frozen=True, kw_only=True)
class Renyi2Entropy(_Regularizer):
    """``1/V sum_p sum_c p_c^2``, in [1/C, 1]: the exponential of the negative Renyi entropy of order 2, without a logarithm.

    Args:
        temperature: tau > 0.
        standardize: Standardise each position's channels first.

    """

    kind: Literal["renyi2"] = "renyi2"

    def __call__(self, features: Tensor, labels: SideLabels) -> Tensor:
        """Scalar from features ``[B, C, h, w]``."""
        return labels.mean(F.softmax(in_full(self.prepared(features)) / self.temperature, 1).square().sum(1))


def parse_regularizer(entropy: "str | Regularizer") -> "Regularizer":
    """A regularizer from its name, or the regularizer itself.

    Raises:
        ValueError: If no regularizer has this name; names the nearest ones.
        TypeError: If the object cannot be called.

    """
    if isinstance(entropy, str):
        made: Regularizer = by_name("entropy", entropy, Regularizer)
        return made
    if isinstance(entropy, type) or not callable(entropy):
        raise TypeError(f"`entropy` must be a name, None or an object called (features, labels), but got {entropy!r}")
    return entropy


Regularizer = ChannelEntropy | ChannelNormEntropy | SpatialEntropy | MarginalEntropy | AdapterEntropy | Renyi2Entropy
