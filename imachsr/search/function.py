"""The search for the user's own training function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imachsr.config.load import load_yaml
from imachsr.config.schema import ConfigError
from imachsr.search.space import Search, make_search
from imachsr.search.summary import Trials
from imachsr.search.task import Function
from imachsr.search.tuner import run_search
from imachsr.tracking.events import Tracker

Train = Callable[[dict[str, Any], Callable[[Mapping[str, float]], object]], object]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        values: Of the best whole trial; {} when none got to its end.
        value: Its metric at the last epoch, or None.
        summary: All trials, as in summary.json.
        folder: Of the results, to go on in with ``resume=True``, or to be looked at with ``imachsr report``.
    """

    values: dict[str, Any]
    value: float | None
    summary: dict[str, Any]
    folder: Path


def search_function(
    space: Mapping[str, Any] | str | Path,
    train: Train,
    *,
    metric: str | None = None,
    mode: str | None = None,
    epochs: int | None = None,
    trials: int | None = None,
    output: str | Path = "runs/search",
    resume: bool = False,
    tracker: Tracker | None = None,
    on_change: Callable[[Trials], object] = lambda trials: None,
    **rules: Any,
) -> Found:
    """Search the best values of a function's parameters with Ray Tune and Optuna, stopping bad trials early.

    ``train(values, report)`` is called in a Ray worker with the knobs' values and a ``seed``, and calls ``report(row)`` once an epoch with a mapping
    of numbers that has the metric. When the trial is stopped, ``report`` does not return.

    Args:
        space: Knobs and how they are searched, as under ``space:`` in YAML, such as ``{"lr": {"float": [1e-4, 1e-1], "log": True}}``; or a YAML
            file that holds a whole search.
        train: The function; it travels to the workers by cloudpickle.
        metric: Key of the rows that is compared; "score" by default. This and the next three stand in the file where ``space`` is one.
        mode: max or min, whichever is better; max by default.
        epochs: Rows of a whole trial, >= 1; 1 by default.
        trials: In all, >= 1; 20 by default.
        output: New folder of the results.
        resume: Go on with the search that is in it.
        tracker: Told of every trial, in this process.
        on_change: Called with all trials, as in summary.json, when one has changed.
        rules: Further parts of a search as in YAML: scheduler, sampler, budget, constraints, points, arms, seeds, also, name.

    Raises:
        ConfigError: For what is wrong with any of it.

    Example:
        >>> def train(values, report):
        ...     report({"score": -(values["x"] - 2) ** 2})
        >>> found = imachsr.search({"x": {"float": [-5, 5]}}, train, trials=30)  # doctest: +SKIP
        >>> found.values["x"]  # doctest: +SKIP
        2.03

    """
    if not callable(train):
        raise ConfigError(f"`train` must be a function (values, report), but got {train!r}")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"`epochs >= 1` must hold, but got {epochs}")
    found = _search(space, train, given={"metric": metric, "mode": mode, "epochs": epochs, "trials": trials}, rules=rules)
    folder = Path(output)
    function = Function(train=train, max_epochs=found.base().optimizer.epochs)
    summary, _ = run_search(found, folder, tracker=tracker, on_change=on_change, resume=resume, function=function)
    best = next((trial for trial in summary["trials"] if trial["number"] == summary["best"]), None)
    if best is None:
        return Found(values={}, value=None, summary=summary, folder=folder)
    return Found(values=best["params"], value=best["value"], summary=summary, folder=folder)


def _search(space: Mapping[str, Any] | str | Path, train: Train, *, given: Mapping[str, Any], rules: dict[str, Any]) -> Search:
    name = f"{getattr(train, '__module__', '?')}:{getattr(train, '__qualname__', type(train).__qualname__)}"
    if isinstance(space, (str, Path)):
        if twice := [key for key, value in given.items() if value is not None]:
            raise ConfigError(f"`{twice[0]}` must stand in {space}, which holds the whole search, but was given beside it")
        return make_search({**load_yaml(space), **rules, "function": name})
    found: dict[str, Any] = {"metric": "score", "mode": "max", "epochs": 1, "trials": 20} | {
        key: value for key, value in given.items() if value is not None
    }
    epochs = found["epochs"]
    budget = {"trials": found["trials"], **rules.pop("budget", {})}
    scheduler = rules.pop("scheduler", {"kind": "asha" if epochs > 2 else "none"})
    raw = {
        "space": dict(space),
        "metric": {"name": found["metric"], "mode": found["mode"]},
        "run": {"optimizer": {"epochs": epochs}},
        "budget": budget,
        "scheduler": scheduler,
        "arms": [],
        **rules,
    }
    return make_search({**raw, "function": name})
