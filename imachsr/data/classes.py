"""Classes of one data set in another, by their names."""

from collections.abc import Sequence

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


def partners(own: Sequence[str], other: Sequence[str]) -> dict[int, tuple[int, ...]]:
    """Numbers of ``own`` classes with those of the ``other`` data set that mean the same, in the order of ``own``; classes without any are left out.

    Where two of ``own`` mean one thing, the first has it.

    Args:
        own: Names that a model was trained for.
        other: Names of the data that it is scored on.
    """
    found: dict[int, tuple[int, ...]] = {}
    taken: set[str] = set()
    for index, name in enumerate(map(plain, own)):
        same = tuple(number for number, each in enumerate(map(plain, other)) if each == name)
        if same and name not in taken:
            found[index] = same
            taken.add(name)
    return found


def shared(own: Sequence[str], other: Sequence[str]) -> dict[int, tuple[int, ...]] | None:
    """Classes on which a model can be scored on data with other classes.

    Args:
        own: Names that a model was trained for.
        other: Names of the data that it is scored on.

    Returns:
        As :func:`partners`; None where names have nothing in common and the numbers are as many, so that classes are taken by their numbers.

    Raises:
        ValueError: If neither names nor numbers fit.
    """
    found = partners(own, other)
    if len(found) >= 2:
        return found
    if len(other) == len(own):
        return None
    rule = f"the data must have the {len(own)} classes that the model was trained for, or two that are called as these"
    raise ValueError(f"{rule}, but have {len(other)}: {', '.join(other)}; the model's are {', '.join(own)}")
