"""The raw numbers of a study: a row a finished run, in a CSV file that anyone can read, publish and go on from."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imachsr.config.schema import ConfigError
from imachsr.files import write_text

FILE = "runs.csv"
DIGITS = 6
"""Behind the point."""
_COUNTS = ("seed", "epochs", "taps")
FIXED = ("cell", "arm", "setting", "seed", "key", "data", "state", "error", "epochs", "taps")
_FACTS = ("scoring", "revision", "torch", "machine", "date")
BEHIND = ("time/step_ms", "images_per_s", "memory/peak_mib", "wall_s", *_FACTS)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run that has ended.

    Attributes:
        cell: Name of the cell that it ran for; another cell with the same settings takes it too.
        arm: Name of the arm.
        setting: Of an effect, ``key=value``; "" elsewhere.
        seed: Of the run.
        key: Fingerprint of its settings without seed and place of the data.
        data: Fingerprint of what it was trained and scored on.
        state: finished, or failed.
        error: Why it failed.
        epochs: That it ran.
        taps: Supervised layers.
        scores: Numbers of the last epoch and of what was scored behind it.
        facts: What it ran on, and ``scoring``: fingerprint of what it was scored on besides its own data.
    """

    cell: str
    arm: str
    setting: str = ""
    seed: int
    key: str
    data: str = ""
    state: str = "finished"
    error: str = ""
    epochs: int = 0
    taps: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether its scores count."""
        return self.state == "finished"


def read(path: Path) -> list[Row]:
    """Rows of a file.

    Raises:
        ConfigError: If it is missing or no such file, or a cell of it is broken; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} must be a CSV file of a study's runs, but: {error}") from None
    names = lines[0] if lines else []
    if missing := [name for name in FIXED if name not in names]:
        raise ConfigError(f"{path}:1 must name the columns {', '.join(FIXED)}, but {', '.join(missing)} is not there")
    return [_row(path, number, dict(zip(names, line, strict=False)), len(line) == len(names)) for number, line in enumerate(lines[1:], 2) if line]


def _row(path: Path, number: int, cells: dict[str, str], is_whole: bool) -> Row:
    if not is_whole:
        raise ConfigError(f"{path}:{number} must have a cell for each column, but has {len(cells)}")
    cell, arm, setting, key, data, state, why = (cells.pop(name) for name in FIXED if name not in _COUNTS)
    facts = {name: cells.pop(name) for name in _FACTS if name in cells}
    facts = {name: value for name, value in facts.items() if value}
    try:
        seed, epochs, taps = (int(cells.pop(name) or 0) for name in _COUNTS)
        scores = {name: float(value) for name, value in cells.items() if value != ""}
    except ValueError as error:
        raise ConfigError(f"{path}:{number} must hold numbers, but: {error}") from None
    if strange := next((name for name, value in scores.items() if not math.isfinite(value)), None):
        raise ConfigError(f"{path}:{number}: `{strange}` must be finite, or empty for what a run has not, but got {scores[strange]}")
    if state not in ("finished", "failed"):
        raise ConfigError(f"{path}:{number}: `state` must be finished or failed, but got {state!r}")
    return Row(
        cell=cell,
        arm=arm,
        setting=setting,
        seed=seed,
        key=key,
        data=data,
        state=state,
        error=why,
        epochs=epochs,
        taps=taps,
        scores=scores,
        facts=facts,
    )


def score_names(rows: Iterable[Row]) -> list[str]:
    """Scores that any row has, in the order of a file's columns, whether the rows were read from one or have just ended."""
    found = dict.fromkeys(name for row in rows for name in row.scores)
    return [*(name for name in found if name not in BEHIND), *(name for name in BEHIND if name in found)]


def text_of(rows: Sequence[Row]) -> str:
    """A file's content; columns in a fixed order, numbers in six digits behind the point, an empty cell for what a run has not."""
    names = [*FIXED, *(name for name in score_names(rows) if name not in BEHIND), *BEHIND]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values: dict[str, Any] = {name: getattr(row, name) for name in FIXED} | dict(row.facts)
        values |= {name: _number(value) for name, value in row.scores.items() if math.isfinite(value)}
        writer.writerow([values.get(name, "") for name in names])
    return out.getvalue()


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write a file, whole or not at all."""
    write_text(path, text_of(rows))


def _number(value: float) -> str:
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def check_same(rows: Iterable[Row]) -> None:
    """Refuse rows of one run that say different things: which of them counts would be a choice that nobody sees.

    Raises:
        ConfigError: Names the run and both numbers.
    """
    seen: dict[tuple[str, int], Row] = {}
    for row in rows:
        if not row.is_finished:
            continue
        before = seen.setdefault((row.key, row.seed), row)
        for name in before.scores.keys() & row.scores.keys():
            if name.startswith("val/") and abs(before.scores[name] - row.scores[name]) > 10.0**-DIGITS:
                one, two = _number(before.scores[name]), _number(row.scores[name])
                where = f"{row.cell}, {row.arm}, seed {row.seed}"
                raise ConfigError(f"rows of one run must say the same, but {name} of {where} is {one} in one and {two} in another; give one of them")


class Known:
    """Rows by what was run, wherever they come from.

    Args:
        rows: Of a folder, and of published files; of equal runs the first counts, a finished one before a failed one.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: dict[tuple[str, int], Row] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Note a row, unless a better one of this run is there."""
        before = self._rows.get((row.key, row.seed))
        if before is None or (row.is_finished and not before.is_finished):
            self._rows[(row.key, row.seed)] = row

    def get(self, key: str, seed: int) -> Row | None:
        """The row of a run."""
        return self._rows.get((key, seed))

    def all(self) -> list[Row]:
        """Every row, in the order in which they came."""
        return list(self._rows.values())
