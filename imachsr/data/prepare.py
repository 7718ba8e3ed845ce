"""Decode a split ahead, straight to disk: larger than memory, and continued where it was broken off."""

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imachsr.data.cache import Entry, cache_folder
from imachsr.data.images import MOST_THREADS, Source, decode_pair, entry_of, tell_strange
from imachsr.data.samples import Progress, untold
from imachsr.files import sync_folder

CHUNK = 64
"""Samples between two points that a later run continues from."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a split became.

    Attributes:
        folder: That holds the arrays.
        num_samples: Of the split.
        size_bytes: Of its arrays.
        num_decoded: Samples that this call decoded; 0 where all were there.
    """

    folder: Path
    num_samples: int
    size_bytes: int
    num_decoded: int


def prepare(source: Source, *, size: tuple[int, int], cache: str | None, progress: Progress = untold) -> Prepared:
    """Store the arrays that :func:`imachsr.data.images.load_pairs` maps for these files, size and folder.

    Args:
        source: Files of a split.
        size: (H, W).
        cache: Folder for the arrays; the user's cache folder without it.
        progress: Called with the samples that are stored, and the number of all.

    Raises:
        ValueError: If a file cannot be used, the folder cannot take the arrays, or another process is preparing the same.
    """
    folder = cache_folder(cache)
    entry = entry_of(folder, source.pairs, size, source.coding)
    shape = (len(source.pairs), *size)
    size_bytes = 4 * int(np.prod(shape))
    decoded = 0
    if entry.read(shape) is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(entry):
                if entry.read(shape) is None:
                    decoded = _fill(entry, source, size, progress)
        except OSError as error:
            why = f"folder {folder} must take {size_bytes / 1e6:.1f} MB, but: {error.strerror or error}"
            raise ValueError(f"{why}; make room, or give another folder by --out") from error
    return Prepared(folder=folder, num_samples=len(source.pairs), size_bytes=size_bytes, num_decoded=decoded)


def _fill(entry: Entry, source: Source, size: tuple[int, int], progress: Progress) -> int:
    """Decode what is not stored yet; the arrays get their names when all of it is."""
    count = len(source.pairs)
    parts = {name: _part(entry, name) for name in ("images", "labels")}
    headers = {"images": _header((count, 3, *size)), "labels": _header((count, *size))}
    strides = {"images": 3 * size[0] * size[1], "labels": size[0] * size[1]}
    journal = _part(entry, "done")
    wholes = {name: len(headers[name]) + count * strides[name] for name in parts}
    if not _is_resumable(parts, wholes, journal):
        _discard(entry)
        try:
            for name, part in parts.items():
                _allocate(part, wholes[name], headers[name])
            journal.write_text("0")
        except OSError:
            _discard(entry)
            raise
    done = decoded = int(journal.read_text())
    strange: list[int] = []
    try:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(part.open("r+b")) for name, part in parts.items()}
            pool = stack.enter_context(ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)))
            while done < count:
                for image, labels, ignored in pool.map(lambda pair: decode_pair(pair, size, source.coding), source.pairs[done : done + CHUNK]):
                    for name, array in (("images", image), ("labels", labels)):
                        files[name].seek(len(headers[name]) + done * strides[name])
                        files[name].write(array.tobytes())
                    strange.append(ignored)
                    done += 1
                    progress(done, count)
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
                _note(journal, done)
    except ValueError:  # the file that is broken has another stamp once it is mended, and the arrays another name
        _discard(entry)
        raise
    for name, part in parts.items():
        os.replace(part, entry.path(name))
    journal.unlink()
    sync_folder(entry.folder)
    tell_strange(source.pairs[decoded:], strange)
    return count - decoded


def _part(entry: Entry, name: str) -> Path:
    return entry.folder / f"{entry.key}-{name}.part"


def _discard(entry: Entry) -> None:
    for name in ("images", "labels", "done"):
        _part(entry, name).unlink(missing_ok=True)


def _is_resumable(parts: dict[str, Path], wholes: dict[str, int], journal: Path) -> bool:
    try:
        int(journal.read_text())
        return all(part.stat().st_size == wholes[name] for name, part in parts.items())
    except (OSError, ValueError):
        return False


def _allocate(part: Path, size_bytes: int, header: bytes) -> None:
    """A file that has its room on the disk from the beginning, so that a full disk is told before an hour of decoding."""
    with part.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.truncate(size_bytes)
        file.write(header)


def _note(journal: Path, done: int) -> None:
    """After the samples are on the disk; a half-written number would begin anew, a renamed one cannot be half-written."""
    fresh = journal.with_suffix(".new")
    fresh.write_text(str(done))
    os.replace(fresh, journal)


def _header(shape: tuple[int, ...]) -> bytes:
    """What np.save writes before such an array of uint8."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@contextlib.contextmanager
def _alone(entry: Entry) -> Iterator[None]:
    """Hold the entry against other processes."""
    lock = entry.folder / f"{entry.key}.lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"only one process must prepare the same split, but another holds {lock}; wait for it") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
