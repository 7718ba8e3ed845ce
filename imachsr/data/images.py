"""Decode image and label files once, into memory-mapped arrays that later runs share."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imachsr.data.cache import Entry, cache_folder
from imachsr.data.coding import Coding
from imachsr.data.official import Official
from imachsr.data.pairing import Pair
from imachsr.data.pictures import check_depth, open_image
from imachsr.data.samples import OnError, Progress, Samples, Split, check_on_error, check_size, untold

MOST_SKIPPED = 0.1
"""Largest share of a split that may be skipped; more is no matter of single files."""
MOST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a split, and how they are read.

    Attributes:
        pairs: Image and label file of each sample.
        coding: Of the label files.
        names: One per sample; none: the images' stems.
    """

    pairs: Sequence[Pair]
    coding: Coding
    names: tuple[str, ...] | None = None

    def load(self, *, size: tuple[int, int], cache: str | None, on_error: OnError, progress: Progress = untold) -> Samples:
        """Decode the files (once) and map them; see :func:`load_pairs`."""
        coding, names = self.coding, self.names
        return load_pairs(
            self.pairs, size=size, num_classes=coding.num_classes, coding=coding, names=names, cache=cache, on_error=on_error, progress=progress
        )


class FromFiles(ABC):
    """What data sets that are read from files share; each is a frozen dataclass with these fields, and says which files a split has.

    Attributes:
        root: The data set's folder.
        size: (height, width) in pixels, each >= 32.
        cache: Folder of decoded arrays; the user's cache folder without it.
        on_error: raise, or skip: leave out samples whose files are missing or broken, with a warning, up to a tenth of a split.
    """

    root: str
    size: tuple[int, int]
    cache: str | None
    on_error: OnError

    def __post_init__(self) -> None:
        check_size(self.size)
        check_on_error(self.on_error)

    @abstractmethod
    def source(self, split: Split) -> Source:
        """The files of a split; raises as :meth:`load`, but opens none."""

    @abstractmethod
    def folders(self, split: Split) -> tuple[Path, ...]:
        """Where every image is one of a sample of this split, or of another; none where lists say which are. They may be missing."""

    def is_beside(self, path: Path) -> bool:
        """Whether a file that is not read is one that the data set's makers put beside those that are."""
        return False

    def repeated(self, split: Split) -> list[str]:
        """What a list names more than once, in words."""
        return []

    def passed_over(self, split: Split) -> list[str]:
        """What is there for this split and is not read, though it is in other layouts, in words."""
        return []

    def official(self, split: Split) -> Official | None:
        """The split as its authors publish it, in the layout that is there; None where nothing is known of it."""
        return None

    def load(self, split: Split, *, progress: Progress = untold) -> Samples:
        """Decode (once) and map a split.

        Args:
            split: Which.
            progress: Called with the files that are decoded, and the number of all.

        Raises:
            ValueError: If there is no such split, or a folder, a list, a partner or a file is missing or broken; names it.
        """
        return self.source(split).load(size=self.size, cache=self.cache, on_error=self.on_error, progress=progress)


def load_pairs(
    pairs: Sequence[Pair],
    *,
    size: tuple[int, int],
    num_classes: int,
    ignore: Mapping[int, int] | None = None,
    coding: Coding | None = None,
    names: Sequence[str] | None = None,
    cache: str | None = None,
    on_error: OnError = "raise",
    progress: Progress = untold,
) -> Samples:
    """Decode pairs at (H, W), or map what an earlier call decoded.

    Args:
        pairs: Image and label file.
        size: (H, W); images are resized bilinearly, labels by the nearest pixel.
        num_classes: K; every label must be below it, or ignored.
        ignore: Label values to replace, usually by 255.
        coding: Of the label files, in place of ``num_classes`` and ``ignore``.
        names: One per pair; the images' stems without them.
        cache: Folder for the arrays.
        on_error: Whether a pair that cannot be used is an error, or is left out with a warning.
        progress: Called with the pairs that are decoded and the number of all, one after the other.

    Raises:
        ValueError: If a file is missing, cannot be read or holds an unknown label, or a label map has another size than its image (names the files),
            or more than a tenth of the pairs would be skipped, or the cache cannot be written.
    """
    coding = coding or Coding(num_classes=num_classes, replace=tuple((ignore or {}).items()))
    names = names or [image.stem for image, _ in pairs]
    folder = cache_folder(cache)

    def entry(some: Sequence[Pair]) -> Entry:
        return entry_of(folder, some, size, coding)

    # What is left of the pairs has the arrays that it would have by itself.
    skipped = entry(pairs).read_skipped() if on_error == "skip" else {}
    kept = [pair for index, pair in enumerate(pairs) if index not in skipped]
    arrays = entry(kept).read((len(kept), *size))
    if arrays is None:
        images, labels, skipped = _decode(pairs, size, coding, on_error, progress)
        _check_skipped(pairs, skipped)
        kept = [pair for index, pair in enumerate(pairs) if index not in skipped]
        entry(kept).write(images, labels)
        if skipped:
            entry(pairs).write_skipped(skipped)
        arrays = entry(kept).read((len(kept), *size))
        if arrays is None:
            raise ValueError(f"cache folder {folder} must keep what is written to it, but does not; set data.cache or XDG_CACHE_HOME to another")
    if skipped:
        _tell_skipped(pairs, skipped)
    return Samples(images=arrays[0], labels=arrays[1], names=tuple(name for index, name in enumerate(names) if index not in skipped))


def entry_of(folder: Path, pairs: Sequence[Pair], size: tuple[int, int], coding: Coding) -> Entry:
    """Where the arrays of these pairs are kept."""
    return Entry.of(folder, pairs, size, coding.num_classes, dict(coding.replace), how="" if coding.is_plain else repr(coding))


def _decode(
    pairs: Sequence[Pair],
    size: tuple[int, int],
    coding: Coding,
    on_error: OnError,
    progress: Progress,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[int, str]]:
    """Images and labels of the good pairs, and why the others are skipped, by index."""
    images = np.empty((len(pairs), 3, *size), np.uint8)
    labels = np.empty((len(pairs), *size), np.uint8)

    strange = np.zeros(len(pairs), np.int64)

    def decode(index: int) -> str | None:
        try:
            images[index], labels[index], strange[index] = decode_pair(pairs[index], size, coding)
        except ValueError as error:
            if on_error == "raise":
                raise
            return str(error)
        return None

    skipped = {}
    # Threads: Pillow lets others run while it decodes and resizes.
    pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
    try:
        for index, why in enumerate(pool.map(decode, range(len(pairs)))):
            if why is not None:
                skipped[index] = why
            progress(index + 1, len(pairs))
    finally:
        pool.shutdown(cancel_futures=True)  # after the first error
    tell_strange(pairs, strange)
    if skipped:
        good = np.array([index not in skipped for index in range(len(pairs))])
        images, labels = images[good], labels[good]
    return images, labels, skipped


class Decoded(NamedTuple):
    """A pair of files.

    Attributes:
        image: ``[3, H, W]``.
        labels: ``[H, W]``.
        strange: Pixels of the label file that are ignored since their colour is not known.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    strange: int


def decode_pair(pair: Pair, size: tuple[int, int], coding: Coding) -> Decoded:
    """An image and its labels at (H, W).

    Raises:
        ValueError: If one of the files cannot be used; names it.
    """
    image, label = pair
    picture, classes = open_image(image), open_image(label)
    check_sizes(pair, picture, classes)
    return Decoded(_decode_image(image, picture, size), *_decode_labels(label, classes, size, coding))


def tell_strange(pairs: Sequence[Pair], strange: Sequence[int] | NDArray[np.int64]) -> None:
    """Warn of pixels that are ignored since their colour is not known.

    Args:
        pairs: Image and label file.
        strange: Such pixels of each.
    """
    if some := [label for (_, label), count in zip(pairs, strange, strict=True) if count]:
        words = f"{sum(strange)} pixels of {len(some)} label files have a colour that is not in the table, and are ignored"
        warnings.warn(f"{words}; the first file: {some[0]}", stacklevel=5)


def check_sizes(pair: Pair, picture: Image.Image, classes: Image.Image) -> None:
    """Raise ValueError for a label file that has not its image's size."""
    if picture.size != classes.size:
        (width, height), (right, down) = picture.size, classes.size
        with Image.open(pair[0]) as stored:
            why = (
                "; the image is turned by its EXIF orientation: take that off if the labels were made without" if stored.size != picture.size else ""
            )
        raise ValueError(f"{pair[1]} must have the {height} x {width} pixels of {pair[0]}, but has {down} x {right}{why}")


def _check_skipped(pairs: Sequence[Pair], skipped: Mapping[int, str]) -> None:
    if len(skipped) > MOST_SKIPPED * len(pairs) or (skipped and len(skipped) == len(pairs)):
        first = next(iter(skipped.values()))
        raise ValueError(f"at most {MOST_SKIPPED:.0%} of {len(pairs)} samples may be skipped, but {len(skipped)} cannot be used; the first: {first}")


def _tell_skipped(pairs: Sequence[Pair], skipped: Mapping[int, str]) -> None:
    shown = [*list(skipped.values())[:3], *(["..."] if len(skipped) > 3 else [])]
    warnings.warn(f"{len(skipped)} of {len(pairs)} samples are skipped (data.on_error): {'; '.join(shown)}", stacklevel=4)


def _decode_image(path: Path, image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    check_depth(path, image)
    return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR), np.uint8).transpose(2, 0, 1)


def _decode_labels(path: Path, image: Image.Image, size: tuple[int, int], coding: Coding) -> tuple[NDArray[np.uint8], int]:
    values = coding.values(path, image)
    labels, wrong = coding.classes(values)
    coding.check(path, image, values, wrong)
    return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)), int(wrong.sum())
