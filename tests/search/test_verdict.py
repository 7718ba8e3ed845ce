"""What a confirmation says of numbers that are known."""

import json
from typing import Any

import pytest

from imachsr.search.paired import bootstrap_interval, holm, prediction_interval, sign_flip, wilcoxon
from imachsr.search.verdict import judge, other_data

SEEDS = list(range(1000, 1008))
LEVELS = [30.1, 29.4, 31.0, 30.6, 29.9, 30.3, 31.2, 28.8]
GAIN = [3.1, 2.4, 3.6, 1.9, 2.7, 3.3, 2.2, 2.9]
NOISE = [0.4, -0.3, 0.1, -0.6, 0.5, -0.2, 0.3, -0.1]


def facts(*names: str, **given: Any) -> dict[str, Any]:
    return {
        "search": "streets",
        "metric": "select/miou",
        "confirmed": "val/miou",
        "mode": "max",
        "epochs": 12,
        "seeds": SEEDS,
        "candidates": 20,
        "configurations": [
            {"name": name, "trial": None if name == "base" else 7, "settings": {}, "search": {"value": 33.0, "difference": 5.0, "seeds": [0]}}
            for name in ("base", *names)
        ],
        **given,
    }


def ran(over: dict[str, list[float | None]]) -> dict[str, Any]:
    """summary.json of runs with these gains over the levels of the baseline; None is a failure."""
    trials = []
    for name, gains in over.items():
        for seed, level, gain in zip(SEEDS, LEVELS, gains, strict=True):
            state, value = ("FAIL", None) if gain is None else ("COMPLETE", level + gain)
            trials.append({"arm": name, "seed": seed, "state": state, "value": value})
    return {"trials": trials, "versions": {"torch": "2.14.1"}}


def judged(mode: str = "max", **over: list[float | None]) -> dict[str, dict[str, Any]]:
    found = judge(facts(*over, mode=mode), ran({"base": [0.0] * 8, **over}))
    return {each["name"]: each for each in found["configurations"]}


def test_differences_are_of_equal_seeds_and_tested_as_a_family() -> None:
    found = judged(gain=GAIN, noise=NOISE, loss=[-each for each in GAIN])
    assert {name: each["verdict"] for name, each in found.items()} == {"base": "baseline", "gain": "better", "noise": "open", "loss": "worse"}
    gain = found["gain"]
    assert list(gain["differences"].values()) == pytest.approx(GAIN)
    assert gain["difference"] == pytest.approx(sum(GAIN) / 8)
    assert gain["p"] == sign_flip(GAIN).p == 2 / 256
    assert gain["p_wilcoxon"] == wilcoxon(GAIN).p
    assert gain["interval"] == pytest.approx(bootstrap_interval(GAIN), abs=1e-6)
    assert [found[name]["p_holm"] for name in ("gain", "noise", "loss")] == list(holm([found[name]["p"] for name in ("gain", "noise", "loss")]))
    assert gain["expected"] == pytest.approx(prediction_interval([level + each for level, each in zip(LEVELS, GAIN, strict=True)]))
    assert found["base"]["expected"] == pytest.approx(prediction_interval(LEVELS))
    assert gain["search"]["difference"] == 5.0  # beside 2.76 that are left: the winner's curse


def test_the_words_say_what_the_numbers_say() -> None:
    found = judged(gain=GAIN, noise=NOISE)
    low, high = bootstrap_interval(GAIN)
    assert found["gain"]["words"] == (
        f"gain: better than base: +2.76 points in the mean of 8 pairs (95 % interval {low:+.2f} to {high:+.2f}), p 0.00781, adjusted 0.0156"
    )
    assert found["noise"]["words"].startswith("noise: neither better nor worse than base as far as these runs can tell: +0.01 points")
    assert found["base"]["words"] == "base: 30.16 in the mean of 8 runs, what the others are compared with"


def test_less_is_better_where_it_is() -> None:
    found = judged(mode="min", up=GAIN, down=[-each for each in GAIN])
    assert (found["up"]["verdict"], found["down"]["verdict"]) == ("worse", "better")
    assert found["down"]["difference"] < 0
    assert judge(facts("up", mode="min"), ran({"base": [0.0] * 8, "up": GAIN}))["best"] == "base"


def test_the_same_gain_is_lost_among_too_many_others() -> None:
    others = {f"noise{index}": NOISE for index in range(6)}
    assert judged(gain=GAIN, **others)["gain"]["verdict"] == "open"  # 7 x 2 / 256 > 0.05
    del others["noise0"]
    assert judged(gain=GAIN, **others)["gain"]["verdict"] == "better"


def test_a_configuration_that_failed_is_not_judged_by_the_seeds_that_went_well() -> None:
    found = judged(gain=[None, *GAIN[1:]], other=GAIN)
    assert found["gain"]["verdict"] == "failed"
    assert (found["gain"]["p"], found["gain"]["p_holm"]) == (None, None)
    assert found["gain"]["words"] == "gain: not judged, since it failed with 1 of the seeds (1000)"
    assert found["other"]["p_holm"] == 2 * found["other"]["p"]  # it stays in the family
    assert judge(facts("gain"), ran({"base": [0.0] * 8, "gain": [None, *GAIN[1:]]}))["best"] == "base"


def test_a_seed_with_which_the_baseline_failed_is_left_out_for_all() -> None:
    found = judge(facts("gain"), ran({"base": [None, *[0.0] * 7], "gain": GAIN}))
    base, gain = found["configurations"]
    assert base["verdict"] == "failed"
    assert "it failed with 1000, which are left out for all" in base["words"]
    assert (len(gain["differences"]), gain["p"], gain["verdict"]) == (7, 2 / 128, "better")
    assert "over 7 seeds" in found["notes"][0]


def test_without_any_baseline_nothing_is_said() -> None:
    found = judge(facts("gain"), ran({"base": [None] * 8, "gain": GAIN}))
    base, gain = found["configurations"]
    assert base["words"] == "base: finished with no seed, so that nothing can be compared"
    assert (gain["verdict"], gain["difference"], gain["interval"]) == ("failed", None, None)
    assert gain["words"] == "gain: not judged, since base finished with no seed"
    assert found["best"] == "gain"


def test_equal_runs_are_no_difference_and_no_error() -> None:
    same = judged(same=[0.0] * 8)["same"]
    assert (same["p"], same["p_wilcoxon"], same["interval"], same["verdict"]) == (1.0, 1.0, (0.0, 0.0), "open")


def test_the_notes_tell_what_could_be_found_and_where_luck_lay() -> None:
    notes = judge(facts("gain", "noise"), ran({"base": [0.0] * 8, "gain": GAIN, "noise": NOISE}))["notes"]
    assert "2 comparisons over 8 seeds" in notes[0]
    assert "smallest adjusted p possible is 0.016" in notes[0]
    assert "compare the differences, not the levels" in notes[1]
    assert "the best of 20" in notes[2]
    assert "12 epochs" in notes[3]
    one = facts("gain", metric="train/loss", confirmed="train/loss", candidates=1)
    assert len(judge(one, ran({"base": [0.0] * 8, "gain": GAIN}))["notes"]) == 2


def test_a_metric_that_is_no_percentage_keeps_its_digits() -> None:
    small = [each / 10_000 for each in GAIN]
    found = judge(facts("less", confirmed="val/loss", mode="min"), ran({"base": [0.0] * 8, "less": [-each for each in small]}))
    assert "-0.0002763 in the mean of 8 pairs" in found["configurations"][1]["words"]


def test_what_is_written_depends_on_the_runs_alone_and_not_on_their_order() -> None:
    summary = ran({"base": [0.0] * 8, "gain": GAIN, "noise": NOISE})
    backwards = {**summary, "trials": summary["trials"][::-1]}
    assert json.dumps(judge(facts("gain", "noise"), summary)) == json.dumps(judge(facts("gain", "noise"), backwards))


def test_other_data_than_the_search_had_are_noted() -> None:
    def notes(before: dict[str, str]) -> list[str]:
        return judge(facts("gain", data=before), {**ran({"base": [0.0] * 8, "gain": GAIN}), "data": {"train": "aa", "val": "bb"}})["notes"]

    plain = judge(facts("gain"), ran({"base": [0.0] * 8, "gain": GAIN}))["notes"]
    assert notes({"train": "aa"}) == notes({}) == notes({"train": "aa", "val": "bb"}) == plain
    assert notes({"train": "cc"}) == [other_data({"train": "cc"}, {"train": "aa", "val": "bb"}), *plain]
    assert "train has the fingerprint aa and had cc" in notes({"train": "cc"})[0]
