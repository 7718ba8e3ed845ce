"""Wrap every kind of architecture and check it, cell by cell: python benchmarks/architecture_matrix.py writes architecture_matrix.md beside it."""

import copy
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation

from imachsr import IMacHSR, Tap

SMP = "segmentation_models_pytorch"
ENCODERS = ("resnet18", "mobilenet_v2", "mit_b0", "tu-convnext_atto")
NUM_CLASSES = 5
MOST_TRIES = 16
"""Forwards in which the taps of a model that skips layers at random must all have fired."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A model to wrap.

    Attributes:
        group: Library, or ``hand-written``.
        name: Of the model.
        make: Builds it.
        size: Of its images or volumes.
        other: A second size, None for a model that takes one size only.
        channels: Of its input.
        classes: Of its output.
        one_label: Labels are ``[B]``.
        is_random: It skips layers at random.

    """

    group: str
    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, ...] = (128, 160)
    other: tuple[int, ...] | None = (160, 192)
    channels: int = 3
    classes: int = NUM_CLASSES
    one_label: bool = False
    is_random: bool = False


@dataclass(kw_only=True)
class Result:
    """What :func:`check` found: the taps, or why the library itself refuses."""

    cell: Cell
    taps: tuple[Tap, ...] = ()
    refusal: str | None = None


# ---- the models -----------------------------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """Features of a timm model, a 1x1 convolution on each of the last two, and their sum at the images' size."""

    def __init__(self, name: str, *, is_channels_last: bool = False, **options: Any) -> None:
        super().__init__()
        self.encoder = timm.create_model(name, features_only=True, **options)
        widths = self.encoder.feature_info.channels()[-2:]
        self.heads = nn.ModuleList(nn.Conv2d(width, NUM_CLASSES, 1) for width in widths)
        self.is_channels_last = is_channels_last

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)[-2:]
        if self.is_channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        scores = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return sum(F.interpolate(score, size=images.shape[2:], mode="bilinear") for score in scores)  # type: ignore[return-value]


class TokenHead(nn.Module):
    """A timm ViT's tokens ``[B, N, C]``, prefix tokens dropped, and a linear head."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        self.head = nn.Linear(self.encoder.embed_dim, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :]
        patch = self.encoder.patch_embed.patch_size[0]
        h, w = (side // patch for side in images.shape[2:])
        return F.interpolate(self.head(tokens).transpose(1, 2).unflatten(2, (h, w)), size=images.shape[2:], mode="bilinear")


def segformer() -> nn.Module:
    """The smallest Segformer of transformers, from a configuration: nothing is downloaded."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(num_labels=NUM_CLASSES, depths=[1, 1, 1, 1], decoder_hidden_size=64)
    return SegformerForSemanticSegmentation(config)


class Encoded(nn.Module):
    """torch's own transformer, whose layers give ``[N, B, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 16, 8, stride=8), nn.Conv2d(16, NUM_CLASSES, 1)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 6, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images)
        tokens = self.encoder(patches.flatten(2).permute(2, 0, 1)).permute(1, 2, 0)
        return F.interpolate(self.head(tokens.unflatten(2, patches.shape[2:])), size=images.shape[2:])


def frozen(make: Callable[[], nn.Module], *parts: str) -> nn.Module:
    model = make()
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    return model


def volume_net() -> nn.Module:
    stages = [nn.Sequential(nn.Conv3d(a, b, 3, 2, 1), nn.BatchNorm3d(b), nn.ReLU()) for a, b in ((1, 8), (8, 12), (12, 16))]
    return nn.Sequential(*stages, nn.Conv3d(16, NUM_CLASSES, 1))


def _smp_cells() -> Iterator[Cell]:
    for architecture in smp.MODEL_ARCHITECTURES_MAPPING:
        for encoder in ENCODERS:
            # As the library's own warning advises for an encoder without prefix tokens.
            options = {"decoder_readout": "ignore"} if (architecture, encoder) == ("dpt", "tu-convnext_atto") else {}
            make = partial(smp.create_model, architecture, encoder, encoder_weights=None, classes=NUM_CLASSES, **options)
            yield Cell(group=SMP, name=f"{architecture} {encoder}", make=make)
    vits = {"tu-vit_tiny_patch16_224": {"dynamic_img_size": True}, "tu-vit_tiny_patch16_dinov3_qkvb": {}}
    for encoder, options in vits.items():
        make = partial(smp.DPT, encoder, encoder_weights=None, classes=NUM_CLASSES, **options)
        yield Cell(group=SMP, name=f"dpt {encoder}", make=make)


def _torchvision_cells() -> Iterator[Cell]:
    bare = {"weights": None, "weights_backbone": None, "num_classes": NUM_CLASSES}
    for name, options in {
        "fcn_resnet50": {"aux_loss": True},
        "deeplabv3_mobilenet_v3_large": {"aux_loss": True},
        "lraspp_mobilenet_v3_large": {},
    }.items():
        yield Cell(group="torchvision", name=name, make=partial(getattr(segmentation, name), **bare, **options))
    for name in ("resnet18", "efficientnet_b0", "swin_t"):
        yield Cell(group="torchvision", name=name, make=partial(getattr(torchvision.models, name), num_classes=NUM_CLASSES), one_label=True)
    vit = partial(
        torchvision.models.VisionTransformer,
        image_size=64,
        patch_size=16,
        num_layers=4,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=NUM_CLASSES,
    )
    yield Cell(group="torchvision", name="VisionTransformer", make=vit, size=(64, 64), other=None, one_label=True)


def _timm_cells() -> Iterator[Cell]:
    cells: dict[str, Callable[[], nn.Module]] = {
        "vit_tiny_patch16_224 (features)": partial(Features, "vit_tiny_patch16_224", dynamic_img_size=True, out_indices=(2, 5, 8, 11)),
        "vit_tiny_patch16_224 (tokens)": partial(TokenHead, "vit_tiny_patch16_224"),
        "vit_tiny_patch16_dinov3_qkvb (tokens)": partial(TokenHead, "vit_tiny_patch16_dinov3_qkvb"),
        "swin_tiny_patch4_window7_224": partial(Features, "swin_tiny_patch4_window7_224", is_channels_last=True, strict_img_size=False),
        "convnext_atto": partial(Features, "convnext_atto"),
    }
    for name, make in cells.items():
        yield Cell(group="timm", name=name, make=make)
    maxvit = partial(Features, "test_maxvit", img_size=(128, 160))
    yield Cell(group="timm", name="test_maxvit", make=maxvit, other=None)


def _hand_written_cells() -> Iterator[Cell]:
    from tests.core import nets

    small: dict[str, Callable[[], nn.Module]] = {
        "a module called three times": nets.Reused,
        "a layer gives a tuple": partial(nets.Structured, "tuple"),
        "a layer gives a dict": partial(nets.Structured, "dict"),
        "a layer gives a dataclass": partial(nets.Structured, "dataclass"),
        "the model gives a dict": partial(nets.Wrapped, "dict"),
        "the model gives .logits": partial(nets.Wrapped, "namespace"),
        "NHWC": partial(nets.ChannelsLast, 8),
        "tokens with a class token": partial(nets.Vit, prefix=1),
        "windows folded into the batch": nets.Windowed,
        "in-place ReLU": partial(nets.Norm, inplace=True),
        "a branch without gradient": nets.DeadBranch,
        "one input size": nets.OneSize,
        "LayerDrop": nets.LayerDrop,
    }
    for name, make in small.items():
        is_one_size = name == "one input size"
        size, other = ((32, 64), None) if is_one_size else ((32, 32), (32, 64))
        yield Cell(group="hand-written", name=name, make=make, size=size, other=other, classes=nets.NUM_CLASSES, is_random=name == "LayerDrop")
    unet = partial(smp.Unet, "resnet18", encoder_weights=None, classes=NUM_CLASSES)
    yield Cell(group="hand-written", name="tokens (N, B, C)", make=Encoded)
    yield Cell(group="hand-written", name="frozen encoder", make=partial(frozen, unet, "encoder"))
    yield Cell(group="hand-written", name="frozen first stages", make=partial(frozen, unet, "encoder.conv1", "encoder.bn1", "encoder.layer1"))
    yield Cell(group="hand-written", name="3-D volumes", make=volume_net, size=(16, 24, 32), other=(16, 32, 48), channels=1)


def cells() -> list[Cell]:
    """All of them."""
    hugging_face = Cell(group="transformers", name="SegformerForSemanticSegmentation", make=segformer)
    return [*_smp_cells(), *_torchvision_cells(), *_timm_cells(), hugging_face, *_hand_written_cells()]


# ---- the check ------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Witness:
    """Catches the taps' tensors by hooks of its own."""

    taps: tuple[Tap, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def watch(self, model: nn.Module) -> list[Any]:
        return [model.get_submodule(name).register_forward_hook(partial(self._see, name)) for name in {tap.layer.module for tap in self.taps}]

    def _see(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.calls[name] += 1
        for tap in self.taps:
            if (tap.layer.module, tap.layer.nth) == (name, self.calls[name]):
                self.tensors[tap.layer.address] = output if tap.layer.key is None else _entry(output, tap.layer.key)


def _entry(output: Any, key: str) -> Tensor:
    found = output[int(key)] if isinstance(output, (tuple, list)) else output[key] if isinstance(output, dict) else getattr(output, key)
    assert isinstance(found, Tensor)
    return found


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output if isinstance(output, (tuple, list)) else vars(output).values()
    return [tensor for value in values if value is not None for tensor in _tensors(value)]


def batch(cell: Cell, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two images and their labels, a tenth of them void; or four of two classes, since a contrast of whole images wants two of a class."""
    generator = torch.Generator().manual_seed(1)
    if cell.one_label:
        return torch.randn(4, cell.channels, *size, generator=generator), torch.tensor([0, 1, 0, 1])
    images = torch.randn(2, cell.channels, *size, generator=generator)
    labels = torch.randint(0, cell.classes, (2, *size), generator=generator)
    return images, torch.where(torch.rand(labels.shape, generator=generator) < 0.1, 255, labels)


def check(cell: Cell) -> Result:
    """Wrap a cell's model and look at everything that must hold of it.

    Args:
        cell: The model.

    Raises:
        AssertionError: If something does not hold. A refusal of the library to build the model is a result.

    """
    torch.manual_seed(0)
    try:
        model = cell.make()
    except (ValueError, NotImplementedError) as error:
        return Result(cell=cell, refusal=str(error))
    bare = copy.deepcopy(model).train()
    images, labels = batch(cell, cell.size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* taps were asked for, but this model and rule offer")
        net = IMacHSR(model, example=images, num_classes=cell.classes).train()
    before, after = bare.state_dict(), net.backbone.state_dict()
    assert list(after) == list(before), "building changed the model's keys"
    assert all(torch.equal(after[key], before[key]) for key in before), "building changed the model's values"
    assert net.taps, "no tap"
    _check_training(cell, net, bare, images, labels)
    _check_inference(net, bare, images)
    _check_other_size(cell, net, bare)
    return Result(cell=cell, taps=net.taps)


def _check_training(cell: Cell, net: IMacHSR, bare: nn.Module, images: Tensor, labels: Tensor) -> None:
    addresses = [tap.layer.address for tap in net.taps]
    fired: set[str] = set()
    for attempt in range(MOST_TRIES if cell.is_random else 1):
        witness = _Witness(net.taps)
        handles = witness.watch(net.backbone)
        saved = copy.deepcopy(net.backbone.state_dict())
        torch.manual_seed(attempt)
        losses = net(images, labels)
        for handle in handles:
            handle.remove()
        assert list(losses.side) == list(losses.entropy) == [address for address in addresses if address in witness.tensors], "a tap is missing"
        for term in (losses.total, losses.output, *losses.side.values(), *losses.entropy.values()):
            assert bool(torch.isfinite(term)), f"not finite: {term}"
        _check_gradients(net, witness, losses.side)
        bare.load_state_dict(saved)
        _check_totals(attempt, net, bare, losses, images, labels)
        fired |= set(losses.side)
        if len(fired) == len(addresses):
            return
    raise AssertionError(f"taps did not fire: {set(addresses) - fired}")


def _check_gradients(net: IMacHSR, witness: _Witness, side: dict[str, Tensor]) -> None:
    """Each side loss alone reaches its adapter, and every parameter that its tap depends on."""
    named = {name: parameter for name, parameter in net.backbone.named_parameters() if parameter.requires_grad}
    parameters = list(named.values())
    for adapter, tap in zip(net.adapters, net.taps, strict=True):
        address = tap.layer.address
        if address not in side:
            continue
        own = list(adapter.parameters())
        hidden = witness.tensors[address]
        at_tap, *grads = torch.autograd.grad(side[address], [hidden, *own, *parameters], retain_graph=True, allow_unused=True)
        assert at_tap is not None, f"{address}: no gradient at the tap"
        assert bool(at_tap.any()), f"{address}: the gradient at the tap is 0"
        assert all(grad is not None and bool(grad.any()) for grad in grads[: len(own)]), f"{address}: an adapter without gradient"
        # What a random gradient at the same positions reaches, without the side loss.
        cotangent = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)) * (at_tap != 0)
        wanted = torch.autograd.grad(hidden, parameters, cotangent, retain_graph=True, allow_unused=True)
        sizes = [0.0 if grad is None else grad.abs().max().item() for grad in wanted]
        assert max(sizes) > 0, f"{address}: no layer before the tap can be trained"
        given = dict(zip(named, grads[len(own) :], strict=True))
        for (name, grad), size in zip(given.items(), sizes, strict=True):
            assert size <= 1e-5 * max(sizes) or (grad is not None and bool(grad.any())), f"{address}: no gradient at {name}, which lies before it"


def _check_totals(seed: int, net: IMacHSR, bare: nn.Module, losses: Any, images: Tensor, labels: Tensor) -> None:
    """The output and its loss are the bare model's; the same parameters have a gradient."""
    torch.manual_seed(seed)
    output = bare(images)
    assert torch.equal(_tensors(output)[0], losses.prediction), "the output in train mode differs from the bare model's"
    loss = net.output_loss(output, labels, ignore_index=255)
    assert torch.equal(loss, losses.output), "the output loss differs from the bare model's"
    net.zero_grad(set_to_none=True)
    bare.zero_grad(set_to_none=True)
    losses.total.backward()
    loss.backward()
    for (name, ours), theirs in zip(net.backbone.named_parameters(), bare.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), f"{name}: a gradient appears or is lost"
        assert ours.grad is None or bool(torch.isfinite(ours.grad).all()), f"{name}: the gradient is not finite"


@torch.no_grad()
def _check_inference(net: IMacHSR, bare: nn.Module, images: Tensor) -> None:
    net.eval()
    bare.eval()
    bare.load_state_dict(net.backbone.state_dict())
    torch.manual_seed(0)
    ours = _tensors(net(images))
    torch.manual_seed(0)
    theirs = _tensors(bare(images))
    assert len(ours) == len(theirs), "the output in eval mode has another structure"
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), "the output in eval mode differs from the bare model's"


def _check_other_size(cell: Cell, net: IMacHSR, bare: nn.Module) -> None:
    net.train()
    if cell.other is None:
        wider = tuple(side + 32 for side in cell.size)
        try:
            bare(batch(cell, wider)[0])
        except Exception:
            return
        raise AssertionError("the model takes a second size, which is not checked")
    torch.manual_seed(0)  # as in the trace: a model that skips layers at random skips the same
    losses = net(*batch(cell, cell.other))
    assert cell.is_random or len(losses.side) == len(net.taps), "a tap did not fire at the second size"
    assert losses.side, "no tap fired at the second size"
    assert bool(torch.isfinite(losses.total)), "not finite at the second size"


# ---- the page -------------------------------------------------------------------------------------------------------------------------------


def row(result: Result) -> str:
    """Of the list of taps."""
    cell = result.cell
    sizes = ["x".join(map(str, size)) for size in (cell.size, cell.other) if size is not None]
    taps = ", ".join(f"`{tap.layer.address}` {tap.layer.height}x{tap.layer.width} {tap.layer.layout}" for tap in result.taps)
    return f"| {cell.name} | {', '.join(sizes)} | {taps or f'n/a: {result.refusal}'} |"


def page(results: list[Result]) -> str:
    """The whole file."""
    by_name = {result.cell.name: result for result in results if result.cell.group == SMP}
    refused = [result for result in results if result.refusal is not None]
    libraries = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "transformers")
    lines = [
        "# Architecture matrix",
        "",
        "Made by `python benchmarks/architecture_matrix.py` with " + ", ".join(f"{name} {version(name)}" for name in libraries) + ".",
        "",
        f"{len(results) - len(refused)} of {len(results)} cells build, and all that build pass; {len(refused)} are refused by the library itself.",
        "",
        "In every cell, with the default standard, loss and regularizer and a batch of 2: wrapping changes neither keys nor values of the model;",
        "taps are found, and each fires; all terms are finite; each side loss alone gives a gradient to its adapter and to every parameter that its",
        "tap depends on; the model's output and output loss in train mode, and its whole output in eval mode, are the bare model's bit by bit; the",
        "same parameters as in the bare model have a gradient; a second input size works, unless the model takes one only (where one size is told).",
        "",
        "## segmentation_models_pytorch",
        "",
        "| | " + " | ".join(ENCODERS) + " |",
        "| --- |" + " --- |" * len(ENCODERS),
    ]
    for architecture in smp.MODEL_ARCHITECTURES_MAPPING:
        found = [by_name[f"{architecture} {encoder}"] for encoder in ENCODERS]
        marks = [f"{len(result.taps)} taps" if result.refusal is None else "n/a" for result in found]
        lines.append(f"| {architecture} | " + " | ".join(marks) + " |")
    lines += ["", "## Taps", ""]
    for group in dict.fromkeys(result.cell.group for result in results):
        lines += [f"### {group}", "", "| model | inputs | taps |", "| --- | --- | --- |"]
        lines += [row(result) for result in results if result.cell.group == group]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    results = []
    for cell in cells():
        result = check(cell)
        results.append(result)
        print(f"{cell.group:28} {cell.name:40} {f'{len(result.taps)} taps' if result.refusal is None else f'n/a: {result.refusal}'}", flush=True)
    Path(__file__).with_suffix(".md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))  # for the hand-written nets
    main()
