"""Decoded samples on disk, memory-mapped and shared by all later runs."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imachsr.files import write_atomic, write_text

VERSION = 3  # of the decoding; arrays of another are left alone


def cache_folder(cache: str | None) -> Path:
    """Where decoded arrays are kept: `cache`, else ``$XDG_CACHE_HOME/imachsr``, else ``~/.cache/imachsr``."""
    if cache is not None:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imachsr"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The arrays of some pairs of files at one size; their names hold what the files were, so that a changed file has another entry.

    Attributes:
        folder: That holds all entries.
        key: What was decoded, and how.
    """

    folder: Path
    key: str

    @staticmethod
    def of(
        folder: Path, pairs: Sequence[tuple[Path, Path]], size: tuple[int, int], num_classes: int, replace: Mapping[int, int], *, how: str = ""
    ) -> "Entry":
        stamps = [_stamp(path) for pair in pairs for path in pair]
        whole = repr((VERSION, size, num_classes, sorted(replace.items()), stamps)) + how
        return Entry(folder=folder, key=hashlib.sha256(whole.encode()).hexdigest()[:32])

    def read(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor] | None:
        """Images ``[N, 3, H, W]`` and labels ``[N, H, W]``, or None when they are not there, or with a warning when they are not whole.

        Args:
            shape: (N, H, W).
        """
        count, *size = shape
        expected = {"images": (count, 3, *size), "labels": shape}
        if not all(self.path(part).exists() for part in expected):
            return None
        mapped = []
        for part, wanted in expected.items():
            try:
                # "c": private copy-on-write pages, shared by every process that maps the file until someone writes.
                array = np.load(self.path(part), mmap_mode="c")
                if array.shape != wanted or array.dtype != np.uint8:
                    raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
            except FileNotFoundError:
                return None
            except (OSError, EOFError, ValueError) as error:
                message = f"{self.path(part)} must hold decoded uint8 {list(wanted)}, but: {error}; the files are decoded again"
                warnings.warn(message, stacklevel=4)
                return None
            mapped.append(torch.from_numpy(array))
        return mapped[0], mapped[1]

    def write(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Store both arrays, each whole or not at all; of several processes at once the last one's stay, which are equal.

        Raises:
            ValueError: If the folder cannot take them.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for part, array in (("images", images), ("labels", labels)):
                write_atomic(self.path(part), partial(_save, array))
        except OSError as error:
            need = (images.nbytes + labels.nbytes) / 1e6
            raise ValueError(
                f"cache folder {self.folder} must take {need:.1f} MB, but: {error}; set data.cache or XDG_CACHE_HOME to another"
            ) from error

    def read_skipped(self) -> dict[int, str]:
        """Which of the pairs could not be decoded, and why, as an earlier load found; nothing when none did."""
        try:
            found = json.loads((self.folder / f"{self.key}-skipped.json").read_text(encoding="utf-8"))
            return {int(index): str(why) for index, why in found.items()}
        except (OSError, ValueError, AttributeError):  # only a note: what it held is found again
            return {}

    def write_skipped(self, skipped: Mapping[int, str]) -> None:
        """Store that; in the folder of arrays that :meth:`write` made."""
        write_text(self.folder / f"{self.key}-skipped.json", json.dumps(skipped, indent=1) + "\n")

    def path(self, part: str) -> Path:
        """Of the images or the labels."""
        return self.folder / f"{self.key}-{part}.npy"


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:  # told when it is decoded
        return str(path.absolute()), 0, -1
    return str(path.resolve()), status.st_mtime_ns, status.st_size


def _save(array: NDArray[np.uint8], file: IO[bytes]) -> None:
    np.save(file, array)
