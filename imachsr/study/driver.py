"""What a study still has to run, run."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from imachsr.config.build import build_net, check_output_loss
from imachsr.config.continued import placeless
from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.data.classes import parts_of, shared
from imachsr.data.samples import Samples, Split
from imachsr.search.canonical import fingerprint_of
from imachsr.study.folder import Study
from imachsr.study.plan import Wanted, scoring_of
from imachsr.study.rows import Row
from imachsr.study.schema import StudyPlan
from imachsr.study.tracked import record, tell
from imachsr.tracking.events import NullTracker, Tracker
from imachsr.train.evaluate import check_scored

_OF_A_NET = ("data", "model", "method", "output_loss")
"""Settings on which it depends whether a net can be built."""


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


def fingerprints(runs: Sequence[tuple[str, Run]], also_on: Mapping[str, Mapping[str, Any]], held: "Held | None" = None) -> dict[str, str]:
    """Fingerprint of the data of each run, by its key; data that several share are read once.

    Args:
        runs: Key and settings of each.
        also_on: Further data that every trained model is scored on: what is wrong with these is better known before the first run than after it.
        held: Data that were read.

    Raises:
        ValueError: If data cannot be read, or a model could not be scored on them.
    """
    held = held or Held()
    found: dict[str, str] = {}
    for key, run in runs:
        splits = run.subset.splits
        samples = held.of(run, splits)
        run.subset.split(samples["train"], partial(samples.__getitem__, "val"))  # a sequence that is not there fails here
        found[key] = held.print_of(run, splits)
        also: dict[str, str] = {}
        for name, overrides in also_on.items():
            other = make_run(run_to_dict(run), dict(overrides))
            try:
                common = shared(run.data.class_names, other.data.class_names, own_parts=parts_of(run.data), other_parts=parts_of(other.data))
                if any(key.partition(".")[0] == "output_loss" for key in overrides):
                    check_scored(run.data.num_classes if common is None else len(common), run.data.num_classes)
                    check_output_loss(other, run.data.num_classes)
                is_own = placeless(run_to_dict(other)["data"]) == placeless(run_to_dict(run)["data"])
                also[name] = held.print_of(other, splits if is_own and run.subset.hold_out is not None else ("val",))
                if common is not None and tuple(run.data.class_names) != tuple(other.data.class_names):
                    also[name] = fingerprint_of({"data": also[name], "classes": [[each.own, each.other] for each in common]})
            except ValueError as error:
                raise ConfigError(f"also_on.{name}: {error}") from None
        if also:
            found[key] = fingerprint_of({"own": found[key], "also_on": also})
    return found


def rehearse(wanted: Sequence[Wanted], done: Sequence[Wanted], held: "Held", say: Callable[[str], object]) -> None:
    """Build each net once: what does not fit would fail in every run of an arm.

    Args:
        wanted: Runs that are to begin.
        done: Runs that have ended well, whose nets need not be built.
        held: Data that were read.
        say: Called with a line for the user.

    Raises:
        ConfigError: If a model cannot be built, or the method does not fit it; names cell and arm.
    """
    nets: dict[str, Wanted] = {}
    for each in wanted:
        nets.setdefault(_net_of(each), each)
    for each in done:
        nets.pop(_net_of(each), None)
    if len(nets) > 1:
        say(f"building each of {len(nets)} nets once, since a mistake is better known before the first run")
    for each in nets.values():
        run = each.run
        assert run is not None  # of what can begin
        splits = held.of(run, run.subset.splits)
        samples, _ = run.subset.split(splits["train"], partial(splits.__getitem__, "val"))
        size = (samples.images.shape[-2], samples.images.shape[-1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # each run gives its own
                build_net(run, num_classes=run.data.num_classes, size=size, samples=samples, steps_per_epoch=1)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ConfigError(f"{each.cell}, {each.arm}{f', {each.setting}' if each.setting else ''}: {name}{error}") from error


def _net_of(each: Wanted) -> str:
    """Of what a run's net depends on."""
    settings = {} if each.run is None else run_to_dict(each.run)
    return fingerprint_of({part: settings.get(part) for part in _OF_A_NET})


class Held:
    """Data that were read, by their settings."""

    def __init__(self) -> None:
        self._splits: dict[tuple[str, Split], Samples] = {}

    def of(self, run: Run, splits: Sequence[Split]) -> dict[Split, Samples]:
        settings = fingerprint_of(run_to_dict(run)["data"])
        for split in splits:
            if (settings, split) not in self._splits:
                self._splits[settings, split] = run.data.load(split)
        return {split: self._splits[settings, split] for split in splits}

    def print_of(self, run: Run, splits: Sequence[Split]) -> str:
        return fingerprint_of({split: samples.fingerprint() for split, samples in self.of(run, splits).items()})


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
    held = Held()
    prints = fingerprints(list(runs.items()), study.plan.also_on, held)
    study.check_data(prints)
    if not study.todo():
        return False
    rehearse(study.todo(), study.done(), held, say)
    del held
    pool = Pool(study.plan.budget, say, is_on_gpus=any(run.compute.device == "auto" for run in runs.values()))
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
            self.prints |= fingerprints([(each.key, each.run)], self.study.plan.also_on)
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
