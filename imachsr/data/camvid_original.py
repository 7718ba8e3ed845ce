"""CamVid's 701 frames as its authors give them: colours, their grouping into 11 classes, and the split."""

import re
from pathlib import Path

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.coding import Colour
from imachsr.data.pairing import Pair, list_images, pair_up
from imachsr.data.samples import NoSplitError, OnError, Split

STILLS, LABELED, SUFFIX = "701_StillsRaw_full", "LabeledApproved_full", "_L"

GROUPS: dict[str, dict[str, Colour]] = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0),
        "Wall": (64, 192, 0),
        "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64),
        "Archway": (192, 0, 128),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
"""The authors' 32 classes (31, and void) by class of SegNet. Colours: label_colors.txt of CamVid. Grouping: that of ``camvidPixelLabelIDs`` in
MathWorks' semantic segmentation example, "following the original SegNet training methodology"; SegNet's authors published the grouped labels, not a
table, so that single pixels of their files may differ."""

CLASSES = tuple(GROUPS)
PARTS = {
    "building": ("wall", "bridge", "tunnel"),
    "road": ("lane marking",),
    "pavement": ("parking",),
    "sign": ("traffic light",),
    "car": ("truck", "bus", "train"),
    "bicyclist": ("bicycle", "motorcycle"),
}
"""What the 11 classes hold that other street data have as classes of their own."""
COLOURS = (
    *((colour, index) for index, group in enumerate(GROUPS.values()) for colour in group.values()),
    ((0, 0, 0), IGNORE_INDEX),  # Void
)


MOST_STRANGE = 0.001
"""Labels are painted by hand: stray pixels of no colour of the table, which a user cannot mend, are ignored, as most that read these files do."""

COUNTS: dict[Split, int] = {"train": 367, "val": 101, "test": 233}
"""Frames of each split in which most results are reported."""


def split_of(path: Path) -> Split:
    """The split of a frame in which most results are reported (367 train, 101 val, 233 test frames).

    val: frames 7959 to 8159 of 0016E5, which are labelled at 15 Hz. test: Seq05VD, and the second half of 0001TP, from frame 8550. train: all else.
    The rule gives the names of SegNet's train and val, and the number of its test frames.

    Raises:
        ValueError: If the name is none of the four sequences'.
    """
    found = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", path.stem)
    if found is None:
        raise ValueError(
            f"{path} must be named by its sequence (0001TP, 0006R0, 0016E5, Seq05VD) and frame, as in 0016E5_07959.png; "
            "or list the frames of each split in train.txt, val.txt and test.txt, a name a line"
        )
    sequence, frame = found[1], int(found[2])
    if sequence == "Seq05VD" or (sequence == "0001TP" and frame >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= frame <= 8159 else "train"


def original_pairs(root: Path, split: str, on_error: OnError) -> list[Pair]:
    """Frames of a split with their labels.

    Raises:
        ValueError: If a folder or partner is missing, a listed frame is not there, or a name tells no split; names it.
    """
    if not (root / LABELED).is_dir():
        raise ValueError(f"{root} must hold {LABELED}/ beside {STILLS}/, but does not")
    images = list_images(root / STILLS)
    labels = {stem.removesuffix(SUFFIX): path for stem, path in list_images(root / LABELED, SUFFIX).items()}
    listed = root / f"{split}.txt"
    if listed.is_file():
        wanted = {_listed(listed, number, line, {**images, **labels}) for number, line in read_list(listed)}
    else:
        if lists := [f"{name}.txt" for name in ("train", "val", "test") if (root / f"{name}.txt").is_file()]:
            raise NoSplitError(f"{root} must hold {split}.txt beside {', '.join(lists)}, but does not; without any list the standard split is made")
        wanted = {stem for stem in {**images, **labels} if split_of(images.get(stem, root / STILLS / stem)) == split}
    if not wanted:
        raise NoSplitError(f"{root / STILLS} must hold frames of {split}, but holds none")
    return pair_up(
        {stem: path for stem, path in images.items() if stem in wanted},
        {stem: path for stem, path in labels.items() if stem in wanted},
        image_at=lambda stem: root / STILLS / f"{stem}.png",
        label_at=lambda stem: root / LABELED / f"{stem}{SUFFIX}.png",
        on_error=on_error,
    )


def _listed(listed: Path, number: int, line: str, known: dict[str, Path]) -> str:
    stem = Path(line.split()[0]).stem
    if stem not in known:
        raise ValueError(
            f"{listed}:{number} must name a frame of {STILLS}, as in 0016E5_07959.png, but {stem} is none; "
            "lists of renumbered copies do not fit: without any list the standard split is made"
        )
    return stem


def read_list(listed: Path) -> list[tuple[int, str]]:
    """The lines of a list that hold something, with their numbers, from 1.

    Raises:
        ValueError: If it cannot be read, or holds nothing.
    """
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()  # Windows begins files with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{listed} must be a readable text file, but: {error}") from None
    # Backslashes as Windows writes them.
    found = [(number, line.replace("\\", "/")) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{listed} must name at least one image and label, but names none")
    return found
