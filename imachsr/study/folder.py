"""A study's result folder: which runs it still needs, and their rows, on disk as soon as each run has ended."""

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imachsr.config.folder import claimed
from imachsr.config.load import dump_yaml, load_yaml
from imachsr.config.schema import ConfigError
from imachsr.files import LOCK, write_text
from imachsr.revision import revisions
from imachsr.study.comparisons import check_rows
from imachsr.study.declared import check_declared
from imachsr.study.load import study_to_dict
from imachsr.study.plan import Wanted, scoring_key, strangers, wanted
from imachsr.study.rows import DIGITS, FILE, Known, Row, check_same, read, write
from imachsr.study.schema import StudyPlan
from imachsr.study.tracked import SETTINGS, folder_of
from imachsr.train import checkpoint

GIVEN = "given.txt"
"""Names the rows that were made elsewhere, a key and a seed a line."""


def holds(folder: Path, name: str) -> bool:
    """Whether a study of a name has begun in a folder."""
    try:
        return _is_begun(folder) and load_yaml(folder / SETTINGS).get("name") == name
    except ConfigError:
        return False


def _is_begun(folder: Path) -> bool:
    """Whether a folder is a study's, and not one in which the user keeps a study's file."""
    return (folder / SETTINGS).exists() and ((folder / LOCK).exists() or (folder / FILE).exists())


@dataclass(kw_only=True)
class Study:
    """Owns a result folder for as long as it is entered.

    Files: study.yaml (as it was given), runs.csv (a row a finished run, written anew whenever one ends), runs/KEY-SEED/ (a training each).

    Args:
        plan: What is studied.
        folder: Of results.
        published: Rows from elsewhere that need not be run again.
        only: Names of cells that are run; all without any.
    """

    plan: StudyPlan
    folder: Path
    published: Sequence[Row] = ()
    only: Collection[str] = ()
    lost: dict[tuple[str, int], str] = field(default_factory=dict)
    own: list[Row] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    _planned: list[Wanted] | None = None
    _corrected: int = 0

    def __enter__(self) -> "Study":
        self._opened = contextlib.ExitStack()
        self._opened.enter_context(claimed(self.folder, is_known=_is_begun(self.folder)))
        try:
            self._check_folder()
            if (self.folder / FILE).exists():
                self.own = read(self.folder / FILE)
            check_same([*self.own, *self.published])
            self._forget_corrected()
            check_declared(self.folder / SETTINGS, self.plan, [row for row in self.own if row.is_finished])
            check_rows(self.plan, self.known)
            self._adopt()
            for row in self.own:
                self._clear(row)  # a process that died between a row and its checkpoints left them
            write_text(self.folder / SETTINGS, dump_yaml(study_to_dict(self.plan)))
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _check_folder(self) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if others := sorted(each.name for each in self.folder.iterdir() if each.name != LOCK):
                raise ConfigError(f"{self.folder} must be a new folder or hold this study, but holds {', '.join(others[:3])}; give another --output")
            return
        # Cells and arms may be added, and seeds of what is not judged yet: every run is known by its own settings.
        if (before := load_yaml(path).get("name")) != self.plan.name:
            raise ConfigError(f"{self.folder} must hold this study, but holds {before!r}; give another --output")

    def _forget_corrected(self) -> None:
        """Drop rows that failed with settings that the study has no more: a mistake that was mended."""
        names = {(each.cell, each.arm, each.setting, each.seed) for each in wanted(self.plan, Known(self.own))}
        failed = Known(row for row in self.own if not row.is_finished)
        gone = {(row.key, row.seed) for row in strangers(self.plan, failed) if (row.cell, row.arm, row.setting, row.seed) in names}
        self._corrected = len(gone)
        self._keep([row for row in self.own if (row.key, row.seed) not in gone])

    def _keep(self, rows: list[Row]) -> None:
        self.own = rows
        self.known = Known([*self.own, *self.published])
        self._planned = None

    def _adopt(self) -> None:
        """Take rows from elsewhere into the folder, so that its file holds every number that its tables are made of."""
        ours = {(each.key, each.seed) for each in wanted(self.plan, self.known) if each.key}
        there = {(row.key, row.seed): row for row in self.own}
        new = [row for row in self.known.all() if (row.key, row.seed) in ours and there.get((row.key, row.seed)) != row]
        if new:
            self._note_given({*self._given(), *((row.key, row.seed) for row in new)})
        taken = {(row.key, row.seed) for row in new}
        self.own = [*(row for row in self.own if (row.key, row.seed) not in taken), *new]
        if new or self._corrected:
            write(self.folder / FILE, self.own)

    def _given(self) -> set[tuple[str, int]]:
        path = self.folder / GIVEN
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {(key, int(seed)) for key, _, seed in (line.partition(" ") for line in lines)}

    def _note_given(self, pairs: Collection[tuple[str, int]]) -> None:
        write_text(self.folder / GIVEN, "".join(f"{key} {seed}\n" for key, seed in sorted(pairs)))

    def told(self) -> list[str]:
        """What the user should know of the rows before anything runs."""
        lines = []
        if self.published:
            ours = {(row.key, row.seed) for row in self.own}
            fitting = sum((row.key, row.seed) in ours for row in self.published)
            lines.append(f"{fitting} of the {len(self.published)} rows that were given are of this study")
        if self._corrected:
            lines.append(
                f"{self._corrected} failed {'run is' if self._corrected == 1 else 'runs are'} forgotten, whose settings the study has no more"
            )
        return [*lines, *self.provisos()]

    def provisos(self) -> list[str]:
        """What the reader of its tables should know of the rows."""
        given = self._given()
        count = sum((row.key, row.seed) in given for row in self.own)
        if self.plan.primary is None or not count:
            return []
        rows = "1 row was" if count == 1 else f"{count} rows were"
        return [f"{rows} made elsewhere: that `primary` was declared before is the word of the study's file alone"]

    def todo(self) -> list[Wanted]:
        """Runs that can begin."""
        return [each for each in self.planned() if each.run is not None and self._is_open(each)]

    def done(self) -> list[Wanted]:
        """Runs that have finished."""
        rows = ((each, self.known.get(each.key, each.seed)) for each in self.planned())
        return [each for each, row in rows if row is not None and row.is_finished]

    def missing(self) -> list[Wanted]:
        """Runs that have not ended, those that cannot begin yet among them."""
        return [each for each in self.planned() if each.run is None or self.known.get(each.key, each.seed) is None]

    def planned(self) -> list[Wanted]:
        """All runs of the cells that are run; made anew only when one has ended, since every run's settings are checked as they are made."""
        if self._planned is None:
            self._planned = wanted(self.plan, self.known, only=self.only)
        return self._planned

    def _is_open(self, each: Wanted) -> bool:
        return self.known.get(each.key, each.seed) is None and (each.key, each.seed) not in self.lost

    def output(self, each: Wanted) -> Path:
        """Absolute folder of a run's training."""
        return folder_of(self.folder, each.key, each.seed)

    def forget_failed(self) -> int:
        """Drop rows of runs that failed and are to be run, so that they are tried again; how many."""
        ours = {(each.key, each.seed) for each in self.planned()}
        failed = {(row.key, row.seed) for row in self.known.all() if not row.is_finished} & ours
        self.published = [row for row in self.published if (row.key, row.seed) not in failed]
        if (given := self._given()) & failed:
            self._note_given(given - failed)
        self._keep([row for row in self.own if (row.key, row.seed) not in failed])
        return len(failed)

    def check_data(self, fingerprints: Mapping[str, str]) -> None:
        """Refuse rows that were made with other data than these.

        Args:
            fingerprints: Of the data by a run's key.

        Raises:
            ConfigError: If a row that would be skipped has another one; names it.
        """
        for row in self.known.all():
            found = fingerprints.get(row.key)
            if found is not None and row.data and row.data != found:
                rule = "rows that are there must be of the same data"
                raise ConfigError(f"{rule}, but that of {row.cell}, {row.arm}, seed {row.seed} has the fingerprint {row.data}, and the data {found}")

    def note(self, each: Wanted, given: Mapping[str, Any], data: str) -> Row | None:
        """Record what a run gave; None for one that died or was stopped, which the same command begins again."""
        if "stopped" in given:
            return None
        if "lost" in given:
            self.lost[(each.key, each.seed)] = str(given["lost"])
            return None
        row = Row(
            cell=each.cell,
            arm=each.arm,
            setting=each.setting,
            seed=each.seed,
            key=each.key,
            data=data,
            state="failed" if "error" in given else "finished",
            error=str(given.get("error", "")),
            epochs=int(given.get("epochs", 0)),
            taps=int(given.get("taps", 0)),
            # As in the file: who reads it sees what is seen here.
            scores={name: round(value, DIGITS) for name, value in given.get("scores", {}).items() if math.isfinite(value)},
            facts={"scoring": scoring_key(self.plan), "revision": revisions()["imachsr"] or "", **given.get("facts", {})},
        )
        self.own.append(row)
        self.known.add(row)
        self._planned = None
        write(self.folder / FILE, self.own)
        self._clear(row)  # not before its row is there: what ends in between is scored again, not trained
        return row

    def _clear(self, row: Row) -> None:
        """Delete the checkpoints of a run that has finished; what was trained and could not be scored is scored again by `--retry-failed`."""
        if row.is_finished:
            checkpoint.remove(folder_of(self.folder, row.key, row.seed))
