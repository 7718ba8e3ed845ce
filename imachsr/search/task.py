"""What a trial is: a training of a run, or the user's own function."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.data.samples import Samples, Split
from imachsr.search.canonical import fingerprint, fingerprint_of
from imachsr.search.space import Search, check_metric
from imachsr.train.applied import differences

Config = dict[str, Any]


class Task(Protocol):
    """Turns what is proposed into what is run; the driver's side."""

    @property
    def loss(self) -> str:
        """Key in a row of the loss on what is scored; "" where rows have none."""

    def configure(self, values: Mapping[str, Any], *, name: str, seed: int) -> Config:
        """Everything that a worker needs to know, plain values.

        Raises:
            ConfigError: If the values do not go together.
        """

    def epochs(self, config: Config) -> int:
        """Rows that a whole trial reports."""

    def key(self, config: Config) -> str:
        """Fingerprint without the seed: equal for configurations that train the same."""

    def mismatch(self, config: Config, found: Mapping[str, Any]) -> list[str]:
        """Where what a worker says that it trains is not this configuration, in words."""

    def made_of(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Of what a worker says: ``taps``, ``losses`` (their kinds, one a tap) and ``network``; {} where nothing is known of them."""

    def check_row(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with a row beside its objectives, in words."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Trains a run.

    Args:
        search: Whose base run the values are set over.
    """

    search: Search

    @property
    def loss(self) -> str:
        """On the part that is scored."""
        return f"{self.search.score_on}/loss"

    def configure(self, values: Mapping[str, Any], *, name: str, seed: int) -> Config:
        """All settings of the run."""
        run = self.search.run_of(values, name=name, seed=seed)
        budget = self.search.budget
        share: dict[str, Any] = {}
        if run.compute.threads is None:
            share["threads"] = budget.cpus_per_trial
        if run.compute.device == "auto" and not budget.gpus_per_trial:  # trials that reserve no GPU would all take the first one
            share["device"] = "cpu"
        return run_to_dict(run.model_copy(update={"compute": run.compute.model_copy(update=share)}))

    def epochs(self, config: Config) -> int:
        """Of the run."""
        return int(config["optimizer"]["epochs"])

    def key(self, config: Config) -> str:
        """Of the run's canonical form."""
        return fingerprint(make_run(config))

    def mismatch(self, config: Config, found: Mapping[str, Any]) -> list[str]:
        """The live objects against the settings."""
        return differences(make_run(config), found)

    def made_of(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Of the live objects."""
        losses = [loss.get("kind") or loss["class"] if isinstance(loss, Mapping) else str(loss) for loss in found.get("losses", ())]
        return {"taps": list(found.get("taps", ())), "losses": losses, "network": found.get("network")}

    def check_row(self, row: Mapping[str, Any]) -> str | None:
        """A model whose output is NaN still has a mIoU: that of predicting class 0 everywhere."""
        return None if _is_finite(row.get(self.loss)) else f"{self.loss} must be finite, but got {row.get(self.loss)} at epoch {row['epoch']}"


@dataclass(frozen=True, kw_only=True)
class Function:
    """Calls a function with the values.

    Args:
        train: ``train(values, report)``, where ``report`` takes a row of numbers, once an epoch; values hold ``seed`` too.
        max_epochs: Rows of a whole trial.
    """

    train: Callable[..., object]
    max_epochs: int

    @property
    def loss(self) -> str:
        """Nothing is known of the rows."""
        return ""

    def configure(self, values: Mapping[str, Any], *, name: str, seed: int) -> Config:
        """The values and the seed."""
        return {**values, "seed": seed}

    def epochs(self, config: Config) -> int:
        """Always the same."""
        return self.max_epochs

    def key(self, config: Config) -> str:
        """Of the values."""
        return fingerprint_of({key: value for key, value in config.items() if key != "seed"})

    def mismatch(self, config: Config, found: Mapping[str, Any]) -> list[str]:
        """The worker says what it was called with."""
        sent, got = (json.dumps(each, sort_keys=True) for each in (config, found))
        return [] if sent == got else [f"the function must be called with {sent}, but was with {got}"]

    def made_of(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The worker says only what it was called with, whose names are the user's."""
        return {}

    def check_row(self, row: Mapping[str, Any]) -> str | None:
        """Nothing is known of it."""
        return None


def wrong_in(row: Mapping[str, Any], search: Search, task: Task, *, most: int) -> str | None:
    """What is wrong with a row, in words; None for one that counts.

    Args:
        row: Of an epoch.
        search: Whose objectives it must have.
        task: What the trial does.
        most: Rows of a whole trial.
    """
    for metric in search.objectives:
        if metric.name not in row:
            known = ", ".join(sorted(key for key in row if key != "epoch" and not key.startswith("tap/")))
            return f"metric.name must be a key of the rows, but got {metric.name!r}; they have {known}"
        if not _is_finite(row[metric.name]):
            return f"{metric.name} must be finite, but got {row[metric.name]} at epoch {row['epoch']}"
    if row["epoch"] > most:
        return f"a trial must report {most} rows at most, one an epoch, but reported one more; with a function of your own, `epochs` says how many"
    return task.check_row(row)


def check_objectives(search: Search) -> None:
    """Raise ConfigError unless every row of every trial of a training has all objectives."""
    for metric in search.objectives:
        check_metric(metric, search.base().data.class_names, search.score_on)
    names = [metric.name for metric in search.objectives]
    if len(set(names)) != len(names):
        raise ConfigError(f"also: must name other metrics than metric.name and each other, but got {', '.join(names)}")


def rehearse(search: Search) -> dict[str, str]:
    """What would fail in every trial of a training fails here, before any starts; the fingerprints of the baseline's data by split.

    Raises:
        ConfigError: If a metric will not be there, the data cannot be read, or an arm's model and method do not fit.
    """
    from imachsr.config.build import build_net

    check_objectives(search)
    loaded: dict[str, Samples] = {}  # by data setting: arms mostly share one
    prints: dict[str, str] = {}
    for arm in search.arms:
        run = search.run_of(arm.set_, name=arm.name, seed=search.seeds[0])
        data = json.dumps([run_to_dict(run)[part] for part in ("data", "subset")], sort_keys=True)
        if data not in loaded:
            splits: tuple[Split, ...] = ("train",) if search.score_on == "select" and search.confirm is None else run.subset.splits
            whole: dict[str, Samples] = {split: run.data.load(split) for split in splits}
            cut = search.selection if search.score_on == "select" else None
            loaded[data] = run.subset.split(whole["train"], partial(whole.__getitem__, "val"), selection=cut)[0]
            prints = prints or {split: samples.fingerprint() for split, samples in whole.items()}
        size = (loaded[data].images.shape[-2], loaded[data].images.shape[-1])
        build_net(run, num_classes=run.data.num_classes, size=size, samples=loaded[data], steps_per_epoch=1)
    return prints


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
