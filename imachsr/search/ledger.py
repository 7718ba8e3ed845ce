"""What each epoch of each trial brought and cost, in the result folder, before anything else is told of it."""

import json
import os
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imachsr.config.schema import ConfigError
from imachsr.files import write_atomic
from imachsr.tracking.events import finite

FILE = "trials.jsonl"


class Line(NamedTuple):
    """Of a line, what a driver needs to go on.

    Attributes:
        trial: Number.
        epoch: From 1.
        objectives: Values, the first one's in front.
        loss: On what is scored, None where there is none; tells curves apart whose objectives are equal by chance.
        held_s: Seconds that the trial had held its resources.
        wall_s: Seconds of the search, over all sittings.
        taps: Addresses of the supervised layers.
    """

    trial: int
    epoch: int
    objectives: tuple[float, ...]
    loss: float | None
    held_s: float
    wall_s: float
    taps: tuple[str, ...]


class Ledger:
    """``trials.jsonl``: a line an epoch.

    A line is on the disk when :meth:`add` returns. What a crash left half written is dropped: that epoch is reported again. So are lines of trials
    that the study lost in a power cut: their numbers will be another's.

    Args:
        folder: Result folder.
        known: Numbers of the study's trials.
        loss: Key of the loss on what is scored.

    Raises:
        ConfigError: If the lines are not of this version.
    """

    def __init__(self, folder: Path, known: Container[int], *, loss: str = "") -> None:
        self._path = folder / FILE
        self.lines: list[Line] = []
        """As they were when the ledger was opened, in the order in which they came."""
        seen: set[tuple[int, int]] = set()
        kept: list[bool] = []
        for place, row in enumerate(self._rows()):
            if row is not None and "objectives" not in row:
                raise ConfigError(f"{self._path}:{place + 1}: must have the key objectives, but has not; another version of imachsr wrote it")
            is_new = row is not None and row["trial"] in known and (row["trial"], row["epoch"]) not in seen
            if row is not None and is_new:
                seen.add((row["trial"], row["epoch"]))
                self.lines.append(_line(row, loss))
            kept.append(is_new)
        if not all(kept):
            self._keep(kept)
        self._file = self._path.open("a", encoding="utf-8")

    def _rows(self) -> Iterator[dict[str, Any] | None]:
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    yield _parsed(line)

    def _keep(self, kept: list[bool]) -> None:
        def write(target: Any) -> None:
            with self._path.open("rb") as file:
                for line, is_kept in zip(file, kept, strict=True):
                    if is_kept:
                        target.write(line)

        write_atomic(self._path, write)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a line; ``trial``, ``epoch``, ``objectives``, ``held_s`` and ``wall_s`` are among its keys."""
        self._file.write(json.dumps(finite(row)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def taps_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Addresses of the supervised layers that a row tells of."""
    return tuple(dict.fromkeys(key.split("/")[1] for key in row if key.startswith("tap/")))


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("trial"), int) and isinstance(row.get("epoch"), int) else None


def _line(row: Mapping[str, Any], loss: str) -> Line:
    return Line(
        trial=row["trial"],
        epoch=row["epoch"],
        objectives=tuple(map(float, row["objectives"])),
        loss=row.get(loss),
        held_s=float(row.get("held_s", 0.0)),
        wall_s=float(row.get("wall_s", 0.0)),
        taps=taps_of(row),
    )
