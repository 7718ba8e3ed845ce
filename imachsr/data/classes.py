"""Classes of one data set in another, by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

Parts = Mapping[str, Sequence[str]]
NO_PARTS: Parts = MappingProxyType({})

# What street data sets call the same thing; each line is one class.
_SAME = (
    ("road", "roads", "roadway"),
    ("sidewalk", "pavement"),
    ("vegetation", "tree", "trees"),
    ("pole", "column_pole", "poles"),
    ("traffic_sign", "sign", "sign_symbol", "signsymbol", "traffic signs"),
    ("person", "pedestrian", "pedestrians"),
    ("rider", "bicyclist"),
    ("lane_mark", "lane_marking", "lanemarking", "lanemarks", "road_lines", "roadline"),
    ("building", "buildings"),
    ("car", "cars"),
    ("fence", "fences"),
)


def plain(name: str) -> str:
    """A class's name in one form, such as ``traffic_sign`` for ``Sign``."""
    word = "_".join(name.lower().replace("-", " ").replace("_", " ").split())
    return next((names[0] for names in _SAME if word in {each.replace(" ", "_") for each in names}), word)


@dataclass(frozen=True)
class Common:
    """What two data sets both have.

    Attributes:
        name: Of the class.
        own: Numbers of the classes that make it up in the data set that a model was trained on.
        other: In the one that it is scored on.
    """

    name: str
    own: tuple[int, ...]
    other: tuple[int, ...]


def partners(own: Sequence[str], other: Sequence[str], *, own_parts: Parts = NO_PARTS, other_parts: Parts = NO_PARTS) -> list[Common]:
    """Classes that mean the same, in the order of ``own``; those without any are left out.

    Args:
        own: Names that a model was trained for.
        other: Names of the data that it is scored on.
        own_parts: What classes of ``own`` hold, as :func:`parts_of` gives it: where ``other`` has such a part as a class of its own, and ``own`` has
            not, its pixels count as the whole.
        other_parts: Of ``other``: where a model knows such a part, which ``other`` has not, it counts as the whole.
    """
    left, right = [plain(name) for name in own], [plain(name) for name in other]
    left, right = _wholes(left, right, other_parts), _wholes(right, left, own_parts)
    found = []
    for name in dict.fromkeys(each for each in left if each in right):
        mine = tuple(index for index, each in enumerate(left) if each == name)
        shown = next((own[index] for index in mine if plain(own[index]) == name), None) or next(each for each in other if plain(each) == name)
        found.append(Common(shown, mine, tuple(index for index, each in enumerate(right) if each == name)))
    return found


def parts_of(data: object) -> Parts:
    """What the classes of a data set hold, by their names; it tells this by an attribute ``parts``, if it does."""
    parts: Parts = getattr(data, "parts", NO_PARTS)
    return parts


def _wholes(names: Sequence[str], others: Sequence[str], parts: Parts) -> list[str]:
    """Names, with what the others lack as the whole that it is a part of there."""
    whole = {plain(part): plain(name) for name, some in parts.items() for part in some}
    return [whole[name] if name not in others and whole.get(name) in others else name for name in names]


def shared(own: Sequence[str], other: Sequence[str], *, own_parts: Parts = NO_PARTS, other_parts: Parts = NO_PARTS) -> list[Common] | None:
    """Classes on which a model can be scored on data with other classes.

    Args:
        own: Names that a model was trained for.
        other: Names of the data that it is scored on.
        own_parts: As in :func:`partners`.
        other_parts: As in :func:`partners`.

    Returns:
        As :func:`partners`; None where names have nothing in common and the numbers are as many, so that classes are taken by their numbers.

    Raises:
        ValueError: If neither names nor numbers fit.
    """
    found = partners(own, other, own_parts=own_parts, other_parts=other_parts)
    if len(found) >= 2:
        return found
    if len(other) == len(own):
        return None
    rule = f"the data must have the {len(own)} classes that the model was trained for, or two that are called as these"
    raise ValueError(f"{rule}, but have {len(other)}: {', '.join(other)}; the model's are {', '.join(own)}")
