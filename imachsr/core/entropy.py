"""Entropy regularizers of hidden features, in nats.

Both hold the *negative* entropy and are minimised, so that training raises the entropy; only this sign discourages overconfident features.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from imachsr.core.selection import nearest
from imachsr.core.types import in_full


@dataclass(frozen=True, kw_only=True)
class ChannelEntropy:
    """Negative entropy over channels, ``1/V sum_p sum_c p_c log p_c`` with p = softmax(h / tau), in [-log C, 0]. Source: arXiv 2505.00404 v1.

    Nearly inert on unit-variance features (H / log C = .91 at C = 256); ``channel_norm`` is recommended.

    Args:
        temperature: tau > 0.

    """

    kind: Literal["channel"] = "channel"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature)

    def __call__(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scalar from features ``[B, C, h, w]`` and weights ``[B, h, w]`` in [0, 1]."""
        return _negative_entropy(features, self.temperature, valid)


@dataclass(frozen=True, kw_only=True)
class ChannelNormEntropy:
    """``1 - H / log C`` with H the entropy over channels of softmax(h / tau), in [0, 1]: comparable between taps of any width.

    Args:
        temperature: tau > 0.
        standardize: Standardise each pixel's channels first, so that the feature scale cannot be shrunk to please the term.

    """

    kind: Literal["channel_norm"] = "channel_norm"
    temperature: float = 1.0
    standardize: bool = False

    def __post_init__(self) -> None:
        _check(self.temperature)

    def __call__(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scalar from features ``[B, C, h, w]`` and weights ``[B, h, w]`` in [0, 1]."""
        features = in_full(features)
        if self.standardize:
            features = (features - features.mean(1, keepdim=True)) / (features.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        channels = features.shape[1]
        negative = _negative_entropy(features, self.temperature, valid)
        has_pixels = 1.0 if valid is None else (valid.sum() > 0).float()
        return negative / math.log(channels) + has_pixels


def _negative_entropy(features: Tensor, temperature: float, valid: Tensor | None) -> Tensor:
    log_p = F.log_softmax(in_full(features) / temperature, 1)  # p log p is NaN in half precision
    negative = (log_p.exp() * log_p).sum(1)
    if valid is None:
        return negative.mean()
    return (negative * valid).sum() / valid.sum().clamp(min=1e-6)


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"`temperature > 0` must hold, but got {temperature}")


def parse_regularizer(entropy: "str | Regularizer") -> "Regularizer":
    """A regularizer from its name, or the regularizer itself.

    Raises:
        ValueError: If no regularizer has this name; names the nearest ones.
        TypeError: If the object cannot be called.

    """
    if isinstance(entropy, str):
        known = {member.kind: member for member in get_args(Regularizer)}
        if entropy not in known:
            raise ValueError(f"`entropy` must be one of {sorted(known)}, but got {entropy!r}; {nearest(entropy, known)}")
        made: Regularizer = known[entropy]()
        return made
    if isinstance(entropy, type) or not callable(entropy):
        raise TypeError(f"`entropy` must be a name, None or an object called (features, valid), but got {entropy!r}")
    return entropy


Regularizer = ChannelEntropy | ChannelNormEntropy
