"""Factors over the training, and the shares of the taps."""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from imachsr import Constant, Cosine, Linear, StopAt, Warmup
from imachsr.core.schedules import Profile, Schedule, shares


def factor(schedule: Any, progress: float) -> float:
    return float(schedule(torch.tensor(progress)))


FORMULAS: list[tuple[Any, Callable[[float], float]]] = [
    (Constant(), lambda t: 1.0),
    (Warmup(), lambda t: min(1.0, t / 0.1)),
    (Warmup(share=1.0), lambda t: t),
    (Linear(), lambda t: 1 - t),
    (Linear(end=3.0), lambda t: 1 + 2 * t),
    (Cosine(), lambda t: math.cos(math.pi * t / 2) ** 2),
    (Cosine(end=0.2), lambda t: 0.2 + 0.8 * math.cos(math.pi * t / 2) ** 2),
    (StopAt(), lambda t: 1.0 if t < 0.5 else 0.0),
    (StopAt(share=0.25), lambda t: 1.0 if t < 0.25 else 0.0),
    (StopAt(share=1.0), lambda t: 1.0 if t < 1 else 0.0),
]


@pytest.mark.parametrize(("schedule", "formula"), FORMULAS, ids=lambda item: repr(item) if hasattr(item, "kind") else "")
def test_the_factor_is_that_of_the_formula(schedule: Any, formula: Callable[[float], float]) -> None:
    for progress in (0.0, 0.05, 0.1, 0.25, 0.375, 0.5, 0.75, 1.0):
        assert factor(schedule, progress) == pytest.approx(formula(progress), abs=1e-6)


def test_every_schedule_has_a_formula_here() -> None:
    assert {type(schedule) for schedule, _ in FORMULAS} == set(get_args(Schedule))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warmup(share=0.0), "`0 < share <= 1` must hold, but got 0.0"),
        (lambda: Warmup(share=1.5), "`0 < share <= 1` must hold, but got 1.5"),
        (lambda: StopAt(share=-0.1), "`0 < share <= 1` must hold, but got -0.1"),
        (lambda: Linear(end=-1.0), "`end >= 0` must hold, but got -1.0"),
        (lambda: Cosine(end=float("nan")), "`end >= 0` must hold, but got nan"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("profile", get_args(Profile))
def test_shares_sum_to_one_and_follow_their_profile(profile: Profile, count: int) -> None:
    share = shares(profile, count)
    assert len(share) == count
    assert sum(share) == pytest.approx(1)
    for here, after in zip(share, share[1:], strict=False):
        ratio = {"uniform": 1.0, "exp": 2.0, "linear_depth": None}[profile]
        if ratio:
            assert after / here == pytest.approx(ratio)
        else:
            assert after - here == pytest.approx(share[0])
