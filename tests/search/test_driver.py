import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from imachsr.config.load import load_run, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.search.database import FILE
from imachsr.search.driver import Driver
from imachsr.search.space import Search, make_search
from imachsr.tracking.events import TrialStart
from tests.search.play import play, score, toy_driver, toy_search

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


def proposed(driver: Driver) -> dict[str, Any]:
    proposal = driver.propose()
    assert isinstance(proposal, dict)
    return proposal


def run_trial(driver: Driver, values: list[float]) -> int:
    """What Tune does with a trial, at once: report until it is stopped or ends."""
    proposal = proposed(driver)
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


@pytest.mark.parametrize(("metric", "sign"), [("select/miou", 1), ("select/loss", -1)])
def test_a_trial_that_is_worse_at_a_rung_is_stopped_and_told_pruned(tmp_path: Path, metric: str, sign: int) -> None:
    driver = Driver(tmp_path, search_of(metric={"name": metric}))
    run_trial(driver, [50, 60, 70, 80])
    run_trial(driver, [40, 99, 99, 99])
    run_trial(driver, [55, 65, 75, 85])
    run_trial(driver, [60, 55, 99, 99])
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
    driver = Driver(tmp_path, search_of(budget={"trials": 5, "cpus_per_trial": 3}, seeds=[6]))
    driver.propose()
    proposal = proposed(driver)
    assert json.loads(json.dumps(proposal)) == proposal  # plain: it travels to a worker
    assert proposal["config"]["name"] == "search-0001"
    assert proposal["config"]["seed"] == 6
    assert proposal["config"]["compute"]["threads"] == 3
    assert proposal["config"]["method"]["alpha"] == trial(driver, 1)["params"]["method.alpha"]
    assert proposal["output"] == str(tmp_path.absolute() / "trials" / "0001")
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


@pytest.mark.long
def test_a_second_driver_of_a_folder_is_refused_also_from_another_process(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    before = (tmp_path / "search.yaml").read_text()
    with pytest.raises(ConfigError, match="must not be in use, but another command works in it"):
        Driver(tmp_path, search_of(), resume=True)
    code = (
        "import pathlib, sys\nfrom imachsr.search.driver import Driver\nfrom imachsr.search.space import make_search\n"
        "search = make_search({'space': {'method.alpha': {'float': [0.1, 1.0]}}})\n"
        "try:\n    Driver(pathlib.Path(sys.argv[1]), search, resume=True)\nexcept ValueError as error:\n    print(error)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    other = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "must not be in use, but another command works in it" in other.stdout
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
    (tmp_path / ".lock").touch()
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
    # Killed between a line and the study, and while the next line was written.
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(json.dumps({**lines(tmp_path)[-1], **row(3, 52.0), "objectives": [52.0]}) + "\n")
        file.write('{"trial": 1, "arm": null, "epo')
    driver = Driver(tmp_path, search, resume=True)
    assert [(line["trial"], line["epoch"]) for line in lines(tmp_path)] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3)]
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / FILE}")
    assert study.trials[1].intermediate_values == {1: 50.0, 2: 51.0, 3: 52.0}
    assert driver.remaining == 4
    proposal = proposed(driver)
    assert (proposal["number"], proposal["reported"]) == (1, 3)
    for epoch, value in ((3, 99.0), (4, 53.0)):  # the third was known
        assert not driver.on_row(1, row(epoch, value))
    driver.on_end(1)
    assert run_trial(driver, [1, 1, 1, 1]) == 2
    driver.close()
    expected = [(trial, epoch) for trial in range(3) for epoch in range(1, 5)]
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


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"points": 1.0, "tap/a/std": 2.0}, "metric.name must be a key of the rows, but got 'score'; they have points"),
        ({"score": "much"}, "score must be finite, but got much at epoch 1"),
        ({"score": None}, "score must be finite, but got None at epoch 1"),
        ({"score": [1.0]}, r"score must be finite, but got \[1.0\] at epoch 1"),
        ({"score": True}, "score must be finite, but got True at epoch 1"),
    ],
)
def test_a_row_of_the_user_s_that_does_not_count_fails_its_trial_and_no_other(tmp_path: Path, told: dict[str, Any], error: str) -> None:
    driver = toy_driver(tmp_path)
    play(driver, answer=lambda values, epoch: told if len(driver.entries) == 2 else score(values, epoch), most=3)
    states = [item["state"] for item in driver.trials()]
    assert states.count("FAIL") == 2  # two ran when there were two
    failed = [item["error"] for item in driver.trials() if item["state"] == "FAIL"]
    assert all(re.fullmatch(error, each) for each in failed)
    assert driver.trials()[2]["state"] != "FAIL"
    driver.close()


def test_rows_of_the_user_s_cannot_write_over_the_driver_s_own_keys(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path)
    play(driver, answer=lambda values, epoch: {**score(values, epoch), "trial": 99, "objectives": [7], "arm": "x", "held_s": -1.0}, most=2)
    driver.close()
    assert {line["trial"] for line in lines(tmp_path)} == {0, 1}
    assert all(line["objectives"] == [line["score"]] and line["arm"] is None and line["held_s"] >= 0 for line in lines(tmp_path))
    assert len(toy_driver(tmp_path, resume=True).entries) == 2


def test_more_rows_than_a_whole_trial_has_are_a_mistake_that_is_told(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path)
    number = proposed(driver)["number"]
    for epoch in range(1, EPOCHS + 1):
        assert not driver.on_row(number, {"epoch": epoch, "score": 1.0})
    assert driver.on_row(number, {"epoch": EPOCHS + 1, "score": 1.0})
    driver.on_end(number)
    assert trial(driver, 0)["error"].startswith("a trial must report 4 rows at most, one an epoch, but reported one more")
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
    proposed(driver)
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
    proposed(driver)
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
    proposal = proposed(driver)
    assert run_to_dict(load_run(tmp_path / "trials/0000/run.yaml")) == proposal["config"]
    driver.close()


@pytest.mark.parametrize(("gpus", "asked", "device"), [(0, "auto", "cpu"), (0.5, "auto", "auto"), (0, "cuda", "cuda"), (1, "cpu", "cpu")])
def test_a_trial_takes_a_gpu_only_when_it_reserves_one(tmp_path: Path, gpus: float, asked: str, device: str) -> None:
    run = {"optimizer": {"epochs": EPOCHS}, "compute": {"device": asked}}
    driver = Driver(tmp_path, search_of(run=run, budget={"trials": 5, "gpus_per_trial": gpus}))
    proposal = proposed(driver)
    assert proposal["config"]["compute"]["device"] == device
    driver.close()


def test_what_ran_on_the_cpu_is_not_run_again_when_the_budget_has_gpus(tmp_path: Path) -> None:
    points = [{"method.alpha": value} for value in (0.25, 0.5, 0.75)]
    driver = Driver(tmp_path, search_of(points=points, budget={"trials": 6}))
    ran = [run_trial(driver, [50] * EPOCHS) for _ in range(3)]  # the baseline and two points
    driver.close()
    driver = Driver(tmp_path, search_of(points=points, budget={"trials": 6, "gpus_per_trial": 1}), resume=True)
    config = proposed(driver)["config"]
    assert (config["method"]["alpha"], config["compute"]["device"]) == (0.75, "auto")
    assert [driver.entries[number].state for number in ran] == ["COMPLETE"] * 3
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
    proposal = proposed(driver)
    assert proposal["number"] == 2
    driver.close()


def test_a_trial_that_failed_when_the_driver_died_before_the_last_word_does_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = toy_driver(tmp_path)
    proposed(driver)
    driver.on_error(0, "it broke")
    monkeypatch.setattr(driver.study._study, "tell", lambda *_, **__: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        driver.on_end(0)
    monkeypatch.undo()
    driver.close()
    driver = toy_driver(tmp_path, resume=True)
    assert (trial(driver, 0)["state"], trial(driver, 0)["error"]) == ("FAIL", "it broke")
    assert proposed(driver)["number"] == 1
    driver.close()


def test_a_row_after_a_trial_was_told_to_stop_changes_nothing(tmp_path: Path) -> None:
    driver = Driver(tmp_path, search_of())
    run_trial(driver, [50, 60, 70, 80])
    proposed(driver)
    assert driver.on_row(1, row(1, 40.0))
    assert driver.on_row(1, row(2, 99.0))
    driver.on_end(1)
    assert driver.on_row(1, row(3, 99.0))
    assert (trial(driver, 1)["state"], trial(driver, 1)["epochs"], trial(driver, 1)["value"]) == ("PRUNED", 1, 40.0)
    driver.close()


def test_a_refused_driver_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db'}"
    toy_driver(tmp_path / "out", study_url=url).close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="is in a database: give --study"):
        toy_driver(tmp_path / "out", toy_search(budget={"trials": 99}), resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def test_a_refused_driver_lets_go_of_the_folder_whatever_refused_it(tmp_path: Path) -> None:
    toy_driver(tmp_path).close()
    good = (tmp_path / "trials.jsonl").read_text()
    (tmp_path / "trials.jsonl").write_text('{"trial": 0, "epoch": 1}\n')
    (tmp_path / "search.yaml").rename(tmp_path / "kept.yaml")
    for message in ("search.yaml", "must have the key objectives"):
        with pytest.raises(ConfigError, match=message):
            toy_driver(tmp_path, resume=True)
        (tmp_path / "kept.yaml").replace(tmp_path / "search.yaml") if message == "search.yaml" else None
    (tmp_path / "trials.jsonl").write_text(good)
    driver = toy_driver(tmp_path, resume=True)
    play(driver, most=1)
    driver.close()


def test_one_worker_and_one_seed_give_the_same_sequence_of_trials(tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        driver = toy_driver(tmp_path / name, toy_search(budget={"trials": 14}))
        play(driver, concurrency=1)
        told.append([(item["params"], item["state"], item["values"]) for item in driver.close()[0]["trials"]])
    assert told[0] == told[1]
    assert {state for _, state, _ in told[0]} == {"COMPLETE", "PRUNED"}


def test_a_configuration_that_was_tried_is_not_tried_again_and_a_space_that_is_searched_ends_the_search(tmp_path: Path) -> None:
    space = {"x": {"choice": [0.1, 0.2, 0.3, 0.4]}, "y": {"choice": ["a", "b", "c"]}}
    search = toy_search(space=space, sampler={"startup_trials": 2}, budget={"trials": 40})
    driver = toy_driver(tmp_path, search)
    play(driver)
    summary, _ = driver.close()
    assert len(summary["trials"]) == 12
    assert len({item["key"] for item in summary["trials"]}) == 12
    assert summary["finished"]
    assert summary["ended_early"].endswith("the space is searched")
    again = toy_driver(tmp_path, search, resume=True)
    assert play(again) == []
    assert len(again.close()[0]["trials"]) == 12


def test_a_space_without_room_under_the_limits_ends_the_search_and_says_which_limit(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path, toy_search(budget={"trials": 12}))
    play(driver, answer=lambda values, epoch: {"infeasible": {"step_ms": 0.5}})
    summary, _ = driver.close()
    assert summary["finished"]
    assert "limits.step_ms must leave room in the space, but 12 of 1" in summary["ended_early"]
    assert len(summary["trials"]) <= 13
    assert {item["state"] for item in summary["trials"]} == {"PRUNED"}


def test_infeasible_trials_take_nothing_from_the_budget(tmp_path: Path) -> None:
    search = toy_search(budget={"trials": 8}, scheduler={"kind": "none"})
    driver = toy_driver(tmp_path, search)
    play(driver, answer=lambda values, epoch: {"infeasible": {"memory_mib": values["x"]}} if values["x"] > 0.7 else score(values, epoch))
    summary, _ = driver.close()
    assert sum(item["state"] == "COMPLETE" for item in summary["trials"]) == 8
    beyond = [item for item in summary["trials"] if item["params"]["x"] > 0.7]
    assert beyond
    assert all((item["state"], item["feasible"], item["epochs"], item["why"]) == ("PRUNED", False, 0, "infeasible") for item in beyond)
    trials = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / FILE}").trials
    assert [item.constraints for item in trials if item.params["x"] > 0.7] == [{"memory_mib": item["params"]["x"]} for item in beyond]


def test_several_objectives_make_a_front_and_the_first_one_decides_who_is_stopped(tmp_path: Path) -> None:
    search = toy_search(also=[{"name": "cost", "mode": "min"}], budget={"trials": 14})
    driver = toy_driver(tmp_path, search)
    play(driver, answer=lambda values, epoch: {**score(values, epoch), "cost": values["x"]})
    summary, _ = driver.close()
    whole = [item for item in summary["trials"] if item["state"] == "COMPLETE"]
    assert any(item["state"] == "PRUNED" for item in summary["trials"])

    def is_better(one: dict[str, Any], other: dict[str, Any]) -> bool:
        a, b = ((item["values"]["score"], -item["values"]["cost"]) for item in (one, other))
        return a != b and a[0] >= b[0] and a[1] >= b[1]

    assert summary["front"] == [item["number"] for item in whole if not any(is_better(other, item) for other in whole)]
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / FILE}")
    assert sorted(item.user_attrs["proposal"]["number"] for item in study.best_trials) == summary["front"]
    assert summary["best"] == max(whole, key=lambda item: item["value"])["number"]
    again = toy_driver(tmp_path, search, resume=True)  # the curves are in the ledger alone
    assert [item["values"] for item in again.trials()] == [item["values"] for item in summary["trials"]]
    again.close()


@pytest.mark.parametrize("objectives", [1, 2])
def test_values_of_ended_trials_outlive_their_lines(tmp_path: Path, objectives: int) -> None:
    also = [{"name": "cost", "mode": "min"}] if objectives == 2 else []
    search = toy_search(also=also, scheduler={"kind": "none"}, budget={"trials": 3})
    driver = toy_driver(tmp_path, search)
    play(driver, answer=lambda values, epoch: {**score(values, epoch), "cost": values["x"]})
    before, _ = driver.close()
    (tmp_path / "trials.jsonl").write_text("")  # as a power cut may leave it
    driver = toy_driver(tmp_path, search, resume=True)
    after, _ = driver.close()
    assert [item["values"] for item in after["trials"]] == [item["values"] for item in before["trials"]]
    assert after["best"] == before["best"]


def test_lines_of_trials_that_the_study_lost_are_not_another_s(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path, toy_search(scheduler={"kind": "none"}))
    play(driver, most=3)
    driver.close()
    with sqlite3.connect(tmp_path / FILE) as connection:  # as a power cut may leave it: the last transactions are gone
        for table in ("trial_params", "trial_user_attributes", "trial_system_attributes", "trial_intermediate_values", "trial_values", "trials"):
            connection.execute(f"DELETE FROM {table} WHERE trial_id = 3")
    driver = toy_driver(tmp_path, toy_search(scheduler={"kind": "none"}), resume=True)
    assert {line["trial"] for line in lines(tmp_path)} == {0, 1}
    proposal = proposed(driver)
    assert (proposal["number"], proposal["reported"]) == (2, 0)
    driver.close()
