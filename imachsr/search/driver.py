"""The search's bookkeeping, apart from what runs the trials: proposals out, rows and ends in, files and trackers kept true."""

import fcntl
import importlib.metadata
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from optuna.trial import FrozenTrial, TrialState

from imachsr.config.load import dump_yaml, load_yaml, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.files import write_text
from imachsr.search.scheduler import Rungs, rung_levels
from imachsr.search.space import Search, search_to_dict
from imachsr.search.study import FILE, Proposal, Study, proposal_of
from imachsr.tracking.events import NullTracker, Tracker, TrialStart, finite
from imachsr.train import checkpoint

Trials = list[dict[str, Any]]
ERROR = "error.txt"
VERSIONED = ("imachsr", "torch", "ray", "optuna", "segmentation-models-pytorch")


class Driver:
    """Owns a result folder for as long as it lives.

    Files: search.yaml (resolved), study.sqlite3 (the truth), trials.jsonl (a line an epoch), summary.json, trials/NUMBER/ (a training each, with
    error.txt when it failed; only trials that ran whole keep their checkpoint).

    Args:
        folder: Result folder.
        search: What is searched.
        tracker: Told of every trial.
        on_change: Called with all trials, as in summary.json, whenever one changes.
        resume: Go on with the search that is in the folder.

    Raises:
        ConfigError: If the folder holds a search and ``resume`` is not set, holds another search, or is in use.
    """

    def __init__(
        self,
        folder: Path,
        search: Search,
        *,
        tracker: Tracker | None = None,
        on_change: Callable[[Trials], object] = lambda trials: None,
        resume: bool = False,
    ) -> None:
        self.folder, self.search = folder, search
        self._tracker: Tracker = tracker or NullTracker()
        self._on_change = on_change
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            check_folder(folder, search, resume=resume)
        except ConfigError:
            self._lock.close()
            raise
        self._started = time.monotonic()
        self._spent = _spent(folder)
        # Before the study: what is there can then always be continued.
        write_text(folder / "search.yaml", dump_yaml(search_to_dict(search)))
        self.study = Study(folder, search)
        self._levels: tuple[int, ...] = ()
        if search.scheduler.kind == "asha":
            epochs = search.base().optimizer.epochs
            self._levels = rung_levels(grace=search.scheduler.grace, reduction=search.scheduler.reduction, max_epochs=epochs)
        self._rungs = Rungs(levels=self._levels, reduction=search.scheduler.reduction, mode=search.metric.mode)
        self._runs: dict[int, Run] = {}
        self._epochs: dict[int, int] = {}
        self._taps: dict[int, list[str]] = {}
        self._errors: dict[int, tuple[str, str]] = {}
        self._stopping: set[int] = set()
        self._began: dict[int, float] = {}
        self._replay()
        self._pending = self.study.unfinished()
        self._end_stopped()

    def _replay(self) -> None:
        """Rungs and curves as they were when an earlier driver of this folder ended."""
        for trial in self.study.trials:
            for epoch, value in sorted(trial.intermediate_values.items()):
                self._rungs.arrive(trial.number, epoch, value)
            self._epochs[trial.number] = max(trial.intermediate_values, default=0)
            self._taps[trial.number] = trial.user_attrs.get("taps", [])
            if trial.user_attrs.get("stopping"):
                self._stopping.add(trial.number)
        self._mend_lines()

    def _end_stopped(self) -> None:
        """A trial that was to be stopped when an earlier driver died has ended: another epoch would undo the decision."""
        for proposal in [each for each in self._pending if each.number in self._stopping]:
            self._pending.remove(proposal)
            self._begin(proposal, self._run_of(proposal))
            self.on_end(proposal.number)

    def _mend_lines(self) -> None:
        """A crash may have left half a line at the end, or a whole one whose epoch the study does not know: it will be reported again."""
        path = self.folder / "trials.jsonl"
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(line for line in text.splitlines(keepends=True) if self._is_recorded(line))
        if kept != text:
            write_text(path, kept)

    def _is_recorded(self, line: str) -> bool:
        if not line.endswith("\n"):
            return False
        row = json.loads(line)
        return bool(row["epoch"] <= self._epochs.get(row["trial"], 0))

    @property
    def remaining(self) -> int:
        """Trials that are still to run, or to be continued."""
        ended = sum(trial.state.is_finished() and "values" in trial.user_attrs for trial in self.study.trials)
        return max(0, self.search.budget.trials - ended)

    def propose(self) -> dict[str, Any] | None:
        """What the next trial needs, plain values; None when the budget is spent."""
        proposal = self._pending.pop(0) if self._pending else self.study.propose()
        if proposal is None:
            return None
        number = proposal.number
        try:
            run = self._run_of(proposal)
        except ConfigError as error:  # settings that are right each by itself, but not together
            self.study.end(number, "FAIL", value=None, note={"wall_s": 0.0, "error": str(error), "taps": []})
            write_text(self.trial_folder(number) / ERROR, f"{error}\n")
            self._changed()
            return self.propose()
        # Here too, for a machine that does not see what trials write on theirs.
        write_text(self.trial_folder(number) / "run.yaml", dump_yaml(run_to_dict(run)))
        self._begin(proposal, run)
        self._changed()
        return {
            "number": number,
            "run": run_to_dict(run),
            "output": str(self.trial_folder(number)),
            "selection": search_to_dict(self.search)["selection"],
            "reported": self._epochs.get(number, 0),
        }

    def _run_of(self, proposal: Proposal) -> Run:
        run = self.search.run_of(proposal.values, name=f"{self.search.name}-{proposal.number:04d}", seed=proposal.seed)
        budget = self.search.budget
        share: dict[str, Any] = {}
        if run.compute.threads is None:
            share["threads"] = budget.cpus_per_trial
        if run.compute.device == "auto" and not budget.gpus_per_trial:  # trials that reserve no GPU would all take the first one
            share["device"] = "cpu"
        return run.model_copy(update={"compute": run.compute.model_copy(update=share)})

    def _begin(self, proposal: Proposal, run: Run) -> None:
        self._runs[proposal.number] = run
        self._began[proposal.number] = time.monotonic()
        self._start_tracking(proposal, run)

    def trial_folder(self, number: int) -> Path:
        """Absolute folder of a trial's training; made where it is missing."""
        folder = self.folder.absolute() / "trials" / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _id(self, number: int) -> str:
        return f"{self.study.uid}-{number:04d}"

    def _start_tracking(self, proposal: Proposal, run: Run) -> None:
        is_baseline = proposal.arm is not None and proposal.arm == self.search.arms[0].name
        start = TrialStart(
            id=self._id(proposal.number),
            name=f"{proposal.number:04d}" + (f"-{proposal.arm}" if proposal.arm else ""),
            group=f"{self.search.name}-{self.study.uid}",
            job_type="baseline" if is_baseline else "trial",
            config={**run_to_dict(run), "trial": proposal.number, "arm": proposal.arm},
            tags=(proposal.arm,) if proposal.arm else (),
        )
        self._tracker.start(start)

    def on_row(self, number: int, row: dict[str, float]) -> bool:
        """Record an epoch; whether the trial is to be stopped."""
        epoch = int(row["epoch"])
        if epoch <= self._epochs.get(number, 0):  # reported twice, by a trial that was restarted
            return number in self._stopping
        name = self.search.metric.name
        if name not in row:
            known = ", ".join(sorted(key for key in row if "/" in key and not key.startswith("tap/")))
            return self.on_error(number, f"metric.name must be a key of the rows, but got {name!r}; they have {known}")
        value = row[name]
        # A model whose output is NaN still has a mIoU: that of predicting class 0 everywhere.
        for key in (name, "select/loss"):
            if not math.isfinite(row.get(key, 0.0)):
                return self.on_error(number, f"{key} must be finite, but got {row[key]} at epoch {epoch}")
        self._epochs[number] = epoch
        self._taps[number] = list(dict.fromkeys(key.split("/")[1] for key in row if key.startswith("tap/")))
        arm = self.study.trials[number].user_attrs["arm"]
        with (self.folder / "trials.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite({"trial": number, "arm": arm, **row})) + "\n")
        self.study.report(number, epoch, value)
        self._tracker.log(self._id(number), row)
        # An arm is compared with others, so it runs whole; its values still stand in the rungs for others to be measured by.
        is_stopped = self._rungs.arrive(number, epoch, value) and arm is None and epoch < self._runs[number].optimizer.epochs
        if is_stopped:
            self._stopping.add(number)
            self.study.note(number, "stopping", True)
        self._changed()
        return is_stopped

    def on_error(self, number: int, error: str, details: str | None = None) -> bool:
        """Note why a trial fails, in a line and in full (a traceback); always True: it is to be stopped."""
        self._errors.setdefault(number, (error, details or error))
        return True

    def on_end(self, number: int, error: str | None = None, details: str | None = None) -> None:
        """Record the end of a trial, once."""
        if number not in self._began:
            return
        epochs, whole = self._epochs.get(number, 0), self._runs[number].optimizer.epochs
        error, details = self._errors.get(number, (error, details))
        if error is None and epochs < whole and number not in self._stopping:
            error = f"ended after {epochs} of {whole} epochs"
        if error is not None:
            write_text(self.trial_folder(number) / ERROR, f"{details or error}\n")
        values = self.study.trials[number].intermediate_values
        state: Any = "FAIL" if error else "COMPLETE" if epochs >= whole else "PRUNED"
        wall = round(time.monotonic() - self._began.pop(number), 3)
        note = {"wall_s": wall, "error": error, "taps": self._taps.get(number, [])}
        self.study.end(number, state, value=values.get(epochs), note=note)
        if state != "COMPLETE":  # nothing goes on from it, and it is large
            checkpoint.remove(self.trial_folder(number))
        ended = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}[state]
        self._tracker.end(self._id(number), ended, {"value": values.get(epochs), "epochs": epochs, **note})
        self._changed()
        self.write_summary()

    def trials(self) -> Trials:
        """All trials as in summary.json."""
        frozen = [trial for trial in self.study.trials if "values" in trial.user_attrs]
        baselines = {
            trial.user_attrs["seed"]: trial.value
            for trial in frozen
            if trial.user_attrs["arm"] == self.search.arms[0].name and trial.state == TrialState.COMPLETE
        }
        return [self._line(trial, baselines) for trial in frozen]

    def _line(self, trial: FrozenTrial, baselines: dict[int, float | None]) -> dict[str, Any]:
        proposal = proposal_of(trial)
        steps = trial.intermediate_values
        value = steps[max(steps)] if steps else None
        base = baselines.get(proposal.seed)
        is_whole = trial.state == TrialState.COMPLETE
        began = self._began.get(trial.number)
        return {
            "number": trial.number,
            "arm": proposal.arm,
            "state": trial.state.name,
            "epochs": max(steps, default=0),
            "value": value,
            "difference": value - base if is_whole and base is not None and value is not None else None,
            "params": proposal.values,
            "wall_s": trial.user_attrs.get("wall_s", round(time.monotonic() - began, 3) if began else None),
            "error": trial.user_attrs.get("error"),
            "taps": self._taps.get(trial.number, []),
            "seed": proposal.seed,
        }

    def write_summary(self) -> dict[str, Any]:
        """Derive summary.json from the study."""
        trials = self.trials()
        summary = {
            "schema": 1,
            "name": self.search.name,
            "metric": self.search.metric.name,
            "mode": self.search.metric.mode,
            "max_epochs": self.search.base().optimizer.epochs,
            "rungs": self._levels,
            "baseline": 0,
            "budget": self.search.budget.trials,
            "finished": self.remaining == 0,
            "wall_s": round(self._spent + time.monotonic() - self._started, 3),
            "versions": {name: importlib.metadata.version(name) for name in VERSIONED if _is_installed(name)},
            "trials": trials,
            "best": self._best(trials),
        }
        write_text(self.folder / "summary.json", json.dumps(finite(summary), indent=1) + "\n")
        return summary

    def _best(self, trials: Trials) -> int | None:
        """The best finished trial: an arm counts with the mean over its seeds, and is named by the first of them."""
        groups: dict[Any, Trials] = {}
        for trial in trials:
            if trial["state"] == "COMPLETE":
                groups.setdefault(trial["arm"] or trial["number"], []).append(trial)
        sign = 1 if self.search.metric.mode == "max" else -1
        means = {group[0]["number"]: sign * math.fsum(trial["value"] for trial in group) / len(group) for group in groups.values()}
        return max(means, key=lambda number: means[number], default=None)

    def close(self) -> tuple[dict[str, Any], list[str]]:
        """Write the last summary, close the tracker and free the folder: the summary, and the tracker's lines for the user."""
        summary = self.write_summary()
        lines = self._tracker.close()
        self._lock.close()
        return summary, lines

    def _changed(self) -> None:
        self._on_change(self.trials())


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _spent(folder: Path) -> float:
    try:
        return float(json.loads((folder / "summary.json").read_text())["wall_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _lock(folder: Path) -> IO[str]:
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(f"{folder} must not be in use, but another search is running in it") from None
    return file


def check_folder(folder: Path, search: Search, *, resume: bool) -> None:
    """Raise ConfigError unless the folder can take the search: a new one, or with ``resume`` the one that is in it."""
    if not (folder / FILE).exists():
        return
    if not resume:
        raise ConfigError(f"{folder} must be a new folder, but holds a search; give another --output, or continue it with --resume")
    before, now = load_yaml(folder / "search.yaml"), search_to_dict(search)
    changed = [key for key in now if key not in ("budget", "name") and before.get(key) != now[key]]
    if changed:
        raise ConfigError(f"a search must be continued as it began, but {', '.join(changed)} changed against {folder / 'search.yaml'}")
