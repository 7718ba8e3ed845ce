"""All side losses, and one from its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from imachsr.core.losses.metric import MetricLoss
from imachsr.core.losses.overlap import OverlapLoss
from imachsr.core.losses.protocol import AnySideLoss
from imachsr.core.losses.scores import ScoreLoss
from imachsr.core.losses.structure import StructureLoss
from imachsr.core.messages import by_name, require
from imachsr.core.types import Tap

ALIASES = {"pixel_contrast": "infonce"}


def parse_side_loss(loss: "str | AnySideLoss") -> AnySideLoss:
    """A side loss from its name, or the loss itself.

    Raises:
        ValueError: If no loss has this name; names the nearest ones.
        TypeError: If the object is no side loss.

    """
    if isinstance(loss, str):
        made: AnySideLoss = by_name("loss", ALIASES.get(loss, loss), SideLoss)
        return made
    if isinstance(loss, type):
        raise TypeError(f"`loss` must be a side loss, but got its class; write {loss.__name__}()")
    if not isinstance(loss, AnySideLoss):
        raise TypeError(f"`loss` must have `family`, `make_adapter` and `__call__`, but got {type(loss).__name__}")
    return loss


@dataclass(frozen=True, kw_only=True)
class DepthRule:
    """One loss for the first taps in execution order, and another for the rest.

    Args:
        early: Of the first ``share`` of the taps (rounded down, but at least one).
        late: Of the others.
        share: In (0, 1).

    """

    kind: Literal["by_depth"] = "by_depth"
    early: Any
    late: Any
    share: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "0 < share < 1", self.share)

    def each(self, count: int) -> list[Any]:
        """One loss a tap."""
        first = max(1, int(self.share * count))
        return [self.early] * first + [self.late] * (count - first)


def losses_of(loss: "str | AnySideLoss | Sequence[str | AnySideLoss] | DepthRule", taps: Sequence[Tap]) -> tuple[AnySideLoss, ...]:
    """One side loss a tap.

    Raises:
        ValueError: If a name is unknown, or a sequence has another length than the taps.
        TypeError: If an object is no side loss.

    """
    each: list[Any] = loss.each(len(taps)) if isinstance(loss, DepthRule) else list(loss) if isinstance(loss, (list, tuple)) else [loss] * len(taps)
    if len(each) != len(taps):
        raise ValueError(f"`loss` must hold one loss a tap, but got {len(each)} losses for {len(taps)} taps")
    return tuple(parse_side_loss(item) for item in each)


SideLoss = ScoreLoss | OverlapLoss | MetricLoss | StructureLoss
