"""SYNTHIA-RAND-CITYSCAPES: drawn street scenes, each by itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imachsr.data.images import FromFiles, Source
from imachsr.data.official import Official
from imachsr.data.pairing import find_folder, pair_folders
from imachsr.data.samples import NoSplitError, OnError, Split, check_split
from imachsr.data.synthia import Classes, check_classes, coding_of, names_of

IMAGES, LABELS = "RGB", "GT/LABELS"
NUM_IMAGES = 9400
IDS = {
    "sky": 1,
    "building": 2,
    "road": 3,
    "sidewalk": 4,
    "fence": 5,
    "vegetation": 6,
    "pole": 7,
    "car": 8,
    "traffic sign": 9,
    "person": 10,
    "bicycle": 11,
    "motorcycle": 12,
    "parking slot": 13,
    "road work": 14,
    "traffic light": 15,
    "terrain": 16,
    "rider": 17,
    "truck": 18,
    "bus": 19,
    "train": 20,
    "wall": 21,
    "lane marking": 22,
}
"""The id of each class; 0 is void."""


@dataclass(frozen=True, kw_only=True)
class SynthiaRand(FromFiles):
    """The 9400 drawn street scenes of Ros et al. 2016 with ids as in SYNTHIA-RAND-CITYSCAPES, 760 x 1280 pixels.

    ``RGB/0000000.png`` with ``GT/LABELS/0000000.png``, 16-bit files whose first channel holds the class id (the second: the instance); in the
    folder itself or in ``RAND_CITYSCAPES`` below it. Void (0) is ignored. Ids and layout: the table of the archive's README as public readers and
    converters repeat it; the README itself could not be read for this. Parking slot, terrain, truck and train are reported to have no pixel.
    There is no official split: in name order the first scenes are train, those behind them val, the last ones test.

    Args:
        root: The folder that holds RGB and GT.
        classes: own: the 22 classes besides void. cityscapes: its 19, in its order; parking slot, road work and lane marking are ignored.
        val_fraction: Share of val, in (0, 1).
        test_fraction: Share of test, in [0, 1).
        size: (height, width) in pixels, each >= 32.
        cache: Folder of decoded arrays; the user's cache folder without it.
        on_error: raise, or skip: leave out samples whose files are missing or broken, with a warning, up to a tenth of a split.
    """

    kind: Literal["synthia_rand"] = "synthia_rand"
    root: str
    classes: Classes = "own"
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    size: tuple[int, int] = (256, 448)
    cache: str | None = None
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes)
        if not (0 < self.val_fraction < 1 and 0 <= self.test_fraction < 1 and self.val_fraction + self.test_fraction < 1):
            raise ValueError(
                "`0 < val_fraction`, `0 <= test_fraction` and `val_fraction + test_fraction < 1` must hold, "
                f"but got {self.val_fraction} and {self.test_fraction}"
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return names_of(IDS, self.classes)

    def source(self, split: Split) -> Source:
        """The files of a split; raises as :meth:`load`, but opens none."""
        check_split(split)
        if split == "test" and not self.test_fraction:
            raise NoSplitError("`test_fraction` must be above 0 for test, but is 0; set data.test_fraction=0.1")
        root = self._root()
        pairs = pair_folders(root / IMAGES, root / LABELS, on_error=self.on_error)
        if self._place_of("train", len(pairs))[1] < 1:
            raise ValueError(f"{root / IMAGES} must hold enough images for its splits, but holds {len(pairs)}")
        begin, end = self._place_of(split, len(pairs))
        return Source(pairs=pairs[begin:end], coding=coding_of(IDS, self.classes))

    def folders(self, split: Split) -> tuple[Path, ...]:
        root = self._root()
        return root / IMAGES, root / LABELS

    def _root(self) -> Path:
        return find_folder(Path(self.root).expanduser(), "SYNTHIA-RAND-CITYSCAPES", (IMAGES, LABELS), "RAND_CITYSCAPES")

    def official(self, split: Split) -> Official:
        """This split of all scenes."""
        begin, end = self._place_of(split, NUM_IMAGES)
        return Official(num_images=end - begin, size=(760, 1280))

    def _place_of(self, split: Split, count: int) -> tuple[int, int]:
        """Where a split begins and ends among so many images."""
        val, test = (max(1, round(count * part)) if part else 0 for part in (self.val_fraction, self.test_fraction))
        train = count - val - test
        return {"train": (0, train), "val": (train, train + val), "test": (train + val, count)}[split]
