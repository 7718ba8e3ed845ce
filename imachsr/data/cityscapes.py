"""Cityscapes with its 19 classes, as users have it on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.coding import Coding
from imachsr.data.images import FromFiles, Source
from imachsr.data.official import Official
from imachsr.data.pairing import Pair, find_folder, holdings, list_images, pair_up
from imachsr.data.samples import NoSplitError, OnError, Split, check_split

IMAGES, LABELS = "leftImg8bit", "gtFine"
TRAIN_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The id of each class, in the order of the train ids 0..18. Source: ``helpers/labels.py`` of cityscapesScripts."""

CLASSES = tuple(TRAIN_IDS)
BESIDE = tuple(f"_{LABELS}_{name}" for name in ("color", "instanceIds", "instanceTrainIds", "labelIds", "labelTrainIds", "polygons"))
"""What the archive and createTrainIdLabelImgs put beside the files that are read."""
COUNTS: dict[Split, int] = {"train": 2975, "val": 500, "test": 1525}
# -1 (licence plate) is 255 in a file of eight bits.
_IGNORED = (-1, *sorted(set(range(34)) - set(TRAIN_IDS.values())), IGNORE_INDEX)
LABEL_IDS = Coding(
    num_classes=len(CLASSES),
    replace=(*((number, index) for index, number in enumerate(TRAIN_IDS.values())), *((number, IGNORE_INDEX) for number in _IGNORED)),
    is_closed=True,
)
LABEL_TRAIN_IDS = Coding(num_classes=len(CLASSES), replace=((-1, IGNORE_INDEX),))


@dataclass(frozen=True, kw_only=True)
class Cityscapes(FromFiles):
    """Street scenes of Cordts et al. 2016 with fine annotations.

    ``leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png`` with ``gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_labelTrainIds.png``; where
    a split has not all of those (createTrainIdLabelImgs of cityscapesScripts makes them), ``..._gtFine_labelIds.png``, mapped by the official
    table. What is outside of the 19 classes is ignored. The labels of the official test split are dummies: all of it is ignored, so that there is
    no score.

    Args:
        root: The folder that holds leftImg8bit and gtFine.
        size: (height, width) in pixels, each >= 32; the files have 1024 x 2048.
        cache: Folder of decoded arrays; the user's cache folder without it.
        on_error: raise, or skip: leave out samples whose files are missing or broken, with a warning, up to a tenth of a split.
    """

    kind: Literal["cityscapes"] = "cityscapes"
    root: str
    size: tuple[int, int] = (256, 512)
    cache: str | None = None
    on_error: OnError = "raise"

    @property
    def num_classes(self) -> int:
        return len(CLASSES)

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def source(self, split: Split) -> Source:
        """The files of a split; raises as :meth:`load`, but opens none."""
        check_split(split)
        root = find_folder(Path(self.root).expanduser(), "Cityscapes", (IMAGES, LABELS))
        images, labels = root / IMAGES / split, root / LABELS / split
        error = ValueError if images.exists() or labels.exists() else NoSplitError
        for folder in (images, labels):
            if not folder.is_dir():
                raise error(f"folder {folder} must exist, but does not; {folder.parent} holds {holdings(folder.parent)}")
        left = _frames(images, f"_{IMAGES}")
        if not left:
            raise ValueError(f"{images} must hold folders of cities with images *_{IMAGES}.png, but holds none")
        if strangers := [path for city in _cities(images) for path in list_images(city).values() if not path.stem.endswith(f"_{IMAGES}")]:
            raise ValueError(f"images must be named CITY_000000_000019_{IMAGES}.png, but got {strangers[0]} ({len(strangers)} such files)")
        suffix, coding = f"_{LABELS}_labelTrainIds", LABEL_TRAIN_IDS
        right = _frames(labels, suffix)
        if not set(left) <= set(right):
            suffix, coding = f"_{LABELS}_labelIds", LABEL_IDS
            right = _frames(labels, suffix)
        pairs: list[Pair] = pair_up(
            left,
            right,
            image_at=lambda key: images / f"{key}_{IMAGES}.png",
            label_at=lambda key: labels / f"{key}{suffix}.png",
            on_error=self.on_error,
        )
        return Source(pairs=pairs, coding=coding, names=tuple(image.stem.removesuffix(f"_{IMAGES}") for image, _ in pairs))

    def folders(self, split: Split) -> tuple[Path, ...]:
        root = Path(self.root).expanduser()
        return root / IMAGES / split, root / LABELS / split

    def is_beside(self, path: Path) -> bool:
        return path.stem.endswith(BESIDE)

    def official(self, split: Split) -> Official:
        """The numbers of the data set with fine annotations."""
        return Official(num_images=COUNTS[split], size=(1024, 2048))


def _cities(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _frames(folder: Path, suffix: str) -> dict[str, Path]:
    """Files of all cities with this suffix, by CITY/FRAME."""
    return {f"{city.name}/{stem.removesuffix(suffix)}": path for city in _cities(folder) for stem, path in list_images(city, suffix).items()}
