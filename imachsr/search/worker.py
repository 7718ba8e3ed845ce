"""A trial where it runs: in a Ray worker, which knows neither the search nor its driver."""

import contextlib
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imachsr.config.load import make_run
from imachsr.config.schema import Run
from imachsr.data.splits import Selection
from imachsr.search.mirror import trial_uri
from imachsr.train.applied import live
from imachsr.train.courier import Courier
from imachsr.train.device import Machine, decide
from imachsr.train.faults import hang_guard, sweep
from imachsr.train.footprint import Footprint, TooLargeError, fair_share_mib, measure
from imachsr.train.loop import train
from imachsr.train.stopping import TrainingStopped
from imachsr.train.upload import RESULT, Mirror

Report = Callable[[Mapping[str, Any]], object]
Row = dict[str, Any]
_measured: dict[str, Footprint] = {}


class Messages:
    """What a worker tells: rows, the first with what the trial is made of; that it would take too much; or what was raised.

    Args:
        send: Takes one mapping with one text, since Tune would split a mapping at its slashes.
    """

    def __init__(self, send: Callable[[dict[str, str]], object]) -> None:
        self._send = send
        self._start: dict[str, Any] = {}

    def start(self, found: Mapping[str, Any]) -> None:
        """Say with the next row what the trial is made of."""
        self._start |= found

    def row(self, row: Mapping[str, Any]) -> None:
        """Tell an epoch."""
        start, self._start = self._start, {}
        self._send({"message": json.dumps({"row": dict(row), **({"start": start} if start else {})})})

    def infeasible(self, found: Mapping[str, Any]) -> None:
        """Tell that the trial is not begun."""
        self._send({"message": json.dumps({"infeasible": dict(found)})})

    def error(self, error: BaseException) -> None:
        """Tell what was raised: it would be raised again, so that it is not retried. A worker that dies is retried by Tune."""
        self._send({"message": json.dumps({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})})


def run_training(trial: Mapping[str, Any], job: Mapping[str, Any], messages: Messages) -> None:
    """Train a trial's run, scored as the search wants it.

    Args:
        trial: ``config`` (all settings), ``output`` (folder), ``reported`` (epochs that the driver knows).
        job: The same for all trials: ``score_on``, ``selection``, ``limits``, ``trials`` (at a time on a machine), ``workers`` (of a trial),
            ``cpus`` (of a worker), ``board`` (where trials of several workers are stopped), ``storage`` (of the search).
        messages: To the driver.
    """
    run, output = make_run(trial["config"]), Path(trial["output"])
    with hang_guard(run.recovery.hang_minutes if job["workers"] == 1 else None, output, 0) as is_alive:
        # One that is continued has shown that it fits; a busier machine must not end it.
        if not trial["reported"] and (too_much := _beyond(run, job)) is not None:
            messages.infeasible(too_much)
            return
        if (footprint := _measured.get(_footprint_key(run))) is not None:
            messages.start({"footprint": asdict(footprint)})
        _train(run, output, trial, job, messages, is_alive)
    sweep(output)


def _train(run: Run, output: Path, trial: Mapping[str, Any], job: Mapping[str, Any], messages: Messages, is_alive: Callable[[], object]) -> None:
    """In this process, or by workers of its own."""
    scoring = {"evaluate_on": job["score_on"], "selection": Selection(**job["selection"])}
    courier = Courier(trial_uri(job["storage"], trial["number"])) if job["storage"] is not None else None
    if job["workers"] == 1:
        mirror = None if courier is None else Mirror(courier, output, keep=run.recovery.keep, names=RESULT)
        with contextlib.nullcontext() if mirror is None else mirror:
            train(
                run,
                output=output,
                report=messages.row,
                resume=True,
                reported=trial["reported"],
                on_step=lambda step, steps: is_alive(),
                on_built=lambda training: messages.start({"live": live(training)}),
                mirror=mirror,
                **scoring,
            )
        return
    from imachsr.train.ray_train import train_distributed

    with contextlib.suppress(TrainingStopped):  # as the driver wanted
        train_distributed(
            run,
            workers=job["workers"],
            output=output,
            report=messages.row,
            resume=True,
            reported=trial["reported"],
            courier=courier,
            cpus=job["cpus"],
            is_stopped=lambda: job["board"].has(trial["number"]),
            on_built=lambda facts: messages.start({"live": facts}),
            **scoring,
        )


def _beyond(run: Run, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of the limits a run is beyond, and by which share of them; None when it keeps them."""
    limits = {name: limit for name, limit in job["limits"].items() if limit is not None}
    if not limits:
        return None
    if limits.get("memory_mib") == "auto":
        device = decide(run.compute, Machine.here()).device
        limits["memory_mib"] = fair_share_mib(device, trials=sharing(device, trials=job["trials"], gpus=job["gpus"]))
    try:
        footprint = _footprint(run, job["workers"])
    except TooLargeError as error:
        return {"excess": {"memory_mib": 1.0}, "why": f"limits.memory_mib={limits.get('memory_mib', 0):.0f}: {error}", "footprint": None}
    found = asdict(footprint)
    excess = {name: found[name] / limit - 1 for name, limit in limits.items() if found[name] > limit}
    if not excess:
        return None
    words = [f"limits.{name}={limits[name]:.0f}, but a trial would take {found[name]:.0f}" for name in excess]
    return {"excess": excess, "why": "infeasible: " + "; ".join(words), "footprint": found}


def sharing(device: str, *, trials: int, gpus: float) -> int:
    """How many trials, or workers of one, share the memory that each sees: a node's, or that of its GPU.

    Args:
        device: "cpu" or "cuda".
        trials: On a node at a time, >= 1.
        gpus: That each reserves, >= 0; with 0 all are on the same one.
    """
    return trials if device != "cuda" or not gpus else max(1, int(1 / gpus + 1e-5))


def _footprint(run: Run, workers: int) -> Footprint:
    """Measured once in a process for what it depends on: a learning rate changes neither memory nor time."""
    key = _footprint_key(run)
    if key not in _measured:
        _measured[key] = measure(run, run.data.load("train"), workers=workers)
    return _measured[key]


def _footprint_key(run: Run) -> str:
    method = run.method.model_dump(mode="json", include={"standard", "loss", "entropy", "grad_ratio"})
    weights = [run.method.alpha > 0, run.method.beta > 0]
    parts = run.model_dump(mode="json", include={"data", "model", "output_loss", "compute"})
    return json.dumps([parts, method, weights, run.optimizer.batch_size, run.optimizer.accumulate, run.optimizer.ema], sort_keys=True)


def run_function(function: Callable[..., object], trial: Mapping[str, Any], messages: Messages) -> None:
    """Call the user's function with a trial's values; one that is called again, since its worker died, reports again from its first epoch on."""
    messages.start({"live": trial["config"]})
    epoch = 0

    def report(row: Mapping[str, Any]) -> None:
        nonlocal epoch
        epoch += 1
        messages.row({**{key: _number(key, value) for key, value in row.items()}, "epoch": epoch})

    function(dict(trial["config"]), report)


def _number(key: str, value: Any) -> float | int:
    """A number of any library's as a plain one."""
    if isinstance(value, (bool, int, float)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"a row must hold numbers, but {key} is {value!r}") from None
