"""Losses of the model's own output."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only  # no public module of torch has it

from imachsr.core.ranks import Ranks
from imachsr.core.types import IGNORE_INDEX, in_full

AnyOutputLoss = Callable[..., Tensor]
"""``loss(output, labels, ignore_index=...) -> scalar``; over several ranks each takes the mean of its own samples."""


def logits_of(output: Any) -> Tensor:
    """Class scores ``[B, K, h, w]`` (``[B, K]`` of a classifier) of a model's output.

    Args:
        output: A tensor; a mapping with ``out`` or ``logits``, or with one tensor alone, whatever its key; an object with ``.logits``; or a sequence
            that begins with a tensor.

    Raises:
        TypeError: If the output is none of these.

    """
    if isinstance(output, Mapping):
        found: Any = _of_mapping(output)
    elif isinstance(output, Tensor):
        found = output
    elif hasattr(output, "logits"):
        found = output.logits
    else:
        found = output[0] if isinstance(output, (tuple, list)) and output else None
    if not isinstance(found, Tensor):
        known = "a tensor, a tuple that begins with one, a mapping with 'out' or 'logits' or one tensor alone, or have `.logits`"
        keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise TypeError(f"the model's output must be {known}, but got {type(output).__name__}{keys}")
    return found


def _of_mapping(output: Mapping[Any, Any]) -> Any:
    for key in ("out", "logits"):
        if isinstance(output.get(key), Tensor):
            return output[key]
    if isinstance(found := getattr(output, "logits", None), Tensor):
        return found
    tensors = [value for value in output.values() if isinstance(value, Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def check_output_loss(loss: object) -> None:
    """Refuse what cannot be called as an output loss.

    Raises:
        TypeError: If it is a class, no callable, or does not take ``ignore_index``.

    """
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"`output_loss` must be called (output, labels, ignore_index=...), but got {loss!r}")
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # built in or compiled, without a signature
        return
    try:
        signature.bind(None, None, ignore_index=0)
    except TypeError as error:
        ways = "take imachsr.CrossEntropy() or torch.nn.functional.cross_entropy, or wrap it in a function"
        raise TypeError(f"`output_loss` must be called (output, labels, ignore_index=...), but {loss!r}: {error}; {ways}") from None


def read_by(loss: AnyOutputLoss, output: Any) -> Any:
    """What a loss reads of a model's output: one of the user's own, floating tensors in full precision, which autocast would have seen to."""
    if isinstance(loss, OutputLoss):
        return output
    return tree_map_only(Tensor, lambda part: in_full(part) if part.is_floating_point() else part, output)


def _at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    logits = in_full(logits)
    if logits.ndim != labels.ndim + 1:
        raise ValueError(f"the model's scores must be [B, K, ...] for labels {list(labels.shape)}, but got {list(logits.shape)}")
    if logits.shape[2:] != labels.shape[1:]:
        mode = "trilinear" if logits.ndim == 5 else "bilinear"
        logits = F.interpolate(logits, size=labels.shape[1:], mode=mode, align_corners=False)
    return logits


@dataclass(frozen=True, kw_only=True)
class _OutputLoss:
    """Args: aux_weight: Weight >= 0 of the same loss on ``output["aux"]``, where the model gives one (torchvision)."""

    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        if not self.aux_weight >= 0:
            raise ValueError(f"`aux_weight >= 0` must hold, but got {self.aux_weight}")

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int, ranks: Ranks) -> Tensor:
        raise NotImplementedError

    def __call__(self, output: Any, labels: Tensor, *, ignore_index: int = IGNORE_INDEX, ranks: Ranks | None = None) -> Tensor:
        """Scalar from the model's output and labels ``[B, H, W]`` (``[B]``, ``[B, D, H, W]``); scores of another size are resized linearly."""
        ranks = ranks or Ranks()
        total = self.score(_at_labels(logits_of(output), labels), labels, ignore_index, ranks)
        if self.aux_weight > 0 and isinstance(output, Mapping) and "aux" in output:
            total = total + self.aux_weight * self.score(_at_labels(output["aux"], labels), labels, ignore_index, ranks)
        return total


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_OutputLoss):
    """Mean cross-entropy over the valid pixels of all ranks, ``-1/V sum_p log q_p(y_p)`` with q = softmax of the scores, in nats. O(BKHW).

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

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int, ranks: Ranks) -> Tensor:
        is_valid = labels != ignore_index
        weight, count = None, is_valid.sum()
        if self.class_weights is not None:
            if len(self.class_weights) != logits.shape[1]:
                raise ValueError(f"`class_weights` must have {logits.shape[1]} values, one a class, but got {len(self.class_weights)}")
            weight = torch.tensor(self.class_weights, device=logits.device, dtype=logits.dtype)
            count = (weight[torch.where(is_valid, labels, 0)] * is_valid).sum()
        # Bit for bit PyTorch's mean (but for smoothing, whose parts it means one by one), and 0 where that divides by 0.
        total = F.cross_entropy(logits, labels, weight, ignore_index=ignore_index, label_smoothing=self.label_smoothing, reduction="sum")
        count = ranks.mean(count.to(logits.dtype))
        return total * (count > 0) / torch.where(count > 0, count, 1)


@dataclass(frozen=True, kw_only=True)
class Ohem(_OutputLoss):
    """Cross-entropy over the hardest share of the valid pixels, at least one; each rank mines its own. O(BHW (K + log BHW)).

    Source: Shrivastava et al. 2016 (online hard example mining).

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

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int, ranks: Ranks) -> Tensor:
        is_valid = labels != ignore_index
        losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
        # Of one shape whatever the labels are, so that a graph can be compiled: void pixels come last, behind what a loss >= 0 can be.
        most = max(1, round(self.keep * losses.numel()))
        hardest = torch.where(is_valid, losses, -1.0).flatten().topk(most).values
        num_valid = is_valid.sum()
        count = (self.keep * num_valid).round().clamp(min=1)
        is_kept = torch.arange(most, device=logits.device) < torch.minimum(count, num_valid)
        return torch.where(is_kept, hardest, 0.0).sum() / count


@dataclass(frozen=True, kw_only=True)
class OutputDice(_OutputLoss):
    """Soft Dice over present classes, ``1 - mean_k 2 sum_p q_pk y_pk / sum_p (q_pk + y_pk)`` over the valid pixels of all ranks. O(BKHW).

    Source: Milletari et al. 2016 (V-Net), with a plain sum in the denominator.
    """

    kind: Literal["dice"] = "dice"
    family: ClassVar[str] = "overlap"

    def score(self, logits: Tensor, labels: Tensor, ignore_index: int, ranks: Ranks) -> Tensor:
        labels, logits = labels.reshape(len(labels), -1), logits.reshape(*logits.shape[:2], -1)
        is_valid = labels != ignore_index
        q = F.softmax(logits, 1) * is_valid.unsqueeze(1)
        classes = torch.arange(logits.shape[1], device=labels.device).view(1, -1, 1)
        y = (torch.where(is_valid, labels, -1).unsqueeze(1) == classes).to(q.dtype)
        overlap, mass, labelled = ranks.sum(torch.stack([(q * y).sum((0, 2)), q.sum((0, 2)), y.sum((0, 2))]))
        is_present = (labelled > 0).to(q.dtype)
        coefficient = 2 * overlap / (mass + labelled).clamp(min=1e-6)
        total: Tensor = ((1 - coefficient) * is_present).sum() / is_present.sum().clamp(min=1)
        return total


OutputLoss = CrossEntropy | Ohem | OutputDice
