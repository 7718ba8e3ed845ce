"""Whether losses that are declared different are: the angle between their gradients, over random draws.

Two losses whose gradients point the same way train the same thing, whatever their names. The declared families are checked against this: a
pair of different families must not be equivalent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from imachsr.core.labels import SideLabels, TapLabels
from imachsr.core.losses import SideLoss
from imachsr.core.output import CrossEntropy

EQUIVALENT = 0.97
"""Mean cosine from which two losses count as the same: as near as focal loss is to cross-entropy."""
_CLASSES, _SIDE, _BATCH = 6, 16, 2


@dataclass(frozen=True, kw_only=True)
class Angle:
    """How two losses' gradients lie to each other.

    Attributes:
        first: Kind of the one.
        second: Kind of the other.
        cosine: Mean over the draws, in [-1, 1].
        spread: Standard deviation over the draws.
        same_family: Whether they declare one family.

    """

    first: str
    second: str
    cosine: float
    spread: float
    same_family: bool

    @property
    def is_equivalent(self) -> bool:
        """Whether the pair trains the same thing."""
        return self.cosine >= EQUIVALENT

    @property
    def is_honest(self) -> bool:
        """Whether the declaration holds: equivalent losses are of one family."""
        return self.same_family or not self.is_equivalent


def audit(losses: Sequence[Any] | None = None, *, draws: int = 40, seed: int = 0) -> list[Angle]:
    """Angles between all pairs of losses, and of each with the cross-entropy of an output.

    All of them read one tensor ``[B, K, h, w]``, as if each tap's adapter were the identity (the edge map of ``boundary`` is its mean
    channel): random scores in which the labels show more or less. Labels are smooth regions, one part of them ignored.

    Args:
        losses: Side losses; all shipped ones without.
        draws: Random draws, >= 2.
        seed: Of the draws.

    Raises:
        ValueError: If ``draws < 2``.

    """
    if draws < 2:
        raise ValueError(f"`draws >= 2` must hold, but got {draws}")
    found = [member() for member in get_args(SideLoss)] if losses is None else list(losses)
    generator = torch.Generator().manual_seed(seed)
    gradients: dict[int, list[Tensor]] = {}
    for draw in range(draws):
        z, labels = _draw(generator, signal=2.0 * draw / draws)
        teacher, _ = _draw(generator, signal=0.0)
        teacher = teacher.detach() + 2.0 * F.one_hot(labels.clamp(max=_CLASSES - 1), _CLASSES).permute(0, 3, 1, 2)
        for index, loss in enumerate([CrossEntropy(), *found]):
            gradients.setdefault(index, []).append(_gradient(loss, z, labels, teacher, draw))
    names = ["cross_entropy (output)", *(_kind(loss) for loss in found)]
    families = [CrossEntropy.family, *(loss.family for loss in found)]
    angles = []
    for a, b in combinations(range(len(names)), 2):
        cosines = torch.stack([F.cosine_similarity(one, other, dim=0) for one, other in zip(gradients[a], gradients[b], strict=True)])
        angle = Angle(
            first=names[a],
            second=names[b],
            cosine=float(cosines.mean()),
            spread=float(cosines.std()),
            same_family=families[a] == families[b],
        )
        angles.append(angle)
    return angles


def _kind(loss: Any) -> str:
    return str(getattr(loss, "kind", type(loss).__name__))


def _draw(generator: torch.Generator, *, signal: float) -> tuple[Tensor, Tensor]:
    shape = (_BATCH, _CLASSES, _SIDE, _SIDE)
    coarse = torch.randn(_BATCH, _CLASSES, 4, 4, generator=generator, dtype=torch.float64)
    labels = F.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False).argmax(1)
    z = torch.randn(shape, generator=generator, dtype=torch.float64) + signal * F.one_hot(labels, _CLASSES).permute(0, 3, 1, 2)
    labels[:, :2] = 255
    return z.requires_grad_(), labels


def _gradient(loss: Any, z: Tensor, labels: Tensor, teacher: Tensor, draw: int) -> Tensor:
    if isinstance(loss, CrossEntropy):
        value = loss(z, labels)
    else:
        target: SideLabels = TapLabels(labels, _CLASSES, 255, draw=torch.tensor(draw)).at(tuple(z.shape[2:]))
        target = replace(target, output=teacher)  # an output that knows something of the labels
        value = loss(z.mean(1, keepdim=True) if _kind(loss) == "boundary" else z, target)
    (gradient,) = torch.autograd.grad(value, z)
    return gradient.flatten()
