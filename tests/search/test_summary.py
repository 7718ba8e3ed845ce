import io
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from imachsr.config.schema import ConfigError
from imachsr.console import search_table
from imachsr.files import LOCK
from imachsr.report.html import write_report
from imachsr.report.table import load_summary, rows
from imachsr.search.budget import Meter
from imachsr.search.entry import Entry
from imachsr.search.pace import Pace
from imachsr.search.study import Proposal
from imachsr.search.summary import FILE, Summary, alarms, check_data, earlier_revisions, earlier_s
from tests.search.play import play, score, toy_driver, toy_search


def entry(
    number: int, curve: list[float], *, values: dict[str, Any] | None = None, key: str = "", losses: list[float] | None = None, **parts: Any
) -> Entry:
    proposal = Proposal(number=number, arm=None, seed=parts.pop("seed", 0), values=values or {"x": number}, origin="sampled", key=key or str(number))
    found = {epoch: (value,) for epoch, value in enumerate(curve, 1)}
    told = dict(enumerate(losses or [], 1))
    return Entry(proposal=proposal, max_epochs=4, state="COMPLETE", curve=found, losses=told, **parts)


def numbered(*entries: Entry) -> dict[int, Entry]:
    return {each.proposal.number: each for each in entries}


SAME = [1.0, 2.0, 3.0, 4.0]


def test_different_configurations_with_equal_curves_raise_an_alarm_that_names_what_had_no_effect() -> None:
    one, two = entry(0, SAME, values={"method.alpha": 0.1, "lr": 1}), entry(3, SAME, values={"method.alpha": 0.7, "lr": 1})
    assert alarms(numbered(one, entry(1, [1.0, 2.0, 3.0, 4.0000001]), two)) == [
        "trials 0 and 3 have equal curves, bit by bit, although method.alpha differ: that had no effect"
    ]


@pytest.mark.parametrize(
    "other",
    [
        entry(1, SAME, key="0"),  # the same configuration, written another way
        entry(1, SAME, seed=1),
        entry(1, SAME[:2]),  # stopped early: a few epochs may agree
        entry(1, SAME, losses=[0.1, 0.2, 0.3, 0.5]),  # a score may agree by chance, a loss does not
    ],
)
def test_curves_that_say_nothing_raise_none(other: Entry) -> None:
    assert alarms(numbered(entry(0, SAME, losses=[0.1, 0.2, 0.3, 0.4]), other)) == []


def test_an_alarm_is_raised_by_a_search_whose_knob_does_nothing(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path, toy_search(scheduler={"kind": "none"}, budget={"trials": 3}))
    play(driver, answer=lambda values, epoch: {"score": epoch})
    summary, _ = driver.close()
    assert len(summary["alarms"]) == 2
    assert all("although x differ" in each for each in summary["alarms"])
    again = toy_driver(tmp_path, toy_search(scheduler={"kind": "none"}, budget={"trials": 3}), resume=True)
    assert again.close()[0]["alarms"] == summary["alarms"]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_dominates(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    search = toy_search(also=[{"name": "cost", "mode": "min"}, {"name": "gain", "mode": "max"}])
    points = {number: tuple(float(generator.randint(0, 6)) for _ in range(3)) for number in range(60)}
    entries = numbered(*(entry(number, []) for number in points))
    for number, values in points.items():
        entries[number].curve = {4: values}
    entries[60] = entry(60, [])
    entries[60].state, entries[60].curve = "PRUNED", {1: (99.0, 0.0, 99.0)}  # not at its end: no candidate
    summary = Summary(folder=tmp_path, search=search, uid="x", levels=(), max_epochs=4)
    found = summary.write(entries, Meter(budget=search.budget), remaining=0, ended_early="", concurrency=1)["front"]

    def is_dominated(mine: tuple[float, ...]) -> bool:
        return any(other != mine and other[0] >= mine[0] and other[1] <= mine[1] and other[2] >= mine[2] for other in points.values())

    assert found == [number for number, mine in points.items() if not is_dominated(mine)]


def test_table_and_report_show_a_search_with_several_objectives(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path, toy_search(also=[{"name": "cost", "mode": "min"}]))
    play(
        driver, answer=lambda values, epoch: {"infeasible": {"step_ms": 1.0}} if values["x"] > 0.9 else {**score(values, epoch), "cost": values["x"]}
    )
    driver.close()
    summary = load_summary(tmp_path)
    whole = rows(summary)
    assert len(whole) == len(summary["trials"])
    assert summary["front"]
    assert {row.number for row in whole if row.is_front} == set(summary["front"])
    beyond = {row.number: row.error for row in whole if row.error}
    assert beyond == {item["number"]: "infeasible" for item in summary["trials"] if not item["feasible"]}
    out = io.StringIO()
    Console(file=out, width=200).print(search_table(summary))
    assert "cost" in out.getvalue()
    assert out.getvalue().count("finished, front") == len(summary["front"])
    page = write_report(tmp_path).read_text()
    assert "<th class=n><button>cost</button>" in page
    assert page.count("<td>finished, front") == len(summary["front"])


def test_what_ran_is_told_as_it_was_when_the_search_began(tmp_path: Path) -> None:
    driver = toy_driver(tmp_path)
    play(driver, most=1)
    first, _ = driver.close()
    assert set(first["revisions"]) == {"imachsr", "folder"}
    changed = {**first, "revisions": {"imachsr": "then", "folder": None}}
    (tmp_path / FILE).write_text(json.dumps(changed))
    again, _ = toy_driver(tmp_path, resume=True).close()
    assert again["revisions"] == {"imachsr": "then", "folder": None}


def test_a_search_goes_on_with_the_data_that_it_began_with_only(tmp_path: Path) -> None:
    check_data(tmp_path, {"train": "a"})  # a new one
    summary, _ = toy_driver(tmp_path, data={"train": "a"}).close()
    assert summary["data"] == {"train": "a"}
    check_data(tmp_path, {"train": "a"})
    with pytest.raises(ConfigError, match="the data must be those that the search in .* began with, but train has the fingerprint b and had a"):
        check_data(tmp_path, {"train": "b"})
    check_data(tmp_path, {})  # a function of the user's own has none


@pytest.mark.parametrize("text", ["", "{", "[]", '{"wall_s": null, "revisions": 3}', '{"wall_s": "x"}'])
def test_a_summary_that_is_broken_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).touch()  # of the search that wrote it
    (tmp_path / FILE).write_text(text)
    assert earlier_s(tmp_path) == 0
    assert earlier_revisions(tmp_path) is None
    toy_driver(tmp_path).close()


def test_telling_of_many_trials_takes_a_twentieth_of_the_time_at_most() -> None:
    now, happened = [0.0], []
    pace = Pace(least_s=0.2, clock=lambda: now[0])

    def work() -> None:
        happened.append(now[0])
        now[0] += 0.5  # what it takes

    while now[0] < 100:
        pace.when_due(work)
        now[0] += 0.01
    assert len(happened) * 0.5 <= 100 / 20 + 0.5
    assert len(happened) >= 9


def test_a_summary_of_thousands_of_trials_is_written_in_a_moment(tmp_path: Path) -> None:
    search = toy_search(also=[{"name": "cost", "mode": "min"}])
    entries = {}
    for number in range(3000):
        entries[number] = entry(number, [])
        entries[number].curve = {4: (random.random(), random.random())}
    summary = Summary(folder=tmp_path, search=search, uid="x", levels=(), max_epochs=4)
    meter = Meter(budget=search.budget)
    began = time.process_time()
    summary.write(entries, meter, remaining=0, ended_early="", concurrency=1)
    assert time.process_time() - began < 3  # all pairs of points would take more than ten
