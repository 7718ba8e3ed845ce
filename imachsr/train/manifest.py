"""The record that commits a checkpoint."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from imachsr.config.schema import ConfigError
from imachsr.train.state_file import DamagedError

SCHEMA = 2
"""Version of the layout of checkpoints and manifests."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a checkpoint. It is written last: a checkpoint with a manifest was written whole.

    Attributes:
        file: Name of the checkpoint's file, in the same folder.
        step: Steps done, >= 0.
        serial: Number of the save in this folder, from 1: higher is newer, whatever the step (a training may go back) and the clock.
        score: Higher is better; None: not scored.
        size_bytes: Of the file.
        sha256: Of the file, in hexadecimal.
        time: UTC, ISO 8601.
        imachsr: Version that wrote it.
        torch: Likewise.
    """

    file: str
    step: int
    serial: int
    score: float | None
    size_bytes: int
    sha256: str
    time: str
    imachsr: str
    torch: str

    @property
    def name(self) -> str:
        """The manifest's own file name."""
        return f"{self.step:08d}.json"

    def to_bytes(self) -> bytes:
        """The file's content; its last field is the checksum of the others."""
        return json.dumps({"schema": SCHEMA, **asdict(self), "check": _checksum(asdict(self))}, indent=1).encode() + b"\n"


def file_names(step: int) -> tuple[str, str]:
    """Names for a step's checkpoint: the second one when it is saved again, so that the first one stays until that is committed."""
    return f"{step:08d}.pt", f"{step:08d}-1.pt"


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        FileNotFoundError: If there is none.
        DamagedError: If it is not what was written.
        ConfigError: If it is of another schema.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"cannot be read: {os.strerror(error.errno or 0)}") from None
    return parse_manifest(data, path)


def parse_manifest(data: bytes | str, path: PurePath) -> Manifest:
    """The manifest in a file's content.

    Raises:
        DamagedError: If it is not what was written.
        ConfigError: If it is of another schema.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedError("is not JSON") from None
    if not isinstance(raw, dict):
        raise DamagedError("is not a manifest")
    schema, check = raw.pop("schema", None), raw.pop("check", None)
    if isinstance(schema, int) and schema != SCHEMA:
        hint = "use the imachsr that made it, or train again with another --output"
        raise ConfigError(f"{path} must have schema {SCHEMA}, which this version of imachsr reads, but has schema {schema}; {hint}")
    try:
        manifest = Manifest(**raw)
    except TypeError:
        raise DamagedError("is not a manifest") from None
    if check != _checksum(raw):
        raise DamagedError("has another content than was written (its checksum differs)")
    if path.name != manifest.name:
        raise DamagedError(f"is the manifest of step {manifest.step} under another name")
    return manifest


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
