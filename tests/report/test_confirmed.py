import re
from typing import Any

import numpy as np
import pytest

from imachsr.report.confirmed import differences, followed
from tests.report.folders import BASELINE, trial

BASE = {"name": "baseline", "trial": None, "verdict": "baseline", "mean": 50.0, "search": {"value": 49.0, "difference": 0.0}}
BETTER = {
    "name": "trial-0002",
    "trial": 2,
    "verdict": "better",
    "mean": 52.0,
    "difference": 2.0,
    "interval": [1.0, 3.0],
    "differences": {"1000": 1.5, "1001": 2.5},
    "p": 0.0078,
    "p_holm": 0.0156,
    "search": {"value": 51.0, "difference": 3.0},
}
OPEN = {
    **BETTER,
    "name": "trial-0004",
    "trial": 4,
    "verdict": "open",
    "mean": 49.5,
    "difference": -0.5,
    "interval": [-2.0, 1.0],
    "differences": {"1000": -0.5},
}
FAILED = {
    **BETTER,
    "name": "bad",
    "trial": None,
    "verdict": "failed",
    "difference": None,
    "interval": None,
    "differences": {},
    "p": None,
    "p_holm": None,
}


def found(*others: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"configurations": [BASE, *others], "confirmed": "val/miou", "mode": "max", "best": "trial-0002", **more}


def test_places_in_the_drawing_are_the_differences_on_one_scale() -> None:
    text = differences(found(BETTER, OPEN))
    dots = [float(x) for x in re.findall(r"<circle class='dot[^']*' cx='([.\d]+)'", text)]
    pairs = [float(x) for x in re.findall(r"<circle class='pair' cx='([.\d]+)'", text)]
    ends = [float(x) for line in re.findall(r"class='interval[^']*' d='M([.\d]+),[.\d]+H([.\d]+)'", text) for x in line]
    zero = float(re.search(r"class='axis stopped' d='M([.\d]+),", text)[1])  # type: ignore[index]
    values = [0.0, 2.0, -0.5, 1.5, 2.5, -0.5, 1.0, 3.0, -2.0, 1.0]
    places = [zero, *dots, *pairs, *ends]
    slope, offset = np.polyfit(values, places, 1)
    assert slope > 0
    assert np.abs(slope * np.array(values) + offset - places).max() < 0.11  # places have one digit
    ticks = {float(text): float(x) for x, text in re.findall(r"<text x='([.\d]+)' y='[.\d]+' text-anchor='middle'>([-+.\d]+)</text>", text)}
    assert 0.0 in ticks
    assert all(abs(slope * value + offset - place) < 0.11 for value, place in ticks.items())


@pytest.mark.parametrize(("mode", "side"), [("max", "end"), ("min", "start")])
def test_the_better_side_is_named(mode: str, side: str) -> None:
    assert re.search(rf"text-anchor='{side}'>better<", differences(found(BETTER, mode=mode)))


def test_the_table_holds_every_configuration_also_one_that_failed() -> None:
    text = differences(found(BETTER, FAILED))
    rows = [re.sub(r"<t[dh][^>]*>", "|", row).split("|")[1:] for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert rows[1] == ["baseline", "49.00", "+0.00", "50.00", "", "", "", "", "baseline"]
    assert rows[2] == ["trial-0002", "51.00", "+3.00", "52.00", "+2.00", "+1.00 to +3.00", "0.0078", "0.0156", "better"]
    assert rows[3][0] == "bad"
    assert rows[3][-1] == "failed"
    assert len(re.findall("circle class='dot", text)) == 1


@pytest.mark.parametrize("bounds", [[None, None], [1.0, None], None])
def test_an_interval_may_have_no_bound(bounds: Any) -> None:
    text = differences(found({**BETTER, "interval": bounds}))
    assert ("no bound" in text) == (bounds is not None)
    assert text.count("class='interval") == (bounds is not None)
    assert "nan" not in text
    assert "inf" not in text.replace("infonce", "")


def test_equal_values_are_drawn() -> None:
    assert "<circle class='dot" in differences(found({**OPEN, "difference": 0.0, "interval": [0.0, 0.0], "differences": {"1000": 0.0}}))


def test_names_are_escaped_and_long_ones_cut() -> None:
    name = "</svg><script>" + "x" * 40
    text = differences(found({**BETTER, "name": name}))
    assert "<script>" not in text
    assert "&lt;/svg&gt;&lt;script&gt;" + "x" * 40 in text


@pytest.mark.parametrize("given", [None, found(FAILED)])
def test_nothing_to_compare_draws_nothing(given: Any) -> None:
    assert differences(given) == ""


def summary(best: int) -> dict[str, Any]:
    return {"baseline": 0, "best": best, "trials": [BASELINE, trial(1, arm="b"), trial(2), trial(4)]}


@pytest.mark.parametrize(
    ("best", "confirmation", "followed_best", "words"),
    [
        (2, None, 2, ""),
        (2, found(BETTER), 2, ""),
        (4, found(BETTER), 2, "The confirmation prefers trial 2 to the search's best, trial 4"),
        (2, found({**BETTER, "name": "b", "trial": None}, best="b"), 1, "prefers trial 1 (b) to"),
        (2, found(BETTER, best="baseline"), 2, "The confirmation prefers the baseline"),
        (2, found(FAILED, best=None), 2, ""),
        (2, found({**BETTER, "trial": 9, "name": "trial-0009"}, best="trial-0009"), 2, ""),
    ],
)
def test_what_the_page_shows_follows_the_confirmation(best: int, confirmation: Any, followed_best: int, words: str) -> None:
    given = summary(best)
    shown, said = followed(given, confirmation)
    assert shown["best"] == followed_best
    assert given == summary(best)
    assert words in said
    assert (said == "") == (words == "")
