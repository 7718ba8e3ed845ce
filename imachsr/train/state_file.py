"""One file with a training's state: tensors and plain values, checked when it is written and when it is read."""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from imachsr.config.schema import ConfigError
from imachsr.files import write_atomic


def first_line(error: BaseException) -> str:
    """What an error says first; its kind when it says nothing."""
    return next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)


class DamagedError(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


class _Hashed:
    """A file that is only written to, forwards; its SHA-256 is known when the last byte is written.

    torch reports a failed write as a RuntimeError of its own, so that the cause is kept here.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write, self._sha256, self.size_bytes = write, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._write(data)
        except OSError as error:
            self.error = error
            raise
        self._sha256.update(data)
        self.size_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def _save(state: dict[str, Any], file: _Hashed) -> None:
    torch.save(state, cast(IO[bytes], file))  # which asks a file for no more than write and flush


def write_state(path: Path, state: dict[str, Any]) -> tuple[int, str]:
    """Write a state, atomically and in one pass.

    Returns:
        The file's size in bytes, and its SHA-256 in hexadecimal.

    Raises:
        ConfigError: If the state holds an object that could not be loaded without running its code.
        OSError: If it cannot be written.
    """
    found: list[tuple[int, str]] = []

    def write(file: IO[bytes]) -> None:
        hashed = _Hashed(file.write)
        strange: object
        try:
            _save(state, hashed)
            file.seek(0)
            strange = ", ".join(get_unsafe_globals_in_checkpoint(file))  # reads the names in it, no tensors
        except RuntimeError:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            strange = error
        if strange:
            hint = "let get_extra_state() of the module that it belongs to give tensors, numbers and text"
            raise ConfigError(f"a checkpoint must hold tensors and plain values only, but would hold: {strange}; {hint}")
        found.append((hashed.size_bytes, hashed.sha256))

    write_atomic(path, write)
    return found[0]


def size_of(state: dict[str, Any]) -> int:
    """Bytes that a state takes in a file."""
    nowhere = _Hashed(lambda data: None)
    _save(state, nowhere)
    return nowhere.size_bytes


def read_state(path: Path, *, size_bytes: int, sha256: str) -> dict[str, Any]:
    """The state in a file, on the CPU, without running any code that the file may hold.

    Args:
        path: The file.
        size_bytes: What it must have.
        sha256: Likewise.

    Raises:
        DamagedError: If it is not what was written.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():  # one open file: what is checked is what is loaded
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            size = os.fstat(file.fileno()).st_size
            if size != size_bytes:
                raise DamagedError(f"has {size:,} bytes instead of {size_bytes:,}")
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise DamagedError("has another content than was written (its SHA-256 differs)")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except FileNotFoundError:
        raise DamagedError("is missing") from None
    except Exception as error:  # whatever torch makes of arbitrary bytes
        raise DamagedError(f"cannot be read: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise DamagedError(f"holds a {type(state).__name__} instead of a state")
    return state
