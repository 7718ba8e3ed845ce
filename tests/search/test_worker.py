import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imachsr.config.load import run_to_dict
from imachsr.config.schema import Run
from imachsr.data.splits import Selection
from imachsr.search import worker
from imachsr.search.driver import Driver
from imachsr.search.space import make_search
from imachsr.search.worker import Messages, run_function, run_training
from imachsr.train import epochs, loop
from imachsr.train.footprint import Footprint, TooLargeError
from tests.search.play import EPOCHS, toy_driver
from tests.train.toys import BASE, toy_run

JOB: dict[str, Any] = {
    "score_on": "select",
    "selection": asdict(Selection(fraction=0.25, blocks=1, guard=1)),
    "limits": {"memory_mib": None, "step_ms": None},
    "trials": 2,
    "gpus": 0.0,
    "workers": 1,
    "cpus": 1,
    "board": None,
    "storage": None,
}


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_measured", {})


def told_by(work: Callable[[Messages], object]) -> list[dict[str, Any]]:
    """What the driver would hear."""
    sent: list[dict[str, str]] = []
    work(Messages(sent.append))
    assert all(set(each) == {"message"} for each in sent)  # Tune splits keys at slashes
    return [json.loads(each["message"]) for each in sent]


def trained(folder: Path, run: Run, *, reported: int = 0, **job: Any) -> list[dict[str, Any]]:
    trial = {"number": 0, "config": run_to_dict(run), "output": str(folder), "reported": reported}
    return told_by(lambda messages: run_training(trial, {**JOB, **job}, messages))


def test_a_training_tells_what_it_is_made_of_and_then_its_rows(tmp_path: Path) -> None:
    told = trained(tmp_path, toy_run(method__alpha=0.7))
    assert [set(each) for each in told] == [{"start", "row"}, {"row"}, {"row"}]
    assert told[0]["start"]["live"]["alpha"] == 0.7
    assert [each["row"]["epoch"] for each in told] == [1, 2, 3]
    assert "select/miou" in told[0]["row"]


def test_a_training_that_is_continued_tells_the_rest(tmp_path: Path) -> None:
    first = trained(tmp_path, toy_run())
    again = trained(tmp_path, toy_run(), reported=1)  # the driver died after its first row
    assert [each["row"] for each in again] == [each["row"] for each in first[1:]]
    assert again[0]["start"]["live"] == first[0]["start"]["live"]


def test_a_run_beyond_the_limits_is_not_trained(tmp_path: Path) -> None:
    (told,) = trained(tmp_path, toy_run(), limits={"memory_mib": 10.0, "step_ms": None})
    found = told["infeasible"]
    assert found["excess"].keys() == {"memory_mib"}
    assert found["excess"]["memory_mib"] == pytest.approx(found["footprint"]["memory_mib"] / 10 - 1)
    assert found["why"].startswith("infeasible: limits.memory_mib=10, but a trial would take ")
    assert not (tmp_path / "run.yaml").exists()
    (told,) = trained(tmp_path, toy_run(), limits={"memory_mib": 1e9, "step_ms": 1e-3})
    assert told["infeasible"]["excess"].keys() == {"step_ms"}


def test_memory_that_runs_out_in_the_probe_is_infeasible_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Footprint:
        raise TooLargeError("not enough memory")

    monkeypatch.setattr(worker, "measure", full)
    (told,) = trained(tmp_path, toy_run(), limits={"memory_mib": "auto", "step_ms": None})
    assert told["infeasible"]["excess"] == {"memory_mib": 1.0}
    assert told["infeasible"]["why"].endswith("not enough memory")


def test_a_trial_that_has_begun_is_not_found_too_large_afterwards(tmp_path: Path) -> None:
    trained(tmp_path, toy_run())
    told = trained(tmp_path, toy_run(), reported=2, limits={"memory_mib": 1.0, "step_ms": 1e-6})
    assert [each["row"]["epoch"] for each in told] == [3]


def test_a_footprint_is_measured_once_for_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Run] = []

    def counted(run: Run, *_: Any, **__: Any) -> Footprint:
        measured.append(run)
        return Footprint(memory_mib=1.0, step_ms=1.0)

    monkeypatch.setattr(worker, "measure", counted)
    monkeypatch.setattr(worker, "train", lambda *_, **__: None)
    limits = {"memory_mib": "auto", "step_ms": None}
    same = [{}, {"optimizer__lr": 0.5}, {"method__alpha": 0.9}, {"seed": 3}, {"method__schedule": {"kind": "linear", "end": 0.1}}]
    for index, settings in enumerate(same):
        trained(tmp_path / str(index), toy_run(**settings), limits=limits)
    assert len(measured) == 1
    other = [
        {"method__loss": "brier"},
        {"method__alpha": 0, "method__beta": 0},
        {"optimizer__batch_size": 2},
        {"data__size": 64},
        {"optimizer__accumulate": 2},
        {"method__standard": {"kind": "depth", "max_taps": 1}},
        {"optimizer__ema": 0.9},
    ]
    for index, settings in enumerate(other):
        trained(tmp_path / f"other{index}", toy_run(**settings), limits=limits)
        assert len(measured) == 2 + index


def test_what_is_trained_and_was_not_proposed_fails_its_trial_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imachsr.search.tuner import _heard

    space = {"method.alpha": {"float": [0.1, 1.0]}}
    search = make_search({"run": {**BASE, "optimizer": {**BASE["optimizer"], "epochs": 2}}, "space": space, "scheduler": {"kind": "none"}})
    driver = Driver(tmp_path / "result", search)
    build = loop.build_net

    def forgetful(run: Run, **rest: Any) -> Any:  # every trial trains what the first one was given
        alpha = 0.5 if run.method.alpha else 0.0
        return build(run.model_copy(update={"method": run.method.model_copy(update={"alpha": alpha})}), **rest)

    monkeypatch.setattr(loop, "build_net", forgetful)
    for _ in range(2):
        proposal = driver.propose()
        assert isinstance(proposal, dict)
        for message in told_by(lambda messages, proposal=proposal: run_training(proposal, JOB, messages)):
            if _heard(driver, proposal["number"], message):
                break
        driver.on_end(proposal["number"])
    baseline, sampled = driver.trials()
    assert (baseline["state"], sampled["state"], sampled["epochs"]) == ("COMPLETE", "FAIL", 0)
    assert sampled["error"] == (
        f"the worker must train what was proposed, but: alpha must be {sampled['params']['method.alpha']!r}, but the trained one is 0.5"
    )
    summary, _ = driver.close()
    assert summary["best"] == 0


def test_a_worker_that_does_not_say_what_it_trains_fails_its_trial(tmp_path: Path) -> None:
    from imachsr.search.tuner import _heard

    driver = toy_driver(tmp_path)
    driver.propose()
    assert _heard(driver, 0, {"row": {"epoch": 1, "score": 1.0}})
    driver.on_end(0)
    assert driver.trials()[0]["error"] == "the worker must say what it trains, but did not"
    driver.close()


def called(function: Callable[..., object], reported: int = 0) -> list[dict[str, Any]]:
    return told_by(lambda messages: run_function(function, {"config": {"x": 0.5, "seed": 3}, "reported": reported}, messages))


def test_a_function_is_called_with_its_values_and_its_rows_are_counted() -> None:
    given = []

    def function(values: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
        given.append(dict(values))
        values["x"] = 99  # the driver's own are not touched
        report({"score": np.float32(0.5), "count": np.int64(3), "tensor": torch.tensor(2.0), "is_last": False})
        report({"score": 1})

    told = called(function)
    assert given == [{"x": 0.5, "seed": 3}]
    assert told[0]["start"] == {"live": {"x": 0.5, "seed": 3}}
    assert [each["row"] for each in told] == [{"score": 0.5, "count": 3.0, "tensor": 2.0, "is_last": False, "epoch": 1}, {"score": 1, "epoch": 2}]


def test_a_function_that_is_called_again_reports_again_from_its_first_epoch_on(tmp_path: Path) -> None:
    """It knows nothing of what it did before: the second epoch of the new call is the second epoch."""

    def function(values: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
        for epoch in range(1, EPOCHS + 1):
            report({"score": 10.0 * epoch})

    told = called(function, reported=2)
    assert [(each["row"]["epoch"], each["row"]["score"]) for each in told] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    driver = toy_driver(tmp_path)
    driver.propose()
    for epoch in (1, 2):
        driver.on_row(0, {"epoch": epoch, "score": 10.0 * epoch})
    for each in told:
        driver.on_row(0, each["row"])
    driver.on_end(0)
    assert (driver.trials()[0]["state"], driver.trials()[0]["value"]) == ("COMPLETE", 40)
    driver.close()


@pytest.mark.parametrize("value", ["much", None, [1.0], {"a": 1}, np.ones(2)])
def test_a_row_that_holds_no_number_is_the_function_s_mistake(value: object) -> None:
    with pytest.raises(TypeError, match="a row must hold numbers, but score is"):
        called(lambda values, report: report({"score": value}))


def test_what_a_trial_raises_is_told_in_a_line_and_in_full() -> None:
    def work(messages: Messages) -> None:
        try:
            run_function(lambda values, report: {}["gone"], {"config": {}, "reported": 0}, messages)
        except KeyError as error:
            messages.error(error)

    (told,) = told_by(work)
    assert told["error"] == "KeyError: 'gone'"
    assert told["traceback"].startswith("Traceback (most recent call last):")


def test_every_arm_sees_the_same_images_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = epochs.train_step, []

    def watched(net: Any, images: torch.Tensor, labels: torch.Tensor, **rest: Any) -> Any:
        seen.append((float(images.double().sum()), int(labels.sum())))
        return step(net, images, labels, **rest)

    monkeypatch.setattr(epochs, "train_step", watched)
    arms: list[dict[str, Any]] = [{"method__alpha": 0, "method__beta": 0}, {"method__loss": "dice"}, {"method__loss": "brier", "optimizer__lr": 1e-3}]
    orders = []
    for index, settings in enumerate([*arms, {"seed": 1}]):
        seen.clear()
        trained(tmp_path / str(index), toy_run(**settings))
        orders.append(tuple(seen))
    assert len(orders[0]) >= 3
    assert orders[0] == orders[1] == orders[2]
    assert orders[3] != orders[0]
