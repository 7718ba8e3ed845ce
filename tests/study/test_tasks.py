"""What is said of a cluster before runs begin; that they run there is seen in tests/cli/test_study.py."""

import warnings

import pytest

from imachsr.study import tasks
from imachsr.study.schema import StudyBudget


@pytest.fixture
def _a_node_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"connect": None, "take_termination_as_interrupt": None, "await_room": 1, "room": 2, "may_grow": False}.items():
        monkeypatch.setattr(tasks, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})


@pytest.mark.usefixtures("_a_node_with_gpus")
@pytest.mark.parametrize(("gpus", "is_on_gpus", "is_told"), [(0, True, True), (1, True, False), (0.5, True, False), (0, False, False)])
def test_gpus_that_no_run_reserves_are_told(gpus: float, is_on_gpus: bool, is_told: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks.Pool(StudyBudget(gpus_per_run=gpus), lambda line: None, is_on_gpus=is_on_gpus)
    said = "runs use the CPU, because budget.gpus_per_run is 0; the cluster has GPUs: budget.gpus_per_run=1 uses them"
    assert [str(each.message) for each in caught] == [said] * is_told
