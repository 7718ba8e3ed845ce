"""The search's bookkeeping, apart from what runs the trials: proposals out, rows and ends in, files and trackers kept true."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from imachsr.config.folder import claimed
from imachsr.config.load import dump_yaml
from imachsr.files import write_text
from imachsr.search.ending import without_promise, without_room
from imachsr.search.entry import Entry
from imachsr.search.folder import SETTINGS, check_folder, holds_search, is_known
from imachsr.search.ledger import Ledger, Line, taps_of
from imachsr.search.networks import Networks
from imachsr.search.pace import Pace
from imachsr.search.replay import STOPPED, by_trial, entry_of, is_stop, meter_of, refill
from imachsr.search.samplers import ExhaustedError
from imachsr.search.space import Search, search_to_dict
from imachsr.search.study import Offer, Record, State, Study
from imachsr.search.summary import Summary, Trials, earlier_s
from imachsr.search.task import Task, Training, wrong_in
from imachsr.search.tracked import ENDED, trial_id, trial_start
from imachsr.tracking.events import NullTracker, Tracker
from imachsr.train import checkpoint
from imachsr.train.gallery import SAMPLES

ERROR = "error.txt"
TELL_S, WRITE_S = 0.2, 2.0
"""Least seconds between two pictures of all trials for the user, and between two summary.json."""
WAIT: Literal["wait"] = "wait"


class Driver:
    """Owns a result folder for as long as it lives.

    Files: search.yaml (resolved), study.sqlite3 and trials.jsonl (a line an epoch), which are the truth, summary.json, trials/NUMBER/ (a training
    each, with error.txt when it failed; only trials that ran whole keep their checkpoint), network.json (what the taps were chosen from).

    Args:
        folder: Result folder.
        search: What is searched.
        task: What a trial does; trains the search's runs by default.
        tracker: Told of every trial.
        on_change: Called with all trials, as in summary.json, when one has changed, a few times a second at most.
        resume: Go on with the search that is in the folder.
        study_url: Of a database for the study.
        concurrency: Trials at a time, >= 1; for what is told of the time left.
        data: Fingerprints of the data by split.
        clock: Seconds, ascending; of the budget.

    Raises:
        ConfigError: If the folder holds a search and ``resume`` is not set, holds another search, or is in use, or its study cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        search: Search,
        *,
        task: Task | None = None,
        tracker: Tracker | None = None,
        on_change: Callable[[Trials], object] = lambda trials: None,
        resume: bool = False,
        study_url: str | None = None,
        concurrency: int = 1,
        data: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.search, self.task, self.concurrency = folder, search, task or Training(search=search), concurrency
        self._tracker: Tracker = tracker or NullTracker()
        self._on_change = on_change
        self.entries: dict[int, Entry] = {}
        self.ended_early = ""
        self._is_spent = False
        self._began: set[int] = set()
        self._pending: list[Entry] = []
        self._keys: dict[str, int] = {}
        self._told, self._written = Pace(least_s=TELL_S), Pace(least_s=WRITE_S)
        whole = self.task.epochs(self.task.configure({}, name=search.name, seed=search.seeds[0]))
        self._rule = search.scheduler.rule(max_epochs=whole, mode=search.metric.mode)
        with contextlib.ExitStack() as opened:
            opened.enter_context(claimed(folder, is_known=is_known(folder)))
            check_folder(folder, search, resume=resume)
            settings = dump_yaml(search_to_dict(search))
            if not holds_search(folder):  # before the study: what is there can then always be continued
                write_text(folder / SETTINGS, settings)
            self.study = Study(folder, search, url=study_url, is_known=self._is_known)
            opened.callback(self.study.close)
            records = self.study.records()
            self._ledger = Ledger(folder, {record.proposal.number for record in records}, loss=self.task.loss)
            opened.callback(self._ledger.close)
            write_text(folder / SETTINGS, settings)  # what is refused changes nothing
            lines, self._ledger.lines = self._ledger.lines, []
            self._networks = Networks(folder)
            self._replay(records, lines)
            self.meter = meter_of(search.budget, self.entries, lines, earlier_s(folder), clock)
            self._summary = Summary(
                folder=folder,
                search=search,
                uid=self.study.uid,
                levels=self._rule.levels,
                max_epochs=whole,
                data=data or {},
                sittings=self.study.sittings,
            )
            self._settle()
            self._opened = opened.pop_all()

    def _replay(self, records: Iterable[Record], lines: Iterable[Line]) -> None:
        """Rungs and curves as they were when an earlier driver of this folder ended."""
        own = by_trial(lines)
        for record in records:
            proposal = record.proposal
            config = self._configured(proposal.number, proposal.values, proposal.seed)
            self.entries[proposal.number] = entry_of(record, own.get(proposal.number, ()), self.task, config if record.state == "RUNNING" else {})
            # Not the key that it ran under: on GPUs, when the budget has some now, it is another one of the same configuration.
            self._keys.setdefault(f"{self.task.key(config)}:{proposal.seed}", proposal.number)
        refill(self._rule, self.entries, lines)

    def _settle(self) -> None:
        """End what had ended when an earlier driver died before it could write so, and see whether the search has."""
        for entry in (each for each in self.entries.values() if each.state == "RUNNING"):
            for epoch, values in entry.curve.items():  # a crash may have come between line and study
                self.study.report(entry.proposal.number, epoch, values[0])
            if entry.is_to_end:
                self._begin(entry)
                self.on_end(entry.proposal.number)
            else:
                self._pending.append(entry)
        self._look_around()

    def _configured(self, number: int, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return self.task.configure(values, name=f"{self.search.name}-{number:04d}", seed=seed)

    @property
    def remaining(self) -> int:
        """Trials that are still to run, or to be continued; 0 when the search is over."""
        running = sum(entry.state == "RUNNING" for entry in self.entries.values())
        if self.ended_early:
            return running
        return max(running, self.search.budget.trials - sum(entry.state != "RUNNING" and entry.is_counted for entry in self.entries.values()))

    def propose(self) -> dict[str, Any] | Literal["wait"] | None:
        """What the next trial needs, plain values; ``wait`` while it depends on those that run; None when nothing is to come."""
        self._look_at_budget()
        is_continued = bool(self._pending)
        entry = self._pending.pop(0) if is_continued else None if self.ended_early else self._drawn()
        if entry is None:
            return WAIT if self._began and not self.ended_early else None
        number = entry.proposal.number
        self._troubles_of(number)["resumed"] += is_continued
        # Here too, for a machine that does not see what trials write on theirs.
        write_text(self.trial_folder(number) / "run.yaml", dump_yaml(entry.config))
        self._begin(entry)
        self._changed()
        return {"number": number, "config": entry.config, "output": str(self.trial_folder(number)), "reported": entry.epochs}

    def _drawn(self) -> Entry | None:
        while not self.ended_early and sum(entry.is_counted for entry in self.entries.values()) < self.search.budget.trials:
            try:
                offer = self.study.draw()
            except ExhaustedError as exhausted:
                self.ended_early = str(exhausted)
                return None
            if (entry := self._accepted(offer)) is not None:
                return entry
        return None

    def _is_known(self, values: Mapping[str, Any]) -> bool:
        """Whether a sampled configuration is equal to an earlier trial's."""
        seed = self.search.seeds[0]
        return f"{self.task.key(self._configured(0, values, seed))}:{seed}" in self._keys

    def _accepted(self, offer: Offer) -> Entry | None:
        """The trial of an offer; None when it will not run, since one that is equal to it did."""
        proposal = offer.proposal
        config = self._configured(proposal.number, proposal.values, proposal.seed)
        key = self.task.key(config)
        name = f"{key}:{proposal.seed}"
        if name in self._keys and proposal.arm is None:
            return None
        self._keys.setdefault(name, proposal.number)
        entry = self.entries[proposal.number] = Entry(proposal=self.study.accept(offer, key), config=config, max_epochs=self.task.epochs(config))
        return entry

    def _begin(self, entry: Entry) -> None:
        self._began.add(entry.proposal.number)
        self.meter.begin(entry.proposal.number)
        self._tracker.start(trial_start(self.search, self.study.uid, entry, self._summary.code, self.trial_folder(entry.proposal.number)))

    def trial_folder(self, number: int) -> Path:
        """Absolute folder of a trial's training; made where it is missing."""
        folder = self.folder.absolute() / "trials" / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def on_start(self, number: int, found: Mapping[str, Any]) -> bool:
        """Note what a worker says of the trial that it begins, ``live`` and ``footprint``; whether the trial is to be stopped."""
        entry = self.entries[number]
        entry.facts["footprint"] = found.get("footprint")
        if wrong := self.task.mismatch(entry.config, found["live"]):
            return self.on_error(number, f"the worker must train what was proposed, but: {'; '.join(wrong)}")
        made = self.task.made_of(found["live"])
        entry.taps = list(made.get("taps", ()))
        entry.facts |= {"losses": made.get("losses", []), "network": self._networks.add(made.get("network"))}
        entry.is_proven = True
        return False

    def on_infeasible(self, number: int, found: Mapping[str, Any]) -> bool:
        """Note that a trial would take more than the limits; always True: it is to be stopped."""
        entry = self.entries[number]
        entry.excess, entry.why = dict(found["excess"]), str(found["why"])
        entry.facts["footprint"] = found.get("footprint")
        return True

    def on_row(self, number: int, row: Mapping[str, Any]) -> bool:
        """Record an epoch; whether the trial is to be stopped."""
        entry, epoch = self.entries[number], int(row["epoch"])
        if number not in self._began or entry.error is not None or entry.why:  # told to stop already
            return True
        if epoch <= entry.epochs:  # reported twice, by a trial that was restarted
            return False
        if (wrong := wrong_in(row, self.search, self.task, most=entry.max_epochs)) is not None:
            return self.on_error(number, wrong)
        values = tuple(float(row[metric.name]) for metric in self.search.objectives)
        entry.taps = entry.taps or list(taps_of(row))
        entry.facts["held_s"] = round(self.meter.seconds(number), 3)
        of_the_search = {"objectives": values, "held_s": entry.facts["held_s"], "wall_s": round(self.meter.wall_s, 3)}
        # The line first: it is the truth of a curve, and what the study lacks of it is mended from there.
        self._ledger.add({**row, "trial": number, "arm": entry.proposal.arm, **of_the_search})
        entry.curve[epoch], entry.losses[epoch] = values, row.get(self.task.loss)
        self.study.report(number, epoch, values[0])
        self._tracker.log(trial_id(self.study.uid, number), row)
        self._look_at_budget()
        if is_stop(self._rule, entry, epoch, values[0]):
            entry.why = STOPPED
        elif self._is_spent and epoch < entry.max_epochs:
            entry.why = self.ended_early
        self._changed()
        return bool(entry.why)

    def on_error(self, number: int, error: str, details: str | None = None) -> bool:
        """Note why a trial fails, in a line and in full (a traceback); always True: it is to be stopped."""
        entry = self.entries[number]
        entry.error = entry.error or (error, details or error)
        return True

    def on_restart(self, number: int) -> None:
        """Count that a trial starts again behind its last epoch, since its worker died."""
        self._troubles_of(number)["restarts"] += 1

    def on_lost(self, number: int) -> None:
        """Note that a trial's worker died too often, or in a way that is not tried again."""
        if number in self._began:
            self._troubles_of(number)["lost"] = 1

    def _troubles_of(self, number: int) -> dict[str, int]:
        """Counts, kept when the trial ends: a driver that dies before takes its trials' restarts with it, which then are resumed."""
        found: dict[str, int] = self.entries[number].facts.setdefault("troubles", {"restarts": 0, "resumed": 0, "lost": 0})
        return found

    def on_end(self, number: int, error: str | None = None, details: str | None = None) -> None:
        """Record the end of a trial, once."""
        if number not in self._began:
            return
        entry = self.entries[number]
        if error is not None:
            self.on_error(number, error, details)
        if not entry.is_to_end:
            self.on_error(number, "reported nothing" if not entry.epochs else f"ended after {entry.epochs} of {entry.max_epochs} epochs")
        self._end(entry, "FAIL" if entry.error else "PRUNED" if entry.why else "COMPLETE")

    def _end(self, entry: Entry, state: State) -> None:
        number = entry.proposal.number
        self._began.discard(number)
        self.meter.end(number)
        entry.facts["held_s"] = self.meter.seconds(number)
        if entry.error is not None:
            write_text(self.trial_folder(number) / ERROR, f"{entry.error[1]}\n")
        outcome = entry.outcome()
        # The study last: a driver that dies before leaves a trial that the next one ends again.
        if state != "COMPLETE":  # nothing goes on from it, and it is large
            checkpoint.remove(self.trial_folder(number))
            (self.trial_folder(number) / SAMPLES).unlink(missing_ok=True)  # the same as every other trial's
        self._tracker.end(trial_id(self.study.uid, number), ENDED[state], {"value": entry.value, "epochs": entry.epochs, **outcome})
        self.study.end(number, state, values=entry.values, outcome=outcome, constraints=entry.excess)
        entry.state = state
        self._look_around()
        self._changed()
        self._written.when_due(self.write_summary)

    def _look_around(self) -> None:
        """See whether the search is to end."""
        entries = self.entries.values()
        self.ended_early = self.ended_early or without_promise(self.search, entries) or without_room(self.search, entries)
        self._look_at_budget()

    def _look_at_budget(self) -> None:
        if not self._is_spent and (why := self.meter.reached()) is not None:
            self._is_spent, self.ended_early = True, why
            while self._pending:  # what would have been continued ends where it is
                entry = self._pending.pop(0)
                entry.why = why
                self._begin(entry)
                self.on_end(entry.proposal.number)

    def trials(self) -> Trials:
        """All trials as in summary.json."""
        return self._summary.trials(self.entries, self.meter)

    def write_summary(self) -> dict[str, Any]:
        """Derive summary.json from what is known."""
        return self._summary.write(self.entries, self.meter, remaining=self.remaining, ended_early=self.ended_early, concurrency=self.concurrency)

    def close(self) -> tuple[dict[str, Any], list[str]]:
        """Write the last summary, close the tracker and free the folder: the summary, and the tracker's lines for the user."""
        with self._opened:
            self._on_change(self.trials())
            summary = self.write_summary()
            return summary, self._tracker.close()

    def _changed(self) -> None:
        self._told.when_due(lambda: self._on_change(self.trials()))
