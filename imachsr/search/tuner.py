"""Ray Tune runs what the driver proposes: thin adapters between the two."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from imachsr.config.load import make_run
from imachsr.config.schema import ConfigError
from imachsr.data.splits import Selection
from imachsr.search.driver import Driver, Trials, check_folder
from imachsr.search.space import Search
from imachsr.tracking.events import Tracker
from imachsr.train.loop import train
from imachsr.train.ray_train import connect

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
        tune.report({"error": f"{type(error).__name__}: {error}"})


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
            driver.on_error(number, result["error"])
            return str(self.STOP)
        return str(self.STOP if driver.on_row(number, json.loads(result["row"])) else self.CONTINUE)


class _Ends(Callback):
    def __init__(self, key: str) -> None:
        self.key = key

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _DRIVERS[self.key].on_end(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = Path(trial.error_file).read_text().strip() if trial.error_file and Path(trial.error_file).exists() else "the worker died"
        _DRIVERS[self.key].on_end(trial.config["number"], text.splitlines()[-1])


def run_search(
    search: Search,
    folder: Path,
    *,
    tracker: Tracker | None = None,
    on_change: Callable[[Trials], object] = lambda trials: None,
    resume: bool = False,
    max_failures: int = 2,
) -> tuple[dict[str, Any], list[str]]:
    """Run a search to its end on this machine, or on the cluster at RAY_ADDRESS.

    Args:
        search: What is searched.
        folder: Result folder; on several machines one that all of them share.
        tracker: Told of every trial, in this process.
        on_change: Called with all trials whenever one changes.
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
    _reserve(search)
    driver = Driver(folder, search, tracker=tracker, on_change=on_change, resume=resume)
    key = str(folder.absolute())
    _DRIVERS[key] = driver
    try:
        if driver.remaining:
            _run(search, driver, key, max_failures)
    finally:
        del _DRIVERS[key]
        summary, lines = driver.close()
    return summary, lines


def _rehearse(search: Search) -> None:
    """What would fail in every trial fails here, before any starts."""
    from imachsr.config.build import build_net

    for arm in search.arms:
        run = search.run_of(arm.set_, name=arm.name, seed=search.seeds[0])
        samples, _ = search.selection.split(run.data.load("train"))
        build_net(run, num_classes=run.data.num_classes, size=(samples.images.shape[-2], samples.images.shape[-1]))


def _reserve(search: Search) -> None:
    """Start Ray, or join the cluster, and make sure that it can hold a trial at all: Tune would wait for ever."""
    budget = search.budget
    # Read when Tune starts and in its workers; its own loggers write what trials.jsonl holds already.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_STRICT_METRIC_CHECKING="1", RAY_CHDIR_TO_TRIAL_DIR="0")
    connect(cpus=max(os.cpu_count() or 1, budget.concurrency * budget.cpus_per_trial))
    resources = ray.cluster_resources()
    for kind, each in (("CPU", budget.cpus_per_trial), ("GPU", budget.gpus_per_trial)):
        if each > resources.get(kind, 0):
            raise ConfigError(f"budget.{kind.lower()}s_per_trial: must be at most the cluster's {resources.get(kind, 0):g} {kind}s, but got {each:g}")


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
