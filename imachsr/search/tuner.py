"""Ray Tune runs what the driver proposes: thin adapters between the two."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from optuna.trial import FrozenTrial
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from imachsr.cluster import require_reached, require_shared
from imachsr.config.schema import ConfigError
from imachsr.search.board import Board
from imachsr.search.driver import WAIT, Driver
from imachsr.search.folder import check_folder
from imachsr.search.mirror import FolderMirror
from imachsr.search.space import Search
from imachsr.search.summary import Trials, check_data
from imachsr.search.task import Function, Task, Training, rehearse
from imachsr.search.worker import Messages, run_function, run_training
from imachsr.tracking.events import Tracker
from imachsr.train import checkpoint
from imachsr.train.capacity import at_a_time, await_room, connect, may_grow, room, words
from imachsr.train.courier import Courier
from imachsr.train.faults import hung
from imachsr.train.stopping import take_termination_as_interrupt

# Tune pickles and copies its parts; they find the driver, which holds files and connections, through its folder.
_DRIVERS: dict[str, Driver] = {}


def run_trial(trial: dict[str, Any], *, job: Mapping[str, Any], function: Callable[..., object] | None) -> None:
    """A trial, in a Ray worker: a training of its run, or the user's function."""
    messages = Messages(tune.report)
    try:
        if function is None:
            run_training(trial, job, messages)
        else:
            run_function(function, trial, messages)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:  # how Ray ends a trial that is to stop
            raise
        messages.error(error)


class _Proposals(Searcher):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        proposal = _DRIVERS[self.key].propose()
        return None if proposal == WAIT else proposal or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback below tells the driver."""

    def save(self, checkpoint_path: str) -> None:
        """The study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is on disk already."""


class _Decisions(FIFOScheduler):
    def __init__(self, key: str, board: Board | None) -> None:
        super().__init__()
        self.key, self.board = key, board

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "message" not in result:
            return str(self.CONTINUE)  # the mark that a function has returned
        number = trial.config["number"]
        is_stopped = _heard(_DRIVERS[self.key], number, json.loads(result["message"]))
        if is_stopped and self.board is not None:
            self.board.stop(number)
            return str(self.CONTINUE)
        return str(self.STOP if is_stopped else self.CONTINUE)


def _heard(driver: Driver, number: int, message: dict[str, Any]) -> bool:
    """Hand a worker's message to the driver; whether the trial is to be stopped."""
    if "error" in message:
        return driver.on_error(number, message["error"], message["traceback"])
    if "infeasible" in message:
        return driver.on_infeasible(number, message["infeasible"])
    if "start" in message and driver.on_start(number, message["start"]):
        return True
    if not driver.entries[number].is_proven:
        return driver.on_error(number, "the worker must say what it trains, but did not")
    return driver.on_row(number, message["row"])


class _Ends(Callback):
    def __init__(self, key: str, say: Callable[[str], object] = lambda line: None) -> None:
        self.key, self.say = key, say

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ends, (self.key,)  # Tune writes its callbacks to its folder, and what prints to a terminal is not to be written

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _DRIVERS[self.key].on_end(trial.config["number"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        entry, found = _DRIVERS[self.key].entries[trial.config["number"]], hung(Path(trial.config["output"]), {})
        _DRIVERS[self.key].on_restart(entry.proposal.number)
        why = f"a step took more than recovery.hang_minutes (stacks in {found[0]})" if found else "its worker died"
        self.say(f"trial {entry.proposal.number}: {why}; it starts again behind epoch {entry.epochs}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = Path(trial.error_file).read_text().strip() if trial.error_file and Path(trial.error_file).exists() else ""
        error = (text or "the worker died").splitlines()[-1]
        if found := hung(Path(trial.config["output"]), {}):
            error = f"a step took more than recovery.hang_minutes (stacks in {found[0]})"
        _DRIVERS[self.key].on_lost(trial.config["number"])
        _DRIVERS[self.key].on_end(trial.config["number"], error, text)


def run_search(
    search: Search,
    folder: Path,
    *,
    tracker: Tracker | None = None,
    on_change: Callable[[Trials], object] = lambda trials: None,
    on_data: Callable[[Mapping[str, str]], object] = lambda data: None,
    on_ready: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda line: None,
    resume: bool = False,
    max_failures: int = 2,
    study_url: str | None = None,
    function: Function | None = None,
    learnt: Sequence[FrozenTrial] = (),
    courier: Courier | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Run a search to its end on this machine, or on the cluster at RAY_ADDRESS.

    Args:
        search: What is searched.
        folder: Result folder; on several machines one that all of them share.
        tracker: Told of every trial, in this process.
        on_change: Called with all trials whenever one changes.
        on_data: Called with the fingerprints of the data by split, before ``on_ready``; with none for a function.
        on_ready: Called once all has been checked that needs no cluster, before Ray starts.
        say: Called with a line for the user: how many trials run at a time, and why.
        resume: Continue the search that is in the folder.
        max_failures: Restarts of a trial whose worker died, from its last epoch.
        study_url: Of a database to keep the study in, instead of the folder.
        function: What a trial calls, instead of training the search's runs.
        learnt: Trials of older searches for the sampler to start from.
        courier: To the storage that the search is kept in; machines then need not share ``folder``.

    Returns:
        The content of summary.json, and the tracker's lines for the user.

    Raises:
        ConfigError: If the data cannot be read, or are not those that the search began with, the model does not fit, or the cluster can never hold a
            trial.
    """
    # Before the folder is made, so that a mistake can be mended and the same command given again.
    check_folder(folder, search, resume=resume)
    data = rehearse(search) if function is None else {}
    check_data(folder, data)
    on_data(data)
    on_ready()
    concurrency = _reserve(search, say, is_training=function is None)
    if courier is None:
        _probe(folder)
    else:
        require_reached(courier.uri)
    task: Task = function or Training(search=search)
    mirror = None if courier is None else FolderMirror(courier, folder, say=say)
    told = on_change if mirror is None else mirror.following(on_change)
    driver = Driver(
        folder, search, task=task, tracker=tracker, on_change=told, resume=resume, study_url=study_url, concurrency=concurrency, data=data
    )
    key = str(folder.absolute())
    _DRIVERS[key] = driver
    with contextlib.nullcontext() if mirror is None else mirror:
        try:
            driver.study.learn(learnt)
            if driver.remaining:
                _run(search, driver, key, max_failures, concurrency, function, None if courier is None else courier.uri, _Ends(key, say))
        finally:
            del _DRIVERS[key]
            summary, lines = driver.close()
    if function is None and courier is None:
        _check_shared(folder, summary)
    return summary, lines


def _probe(folder: Path) -> None:
    """Say before the first trial what would be missing after the last one; scores come to the driver all the same."""
    try:
        require_shared(folder)
    except ConfigError as error:
        warnings.warn(f"{error}; checkpoints will stay where the trials run", stacklevel=3)


def _check_shared(folder: Path, summary: dict[str, Any]) -> None:
    whole = [folder / "trials" / f"{trial['number']:04d}" for trial in summary["trials"] if trial["state"] == "COMPLETE"]
    if lost := [trial / checkpoint.FOLDER for trial in whole if not checkpoint.exists(trial)]:
        warnings.warn(
            f"--output must be a folder that all machines of the cluster share, but this one does not see {lost[0]}"
            + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
            + "; scores and settings are here, checkpoints are where the trials ran",
            stacklevel=2,
        )


def _bundle(search: Search) -> dict[str, float]:
    """What a worker of a trial takes on one node."""
    return {"CPU": float(search.budget.cpus_per_trial), "GPU": search.budget.gpus_per_trial}


def _reserve(search: Search, say: Callable[[str], object], *, is_training: bool) -> int:
    """Start Ray, or join the cluster, and find how many trials it holds at a time; at least one, or Tune would wait for ever."""
    budget, wanted = search.budget, _bundle(search)
    # Read when Tune starts and in its workers; its own loggers write what trials.jsonl holds already.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_STRICT_METRIC_CHECKING="1", RAY_CHDIR_TO_TRIAL_DIR="0")
    workers = budget.workers_per_trial
    # With several workers Ray's dashboard must run: it is what frees their places when a trial's process dies.
    connect(has_dashboard=workers > 1)
    take_termination_as_interrupt()
    found = 0 if await_room(wanted, workers, what="1 trial", say=say) < workers else room(wanted) // workers
    if not found and workers > 1:
        raise ConfigError(f"budget.workers_per_trial: the cluster must have {words(wanted)} for each of {workers} workers, but has not; lower it")
    if not found:
        for kind, each in wanted.items():
            if each > (most := max((node.get(kind, 0.0) for node in _nodes()), default=0.0)):
                raise ConfigError(
                    f"budget.{kind.lower()}s_per_trial: must be at most the {most:g} {kind}s of the cluster's largest node, but got {each:g}"
                )
        raise ConfigError(f"budget: one node of the cluster must have {words(wanted)} for a trial, but none has both")
    if is_training and ray.cluster_resources().get("GPU", 0) and not budget.gpus_per_trial and search.base().compute.device == "auto":
        warnings.warn("trials use the CPU, because budget.gpus_per_trial is 0; the cluster has GPUs: budget.gpus_per_trial=1 uses them", stacklevel=2)
    grows = workers == 1 and may_grow()  # workers of several trials that wait for one another's places would all wait for ever
    concurrency = min(at_a_time(budget.concurrency, found, grows=grows), budget.trials)
    is_beyond = budget.concurrency != "auto" and budget.concurrency > found
    limit = "" if not is_beyond else "; more nodes may come" if grows else f"; budget.concurrency={budget.concurrency} would not fit"
    taken = words(wanted) if workers == 1 else f"{workers} workers of {words(wanted)}"
    say(f"{concurrency} trials at a time: the cluster holds {found}, each with {taken}{limit}")
    return concurrency


def _nodes() -> list[dict[str, float]]:
    """Resources of every node that is there; a trial needs all of its own on one of them."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _run(
    search: Search, driver: Driver, key: str, max_failures: int, concurrency: int, function: Function | None, storage: str | None, ends: Callback
) -> None:
    wanted, workers = _bundle(search), search.budget.workers_per_trial
    on_a_node = max(min(int(node.get(kind, 0.0) / each + 1e-5) for kind, each in wanted.items() if each) for node in _nodes())
    board = Board.open() if workers > 1 else None
    job = {
        "score_on": search.score_on,
        "selection": asdict(search.selection),
        "limits": search.limits.model_dump(mode="json"),
        "trials": max(1, min(concurrency * workers, on_a_node)),
        "gpus": search.budget.gpus_per_trial,
        "workers": workers,
        "cpus": search.budget.cpus_per_trial,
        "board": board,
        "storage": storage,
    }
    # The process that leads the workers of a trial computes nothing; Tune refuses a trial that takes nothing, and a hundredth of a CPU would keep a
    # worker from the last one.
    taken = {kind: each for kind, each in wanted.items() if each} if workers == 1 else {"memory": 2.0**20}
    trainable = tune.with_parameters(run_trial, job=job, function=function.train if function is not None else None)
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([taken])),
        tune_config=TuneConfig(
            search_alg=_Proposals(key),
            scheduler=_Decisions(key, board),
            num_samples=-1,  # the driver says when there is no other
            max_concurrent_trials=concurrency,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=key,
            verbose=0,
            callbacks=[ends],
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    finally:
        if board is not None:
            board.close()
