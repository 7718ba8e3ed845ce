"""Activations that are computed again instead of being kept."""

import copy
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from imachsr import ExplicitStandard, IMacHSR
from imachsr.config.schema import ConfigError
from imachsr.train.loop import train
from imachsr.train.recompute import recompute_activations
from tests.train.toys import toy_run


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(2, channels), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(2, channels), nn.Dropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class Residual(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(3)))
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.blocks(self.stem(images))), size=images.shape[-2:], mode="bilinear")


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 32, generator=generator).double(), torch.randint(0, 3, (2, 32, 32), generator=generator)


def make(*, recompute: bool, **knobs: Any) -> IMacHSR:
    torch.manual_seed(0)
    # One tap at a block, one within.
    standard = ExplicitStandard(layers=("blocks.0", "blocks.1.first"))
    net = IMacHSR(Residual().double(), example=batch()[0], num_classes=3, standard=standard, loss="dice", **knobs)
    if recompute:
        assert recompute_activations(net.backbone) == ["blocks.0", "blocks.1", "blocks.2"]
    return net


def gradients(net: IMacHSR) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(5)  # the dropout's
    losses = net(*batch())
    losses.total.backward()
    return losses, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("grad_ratio", [None, 0.5])
def test_gradients_are_bitwise_those_without_it(grad_ratio: float | None) -> None:
    plain, again = make(recompute=False, grad_ratio=grad_ratio), make(recompute=True, grad_ratio=grad_ratio)
    for _ in range(2):  # the second step has the balance of the first
        (one, expected), (other, found) = gradients(plain), gradients(again)
        assert other.side.keys() == one.side.keys() == {"blocks.0", "blocks.1.first"}
        assert other.total.item() == one.total.item()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert again.misses == plain.misses


def test_names_and_copies_are_as_without_it() -> None:
    plain, again = make(recompute=False), make(recompute=True)
    assert list(again.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in again.named_modules()] == [name for name, _ in plain.named_modules()]
    twin = copy.deepcopy(again)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()  # a copy that still reached into this one would give zeros
    _, expected = gradients(plain)
    _, found = gradients(twin)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def kept_bytes(model: nn.Module, images: Tensor, blocks: list[str]) -> int:
    """Bytes that the forward keeps for the backward, each storage once; parameters are there anyway, the inputs of blocks are kept to begin from."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # held, so that no address is used twice

    def keep(tensor: Any) -> Any:
        if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def keep_inputs(module: nn.Module, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            keep(value)

    for name in blocks:
        model.get_submodule(name).register_forward_pre_hook(keep_inputs, with_kwargs=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_real_model_keeps_less_than_half_for_the_backward() -> None:
    model, images = smp.Unet("resnet18", encoder_weights=None, classes=11), torch.randn(2, 3, 64, 64)
    before = kept_bytes(model, images, [])
    blocks = recompute_activations(model)
    assert len(blocks) == 8 + 5  # residual blocks and stages of the decoder
    assert kept_bytes(model, images, blocks) < before / 2


def test_a_training_gives_the_same_rows() -> None:
    settings: dict[str, Any] = {"model": {"import": "tests.train.test_recompute:Residual"}, "optimizer__ema": 0.9}
    plain, again = (train(toy_run(**settings, compute__recompute=on)).metrics for on in (False, True))
    losses = [key for key in plain if key.endswith(("loss", "miou", "side"))]
    assert len(losses) > 4
    assert {key: again[key] for key in losses} == {key: plain[key] for key in losses}


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`compute.recompute` must be off for a model without blocks in .* nn.ModuleList, but is on"):
        train(toy_run(compute__recompute=True))
