"""CamVid with 11 classes, as users have it on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.images import Pair, load_pairs, pair_folders
from imachsr.data.samples import OnError, Progress, Samples, Split, check_on_error, check_size, check_split, untold

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
VOID = 11


@dataclass(frozen=True, kw_only=True)
class CamVid:
    """Street video of Brostow et al. 2009 in the 11-class layout of SegNet.

    ``train/`` with ``trainannot/`` (likewise val, test), or ``train.txt`` with
    a pair of paths a line. Label 11 (void) is ignored.

    Args:
        root: The data set's folder.
        size: (height, width) in pixels, each >= 32.
        cache: Folder of decoded arrays; the user's cache folder without it.
        on_error: raise, or skip: leave out samples whose files are missing or broken, with a warning, up to a tenth of a split.
    """

    kind: Literal["camvid"] = "camvid"
    root: str
    size: tuple[int, int] = (96, 128)
    cache: str | None = None
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        check_size(self.size)
        check_on_error(self.on_error)

    @property
    def num_classes(self) -> int:
        return len(CLASSES)

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def load(self, split: Split, *, progress: Progress = untold) -> Samples:
        """Decode (once) and map a split.

        Args:
            split: Which.
            progress: Called with the files that are decoded, and the number of all.

        Raises:
            ValueError: If the folder, a list, a partner or a file is missing or broken; names it.
        """
        check_split(split)
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise ValueError(f"`data.root` must be CamVid's folder, but {root} is no folder; pass --data PATH/TO/camvid")
        return load_pairs(
            self._pairs(root, split),
            size=self.size,
            num_classes=self.num_classes,
            ignore={VOID: IGNORE_INDEX},
            cache=self.cache,
            on_error=self.on_error,
            progress=progress,
        )

    def _pairs(self, root: Path, split: str) -> list[Pair]:
        if (root / split).is_dir():
            return pair_folders(root / split, root / f"{split}annot", on_error=self.on_error)
        listed = root / f"{split}.txt"
        if not listed.is_file():
            there = ", ".join(sorted(path.name for path in root.iterdir())) or "nothing"
            raise ValueError(f"{root} must hold {split}/ with {split}annot/, or {split}.txt, but holds {there}")
        try:
            lines = listed.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{listed} must be a readable text file, but: {error}") from None
        pairs = [_listed_pair(root, listed, number, line, self.on_error) for number, line in enumerate(lines, 1) if line.strip()]
        if not pairs:
            raise ValueError(f"{listed} must name at least one image and label, but names none")
        return pairs


def _listed_pair(root: Path, listed: Path, number: int, line: str, on_error: OnError) -> Pair:
    parts = line.split()
    if len(parts) != 2:
        raise ValueError(f"{listed}:{number} must hold an image and a label path, but got {line!r}")
    image, label = (_find(root, part) for part in parts)
    if on_error == "raise" and (image is None or label is None):
        raise ValueError(f"{listed}:{number} must name two files below {root}, but {parts[image is not None]} is not there")
    return image or root / parts[0], label or root / parts[1]


def _find(root: Path, name: str) -> Path | None:
    """SegNet's lists start with a prefix of their own (/SegNet/CamVid/): the longest tail of the path that exists below the root."""
    parts = Path(name).parts
    tails = (root.joinpath(*parts[start:]) for start in range(len(parts)) if parts[start] != "/")
    return next((tail for tail in tails if tail.is_file()), None)
