"""The architecture matrix, cell by cell, and what must be refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.architecture_matrix import Cell, cells, check, volume_net
from imachsr import ExplicitStandard, IMacHSR
from imachsr.core.layers import trace
from imachsr.core.losses import Brier, SideLoss
from imachsr.core.taps import Recorder
from tests.core import nets

CELLS = {f"{cell.group}: {cell.name}": cell for cell in cells()}
REFUSED = {
    "unetplusplus mit_b0": "UnetPlusPlus is not support encoder_name=mit_b0",
    "linknet mit_b0": "Encoder `mit_b0` is not supported for Linknet",
    **{f"dpt {encoder}": "Only Timm encoders are supported for DPT" for encoder in ("resnet18", "mobilenet_v2", "mit_b0")},
}
FAST = {
    "unet mit_b0",
    "fpn resnet18",
    "segformer tu-convnext_atto",
    "pspnet mobilenet_v2",
    "pan mit_b0",
    "lraspp_mobilenet_v3_large",
    "resnet18",
    "VisionTransformer",
    "vit_tiny_patch16_224 (tokens)",
    "convnext_atto",
    "SegformerForSemanticSegmentation",
    "frozen encoder",
}


def is_fast(cell: Cell) -> bool:
    return cell.name in FAST | REFUSED.keys() or (cell.group == "hand-written" and max(cell.size) <= 64)


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if is_fast(cell) else pytest.mark.slow) for name, cell in CELLS.items()])
def test_cell(name: str) -> None:
    cell = CELLS[name]
    if cell.group == "transformers":
        pytest.importorskip("transformers", reason="transformers is not installed")
    result = check(cell)
    assert (result.refusal or "").startswith(REFUSED.get(cell.name, ""))
    assert (result.refusal is not None) == (cell.name in REFUSED)


def test_the_matrix_has_every_architecture_with_every_kind_of_encoder() -> None:
    from_smp = [cell.name for cell in CELLS.values() if cell.group == "segmentation_models_pytorch"]
    assert len(smp.MODEL_ARCHITECTURES_MAPPING) == 12
    assert len(from_smp) == 48 + 2
    assert len(set(from_smp) - REFUSED.keys()) == 43 + 2


def test_the_published_matrix_has_every_cell(root: Path) -> None:
    lines = (root / "benchmarks" / "architecture_matrix.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1:4] for line in lines[lines.index("## Taps") :] if line.startswith("| ") and not line.startswith(("| model", "| ---"))]
    assert [name.strip() for name, _, _ in rows] == [cell.name for cell in CELLS.values()]
    assert {name.strip() for name, _, taps in rows if taps.strip().startswith("n/a")} == REFUSED.keys()


# ---- the check is able to fail --------------------------------------------------------------------------------------------------------------


Take = Callable[[Recorder, nn.Module], dict[str, Tensor]]


def detached(take: Take, recorder: Recorder, model: nn.Module) -> dict[str, Tensor]:
    return {address: tensor.detach().requires_grad_() for address, tensor in take(recorder, model).items()}


def without_the_first(take: Take, recorder: Recorder, model: nn.Module) -> dict[str, Tensor]:
    return dict(list(take(recorder, model).items())[1:])


def zeroed(take: Take, recorder: Recorder, model: nn.Module) -> dict[str, Tensor]:
    return {address: tensor * 0.0 for address, tensor in take(recorder, model).items()}


def infinite(take: Take, recorder: Recorder, model: nn.Module) -> dict[str, Tensor]:
    return {address: tensor * torch.inf for address, tensor in take(recorder, model).items()}


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (detached, AssertionError, "no gradient at the tap|conv: no gradient"),
        (without_the_first, AssertionError, "a tap is missing"),
        (zeroed, AssertionError, "the gradient at the tap is 0"),
        (infinite, FloatingPointError, "every term must be finite"),
    ],
)
def test_the_check_sees_a_fault_of_the_taps(fault: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Recorder.take
    monkeypatch.setattr(Recorder, "take", lambda recorder, model: fault(take, recorder, model))
    with pytest.raises(error, match=message):
        check(CELLS["hand-written: in-place ReLU"])


def test_the_check_sees_an_adapter_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Brier.make_adapter

    def with_a_dead_part(self: Brier, channels: int, *given: Any) -> nn.Module:
        adapter = make(self, channels, *given)
        adapter.register_parameter("dead", nn.Parameter(torch.zeros(1)))
        return adapter

    monkeypatch.setattr(Brier, "make_adapter", with_a_dead_part)
    with pytest.raises(AssertionError, match="an adapter without gradient"):
        check(CELLS["hand-written: in-place ReLU"])


class Disturbed(nets.Wrapped):
    """A model that behaves otherwise once it is hooked, as one does whose wrapping is not clean."""

    def forward(self, x: Tensor) -> Any:
        hooked = any(module._forward_hooks for module in self.modules())
        return super().forward(x) * (1.0 + 1e-6 * hooked)


def test_the_check_sees_an_output_that_is_not_the_bare_models() -> None:
    cell = Cell(group="", name="", make=partial(Disturbed, "tensor"), size=(32, 32), other=(32, 64), classes=3)
    with pytest.raises(AssertionError, match="differs from the bare model's"):
        check(cell)


def test_the_check_sees_a_model_of_one_size_that_takes_another() -> None:
    cell = Cell(group="", name="", make=partial(nets.Norm, inplace=False), size=(32, 32), other=None, classes=3)
    with pytest.raises(AssertionError, match="takes a second size"):
        check(cell)


# ---- an encoder that gives a list of what its stages gave ------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """A list of the stages' features: as they are, or each in a copy of another memory order, as in smp's mit encoders, or without a border."""

    def __init__(self, given: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stages, self.given = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 6), (6, 8))), given

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(self.given(x))
        return found


GIVEN: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: x,
    "copy": lambda x: x.clone(),
    "other order": lambda x: x.flatten(2).transpose(1, 2).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2).contiguous(),
    "part": lambda x: x[:, :, 1:, 1:],
    "another tensor": lambda x: x * 2.0,
}


@pytest.mark.parametrize("how", GIVEN)
def test_a_mere_collection_of_what_inner_modules_gave_is_no_candidate(how: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Pyramid(GIVEN[how]), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            first, _, last = self.encoder(x)
            return self.head(last + first.mean())

    addresses = [layer.address for layer in trace(Model(), nets.images(2, 32, 32)).layers]
    own = ["encoder[0]", "encoder[2]"] if how == "another tensor" else []
    assert addresses == ["encoder.stages.0", "encoder.stages.1", "encoder.stages.2", *own]


# ---- frozen parts ---------------------------------------------------------------------------------------------------------------------------


def encoder(*parts: str) -> nn.Module:
    torch.manual_seed(0)
    model = nets.Encoder()
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    return model


def test_taps_lie_behind_a_frozen_part() -> None:
    net = IMacHSR(encoder("stem", "stage1"), example=nets.images(), num_classes=3)
    assert {tap.layer.module.split(".")[0] for tap in net.taps} == {"stage2"}
    losses = net(nets.images(), nets.labels())
    losses.total.backward()
    assert all(parameter.grad is None for parameter in net.backbone.stage1.parameters())
    assert all(bool(parameter.grad.any()) for parameter in net.backbone.stage2.parameters())


def test_a_tap_inside_of_a_frozen_part_is_refused() -> None:
    with pytest.raises(ValueError, match="'stage1'"):
        IMacHSR(encoder("stem", "stage1"), example=nets.images(), num_classes=3, standard=ExplicitStandard(layers=("stage1",)))


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match="must have a layer to supervise, but none of its 19 module calls gives .* gradient path to the output"):
        IMacHSR(encoder("stem", "stage1", "stage2", "head"), example=nets.images(), num_classes=3)


def test_what_is_frozen_after_wrapping_is_told() -> None:
    net = IMacHSR(encoder(), example=nets.images(), num_classes=3, standard=ExplicitStandard(layers=("stage1", "stage2")))
    for part in ("stem", "stage1"):
        net.backbone.get_submodule(part).requires_grad_(False)
    with pytest.raises(RuntimeError, match="output of tap 'stage1' must require a gradient.*frozen"):
        net(nets.images(), nets.labels())


# ---- every loss on what has no labels of pixels in the plane --------------------------------------------------------------------------------


def classifier() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v3_small(num_classes=5), torch.randn(6, 3, 64, 64), torch.tensor([1, 3, 255, 0, 1, 3])


def volumes() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (2, 16, 24, 32))
    labels[:, :3] = 255
    return volume_net(), torch.randn(2, 1, 16, 24, 32), labels


@pytest.mark.parametrize("side", get_args(SideLoss), ids=lambda side: side.kind)
@pytest.mark.parametrize(("make", "given"), [(classifier, "one label an image"), (volumes, "volumes")])
def test_a_loss_that_needs_labels_of_pixels_says_so_and_all_others_train(make: Any, given: str, side: Any) -> None:
    model, images, labels = make()
    net = IMacHSR(model, example=images, num_classes=5, loss=side(), heterogeneity="off")
    if getattr(side, "needs_dense", False):
        with pytest.raises(ValueError, match=rf"the side loss '{side.kind}' must have labels of pixels \[B, H, W\], but got {given}; choose another"):
            net(images, labels)
        return
    losses = net(images, labels)
    assert len(losses.side) == len(net.taps) == (5 if given == "one label an image" else 3)
    sum(losses.side.values()).backward()
    assert all(bool(torch.isfinite(value)) for value in losses.side.values())
    first = next(iter(net.backbone.parameters()))
    assert first.grad is not None
    assert bool(first.grad.any())


def test_the_losses_that_need_labels_of_pixels_are_known() -> None:
    assert {side.kind for side in get_args(SideLoss) if getattr(side, "needs_dense", False)} == {"rmi", "boundary", "affinity"}
