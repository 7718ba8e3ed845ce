"""Checkpoints that are whole or absent: ``FOLDER/checkpoints/STEP.pt``, each committed by a manifest ``STEP.json``."""

import errno
import hashlib
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from imachsr.config.schema import ConfigError, near
from imachsr.files import sync_folder, write_atomic
from imachsr.train.manifest import SCHEMA, Manifest, file_names, read_manifest
from imachsr.train.state_file import DamagedError, read_state, size_of, write_state
from imachsr.version import __version__

KEYS = ("run", "num_classes", "net", "optimizer", "ema", "step", "history")
"""Keys that a state must have; it may have more."""
FOLDER = "checkpoints"
OLD_FILE = "checkpoint.pt"
"""The one checkpoint of schema 1, which lay beside run.yaml."""
Which = Literal["latest", "best"]

_OURS = re.compile(r"\d{8,}(-1)?\.(pt|json)(\w+\.tmp)?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """A checkpoint does not fit on its disk; those before it are untouched."""


def save(folder: Path, state: dict[str, Any], *, step: int, score: float | None = None, keep: int = 2, after: int = 0) -> Manifest:
    """Write a checkpoint, commit it, and only then delete those that are no longer kept.

    A process killed at any moment leaves what was committed before. For a while the disk holds one checkpoint more than are kept.
    One process writes to a folder at a time; any number may read.

    Args:
        folder: The training's ``--output``.
        state: Tensors and plain values, with :data:`KEYS`.
        step: Steps done, >= 0; names the file. A step that is there already is replaced.
        score: Higher is better; None or NaN: not scored.
        keep: How many of the newest stay, >= 1; besides them the best-scored one stays, of equals the newest.
        after: Serial number of a save elsewhere that this one follows, >= 0.

    Raises:
        ValueError: If an argument is out of range, or the state lacks a key.
        ConfigError: If the state holds an object of another kind, which could not be loaded safely.
        DiskFullError: If it does not fit on the disk.
        OSError: If it cannot be written for another reason.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"`step >= 0` and `keep >= 1` must hold, but got {step} and {keep}")
    if missing := [key for key in KEYS if key not in state]:
        raise ValueError(f"a state must have the keys {', '.join(KEYS)}, but lacks {', '.join(missing)}")
    at = folder / FOLDER
    if not at.is_dir():
        at.mkdir(parents=True, exist_ok=True)
        sync_folder(folder)
    before, _ = _committed(at)
    _sweep(at)
    taken = {manifest.file for manifest in before}
    file = next(name for name in file_names(step) if name not in taken)
    try:
        size_bytes, sha256 = write_state(at / file, state)
        manifest = Manifest(
            file=file,
            step=step,
            serial=max([after, *(manifest.serial for manifest in before)]) + 1,
            score=None if score is None or math.isnan(score) else float(score),
            size_bytes=size_bytes,
            sha256=sha256,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            imachsr=__version__,
            torch=torch.__version__,
        )
        write_atomic(at / manifest.name, lambda out: out.write(manifest.to_bytes()))
    except BaseException as error:
        _sweep(at)
        if isinstance(error, OSError) and error.errno in _FULL:
            free = shutil.disk_usage(at).free
            needed = f"checkpoint of {_megabytes(size_of(state))} must fit on the disk of {folder}"
            raise DiskFullError(f"{needed}, but {error.strerror}; {_megabytes(free)} are free") from None
        raise
    _retire(at, manifest, keep)
    return manifest


def exists(folder: Path) -> bool:
    """Whether a committed checkpoint is there, whole or not, also one of schema 1."""
    return (folder / OLD_FILE).exists() or any(name.endswith(".json") for name in _names(folder / FOLDER))


def load(folder: Path, which: Which = "latest") -> dict[str, Any]:
    """The state of the newest checkpoint that is whole, on the CPU, without running any code that the file may hold.

    A damaged one is passed over with a warning that names it and why.

    Args:
        folder: The training's ``--output``.
        which: ``best`` gives the best-scored one instead, of equals the newest.

    Raises:
        ConfigError: If there is none, or one of another schema.
    """
    return load_committed(folder, which)[1]


def load_committed(folder: Path, which: Which = "latest") -> tuple[Manifest, dict[str, Any]]:
    """As :func:`load`, with the manifest."""
    if which not in get_args(Which):
        raise ConfigError(f"`which` must be one of {', '.join(get_args(Which))}, but got {which!r}; {near(which, list(get_args(Which)))}")
    at = folder / FOLDER
    broken: dict[Manifest, str] = {}
    while True:
        manifests, damaged = _committed(at)
        left = [manifest for manifest in _ordered(manifests, which) if manifest not in broken]
        reasons = {**damaged, **{manifest.file: reason for manifest, reason in broken.items()}}
        if not left:
            raise ConfigError(_none_left(folder, reasons, has_manifests=bool(manifests), which=which))
        try:
            state = _read(at, left[0])
        except DamagedError as error:
            if _is_committed(at, left[0]):  # else a training that goes on has retired it while it was read
                broken[left[0]] = str(error)
            continue
        for name, reason in reasons.items():
            warnings.warn(f"{at / name} {reason}; the checkpoint of step {left[0].step} is used instead", stacklevel=3)
        return left[0], state


def committed(folder: Path) -> list[Manifest]:
    """The manifests of the checkpoints whose files have the right size, oldest first."""
    at = folder / FOLDER
    return [manifest for manifest in _committed(at)[0] if _has_size(at, manifest)]


def best_of(manifests: list[Manifest]) -> Manifest | None:
    """The one with the highest score, of equals the newest; None where none is scored."""
    return next(iter(_ordered(manifests, "best")), None)


def newest_whole(folder: Path) -> Manifest | None:
    """The manifest of the newest checkpoint that is whole; its file is read for that."""
    at = folder / FOLDER
    return next((manifest for manifest in committed(folder)[::-1] if _sha256(at / manifest.file) == manifest.sha256), None)


def adopt(folder: Path, manifest: Manifest, fetch: Callable[[Path], object]) -> Manifest:
    """Commit a checkpoint that was saved elsewhere, if it is whole; what is there already stays.

    Args:
        folder: The training's ``--output``.
        manifest: The checkpoint's; its file may have another name here.
        fetch: Called with the path to write the checkpoint's file to.

    Raises:
        DamagedError: If it is not what was saved.
        OSError: If it cannot be written.
    """
    at = folder / FOLDER
    if not at.is_dir():
        at.mkdir(parents=True, exist_ok=True)
        sync_folder(folder)
    taken = {each.file for each in _committed(at)[0]}
    here = replace(manifest, file=next(name for name in file_names(manifest.step) if name not in taken))
    temporary = at / f"{here.file}adopted.tmp"
    try:
        fetch(temporary)
        if (size := temporary.stat().st_size) != manifest.size_bytes:
            raise DamagedError(f"has {size:,} bytes instead of {manifest.size_bytes:,}")
        if _sha256(temporary) != manifest.sha256:
            raise DamagedError("has another content than was written (its SHA-256 differs)")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, at / here.file)
        write_atomic(at / here.name, lambda out: out.write(here.to_bytes()))
    finally:
        temporary.unlink(missing_ok=True)
    _sweep(at)
    return here


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def remove(folder: Path) -> None:
    """Delete all checkpoints of a training, as far as that is possible: a worker that ends late may still be writing."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    (folder / OLD_FILE).unlink(missing_ok=True)


def _none_left(folder: Path, reasons: dict[str, str], *, has_manifests: bool, which: Which) -> str:
    if folder.exists() and not folder.is_dir():
        return f"{folder} must be the --output folder of a training, but is a file"
    if not reasons and has_manifests:
        return f"a checkpoint of {folder} must have a score to be the best one, but none has; use the latest"
    if reasons:
        what = "; ".join(f"{name} {reason}" for name, reason in sorted(reasons.items(), reverse=True))
        kind = "whole, scored" if which == "best" else "whole"
        return f"{folder / FOLDER} must hold a {kind} checkpoint, but {what}; put a copy back, or train again with another --output"
    if (folder / OLD_FILE).exists():
        found = f"holds {OLD_FILE} of schema 1, made by an older imachsr"
        return f"{folder} must hold checkpoints of schema {SCHEMA}, but {found}; train again with another --output, or use that version"
    if (folder / "study.sqlite3").exists():
        return f"{folder} must be the folder of a training, but holds a search; one trial's is {folder / 'trials' / '0000'}, and so on"
    return f"{folder} must hold a checkpoint, but does not; give the --output folder of a training"


def _names(at: Path) -> Iterator[str]:
    try:
        yield from (name for name in os.listdir(at) if _OURS.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return


def _committed(at: Path) -> tuple[list[Manifest], dict[str, str]]:
    """All readable manifests, oldest first, and of the others what is wrong."""
    while True:
        manifests, damaged = [], {}
        try:
            for name in [name for name in _names(at) if name.endswith(".json")]:
                try:
                    manifests.append(read_manifest(at / name))
                except DamagedError as error:
                    damaged[name] = str(error)
        except FileNotFoundError:
            continue  # retired since the listing, in which then its successor may be missing
        return sorted(manifests, key=lambda manifest: manifest.serial), damaged


def _is_committed(at: Path, manifest: Manifest) -> bool:
    try:
        return read_manifest(at / manifest.name) == manifest
    except (FileNotFoundError, DamagedError):
        return False


def _ordered(manifests: list[Manifest], which: Which) -> list[Manifest]:
    """The one that is wanted first."""
    if which == "latest":
        return manifests[::-1]
    scored = [(manifest.score, manifest.serial, manifest) for manifest in manifests if manifest.score is not None]
    return [manifest for _, _, manifest in sorted(scored, key=lambda each: each[:2], reverse=True)]


def _retire(at: Path, newest: Manifest, keep: int) -> None:
    """Delete what is not kept: the manifest first, so that no reader takes a deleted checkpoint for a damaged one."""
    manifests, damaged = _committed(at)
    whole = [manifest for manifest in manifests if _has_size(at, manifest)]
    kept = {newest, *whole[-keep:], *_ordered(whole, "best")[:1]}
    for name in [*(manifest.name for manifest in manifests if manifest not in kept), *damaged]:
        (at / name).unlink(missing_ok=True)
    _sweep(at)


def _has_size(at: Path, manifest: Manifest) -> bool:
    try:
        return (at / manifest.file).stat().st_size == manifest.size_bytes
    except FileNotFoundError:
        return False


def _sweep(at: Path) -> None:
    """Delete what a save that was broken off has left: whatever no manifest names."""
    named = {manifest.file for manifest in _committed(at)[0]}
    for name in [name for name in _names(at) if not name.endswith(".json") and name not in named]:
        (at / name).unlink(missing_ok=True)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _read(at: Path, manifest: Manifest) -> dict[str, Any]:
    state = read_state(at / manifest.file, size_bytes=manifest.size_bytes, sha256=manifest.sha256)
    if missing := [key for key in KEYS if key not in state]:
        raise DamagedError(f"lacks {', '.join(missing)}")
    return state
