"""Which files belong together: folders are listed, and images paired with their labels."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from imachsr.data.samples import OnError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
Pair = tuple[Path, Path]


def list_images(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Images of a folder whose stems end in ``suffix``, by stem, in name order; numbers count as numbers, so that ``img_2`` is before ``img_10``.

    Folders are no images, whatever their names, and neither is what is hidden: beside NAME.png macOS leaves a ._NAME.png on foreign disks.

    Raises:
        ValueError: If two files have one stem.
    """
    found: dict[str, Path] = {}
    with os.scandir(folder) as entries:  # which knows files from folders without asking the disk about each
        paths = [folder / entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
    for path in sorted(paths, key=_natural):
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
            beside = f"; {folder.parent} holds {holdings(folder.parent)}" if folder.parent.is_dir() else ""
            raise ValueError(f"folder {folder} must exist, but does not{beside}")
    left = list_images(images)
    right = {stem.removesuffix(label_suffix): path for stem, path in list_images(labels, label_suffix).items()}
    if not left:
        raise ValueError(f"{images} must hold images ({', '.join(SUFFIXES)}), but holds none")
    return pair_up(
        left, right, image_at=lambda stem: images / f"{stem}.png", label_at=lambda stem: labels / f"{stem}{label_suffix}.png", on_error=on_error
    )


def pair_up(
    left: Mapping[str, Path],
    right: Mapping[str, Path],
    *,
    image_at: Callable[[str], Path],
    label_at: Callable[[str], Path],
    on_error: OnError,
) -> list[Pair]:
    """Images and labels with equal keys, in name order.

    Args:
        left: Images, by key.
        right: Labels.
        image_at: Where the image with a key should be.
        label_at: Where the label should be.
        on_error: With "skip", a file without a partner is paired with the one that it lacks, for :func:`load_pairs` to skip.

    Raises:
        ValueError: If a file has no partner; names the first.
    """
    for one, other, at in ((left, right, label_at), (right, left, image_at)):
        lonely = [(key, path) for key, path in one.items() if key not in other]
        if lonely and on_error == "raise":
            key, path = lonely[0]
            raise ValueError(f"every file must have its partner, but {path} has none in {at(key).parent} ({len(lonely)} such files)")
    pairs = [(path, right.get(key, label_at(key))) for key, path in left.items()]
    pairs += [(image_at(key), path) for key, path in right.items() if key not in left]
    return sorted(pairs, key=lambda pair: (_natural(pair[0].parent), _natural(pair[0])))


def find_folder(root: Path, kind: str, folders: Sequence[str], inner: str = "") -> Path:
    """The folder that holds these folders: the root, or the one in it that the archive is packed in.

    Raises:
        ValueError: If neither does; names what is there.
    """
    if not root.is_dir():
        raise ValueError(f"`data.root` must be the folder of {kind}, but {root} is no folder")
    for place in (root, *([root / inner] if inner else [])):
        if all((place / name).is_dir() for name in folders):
            return place
    missing = next(name for name in folders if not (root / name).is_dir())
    raise ValueError(f"{root} must hold {' and '.join(f'{name}/' for name in folders)}, but has no {missing}/; it holds {holdings(root)}")


def holdings(folder: Path) -> str:
    """What lies in a folder, in words."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8] + (["..."] if len(names) > 8 else [])) or "nothing"
