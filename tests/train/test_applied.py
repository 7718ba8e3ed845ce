import json
from typing import Any

import pytest

from imachsr.core.losses import Dice
from imachsr.data.splits import Selection
from imachsr.train import loop
from imachsr.train.applied import differences, live
from imachsr.train.loop import train
from imachsr.train.state import Training
from tests.train.toys import toy_run

ENTROPY = {"method__entropy": "channel", "method__beta": 0.1}
BY_DEPTH = {"kind": "by_depth", "early": "dice", "late": {"kind": "prototype", "temperature": 0.3}, "share": 0.5}
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"method__alpha": 0, "method__beta": 0},
    ENTROPY,
    {**ENTROPY, "method__alpha": 0},
    {"method__loss": {"kind": "tversky"}, "method__alpha": 0.37, "seed": 7},
    {"method__loss": BY_DEPTH},
    {"method__loss": ["dice", "brier"]},
    {"method__schedule": {"kind": "linear", "end": 0.1}, "method__profile": "exp"},
    {"method__grad_ratio": 0.3},
    {"optimizer__lr": 3e-3, "optimizer__weight_decay": 0.2, "optimizer__ema": 0.9},
    {"optimizer__weight_decay": 0},
    {"output_loss": {"kind": "ohem"}},
    {"method__standard": {"kind": "depth", "max_taps": 1}},
    {"method__loss": {"import": "imachsr.core.losses:Tversky", "beta": 0.6}},
    {"output_loss": {"import": "tests.train.test_applied:own_loss"}},
]


def own_loss(scores: Any, labels: Any, *, ignore_index: int) -> Any:
    from torch.nn.functional import cross_entropy

    return cross_entropy(scores, labels, ignore_index=ignore_index)


def built(**settings: Any) -> tuple[Any, Training]:
    """The run, and what is trained for it; given up before the first step."""
    run, found = toy_run(**settings), []

    class EnoughError(Exception):
        pass

    def take(training: Training) -> None:
        found.append(training)
        raise EnoughError

    with pytest.raises(EnoughError):
        train(run, evaluate_on="select", selection=Selection(fraction=0.25, blocks=1, guard=1), on_built=take)
    return run, found[0]


@pytest.mark.parametrize("settings", CONFIGURATIONS)
def test_what_is_built_is_what_was_asked_for(settings: dict[str, Any]) -> None:
    run, training = built(**settings)
    facts = live(training)
    assert json.loads(json.dumps(facts)) == facts  # it travels as JSON
    assert differences(run, facts) == []


@pytest.mark.parametrize(
    ("settings", "other", "names"),
    [
        ({}, {"method__alpha": 0.123}, ["alpha"]),
        ({}, {"method__loss": "brier"}, ["losses"]),
        ({}, {"method__loss": {"kind": "tversky"}}, ["losses"]),
        ({"method__loss": {"kind": "tversky", "beta": 0.5}}, {"method__loss": {"kind": "tversky", "beta": 0.6}}, ["losses"]),
        ({"method__loss": BY_DEPTH}, {"method__loss": {**BY_DEPTH, "early": "brier"}}, ["losses"]),
        (ENTROPY, {**ENTROPY, "method__beta": 0.2}, ["beta"]),
        (ENTROPY, {**ENTROPY, "method__entropy": "spatial"}, ["entropy"]),
        ({}, {"method__schedule": {"kind": "linear", "end": 0.1}}, ["schedule"]),
        ({}, {"method__profile": "exp"}, ["profile"]),
        ({}, {"method__grad_ratio": 0.3}, ["grad_ratio"]),
        ({}, {"seed": 3}, ["seed"]),
        ({}, {"optimizer__lr": 0.5}, ["lr"]),
        ({}, {"optimizer__weight_decay": 0.5}, ["weight_decay"]),
        ({}, {"optimizer__ema": 0.5}, ["ema"]),
        ({}, {"output_loss": {"kind": "ohem"}}, ["output_loss"]),
        ({"method__standard": {"kind": "depth", "max_taps": 1}}, {}, ["at most 1 layers"]),
    ],
)
def test_a_training_of_another_configuration_is_told_by_what_differs(settings: dict[str, Any], other: dict[str, Any], names: list[str]) -> None:
    wanted, _ = built(**settings)
    _, training = built(**other)
    told = differences(wanted, live(training))
    assert [line.split(" must be ")[0] for line in told] == names


def test_supervision_where_none_was_asked_for_is_told_and_the_other_way_round() -> None:
    (plain, bare), (asked, supervised) = built(method__alpha=0, method__beta=0), built()
    assert any("layers must be tapped exactly when" in line for line in differences(plain, live(supervised)))
    assert any("layers must be tapped exactly when" in line for line in differences(asked, live(bare)))


def test_the_proof_reads_the_objects_not_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with a fault: it forgets what was sampled, as in ultralytics#23791."""
    build = loop.build_net

    def forgetful(run: Any, **rest: Any) -> Any:
        return build(run.model_copy(update={"method": run.method.model_copy(update={"alpha": 0.4, "loss": Dice()})}), **rest)

    monkeypatch.setattr(loop, "build_net", forgetful)
    run, training = built(method__alpha=0.7, method__loss="brier")
    told = differences(run, live(training))
    assert [line.split(" must be ")[0] for line in told] == ["alpha", "losses"]
    assert "alpha must be 0.7, but the trained one is 0.4" in told
