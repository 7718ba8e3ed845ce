import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from imachsr.config.load import load_run, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.search.driver import Driver
from imachsr.search.space import Search, make_search
from imachsr.search.study import FILE
from imachsr.tracking.events import TrialStart

EPOCHS = 4


def search_of(**parts: Any) -> Search:
    raw: dict[str, Any] = {
        "run": {"optimizer": {"epochs": EPOCHS}},
        "space": {"method.alpha": {"float": [0.1, 1.0]}},
        "scheduler": {"grace": 1, "reduction": 2},
        "budget": {"trials": 5},
    }
    return make_search({**raw, **parts})


def row(epoch: int, value: float, **more: float) -> dict[str, float]:
    return {"epoch": epoch, "select/miou": value, "select/loss": -value, "tap/layer1/std": 1.0, "tap/layer2/std": 1.0, **more}


def run_trial(driver: Driver, values: list[float]) -> int:
    """What Tune does with a trial, at once: report until it is stopped or ends."""
    proposal = driver.propose()
    assert proposal is not None
    for epoch, value in enumerate(values, 1):
        if driver.on_row(proposal["number"], row(epoch, value)):
            break
    driver.on_end(proposal["number"])
    return int(proposal["number"])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def trial(driver: Driver, number: int) -> dict[str, Any]:
    return next(item for item in driver.trials() if item["number"] == number)


def test_a_value_is_the_final_epoch_s_and_the_best_trial_is_the_best_at_its_end(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of(scheduler={"kind": "none"}))
    run_trial(driver, [10, 20, 30, 40])
    run_trial(driver, [90, 90, 90, 30])  # higher at every epoch but the last
    summary, _ = driver.close()
    assert [item["value"] for item in summary["trials"]] == [40, 30]
    assert summary["best"] == 0
    assert summary["trials"][1]["difference"] == -10
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / FILE}")
    assert [item.value for item in study.trials] == [40, 30]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_trial_that_is_worse_at_a_rung_is_stopped_and_told_pruned(tmp_path: Path, mode: str) -> None:
    sign = 1 if mode == "max" else -1
    driver = Driver(tmp_path, search_of(metric={"name": "select/miou", "mode": mode}))
    run_trial(driver, [sign * v for v in (50, 60, 70, 80)])
    run_trial(driver, [sign * v for v in (40, 99, 99, 99)])
    run_trial(driver, [sign * v for v in (55, 65, 75, 85)])
    run_trial(driver, [sign * v for v in (60, 55, 99, 99)])
    summary, _ = driver.close()
    assert [(item["state"], item["epochs"]) for item in summary["trials"]] == [("COMPLETE", 4), ("PRUNED", 1), ("COMPLETE", 4), ("PRUNED", 2)]
    assert summary["best"] == 2
    # A stopped trial has had fewer epochs: there is nothing to compare.
    assert [item["difference"] for item in summary["trials"]] == [0, None, sign * 5, None]
    assert summary["rungs"] == (1, 2)
    pruned = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / FILE}").trials[3]
    assert pruned.intermediate_values == {1: sign * 60, 2: sign * 55}
    assert pruned.state.name == "PRUNED"


def test_arms_run_whole_however_bad_they_are(tmp_path: Path) -> None:
    arms = [{"name": "b", "set": {"method.alpha": 0, "method.beta": 0}}, {"name": "worse", "set": {"method.loss": "dice"}}]
    driver = Driver(tmp_path, search_of(arms=arms))
    run_trial(driver, [50, 50, 50, 50])
    run_trial(driver, [1, 1, 1, 1])
    run_trial(driver, [2, 2, 2, 2])
    summary, _ = driver.close()
    assert [(item["arm"], item["state"]) for item in summary["trials"]] == [("b", "COMPLETE"), ("worse", "COMPLETE"), (None, "PRUNED")]


def test_the_last_epoch_is_never_a_stop(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of(run={"optimizer": {"epochs": 2}}, scheduler={"grace": 1, "reduction": 2}))
    run_trial(driver, [50, 50])
    run_trial(driver, [60, 1])
    assert trial(driver, 1)["state"] == "COMPLETE"
    driver.close()


def test_a_difference_is_only_against_a_baseline_with_the_same_seed(tmp_path: Path) -> None:
    arms = [{"name": "b", "set": {"method.alpha": 0, "method.beta": 0}}, {"name": "c", "set": {"method.loss": "dice"}}]
    driver = Driver(tmp_path, search_of(arms=arms, seeds=[0, 1]))
    for value in (40, 50, 44, 44):
        run_trial(driver, [value] * EPOCHS)
    assert [(item["seed"], item["difference"]) for item in driver.trials()] == [(0, 0), (1, 0), (0, 4), (1, -6)]
    driver.close()
    (tmp_path / "failed").mkdir()
    driver = Driver(tmp_path / "failed", search_of(arms=arms, seeds=[0, 1]))
    run_trial(driver, [40])  # the baseline of seed 0 ends early
    for value in (50, 44, 44):
        run_trial(driver, [value] * EPOCHS)
    assert [(item["state"], item["difference"]) for item in driver.trials()] == [
        ("FAIL", None),
        ("COMPLETE", 0),
        ("COMPLETE", None),
        ("COMPLETE", -6),
    ]
    driver.close()


def test_the_driver_names_what_a_trial_runs(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of(budget={"trials": 5, "cpus_per_trial": 3}, selection={"blocks": 2}, seeds=[6]))
    driver.propose()
    proposal = driver.propose()
    assert proposal is not None
    assert json.loads(json.dumps(proposal)) == proposal  # plain: it travels to a worker
    assert proposal["run"]["name"] == "search-0001"
    assert proposal["run"]["seed"] == 6
    assert proposal["run"]["compute"]["threads"] == 3
    assert proposal["run"]["method"]["alpha"] == trial(driver, 1)["params"]["method.alpha"]
    assert proposal["output"] == str(tmp_path.absolute() / "trials" / "0001")
    assert proposal["selection"]["blocks"] == 2
    assert proposal["reported"] == 0
    driver.close()


def test_trials_jsonl_has_a_line_an_epoch_and_summary_json_all_of_them(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of(name="mine"))
    run_trial(driver, [50, 60, 70, 80])
    run_trial(driver, [40])
    driver.propose()
    driver.on_row(2, row(1, 99.0))
    summary, _ = driver.close()
    assert [(line["trial"], line["arm"], line["epoch"], line["select/miou"]) for line in lines(tmp_path)] == [
        (0, "baseline", 1, 50),
        (0, "baseline", 2, 60),
        (0, "baseline", 3, 70),
        (0, "baseline", 4, 80),
        (1, None, 1, 40),
        (2, None, 1, 99),
    ]
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert {key: written[key] for key in ("schema", "name", "metric", "mode", "max_epochs", "rungs", "baseline", "budget", "finished", "best")} == {
        "schema": 1,
        "name": "mine",
        "metric": "select/miou",
        "mode": "max",
        "max_epochs": 4,
        "rungs": [1, 2],
        "baseline": 0,
        "budget": 5,
        "finished": False,
        "best": 0,
    }
    assert [item["state"] for item in written["trials"]] == ["COMPLETE", "PRUNED", "RUNNING"]
    assert written["trials"][0]["taps"] == ["layer1", "layer2"]
    assert written["versions"].keys() == {"imachsr", "torch", "ray", "optuna", "segmentation-models-pytorch"}


def test_a_second_driver_of_a_folder_is_refused_also_from_another_process(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    before = (tmp_path / "search.yaml").read_text()
    with pytest.raises(ConfigError, match="must not be in use, but another search is running in it"):
        Driver(tmp_path, search_of(), resume=True)
    code = (
        "import pathlib, sys\nfrom imachsr.search.driver import Driver\nfrom imachsr.search.space import make_search\n"
        "search = make_search({'space': {'method.alpha': {'float': [0.1, 1.0]}}})\n"
        "try:\n    Driver(pathlib.Path(sys.argv[1]), search, resume=True)\nexcept ValueError as error:\n    print(error)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    other = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "must not be in use, but another search is running in it" in other.stdout
    assert (tmp_path / "search.yaml").read_text() == before
    driver.close()
    Driver(tmp_path, search_of(), resume=True).close()  # free again


def test_a_folder_with_a_search_is_only_continued_on_request_and_unchanged(tmp_path: Path) -> None:
    Driver(tmp_path, search_of()).close()
    # The refused attempts are kept, as an interactive session keeps the last exception: they must not hold the folder.
    with pytest.raises(ConfigError, match="must be a new folder, but holds a search; give another --output, or continue it with --resume") as one:
        Driver(tmp_path, search_of())
    with pytest.raises(ConfigError, match="must be continued as it began, but seeds, scheduler changed against .*search.yaml") as two:
        Driver(tmp_path, search_of(scheduler={"grace": 2}, seeds=[1]), resume=True)
    driver = Driver(tmp_path, search_of(budget={"trials": 9}, name="renamed"), resume=True)
    assert driver.remaining == 9
    assert one.value is not two.value
    driver.close()


def test_a_folder_whose_study_had_not_begun_is_new(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("space: {}\n")  # what a driver leaves that dies at once
    driver = Driver(tmp_path, search_of())
    assert run_trial(driver, [1, 1, 1, 1]) == 0
    driver.close()


def test_a_broken_search_is_continued_without_a_line_or_a_trial_twice(tmp_path: Path) -> None:
    search = search_of(scheduler={"kind": "none"})
    driver = Driver(tmp_path, search)
    run_trial(driver, [50, 60, 70, 80])
    driver.propose()
    driver.on_row(1, row(1, 50.0))
    driver.on_row(1, row(2, 51.0))
    driver.close()
    # Killed while a line was written, and between a line and the study.
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(json.dumps({"trial": 1, "arm": None, **row(3, 52.0)}) + "\n")
        file.write('{"trial": 1, "arm": null, "epo')
    driver = Driver(tmp_path, search, resume=True)
    assert [(line["trial"], line["epoch"]) for line in lines(tmp_path)] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    assert driver.remaining == 4
    proposal = driver.propose()
    assert proposal is not None
    assert (proposal["number"], proposal["reported"]) == (1, 2)
    for epoch, value in ((2, 99.0), (3, 52.0), (4, 53.0)):  # the second was known
        assert not driver.on_row(1, row(epoch, value))
    driver.on_end(1)
    assert run_trial(driver, [1, 1, 1, 1]) == 2
    driver.close()
    expected = [(0, epoch) for epoch in range(1, 5)] + [(1, epoch) for epoch in range(1, 5)] + [(2, epoch) for epoch in range(1, 5)]
    assert [(line["trial"], line["epoch"]) for line in lines(tmp_path)] == expected
    assert [line["select/miou"] for line in lines(tmp_path) if line["trial"] == 1] == [50, 51, 52, 53]


def test_a_finished_search_is_extended_and_only_then_proposes_again(tmp_path: Path) -> None:
    search = search_of(scheduler={"kind": "none"}, budget={"trials": 3})
    driver = Driver(tmp_path, search)
    for _ in range(3):
        run_trial(driver, [50, 60, 70, 80])
    before = driver.close()[0]
    assert before["finished"]
    driver = Driver(tmp_path, search, resume=True)
    assert driver.remaining == 0
    assert driver.propose() is None
    driver.close()
    driver = Driver(tmp_path, search_of(scheduler={"kind": "none"}, budget={"trials": 5}), resume=True)
    assert driver.remaining == 2
    assert [run_trial(driver, [50, 60, 70, 81]) for _ in range(2)] == [3, 4]
    assert driver.propose() is None
    after, _ = driver.close()
    assert after["trials"][:3] == before["trials"]
    assert [item["arm"] for item in after["trials"]] == ["baseline", None, None, None, None]
    assert (after["finished"], after["best"]) == (True, 3)


def test_rungs_are_known_again_after_a_break(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    run_trial(driver, [50, 60, 70, 80])
    driver.close()
    driver = Driver(tmp_path, search_of(), resume=True)
    run_trial(driver, [49, 99, 99, 99])
    assert (trial(driver, 1)["state"], trial(driver, 1)["epochs"]) == ("PRUNED", 1)
    driver.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_fails_its_trial_and_no_other(tmp_path: Path, value: float) -> None:
    driver = Driver(tmp_path, search_of())
    run_trial(driver, [50, 60, 70, 80])
    run_trial(driver, [60, value, 90, 90])
    run_trial(driver, [60, 70, 80, 90])
    assert (trial(driver, 1)["state"], trial(driver, 1)["epochs"]) == ("FAIL", 1)
    assert f"select/miou must be finite, but got {value} at epoch 2" == trial(driver, 1)["error"]
    assert trial(driver, 2)["state"] == "COMPLETE"
    summary, _ = driver.close()
    assert summary["best"] == 2
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)


def test_a_metric_that_rows_do_not_have_is_told_with_those_that_they_have(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of(metric={"name": "val/miou"}))
    run_trial(driver, [50])
    assert trial(driver, 0)["error"] == "metric.name must be a key of the rows, but got 'val/miou'; they have select/loss, select/miou"
    driver.close()


def test_a_trial_that_ends_early_without_a_reason_has_failed(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    run_trial(driver, [50, 60])
    assert (trial(driver, 0)["state"], trial(driver, 0)["error"]) == ("FAIL", "ended after 2 of 4 epochs")
    driver.propose()
    driver.on_error(1, "the first reason")
    driver.on_error(1, "a later one")
    driver.on_end(1, "the worker died")
    driver.on_end(1)  # told twice
    assert trial(driver, 1)["error"] == "the first reason"
    driver.close()


def test_settings_that_do_not_fit_together_fail_their_trial_and_the_search_goes_on(tmp_path: Path) -> None:
    search = search_of(
        space={
            "method.loss": {"choice": ["prototype", "dice"]},
            "method.loss.temperature": {"float": [0.1, 1.0], "when": {"method.loss": "prototype"}},
        },
        sampler={"kind": "random"},
        scheduler={"kind": "none"},
        budget={"trials": 6},
    )
    # What is found at load for two settings, may escape it for three; here the condition is taken away afterwards.
    loose = {key: parameter.model_copy(update={"when": {}}) for key, parameter in search.space.items()}
    driver = Driver(tmp_path, search.model_copy(update={"space": loose}))
    while (proposal := driver.propose()) is not None:
        for epoch in range(1, EPOCHS + 1):
            driver.on_row(proposal["number"], row(epoch, 1.0))
        driver.on_end(proposal["number"])
    summary, _ = driver.close()
    assert [item["number"] for item in summary["trials"]] == list(range(6))
    for item in summary["trials"][1:]:
        is_wrong = item["params"]["method.loss"] == "dice"
        assert item["state"] == ("FAIL" if is_wrong else "COMPLETE")
        assert ("'temperature' is no setting of 'dice'" in (item["error"] or "")) == is_wrong
    assert {item["state"] for item in summary["trials"]} == {"COMPLETE", "FAIL"}
    assert summary["finished"]


class Told:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def start(self, trial: TrialStart) -> None:
        self.events.append(("start", trial.id, trial.name, trial.job_type, trial.tags, trial.group))

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        self.events.append(("row", trial_id, row["epoch"]))

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        self.events.append(("end", trial_id, state, summary["value"]))

    def close(self) -> list[str]:
        return ["how to look"]


def test_a_tracker_is_told_of_every_trial_under_ids_that_stay(tmp_path: Path) -> None:
    told = Told()
    driver = Driver(tmp_path, search_of(name="mine"), tracker=told)
    uid = driver.study.uid
    run_trial(driver, [50, 60, 70, 80])
    driver.propose()
    driver.on_row(1, row(1, 60.0))
    assert driver.close()[1] == ["how to look"]
    again = Told()
    driver = Driver(tmp_path, search_of(name="mine"), tracker=again, resume=True)
    proposal = driver.propose()
    assert proposal is not None
    driver.on_row(1, row(2, 10.0))
    driver.on_end(1)
    driver.close()
    group = f"mine-{uid}"
    assert told.events == [
        ("start", f"{uid}-0000", "0000-baseline", "baseline", ("baseline",), group),
        *[("row", f"{uid}-0000", epoch) for epoch in range(1, 5)],
        ("end", f"{uid}-0000", "finished", 80.0),
        ("start", f"{uid}-0001", "0001", "trial", (), group),
        ("row", f"{uid}-0001", 1),
    ]
    assert again.events == [("start", f"{uid}-0001", "0001", "trial", (), group), ("row", f"{uid}-0001", 2), ("end", f"{uid}-0001", "stopped", 10.0)]


def test_a_trial_whose_loss_is_not_finite_has_failed_although_it_has_a_score(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    proposal = driver.propose()
    assert proposal is not None
    assert driver.on_row(0, {**row(1, 3.58), "select/loss": float("nan")})
    driver.on_end(0)
    assert (trial(driver, 0)["state"], trial(driver, 0)["error"]) == ("FAIL", "select/loss must be finite, but got nan at epoch 1")
    assert driver.close()[0]["best"] is None


def test_a_failed_trial_leaves_its_traceback_and_no_checkpoint_and_a_whole_one_keeps_its_own(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    folders = [tmp_path / "trials" / f"{number:04d}" for number in range(3)]
    for folder in folders:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/00000001.json").write_bytes(b"x")
    run_trial(driver, [50, 60, 70, 80])
    run_trial(driver, [40])  # stopped
    driver.propose()
    driver.on_error(2, "KeyError: 'x'", "Traceback (most recent call last):\n  File mine.py\nKeyError: 'x'")
    driver.on_end(2)
    assert [(folder / "checkpoints").exists() for folder in folders] == [True, False, False]
    assert [(folder / "error.txt").exists() for folder in folders] == [False, False, True]
    assert "File mine.py" in (folders[2] / "error.txt").read_text()
    assert trial(driver, 2)["error"] == "KeyError: 'x'"
    driver.close()


def test_the_driver_writes_the_run_itself_since_trials_may_write_elsewhere(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    proposal = driver.propose()
    assert proposal is not None
    assert run_to_dict(load_run(tmp_path / "trials/0000/run.yaml")) == proposal["run"]
    driver.close()


@pytest.mark.parametrize(("gpus", "asked", "device"), [(0, "auto", "cpu"), (0.5, "auto", "auto"), (0, "cuda", "cuda"), (1, "cpu", "cpu")])
def test_a_trial_takes_a_gpu_only_when_it_reserves_one(tmp_path: Path, gpus: float, asked: str, device: str) -> None:
    run = {"optimizer": {"epochs": EPOCHS}, "compute": {"device": asked}}
    driver = Driver(tmp_path, search_of(run=run, budget={"trials": 5, "gpus_per_trial": gpus}))
    proposal = driver.propose()
    assert proposal is not None
    assert proposal["run"]["compute"]["device"] == device
    driver.close()


def test_the_best_arm_is_that_with_the_best_mean_over_its_seeds(tmp_path: Path) -> None:
    arms = [{"name": name, "set": {"method.loss": loss}} for name, loss in (("lucky", "dice"), ("steady", "brier"))]
    arms.insert(0, {"name": "b", "set": {"method.alpha": 0, "method.beta": 0}})
    driver = Driver(tmp_path, search_of(arms=arms, seeds=[0, 1], budget={"trials": 6}, space={}))
    for value in (30, 30, 50, 20, 41, 39):
        run_trial(driver, [value] * EPOCHS)
    assert driver.close()[0]["best"] == 4


def test_a_trial_that_was_to_be_stopped_when_the_driver_died_is_stopped_by_the_next(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    run_trial(driver, [50, 60, 70, 80])
    driver.propose()
    assert driver.on_row(1, row(1, 40.0))
    driver.close()  # between the decision and the trial's end
    driver = Driver(tmp_path, search_of(), resume=True)
    assert (trial(driver, 1)["state"], trial(driver, 1)["epochs"], driver.remaining) == ("PRUNED", 1, 3)
    proposal = driver.propose()
    assert proposal is not None
    assert proposal["number"] == 2
    driver.close()
