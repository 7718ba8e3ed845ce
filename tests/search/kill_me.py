"""A search of a slow function, for those who kill it."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imachsr

EPOCHS, EPOCH_S = 4, 0.25
LOG, MARK = "calls", "IMACHSR_KILL_ME"
"""File of the trials that were begun, and a variable that names its folder in all processes of the search."""


def worth(x: float, epoch: int) -> float:
    return round(1 - (x - 0.4) ** 2 + 0.1 * epoch, 12)


def train(values: dict[str, Any], report: Callable[[Mapping[str, float]], object]) -> None:
    with (Path(os.environ[MARK]) / LOG).open("a") as log:
        log.write(f"{values['x']!r}\n")
    for epoch in range(1, EPOCHS + 1):
        time.sleep(EPOCH_S)
        report({"score": worth(values["x"], epoch)})


if __name__ == "__main__":
    folder, trials, mode = sys.argv[1:]
    imachsr.search(
        {"x": {"float": [0.0, 1.0]}},
        train,
        epochs=EPOCHS,
        trials=int(trials),
        output=Path(folder) / "result",
        resume=mode == "resume",
        scheduler={"kind": "asha", "grace": 1, "reduction": 2},
        sampler={"startup_trials": 5},
        budget={"concurrency": 2},
    )
