"""float16 with a scaled loss, and the compiled net."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from imachsr import DepthStandard, IMacHSR
from imachsr.core.types import Losses
from imachsr.train.device import Placement
from imachsr.train.loop import train
from imachsr.train.step import train_step
from tests.train.toys import Tiny, toy_run, without_clock

HALF = Placement(device="cpu", is_bfloat16=False, is_float16=True, is_channels_last=False)


def half_steps(scale: float, count: int) -> tuple[IMacHSR, nn.Module, Any, Any, list[Losses]]:
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 3, (4, 32, 32))
    net = IMacHSR(Tiny(3), example=images, num_classes=3, standard=DepthStandard(max_taps=2), loss="dice")
    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for _ in range(count):
        (losses,) = train_step(net, images, labels, optimizer=optimizer, scheduler=scheduler, placement=HALF, scaler=scaler, grad_clip=1.0)
    return net, before, scaler, scheduler, [losses]


def test_a_step_whose_gradient_overflows_is_left_out_and_the_scale_halved() -> None:
    net, before, scaler, scheduler, (losses,) = half_steps(2.0**80, 1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**79
    assert bool(torch.isfinite(losses.total))
    assert scheduler.get_last_lr() == [0.05]


def test_steps_that_do_not_overflow_are_those_of_float32_to_half_precision() -> None:
    net, _, scaler, _, _ = half_steps(2.0**10, 3)
    assert scaler.get_scale() == 2.0**10
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    full = Placement(device="cpu", is_bfloat16=False, is_channels_last=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "HALF", full)
        expected, before, _, _, _ = half_steps(1.0, 3)
    moved = [(a - b).norm() for a, b in zip(expected.parameters(), before.parameters(), strict=True)]
    apart = [(a - b).norm() for a, b in zip(net.parameters(), expected.parameters(), strict=True)]
    assert 0 < max(apart) < 0.02 * max(moved)


def test_a_training_in_float16_learns_what_one_in_float32_learns() -> None:
    half, full = (train(toy_run(compute__precision=precision, optimizer__epochs=4)).metrics for precision in ("float16", "float32"))
    assert half["val/loss"] == pytest.approx(full["val/loss"], rel=0.02)
    assert half["val/loss"] != full["val/loss"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler hides it, but not from an error filter
def test_a_compiled_training_gives_the_rows_of_an_eager_one() -> None:
    # Two steps an epoch; the mean of the weights is scored, whose copy is not compiled.
    run: dict[str, Any] = {"optimizer__epochs": 2, "optimizer__ema": 0.9}
    eager = train(toy_run(**run)).history
    compiled = train(toy_run(**run, compute__compile=True)).history
    for one, other in zip(eager, compiled, strict=True):
        assert without_clock(other) == pytest.approx(without_clock(one), rel=1e-3)
