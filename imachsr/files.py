"""Files that are whole or absent, and folders that a process holds."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

LOCK = ".lock"
"""In a result folder; the process that works on it holds a lock on this file."""


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the whole new one; when this returns, the new one outlives a power cut.

    A process that is killed meanwhile leaves a file ``NAME*.tmp`` beside the old one.

    Args:
        path: Where; its folder must exist.
        write: Called with a file that can be read too.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
        try:
            write(file.file)  # without the wrapper, since libraries ask of what kind a file is
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # it was renamed already
                os.unlink(file.name)
            raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut: fsync of a file keeps its bytes, not that it was created or renamed."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_text(path: Path, text: str) -> None:
    """The same for text, in UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def is_held(folder: Path) -> bool:
    """Whether a process works on a result folder: it holds its lock."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
