"""Whose a result folder is: a new one, one that a command works on, or a folder of other things, which no command may write over."""

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from imachsr.config.schema import ConfigError
from imachsr.files import LOCK

_HELD: "weakref.WeakSet[IO[str]]" = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child, such as a loader of batches: it would hold the folder for as long as it outlives its parent."""
    for file in list(_HELD):
        file.close()


os.register_at_fork(after_in_child=_let_go)


def lock(folder: Path) -> IO[str]:
    """Hold a folder until the file is closed, or the process ends.

    Raises:
        ConfigError: If another process holds it, or it cannot be written.
    """
    while True:
        try:
            file = (folder / LOCK).open("w")
        except OSError as error:
            raise ConfigError(f"{folder} must be a folder that can be written, but: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ConfigError(f"{folder} must not be in use, but another command works in it") from None
        if _is_there(file, folder / LOCK):
            _HELD.add(file)
            return file
        file.close()  # who held it has removed it meanwhile, see `claimed`


def _is_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def strangers(folder: Path) -> list[str]:
    """Names in a folder that no command has taken before; [] for one that is new, empty or some command's."""
    names = sorted(_names(folder))
    return [] if LOCK in names else names


def check_own(folder: Path) -> None:
    """Refuse a folder of other things.

    Raises:
        ConfigError: If it holds something, and no command's mark; names what.
    """
    if found := strangers(folder):
        raise ConfigError(f"{folder} must be a new folder, but holds {', '.join(found[:3])}; give another --output")


@contextlib.contextmanager
def claimed(folder: Path, *, is_known: bool = False) -> Iterator[Path]:
    """Hold a folder for results, made where it is missing; one in which nothing was written is left as it was found.

    Args:
        folder: The folder.
        is_known: Whether what it holds is known to be a result, whose command had left no mark.

    Raises:
        ConfigError: If another command works in it, it is a folder of other things, or it cannot be written.
    """
    if not is_known:
        check_own(folder)
    with _held(folder, _make(folder)):
        yield folder


@contextlib.contextmanager
def claimed_new(path: Path) -> Iterator[Path]:
    """The same for a folder that did not exist: the path, or with a number behind it when that is taken, even at this moment.

    Raises:
        ConfigError: If it cannot be made.
    """
    while not (made := _make(folder := free(path))):
        pass
    with _held(folder, made):
        yield folder


@contextlib.contextmanager
def _held(folder: Path, made: Sequence[Path]) -> Iterator[None]:
    before = _names(folder)
    with lock(folder):
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ConfigError):
                if LOCK not in before and _names(folder) == {*before, LOCK}:
                    (folder / LOCK).unlink()
                    for path in made:
                        path.rmdir()


def _names(folder: Path) -> set[str]:
    """What a folder holds; nothing where it is missing."""
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise ConfigError(f"{folder} must be a folder that can be read, but: {error.strerror}") from None


def free(path: Path, suffix: str = "") -> Path:
    """The path, or with a number behind it when it is taken: a default must never end in an error."""
    candidate, number = Path(f"{path}{suffix}"), 2
    while os.path.lexists(candidate):  # also a link that leads nowhere
        candidate, number = Path(f"{path}-{number}{suffix}"), number + 1
    return candidate


def _make(folder: Path) -> list[Path]:
    """Make a folder; what was made, the innermost first: nothing where it was there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise ConfigError(f"{folder} must be a folder, or a name that is free, but is a file, or a link that leads nowhere") from None
        return []
    except OSError as error:
        raise ConfigError(f"{folder} must be a folder that can be made, but: {error.strerror}") from None
    return missing
