"""Decode image and label files once, into memory-mapped arrays that later runs share."""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.cache import Entry, cache_folder
from imachsr.data.samples import OnError, Progress, Samples, untold

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
Pair = tuple[Path, Path]
MOST_SKIPPED = 0.1
"""Largest share of a split that may be skipped; more is no matter of single files."""
MOST_THREADS = 8


def list_images(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Images of a folder whose stems end in ``suffix``, by stem, in name order; numbers count as numbers, so that ``img_2`` is before ``img_10``.

    Raises:
        ValueError: If two files have one stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=_natural):
        if path.suffix.lower() in SUFFIXES and path.stem.endswith(suffix):
            if path.stem in found:
                raise ValueError(f"each stem must occur once in {folder}, but got {found[path.stem].name} and {path.name}")
            found[path.stem] = path
    return found


def _natural(path: Path) -> tuple[list[str | int], str]:
    # Texts and numbers alternate, so that like is compared with like.
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", path.name))], path.name


def pair_folders(images: Path, labels: Path, *, label_suffix: str = "", on_error: OnError = "raise") -> list[Pair]:
    """Pairs of equal stems.

    Args:
        images: Folder.
        labels: Folder.
        label_suffix: What the stem of a label file has behind the image's.
        on_error: With "skip", a file without a partner is paired with the one that it lacks, for :func:`load_pairs` to skip.

    Raises:
        ValueError: If a folder is empty, or a file of one (of the labels: with the suffix) has no partner in the other; names the first.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise ValueError(f"folder {folder} must exist, but does not")
    left = list_images(images)
    right = {stem.removesuffix(label_suffix): path for stem, path in list_images(labels, label_suffix).items()}
    if not left:
        raise ValueError(f"{images} must hold images ({', '.join(SUFFIXES)}), but holds none")
    for one, other, folder in ((left, right, labels), (right, left, images)):
        lonely = [path for stem, path in one.items() if stem not in other]
        if lonely and on_error == "raise":
            raise ValueError(f"every file must have its partner, but {lonely[0]} has none in {folder} ({len(lonely)} such files)")
    pairs = [(path, right.get(stem, labels / f"{stem}{label_suffix}.png")) for stem, path in left.items()]
    pairs += [(images / f"{stem}.png", path) for stem, path in right.items() if stem not in left]
    return sorted(pairs, key=lambda pair: _natural(pair[0]))


def load_pairs(
    pairs: Sequence[Pair],
    *,
    size: tuple[int, int],
    num_classes: int,
    ignore: Mapping[int, int] | None = None,
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
        cache: Folder for the arrays.
        on_error: Whether a pair that cannot be used is an error, or is left out with a warning.
        progress: Called with the pairs that are decoded and the number of all, one after the other.

    Raises:
        ValueError: If a file is missing, cannot be read or holds an unknown label, or a label map has another size than its image (names the files),
            or more than a tenth of the pairs would be skipped, or the cache cannot be written.
    """
    replace = dict(ignore or {})
    folder = cache_folder(cache)

    def entry(some: Sequence[Pair]) -> Entry:
        return Entry.of(folder, some, size, num_classes, replace)

    # What is left of the pairs has the arrays that it would have by itself.
    skipped = entry(pairs).read_skipped() if on_error == "skip" else {}
    kept = [pair for index, pair in enumerate(pairs) if index not in skipped]
    arrays = entry(kept).read((len(kept), *size))
    if arrays is None:
        images, labels, skipped = _decode(pairs, size, num_classes, replace, on_error, progress)
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
    return Samples(images=arrays[0], labels=arrays[1], names=tuple(image.stem for image, _ in kept))


def _decode(
    pairs: Sequence[Pair],
    size: tuple[int, int],
    num_classes: int,
    replace: Mapping[int, int],
    on_error: OnError,
    progress: Progress,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[int, str]]:
    """Images and labels of the good pairs, and why the others are skipped, by index."""
    images = np.empty((len(pairs), 3, *size), np.uint8)
    labels = np.empty((len(pairs), *size), np.uint8)

    def decode(index: int) -> str | None:
        image, label = pairs[index]
        try:
            picture, classes = _open(image), _open(label)
            if picture.size != classes.size:
                (width, height), (right, down) = picture.size, classes.size
                raise ValueError(f"{label} must have the {height} x {width} pixels of {image}, but has {down} x {right}")
            images[index] = _decode_image(image, picture, size)
            labels[index] = _decode_labels(label, classes, size, num_classes, replace)
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
    if skipped:
        good = np.array([index not in skipped for index in range(len(pairs))])
        images, labels = images[good], labels[good]
    return images, labels, skipped


def _check_skipped(pairs: Sequence[Pair], skipped: Mapping[int, str]) -> None:
    if len(skipped) > MOST_SKIPPED * len(pairs) or (skipped and len(skipped) == len(pairs)):
        first = next(iter(skipped.values()))
        raise ValueError(f"at most {MOST_SKIPPED:.0%} of {len(pairs)} samples may be skipped, but {len(skipped)} cannot be used; the first: {first}")


def _tell_skipped(pairs: Sequence[Pair], skipped: Mapping[int, str]) -> None:
    shown = [*list(skipped.values())[:3], *(["..."] if len(skipped) > 3 else [])]
    warnings.warn(f"{len(skipped)} of {len(pairs)} samples are skipped (data.on_error): {'; '.join(shown)}", stacklevel=4)


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"{path} must exist, but does not")
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} must be a readable image, but: {error}") from error


def _decode_image(path: Path, image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.mode[0] in "IF":  # Pillow would clip, not scale
        raise ValueError(f"{path} must have 8 bits a channel, but has mode {image.mode}")
    return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR), np.uint8).transpose(2, 0, 1)


def _decode_labels(path: Path, image: Image.Image, size: tuple[int, int], num_classes: int, replace: Mapping[int, int]) -> NDArray[np.uint8]:
    raw = np.asarray(image)
    if raw.ndim != 2 or raw.dtype.kind == "f":
        raise ValueError(f"{path} must hold one class index a pixel (grey or palette), but has mode {image.mode}")
    labels = raw.astype(np.int64)
    for value, new in replace.items():
        labels[raw == value] = new
    wrong = (labels < 0) | ((labels >= num_classes) & (labels != IGNORE_INDEX))
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise ValueError(
            f"labels of {path} must be in 0..{num_classes - 1} or {IGNORE_INDEX} (ignored), but got {int(raw[y, x])} at (y, x) = ({y}, {x}), "
            f"and {int(wrong.sum())} such pixels in all"
        )
    return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST))
