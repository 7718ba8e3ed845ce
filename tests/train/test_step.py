import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imachsr import DepthStandard, IMacHSR
from imachsr.train.device import Placement
from imachsr.train.step import train_step
from tests.train.toys import Tiny

CPU = Placement(device="cpu", is_bfloat16=False, is_channels_last=False)


def make(**knobs: Any) -> IMacHSR:
    torch.manual_seed(0)
    return IMacHSR(Tiny(3), example=torch.randn(2, 3, 32, 32), num_classes=3, standard=DepthStandard(max_taps=2), loss="brier", **knobs)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 32, generator=generator), torch.randint(0, 3, (2, 32, 32), generator=generator)


def step(net: nn.Module, grad_clip: float | None) -> Any:
    """A step of length 1 against the gradient, so that the parameters' change is what the optimizer was given."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return train_step(net, *batch(), optimizer=optimizer, scheduler=scheduler, placement=CPU, grad_clip=grad_clip)


def changes(module: nn.Module, before: nn.Module) -> list[Tensor]:
    return [old.detach() - new.detach() for new, old in zip(module.parameters(), before.parameters(), strict=True)]


def norm(tensors: list[Tensor]) -> float:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm().item()


def gradients(net: IMacHSR) -> tuple[list[Tensor], list[Tensor]]:
    made = copy.deepcopy(net)
    made(*batch()).total.backward()
    return [p.grad for p in made.backbone.parameters()], [p.grad for p in made.adapters.parameters()]  # type: ignore[misc]


def assert_clipped_apart(net: IMacHSR, before: IMacHSR, limit: float) -> None:
    for ours, theirs, wanted in zip((net.backbone, net.adapters), (before.backbone, before.adapters), gradients(before), strict=True):
        scale = min(1.0, limit / (norm(wanted) + 1e-6))
        torch.testing.assert_close(changes(ours, theirs), [scale * grad for grad in wanted], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [1e-2, 0.3, 1e3])
def test_backbone_and_adapters_are_clipped_apart(limit: float) -> None:
    net = make(alpha=8.0)
    before = copy.deepcopy(net)
    of_backbone, of_adapters = (norm(grads) for grads in gradients(before))
    assert 0.3 < of_adapters < of_backbone < 1e3
    step(net, limit)
    assert_clipped_apart(net, before, limit)
    assert norm(changes(net.backbone, before.backbone)) == pytest.approx(min(limit, of_backbone), rel=1e-4)
    assert norm(changes(net.adapters, before.adapters)) == pytest.approx(min(limit, of_adapters), rel=1e-4)


def test_without_a_limit_nothing_is_clipped() -> None:
    net = make()
    before = copy.deepcopy(net)
    step(net, None)
    assert_clipped_apart(net, before, float("inf"))


def test_a_larger_gradient_of_an_adapter_leaves_the_backbones_step_alone() -> None:
    steps = []
    for factor in (1.0, 100.0):
        net = make()
        before = copy.deepcopy(net)
        for parameter in net.adapters.parameters():
            parameter.register_hook(lambda grad, factor=factor: grad * factor)
        step(net, 0.05)
        steps.append(changes(net.backbone, before.backbone))
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
    assert norm(steps[0]) == pytest.approx(0.05, rel=1e-3)


def test_the_same_under_ddp(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        net = make()
        before = copy.deepcopy(net)
        step(DistributedDataParallel(net), 0.02)
        assert_clipped_apart(net, before, 0.02)
    finally:
        dist.destroy_process_group()


def test_without_adapters_it_is_the_usual_clipping() -> None:
    net = make(alpha=0.0, beta=0.0)
    before = copy.deepcopy(net)
    step(net, 0.02)
    assert norm(changes(net, before)) == pytest.approx(0.02, rel=1e-3)


def test_no_logits_stay_behind_a_step() -> None:
    assert [losses.prediction.untyped_storage().nbytes() for losses in step(make(), None)] == [0]


def test_a_step_counts_and_advances_the_schedule() -> None:
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: 1.0 / (1 + count))
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)  # left over from before
    before = copy.deepcopy(net)
    (losses,) = train_step(net, *batch(), optimizer=optimizer, scheduler=scheduler, placement=CPU)
    assert_clipped_apart(net, before, float("inf"))
    assert scheduler.get_last_lr() == [0.5]
    assert net.num_steps == 1
    assert losses.total.item() == before(*batch()).total.item()
