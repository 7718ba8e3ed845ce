"""From a search to what is left of its finding: the plan, the runs, and the same result after a crash."""

import json
from pathlib import Path
from typing import Any

import pytest

from imachsr.config.load import dump_yaml, load_run, load_yaml
from imachsr.config.schema import ConfigError
from imachsr.report.export import export
from imachsr.search.confirm import FOLDER, RESULT, confirm, load_plan, make_plan
from imachsr.search.paired import prediction_interval
from imachsr.search.space import Search, make_search, search_to_dict
from imachsr.search.tuner import run_search
from imachsr.train.loop import train
from tests.train.toys import BASE

BASELINE = {"name": "output_only", "set": {"method.alpha": 0, "method.beta": 0}}
STRONG = {"name": "strong", "set": {"method.alpha": 2.0, "optimizer.epochs": 5}}
RAW = {
    "name": "bands",
    "run": {**BASE, "seed": 0, "name": "mine"},
    "space": {
        "method.alpha": {"float": [0.1, 2.0]},
        "recipe": {"choice": {"slow": {"optimizer.lr": 1e-3, "optimizer.weight_decay": 0.1}, "fast": {"optimizer.lr": 1e-2}}},
    },
    "arms": [BASELINE, STRONG],
    "seeds": [0, 1001],
    "scheduler": {"kind": "none"},
    "budget": {"trials": 20, "concurrency": 2, "hours": 1.0},
    "selection": {"fraction": 0.25, "blocks": 1, "guard": 0},
}


def line(number: int, value: float | None, state: str = "COMPLETE", arm: str | None = None, **params: Any) -> dict[str, Any]:
    difference = value - 50.0 if value is not None and state == "COMPLETE" else None
    return {"number": number, "arm": arm, "state": state, "value": value, "difference": difference, "seed": 0, "params": params, "epochs": 3}


ARMS = [
    line(0, 50.0, arm="output_only", **{"method.alpha": 0, "method.beta": 0}),
    {**line(1, 51.0, arm="output_only"), "seed": 1001, "difference": 0.0},
    line(2, 55.0, arm="strong", **STRONG["set"]),
    {**line(3, None, "FAIL", arm="strong"), "seed": 1001},
]
SAMPLED = [
    line(4, 60.0, **{"method.alpha": 0.5, "recipe": "fast"}),
    line(5, 70.0, "PRUNED", **{"method.alpha": 0.6, "recipe": "fast"}),
    line(6, 64.0, **{"method.alpha": 0.7, "recipe": "slow"}),
    line(7, 63.0, **{"recipe": "slow", "method.alpha": 0.7}),  # the same again
    line(8, None, "FAIL", **{"method.alpha": 0.8, "recipe": "slow"}),
    line(9, 62.0, **{"method.alpha": 0.9, "recipe": "slow"}),
    line(10, 58.0, **{"method.alpha": 1.0, "recipe": "slow"}),
]


def searched(folder: Path, trials: list[dict[str, Any]] | None = None, **given: Any) -> tuple[Path, dict[str, Any]]:
    folder.mkdir()
    (folder / "search.yaml").write_text(dump_yaml(search_to_dict(make_search({**RAW, **given}))))
    metric = given.get("metric", {})
    summary = {
        "metric": metric.get("name", "select/miou"),
        "mode": metric.get("mode", "max"),
        "finished": True,
        "trials": trials or [*ARMS, *SAMPLED],
    }
    return folder, summary


def names(search: Search) -> list[str]:
    return [arm.name for arm in search.arms]


def test_the_best_whole_trials_are_chosen_once_each_behind_all_arms(tmp_path: Path) -> None:
    plan = make_plan(*searched(tmp_path / "s"), top=2)
    assert names(plan.search) == ["output_only", "strong", "trial-0006", "trial-0009"]
    assert plan.comparisons == 3
    assert plan.facts["left_out"] == [{"trial": 7, "same_as": "trial-0006"}]
    assert plan.facts["candidates"] == 5
    assert names(make_plan(tmp_path / "s", {**searched(tmp_path / "t")[1], "mode": "min"}, top=2).search)[2:] == ["trial-0010", "trial-0004"]
    assert len(names(make_plan(tmp_path / "s", searched(tmp_path / "u")[1], top=99).search)) == 6


def test_a_trial_that_equals_an_arm_is_compared_as_the_arm(tmp_path: Path) -> None:
    same = line(4, 99.0, **{"method.alpha": 2.0})
    arm = {"name": "strong", "set": {"method.alpha": 2.0}}
    plan = make_plan(*searched(tmp_path / "s", [*ARMS, same, SAMPLED[2]], arms=[BASELINE, arm]), top=1)
    assert names(plan.search) == ["output_only", "strong", "trial-0006"]
    assert plan.facts["left_out"] == [{"trial": 4, "same_as": "strong"}]


def test_every_run_is_that_of_the_search_but_for_its_seed(tmp_path: Path) -> None:
    folder, summary = searched(tmp_path / "s")
    before, plan = make_search(load_yaml(folder / "search.yaml")), make_plan(folder, summary)
    by_name = {"output_only": ARMS[0], "strong": ARMS[2], **{f"trial-{trial['number']:04d}": trial for trial in SAMPLED}}
    for arm in plan.search.arms:
        then = before.run_of(by_name[arm.name]["params"], name="x", seed=7)
        assert plan.search.run_of(arm.set_, name="x", seed=7) == then, arm.name
    # `recipe` is no setting: what it stood for is.
    (slow,) = [arm.set_ for arm in plan.search.arms if arm.name == "trial-0006"]
    assert slow == {"method.alpha": 0.7, "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.1}


def test_it_is_a_search_without_sampling_on_data_that_were_never_scored(tmp_path: Path) -> None:
    search = make_plan(*searched(tmp_path / "s"), top=2, seeds=9, concurrency=3).search
    assert (search.score_on, search.metric.name, search.scheduler.kind, dict(search.space)) == ("val", "val/miou", "none", {})
    assert (search.budget.trials, search.budget.concurrency, search.budget.hours) == (36, 3, None)
    assert make_plan(*searched(tmp_path / "t")).search.budget.concurrency == 2


def test_seeds_are_fresh(tmp_path: Path) -> None:
    plan = make_plan(*searched(tmp_path / "s"), seeds=8)
    assert list(plan.search.seeds) == [1000, 1002, 1003, 1004, 1005, 1006, 1007, 1008]  # 1001 was the search's
    assert plan.facts["used_seeds"] == [0, 1001]


def test_epochs_are_those_of_the_search_or_given_for_all(tmp_path: Path) -> None:
    folder, summary = searched(tmp_path / "s")
    runs = {
        arm.name: make_plan(folder, summary).search.run_of(arm.set_, name="x", seed=0).optimizer.epochs
        for arm in make_plan(folder, summary).search.arms
    }
    assert runs == {"output_only": 3, "strong": 5, "trial-0006": 3, "trial-0009": 3, "trial-0004": 3}
    of_each = {each["name"]: each["length"] for each in make_plan(folder, summary).facts["configurations"]}
    assert {name: each["epochs"] for name, each in of_each.items()} == runs
    assert {each["progressive"] for each in of_each.values()} == {None}
    plan = make_plan(folder, summary, epochs=7)
    assert {plan.search.run_of(arm.set_, name="x", seed=0).optimizer.epochs for arm in plan.search.arms} == {7}
    assert plan.facts["epochs"] == 7


def test_what_the_search_said_is_kept(tmp_path: Path) -> None:
    found = {each["name"]: each["search"] for each in make_plan(*searched(tmp_path / "s")).facts["configurations"]}
    assert found["output_only"] == {"value": 50.5, "difference": 0.0, "seeds": [0, 1001]}
    assert found["strong"] == {"value": 55.0, "difference": 5.0, "seeds": [0]}
    assert found["trial-0006"] == {"value": 64.0, "difference": 14.0, "seeds": [0]}


def test_seeds_that_could_show_nothing_are_answered_with_those_that_could(tmp_path: Path) -> None:
    folder, summary = searched(tmp_path / "s")
    assert make_plan(folder, summary, top=3, seeds=8).obstacle() == ""
    assert make_plan(folder, summary, top=2, seeds=7).obstacle() == ""
    text = make_plan(folder, summary, top=3, seeds=7).obstacle()
    assert "7 seeds and 4 comparisons give 0.0625: nothing could win" in text
    assert text.endswith("give --seeds 8")


@pytest.mark.parametrize(
    ("given", "wording"),
    [
        ({"top": 0}, "`--top >= 1` must hold, but got 0"),
        ({"seeds": 0}, "`--seeds >= 1` must hold, but got 0"),
        ({"epochs": -1}, "`--epochs >= 1` must hold, but got -1"),
        ({"concurrency": 0}, "`--concurrency >= 1` must hold, but got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, int], wording: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=wording):
        make_plan(*searched(tmp_path / "s"), **given)  # type: ignore[arg-type]


def test_what_leaves_nothing_to_confirm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a sampled trial must have finished, or an arm must stand beside the baseline"):
        make_plan(*searched(tmp_path / "s", [ARMS[0], SAMPLED[1]], arms=[BASELINE]))
    with pytest.raises(ConfigError, match="was scored on val: nothing is left to confirm on"):
        make_plan(*searched(tmp_path / "t", score_on="val", metric={"name": "val/miou"}))
    own = {"function": "mine:train", "run": {}, "arms": [], "space": {"x": {"float": [0, 1]}}, "metric": {"name": "loss"}}
    with pytest.raises(ConfigError, match="must hold a search over trainings, but holds one of your own function"):
        make_plan(*searched(tmp_path / "u", **own))


def begun(tmp_path: Path, **given: Any) -> Path:
    """A confirmation of which only the plan was written when its process died."""
    folder = tmp_path / "begun"
    plan = make_plan(*searched(tmp_path / "s"), **given)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        confirm(plan, folder, on_ready=die)
    return folder


@pytest.mark.parametrize("is_same", [True, False])
def test_a_confirmation_on_other_data_says_so_before_it_runs(tmp_path: Path, is_same: bool) -> None:
    folder, summary = searched(tmp_path / "s")
    known = make_search(load_yaml(folder / "search.yaml")).base().data.load("train").fingerprint()
    plan = make_plan(folder, {**summary, "data": {"train": known if is_same else "0123456789abcdef"}})
    said: list[str] = []

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        confirm(plan, tmp_path / "begun", on_ready=die, say=said.append)
    words = f"note: The data are not those of the search: train has the fingerprint {known} and had 0123456789abcdef."
    assert [line.startswith(words) for line in said] == ([] if is_same else [True])


def test_a_plan_that_was_begun_is_the_same_plan(tmp_path: Path) -> None:
    folder = begun(tmp_path, top=2, seeds=9, epochs=4)
    plan, again = make_plan(tmp_path / "s", searched(tmp_path / "t")[1], top=2, seeds=9, epochs=4), load_plan(folder)
    assert (again.search, again.facts) == (plan.search, plan.facts)
    assert load_plan(folder, top=2, seeds=9, epochs=4, concurrency=1).search.budget.concurrency == 1


@pytest.mark.parametrize(
    ("given", "wording"),
    [
        ({"seeds": 10}, "with --seeds 9, but got 10; more seeds after a look at the result would make wins of chance"),
        ({"top": 3}, "with --top 2, but got 3$"),
        ({"epochs": 2}, "with --epochs 3, but got 2$"),
    ],
)
def test_a_confirmation_goes_on_as_it_began_or_not_at_all(given: dict[str, int], wording: str, tmp_path: Path) -> None:
    folder = begun(tmp_path, top=2, seeds=9)
    with pytest.raises(ConfigError, match=wording):
        load_plan(folder, **given)


@pytest.mark.parametrize(("text", "wording"), [(None, "does not exist; leave --resume out"), ("{", "must be JSON"), ("{}", "must have schema 1")])
def test_a_plan_that_cannot_be_read_is_told(text: str | None, wording: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=wording):
        load_plan(tmp_path)


@pytest.fixture(scope="module")
def confirmed(own_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A real search of two tiny trials, and its confirmation with three seeds."""
    folder = tmp_path_factory.mktemp("confirm") / "s"
    raw = {**RAW, "arms": [BASELINE], "seeds": [0], "budget": {"trials": 2, "concurrency": 2}}
    summary, _ = run_search(make_search(raw), folder)
    plan = make_plan(folder, summary, top=1, seeds=3)
    assert plan.obstacle()  # three seeds are for a test, and show nothing
    found, _ = confirm(plan, folder / FOLDER)
    assert found is not None
    return folder, found


@pytest.mark.long
def test_confirmed_values_are_those_of_plain_trainings(confirmed: tuple[Path, dict[str, Any]]) -> None:
    """Bit by bit: on all of train, scored on val."""
    folder, found = confirmed
    configuration = found["configurations"][1]
    best = load_run(folder / "trials" / f"{configuration['trial']:04d}" / "run.yaml")
    for seed in (1000, 1002):
        alone = train(best.model_copy(update={"seed": seed}))
        assert configuration["values"][str(seed)] == alone.metrics["val/miou"]
    base = found["configurations"][0]["values"]
    assert configuration["differences"] == {seed: value - base[seed] for seed, value in configuration["values"].items()}


@pytest.mark.long
def test_a_confirmation_is_on_disk_and_read_again_without_a_run(confirmed: tuple[Path, dict[str, Any]]) -> None:
    folder, found = confirmed
    at = folder / FOLDER
    before = (at / RESULT).read_bytes()
    lines = (at / "trials.jsonl").read_bytes()
    again, _ = confirm(load_plan(at), at, resume=True)
    assert (at / RESULT).read_bytes() == before
    assert (at / "trials.jsonl").read_bytes() == lines
    assert json.loads(before) == json.loads(json.dumps({"schema": 1, **(again or {})}))
    with pytest.raises(ConfigError, match="holds a confirmation; continue it with --resume, or move it away"):
        confirm(make_plan(folder, json.loads((folder / "summary.json").read_text()), top=1, seeds=3), at)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:method.loss has no effect")  # the best of them may be the baseline
def test_what_is_exported_trains_into_the_interval_that_it_names(confirmed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = confirmed
    written = export(folder, tmp_path / "best.yaml")
    expected = written.provenance["expected"]
    (best,) = [each for each in found["configurations"] if each["name"] == found["best"]]
    assert (expected["low"], expected["high"]) == prediction_interval(list(best["values"].values()))
    run = load_run(tmp_path / "best.yaml")
    assert run.seed not in found["seeds"]
    again = train(run).metrics[expected["metric"]]
    assert again not in best["values"].values()
    assert expected["low"] <= again <= expected["high"]
