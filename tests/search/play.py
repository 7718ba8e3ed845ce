"""A search without Ray: a function of one knob, and what Tune does with the driver, at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from imachsr.search.driver import WAIT, Driver
from imachsr.search.space import Search, make_search
from imachsr.search.task import Function

EPOCHS = 4
FUNCTION = Function(train=lambda values, report: None, max_epochs=EPOCHS)
Answer = Callable[[dict[str, Any], int], dict[str, Any]]


def toy_search(**parts: Any) -> Search:
    raw: dict[str, Any] = {
        "function": "tests.search.play:FUNCTION",
        "space": {"x": {"float": [0.0, 1.0]}},
        "run": {"optimizer": {"epochs": EPOCHS}},
        "arms": [],
        "metric": {"name": "score"},
        "scheduler": {"grace": 1, "reduction": 2},
        "sampler": {"startup_trials": 3},
        "budget": {"trials": 8},
    }
    return make_search({**raw, **parts})


def toy_driver(folder: Path, search: Search | None = None, **options: Any) -> Driver:
    return Driver(folder, search or toy_search(), **{"task": FUNCTION, **options})


def score(values: dict[str, Any], epoch: int) -> dict[str, Any]:
    """A curve that rises to what x is worth: at an epoch there are always better and worse ones."""
    return {"score": round(1 - (values["x"] - 0.4) ** 2 + 0.1 * epoch, 12)}


def play(driver: Driver, *, concurrency: int = 2, answer: Answer = score, most: int | None = None) -> list[int]:
    """Run all, or so many, trials, an epoch of each in turn; the numbers in the order in which they began.

    An answer may hold ``error``, or ``infeasible``, instead of numbers.
    """
    began: list[int] = []
    running: dict[int, tuple[dict[str, Any], int]] = {}
    is_over = False
    while True:
        while not is_over and len(running) < concurrency and (most is None or len(began) < most):
            proposal = driver.propose()
            if proposal == WAIT:
                assert running
                break
            if proposal is None:
                is_over = True
                break
            began.append(proposal["number"])
            running[proposal["number"]] = (proposal["config"], proposal["reported"])
        if not running:
            return began
        for number, (config, epoch) in tuple(running.items()):
            told = answer(config, epoch + 1)
            running[number] = (config, epoch + 1)
            if "error" in told:
                is_stopped = driver.on_error(number, told["error"])
            elif "infeasible" in told:
                is_stopped = driver.on_infeasible(number, {"excess": told["infeasible"], "why": "infeasible", "footprint": None})
            else:
                is_stopped = driver.on_row(number, {"epoch": epoch + 1, **told})
            if is_stopped or epoch + 1 == EPOCHS:
                driver.on_end(number)
                del running[number]
