"""With all side weights 0, training is that of the bare model, bit by bit."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from imachsr import IMacHSR
from tests.core import nets

MODELS = {
    "unet": partial(smp.Unet, "resnet18", encoder_weights=None, classes=3),
    "pspnet": partial(smp.PSPNet, "resnet18", encoder_weights=None, classes=3),  # dropout, and stages that it does not use
}
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": partial(AdamW, lr=1e-3, weight_decay=0.1),
}


def ten_steps(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], optimizer: Optimizer) -> list[float]:
    torch.manual_seed(7)
    losses = []
    for step in range(10):
        images, labels = nets.images(2, 32, 32, seed=step), nets.labels(2, 32, 32, seed=step, void=0.1)
        optimizer.zero_grad()
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_with_weights_of_zero_ten_steps_are_those_of_the_bare_model(name: str, optimizer: str) -> None:
    torch.manual_seed(0)
    bare: Any = MODELS[name]()
    net = IMacHSR(copy.deepcopy(bare), example=nets.images(2, 32, 32), num_classes=3, alpha=0.0, beta=0.0)
    make = OPTIMIZERS[optimizer]
    expected = ten_steps(bare, lambda images, labels: F.cross_entropy(bare(images), labels, ignore_index=255), make(bare.parameters()))
    given = ten_steps(net, lambda images, labels: net(images, labels).total, make(net.parameters()))
    assert given == expected
    assert expected[0] != expected[-1]
    ours, theirs = net.backbone.state_dict(), bare.state_dict()
    assert list(ours) == list(theirs)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    without = [key for key, parameter in bare.named_parameters() if parameter.grad is None]
    assert bool(without) == (name == "pspnet")
    assert [key for key, parameter in net.backbone.named_parameters() if parameter.grad is None] == without


@pytest.mark.parametrize("weights", [{"alpha": 0.4, "beta": 0.0}, {"alpha": 0.0, "beta": 0.01}])
def test_taps_that_are_read_leave_the_output_loss_and_its_gradient_alone(weights: dict[str, float]) -> None:
    torch.manual_seed(0)
    bare = MODELS["unet"]()
    net = IMacHSR(copy.deepcopy(bare), example=nets.images(2, 32, 32), num_classes=3, **weights)
    images, labels = nets.images(2, 32, 32), nets.labels(2, 32, 32)
    expected = F.cross_entropy(bare(images), labels, ignore_index=255)
    expected.backward()
    losses = net(images, labels)
    losses.output.backward()
    assert torch.equal(losses.output, expected)
    for (name, ours), theirs in zip(net.backbone.named_parameters(), bare.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        assert torch.equal(ours.grad, theirs.grad), name
    assert not torch.equal(losses.total, losses.output)
