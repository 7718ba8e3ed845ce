"""A new standard, a new side loss, a new regularizer and a new output loss: each a frozen dataclass of this file, and no other module is touched."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr import Brier, IMacHSR
from imachsr.core.adapters import make_projection
from imachsr.core.audit import audit
from imachsr.core.calibration import Calibration
from imachsr.core.labels import SideLabels
from imachsr.core.layers import Trace
from imachsr.core.types import Tap
from tests.core import nets


@dataclass(frozen=True, kw_only=True)
class WidestStandard:
    """The layers of the most channels."""

    kind: Literal["widest"] = "widest"
    max_taps: int = 2

    def select(self, trace: Trace, calibration: Calibration | None = None) -> tuple[Tap, ...]:
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

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        code = torch.eye(labels.num_classes, self.dimension, device=z.device)
        return labels.mean(1 - F.cosine_similarity(z.float(), torch.einsum("bkhw,kd->bdhw", labels.soft, code), dim=1))


@dataclass(frozen=True, kw_only=True)
class Far:
    """Without a kind, and with everything that a loss may declare: it wants labels of pixels and the output's scores, and gives scores."""

    family: ClassVar[str] = "own"
    needs_dense: ClassVar[bool] = True
    needs_output: ClassVar[bool] = True
    gives_scores: ClassVar[bool] = True

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        return make_projection(channels, num_classes, generator)

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        assert labels.output is not None
        assert not labels.output.requires_grad
        return labels.mean((z - labels.output).square().mean(1))


@dataclass(frozen=True, kw_only=True)
class Energy:
    kind: Literal["energy"] = "energy"

    def __call__(self, features: Tensor, labels: SideLabels) -> Tensor:
        return labels.mean(features.square().mean(1))


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


class Learnt(nn.Module):
    """With a weight and a buffer of its own."""

    family = "own"

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("weight", torch.ones(3))

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        return make_projection(channels, num_classes, generator)

    def forward(self, z: Tensor, labels: SideLabels) -> Tensor:
        log_q = (z * self.log_scale.exp()).log_softmax(1)
        return labels.mean(-(labels.soft * self.weight.view(1, -1, 1, 1) * log_q).sum(1))


def test_a_side_loss_with_weights_is_trained_moved_and_saved_with_the_net() -> None:
    loss = Learnt()
    net = build(standard=WidestStandard(), loss=[loss, loss])
    assert [name for name, _ in net.named_parameters() if "log_scale" in name] == ["loss_modules.0.log_scale"]  # one, though two taps share it
    assert net.double().state_dict()["loss_modules.0.weight"].dtype == torch.float64
    net.float()
    torch.optim.SGD(net.parameters(), lr=1.0).zero_grad()
    net(nets.images(), nets.labels()).total.backward()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert loss.log_scale.item() != 0
    twin = copy.deepcopy(net)
    assert twin.losses[0] is twin.losses[1] is twin.loss_modules[0] is not loss


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


def test_what_an_own_side_loss_declares_is_heeded() -> None:
    net = build(standard=WidestStandard(max_taps=1), loss=Far(), entropy="adapter", beta=0.1, heterogeneity="strict")
    losses = net(nets.images(), nets.labels())
    losses.total.backward()
    (side,), (entropy,) = losses.side.values(), losses.entropy.values()
    z = net.adapters[0](net.backbone.stage2[0].conv(net.backbone.stage1(net.backbone.stem(nets.images()))))
    teacher = F.adaptive_avg_pool2d(losses.prediction, z.shape[2:])
    torch.testing.assert_close(side, (z - teacher).square().mean())
    confidence = 1 + (F.softmax(z, 1) * F.log_softmax(z, 1)).sum(1).mean() / torch.tensor(3.0).log()
    torch.testing.assert_close(entropy, confidence)
    assert bool(net.adapters[0].weight.grad.any())


def test_an_own_side_loss_that_wants_pixels_is_refused_without_them() -> None:
    body = nets.Encoder()
    model = nn.Sequential(body.stem, body.stage1, body.stage2, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    net = IMacHSR(model, example=nets.images(), num_classes=3, standard=WidestStandard(max_taps=1), loss=Far())
    with pytest.raises(ValueError, match=r"the side loss Far\(\) must have labels of pixels \[B, H, W\], but got one label an image"):
        net(nets.images(), torch.tensor([0, 2]))


def test_an_own_side_loss_without_a_kind_is_audited_under_its_class() -> None:
    angles = audit([Far(), Brier()], draws=3)
    assert {(angle.first, angle.second) for angle in angles} == {
        ("cross_entropy (output)", "Far"),
        ("cross_entropy (output)", "brier"),
        ("Far", "brier"),
    }
    assert not any(angle.same_family or angle.is_equivalent for angle in angles)
