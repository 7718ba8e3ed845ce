"""Losses of the model's own output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imachsr.core.types import IGNORE_INDEX, in_full

AnyOutputLoss = Callable[..., Tensor]
"""``loss(output, labels, ignore_index=...) -> scalar``."""


def logits_of(output: Any) -> Tensor:
    """Class scores ``[B, K, h, w]`` of a model's output: a tensor, ``output["out"]``, or ``output.logits``.

    Raises:
        TypeError: If the output is none of these.

    """
    if isinstance(output, Mapping) and "out" in output:
        output = output["out"]
    elif hasattr(output, "logits"):
        output = output.logits
    if not isinstance(output, Tensor):
        raise TypeError(f"the model's output must be a tensor, a mapping with 'out', or have `.logits`, but got {type(output).__name__}")
    return output


def _at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    logits = in_full(logits)
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return logits


@dataclass(frozen=True, kw_only=True)
class _OutputLoss:
    """Args: aux_weight: Weight >= 0 of the same loss on ``output["aux"]``, where the model gives one (torchvision)."""

    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        if not self.aux_weight >= 0:
            raise ValueError(f"`aux_weight >= 0` must hold, but got {self.aux_weight}")

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        raise NotImplementedError

    def __call__(self, output: Any, labels: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
        """Scalar from the model's output and labels ``[B, H, W]``; scores of another size are resized bilinearly."""
        total = self.score(_at_labels(logits_of(output), labels), labels, ignore_index)
        if self.aux_weight > 0 and isinstance(output, Mapping) and "aux" in output:
            total = total + self.aux_weight * self.score(_at_labels(output["aux"], labels), labels, ignore_index)
        return total


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_OutputLoss):
    """Mean cross-entropy over valid pixels, in nats.

    Args:
        class_weights: K weights >= 0, or None. The mean is weighted likewise, as in PyTorch.
        label_smoothing: In [0, 1).

    """

    kind: Literal["cross_entropy"] = "cross_entropy"
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    family: ClassVar[str] = "log_score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`0 <= label_smoothing < 1` must hold, but got {self.label_smoothing}")
        if self.class_weights is not None and not all(weight >= 0 for weight in self.class_weights):
            raise ValueError(f"`class_weights >= 0` must hold, but got {self.class_weights}")

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        counted, weight = labels != ignore_index, None
        if self.class_weights is not None:
            if len(self.class_weights) != logits.shape[1]:
                raise ValueError(f"`class_weights` must have {logits.shape[1]} values, one a class, but got {len(self.class_weights)}")
            weight = torch.tensor(self.class_weights, device=logits.device, dtype=logits.dtype)
            counted = weight[torch.where(counted, labels, 0)] * counted > 0
        if not bool(counted.any()):
            return logits.sum() * 0.0  # the plain mean over no pixel is NaN
        return F.cross_entropy(logits, labels, weight, ignore_index=ignore_index, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Ohem(_OutputLoss):
    """Cross-entropy over the hardest share of the valid pixels (online hard example mining, Shrivastava et al. 2016).

    Args:
        keep: Share kept, in (0, 1].

    """

    kind: Literal["ohem"] = "ohem"
    keep: float = 0.25
    family: ClassVar[str] = "log_score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError(f"`0 < keep <= 1` must hold, but got {self.keep}")

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        is_valid = labels != ignore_index
        if not bool(is_valid.any()):
            return logits.sum() * 0.0
        losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")[is_valid]
        return losses.topk(max(1, round(self.keep * len(losses)))).values.mean()


@dataclass(frozen=True, kw_only=True)
class OutputDice(_OutputLoss):
    """Soft Dice over the classes present in the batch, in [0, 1]."""

    kind: Literal["dice"] = "dice"
    family: ClassVar[str] = "overlap"

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        is_valid = (labels != ignore_index).unsqueeze(1)
        y = F.one_hot(torch.where(is_valid[:, 0], labels, 0), logits.shape[1]).permute(0, 3, 1, 2) * is_valid
        q = F.softmax(logits, 1) * is_valid
        is_present = (y.sum((0, 2, 3)) > 0).float()
        coefficient = 2 * (q * y).sum((0, 2, 3)) / (q + y).sum((0, 2, 3)).clamp(min=1e-6)
        return ((1 - coefficient) * is_present).sum() / is_present.sum().clamp(min=1)


OutputLoss = CrossEntropy | Ohem | OutputDice
