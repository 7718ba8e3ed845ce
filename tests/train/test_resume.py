"""Trainings that are killed for real, again and again, end bitwise like one that never was."""

import json
import multiprocessing as mp
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from imachsr.config.schema import Run
from imachsr.train import checkpoint
from imachsr.train.loop import train
from tests.train.toys import toy_run, without_clock

# Everything that moves: dropout, augmentation and sampling draw; BatchNorm, the mean of the weights, the loss's scale, the balance, schedules go on.
EVERYTHING: dict[str, Any] = {
    "model__kwargs": {"dropout": 0.3, "has_batch_norm": True},
    "method__loss": "infonce",
    "method__schedule": "linear",
    "method__grad_ratio": 0.5,
    "optimizer__epochs": 3,
    "optimizer__accumulate": 2,
    "optimizer__ema": 0.9,
    "data__kwargs": {"count": 16},
    "compute__precision": "float16",
}
STEPS = 12
FORK = mp.get_context("fork")  # what is imported is there at once; a child that is killed is a process like any other


def everything(every: int | None) -> Run:
    return toy_run(**EVERYTHING, recovery__checkpoint_steps=every)


def start(run: Run, output: Path, kill_at: int = 0) -> Any:
    def on_step(step: int, steps: int) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=lambda: train(run, output=output, resume=True, on_step=on_step))
    child.start()
    return child


def assert_equal(one: Any, other: Any, at: str = "") -> None:
    """Bitwise, all the way down; but for clocks and memory."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            assert_equal(one[key], other[key], f"{at}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), at
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{at}/{index}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, at
        assert torch.equal(one, other), at
    else:
        assert one == other, at


def state_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds, but for the settings of recovery and clocks."""
    state = checkpoint.load(folder)
    state["run"] = {key: value for key, value in json.loads(state["run"]).items() if key != "recovery"}
    state["history"] = [without_clock(row) for row in json.loads(state["history"])]
    del state["wall_s"]
    state["progress"] = [{**each, "times": len(each["times"]), "seconds": 0} for each in json.loads(state["progress"])]
    return state


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(everything(None), output=folder)
    state = state_of(folder)
    assert state["step"] == STEPS
    assert state["scaler"]["_growth_tracker"] > 0
    assert bool((state["balance"][0] > 0).all())
    assert state["net"]["_extra_state"] == 2 * STEPS
    return state


@pytest.mark.long
@pytest.mark.parametrize(("every", "kill_at", "left"), [(1, 1, 0), (1, 6, 5), (1, 12, 11), (3, 6, 4), (3, 8, 6), (None, 4, 0), (None, 6, 4)])
def test_killed_at_a_step_and_resumed_is_bitwise_as_never_killed(
    unbroken: dict[str, Any], tmp_path: Path, every: int | None, kill_at: int, left: int
) -> None:
    run = everything(every)
    child = start(run, tmp_path, kill_at)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    # Killed after the step and before its checkpoint; four steps are an epoch.
    assert (checkpoint.load(tmp_path)["step"] if checkpoint.exists(tmp_path) else 0) == left
    torch.manual_seed(999)
    train(run, output=tmp_path, resume=True)
    assert_equal(state_of(tmp_path), unbroken)
    lines = [without_clock(json.loads(line)) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert_equal(lines, unbroken["history"])


@pytest.mark.long
@pytest.mark.parametrize("every", [1, 3])
def test_killed_at_any_moment_many_times(unbroken: dict[str, Any], tmp_path: Path, every: int) -> None:
    moments, kills = random.Random(every), 0
    while True:
        child = start(everything(every), tmp_path)
        child.join(timeout=moments.uniform(0.2, 1.2) if kills < 6 else None)
        if child.exitcode is not None:
            break
        child.kill()
        child.join()
        kills += 1
    assert child.exitcode == 0
    assert_equal(state_of(tmp_path), unbroken)


def test_only_as_many_checkpoints_stay_as_are_kept(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def steps_on_disk() -> list[int]:
        return sorted(int(path.stem) for path in (tmp_path / "checkpoints").glob("*.pt"))

    scripted = {"import": "tests.train.toys:Scripted", "shares": [0.5, 1.0, 0.5, 0.5], "steps": 2}
    run = toy_run(recovery__checkpoint_steps=1, recovery__keep=2, optimizer__epochs=4, model=scripted)
    train(run, output=tmp_path, on_step=lambda step, steps: seen.append(steps_on_disk()))
    assert seen == [[], [1], [1, 2], [2, 3], [3, 4], [4, 5], [4, 5, 6], [4, 6, 7]]  # step 4 is the end of the best epoch
    assert steps_on_disk() == [4, 7, 8]
    assert checkpoint.load(tmp_path, "best")["step"] == 4
