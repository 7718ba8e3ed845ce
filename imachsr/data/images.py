"""Decode image and label files once, into memory-mapped arrays that later runs share."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.samples import Samples
from imachsr.files import write_atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
Pair = tuple[Path, Path]
VERSION = 2  # of the decoding; arrays of another are left alone


def cache_folder(cache: str | None) -> Path:
    """Where decoded arrays are kept: `cache`, else ``$XDG_CACHE_HOME/imachsr``, else ``~/.cache/imachsr``."""
    if cache is not None:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imachsr"


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


def pair_folders(images: Path, labels: Path, *, label_suffix: str = "") -> list[Pair]:
    """Pairs of equal stems.

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
        if lonely:
            raise ValueError(f"every file must have its partner, but {lonely[0]} has none in {folder} ({len(lonely)} such files)")
    return [(path, right[stem]) for stem, path in left.items()]


def load_pairs(
    pairs: Sequence[Pair], *, size: tuple[int, int], num_classes: int, ignore: Mapping[int, int] | None = None, cache: str | None = None
) -> Samples:
    """Decode pairs at (H, W), or map what an earlier call decoded.

    Args:
        pairs: Image and label file.
        size: (H, W); images are resized bilinearly, labels by the nearest pixel.
        num_classes: K; every label must be below it, or ignored.
        ignore: Label values to replace, usually by 255.
        cache: Folder for the arrays.

    Raises:
        ValueError: If a file cannot be read or holds an unknown label, or a label map has another size than its image (names the files), or the cache
            cannot be written.
    """
    replace = dict(ignore or {})
    names = tuple(image.stem for image, _ in pairs)
    key = hashlib.sha256(repr((VERSION, size, num_classes, sorted(replace.items()), [_stamp(path) for pair in pairs for path in pair])).encode())
    folder = cache_folder(cache)
    targets = [folder / f"{key.hexdigest()[:32]}-{part}.npy" for part in ("images", "labels")]
    if not all(target.exists() for target in targets):
        images = np.empty((len(pairs), 3, *size), np.uint8)
        labels = np.empty((len(pairs), *size), np.uint8)
        for index, (image, label) in enumerate(pairs):
            picture, classes = _open(image), _open(label)
            if picture.size != classes.size:
                (width, height), (right, down) = picture.size, classes.size
                raise ValueError(f"{label} must have the {height} x {width} pixels of {image}, but has {down} x {right}")
            images[index] = _decode_image(image, picture, size)
            labels[index] = _decode_labels(label, classes, size, num_classes, replace)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for target, array in zip(targets, (images, labels), strict=True):
                write_atomic(target, partial(_save, array))
        except OSError as error:
            need = (images.nbytes + labels.nbytes) / 1e6
            raise ValueError(f"cache folder {folder} must take {need:.1f} MB, but: {error}; set data.cache or XDG_CACHE_HOME to another") from error
    # "c": private copy-on-write pages, shared by every process that maps the file until someone writes.
    mapped = [torch.from_numpy(np.load(target, mmap_mode="c")) for target in targets]
    return Samples(images=mapped[0], labels=mapped[1], names=names)


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_mtime_ns, status.st_size


def _save(array: NDArray[np.uint8], file: IO[bytes]) -> None:
    np.save(file, array)


def _open(path: Path) -> Image.Image:
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
