"""Steps that are not finite: told, left out, or rolled back; the fault is in the data, so that it comes again in every epoch."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imachsr.config.schema import Run
from imachsr.train import checkpoint
from imachsr.train.batches import batches
from imachsr.train.loop import train
from tests.train.test_resume import assert_equal, state_of
from tests.train.toys import Bands, Poisoned, Tiny, _NanBack, toy_run, without_clock

NAMED = "every term must be finite, but output loss is nan; side loss of tap 'first.1' is nan"
STEP = 3
"""Of four in the first epoch; the second has the bad sample again."""


@functools.cache
def samples_of(step: int) -> tuple[int, ...]:
    """The samples of that step of the first epoch, in the order in which it has them."""
    run = toy_run(augment={"scale": [1.0, 1.0], "jitter": 0.0})
    places = {}
    for sample in range(16):
        samples = Bands(count=16, bad=(sample,)).load("train")
        found = [(images.amin((1, 2, 3)) > 2).nonzero().flatten().tolist() for images, _ in batches(samples, run, epoch=1)][step - 1]
        if found:
            places[sample] = found[0]
    assert sorted(places.values()) == list(range(len(places)))
    return tuple(sorted(places, key=lambda sample: places[sample]))


def bad_run(where: str = "forward", **dotted: Any) -> Run:
    settings: dict[str, Any] = {
        "data__kwargs": {"count": 16, "bad": [samples_of(STEP)[0]]},
        "model": {"import": "tests.train.toys:Poisoned", "has_batch_norm": True, "where": where},
        "augment": {"scale": [1.0, 1.0], "jitter": 0.0},
        "method__grad_ratio": 0.5,
        "optimizer__epochs": 2,
    }
    return toy_run(**{**settings, **dotted})


def until(step: int, run: Run, output: Path) -> dict[str, Any]:
    """The state after a step, of a training that is stopped there."""

    class StopError(Exception):
        pass

    def stop(now: int, steps: int) -> None:
        if now > step:
            raise StopError

    with pytest.raises((StopError, FloatingPointError)):
        train(run.model_copy(update={"recovery": run.recovery.model_copy(update={"checkpoint_steps": 1})}), output=output, on_step=stop)
    return state_of(output)


def test_by_default_it_ends_named_and_the_state_before_is_kept_whole(tmp_path: Path) -> None:
    hint = f"; the state after step {STEP - 1} is kept: --resume with recovery.nonfinite=skip goes on behind the next"
    with pytest.raises(FloatingPointError, match=NAMED) as told:
        train(bad_run(), output=tmp_path / "run")
    assert str(told.value).endswith(hint)
    # As if the bad step had not begun: BatchNorm's statistics, the balance, the count of steps.
    assert_equal(state_of(tmp_path / "run"), until(STEP - 1, bad_run(), tmp_path / "before"))


def test_the_hint_is_true_and_ends_bitwise_like_skip_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        train(bad_run(), output=tmp_path / "run")
    skip = bad_run(recovery__nonfinite="skip")
    resumed = train(skip, output=tmp_path / "run", resume=True)
    whole = train(skip, output=tmp_path / "whole")
    assert [row["train/nonfinite"] for row in resumed.history] == [1, 2]
    assert [without_clock(row) for row in resumed.history] == [without_clock(row) for row in whole.history]
    assert_equal(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))


class NeverFinite(Poisoned):
    """Whose gradient is NaN in every step of a training."""

    def forward(self, images: Tensor) -> Tensor:
        return _NanBack.apply(Tiny.forward(self, images)) if self.training and len(images) > 3 else Tiny.forward(self, images)


def test_a_gradient_that_no_scale_of_float16_makes_finite_is_told(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": {"import": "tests.train.test_nonfinite:NeverFinite"}, "compute__precision": "float16"}
    settings |= {"data__kwargs": {"count": 16}, "optimizer__epochs": 10, "optimizer__batch_size": 4, "recovery__checkpoint_steps": 1}
    message = "the gradient must be finite in float16 for a loss times 1 or more, but is not until 0.5; lower optimizer.lr"
    with pytest.raises(FloatingPointError, match=message):
        train(toy_run(**settings), output=tmp_path / "run")
    steps = state_of(tmp_path / "run")["step"]
    assert steps == 16  # 2^16 halved to 1, and the step after it
    with pytest.raises(FloatingPointError, match=f"{message}.*recovery.max_nonfinite = 1"):
        train(toy_run(**settings, recovery__nonfinite="skip", recovery__max_nonfinite=1), output=tmp_path / "skip")
    assert state_of(tmp_path / "skip")["step"] == 33


@pytest.mark.parametrize(("where", "grad_clip"), [("forward", None), ("backward", None), ("backward", 1.0)])
def test_a_skipped_step_changes_nothing_but_the_schedule(tmp_path: Path, where: str, grad_clip: float | None) -> None:
    run = bad_run(where, recovery__nonfinite="skip", recovery__checkpoint_steps=1, recovery__keep=8, optimizer__grad_clip=grad_clip)
    result = train(run, output=tmp_path)
    at = tmp_path / "checkpoints"
    before, after = (torch.load(at / f"{step:08d}.pt", weights_only=True) for step in (STEP - 1, STEP))
    for key in ("net", "optimizer"):
        assert_equal(without_schedule(after[key]), without_schedule(before[key]))
    assert (after["step"], after["nonfinite"]) == (STEP, 1)
    assert after["net"]["_extra_state"] == STEP
    assert after["optimizer"]["param_groups"][0]["lr"] != before["optimizer"]["param_groups"][0]["lr"]
    assert result.metrics["train/nonfinite"] == 2
    # The learning rate is a matter of the step's number alone.
    sound = train(toy_run(optimizer__epochs=2, data__kwargs={"count": 16}))
    assert [row["train/lr"] for row in result.history] == [row["train/lr"] for row in sound.history]


def without_schedule(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    if "param_groups" in state:
        return {"state": state["state"]}
    return {key: value for key, value in state.items() if key != "_extra_state"}


def test_a_gradient_that_is_not_finite_is_named_by_its_part(tmp_path: Path) -> None:
    run = bad_run("backward", optimizer__grad_clip=1.0)
    with pytest.raises(FloatingPointError, match=f"the gradient of the backbone must be finite, but its norm is nan; .* step {STEP - 1} is kept"):
        train(run, output=tmp_path)


def test_spoilt_weights_are_not_written_over_good_ones(tmp_path: Path) -> None:
    # Nobody looks at the gradient here: the step is made, and the next loss tells.
    with pytest.raises(FloatingPointError, match="every term must be finite") as told:
        train(bad_run("backward", recovery__checkpoint_steps=1), output=tmp_path)
    assert "is kept" not in str(told.value)
    state = checkpoint.load(tmp_path)
    assert state["step"] == STEP - 1
    assert all(bool(torch.isfinite(value).all()) for value in state["net"].values() if isinstance(value, torch.Tensor))


def test_more_such_steps_than_are_allowed_end_it_and_a_larger_number_goes_on(tmp_path: Path) -> None:
    told = r"more than recovery.max_nonfinite = 1 such steps; the state after step \d is kept: --resume with a larger one goes on behind the next"
    with pytest.raises(FloatingPointError, match=told):
        train(bad_run(recovery__nonfinite="skip", recovery__max_nonfinite=1), output=tmp_path)
    more = train(bad_run(recovery__nonfinite="skip", recovery__max_nonfinite=2), output=tmp_path, resume=True)
    assert more.metrics["train/nonfinite"] == 2


def test_a_rollback_takes_the_checkpoint_and_goes_on_behind_the_step(tmp_path: Path) -> None:
    options = {"recovery__nonfinite": "rollback", "recovery__checkpoint_steps": 2, "optimizer__epochs": 1, "optimizer__ema": 0.5}
    result = train(bad_run(**options, data__kwargs={"count": 16, "bad": [samples_of(4)[0]]}), output=tmp_path)
    second, fourth = (torch.load(tmp_path / "checkpoints" / f"{step:08d}.pt", weights_only=True) for step in (2, 4))
    # The third step is lost, with its moments and its part in the mean of the weights.
    for key in ("net", "optimizer", "ema", "ema_updates", "balance"):
        assert_equal(without_schedule(fourth[key]), without_schedule(second[key]))
    assert fourth["net"]["_extra_state"] == 4
    assert (fourth["step"], fourth["nonfinite"], result.metrics["train/nonfinite"]) == (4, 1, 1)


def test_a_rollback_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    told = f"no checkpoint yet to roll back to, set recovery.checkpoint_steps; the state after step {STEP - 1} is kept"
    with pytest.raises(FloatingPointError, match=told):
        train(bad_run(recovery__nonfinite="rollback"), output=tmp_path)
    assert train(bad_run(recovery__nonfinite="skip"), output=tmp_path, resume=True).metrics["train/nonfinite"] == 2


def test_an_epoch_without_a_finite_step_is_an_error(tmp_path: Path) -> None:
    run = bad_run(recovery__nonfinite="skip", data__kwargs={"count": 8, "bad": list(range(8))})
    with pytest.raises(FloatingPointError, match="a step of epoch 1 must be finite, but none was; lower optimizer.lr"):
        train(run, output=tmp_path)
    assert not (tmp_path / "summary.json").exists()
