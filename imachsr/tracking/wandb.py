"""Weights & Biases, written by the driver: one run a trial, and one for the search as a whole."""

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imachsr.tracking import overview
from imachsr.tracking.events import TrialStart, finite
from imachsr.tracking.fragments import SYNCED, find
from imachsr.tracking.pictures import Pictures
from imachsr.tracking.preflight import KEY, Mode, Preflight, first_line, preflight
from imachsr.tracking.recorded import Place, load, whole_id
from imachsr.tracking.sweep import begun, held

INIT_S, FINISH_S = 20, 10
"""Longest waits for the server at a run's start and end, seconds."""
APART = "-offline"
"""Behind the id of a run that could not begin online: the client holds on to the id."""


class WandbTracker:
    """One run a trial, grouped by search; the step axis is the epoch.

    When the server stops answering, later runs are written offline. What is not on the server at the end lies in files, or can be made again from
    the search's own lines: :mod:`imachsr.tracking.sync`.

    Args:
        folder: Result folder; runs are kept in ``folder/wandb``.
        project: Of W&B.
        mode: See :func:`preflight`.
        is_anew: Begin every run anew, also one that the server knows.
        sweep: Configuration of a sweep that trials are to belong to; it is made when the first one begins online, and kept in the folder.
    """

    def __init__(
        self, folder: Path, *, project: str = "imachsr", mode: Mode = "auto", is_anew: bool = False, sweep: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = folder.absolute()
        self._project, self._is_anew, self._sweep = project, is_anew, sweep
        self.preflight = preflight(mode)
        # Out of the environment until the end: processes that are started inherit it, and no worker needs the key.
        self._key = os.environ.pop(KEY, None)
        self._sweep_id = held(self._folder)
        self._lines: list[str] = []
        self._runs: dict[str, Any] = {}
        self._started: dict[str, TrialStart] = {}
        self._epochs: dict[str, float] = {}
        self._pictures = Pictures(self._folder)
        self.url = ""
        self.unsent: set[str] = set()
        """Ids of runs that the server has not, or not whole."""
        self.entity = ""

    def start(self, trial: TrialStart) -> None:
        """Begin a run, or go on with it when a search is continued."""
        if self.preflight.mode == "disabled":
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._sweep is not None and self.preflight.mode == "online":
            self._begin_sweep(self._sweep)
        try:
            run = self._init(trial, trial.id)
        except Exception as error:  # of the client's, or of what it reads of an answer that makes no sense
            self._go_offline(first_line(error))
            run = self._begun_apart(trial)
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        self._runs[trial.id], self._started[trial.id] = run, trial
        if self.preflight.mode == "online":
            self.url, self.entity = run.project_url, run.entity
        else:
            self.unsent.add(trial.id)

    def _begun_apart(self, trial: TrialStart) -> Any:
        import wandb

        try:
            return self._init(trial, trial.id + APART)
        except Exception:  # the client's own process died of an answer; a new one takes its place
            wandb.teardown()
            return self._init(trial, trial.id + APART)

    def _init(self, trial: TrialStart, run_id: str) -> Any:
        import wandb

        # Set here, never by WANDB_SWEEP_ID, which would make the client an agent of the sweep.
        sweep = {"sweep_id": self._sweep_id} if self._sweep_id and trial.folder is not None else {}
        settings = wandb.Settings(
            **sweep,
            silent=True,
            api_key=self._key,
            console="off",
            init_timeout=INIT_S,
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
            x_disable_stats=True,  # they would describe the driver, not the trial
            x_transaction_log_flush_interval=1.0,  # a killed driver loses a second, not fifteen
        )
        return wandb.init(
            project=self._project,
            dir=str(self._folder),
            id=run_id,
            name=trial.name,
            group=trial.group,
            job_type=trial.job_type,
            config=flat(trial.config),
            tags=list(trial.tags),
            mode=self.preflight.mode,
            resume="allow" if self.preflight.mode == "online" and not self._is_anew else None,
            reinit="create_new",
            settings=settings,
        )

    def _begin_sweep(self, sweep: Mapping[str, Any]) -> None:
        self._sweep = None  # once, whatever comes of it
        try:
            self._sweep_id = begun(self._folder, sweep, project=self._project, key=self._key)
        except Exception as error:  # of the client's; the runs do without
            self._lines.append(f"W&B: the trials belong to no sweep ({first_line(error)})")

    def _go_offline(self, reason: str) -> None:
        if self.preflight.mode == "online":
            self.preflight = Preflight(mode="offline", reason=f"the server failed ({reason})")

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Record an epoch."""
        run = self._runs.get(trial_id)
        if run is None:
            return
        self._epochs[trial_id] = row["epoch"]
        if (folder := self._started[trial_id].folder) is not None:
            self._pictures.note(folder)
        self._guarded(trial_id, lambda: run.log(dict(row)))

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """End a run, with its images; one that failed ends with exit code 1."""
        run = self._runs.get(trial_id)
        if run is None:
            return
        folder = self._started[trial_id].folder
        images = {} if folder is None else self._pictures.of(folder)
        if images:
            self._guarded(trial_id, lambda: run.log({"epoch": self._epochs.get(trial_id, 0), **images}))
        counted = {"num_taps": len(summary["taps"])} if "taps" in summary else {}
        kept = flat({"trial": finite({**summary, **counted, "state": state})})
        self._guarded(trial_id, lambda: run.summary.update(kept))
        self._finish(trial_id, exit_code=1 if state == "failed" else 0)

    def _guarded(self, trial_id: str, call: Callable[[], object]) -> None:
        """Call the client; a run at which it fails is left to be made again, and no other is touched."""
        if trial_id not in self._runs:
            return
        try:
            call()
        except Exception as error:  # as above
            del self._runs[trial_id]
            self.unsent.add(trial_id)
            self._go_offline(first_line(error))

    def _finish(self, trial_id: str, *, exit_code: int) -> None:
        run = self._runs.get(trial_id)
        if run is None:
            return
        self._guarded(trial_id, lambda: run.finish(exit_code=exit_code))  # raises TimeoutError when not all of it was sent
        if self._runs.pop(trial_id, None) is not None and trial_id not in self.unsent:
            written = Path(run.dir).parent / f"run-{run.id}.wandb"
            written.with_name(written.name + SYNCED).touch()

    def close(self) -> list[str]:
        """End what is open (a search that was interrupted), show the search as a whole, and say where the runs are."""
        for trial_id in tuple(self._runs):
            self._finish(trial_id, exit_code=1)
        try:
            if self._started:
                self.show(next(iter(self._started.values())).group)
        except Exception as error:  # the trials have their runs
            self._lines.append(f"W&B: the search as a whole is not shown ({first_line(error)})")
        if self._key is not None:
            os.environ.setdefault(KEY, self._key)
        lines = [*([f"W&B: {self.url}"] if self.url else []), *self._lines]
        if not self._started:
            return lines
        there, left = self._files()
        Place(entity=self.entity, project=self._project, is_online=not left).write(self._folder)
        if left:
            why = "an earlier sitting was offline, or broken off" if self.preflight.mode == "online" else self.preflight.reason
            lines.append(f"W&B: {len(left)} of {len(there)} runs are not on the server, or not whole: {why}")
            lines.append(f"imachsr wandb sync {shlex.quote(str(self._folder))}")
        return lines

    def _files(self) -> tuple[set[str], set[str]]:
        """Ids of all runs of the folder, of any sitting, and of those that the server has not, or not whole."""
        there, left = set(self._started), set(self.unsent)
        for path in find(self._folder):
            run_id = path.stem.removeprefix("run-").removesuffix(APART)
            there.add(run_id)
            if not path.with_name(path.name + SYNCED).exists():
                left.add(run_id)
        return there, left

    def show(self, group: str) -> None:
        """Make the run of the search as a whole, in this group; a training has none."""
        held = load(self._folder)
        if held is None:
            return
        # Anew every time: what it shows is of all sittings.
        self._is_anew = True
        about = TrialStart(id=whole_id(held), name=held["name"], group=group, job_type="search", config={"versions": held["versions"]})
        self.start(about)
        run = self._runs[about.id]
        self._guarded(about.id, lambda: overview.log(run, self._folder, held))
        self._finish(about.id, exit_code=0)


def slashed(key: object) -> str:
    """A key as it is called in W&B: the client tells a dot in a key and a key in a mapping apart, its panels do not."""
    return str(key).replace(".", "/")


def flat(held: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with slashes in the keys."""
    found: dict[str, Any] = {}
    for key, value in held.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{slashed(key)}/{name}": each for name, each in flat(value).items()}
        else:
            found[slashed(key)] = value
    return found
