"""Requests from outside: signals to a real process, notices, and a clock."""

import multiprocessing as mp
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.train import checkpoint, epochs
from imachsr.train.loop import train
from imachsr.train.stopping import StopRequest, TrainingStopped
from tests.train.test_resume import assert_equal, state_of
from tests.train.toys import toy_run

IMACHSR = str(Path(sys.executable).parent / "imachsr")
SLOW: dict[str, Any] = {
    "model": {"import": "tests.train.toys:faulty", "fault": "sleep", "dropout": 0.3},  # 0.2 s a step
    "data__kwargs": {"count": 32},
    "optimizer__epochs": 3,
}


def wait_for(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def begin(command: list[str], root: Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "WANDB_MODE": "disabled"}
    return subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def steps_on_disk(folder: Path) -> int:
    return max((int(path.stem) for path in (folder / "checkpoints").glob("*.json")), default=0)


@pytest.mark.slow
def test_a_signal_ends_it_within_a_step_and_the_printed_command_goes_on_bitwise(tmp_path: Path, root: Path) -> None:
    run = toy_run(**SLOW, recovery__checkpoint_steps=2)
    (tmp_path / "run.yaml").write_text(dump_yaml(run_to_dict(run)))
    folder = tmp_path / "stopped"
    command, before = [IMACHSR, "train", "run.yaml", "optimizer.lr=0.02", "--output", str(folder), "--wandb", "disabled"], 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = begin(command, root, tmp_path)
        wait_for(lambda before=before: steps_on_disk(folder) > before)
        at = steps_on_disk(folder)
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
        assert process.returncode == code, told
        before = checkpoint.load(folder)["step"]
        assert at <= before <= at + 3  # with the step under way, and the one that the test was late by
        assert f"stopped by {number.name} after step {before}" in told
        command = shlex.split(told.split("to go on: ")[1].splitlines()[0])
        assert command[0] == "imachsr"
        command[0] = IMACHSR
    process = begin(command, root, tmp_path)
    assert process.wait(timeout=120) == 0
    train(run.model_copy(update={"optimizer": run.optimizer.model_copy(update={"lr": 0.02})}), output=tmp_path / "unbroken")
    assert_equal(state_of(folder), state_of(tmp_path / "unbroken"))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_its_processes_ends_a_training_with_a_checkpoint(tmp_path: Path, root: Path, number: signal.Signals) -> None:
    run = toy_run(**SLOW, recovery__checkpoint_steps=2, compute__loader_workers=1)
    (tmp_path / "run.yaml").write_text(dump_yaml(run_to_dict(run)))
    command = [IMACHSR, "train", "run.yaml", "--output", str(tmp_path / "run"), "--wandb", "disabled"]
    process = begin(command, root, tmp_path, start_new_session=True)
    wait_for(lambda: steps_on_disk(tmp_path / "run") > 0)
    at = steps_on_disk(tmp_path / "run")
    os.killpg(process.pid, number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + number, told
    assert checkpoint.load(tmp_path / "run")["step"] in range(at, at + 4)
    assert f"stopped by {number.name} after step" in told
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


def test_a_second_sigint_ends_at_once(tmp_path: Path) -> None:
    def stuck() -> None:
        train(toy_run(), output=tmp_path, on_step=lambda step, steps: (tmp_path / "stuck").touch() if step < 2 else time.sleep(60))

    child = mp.get_context("fork").Process(target=stuck)
    child.start()
    wait_for((tmp_path / "stuck").exists)
    time.sleep(0.3)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGINT)
    time.sleep(0.3)
    assert child.is_alive()  # it waits for its step
    os.kill(child.pid, signal.SIGINT)
    child.join(timeout=5)
    assert child.exitcode == 1


def test_handlers_are_put_back_whatever_happens() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopRequest()

    def fail() -> None:
        with stop:
            signal.raise_signal(signal.SIGTERM)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (stop.is_set, stop.number) == (True, signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_before_the_last_step_of_an_epoch_loses_no_score(tmp_path: Path) -> None:
    def at_the_end(step: int, steps: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    run = toy_run(optimizer__epochs=2)
    with pytest.raises(TrainingStopped, match="stopped by SIGTERM after step 2"):
        train(run, output=tmp_path / "stopped", on_step=at_the_end)
    assert (tmp_path / "stopped" / "metrics.jsonl").read_text() == ""
    train(run, output=tmp_path / "stopped", resume=True)
    train(run, output=tmp_path / "unbroken")
    assert_equal(state_of(tmp_path / "stopped"), state_of(tmp_path / "unbroken"))


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notices are asked for after every step."""
    monkeypatch.setattr(epochs, "POLL_S", 0.0)


@pytest.mark.usefixtures("polled")
def test_a_notice_to_save_saves_once_and_again_after_it_was_gone(tmp_path: Path) -> None:
    told = iter(["", "save", "save", "", "save", "save"])
    seen: list[int] = []
    run = toy_run(data__kwargs={"count": 28}, optimizer__epochs=1)
    train(run, output=tmp_path, notice=lambda: next(told, "save"), on_step=lambda step, steps: seen.append(steps_on_disk(tmp_path)))
    assert seen == [0, 0, 2, 2, 2, 5, 5]


@pytest.mark.usefixtures("polled")
def test_a_notice_to_stop_ends_it_with_a_checkpoint(tmp_path: Path) -> None:
    told = iter(["", "", "stop"])
    with pytest.raises(TrainingStopped, match="^stopped after step 3$"):
        train(toy_run(), output=tmp_path, notice=lambda: next(told))
    assert checkpoint.load(tmp_path)["step"] == 3


def test_notices_are_asked_for_every_few_seconds_only() -> None:
    asked: list[float] = []

    def notice() -> Any:
        asked.append(time.monotonic())
        return ""

    train(toy_run(), notice=notice)
    assert asked == []  # six steps of milliseconds


def test_checkpoints_come_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    seconds = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: seconds, perf_counter=time.perf_counter)  # however long a step takes here
    monkeypatch.setattr("imachsr.train.epochs.time", clock)

    def slow(step: int, steps: int) -> None:
        nonlocal seconds
        seen.append(steps_on_disk(tmp_path))
        seconds += 15.0 if step in (2, 5) else 2.0

    run = toy_run(data__kwargs={"count": 28}, optimizer__epochs=1, recovery__checkpoint_minutes=0.25)
    train(run, output=tmp_path, on_step=slow)
    assert seen == [0, 0, 2, 2, 2, 5, 5]


def test_each_step_is_told_with_the_number_of_all() -> None:
    told: list[tuple[int, int]] = []
    train(toy_run(data__kwargs={"count": 14}), on_step=lambda step, steps: told.append((step, steps)))
    assert told == [(step, 9) for step in range(1, 10)]  # three batches of four an epoch, two samples left out


@pytest.mark.long
@pytest.mark.parametrize("is_ignored", [False, True])  # as Ctrl-C is in the background of a script
def test_termination_can_be_answered_as_an_interrupt(is_ignored: bool) -> None:
    code = f"""
import os, signal
from imachsr.train.stopping import take_termination_as_interrupt, was_terminated
if {is_ignored}:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
take_termination_as_interrupt()
assert not was_terminated()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("answered", was_terminated())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("answered True\n", 0), done.stderr
