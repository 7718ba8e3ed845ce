import json
import random
from pathlib import Path
from typing import Any

import pytest

from imachsr.search.budget import Meter
from imachsr.search.driver import Driver
from imachsr.search.space.rules import Budget
from tests.search.play import EPOCHS, play, score, toy_driver, toy_search


class Clock:
    """Time that passes when told so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def answer(self, seconds: float, concurrency: int = 1) -> Any:
        """Epochs that take so long, with several trials side by side."""

        def answered(values: dict[str, Any], epoch: int) -> dict[str, Any]:
            self.now += seconds / concurrency
            return score(values, epoch)

        return answered


def meter(clock: Clock, **parts: Any) -> Meter:
    return Meter(budget=Budget(**parts), clock=clock)


def test_what_was_spent_is_the_sum_over_what_each_trial_held() -> None:
    generator, clock = random.Random(0), Clock()
    prices = {"cpu_hour": 0.25, "gpu_hour": 3.0}
    found = meter(clock, cpus_per_trial=2, gpus_per_trial=1, workers_per_trial=3, prices=prices)
    began: dict[int, float] = {}
    held: dict[int, float] = {}
    for step in range(300):
        clock.now += generator.expovariate(0.1)
        number = generator.randrange(20)
        if number in began:
            held[number] = round(held.get(number, 0.0) + clock.now - began.pop(number), 3)
            found.end(number)
        else:
            began[number] = clock.now
            found.begin(number)
        if step % 10 == 0:
            seconds = {each: held.get(each, 0.0) + (clock.now - began[each] if each in began else 0.0) for each in {*held, *began}}
            hours, spent = sum(seconds.values()) / 3600, found.spent()
            assert spent.hours == pytest.approx((clock.now - 1000) / 3600)
            assert spent.cpu_hours == pytest.approx(6 * hours)
            assert spent.gpu_hours == pytest.approx(3 * hours)
            assert spent.money == pytest.approx(6 * hours * 0.25 + 3 * hours * 3.0)
            for each, own in seconds.items():
                assert found.cost(each).money == pytest.approx(own / 3600 * (6 * 0.25 + 3 * 3.0))


@pytest.mark.long
@pytest.mark.parametrize(
    ("cap", "rate"),
    [({"hours": 0.5}, 1), ({"cpu_hours": 2.0}, 8), ({"gpu_hours": 1.0}, 2), ({"money": 5.0, "prices": {"cpu_hour": 1.0, "gpu_hour": 0.5}}, 9)],
)
def test_every_cap_ends_a_search_within_an_epoch_or_two_percent(tmp_path: Path, cap: dict[str, Any], rate: float) -> None:
    """Two trials at a time, of four CPUs and one GPU each; the rate is what an hour takes of the cap."""
    clock = Clock()
    name = next(iter(cap))
    search = toy_search(budget={"trials": 10_000, "cpus_per_trial": 4, "gpus_per_trial": 1, **cap}, sampler={"kind": "random"})
    driver = toy_driver(tmp_path, search, clock=clock, concurrency=2)
    epoch_s = 30.0
    play(driver, answer=clock.answer(epoch_s, concurrency=2))
    summary, _ = driver.close()
    spent, wanted = summary["spent"][name], cap[name]
    assert wanted <= spent <= max(1.02 * wanted, wanted + rate * epoch_s / 3600 + 1e-4)
    assert summary["finished"]
    assert summary["ended_early"].startswith(f"budget.{name}={wanted:g} is spent (")
    assert {item["state"] for item in summary["trials"]} <= {"COMPLETE", "PRUNED"}
    ended = [item for item in summary["trials"] if item["why"] == summary["ended_early"]]
    assert all(item["state"] == "PRUNED" and 1 <= item["epochs"] < EPOCHS for item in ended)


def test_trials_that_run_when_the_budget_is_spent_end_after_their_epoch_also_arms(tmp_path: Path) -> None:
    clock = Clock()
    search = toy_search(arms=[{"name": "one", "set": {"x": 0.1}}], budget={"trials": 9, "hours": 0.02})
    driver = toy_driver(tmp_path, search, clock=clock)
    play(driver, answer=clock.answer(60), concurrency=2)
    summary, _ = driver.close()
    assert [(item["state"], item["epochs"]) for item in summary["trials"]] == [("PRUNED", 2), ("PRUNED", 1)]  # the first was in its second epoch
    assert all(item["why"].startswith("budget.hours=0.02 is spent") for item in summary["trials"])


def test_the_ledger_of_a_trial_adds_up_over_sittings(tmp_path: Path) -> None:
    clock = Clock()
    search = toy_search(scheduler={"kind": "none"}, budget={"trials": 4, "cpus_per_trial": 2})
    driver = toy_driver(tmp_path, search, clock=clock)
    driver.propose()
    clock.now += 100
    driver.on_row(0, {"epoch": 1, "score": 1.0})
    clock.now += 50
    driver.on_row(0, {"epoch": 2, "score": 1.0})
    driver.close()
    clock.now += 10_000  # nobody works
    driver = toy_driver(tmp_path, search, clock=clock, resume=True)
    proposal = driver.propose()
    assert isinstance(proposal, dict)
    assert proposal["reported"] == 2
    clock.now += 30
    driver.on_row(0, {"epoch": 3, "score": 1.0})
    clock.now += 20
    driver.on_row(0, {"epoch": 4, "score": 1.0})
    driver.on_end(0)
    summary, _ = driver.close()
    assert summary["trials"][0]["wall_s"] == 200
    assert summary["trials"][0]["cost"]["cpu_hours"] == pytest.approx(2 * 200 / 3600, abs=1e-4)
    assert summary["wall_s"] == 200
    assert summary["spent"]["hours"] == pytest.approx(200 / 3600, abs=1e-4)
    own = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [line["held_s"] for line in own] == [100, 150, 180, 200]


def test_time_of_a_sitting_that_was_killed_is_not_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    driver = toy_driver(tmp_path, clock=clock)
    driver.propose()
    clock.now += 500
    driver.on_row(0, {"epoch": 1, "score": 1.0})
    driver._opened.close()  # as when it is killed: no summary is written
    again = toy_driver(tmp_path, clock=clock, resume=True)
    assert again.meter.wall_s == 500
    assert again.meter.seconds(0) == 500
    again.close()


def test_a_spent_budget_ends_what_would_be_continued_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    def begun(name: str) -> Path:
        clock = Clock()
        driver = toy_driver(tmp_path / name, toy_search(budget={"trials": 5, "hours": 1.0}), clock=clock)
        driver.propose()
        clock.now += 3500
        driver.on_row(0, {"epoch": 1, "score": 1.0})
        driver.close()
        return tmp_path / name

    spent = begun("spent")
    ended = toy_driver(spent, toy_search(budget={"trials": 5, "hours": 0.9}), resume=True)
    assert ended.remaining == 0
    assert ended.propose() is None
    summary, _ = ended.close()
    assert [(item["state"], item["epochs"]) for item in summary["trials"]] == [("PRUNED", 1)]
    assert summary["finished"]
    larger = toy_driver(begun("larger"), toy_search(budget={"trials": 5, "hours": 2.0}), resume=True)
    proposal = larger.propose()
    assert isinstance(proposal, dict)
    assert (proposal["number"], proposal["reported"], larger.remaining) == (0, 1, 5)
    larger.close()


def test_the_projected_finish_is_the_actual_one_for_steady_trials(tmp_path: Path) -> None:
    clock = Clock()
    driver = toy_driver(tmp_path, toy_search(scheduler={"kind": "none"}, budget={"trials": 20}), clock=clock, concurrency=2)
    began = clock.now
    projected = []

    def told(values: dict[str, Any], epoch: int) -> dict[str, Any]:
        summary = driver.write_summary()
        if summary["left_s"] is not None:
            projected.append((clock.now, clock.now + summary["left_s"]))
        clock.now += 5
        return score(values, epoch)

    play(driver, answer=told)
    finish = clock.now
    assert finish - began == 20 * EPOCHS * 5
    assert driver.close()[0]["left_s"] == 0
    assert len(projected) > 20
    for now, then in projected:
        assert abs(then - finish) <= 45 + 0.15 * (finish - now)


def test_the_projection_ends_with_the_cap_that_comes_first() -> None:
    clock = Clock()
    found = meter(clock, hours=2.0, cpu_hours=6.0, cpus_per_trial=2)
    assert found.left_s(remaining=10, trial_s=None, concurrency=3) is None
    clock.now += 3600
    assert found.left_s(remaining=3, trial_s=60.0, concurrency=3) == pytest.approx(60)  # the trials
    assert found.left_s(remaining=3000, trial_s=60.0, concurrency=1) == pytest.approx(3600)  # the hours; 6 CPU hours would last three
    assert found.left_s(remaining=3000, trial_s=60.0, concurrency=6) == pytest.approx(1800)  # the CPU hours, twelve an hour


def test_an_early_end_is_told_with_its_reason_and_stands_when_the_search_is_opened_again(tmp_path: Path) -> None:
    early = {"gain": 0.5, "probability": 0.05, "after": 5}
    search = toy_search(scheduler={"kind": "none"}, budget={"trials": 60, "early_end": early})
    driver = toy_driver(tmp_path, search)
    play(driver)
    summary, _ = driver.close()
    assert 5 <= len(summary["trials"]) < 20
    assert summary["finished"]
    assert "better than the best by 0.5 with a probability of about 0.0" in summary["ended_early"]
    assert {item["state"] for item in summary["trials"]} == {"COMPLETE"}  # those that ran got to their end
    again = toy_driver(tmp_path, search, resume=True)
    assert again.remaining == 0
    assert again.propose() is None
    assert again.close()[0]["ended_early"].startswith("budget.early_end")
    hopeful = toy_driver(tmp_path / "other", toy_search(scheduler={"kind": "none"}, budget={"trials": 12, "early_end": {**early, "gain": 1e-6}}))
    play(hopeful)
    assert hopeful.close()[0]["ended_early"] == ""


def test_trials_that_were_under_way_when_little_was_to_be_expected_get_to_their_end(tmp_path: Path) -> None:
    search = toy_search(scheduler={"kind": "none"}, budget={"trials": 60, "early_end": {"gain": 0.5, "probability": 0.5, "after": 10}})
    driver = toy_driver(tmp_path, search)
    play(driver, concurrency=1, most=9)
    first, second = driver.propose(), driver.propose()
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    driver.on_row(second["number"], {"epoch": 1, "score": 1.0})
    for epoch in range(1, EPOCHS + 1):
        driver.on_row(first["number"], {"epoch": epoch, **score(first["config"], epoch)})
    driver.on_end(first["number"])
    assert driver.ended_early
    assert driver.remaining == 1
    driver._opened.close()
    again: Driver = toy_driver(tmp_path, search, resume=True)
    assert again.remaining == 1
    assert play(again) == [second["number"]]
    assert again.close()[0]["trials"][-1]["state"] == "COMPLETE"
