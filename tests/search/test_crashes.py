"""A driver that is ended at any of its steps, for real, and the one that goes on."""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.engine.default import DefaultDialect

from imachsr.search.database import FILE
from imachsr.search.driver import Driver
from imachsr.search.scheduler import Rungs
from imachsr.search.space import Search
from tests.search.play import EPOCHS, play, score, toy_driver, toy_search

ENDED = 77


def searched() -> Search:
    """Two arms with two seeds, two points of which one is another's twin, and what the sampler says: eleven trials that count."""
    arms = [{"name": "one", "set": {"x": 0.1}}, {"name": "two", "set": {"x": 0.9}}]
    return toy_search(arms=arms, seeds=[0, 1], points=[{"x": 0.35}, {"x": 0.35}, {"x": 0.55}], budget={"trials": 11})


def answer(values: dict[str, Any], epoch: int) -> dict[str, Any]:
    """By x: some fail in their second epoch, some do not fit."""
    digit = int(values["x"] * 1000) % 10
    if values["x"] in (0.1, 0.9, 0.35, 0.55) or digit < 6:
        return score(values, epoch)
    if digit < 8:
        return {"error": "it broke"} if epoch == 2 else score(values, epoch)
    return {"infeasible": {"memory_mib": 0.5}}


def steps(at: int | None) -> Iterator[int]:
    """Counts what makes something durable (a commit, a flush to the disk, a rename), and ends the process before or after the one that `at` names."""
    count = 0

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                os._exit(ENDED)
            found = function(*args, **kwargs)
            count += 1
            if count == at:
                os._exit(ENDED)
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultDialect, "do_commit", counted(DefaultDialect.do_commit))
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(os, "replace", counted(os.replace))
        yield 0
        yield count


def run_once(folder: Path, at: int | None, *, resume: bool = False) -> int:
    """A whole search, or up to a step; how many there were."""
    counter = steps(at)
    next(counter)
    driver = toy_driver(folder, searched(), resume=resume)
    play(driver, answer=answer)
    count = next(counter)
    driver.close()
    next(counter, None)
    return count


def killed_at(folder: Path, at: int, *, resume: bool = False) -> bool:
    """The same in a process of its own; whether it got to the step."""
    child = os.fork()
    if child == 0:
        try:
            run_once(folder, at, resume=resume)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == ENDED


def holds(folder: Path) -> bool:
    """Whether a search has begun: else the same command is given again."""
    return (folder / FILE).exists()


def assert_nothing_lost(folder: Path, driver: Driver) -> None:
    summary, _ = driver.close()
    trials = summary["trials"]
    assert [item["number"] for item in trials] == list(range(len(trials)))
    assert sum(item["feasible"] for item in trials) == 11
    assert [(item["arm"], item["seed"]) for item in trials if item["arm"]] == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert [item["params"]["x"] for item in trials if item["origin"] == "point"] == [0.35, 0.55]
    sampled = [item["params"]["x"] for item in trials if item["arm"] is None]
    assert len(set(sampled)) == len(sampled)
    assert {item["state"] for item in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert set(Counter((line["trial"], line["epoch"]) for line in lines).values()) == {1}
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / FILE}")
    assert [trial.user_attrs["proposal"]["number"] for trial in study.trials] == list(range(len(trials)))
    rungs, stopped = Rungs(levels=(1, 2), reduction=2), set()
    for line in lines:
        if rungs.arrive(line["trial"], line["epoch"], line["score"]) and line["arm"] is None:
            stopped.add(line["trial"])
    for item, trial in zip(trials, study.trials, strict=True):
        own = [line for line in lines if line["trial"] == item["number"]]
        assert [line["epoch"] for line in own] == list(range(1, item["epochs"] + 1))
        assert all(line["score"] == score({"x": item["params"]["x"]}, line["epoch"])["score"] for line in own)
        assert trial.intermediate_values == {line["epoch"]: line["score"] for line in own}
        assert trial.state.name == item["state"]
        told = [answer(item["params"], epoch) for epoch in range(1, EPOCHS + 1)]
        if "infeasible" in told[0]:
            assert (item["state"], item["feasible"], trial.constraints) == ("PRUNED", False, {"memory_mib": 0.5})
        elif item["number"] in stopped:
            assert (item["state"], item["why"]) == ("PRUNED", "stopped by the scheduler")
        elif "error" in told[1]:
            assert (item["state"], item["error"], item["epochs"]) == ("FAIL", "it broke", 1)
        else:
            assert (item["state"], trial.value) == ("COMPLETE", own[-1]["score"])


def kill_and_go_on(folder: Path, at: int) -> bool:
    """Whether there was such a step."""
    if not killed_at(folder, at):
        return False
    again = toy_driver(folder, searched(), resume=holds(folder))
    play(again, answer=answer)
    assert_nothing_lost(folder, again)
    return True


def test_an_unbroken_search_is_as_it_should_be(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path, searched())
    play(driver, answer=answer)
    states = {item["state"] for item in driver.trials()}
    assert states == {"COMPLETE", "PRUNED", "FAIL"}
    assert any(not item["feasible"] for item in driver.trials())
    assert_nothing_lost(tmp_path, driver)


@pytest.mark.long
@pytest.mark.parametrize("part", range(6))
def test_a_driver_killed_at_a_step_loses_and_repeats_nothing(tmp_path: Path, part: int) -> None:
    # A step of each kind from the beginning, the middle and the end.
    for at in (1 + 3 * part, 31 + 17 * part, 160 + 13 * part):
        folder = tmp_path / str(at)
        folder.mkdir()
        assert kill_and_go_on(folder, at)


@pytest.mark.slow
def test_a_driver_killed_at_every_seventh_step_loses_and_repeats_nothing(tmp_path: Path) -> None:
    at = 2
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        if not kill_and_go_on(folder, at):
            break
        at += 7
    assert at > 200


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_a_driver_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    folder, kills = tmp_path / "result", 0
    folder.mkdir()
    while killed_at(folder, generator.randrange(3, 90), resume=holds(folder)):
        kills += 1
        assert kills < 60
    assert kills >= 3
    again = toy_driver(folder, searched(), resume=True)
    assert again.remaining == 0
    assert play(again, answer=answer) == []
    assert_nothing_lost(folder, again)
