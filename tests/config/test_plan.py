from typing import Any

import pytest

from imachsr.config.load import make_run
from imachsr.config.plan import Plan
from imachsr.config.schema import ConfigError, Run


def run_with(epochs: int = 10, **progressive: Any) -> Run:
    return make_run({"optimizer": {"epochs": epochs, "progressive": progressive or None}})


@pytest.mark.parametrize("of", ["data", "resolution", None])
@pytest.mark.parametrize("full", [1, 7, 40])
def test_epochs_follow_each_other_without_a_gap(of: str | None, full: int) -> None:
    stages = {"of": of, "until": [2, 5, 6], "shares": [0.1, 0.3, 0.77]} if of else {}
    plan = Plan(run=run_with(**stages), full=full)
    ends, step = [], 0
    for epoch in range(1, 11):
        assert plan.before(epoch) == step
        step += plan.steps(epoch)
        ends.append(step)
    assert plan.total == step
    assert [at for at in range(1, step + 1) if plan.is_end(at)] == ends
    times = [plan.time(at) for at in range(step)]
    assert times == sorted(times)
    # The learning rate is where it would be after as many whole epochs.
    assert [plan.time(plan.before(epoch)) for epoch in range(1, 11)] == pytest.approx([full * (epoch - 1) for epoch in range(1, 11)])


def test_a_share_of_the_data_is_a_share_of_the_steps_and_the_size_stays() -> None:
    plan = Plan(run=run_with(of="data", until=[2, 4], shares=[0.25, 0.5]), full=40)
    assert [plan.steps(epoch) for epoch in (1, 2, 3, 4, 5, 10)] == [10, 10, 20, 20, 40, 40]
    assert plan.size(1, 360, 480) == (360, 480)


def test_a_share_of_the_pixels_is_a_smaller_image_in_multiples_of_32_and_the_steps_stay() -> None:
    plan = Plan(run=run_with(of="resolution", until=[2, 4], shares=[0.25, 0.5]), full=40)
    assert plan.size(1, 256, 320) == (128, 160)
    assert plan.size(3, 256, 320) == (192, 224)  # 181 x 226
    assert plan.size(5, 250, 330) == (250, 330)
    assert plan.size(1, 48, 40) == (32, 32)
    assert plan.size(1, 16, 400) == (16, 192)  # never larger than they are
    assert {plan.steps(epoch) for epoch in range(1, 11)} == {40}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"of": "data", "until": [1, 2], "shares": [0.5]}, "`until` and `shares` must have one entry a stage, but have 2 and 1"),
        ({"of": "data", "until": [2, 2], "shares": [0.5, 0.6]}, r"`until` must ascend, but got \[2, 2\]"),
        ({"of": "data", "until": [2], "shares": [0.0]}, "must hold, but got 0.0"),
        ({"of": "pixels", "until": [2], "shares": [0.5]}, "pixels"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_with(**stages)
