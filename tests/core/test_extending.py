"""A new standard, a new side loss, a new regularizer and a new output loss: each a frozen dataclass of this file, and no other module is touched."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr import IMacHSR
from imachsr.core.adapters import make_projection
from imachsr.core.labels import SideLabels
from imachsr.core.layers import Trace
from imachsr.core.types import Tap
from tests.core import nets


@dataclass(frozen=True, kw_only=True)
class WidestStandard:
    """The layers of the most channels."""

    kind: Literal["widest"] = "widest"
    max_taps: int = 2

    def select(self, trace: Trace) -> tuple[Tap, ...]:
        widest = sorted(trace.layers, key=lambda layer: -layer.channels)[: self.max_taps]
        return tuple(Tap(layer=layer, reason=f"widest: {layer.channels} channels") for layer in trace.layers if layer in widest)


@dataclass(frozen=True, kw_only=True)
class EveryNth:
    """The same as a rule that gives names."""

    step: int = 2

    def __call__(self, trace: Trace) -> list[str]:
        return [layer.address for layer in trace.layers[:: self.step]]


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Cosine distance of each pixel's features to the code of its class."""

    kind: Literal["colour"] = "colour"
    family: ClassVar[str] = "metric"
    dimension: int = 5

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        return make_projection(channels, self.dimension, generator)

    def __call__(self, z: Tensor, labels: SideLabels, *, generator: torch.Generator) -> Tensor:
        code = torch.eye(labels.soft.shape[1], self.dimension, device=z.device)
        distance = 1 - F.cosine_similarity(z.float(), torch.einsum("bkhw,kd->bdhw", labels.soft, code), dim=1)
        return (distance * labels.valid).sum() / labels.valid.sum().clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class Energy:
    kind: Literal["energy"] = "energy"

    def __call__(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        return features.square().mean()


@dataclass(frozen=True, kw_only=True)
class Focal:
    kind: Literal["focal"] = "focal"
    family: ClassVar[str] = "log_score"

    def __call__(self, output: Tensor, labels: Tensor, *, ignore_index: int) -> Tensor:
        log_p = -F.cross_entropy(output, labels, ignore_index=ignore_index, reduction="none")
        return -((1 - log_p.exp()) ** 2 * log_p).mean()


def build(**knobs: Any) -> IMacHSR:
    torch.manual_seed(0)
    return IMacHSR(nets.Encoder(), example=nets.images(), num_classes=3, **knobs)


@pytest.mark.parametrize(
    ("standard", "expected"),
    [
        (WidestStandard(), ["stage2.0.conv", "stage2.0.norm"]),
        (WidestStandard(max_taps=1), ["stage2.0.conv"]),
        (EveryNth(step=7), ["stem.conv", "stage1.1.norm", "stage2"]),
    ],
)
def test_an_own_standard_chooses_the_taps(standard: Any, expected: list[str]) -> None:
    net = build(standard=standard)
    assert [tap.layer.address for tap in net.taps] == expected
    assert list(net(nets.images(), nets.labels()).side) == expected


def test_an_own_side_loss_trains_next_to_a_shipped_one() -> None:
    net = build(standard=WidestStandard(), loss=[Colour(), "dice"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    values = []
    for _ in range(15):
        losses = net(nets.images(), nets.labels())
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        values.append(losses.side["stage2.0.conv"].item())
    assert net.adapters[0].weight.shape[0] == 5
    assert values[-1] < values[0]


def test_an_own_side_loss_is_held_to_its_family() -> None:
    class Same(Colour):
        family = "log_score"

    with pytest.raises(ValueError, match="'colour' and 'cross_entropy' are both of family 'log_score'"):
        build(standard=WidestStandard(), loss=Same(), heterogeneity="strict")


def test_an_own_regularizer_and_output_loss_are_called() -> None:
    net = build(standard=WidestStandard(max_taps=1), entropy=Energy(), beta=1.0, output_loss=Focal())
    losses = net(nets.images(), nets.labels())
    assert torch.equal(losses.output, Focal()(net(nets.images()), nets.labels(), ignore_index=255))
    (energy,) = losses.entropy.values()
    (scale,) = losses.scale.values()
    assert energy.item() >= scale.item() ** 2 * 0.99  # mean square is variance plus squared mean
    losses.total.backward()
