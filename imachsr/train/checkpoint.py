"""Checkpoints that are whole or absent."""

import warnings
from pathlib import Path
from typing import Any

import torch

from imachsr.config.schema import ConfigError
from imachsr.files import write_atomic

SCHEMA = 1
FILE = "checkpoint.pt"
KEYS = ("run", "num_classes", "net", "optimizer", "scheduler", "history")


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
