"""How much is begun side by side, and what shares a memory."""

import pytest

from imachsr.search.worker import sharing
from imachsr.train.capacity import at_a_time


@pytest.mark.parametrize(
    ("asked", "found", "grows", "expected"),
    [
        ("auto", 3, True, 3),
        (2, 3, False, 2),
        (8, 3, False, 3),
        (8, 3, True, 8),  # what waits is what an autoscaler brings nodes for
    ],
)
def test_what_is_asked_for_waits_for_nodes_where_these_may_come(asked: int | str, found: int, grows: bool, expected: int) -> None:
    assert at_a_time(asked, found, grows=grows) == expected


@pytest.mark.parametrize(
    ("device", "trials", "gpus", "expected"),
    [
        ("cpu", 4, 0.0, 4),
        ("cpu", 4, 1.0, 4),
        ("cuda", 8, 1.0, 1),  # eight GPUs, one each
        ("cuda", 8, 2.0, 1),
        ("cuda", 8, 0.5, 2),
        ("cuda", 8, 0.3, 3),
        ("cuda", 8, 0.1, 10),
        ("cuda", 3, 0.0, 3),
    ],
)
def test_trials_share_the_memory_of_their_gpu_not_of_all(device: str, trials: int, gpus: float, expected: int) -> None:
    assert sharing(device, trials=trials, gpus=gpus) == expected
