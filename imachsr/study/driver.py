"""What a study still has to run, run; its rows are on disk as soon as each run has ended."""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from imachsr.config.load import dump_yaml, load_yaml, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.data.samples import Samples
from imachsr.files import LOCK, write_text
from imachsr.revision import revisions
from imachsr.search.canonical import fingerprint_of
from imachsr.search.folder import lock
from imachsr.study.comparisons import check_rows
from imachsr.study.load import make_study, study_to_dict
from imachsr.study.plan import Wanted, scoring_of, wanted
from imachsr.study.rows import DIGITS, FILE, Known, Row, read, write
from imachsr.study.schema import Primary, StudyPlan
from imachsr.study.tracked import SETTINGS, folder_of, record, tell
from imachsr.tracking.events import NullTracker, Tracker
from imachsr.train import checkpoint


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a study stands.

    Attributes:
        done: Runs that have ended.
        total: Of all, as far as they are known.
        running: Cell, arm, setting, seed, epochs done and epochs in all of each that runs.
        ended: The row that has just ended, if one has.
        left_s: About so long, seconds; None while nothing is known.
    """

    done: int
    total: int
    running: tuple[tuple[Wanted, int, int], ...] = ()
    ended: Row | None = None
    left_s: float | None = None


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

    def __enter__(self) -> "Study":
        self._opened = contextlib.ExitStack()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._opened.enter_context(lock(self.folder))
        try:
            self._check_folder()
            if (self.folder / FILE).exists():
                self.own = read(self.folder / FILE)
            self.known = Known([*self.own, *self.published])
            self._check_declared()
            check_rows(self.plan, self.known)
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
        # Cells, arms and seeds may be added or taken away: every run is known by its own settings.
        if (before := load_yaml(path).get("name")) != self.plan.name:
            raise ConfigError(f"{self.folder} must hold this study, but holds {before!r}; give another --output")

    def _check_declared(self) -> None:
        """What is tested, and which comparison stands outside of Holm's families, is said before there are results, or not at all."""
        if not self.own:
            return
        before = make_study(load_yaml(self.folder / SETTINGS))
        for key, was, now in (("primary", before.primary, self.plan.primary), ("metric", before.metric, self.plan.metric)):
            if was != now and now is not None:
                raise ConfigError(
                    f"{key}: must stay what it was before {len(self.own)} runs had ended, {_told(was)}, but got {_told(now)}; give another --output"
                    + (", or primary=null: then Holm's adjustment is over all comparisons" if key == "primary" else "")
                )

    def todo(self) -> list[Wanted]:
        """Runs that can begin."""
        return [each for each in self.planned() if each.run is not None and self._is_open(each)]

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
        """Drop rows of runs that failed, so that they are tried again; how many."""
        failed = [row for row in self.own if not row.is_finished]
        self.own = [row for row in self.own if row.is_finished]
        self.known = Known([*self.own, *(row for row in self.published if row.is_finished)])
        self._planned = None
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
            facts={"scoring": fingerprint_of(scoring_of(self.plan)), "revision": revisions()["imachsr"] or "", **given.get("facts", {})},
        )
        self.own.append(row)
        self.known.add(row)
        self._planned = None
        write(self.folder / FILE, self.own)
        checkpoint.remove(self.output(each))  # not before its row is there: what ends in between is scored again, not trained
        return row


def _told(declared: Primary | str | None) -> str:
    return "none" if declared is None else f"{declared.arm} in {declared.cell}" if isinstance(declared, Primary) else declared


def fingerprints(runs: Sequence[tuple[str, Run]]) -> dict[str, str]:
    """Fingerprint of the data of each run, by its key; data that several share are read once.

    Raises:
        ValueError: If data cannot be read.
    """
    splits: dict[str, dict[str, Samples]] = {}
    prints: dict[str, str] = {}
    found: dict[str, str] = {}
    for key, run in runs:
        settings = fingerprint_of(run_to_dict(run)["data"])
        if settings not in splits:
            splits[settings] = {"train": run.data.load("train"), "val": run.data.load("val")}
            prints[settings] = fingerprint_of({split: samples.fingerprint() for split, samples in splits[settings].items()})
        run.subset.split(splits[settings]["train"], partial(splits[settings].__getitem__, "val"))  # a sequence that is not there fails here
        found[key] = prints[settings]
    return found


def run_study(
    study: Study,
    *,
    tracker: Tracker | None = None,
    on_change: Callable[[Standing], object] = lambda standing: None,
    say: Callable[[str], object] = lambda line: None,
    hours: float | None = None,
) -> bool:
    """Run what is missing; whether the user interrupted it.

    Args:
        study: Entered.
        tracker: Told of every run when it has ended.
        on_change: Called twice a second, and at each end of a run.
        say: Called with a line for the user.
        hours: No run begins after so long; those that run then end.

    Raises:
        ConfigError: If the data cannot be read or are not those of the rows that are there, or no node can hold a run.
    """
    from imachsr.study.tasks import Pool

    runs = {each.key: each.run for each in study.planned() if each.run is not None}
    prints = fingerprints(list(runs.items()))
    study.check_data(prints)
    if not study.todo():
        return False
    pool = Pool(study.plan.budget, say)
    watched = _Watched(study=study, pool=pool, tracker=tracker or NullTracker(), on_change=on_change, say=say, prints=prints)
    until = None if hours is None else time.monotonic() + 3600 * hours
    try:
        while True:
            is_open = until is None or time.monotonic() < until
            for each in watched.next(pool.places - len(pool)) if is_open else ():
                pool.begin(each, _config(each, study.plan), str(study.output(each)), watched.data_of(each), scoring_of(study.plan))
            if not len(pool):
                return False
            watched.look()
    except KeyboardInterrupt:
        say("stopping: runs save where they are (once more: at once)")
        for each, given in pool.stop():
            watched.take(each, given)
        return True


def _config(each: Wanted, plan: StudyPlan) -> dict[str, Any]:
    """All settings of a run, with its share of the machine."""
    assert each.run is not None  # what cannot begin yet is not begun
    compute, budget = each.run.compute, plan.budget
    share: dict[str, Any] = {} if compute.threads is not None else {"threads": budget.cpus_per_run}
    if compute.device == "auto" and not budget.gpus_per_run:  # runs that reserve no GPU would all take the first one
        share["device"] = "cpu"
    return run_to_dict(each.run.model_copy(update={"compute": compute.model_copy(update=share)}))


@dataclass(kw_only=True)
class _Watched:
    """The runs of one sitting."""

    study: Study
    pool: Any
    tracker: Tracker
    on_change: Callable[[Standing], object]
    say: Callable[[str], object]
    prints: dict[str, str]
    began_at: float = field(default_factory=time.monotonic)
    ended: int = 0

    def next(self, places: int) -> list[Wanted]:
        running = {(each.key, each.seed) for each in self.pool.running()}
        return [each for each in self.study.todo() if (each.key, each.seed) not in running][: max(0, places)] if places > 0 else []

    def look(self) -> None:
        for each, given in self.pool.ended():
            self.take(each, given)
        self._show(None)

    def data_of(self, each: Wanted) -> str:
        """Fingerprint of a run's data."""
        if each.key not in self.prints:  # of a cell of equal times, which was not planned at first
            assert each.run is not None
            self.prints |= fingerprints([(each.key, each.run)])
        return self.prints[each.key]

    def take(self, each: Wanted, given: Mapping[str, Any]) -> None:
        row = self.study.note(each, given, self.data_of(each))
        if "lost" in given:
            self.say(f"{each.cell}, {each.arm}, seed {each.seed} was lost: {given['lost'][:200]}; the same command begins it again")
        if row is None:
            return
        self.ended += 1
        plan = self.study.plan
        tell(self.tracker, record(row, _config(each, plan), plan.name, self.study.output(each)))
        self._show(row)

    def _show(self, row: Row | None) -> None:
        missing, total = len(self.study.missing()), len(self.study.planned())
        took = time.monotonic() - self.began_at
        left = took / self.ended * missing if self.ended else None
        running = tuple((each, _done(self.study.output(each)), each.run.optimizer.epochs) for each in self.pool.running() if each.run)
        self.on_change(Standing(done=total - missing, total=total, running=running, ended=row, left_s=left))


def _done(output: Path) -> int:
    try:
        return len((output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    except OSError:
        return 0
