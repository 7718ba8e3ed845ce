"""The training loop on one Ray Train worker."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError

from imachsr.cluster import require_marked
from imachsr.config.load import make_run
from imachsr.config.schema import Run
from imachsr.data.splits import Selection
from imachsr.train.applied import live
from imachsr.train.courier import Courier
from imachsr.train.desk import Desk
from imachsr.train.epochs import Notice
from imachsr.train.faults import for_the_driver, hang_guard, is_of_a_peer, is_worth_a_retry
from imachsr.train.loop import train
from imachsr.train.parallel import Row
from imachsr.train.state import Training
from imachsr.train.stopping import TrainingStopped
from imachsr.train.stored import clear_of_others
from imachsr.train.upload import RESULT, Mirror

BEAT_S = 1.0
"""Seconds between two signs of life of the first worker."""
GRACE_S = 120.0
"""Seconds that Ray Train gives workers on a node that is taken away at a time not known."""


def work(config: dict[str, Any]) -> None:
    """What each worker of a group does, as one of its ranks."""
    desk: Desk = config["desk"]
    if desk.mistake is not None:  # the group was restarted after one, which it would only make again
        return
    run, output, scoring = make_run(config["run"]), Path(config["output"]), config["scoring"]
    if config["kind"] == "CPU":  # a GPU that a node has all the same was not reserved, and gloo would not reach it
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    is_leaving = False
    said = 0.0

    def report(row: Row) -> None:
        guard()
        if is_first:
            desk.tell("row", row)
        ray.train.report(dict(row))

    def beat(step: int, steps: int) -> None:
        nonlocal said
        guard()
        if is_first and (time.monotonic() - said > BEAT_S or step == steps):
            said = time.monotonic()
            desk.tell("step", step)

    def built(training: Training) -> None:
        if is_first:
            desk.tell("built", live(training))

    def notice() -> Notice:
        nonlocal is_leaving
        was_leaving, info = is_leaving, ray.train.get_preemption_info()
        is_leaving = info is not None
        if is_first and info is not None and not was_leaving:
            desk.tell("leaving", GRACE_S if info.deadline_ms is None else max(0.0, info.deadline_ms / 1000 - time.time()))
        # The signal wins: it comes once.
        return "stop" if desk.is_stop_asked else "save" if is_leaving else ""

    mirror = _mirror(config, run, output)
    if mirror is not None and config["is_new"]:
        clear_of_others(output, config["word"])  # before the mirror runs, which would upload it
    uploading = mirror if is_first and mirror is not None else contextlib.nullcontext()
    # The mirror outermost: at the end it may wait for longer than a step may take.
    with _concluding(mirror if is_first else None, desk), uploading, hang_guard(run.recovery.hang_minutes, output, context.get_world_rank()) as guard:
        try:
            if mirror is None:
                require_marked(output, config["word"])
            if is_first:
                desk.tell("start", context.get_world_size())
            # resume: a worker group that is restarted after a failure goes on from the last checkpoint that is on disk.
            train(
                run,
                output=output,
                report=report,
                evaluate_on=scoring["evaluate_on"],
                selection=Selection(**scoring["selection"]),
                resume=True,
                reported=config["reported"],
                on_step=beat,
                notice=notice,
                on_built=built,
                mirror=mirror,
            )
        except TrainingStopped as stopped:
            if is_first:
                desk.tell("stopped", stopped.step)
            if mirror is not None:
                mirror.hurry()
        except Exception as error:
            if not is_worth_a_retry(error):
                desk.blame(for_the_driver(error))
            raise  # a mistake too, since other workers may be waiting for this one


@contextlib.contextmanager
def _concluding(mirror: Mirror | None, desk: Desk) -> Iterator[None]:
    """Tell at the end what the storage holds."""
    try:
        yield
    finally:
        if mirror is not None:
            desk.tell("said", str(mirror.stored))


def _mirror(config: dict[str, Any], run: Run, output: Path) -> Mirror | None:
    """To the storage that the training is kept in, if it is; every rank's disk is then its own."""
    if config["storage"] is None:
        return None
    desk: Desk = config["desk"]
    output.mkdir(parents=True, exist_ok=True)
    return Mirror(Courier(config["storage"]), output, keep=run.recovery.keep, names=RESULT, say=lambda line: desk.tell("said", line))


class Reporter(ray.train.UserCallback):
    """Tells the driver of Ray's controller, by which the workers can be ended, and of workers that are lost."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickled in the controller's process first, and then in those that it starts: Ray offers no other way to its handle."""
        self.__dict__.update(state)
        self._desk.tell("controller", ray.get_runtime_context().current_actor)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        is_lost = any(
            hasattr(error, "health_check_failure") or isinstance(error, RayError) or is_of_a_peer(error) for error in worker_exceptions.values()
        )
        self._desk.tell("lost", "a worker was lost" if is_lost else f"worker {ranks} failed")


@contextlib.contextmanager
def ray_intervals(start_s: float) -> Iterator[None]:
    """Ray Train's intervals, which its controller reads from the environment that its driver had; the user's own stay."""
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{start_s:g}",
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
