"""What is left of trials that were stopped: nothing. Also of those that had workers of their own."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

import imachsr
from imachsr.search.space import make_search
from imachsr.search.tuner import run_search
from imachsr.train import checkpoint
from imachsr.train.capacity import connect
from tests.search.test_tuner import EPOCHS, GOOD, lines, raw_search


@pytest.fixture(scope="module")
def whole_ray(root: Path) -> Iterator[None]:
    """With the dashboard, without which nested workers are not cleaned up, and which is asked for what is left; in place of own_ray meanwhile."""
    was_there = ray.is_initialized()
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        connect(cpus=4, has_dashboard=True)
        yield
        ray.shutdown()
        if was_there:
            connect(cpus=2)


def worse_and_worse(values: dict[str, Any], report: Callable[[Mapping[str, float]], object]) -> None:
    for _ in range(EPOCHS):
        report({"score": -time.time()})
        time.sleep(0.1)  # it is stopped meanwhile


def left() -> dict[str, int]:
    """Actors and placement groups that are there, files and sockets of this process."""
    titles = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            titles.append(" ".join(process.cmdline()))
    # An idle worker has no actor; the dashboard's agents are Ray's own.
    actors = [title for title in titles if title.startswith("ray::") and not title.startswith(("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv"))]
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return {"actors": len(actors), "groups": len(groups), "files": psutil.Process().num_fds()}


def settled(expected: dict[str, int], *, seconds: float = 30.0) -> dict[str, int]:
    """What is left once it is no more than expected, or after some time."""
    end = time.monotonic() + seconds
    while True:
        found = left()
        if all(found[key] <= expected[key] for key in expected) or time.monotonic() > end:
            return found
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [200])
def test_trials_that_are_stopped_leave_no_actor_group_or_file_handle(whole_ray: None, tmp_path: Path, trials: int) -> None:
    options: dict[str, Any] = {"epochs": EPOCHS, "scheduler": {"kind": "asha", "grace": 1, "reduction": 2}, "budget": {"concurrency": 4}}
    imachsr.search({"x": {"float": [0.0, 1.0]}}, worse_and_worse, trials=4, output=tmp_path / "first", **options)
    before = left()
    found = imachsr.search({"x": {"float": [0.0, 1.0]}}, worse_and_worse, trials=trials, output=tmp_path / "out", **options)
    states = [trial["state"] for trial in found.summary["trials"]]
    assert states.count("PRUNED") > 0.8 * trials
    # A trial that is done gives its process to the next one: the pool may keep a handle more or less.
    allowed = {**before, "files": before["files"] + 8}
    after = settled(allowed)
    assert all(after[key] <= allowed[key] for key in allowed), (before, after)


@pytest.mark.slow
def test_trials_of_two_workers_are_searched_stopped_and_cleaned_up(whole_ray: None, tmp_path: Path) -> None:
    raw = raw_search([], budget={"trials": 4, "concurrency": 2, "workers_per_trial": 2})
    # One after the other in pairs: the first pair fills the rungs, and of the second whoever is worse is stopped.
    raw["space"] = {"model.shares": {"choice": [GOOD, [0.1] * 4, [0.2] * 4]}, "method.alpha": {"float": [0.1, 1.0]}}
    raw["points"] = [{"model.shares": [0.1] * 4, "method.alpha": 0.3}, {"model.shares": [0.2] * 4, "method.alpha": 0.4}]
    raw["run"] = {**raw["run"], "model": {**raw["run"]["model"], "fault": "sleep"}}
    before, said = left(), list[str]()
    summary, _ = run_search(make_search(raw), tmp_path / "out", say=said.append)
    assert any("2 trials at a time: the cluster holds 2, each with 2 workers of 1 CPU" in line for line in said), said
    states = {trial["number"]: trial["state"] for trial in summary["trials"]}
    assert summary["finished"]
    assert states[0] == "COMPLETE"
    assert set(states.values()) == {"COMPLETE", "PRUNED"}, summary["trials"]
    for trial in summary["trials"]:
        own = [line for line in lines(tmp_path / "out") if line["trial"] == trial["number"]]
        assert [line["epoch"] for line in own] == list(range(1, trial["epochs"] + 1))
        folder = tmp_path / "out" / "trials" / f"{trial['number']:04d}"
        if trial["state"] == "COMPLETE":
            assert trial["epochs"] == EPOCHS
            assert checkpoint.exists(folder)
            assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(range(1, EPOCHS + 1))
        else:
            assert trial["epochs"] < EPOCHS
            assert not checkpoint.exists(folder)
    allowed = {**before, "files": before["files"] + 16}
    after = settled(allowed)
    assert all(after[key] <= allowed[key] for key in allowed), (before, after)
    assert ray.available_resources()["CPU"] == 4
