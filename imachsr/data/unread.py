"""What lies among a data set's files and is read by none of its splits: mislaid, misnamed, or something else that the archive holds."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from imachsr.data.images import FromFiles
from imachsr.data.inspection import Findings
from imachsr.data.layout import OTHER_NAMES
from imachsr.data.pairing import SUFFIXES
from imachsr.data.samples import Split

MOST_FOLDERS = 5
"""Folders that are named of those with images that are not read; the others are counted."""
_TOLD_BY_THEMSELVES = (".txt", ".md", ".db", ".ini")  # lists, notes, and what file managers leave


@dataclass
class Stray:
    """Images below one folder that are not read.

    Attributes:
        first: One of them.
        count: All.
    """

    first: Path
    count: int = 0


@dataclass
class Place:
    """What a folder holds in which every image should be read.

    Attributes:
        images: That are not read.
        empty: Folders with nothing in them.
        misnamed: Folders that have an image's name.
        others: Files that are no images by their names.
    """

    images: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    misnamed: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def tell_unread(data: FromFiles, findings: Mapping[Split, Findings]) -> list[str]:
    """Count what is not read where every image should be, and folders that seem to be a split, as problems; give notes on all other images.

    Args:
        data: A data set.
        findings: Of the splits that are looked at; what is found is told to them.

    Returns:
        What else lies in the data set's folder and is not read, in words.
    """
    splits: tuple[Split, ...] = get_args(Split)
    own = {split: [folder for folder in data.folders(split) if folder.is_dir()] for split in splits}
    read = _read(data, splits)
    seen: set[Path] = set()
    for split, found in findings.items():
        if found.missing is None:
            for folder in own[split]:
                if folder not in seen:
                    seen.add(folder)
                    _tell_place(folder, split, found, _look(folder, read, data), read)
    strays = _strays(Path(data.root).expanduser(), read, {folder for folders in own.values() for folder in folders}, data)
    others = {}
    for folder, stray in strays.items():
        meant = None if folder == Path(data.root).expanduser() else _meant(folder, stray.first)
        if meant is None or meant not in findings or findings[meant].missing is not None:
            others[folder] = stray
        else:
            places = " and ".join(map(str, own[meant])) or "what its list names"
            words = f"{folder} seems to be of {meant}, but its images ({stray.count}, such as {stray.first}) are not read"
            findings[meant].tell("not read", f"{words}: {meant} is read from {places}")
    return [_note(others)] if others else []


def _read(data: FromFiles, splits: tuple[Split, ...]) -> set[Path]:
    """All files that some split reads, of those splits that can be read."""
    lenient = replace(data, on_error="skip")  # type: ignore[type-var]  # every data set of this kind is a dataclass
    read: set[Path] = set()
    for split in splits:
        with contextlib.suppress(ValueError):
            read.update(path for pair in lenient.source(split).pairs for path in pair)
    return read


def _look(folder: Path, read: set[Path], data: FromFiles) -> Place:
    """What in a folder, and in folders in it, is not read."""
    found = Place()
    for place, folders, files in _walk(folder, does_follow=True):
        if not folders and not files and place != folder:
            found.empty.append(place)
        found.misnamed += [place / name for name in folders if Path(name).suffix.lower() in SUFFIXES]
        for path in (place / name for name in files):
            if path in read or data.is_beside(path):
                continue
            if path.suffix.lower() in SUFFIXES:
                found.images.append(path)
            elif path.suffix.lower() not in _TOLD_BY_THEMSELVES and path.suffix:
                found.others.append(path)
    return found


def _tell_place(folder: Path, split: Split, found: Findings, place: Place, read: set[Path]) -> None:
    depth = next((len(path.relative_to(folder).parts) for path in read if path.is_relative_to(folder)), 1)
    for path in place.images:
        if len(path.relative_to(folder).parts) == depth:
            why = "has not the name of one"
        else:
            why = f"images are read from {folder} itself" if depth == 1 else f"images are read from the folders in {folder}"
        found.tell("not read", f"{path} lies among the files of {split}, but is not read: {why}")
    for path in place.misnamed:
        found.tell("not read", f"{path} must be an image by its name, but is a folder")
    for path in place.empty:
        if path not in place.misnamed:
            found.tell("empty folder", f"{path} must hold files of {split}, but holds none")
    if place.others:
        kinds = ", ".join(f"{suffix}: {count}" for suffix, count in Counter(path.suffix for path in place.others).most_common(MOST_FOLDERS))
        found.notes.append(
            f"{len(place.others)} files in {folder} are no images by their names ({kinds}) and are not read, such as {place.others[0]}"
        )


def _strays(root: Path, read: set[Path], own: set[Path], data: FromFiles) -> dict[Path, Stray]:
    """Images outside of the folders in which every one should be read, by the uppermost folder that holds no file or folder that is read."""
    used = {parent for path in (*read, *(folder / "any" for folder in own)) for parent in path.parents}
    found: dict[Path, Stray] = {}
    for place, folders, files in _walk(root, does_follow=False):
        folders[:] = [name for name in folders if place / name not in own]
        images = [place / name for name in files if Path(name).suffix.lower() in SUFFIXES]
        if images := [path for path in images if path not in read and not data.is_beside(path)]:
            below = [each for each in (place, *place.parents) if each not in used and each.is_relative_to(root)]
            group = below[-1] if below else place
            found.setdefault(group, Stray(first=images[0])).count += len(images)
    return found


def _meant(folder: Path, image: Path) -> Split | None:
    """The split that a folder's name, or of a layout's folders that of one in it, is a word for."""
    splits: tuple[Split, ...] = get_args(Split)
    names = {folder.name, *(image.relative_to(folder).parts[:-1] if folder.name in ("images", "masks") else ())}
    return next((split for split in splits if names & {split, *OTHER_NAMES[split]}), None)


def _note(strays: Mapping[Path, Stray]) -> str:
    named = [f"{folder} ({stray.count})" for folder, stray in list(strays.items())[:MOST_FOLDERS]]
    more = [f"and {len(strays) - MOST_FOLDERS} other folders"] if len(strays) > MOST_FOLDERS else []
    return f"{sum(stray.count for stray in strays.values())} images beside those of the splits are not read: {', '.join(named + more)}"


def _walk(folder: Path, *, does_follow: bool) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk in the order of names, without what is hidden, and into no folder twice."""
    been: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=does_follow):
        if (real := os.path.realpath(place)) in been:
            folders.clear()
            continue
        been.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX", "@")))
        yield Path(place), folders, sorted(name for name in files if not name.startswith("."))
