"""What both SYNTHIA data sets share: which classes they are trained with."""

from collections.abc import Mapping
from typing import Literal, get_args

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.cityscapes import CLASSES as CITYSCAPES
from imachsr.data.coding import Coding

Classes = Literal["own", "cityscapes"]


def check_classes(classes: str) -> None:
    """Raise ValueError for an unknown choice of classes."""
    if classes not in get_args(Classes):
        raise ValueError(f"`classes` must be one of {get_args(Classes)}, but got {classes!r}")


def names_of(ids: Mapping[str, int], classes: Classes) -> tuple[str, ...]:
    """The names of the classes that are trained with."""
    return CITYSCAPES if classes == "cityscapes" else tuple(ids)


def coding_of(ids: Mapping[str, int], classes: Classes) -> Coding:
    """Ids in the first channel; void, and ids that are none of the classes, are ignored.

    Args:
        ids: The id of each class but void, which has 0.
        classes: Which.
    """
    names = names_of(ids, classes)
    known = ((number, names.index(name) if name in names else IGNORE_INDEX) for name, number in ids.items())
    return Coding(num_classes=len(names), replace=((0, IGNORE_INDEX), *known), is_closed=True, channel=0)
