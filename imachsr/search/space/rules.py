"""What is compared, what stops trials, what they may take, and how much is spent."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from imachsr.search.scheduler import Hyperband, Median, Mode, Never, Rule, Rungs, rung_levels
from imachsr.search.space.conditions import Part

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Metric(Part):
    """What is compared.

    Attributes:
        name: A key of the rows; select/miou, select/accuracy and select/iou/CLASS are percentages, time/step_ms is in milliseconds.
        mode: max or min, whichever is better; by itself min for calibration errors, losses and times, else max.
    """

    name: str = "select/miou"
    mode: Mode = "max"

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and isinstance(name := raw.get("name"), str) and "mode" not in raw:
            return {**raw, "mode": "max" if is_higher_better(name) else "min"}
        return raw


_LESS = {"ece", "nll", "loss", "wall_s", "held_s"}
_MORE = {"miou", "boundary_iou", "accuracy", "images_per_s"}


def known_mode(metric: str) -> Mode | None:
    """Which way a metric is better; None of one whose name does not tell. A class may be called as it likes."""
    last = metric.rpartition("/")[2]
    if "/iou/" in metric or last in _MORE:
        return "max"
    return "min" if metric.startswith("time/") or last in _LESS else None


def is_higher_better(metric: str) -> bool:
    """Whether more of a metric is better: of all but calibration errors, likelihoods lost, losses and times."""
    return known_mode(metric) != "min"


class Scheduler(Part):
    """What stops trials early; arms are never stopped.

    Attributes:
        kind: asha, hyperband (ASHA with several first rungs), median (worse than the median of the others) or none.
        grace: Epochs >= 1 before a trial can be stopped.
        reduction: One in so many goes on at each rung, >= 2; of asha and hyperband.
        least: Other trials that must have come as far before one is stopped, >= 1; of median.
        fidelity: What the first rungs save beside epochs: nothing (epochs), samples (data) or pixels (resolution); of asha and hyperband. Every
            trial, arms too, has ``low`` of them up to the first rung and more from rung to rung, all after the last; whole images are scored.
        low: Share of samples or pixels up to the first rung, in (0, 1).
    """

    kind: Literal["asha", "hyperband", "median", "none"] = "asha"
    grace: int = Field(2, ge=1)
    reduction: int = Field(3, ge=2)
    least: int = Field(3, ge=1)
    fidelity: Literal["epochs", "data", "resolution"] = "epochs"
    low: float = Field(0.25, gt=0, lt=1)

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Settings that this kind does not read."""
        has_rungs = self.kind in ("asha", "hyperband")
        unread = {"grace": self.kind == "none", "reduction": not has_rungs, "least": self.kind != "median", "fidelity": not has_rungs}
        unread["low"] = not has_rungs or self.fidelity == "epochs"
        return tuple(name for name, is_unread in unread.items() if is_unread)

    def progressive(self, max_epochs: int) -> dict[str, Any] | None:
        """``optimizer.progressive`` of every trial; None where only epochs are saved."""
        if self.fidelity == "epochs" or self.kind not in ("asha", "hyperband"):
            return None
        levels = rung_levels(grace=self.grace, reduction=self.reduction, max_epochs=max_epochs)
        shares = [self.low ** (1 - place / len(levels)) for place in range(len(levels))]
        return {"of": self.fidelity, "until": list(levels), "shares": shares} if levels else None

    def rule(self, *, max_epochs: int, mode: Mode) -> Rule:
        """The rule, with nothing recorded yet."""
        if self.kind == "none":
            return Never()
        if self.kind == "median":
            return Median(grace=self.grace, max_epochs=max_epochs, least=self.least, mode=mode)
        levels = rung_levels(grace=self.grace, reduction=self.reduction, max_epochs=max_epochs)
        return (Rungs if self.kind == "asha" else Hyperband)(levels=levels, reduction=self.reduction, mode=mode)


class Limits(Part):
    """What a trial may take: measured in a few steps on a few images before it starts; beyond, it is infeasible, and the sampler learns that.

    Attributes:
        memory_mib: Peak memory of a worker, MiB > 0 (of its GPU, or else of the process); auto: its share of what the machine has free; null: any.
        step_ms: Time of a training step, milliseconds > 0; null: any. A search with such a limit depends on how busy the machine is.
    """

    memory_mib: Literal["auto"] | Positive | None = "auto"
    step_ms: Positive | None = None


class Prices(Part):
    """What an hour costs, in any currency.

    Attributes:
        cpu_hour: Of a CPU, >= 0.
        gpu_hour: Of a GPU, >= 0.
    """

    cpu_hour: float = Field(0.0, ge=0, allow_inf_nan=False)
    gpu_hour: float = Field(0.0, ge=0, allow_inf_nan=False)


class EarlyEnd(Part):
    """When to end before the budget is spent, since little is to be expected of the rest.

    Attributes:
        gain: Least improvement on the best that counts, in the metric's unit, > 0.
        probability: End when the estimated probability that one of the trials left improves by ``gain`` is below this, in (0, 1).
        after: Whole sampled trials before it is estimated, >= 4.
    """

    gain: Positive
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.05
    after: int = Field(8, ge=4)


class Confirm(Part):
    """What follows a finished search by itself: its best and its arms again with fresh paired seeds, on data that it never scored.

    Attributes:
        top: Best sampled configurations, beside all arms, >= 1.
        seeds: Fresh ones of each, >= 1, as many as one of the comparisons needs to win.
        epochs: Of every run, >= 1; null: those of the search.
    """

    top: int = Field(3, ge=1)
    seeds: int = Field(8, ge=1)
    epochs: int | None = Field(None, ge=1)


class Budget(Part):
    """How much; the search ends at whichever comes first, at the latest an epoch after it.

    Attributes:
        trials: In all, >= 1, with the arms.
        concurrency: At a time, >= 1, never more than the cluster holds; auto: as many as that.
        cpus_per_trial: CPUs, and threads, of each worker of a trial, >= 1.
        gpus_per_trial: GPUs of each worker, >= 0; fractions share one.
        workers_per_trial: Data-parallel workers of a trial, >= 1; more than one by Ray Train.
        hours: Wall time > 0, over all sittings; null: any.
        cpu_hours: CPUs times hours that trials hold them, > 0; null: any.
        gpu_hours: GPUs times hours, > 0; null: any.
        money: Of cpu_hours and gpu_hours at ``prices``, > 0; null: any.
        prices: Of an hour.
        early_end: When little is to be expected of the trials left; null: never before the budget is spent.
    """

    trials: int = Field(12, ge=1)
    concurrency: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: float = Field(0.0, ge=0)
    workers_per_trial: int = Field(1, ge=1)
    hours: Positive | None = None
    cpu_hours: Positive | None = None
    gpu_hours: Positive | None = None
    money: Positive | None = None
    prices: Prices = Prices()
    early_end: EarlyEnd | None = None

    @model_validator(mode="after")
    def _check(self) -> "Budget":
        if self.money is not None and not (self.prices.cpu_hour or self.prices.gpu_hour):
            raise ValueError("`prices` must be given with `money`: prices.cpu_hour or prices.gpu_hour, what an hour costs")
        if self.workers_per_trial > 1 and self.gpus_per_trial not in (0, 1):
            raise ValueError(f"`gpus_per_trial` must be 0 or 1 with several workers, one each, but got {self.gpus_per_trial:g}")
        if self.gpu_hours is not None and not self.gpus_per_trial:
            raise ValueError("`gpus_per_trial` must be above 0 with `gpu_hours`, but is 0: no GPU hour would ever be spent")
        return self
