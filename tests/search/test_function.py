"""The search for the user's own function, as `imachsr.search(space, train_fn)`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import imachsr
from imachsr.config.schema import ConfigError

pytestmark = pytest.mark.xdist_group("ray")
SPACE = {"x": {"float": [-5.0, 5.0]}, "kind": {"choice": ["near", "far"]}, "lift": {"int": [0, 3], "when": {"kind": "far"}}}


def parabola(values: dict[str, Any], report: Callable[[Mapping[str, float]], object]) -> None:
    """Best at x = 2 with kind near; better from epoch to epoch."""
    for epoch in range(4):
        report({"score": -((values["x"] - 2) ** 2) - (values["kind"] == "far") * (3 + values.get("lift", 0)) + 0.1 * epoch})


def moody(values: dict[str, Any], report: Callable[[Mapping[str, float]], object]) -> None:
    """Fails, reports no number, another one, or nothing, by its place."""
    if values["place"] == 0:
        raise RuntimeError("it broke here")
    if values["place"] == 1:
        report({"score": float("nan")})
    if values["place"] == 2:
        report({"accuracy": 1.0})
    if values["place"] >= 4:
        report({"score": float(values["place"])})


@pytest.mark.long
def test_a_function_of_the_users_own_is_searched_stopped_and_continued(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 4, "output": tmp_path / "out", "scheduler": {"kind": "asha", "grace": 1, "reduction": 2}}
    found = imachsr.search(SPACE, parabola, trials=10, **options)
    trials = found.summary["trials"]
    assert len(trials) == 10
    assert {trial["state"] for trial in trials} == {"COMPLETE", "PRUNED"}
    whole = [trial for trial in trials if trial["state"] == "COMPLETE"]
    assert found.value == max(trial["value"] for trial in whole)
    assert found.values == next(trial["params"] for trial in whole if trial["value"] == found.value)
    assert all(("lift" in trial["params"]) == (trial["params"]["kind"] == "far") for trial in trials)
    for trial in trials:  # what was reported is what the values give
        x, far = trial["params"]["x"], trial["params"]["kind"] == "far"
        expected = -((x - 2) ** 2) - far * (3 + trial["params"].get("lift", 0)) + 0.1 * (trial["epochs"] - 1)
        assert trial["value"] == pytest.approx(expected)
    with pytest.raises(ConfigError, match="must be a new folder, but holds a search"):
        imachsr.search(SPACE, parabola, trials=10, **options)
    more = imachsr.search(SPACE, parabola, trials=12, resume=True, **options)
    assert more.summary["trials"][:10] == trials
    assert len(more.summary["trials"]) == 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert len(lines) == sum(trial["epochs"] for trial in more.summary["trials"])
    with pytest.raises(ConfigError, match="must be continued as it began, but function changed"):
        imachsr.search(SPACE, moody, trials=12, resume=True, **options)


@pytest.mark.slow
def test_what_a_function_does_wrong_fails_its_trial_alone_and_is_told_by_name(tmp_path: Path) -> None:
    space = {"place": {"int": [0, 5]}}
    found = imachsr.search(space, moody, trials=6, output=tmp_path / "out", sampler={"kind": "grid"}, scheduler={"kind": "none"})
    by_place = {trial["params"]["place"]: trial for trial in found.summary["trials"]}
    assert by_place.keys() == set(range(6))
    errors = {place: trial["error"] for place, trial in by_place.items()}
    assert errors[0] == "RuntimeError: it broke here"
    assert errors[1] == "score must be finite, but got nan at epoch 1"
    assert errors[2] == "metric.name must be a key of the rows, but got 'score'; they have accuracy"
    assert errors[3] == "reported nothing"
    assert errors[4] is errors[5] is None
    assert (found.values, found.value) == ({"place": 5}, 5.0)
    assert "it broke here" in (tmp_path / "out" / "trials" / f"{by_place[0]['number']:04d}" / "error.txt").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": None}, r"`train` must be a function \(values, report\), but got None"),
        ({"epochs": 0}, "`epochs >= 1` must hold, but got 0"),
        ({"mode": "best"}, "'max' or 'min'"),
        ({"trials": 0}, "trials >= 1"),
        ({"space": {"x": {"float": [1, 1]}}}, "low < high"),
        ({"sampler": {"kind": "tpee"}}, "tpe"),
        ({"schedule": {}}, "scheduler"),
        (
            {"space": "search_spaces/quickstart.yaml", "trials": 3},
            "`trials` must stand in search_spaces/quickstart.yaml, which holds the whole search",
        ),
    ],
)
def test_mistakes_are_told_before_anything_starts(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    options = {"space": SPACE, "train": parabola, "output": tmp_path / "out", **given}
    with pytest.raises(ConfigError, match=message):
        imachsr.search(options.pop("space"), options.pop("train"), **options)
    assert not (tmp_path / "out").exists()
