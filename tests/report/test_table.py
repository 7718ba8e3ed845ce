import json
from pathlib import Path
from typing import Any

import pytest

from imachsr.config import ConfigError
from imachsr.config.folder import lock
from imachsr.report.table import Lead, arms, lead, load_summary, rows, short
from tests.report.folders import BASELINE, make, trial

MIXED = [
    BASELINE,
    trial(1, "PRUNED", epochs=2, value=99.0),
    trial(2, value=35.0, difference=5.0),
    trial(3, "FAIL", epochs=1, value=12.0, error="ValueError: no"),
    trial(4, "RUNNING", epochs=3, value=50.0),
    trial(5, value=40.0, difference=10.0),
    trial(6, "PRUNED", epochs=1, value=98.0),
    trial(7, "FAIL", epochs=0, value=None, error="the worker died", taps=[]),
    trial(8, value=20.0, difference=-10.0),
    trial(9, "PRUNED", epochs=2, value=97.0),
]


def numbers(trials: list[dict[str, Any]], mode: str = "max") -> list[int]:
    return [row.number for row in rows({"trials": trials, "mode": mode, "baseline": 0, "max_epochs": 4})]


def test_the_baseline_leads_then_come_finished_stopped_running_and_failed_trials_best_first() -> None:
    assert numbers(MIXED) == [0, 5, 2, 8, 1, 9, 6, 4, 3, 7]


def test_the_order_turns_when_less_is_better() -> None:
    assert numbers(MIXED, "min") == [0, 8, 2, 5, 9, 1, 6, 4, 3, 7]


def test_the_order_does_not_depend_on_the_files_order() -> None:
    assert numbers(MIXED[::-1]) == numbers(MIXED)


def test_the_baseline_leads_even_when_it_failed() -> None:
    assert numbers([trial(0, "FAIL", value=None, epochs=0), trial(1), trial(2)])[0] == 0


def test_a_row_says_in_words_what_the_trial_was() -> None:
    found = {row.number: row for row in rows({"trials": MIXED, "mode": "max", "baseline": 0, "max_epochs": 4})}
    assert {number: row.state for number, row in found.items() if number in (0, 1, 3, 4)} == {0: "finished", 1: "stopped", 3: "failed", 4: "running"}
    assert (found[1].epochs, found[1].value, found[1].difference) == ("2/4", 99.0, None)
    assert (found[5].difference, found[8].difference) == (10.0, -10.0)
    assert (found[0].arm, found[5].arm) == ("baseline", "")
    assert (found[7].error, found[7].value, found[7].taps) == ("the worker died", None, ())
    assert found[2].settings == "loss dice, alpha 0.3, lr 0.001"


def test_trials_that_ran_whole_are_by_value_also_where_epochs_are_a_knob() -> None:
    assert numbers([BASELINE, trial(1, epochs=28, value=34.0), trial(2, epochs=20, value=35.0)]) == [0, 2, 1]


def test_the_lead_of_an_arm_is_in_the_mean_over_its_seeds() -> None:
    both = [("output_only", 0, 30.0, 0.0), ("output_only", 1, 34.0, 0.0), ("dice", 0, 29.0, -1.0), ("dice", 1, 38.0, 4.0)]
    trials = [trial(number, arm=arm, seed=seed, value=value, difference=each) for number, (arm, seed, value, each) in enumerate(both)]
    summary = {"trials": trials, "mode": "max", "baseline": 0, "best": 2}
    assert lead(summary) == Lead(value=33.5, baseline=32.0, difference=1.5, seeds=2)
    assert lead({**summary, "trials": [BASELINE, trial(5, value=40.0, difference=10.0)], "best": 5}) == Lead(
        value=40.0, baseline=30.0, difference=10.0, seeds=1
    )
    assert lead({**summary, "trials": [{**BASELINE, "state": "PRUNED"}], "best": None}) == Lead(value=None, baseline=None, difference=None, seeds=1)


def test_epochs_stand_beside_those_of_the_trial_where_they_are_a_knob() -> None:
    summary = {"trials": [{**trial(1, epochs=6), "max_epochs": 12}, trial(2, epochs=3)], "mode": "max", "baseline": 0, "max_epochs": 4}
    assert {row.number: row.epochs for row in rows(summary)} == {1: "6/12", 2: "3/4"}


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, ""),
        ({"method.entropy": None}, "entropy none"),
        ({"method.alpha": 0.123456}, "alpha 0.123"),
        ({"method.alpha": 0}, "alpha 0"),
        ({"optimizer.lr": 1.23456e-5}, "lr 1.23e-05"),
        ({"data.size": [32, 48], "run": True}, "data.size [32, 48], run True"),
        ({"method.loss": {"kind": "infonce", "temperature": 0.2}}, "loss infonce (temperature 0.2)"),
    ],
)
def test_settings_are_shortened_but_not_changed(params: dict[str, Any], text: str) -> None:
    assert short(params) == text


# What is no search's folder


def test_a_whole_folder_is_read_as_it_is(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", MIXED, best=5)
    written = json.loads((folder / "summary.json").read_text())
    with lock(folder):
        assert load_summary(folder) == written
    for each in written["trials"]:  # whose end nobody sees to
        each["state"] = {"RUNNING": "BROKEN"}.get(each["state"], each["state"])
    assert load_summary(folder) == written


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("", "must be JSON"),
        ('{"schema": 1, "tri', "must be JSON"),
        ("\xff\xfe", "must be JSON"),
        ("[1, 2]", "must have schema 1, but has list"),
        ("{}", "must have schema 1, but has None"),
        ('{"schema": 2, "trials": []}', "must have schema 1, but has 2"),
        ('{"schema": 1, "metrics": {"val/miou": 3}}', "must be the folder of a search, but holds a single training; see .*metrics.jsonl"),
    ],
)
def test_a_summary_of_something_else_is_named(text: str, wording: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=wording):
        load_summary(tmp_path)


def test_a_folder_without_a_summary_is_no_search(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="must be the --output folder of a search, but has no summary.json"):
            load_summary(folder)


def test_a_file_is_no_search(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="must be the --output folder of a search"):
        load_summary(tmp_path / "file")


def test_a_search_that_has_only_begun_is_told_from_no_search(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match="none has yet; try again later"):
        load_summary(tmp_path)


# Several seeds

SEEDED = [
    trial(number, arm=arm, seed=seed, value=value, difference=difference)
    for number, (arm, seed, value, difference) in enumerate(
        [("b", 0, 30.0, 0.0), ("b", 1, 32.0, 0.0), ("c", 0, 36.0, 6.0), ("c", 1, 30.0, -2.0), ("d", 0, 35.0, 5.0), ("d", 1, 36.0, 4.0)]
    )
]


def seeded(trials: list[dict[str, Any]], mode: str = "max") -> dict[str, Any]:
    return {"trials": trials, "mode": mode, "baseline": 0, "max_epochs": 4}


def test_an_arm_is_its_mean_over_the_seeds_and_its_paired_differences() -> None:
    found = arms(seeded(SEEDED))
    assert [(arm.name, arm.mean, arm.difference, arm.each) for arm in found] == [
        ("b", 31.0, 0.0, "+0.00, +0.00"),
        ("d", 35.5, 4.5, "+5.00, +4.00"),
        ("c", 33.0, 2.0, "+6.00, -2.00"),
    ]
    assert [arm.name for arm in arms(seeded(SEEDED, "min"))] == ["b", "c", "d"]
    assert found[1].words == "d: 35.50 over 2 seeds, +4.50 paired (+5.00, +4.00)"


def test_only_finished_trials_count_for_an_arm_and_only_pairs_for_its_difference() -> None:
    failed = [*SEEDED[:1], trial(1, "FAIL", arm="b", seed=1, value=None), *SEEDED[2:3], {**SEEDED[3], "difference": None}]
    found = {arm.name: arm for arm in arms(seeded(failed))}
    assert (found["b"].values, found["c"].values, found["c"].differences) == ({0: 30.0}, {0: 36.0, 1: 30.0}, {0: 6.0})


def test_one_seed_has_no_means() -> None:
    assert arms(seeded([each for each in SEEDED if each["seed"] == 0])) == []
