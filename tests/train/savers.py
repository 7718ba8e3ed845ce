"""A process that saves checkpoints and is killed while it does; forked from one that has torch already, so that hundreds can die in seconds.

Run as ``python -m tests.train.savers MODE FOLDER COUNT``; prints what it found as JSON. A process of its own, since one with threads must not fork.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imachsr.train import checkpoint

NUMBERS = 50_000


def state(value: int) -> dict[str, Any]:
    return {**dict.fromkeys(checkpoint.KEYS), "net": {"w": torch.full((NUMBERS,), float(value)), "b": torch.arange(5)}}


def value_of(loaded: dict[str, Any]) -> int:
    """The one value that all of the tensor has."""
    weights = loaded["net"]["w"]
    assert weights.shape == (NUMBERS,)
    assert bool((weights == weights[0]).all()), "parts of two checkpoints"
    return int(weights[0])


def forked(work: Callable[[], object]) -> int:
    """Number of a new process that does the work and ends."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def killed_at(event: int, work: Callable[[], object]) -> bool:
    """Do the work in a new process that is killed at its Nth call or return of any function, Python's or C's; whether it lived so long."""

    def watched() -> None:
        count = 0

        def watch(*_: Any) -> None:
            nonlocal count
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)
        work()
        sys.setprofile(None)

    _, status = os.waitpid(forked(watched), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def everywhere(folder: Path, stride: int) -> dict[str, int]:
    """Kill a save at every ``stride``-th event; every other one saves the newest step again. Afterwards the next save cleans up."""
    found = {"kills": 0, "old": 0, "new": 0}
    before, event, was_killed = folder / "before", 1, True
    checkpoint.save(before, state(1), step=1, score=9.0, keep=1)
    checkpoint.save(before, state(2), step=2, score=1.0, keep=1)
    while was_killed:
        at = folder / str(event)
        shutil.copytree(before, at, copy_function=os.link)  # no file is ever written to after it got its name
        step = 2 + event % 2
        was_killed = killed_at(event, partial(checkpoint.save, at, state(3), step=step, score=2.0, keep=1))
        now = value_of(checkpoint.load(at))
        assert now in ((2, 3) if was_killed else (3,)), f"{now} is there, killed at event {event}"
        assert value_of(checkpoint.load(at, "best")) == 1
        checkpoint.save(at, state(4), step=4, score=3.0, keep=1)
        assert value_of(checkpoint.load(at)) == 4
        assert sorted(os.listdir(at / "checkpoints")) == ["00000001.json", "00000001.pt", "00000004.json", "00000004.pt"], event
        shutil.rmtree(at)
        found["new" if now == 3 else "old"] += 1
        found["kills"] += was_killed
        event += stride
    return found


def anywhere(folder: Path, rounds: int) -> dict[str, int]:
    """Kill a process that saves on and on, at random times; what it said to be saved must be there."""
    found, generator, step = {"kills": 0, "saves": 0}, random.Random(0), 0
    for _ in range(rounds):
        read, write = os.pipe()

        def save_on(step: int = step, write: int = write) -> None:
            while True:
                step += 1
                checkpoint.save(folder, state(step), step=step, score=float(step % 7), keep=1 + step % 3)
                os.write(write, step.to_bytes(8, "big"))

        pid = forked(save_on)
        os.close(write)
        select.select([read], [], [], 60)
        time.sleep(generator.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = int.from_bytes(os.read(read, 1 << 20)[-8:], "big")
        os.close(read)
        now = value_of(checkpoint.load(folder))
        assert said <= now <= said + 1, f"{now} is there, but {said} was saved last"
        value_of(checkpoint.load(folder, "best"))
        found = {"kills": found["kills"] + 1, "saves": found["saves"] + now - step}
        step = now
    return found


def read_beside(folder: Path, saves: int) -> dict[str, int]:
    """Read all the time while another process saves and keeps one: every read gives a whole one, none older than the one before."""
    checkpoint.save(folder, state(0), step=0, score=0.0, keep=1)
    pid = forked(lambda: [checkpoint.save(folder, state(step), step=step, score=float(step), keep=1) for step in range(1, saves)])
    last, found = 0, {"reads": 0, "different": 0}
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        now = value_of(checkpoint.load(folder, "best" if found["reads"] % 2 else "latest"))
        assert now >= last
        found = {"reads": found["reads"] + 1, "different": found["different"] + (now > last)}
        last = now
    assert value_of(checkpoint.load(folder)) == saves - 1
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    modes: dict[str, Callable[[Path, int], dict[str, int]]] = {"everywhere": everywhere, "anywhere": anywhere, "read_beside": read_beside}
    print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
