"""Any folder of images with masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.coding import Coding
from imachsr.data.images import FromFiles, Source
from imachsr.data.pairing import Pair, list_images, pair_folders
from imachsr.data.samples import NoSplitError, OnError, Split, check_split


@dataclass(frozen=True, kw_only=True)
class Folder(FromFiles):
    """``SPLIT/images`` with ``SPLIT/masks``, ``images/SPLIT`` with ``masks/SPLIT``, or a flat ``images`` with ``masks``.

    Of the flat layout the last 20 % in name order are ``val``, the 80 % before them ``train``; there is no ``test``.

    Args:
        root: The folder.
        class_names: K names, in the order of the mask values.
        ignore: Mask values >= 0 that do not count, besides 255.
        size: (height, width) in pixels, each >= 32.
        mask_suffix: What the stem of a mask has behind the image's, such as "_mask"; files without it are no masks.
        cache: Folder of decoded arrays; the user's cache folder without it.
        on_error: raise, or skip: leave out samples whose files are missing or broken, with a warning, up to a tenth of a split.
    """

    kind: Literal["folder"] = "folder"
    root: str
    class_names: tuple[str, ...]
    ignore: tuple[int, ...] = ()
    size: tuple[int, int] = (96, 128)
    mask_suffix: str = ""
    cache: str | None = None
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= len(self.class_names) <= IGNORE_INDEX:
            raise ValueError(f"`class_names` must hold 2 to {IGNORE_INDEX} names, but got {len(self.class_names)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"`class_names` must differ, but got {', '.join(self.class_names)}")
        if min(self.ignore, default=0) < 0:
            raise ValueError(f"`ignore >= 0` must hold, but got {list(self.ignore)}")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def source(self, split: Split) -> Source:
        """The files of a split; raises as :meth:`load`, but opens none."""
        check_split(split)
        replace = tuple((value, IGNORE_INDEX) for value in self.ignore)
        return Source(pairs=self._pairs(Path(self.root).expanduser(), split), coding=Coding(num_classes=self.num_classes, replace=replace))

    def folders(self, split: Split) -> tuple[Path, ...]:
        root = Path(self.root).expanduser()
        flat = ((root / "images", root / "masks"),) if split != "test" and _is_flat(root) else ()
        return next((both for both in (*_layouts(root, split), *flat) if both[0].is_dir()), ())

    def is_beside(self, path: Path) -> bool:
        return "masks" in (path.parent.name, path.parent.parent.name) and not path.stem.endswith(self.mask_suffix)

    def _pairs(self, root: Path, split: str) -> list[Pair]:
        if not root.is_dir():
            raise ValueError(f"`data.root` must be the data set's folder, but {root} is no folder")
        for images, masks in _layouts(root, split):
            if images.is_dir():
                return self._paired(images, masks)
        if split == "test" or not _is_flat(root):
            parts = (root / split, root / "images" / split, root / "masks" / split)
            error = ValueError if any(part.exists() for part in parts) else NoSplitError
            raise error(f"{root} must hold {split}/images and {split}/masks, images/{split} and masks/{split}, or (train and val) images and masks")
        pairs = self._paired(root / "images", root / "masks")
        if len(pairs) < 2:
            raise ValueError(f"{root / 'images'} must hold at least 2 images, to train and to validate on, but holds {len(pairs)}")
        cut = len(pairs) - max(1, len(pairs) // 5)
        return pairs[:cut] if split == "train" else pairs[cut:]

    def _paired(self, images: Path, masks: Path) -> list[Pair]:
        try:
            return pair_folders(images, masks, label_suffix=self.mask_suffix, on_error=self.on_error)
        except ValueError as error:
            raise ValueError(f"{error}{_suffix_hint(images, masks)}") from None


def _suffix_hint(images: Path, masks: Path) -> str:
    """What all masks may have behind the names of their images, for a message."""
    if not masks.is_dir():
        return ""
    stems, found = list(list_images(images)), list(list_images(masks))
    suffixes = {mask.removeprefix(stem) for stem, mask in zip(stems, found, strict=False) if mask.startswith(stem)}
    suffix = suffixes.pop() if len(suffixes) == 1 else ""
    fits = suffix and {f"{stem}{suffix}" for stem in stems} == set(found)
    return f"; with data.mask_suffix={suffix} all have one" if fits else ""


def _layouts(root: Path, split: str) -> tuple[Pair, ...]:
    """Where images and masks of a split may lie."""
    return (root / split / "images", root / split / "masks"), (root / "images" / split, root / "masks" / split)


def _is_flat(root: Path) -> bool:
    has_splits = any((root / "images" / name).is_dir() or (root / name).is_dir() for name in get_args(Split))
    return (root / "images").is_dir() and not has_splits
