"""Checkpoints that are whole or absent."""

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from imachsr.config.schema import ConfigError

SCHEMA = 1
FILE = "checkpoint.pt"
KEYS = ("run", "num_classes", "net", "optimizer", "scheduler", "history")


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the whole new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    write_atomic(path, lambda file: file.write(text.encode()))


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write ``folder/checkpoint.pt``; tensors and plain values only."""
    write_atomic(folder / FILE, lambda file: torch.save({"schema": SCHEMA, **state}, file))


def load(folder: Path) -> dict[str, Any]:
    """Read ``folder/checkpoint.pt``, without running any code that it may hold.

    Raises:
        ConfigError: If it is missing, broken, or of another version.
    """
    path = folder / FILE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{folder} must hold {FILE}, but does not; give the --output folder of a training") from None
    except Exception as error:  # whatever torch makes of arbitrary bytes
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path} must be a checkpoint of imachsr, but cannot be read: {why}") from None
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise ConfigError(f"{path} must have schema {SCHEMA}, but has {state.get('schema') if isinstance(state, dict) else None}")
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise ConfigError(f"{path} must be a checkpoint of imachsr, but lacks {', '.join(missing)}")
    return state
