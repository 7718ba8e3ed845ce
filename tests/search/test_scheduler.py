import random
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

from imachsr.search.scheduler import Hyperband, Median, Mode, Never, Rule, Rungs, quantile, rung_levels


@pytest.mark.parametrize(
    ("grace", "reduction", "epochs", "levels"),
    [
        (1, 3, 27, (1, 3, 9)),
        (2, 2, 12, (2, 4, 8)),
        (3, 2, 18, (3, 6, 12)),
        (1, 2, 2, (1,)),
        (5, 3, 5, ()),
        (7, 3, 5, ()),
        (1, 4, 100, (1, 4, 16, 64)),
    ],
)
def test_rungs_are_grace_times_powers_below_the_last_epoch(grace: int, reduction: int, epochs: int, levels: tuple[int, ...]) -> None:
    assert rung_levels(grace=grace, reduction=reduction, max_epochs=epochs) == levels


@pytest.mark.parametrize(
    ("grace", "reduction", "message"), [(0, 2, "`grace >= 1` must hold, but got 0"), (1, 1, "`reduction >= 2` must hold, but got 1")]
)
def test_rungs_out_of_range_are_refused(grace: int, reduction: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rung_levels(grace=grace, reduction=reduction, max_epochs=9)


@pytest.mark.parametrize("seed", range(5))
def test_a_quantile_is_between_neighbours_and_linear(seed: int) -> None:
    generator = random.Random(seed)
    values = [generator.gauss(0, 1) for _ in range(5)]
    ordered = sorted(values)
    for i in range(5):
        assert quantile(values, i / 4) == pytest.approx(ordered[i])
    for i in range(4):
        assert quantile(values, (i + 0.25) / 4) == pytest.approx(0.75 * ordered[i] + 0.25 * ordered[i + 1])
    assert quantile([3.0], 0.7) == 3.0


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_stops_are_those_of_ray_s_own_asha_on_random_streams(seed: int, reduction: int, mode: str) -> None:
    generator, epochs = random.Random(seed), 20
    levels = rung_levels(grace=2, reduction=reduction, max_epochs=epochs)
    ours = Rungs(levels=levels, reduction=reduction, mode=mode)  # type: ignore[arg-type]
    ray = AsyncHyperBandScheduler(time_attr="epoch", metric="score", mode=mode, grace_period=2, max_t=epochs, reduction_factor=reduction)
    at, stopped = dict.fromkeys(range(25), 0), 0
    trials = {trial: SimpleNamespace(trial_id=str(trial)) for trial in at}
    for trial in trials.values():
        ray.on_trial_add(None, trial)
    skill = {trial: generator.gauss(0, 1) for trial in at}
    while at:
        # Any interleaving: asynchronous trials advance one epoch at a time.
        trial = generator.choice(list(at))
        at[trial] += 1
        value = skill[trial] + generator.gauss(0, 0.3) + 0.1 * at[trial]
        is_stopped = ours.arrive(trial, at[trial], value)
        assert is_stopped == (ray.on_trial_result(None, trials[trial], {"epoch": at[trial], "score": value}) == ray.STOP)
        stopped += is_stopped
        if is_stopped or at[trial] == epochs - 1:
            del at[trial]
    assert 0 < stopped < 25


def test_the_first_to_arrive_goes_on_and_an_equal_one_too() -> None:
    rungs = Rungs(levels=(2,), reduction=2)
    assert [rungs.arrive(trial, 2, 1.0) for trial in range(6)] == [False] * 6
    assert rungs.arrive(6, 2, 0.999)
    assert not rungs.arrive(7, 2, 1.001)


def test_nothing_stops_between_rungs() -> None:
    rungs = Rungs(levels=(2, 4), reduction=2)
    for epoch in (2, 4):
        rungs.arrive(0, epoch, 10.0)
    assert [rungs.arrive(1, epoch, -10.0) for epoch in (1, 3, 5)] == [False] * 3
    assert rungs.arrive(1, 4, -10.0)


def test_a_replay_changes_neither_decisions_nor_what_is_recorded() -> None:
    generator = random.Random(3)
    stream = [(trial, epoch, generator.random()) for trial in range(12) for epoch in range(1, 9)]
    once, twice = (Rungs(levels=(1, 3), reduction=3) for _ in range(2))
    for arrival in stream[:48]:
        once.arrive(*arrival)
        twice.arrive(*arrival)
    # Again, in another order, with other values: the first ones stand.
    assert not any(twice.arrive(trial, epoch, value - 5) for trial, epoch, value in reversed(stream[:48]))
    assert [once.arrive(*arrival) for arrival in stream[48:]] == [twice.arrive(*arrival) for arrival in stream[48:]]


def streamed(seed: int, *, trials: int, epochs: int, tell: Callable[[int, int, float], bool]) -> Iterator[bool]:
    """Trials that advance in any interleaving, until they are stopped or through; what was decided."""
    generator = random.Random(seed)
    skill = {trial: generator.gauss(0, 1) for trial in range(trials)}
    at = dict.fromkeys(skill, 0)
    while at:
        trial = generator.choice(list(at))
        at[trial] += 1
        is_stopped = tell(trial, at[trial], skill[trial] + generator.gauss(0, 0.3) + 0.1 * at[trial])
        yield is_stopped
        if is_stopped or at[trial] == epochs - 1:
            del at[trial]


def theirs(rays: object, trials: int) -> Callable[[int, int, float], bool]:
    """A scheduler of Ray's as a rule."""
    known = {trial: SimpleNamespace(trial_id=str(trial)) for trial in range(trials)}
    controller = SimpleNamespace(get_live_trials=list)
    for trial in known.values():
        rays.on_trial_add(controller, trial)  # type: ignore[attr-defined]

    def tell(trial: int, epoch: int, value: float) -> bool:
        answer = rays.on_trial_result(controller, known[trial], {"epoch": epoch, "score": value})  # type: ignore[attr-defined]
        return bool(answer == "STOP")

    return tell


class Hashed(SimpleNamespace):
    """Ray's rule keeps trials in a set."""

    __hash__ = object.__hash__


def agreed(ours: Rule, their: Callable[[int, int, float], bool], seed: int, *, trials: int, epochs: int) -> int:
    """How many were stopped, by both."""

    def tell(trial: int, epoch: int, value: float) -> bool:
        mine = ours.arrive(trial, epoch, value)
        assert mine == their(trial, epoch, value)
        return mine

    return sum(streamed(seed, trials=trials, epochs=epochs, tell=tell))


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_median_rule_stops_whom_ray_s_own_stops(seed: int, least: int, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.search.test_scheduler.SimpleNamespace", Hashed)
    ours = Median(grace=1, max_epochs=15, least=least, mode=mode)
    rays = MedianStoppingRule(time_attr="epoch", metric="score", mode=mode, grace_period=1, min_samples_required=least)
    assert 0 < agreed(ours, theirs(rays, 20), seed, trials=20, epochs=15) < 20


@pytest.mark.parametrize("grace", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_median_rule_is_that_of_the_paper(seed: int, grace: int) -> None:
    """Worse at its best than the median of the others' running means up to the same epoch, over all their epochs."""
    told: dict[int, list[float]] = {}

    def slow(trial: int, epoch: int, value: float) -> bool:
        told.setdefault(trial, []).append(value)
        means = [np.mean(curve[:epoch]) for other, curve in told.items() if other != trial and len(curve) >= epoch]
        return epoch >= grace and len(means) >= 3 and max(told[trial]) < np.median(means)

    assert 0 < agreed(Median(grace=grace, max_epochs=15), slow, seed, trials=20, epochs=15) < 20


def test_the_median_rule_stops_nobody_at_the_last_epoch() -> None:
    rule = Median(grace=1, max_epochs=3)
    for trial in range(4):
        for epoch in (1, 2, 3):
            rule.arrive(trial, epoch, 10.0)
    assert [rule.arrive(9, epoch, 1.0) for epoch in (1, 2, 3)] == [True, True, False]
    assert rule.levels == (1, 2)


def test_brackets_have_the_shares_of_the_hyperband_paper() -> None:
    # Table 1 of arXiv 1603.06560, R = 81 and eta = 3; its bracket s = 4 is our 0.
    rule = Hyperband(levels=rung_levels(grace=1, reduction=3, max_epochs=81), reduction=3)
    assert Counter(rule.bracket(trial) for trial in range(2 * 143)) == {0: 162, 1: 68, 2: 30, 3: 16, 4: 10}
    # Evenly: no bracket waits long for its first trials.
    for few in (10, 30, 80):
        count = Counter(rule.bracket(trial) for trial in range(few))
        assert all(abs(count[each] - few * share / 143) <= 2 for each, share in enumerate((81, 34, 15, 8, 5)))


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(3))
def test_hyperband_is_ray_s_asha_in_each_bracket(seed: int, mode: Mode) -> None:
    levels = rung_levels(grace=1, reduction=3, max_epochs=27)
    ours = Hyperband(levels=levels, reduction=3, mode=mode)
    options = {"time_attr": "epoch", "metric": "score", "mode": mode, "max_t": 27, "reduction_factor": 3}
    of_bracket = [theirs(AsyncHyperBandScheduler(grace_period=level, **options), 60) for level in levels]

    def told(trial: int, epoch: int, value: float) -> bool:
        bracket = ours.bracket(trial)
        return bracket < len(levels) and of_bracket[bracket](trial, epoch, value)  # the last bracket stops nobody

    assert 0 < agreed(ours, told, seed, trials=60, epochs=27) < 60


@pytest.mark.parametrize("made", [lambda: Median(grace=2, max_epochs=12), lambda: Hyperband(levels=(1, 3, 9), reduction=3)])
def test_what_came_before_a_break_is_worth_the_same_when_it_is_told_again_in_its_order(made: Callable[[], Rule]) -> None:
    whole, told = made(), []
    list(streamed(7, trials=25, epochs=12, tell=lambda *arrival: (told.append(arrival), whole.arrive(*arrival))[1]))
    for at in (len(told) // 3, len(told) // 2):
        once, again = made(), made()
        before = [once.arrive(*arrival) for arrival in told]
        assert [again.arrive(*arrival) for arrival in told[:at]] == before[:at]
        assert not any(again.arrive(*arrival) for arrival in told[:at])  # reported twice: never twice a stop
        assert [again.arrive(*arrival) for arrival in told[at:]] == before[at:]


def test_never_stops_nobody() -> None:
    assert not any(streamed(0, trials=9, epochs=9, tell=Never().arrive))
