"""What one tap gives: the value of its side loss and that of its entropy, each read in the precision and the shape that it needs."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.entropy import Regularizer
from imachsr.core.labels import SideLabels
from imachsr.core.losses import AnySideLoss, SideLoss
from imachsr.core.types import in_full


def gives_scores(loss: AnySideLoss) -> bool:
    """Whether a loss reads class scores, ``[B, K, h, w]``, which an entropy may then read too."""
    return bool(getattr(loss, "gives_scores", False))


def as_weights(features: Tensor, adapter: nn.Module) -> Tensor:
    """Features in the dtype of what reads them, where no autocast brings them to it: a model may run in another one inside."""
    weight = next(adapter.parameters(), None)
    if weight is None or torch.is_autocast_enabled(features.device.type):
        return features
    return features.to(weight.dtype)


def side_term(
    loss: AnySideLoss, scores: Tensor, labels: SideLabels, prediction: Tensor, extent: tuple[int, ...] | None, *, num_classes: int
) -> Tensor:
    """The value of a side loss at its tap, a scalar.

    Args:
        loss: The tap's.
        scores: What its adapter gives, ``[B, D, h, w]``.
        labels: At the tap's resolution.
        prediction: The model's scores, ``[B, K, ...]``, without gradient, for a loss that needs them.
        extent: ``(d, h, w)`` of a volume, whose d and h are one axis in ``scores``; None for an image.
        num_classes: K.

    Raises:
        ValueError: If the loss needs labels of pixels that there are not, or the model does not give K scores to a loss that reads them.

    """
    if getattr(loss, "needs_dense", False) and (extent is not None or not labels.is_dense):
        given = "volumes" if extent is not None else "one label an image"
        raise ValueError(f"the side loss {getattr(loss, 'kind', loss)!r} must have labels of pixels [B, H, W], but got {given}; choose another loss")
    if getattr(loss, "needs_output", False):
        if prediction.shape[1] != num_classes:
            raise ValueError(
                f"the model must give `num_classes` = {num_classes} scores a pixel for the side loss {getattr(loss, 'kind', loss)!r}, "
                f"but gives {prediction.shape[1]}"
            )
        labels = replace(labels, output=_resized(prediction, extent or tuple(labels.hard.shape[1:])))
    if not isinstance(loss, SideLoss):  # of the user's own: autocast, which would have seen to its precision, is off
        scores, labels = in_full(scores), replace(labels, output=None if labels.output is None else in_full(labels.output))
    with torch.autocast(scores.device.type, enabled=False):
        return loss(scores, labels)


def entropy_term(entropy: Any, hidden: Tensor, scores: Tensor | None, labels: SideLabels) -> Tensor | None:
    """The value of a regularizer at a tap, a scalar; None where it reads class scores and the tap's loss gives none.

    Args:
        entropy: The regularizer.
        hidden: The tap's features, ``[B, C, h, w]``.
        scores: Its class scores, ``[B, K, h, w]``, or None.
        labels: At its resolution, or one an image.

    """
    read: Tensor | None = scores if getattr(entropy, "reads", "features") == "scores" else hidden
    if read is None:
        return None
    if labels.valid.shape[1:] != read.shape[2:]:  # one label an image stands for all positions
        labels = replace(labels, valid=labels.valid.expand(-1, *read.shape[2:]))
    with torch.autocast(read.device.type, enabled=False):
        value: Tensor = entropy(read if isinstance(entropy, Regularizer) else in_full(read), labels)
    return value


def _resized(prediction: Tensor, size: Any) -> Tensor:
    """The output's scores at a tap, ``[B, K, h, w]``."""
    if prediction.ndim == 2:
        return prediction[..., None, None]
    if prediction.ndim == 5:
        return F.adaptive_avg_pool3d(prediction, size).flatten(2, 3)
    return F.adaptive_avg_pool2d(prediction, size)
