"""Ray Tune runs what the driver proposes: thin adapters between the two."""

import json
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from imachsr.cluster import require_shared
from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.data.samples import Samples
from imachsr.data.splits import Selection
from imachsr.search.driver import Driver, Trials, check_folder
from imachsr.search.space import Search, check_metric
from imachsr.tracking.events import Tracker
from imachsr.train import checkpoint
from imachsr.train.capacity import await_room, connect, words
from imachsr.train.loop import train

# Tune pickles and copies its parts; they find the driver, which holds files and connections, through its folder.
_DRIVERS: dict[str, Driver] = {}


def run_trial(config: dict[str, Any]) -> None:
    """A trial, in a Ray worker: the ordinary training loop, scored on the selection split."""
    try:
        train(
            make_run(config["run"]),
            output=Path(config["output"]),
            # One text: Tune would split a mapping at its slashes.
            report=lambda row: tune.report({"row": json.dumps(row)}),
            evaluate_on="select",
            selection=Selection(**config["selection"]),
            resume=True,
            reported=config["reported"],
        )
    except Exception as error:
        # Whatever is raised would be raised again: told, not retried. A worker that dies is retried by Tune.
        tune.report({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})


class _Proposals(Searcher):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return _DRIVERS[self.key].propose() or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback below tells the driver."""

    def save(self, checkpoint_path: str) -> None:
        """The study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is on disk already."""


class _Decisions(FIFOScheduler):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        driver, number = _DRIVERS[self.key], trial.config["number"]
        if "row" not in result and "error" not in result:
            return str(self.CONTINUE)  # the mark that a function has returned
        if result.get("error"):
            driver.on_error(number, result["error"], result["traceback"])
            return str(self.STOP)
        return str(self.STOP if driver.on_row(number, json.loads(result["row"])) else self.CONTINUE)


class _Ends(Callback):
    def __init__(self, key: str) -> None:
        self.key = key

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _DRIVERS[self.key].on_end(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = Path(trial.error_file).read_text().strip() if trial.error_file and Path(trial.error_file).exists() else ""
        _DRIVERS[self.key].on_end(trial.config["number"], (text or "the worker died").splitlines()[-1], text)


def run_search(
    search: Search,
    folder: Path,
    *,
    tracker: Tracker | None = None,
    on_change: Callable[[Trials], object] = lambda trials: None,
    on_ready: Callable[[], object] = lambda: None,
    resume: bool = False,
    max_failures: int = 2,
) -> tuple[dict[str, Any], list[str]]:
    """Run a search to its end on this machine, or on the cluster at RAY_ADDRESS.

    Args:
        search: What is searched.
        folder: Result folder; on several machines one that all of them share.
        tracker: Told of every trial, in this process.
        on_change: Called with all trials whenever one changes.
        on_ready: Called once all has been checked that needs no cluster, before Ray starts.
        resume: Continue the search that is in the folder.
        max_failures: Restarts of a trial whose worker died, from its last epoch.

    Returns:
        The content of summary.json, and the tracker's lines for the user.

    Raises:
        ConfigError: If the data cannot be read, the model does not fit, or the cluster can never hold a trial.
    """
    # Before the folder is made, so that a mistake can be mended and the same command given again.
    check_folder(folder, search, resume=resume)
    _rehearse(search)
    on_ready()
    _reserve(search)
    _probe(folder)
    driver = Driver(folder, search, tracker=tracker, on_change=on_change, resume=resume)
    key = str(folder.absolute())
    _DRIVERS[key] = driver
    try:
        if driver.remaining:
            _run(search, driver, key, max_failures)
    finally:
        del _DRIVERS[key]
        summary, lines = driver.close()
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


def _rehearse(search: Search) -> None:
    """What would fail in every trial fails here, before any starts."""
    from imachsr.config.build import build_net

    loaded: dict[str, Samples] = {}  # by data setting: arms mostly share one
    for arm in search.arms:
        run = search.run_of(arm.set_, name=arm.name, seed=search.seeds[0])
        check_metric(search.metric, run.data.class_names)
        data = json.dumps(run_to_dict(run)["data"], sort_keys=True)
        if data not in loaded:
            loaded[data], _ = search.selection.split(run.data.load("train"))
        size = (loaded[data].images.shape[-2], loaded[data].images.shape[-1])
        build_net(run, num_classes=run.data.num_classes, size=size, samples=loaded[data], steps_per_epoch=1)


def _reserve(search: Search) -> None:
    """Start Ray, or join the cluster, and make sure that it can hold a trial at all: Tune would wait for ever."""
    budget = search.budget
    # Read when Tune starts and in its workers; its own loggers write what trials.jsonl holds already.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_STRICT_METRIC_CHECKING="1", RAY_CHDIR_TO_TRIAL_DIR="0")
    connect(cpus=max(os.cpu_count() or 1, budget.concurrency * budget.cpus_per_trial))
    wanted = {"CPU": float(budget.cpus_per_trial), "GPU": budget.gpus_per_trial}
    if not await_room(wanted, 1, what="1 trial"):
        for kind, each in wanted.items():
            if each > (most := max((node.get(kind, 0.0) for node in _nodes()), default=0.0)):
                raise ConfigError(
                    f"budget.{kind.lower()}s_per_trial: must be at most the {most:g} {kind}s of the cluster's largest node, but got {each:g}"
                )
        raise ConfigError(f"budget: one node of the cluster must have {words(wanted)} for a trial, but none has both")
    if ray.cluster_resources().get("GPU", 0) and not budget.gpus_per_trial and search.base().compute.device == "auto":
        warnings.warn("trials use the CPU, because budget.gpus_per_trial is 0; the cluster has GPUs: budget.gpus_per_trial=1 uses them", stacklevel=2)


def _nodes() -> list[dict[str, float]]:
    """Resources of every node that is there; a trial needs all of its own on one of them."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _run(search: Search, driver: Driver, key: str, max_failures: int) -> None:
    budget = search.budget
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": budget.cpus_per_trial, "gpu": budget.gpus_per_trial}),
        tune_config=TuneConfig(
            search_alg=_Proposals(key),
            scheduler=_Decisions(key),
            num_samples=driver.remaining,
            max_concurrent_trials=budget.concurrency,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=key,
            verbose=0,
            callbacks=[_Ends(key)],
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()
