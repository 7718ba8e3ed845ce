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
