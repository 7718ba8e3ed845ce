import itertools
import random

import pytest
from scipy import stats

from imachsr.report.relations import associations, front, rungs


def sampled(count: int, **settings: object) -> list[dict[str, object]]:
    draw = random.Random(1)
    found = []
    for _ in range(count):
        params = {key: draw.choice(values) if isinstance(values, list) else draw.random() for key, values in settings.items()}
        found.append({"params": params, "value": draw.random()})
    return found


def test_what_decides_the_metric_comes_first_and_noise_near_chance() -> None:
    trials = sampled(200, alpha=None, loss=["a", "b", "c"], noise=None)
    for each in trials:
        each["value"] = {"a": 0.0, "b": 10.0, "c": 20.0}[each["params"]["loss"]] + each["params"]["alpha"]
    found = {each.key: each for each in associations(trials)}
    assert next(iter(found)) == "loss"
    assert found["loss"].share > 0.85
    assert found["noise"].share < 0.05


def test_eta_squared_is_the_kruskal_wallis_statistic_over_its_largest_value() -> None:
    trials = sampled(30, loss=["a", "b", "c"])
    groups = [[each["value"] for each in trials if each["params"]["loss"] == name] for name in "abc"]
    (found,) = associations(trials)
    assert found.share == pytest.approx(stats.kruskal(*groups).statistic / 29)
    assert found.chance == pytest.approx(2 / 29)


def test_the_share_of_chance_is_the_mean_over_all_orders() -> None:
    shares = []
    for order in itertools.permutations(range(5)):
        trials = [{"params": {"x": place, "name": "aabbc"[place]}, "value": value} for place, value in enumerate(order)]
        found = {each.key: each for each in associations(trials)}
        shares.append((found["x"].share, found["name"].share))
    chance = (found["x"].chance, found["name"].chance)
    assert tuple(sum(each) / len(shares) for each in zip(*shares, strict=True)) == pytest.approx(chance)


def test_too_few_trials_or_one_value_tell_nothing() -> None:
    assert associations(sampled(3, alpha=None)) == []
    assert associations(sampled(9, loss=["a"])) == []


def test_the_front_is_what_no_other_dominates() -> None:
    draw = random.Random(2)
    points = [(draw.randint(0, 6), draw.randint(0, 6), number) for number in range(30)]
    found = set(front(points, is_more_better=(False, True)))
    for x, y, number in points:
        dominated = any(a <= x and b >= y and (a, b) != (x, y) for a, b, _ in points)
        assert (number in found) is not dominated


def test_rungs_count_who_came_and_who_was_stopped_there() -> None:
    def trial(number: int, state: str, epochs: int, arm: str | None = None) -> dict[str, object]:
        return {"number": number, "arm": arm, "state": state, "epochs": epochs}

    trials = [trial(0, "COMPLETE", 4, "base"), trial(1, "PRUNED", 1), trial(2, "PRUNED", 2), trial(3, "COMPLETE", 4)]
    curves = {each["number"]: [(epoch, 10.0 * each["number"] + epoch) for epoch in range(1, each["epochs"] + 1)] for each in trials}
    summary = {"mode": "max", "rungs": [1, 2], "trials": trials}
    assert rungs(summary, curves) == [(1, 3, 1, 31.0), (2, 2, 1, 32.0)]
