from pathlib import Path
from typing import Any

import optuna
import pytest

from imachsr.config.schema import ConfigError
from imachsr.search.database import FILE
from imachsr.search.space import Search, make_search
from imachsr.search.warm import lesson, taught
from tests.search.play import play, score, toy_driver, toy_search


def searched(folder: Path, search: Search, **options: Any) -> Path:
    driver = toy_driver(folder, search)
    play(driver, **options)
    driver.close()
    return folder


@pytest.mark.long
def test_trials_of_the_same_problem_teach_the_sampler_and_are_no_trials_of_the_new_search(tmp_path: Path) -> None:
    old = searched(tmp_path / "old", toy_search(budget={"trials": 20}))
    new = toy_search(budget={"trials": 12}, sampler={"startup_trials": 10, "seed": 5})
    found = lesson(old, new)
    assert found.points == ()
    assert found.words == f"{old}: the sampler starts from 20 trials"
    assert {trial.state.name for trial in found.trials} == {"COMPLETE", "PRUNED"}
    theirs = {trial.params["x"]: trial for trial in optuna.load_study(study_name="search", storage=f"sqlite:///{old / FILE}").trials}
    for trial in found.trials:
        assert trial.intermediate_values == theirs[trial.params["x"]].intermediate_values
        assert trial.value == (theirs[trial.params["x"]].value if trial.state.name == "COMPLETE" else None)
    # The best is at 0.4: what has learnt proposes near it from its first trial on, what has not draws at random.
    distances = {}
    for name, learnt in (("taught", found.trials), ("untaught", ())):
        driver = toy_driver(tmp_path / name, new)
        assert driver.study.learn(learnt) == len(learnt)
        play(driver)
        summary, _ = driver.close()
        assert [item["number"] for item in summary["trials"]] == list(range(12))
        distances[name] = sum(abs(item["params"]["x"] - 0.4) for item in summary["trials"][:10]) / 10
    assert distances["taught"] < 0.75 * distances["untaught"]


def test_a_search_that_learnt_is_continued_as_one_that_did_not(tmp_path: Path) -> None:
    old = searched(tmp_path / "old", toy_search())
    driver = toy_driver(tmp_path / "new", toy_search())
    driver.study.learn(lesson(old, toy_search()).trials)
    play(driver, most=4)
    driver.close()
    driver = toy_driver(tmp_path / "new", toy_search(), resume=True)
    assert sorted(driver.entries) == [0, 1, 2, 3]
    assert driver.remaining == 4
    play(driver)
    assert [item["number"] for item in driver.close()[0]["trials"]] == list(range(8))


def test_knobs_that_agree_are_taken_from_another_space(tmp_path: Path) -> None:
    space = {"x": {"float": [0.0, 1.0]}, "y": {"choice": ["a", "b"]}, "gone": {"int": [1, 9]}}
    old = searched(tmp_path / "old", toy_search(space=space, scheduler={"kind": "none"}, budget={"trials": 14}))
    new = toy_search(space={"x": {"float": [0.3, 0.9]}, "y": {"choice": ["b", "c"]}, "fresh": {"float": [1e-3, 1.0], "log": True}})
    found = lesson(old, new)
    assert found.trials
    for trial in found.trials:
        assert trial.params.keys() <= {"x", "y"}
        assert 0.3 <= trial.params.get("x", 0.5) <= 0.9
        assert trial.params.get("y", "b") == "b"
        assert trial.distributions == {key: new.space[key].distribution for key in trial.params}
    driver = toy_driver(tmp_path / "new", new)
    driver.study.learn(found.trials)
    assert play(driver) == list(range(8))
    driver.close()


def test_several_objectives_teach_with_all_their_values(tmp_path: Path) -> None:
    search = toy_search(also=[{"name": "cost", "mode": "min"}], scheduler={"kind": "none"}, budget={"trials": 6})
    old = searched(tmp_path / "old", search, answer=lambda values, epoch: {**score(values, epoch), "cost": values["x"]})
    found = lesson(old, search)
    assert len(found.trials) == 6
    assert all(trial.values == [score(trial.params, 4)["score"], trial.params["x"]] for trial in found.trials)
    driver = toy_driver(tmp_path / "new", search)
    assert driver.study.learn(found.trials) == 6
    play(driver, answer=lambda values, epoch: {**score(values, epoch), "cost": values["x"]})
    driver.close()


def test_another_problem_teaches_its_best_configurations_not_its_values(tmp_path: Path) -> None:
    old = searched(tmp_path / "old", toy_search(scheduler={"kind": "none"}, budget={"trials": 10}))
    new = toy_search(function="another:one")
    found = lesson(old, new)
    assert found.trials == ()
    best = sorted(
        (trial for trial in toy_driver(old, toy_search(scheduler={"kind": "none"}, budget={"trials": 10}), resume=True).trials()),
        key=lambda t: -t["value"],
    )
    assert list(found.points) == [trial["params"] for trial in best[:3]]
    assert "its values are not comparable (function differ): its 3 best configurations are tried first" in found.words
    again = taught(new, [found, found])
    assert list(again.points) == list(found.points)  # once
    driver = toy_driver(tmp_path / "new", again)
    play(driver, most=3)
    assert [item["params"] for item in driver.trials()] == list(found.points)
    driver.close()


def test_trials_that_failed_or_did_not_fit_teach_nothing(tmp_path: Path) -> None:
    def answer(values: dict[str, Any], epoch: int) -> dict[str, Any]:
        if values["x"] > 0.6:
            return {"infeasible": {"step_ms": 1.0}}
        return {"error": "no"} if values["x"] > 0.4 else score(values, epoch)

    old = searched(tmp_path / "old", toy_search(budget={"trials": 14}), answer=answer)
    assert all(trial.params["x"] <= 0.4 for trial in lesson(old, toy_search()).trials)


def test_a_folder_that_teaches_nothing_is_refused_and_none_is_changed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="--warm-start must be the result folder of a search, but .*empty holds none"):
        lesson(tmp_path / "empty", toy_search())
    old = searched(tmp_path / "old", toy_search())
    before = {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="must name a search with knobs of this one and a trial that has ended, but .*old has none"):
        lesson(old, toy_search(space={"z": {"float": [0, 1]}}))
    lesson(old, toy_search())
    assert {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()} == before


def test_epochs_data_and_model_make_values_incomparable(tmp_path: Path) -> None:
    def run_search(**run: Any) -> Search:
        base = {"optimizer": {"epochs": 4}, **run}
        return make_search({"run": base, "space": {"method.alpha": {"float": [0.1, 1.0]}}, "scheduler": {"kind": "none"}, "budget": {"trials": 4}})

    from imachsr.search.driver import Driver

    driver = Driver(tmp_path / "old", run_search())
    for value in (1.0, 2.0, 3.0, 4.0):
        proposal = driver.propose()
        assert isinstance(proposal, dict)
        for epoch in range(1, 5):
            driver.on_row(proposal["number"], {"epoch": epoch, "select/miou": value, "select/loss": 1.0})
        driver.on_end(proposal["number"])
    driver.close()
    assert len(lesson(tmp_path / "old", run_search()).trials) == 3  # the baseline has no place in the space
    changes: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": {"epochs": 8}}, "optimizer.epochs"),
        ({"data": {"kind": "scenes", "size": [32, 32]}}, "data"),
        ({"subset": {"share": 0.5}}, "subset"),
        ({"output_loss": "ohem"}, "output_loss"),
    ]
    for other, what in changes:
        found = lesson(tmp_path / "old", run_search(**other))
        assert found.trials == ()
        assert f"({what} differ)" in found.words
