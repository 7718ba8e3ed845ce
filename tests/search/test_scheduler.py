import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from imachsr.search.scheduler import Rungs, quantile, rung_levels


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
