import copy
import gc
import math
import pickle
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import imachsr
from imachsr import (
    Constant,
    Cosine,
    CrossEntropy,
    DepthRule,
    DepthStandard,
    Dice,
    ExplicitStandard,
    IMacHSR,
    InfoNCE,
    Linear,
    MiVariational,
    OutputDice,
    ResolutionStandard,
    StopAt,
    Warmup,
)
from imachsr.core.entropy import Regularizer
from imachsr.core.labels import SideLabels, TapLabels
from imachsr.core.layout import to_nchw
from imachsr.core.losses import SideLoss
from imachsr.core.scale import LOOK_EVERY, scale_of
from imachsr.core.taps import MAX_CONSECUTIVE_MISSES
from tests.core import nets

STAGES = ExplicitStandard(layers=("stage1", "stage2"))


def build(model: nn.Module | None = None, **knobs: Any) -> IMacHSR:
    torch.manual_seed(0)
    given = {"example": nets.images(), "num_classes": nets.NUM_CLASSES, "standard": STAGES, **knobs}
    return IMacHSR(nets.Encoder() if model is None else model, **given)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


# ---- the three lines ------------------------------------------------------------------------------------------------------------------------


def test_three_lines_train_a_known_model() -> None:
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=11)
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 11, (2, 64, 64))
    keys = list(model.state_dict())

    net = imachsr.IMacHSR(model, example=images, num_classes=11)
    losses = net(images, labels)
    losses.total.backward()

    assert net.backbone is model
    assert list(net.backbone.state_dict()) == keys
    assert len(net.taps) == 5
    assert list(losses.side) == list(losses.entropy) == [tap.layer.address for tap in net.taps]
    assert losses.prediction.shape == (2, 11, 64, 64)
    assert not losses.prediction.requires_grad
    told = losses.output.item() + sum(
        losses.weights[f"{group}/{address}"] * value.item() for group in ("side", "entropy") for address, value in getattr(losses, group).items()
    )
    assert losses.total.item() == pytest.approx(told, rel=1e-6)
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_each_term_is_its_loss_of_its_adapted_tap() -> None:
    net = build(loss=["dice", "brier"], alpha=0.4, beta=0.1)
    images, labels = nets.images(), nets.labels(void=0.2)
    caught: dict[str, Tensor] = {}
    for name in ("stage1", "stage2"):
        net.backbone.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: caught.update({name: out}))
    losses = net(images, labels)
    at_taps = TapLabels(labels, 3, 255)
    for index, (name, loss) in enumerate(zip(("stage1", "stage2"), net.losses, strict=True)):
        at = at_taps.at(tuple(caught[name].shape[-2:]))
        z = net.adapters[index](caught[name])
        assert torch.equal(losses.side[name], loss(z, at))
        assert net.entropy is not None
        assert torch.equal(losses.entropy[name], net.entropy(caught[name], at))
        torch.testing.assert_close(losses.scale[name], caught[name].detach().std(unbiased=False))
    assert torch.equal(losses.output, F.cross_entropy(losses.prediction, labels, ignore_index=255))
    assert losses.weights == {"side/stage1": 0.2, "side/stage2": 0.2, "entropy/stage1": 0.05, "entropy/stage2": 0.05}


def test_images_alone_give_the_models_own_output_bit_by_bit() -> None:
    for train in (True, False):
        net = build(nets.Encoder(dropout=0.5)).train(train)
        bare = copy.deepcopy(net.backbone)
        torch.manual_seed(1)
        ours = net(nets.images())
        torch.manual_seed(1)
        assert torch.equal(ours, bare(nets.images()))
        torch.manual_seed(1)
        assert torch.equal(net(nets.images(), nets.labels()).prediction, ours)


@pytest.mark.parametrize("loss", ["infonce", "prototype", "hsic"])
def test_neither_building_nor_a_step_draws_from_the_global_random_state(loss: str) -> None:
    model = nets.Encoder()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    net = IMacHSR(model, example=nets.images(), num_classes=3, standard=STAGES, loss=loss)
    net(nets.images(), nets.labels()).total.backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_building_changes_nothing_in_the_model() -> None:
    model = smp.Unet("resnet18", encoder_weights=None, classes=3).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    net = IMacHSR(model, example=torch.randn(1, 3, 64, 64), num_classes=3)
    assert list(net.backbone.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_adapters_depend_on_the_seed_only() -> None:
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    for a, b, c in zip(first.adapters.parameters(), again.adapters.parameters(), other.adapters.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


class _ReadsAll(InfoNCE):
    num_read = None  # type: ignore[assignment]


def test_a_loss_of_a_sample_has_an_adapter_that_sees_the_sample_alone() -> None:
    images, labels = nets.images().double(), nets.labels()
    found, seen = [], []
    for member in (InfoNCE, _ReadsAll):
        net = build(loss=member(anchors=20)).double()
        for adapter in net.adapters:
            adapter.register_forward_hook(lambda _module, _args, output: seen.append(output.shape[2:].numel() * len(output)))
        losses = net(images, labels)
        losses.total.backward()
        found.append((losses.total.detach(), gradients(net)))
    assert seen[:2] == [20, 20]
    assert min(seen[2:]) > 20
    torch.testing.assert_close(found[0], found[1])


# ---- weights and terms ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "beta", "groups"), [(0.4, 0.0, ["side"]), (0.0, 0.01, ["entropy"]), (0.4, 0.01, ["side", "entropy"]), (0.0, 0.0, [])]
)
def test_a_term_of_weight_zero_is_not_built(alpha: float, beta: float, groups: list[str]) -> None:
    net = build(alpha=alpha, beta=beta)
    losses = net(nets.images(), nets.labels())
    assert [group for group in ("side", "entropy") if getattr(losses, group)] == groups
    assert {key.split("/")[0] for key in losses.weights} == set(groups)
    assert len(net.adapters) == len(net.losses) == (2 if "side" in groups else 0)
    assert (net.entropy is not None) == ("entropy" in groups)
    assert len(net.taps) == (2 if groups else 0)
    assert sum(len(module._forward_hooks) for module in net.modules()) == len(net.taps)


def test_no_entropy_is_built_when_none_is_asked_for() -> None:
    losses = build(entropy=None, beta=0.5)(nets.images(), nets.labels())
    assert losses.entropy == {}


def test_side_losses_train_the_layers_up_to_their_tap_only() -> None:
    net = build(standard=ExplicitStandard(layers=("stage1",)), beta=0.0)
    net(nets.images(), nets.labels()).side["stage1"].backward()
    reached = {name.split(".")[0] for name, grad in gradients(net.backbone).items() if grad is not None and bool(grad.any())}
    assert reached == {"stem", "stage1"}


def test_one_loss_a_tap() -> None:
    net = build(loss=("dice", InfoNCE(temperature=0.2)))
    assert net.losses == (Dice(), InfoNCE(temperature=0.2))
    with pytest.raises(ValueError, match="`loss` must hold one loss a tap, but got 3 losses for 2 taps"):
        build(loss=["dice", "brier", "hsic"])


@pytest.mark.parametrize(
    ("knobs", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "`num_classes >= 2` must hold, but got 1"),
        ({"alpha": -1.0}, ValueError, "`alpha >= 0` must hold and be finite, but got -1.0"),
        ({"beta": -0.5}, ValueError, "`beta >= 0` must hold and be finite, but got -0.5"),
        ({"alpha": float("nan")}, ValueError, "`alpha >= 0` must hold and be finite, but got nan"),
        ({"beta": float("inf")}, ValueError, "`beta >= 0` must hold and be finite, but got inf"),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 1))}, ValueError, "the model must have a layer to supervise, but none of its 1 module calls"),
        ({"standard": DepthStandard(max_taps=99, strict=True)}, ValueError, "99 taps were asked for, but this model and rule offer"),
        ({"loss": "dcie"}, ValueError, r"`loss` must be one of .*, but got 'dcie'; nearest: 'dice'"),
        ({"loss": Dice}, TypeError, r"write Dice\(\)"),
        ({"loss": nn.MSELoss()}, TypeError, "`loss` must have `family`, `make_adapter` and `__call__`, but got MSELoss"),
        ({"entropy": "chanel"}, ValueError, "`entropy` must be one of"),
        ({"schedule": "cosin", "total_steps": 9}, ValueError, "`schedule` must be one of .*, but got 'cosin'; nearest: 'cosine'"),
        ({"schedule": Cosine, "total_steps": 9}, TypeError, "`schedule` must be a name, or an object called"),
        ({"schedule": "cosine"}, ValueError, "`total_steps` must be given for the schedule 'cosine'"),
        ({"standard": "detph"}, ValueError, "nearest: 'depth'"),
        ({"standard": ExplicitStandard(layers=("stage3",))}, ValueError, r"'stage3' is no layer of this model; nearest: 'stage\d'"),
        ({"example": torch.zeros(3, 32, 32)}, ValueError, "`example` must be images"),
        ({"output_loss": "dice"}, TypeError, r"`output_loss` must be called \(output, labels, ignore_index=...\), but got 'dice'"),
        ({"output_loss": OutputDice}, TypeError, "`output_loss` must be called"),
        ({"loss": "mi_variational", "heterogeneity": "strict"}, ValueError, "a side loss must differ from the output loss"),
        ({"heterogeneity": "maybe"}, ValueError, "`heterogeneity` must be one of"),
        ({"output_loss": nn.CrossEntropyLoss()}, TypeError, r"`output_loss` must be called .*, but CrossEntropyLoss\(\): got an unexpected keyword"),
        ({"example": (nets.images(), nets.labels())}, TypeError, r"`example` must be a tensor .*, but got a tuple; of a loader's \(images, labels\)"),
        ({"model": IMacHSR(nets.Encoder(), example=nets.images(), num_classes=3, standard=STAGES)}, ValueError, "a model must be wrapped once"),
        # What a weight of 0 leaves without effect is read all the same.
        ({"alpha": 0, "loss": "dcie"}, ValueError, "nearest: 'dice'"),
        ({"alpha": 0, "heterogeneity": "maybe"}, ValueError, "`heterogeneity` must be one of"),
        ({"alpha": 0, "beta": 0, "standard": "detph"}, ValueError, "nearest: 'depth'"),
        ({"beta": 0, "entropy": "chanel"}, ValueError, "nearest: 'channel'"),
    ],
)
def test_a_mistake_is_told_when_building(knobs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**knobs)


def test_a_mistake_leaves_no_hook_behind() -> None:
    model = nets.Encoder()
    with pytest.raises(ValueError, match="`loss`"):
        build(model, loss="dcie")
    assert not any(module._forward_hooks for module in model.modules())


def test_one_family_is_warned_about_once_and_points_at_the_caller() -> None:
    with pytest.warns(UserWarning, match="both of family 'log_score'") as caught:
        IMacHSR(nets.Encoder(), example=nets.images(), num_classes=3, standard=STAGES, loss=["mi_variational", "mi_variational"])
    assert [warning.filename for warning in caught] == [__file__]
    build(loss="mi_variational", output_loss=OutputDice())
    build(loss="mi_variational", heterogeneity="off")


def test_fewer_taps_than_asked_for_are_warned_about_at_the_caller() -> None:
    with pytest.warns(UserWarning, match="9 taps were asked for, but this model and rule offer 2") as caught:
        IMacHSR(nets.Encoder(), example=nets.images(), num_classes=3, standard=ResolutionStandard(max_taps=9))
    assert [warning.filename for warning in caught] == [__file__]


# ---- batches --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 32), (40, 56), (31, 33)])
def test_images_of_another_size_than_the_example_are_fine(height: int, width: int) -> None:
    losses = build()(nets.images(3, height, width), nets.labels(3, height, width))
    assert bool(torch.isfinite(losses.total))
    assert losses.prediction.shape == (3, 3, height, width)


def test_labels_of_another_size_than_the_images_are_fine() -> None:
    assert bool(torch.isfinite(build()(nets.images(), nets.labels(2, 20, 12)).total))


def test_labels_whose_height_and_width_are_swapped_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`labels` must lie as the images do, but are \[48, 32\] for images of \[32, 48\]: height and width"):
        build()(nets.images(width=48), nets.labels(2, 48, 32))


def test_a_term_that_is_no_scalar_is_named() -> None:
    net = build(output_loss=lambda output, labels, ignore_index: F.cross_entropy(output, labels, ignore_index=ignore_index, reduction="none"))
    with pytest.raises(ValueError, match=r"every term must be a scalar, but the output loss has the shape \[2, 32, 32\]; take its mean"):
        net(nets.images(), nets.labels())


@pytest.mark.parametrize("loss", ["brier", "dice", "prototype", "infonce", "hsic", "boundary"])
def test_a_batch_of_no_images_trains_nothing(loss: str) -> None:
    net = build(loss=loss)
    losses = net(nets.images()[:0], nets.labels()[:0])
    losses.total.backward()
    assert losses.total.item() == 0
    assert not any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in net.parameters())


def test_a_batch_without_a_valid_pixel_trains_nothing() -> None:
    net = build(loss=["prototype", "dice"])
    losses = net(nets.images(), torch.full((2, 32, 32), 255))
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(grad is not None and not bool(grad.any()) for grad in gradients(net).values())


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (nets.labels(3), ValueError, "`labels` must have one map an image, but got 3 for 2 images"),
        (nets.labels().int(), TypeError, r"`labels` must be int64, but got torch.int32; use labels\.long\(\)"),
        (
            nets.labels().unsqueeze(1),
            ValueError,
            r"`labels` must have shape \[B, H, W\] or \[B\] \(one an image\) for images \[2, 3, 32, 32\], but got \[2, 1, 32, 32\]",
        ),
        (nets.labels() + 1, ValueError, r"`labels` must be in 0\.\.2 or 255 \(ignored\), but got 3 at"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()(nets.images(), labels)


@pytest.mark.parametrize("knobs", [{}, {"alpha": 0.0, "beta": 0.0}])
def test_a_model_of_another_number_of_classes_is_refused(knobs: dict[str, Any]) -> None:
    net = build(num_classes=5, **knobs)
    with pytest.raises(ValueError, match="the model must give `num_classes` = 5 scores a pixel, but gives 3"):
        net(nets.images(), nets.labels())


def test_an_own_output_loss_may_read_a_single_score() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def binary(output: Tensor, labels: Tensor, *, ignore_index: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(output[:, 0], labels.float())

    net = IMacHSR(model, example=nets.images(), num_classes=2, standard=lambda _: ["1"], output_loss=binary)
    labels = nets.labels().clamp(max=1)
    assert torch.equal(net(nets.images(), labels).output, F.binary_cross_entropy_with_logits(model(nets.images())[:, 0], labels.float()))


def test_a_loss_that_reads_the_output_refuses_one_of_other_classes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    net = IMacHSR(
        model,
        example=nets.images(),
        num_classes=2,
        standard=lambda _: ["1"],
        loss="synergy",
        output_loss=lambda output, labels, ignore_index: output.square().mean(),
    )
    with pytest.raises(ValueError, match="must give `num_classes` = 2 scores a pixel for the side loss 'synergy', but gives 1"):
        net(nets.images(), nets.labels().clamp(max=1))


@pytest.mark.parametrize("how", ["dict", "namespace"])
def test_structured_outputs_are_trained_through_their_scores(how: str) -> None:
    net = IMacHSR(nets.Wrapped(how), example=nets.images(), num_classes=3, standard=lambda _: ["body"], output_loss=CrossEntropy(aux_weight=0.5))
    losses = net.eval()(nets.images(), nets.labels())
    given = net(nets.images())
    scores = given["out"] if how == "dict" else given.logits
    expected = F.cross_entropy(scores, nets.labels())
    if how == "dict":
        aux = F.interpolate(given["aux"], size=(32, 32), mode="bilinear", align_corners=False)
        expected = expected + 0.5 * F.cross_entropy(aux, nets.labels())
    torch.testing.assert_close(losses.output, expected)
    assert torch.equal(losses.prediction, scores)


def test_another_ignored_label_reaches_every_term() -> None:
    labels = nets.labels(void=0.3)
    ours = build(ignore_index=99)(nets.images(), torch.where(labels == 255, 99, labels))
    assert torch.equal(ours.total, build()(nets.images(), labels).total)


@pytest.mark.parametrize("layout", ["nhwc", "tokens", "tokens first"])
def test_taps_of_every_layout_train(layout: str) -> None:
    model: nn.Module = nets.ChannelsLast(8) if layout == "nhwc" else nets.Vit(prefix=1, blocks=2, batch_first=layout == "tokens")
    address = {"nhwc": "mlp", "tokens": "blocks.0", "tokens first": "outer.0"}[layout]
    net = IMacHSR(model, example=nets.images(2, 32, 64), num_classes=3, standard=lambda _: [address], loss="brier")
    caught: list[Tensor] = []
    handle = model.get_submodule(address).register_forward_hook(lambda _m, _a, out: caught.append(out))
    losses = net(nets.images(2, 32, 64), nets.labels(2, 32, 64))
    handle.remove()
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    image = to_nchw(caught[0], net.taps[0].layer.layout, (32, 64))
    assert tuple(image.shape) == (2, net.taps[0].layer.channels, net.taps[0].layer.height, net.taps[0].layer.width)
    at = TapLabels(nets.labels(2, 32, 64), 3, 255).at(tuple(image.shape[-2:]))
    torch.testing.assert_close(losses.side[address], net.losses[0](net.adapters[0](image), at))


class LastVolumes(nn.Module):
    """Blocks that see ``[B, D, H, W, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mlp, self.head = nn.Conv3d(1, 24, 4, 4), nn.Linear(24, 24), nn.Conv3d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mlp(self.patch(x).movedim(1, -1))
        return F.interpolate(self.head(hidden.movedim(-1, 1)), size=x.shape[2:])


def test_volumes_with_channels_last_are_scored_voxel_by_voxel() -> None:
    net = build(LastVolumes(), example=torch.randn(2, 1, 16, 32, 40), standard=lambda _: ["mlp"], loss="brier")
    assert net.taps[0].layer.layout == "NDHWC"
    assert net.taps[0].layer.channels == 24
    images, labels = torch.randn(2, 1, 8, 32, 24), torch.randint(0, 3, (2, 8, 32, 24))  # another depth and width than the example's
    losses = net(images, labels)
    features = net.backbone.mlp(net.backbone.patch(images).movedim(1, -1)).movedim(-1, 1)
    p = net.adapters[0](features.flatten(2, 3)).softmax(1).unflatten(2, (2, 8))
    target = F.avg_pool3d(F.one_hot(labels, 3).movedim(-1, 1).float(), 4)
    torch.testing.assert_close(losses.side["mlp"], (p - target).square().sum(1).mean())


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 96)])
@pytest.mark.parametrize("how", ["resized", "padded"])
def test_tokens_of_a_model_with_an_input_size_of_its_own_are_found(how: str, height: int, width: int) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = nets.Vit()

        def forward(self, x: Tensor) -> Tensor:
            if how == "resized":
                return F.interpolate(self.vit(F.interpolate(x, size=(32, 32 * width // height))), size=x.shape[2:])
            return self.vit(F.pad(x, (0, -x.shape[3] % 64, 0, -x.shape[2] % 64)))[..., : x.shape[2], : x.shape[3]]

    net = build(Own(), example=nets.images(2, height, width), standard=lambda _: ["vit.blocks.2"])
    assert list(net(nets.images(2, height, width), nets.labels(2, height, width)).side) == ["vit.blocks.2"]


@pytest.mark.parametrize("case", ["autocast inside", "images cast inside", "images of bytes"])
def test_adapters_read_what_a_model_computes_in(case: str) -> None:
    class Own(nets.Encoder):
        def forward(self, x: Tensor) -> Tensor:
            if case == "images cast inside":
                return super().forward(x.bfloat16()).float()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast inside"):
                return super().forward(x.float())

    images = nets.images().clamp(0, 1).mul(255).byte() if case == "images of bytes" else nets.images()
    model = Own().bfloat16() if case == "images cast inside" else Own()
    net = build(model, example=images)
    losses = net(images, nets.labels())
    losses.total.backward()
    assert all(bool(parameter.grad.any()) for parameter in net.parameters())
    plain = build(nets.Encoder(), example=images.float())
    plain.load_state_dict(net.state_dict())
    theirs = plain(images.float(), nets.labels())
    torch.testing.assert_close(losses.side, theirs.side, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("part", "what"), [("", "it is"), ("stage2", "its module 'stage2' is")])
def test_a_model_that_is_compiled_already_is_told_the_order(part: str, what: str) -> None:
    model = nets.Encoder()
    model.get_submodule(part).compile(backend="eager")
    with pytest.raises(ValueError, match=f"the model must be wrapped before it is compiled, but {what} compiled already"):
        build(model)
    with pytest.raises(ValueError, match="the model must be wrapped before it is compiled"):
        build(torch.compile(nets.Encoder(), backend="eager"))


def test_without_gradients_the_terms_are_the_same_and_need_none() -> None:
    net = build().eval()
    with_gradients = net(nets.images(), nets.labels())
    with torch.no_grad():
        without = net(nets.images(), nets.labels())
    assert torch.equal(without.total, with_gradients.total)
    assert not without.total.requires_grad
    assert list(without.side) == list(with_gradients.side)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_precision_gets_adapters_in_it(dtype: torch.dtype) -> None:
    net = build(nets.Encoder().to(dtype), example=nets.images().to(dtype))
    losses = net(nets.images().to(dtype), nets.labels())
    losses.total.backward()
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    assert bool(torch.isfinite(losses.total))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_ones_own_read_full_precision_under_autocast(dtype: torch.dtype) -> None:
    read: dict[str, set[torch.dtype]] = {}

    class Own:
        family, needs_output = "own", True

        def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
            return nn.Conv2d(channels, num_classes, 1)

        def __call__(self, scores: Tensor, labels: SideLabels) -> Tensor:
            assert labels.output is not None
            read.setdefault("side", set()).update({scores.dtype, labels.output.dtype})
            return scores.square().mean()

    def regularizer(features: Tensor, labels: SideLabels) -> Tensor:
        read.setdefault("entropy", set()).add(features.dtype)
        return features.square().mean()

    def output_loss(output: dict[str, Any], labels: Tensor, *, ignore_index: int) -> Tensor:
        read.setdefault("output", set()).update({output["out"].dtype, output["more"][0].dtype})
        assert output["count"].dtype == torch.int64
        return F.cross_entropy(output["out"], labels, ignore_index=ignore_index)

    class Several(nets.Encoder):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return {"out": out, "more": [out], "count": torch.ones(2, dtype=torch.int64)}

    net = build(Several(), loss=Own(), entropy=regularizer, output_loss=output_loss)
    with torch.autocast("cpu", dtype):
        losses = net(nets.images(), nets.labels())
    assert read == {name: {torch.float32} for name in ("side", "entropy", "output")}
    losses.total.backward()
    assert losses.prediction.dtype == dtype  # the model itself ran in the other one


def test_under_autocast_the_losses_stay_in_float32_and_near() -> None:
    net = build(loss=["prototype", "hsic"])
    exact = net(nets.images(), nets.labels())
    with torch.autocast("cpu", torch.bfloat16):
        coarse = net(nets.images().contiguous(memory_format=torch.channels_last), nets.labels())
    coarse.total.backward()
    for value in (coarse.total, coarse.output, *coarse.side.values(), *coarse.entropy.values()):
        assert value.dtype == torch.float32
    assert coarse.total.item() == pytest.approx(exact.total.item(), rel=0.05)


# ---- taps that go wrong ---------------------------------------------------------------------------------------------------------------------


def test_a_missed_tap_is_counted_and_the_others_go_on() -> None:
    net = build(alpha=0.4, beta=0.01)
    net.backbone.is_skipped = True
    losses = net(nets.images(), nets.labels())
    assert list(losses.side) == list(losses.entropy) == ["stage1"]
    assert losses.weights == {"side/stage1": 0.2, "entropy/stage1": 0.005}
    assert net.misses == {"stage2": 1}


def test_a_tap_missed_too_often_in_a_row_is_an_error() -> None:
    net = build()

    def step() -> None:
        with torch.no_grad():
            net(nets.images(), nets.labels())

    net.backbone.is_skipped = True
    for _ in range(MAX_CONSECUTIVE_MISSES - 1):
        step()
    net.backbone.is_skipped = False
    step()  # it fires: the row begins anew, the count stays
    assert net.misses == {"stage2": 19}
    net.backbone.is_skipped = True
    for _ in range(MAX_CONSECUTIVE_MISSES - 1):
        step()
    with pytest.raises(RuntimeError, match="tap 'stage2' must fire, but was missed by 20 consecutive forwards; choose another layer"):
        step()


class TrainsAnother(nn.Module):
    """With a head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nets.Block(3, 8, 2), nn.Conv2d(8, 3, 1)
        self.aux = nn.Sequential(nets.Block(8, 8, 1), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        given = {"out": F.interpolate(self.head(hidden), size=x.shape[2:])}
        return {**given, "aux": F.interpolate(self.aux(hidden), size=x.shape[2:])} if self.training else given


def test_what_runs_in_training_alone_is_no_miss_in_evaluation() -> None:
    net = build(TrainsAnother(), standard=lambda _: ["body", "aux.0"])
    assert list(net(nets.images(), nets.labels()).side) == ["body", "aux.0"]
    net.eval()
    for _ in range(MAX_CONSECUTIVE_MISSES + 1):
        assert list(net(nets.images(), nets.labels()).side) == ["body"]
    assert net.misses == {}


def test_a_module_that_was_replaced_after_wrapping_is_told_at_once() -> None:
    net = build(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)), standard=lambda _: ["1"])
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()  # it trains on GPUs alone
    with pytest.raises(RuntimeError, match=r"module '1' of tap '1' must be the one that was wrapped, but was replaced since; .* then wrap it"):
        converted(nets.images(), nets.labels())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net.unwrap()).eval()
    again = build(nn.Sequential(*converted), standard=lambda _: ["2"]).eval()
    assert list(again(nets.images(), nets.labels()).side) == ["2"]


def test_unwrapping_gives_the_model_as_it_was() -> None:
    model = nets.Encoder()
    before = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    other = build(model)
    net = build(model)
    net(nets.images(), nets.labels()).total.backward()
    assert net.unwrap() is model
    assert list(other(nets.images(), nets.labels()).side) == ["stage1", "stage2"]  # of two wraps each takes off its own
    copied = copy.deepcopy(other)
    for each in (other.unwrap(), copied.unwrap()):
        assert {name: dict(module._forward_hooks) for name, module in each.named_modules()} == before
    assert b"imachsr" not in pickle.dumps(model)
    with pytest.raises(RuntimeError, match=r"a net must hold its model to train it, but `unwrap\(\)` gave that back; wrap the model again"):
        net(nets.images(), nets.labels())
    assert torch.equal(net(nets.images()), model(nets.images()))


def test_of_a_reused_module_each_call_is_missed_alone() -> None:
    net = IMacHSR(nets.Reused(), example=nets.images(), num_classes=3, standard=lambda _: ["act", "act#2", "act#3"])
    net.backbone.num_calls = 2
    assert list(net(nets.images(), nets.labels()).side) == ["act", "act#2"]
    assert net.misses == {"act#3": 1}


def test_more_calls_of_a_module_than_traced_are_refused() -> None:
    net = IMacHSR(nets.Reused(), example=nets.images(), num_classes=3, standard=lambda _: ["act#2", "act#3"])
    net.backbone.num_calls = 5
    with pytest.raises(RuntimeError, match="module 'act' of tap 'act#2' must be called at most 3 times, as in the trace, but was called 5 times"):
        net(nets.images(), nets.labels())


def test_a_tap_rewritten_in_place_is_refused() -> None:
    net = build()
    net.backbone.is_rewritten = True
    with pytest.raises(RuntimeError, match="the output of tap 'stage2' must not change after its module returns, but it was rewritten in place"):
        net(nets.images(), nets.labels())
    net.backbone.is_rewritten = False
    net(nets.images(), nets.labels())  # nothing of the failed step is left


def test_a_tap_behind_frozen_layers_is_refused() -> None:
    net = build()
    net.backbone.stem.requires_grad_(False)
    net.backbone.stage1.requires_grad_(False)
    with pytest.raises(RuntimeError, match="the output of tap 'stage1' must require a gradient, but it does not: the layers before it are frozen"):
        net(nets.images(), nets.labels())


def test_a_tap_inside_reentrant_checkpointing_is_refused() -> None:
    net = build(standard=ExplicitStandard(layers=("stage1", "stage2.0")))
    net.backbone.reentrant = True
    with pytest.raises(RuntimeError, match=r"tap 'stage2\.0' must require a gradient, .* \(pass use_reentrant=False\)"):
        net(nets.images(), nets.labels())


@pytest.mark.parametrize(("reentrant", "layers"), [(False, ("stage1", "stage2")), (False, ("stage2.0",)), (True, ("stage1", "stage2"))])
def test_checkpointing_gives_the_same_gradients(reentrant: bool, layers: tuple[str, ...]) -> None:
    plain, checkpointed = (build(standard=ExplicitStandard(layers=layers)) for _ in range(2))
    checkpointed.backbone.reentrant = reentrant
    for net in (plain, checkpointed):
        net(nets.images(), nets.labels()).total.backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(checkpointed)[name], grad)
    # The hook fires again in the backward pass; the next step must not see it.
    assert list(checkpointed(nets.images(), nets.labels()).side) == list(layers)


def watched(net: IMacHSR) -> "list[weakref.ref[Tensor]]":
    """References to what stage1 gives, filled as it runs."""
    given: list[weakref.ref[Tensor]] = []
    net.backbone.stage1.register_forward_hook(lambda _m, _a, out: given.append(weakref.ref(out)))
    return given


def test_nothing_caught_outlives_the_step() -> None:
    net = build()
    given = watched(net)
    net(nets.images())
    gc.collect()
    assert [reference() for reference in given] == [None]
    net(nets.images(), nets.labels())
    gc.collect()
    assert [reference() for reference in given] == [None, None]


def test_an_error_in_the_model_leaves_nothing_caught() -> None:
    net = build()
    given = watched(net)
    head, net.backbone.head = net.backbone.head, nn.Conv2d(99, 3, 1)  # does not fit
    try:
        net(nets.images(), nets.labels())
    except RuntimeError as error:
        assert "channels" in str(error)  # noqa: PT017  (pytest.raises would keep the frames, and with them the tensor)
    gc.collect()
    assert [reference() for reference in given] == [None]
    net.backbone.head = head
    assert list(net(nets.images(), nets.labels()).side) == ["stage1", "stage2"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda net: net.adapters[1].weight, "side loss of tap 'stage2' is nan"),
        (lambda net: net.backbone.head.weight, "output loss is nan"),
        (
            lambda net: net.backbone.stage1[0].norm.weight,
            "output loss is nan; side loss of tap 'stage1' is nan; .*entropy term of tap 'stage1' is nan.*",
        ),
        (lambda net: net.backbone.stage2[1].norm.weight, "output loss is nan; side loss of tap 'stage2' is nan; entropy term of tap 'stage2' is nan"),
    ],
)
def test_a_term_that_is_not_finite_is_named(spoil: Callable[[IMacHSR], Tensor], message: str) -> None:
    net = build(loss="brier")
    with torch.no_grad():
        spoil(net).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=f"every term must be finite, but {message}; lower the learning rate"):
        net(nets.images(), nets.labels())


def test_a_loss_that_needs_a_factorisation_is_told_like_the_others() -> None:
    net = build(loss="rmi")
    with torch.no_grad():
        net.adapters[1].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="side loss of tap 'stage2' is nan"):
        net(nets.images(), nets.labels())


def test_losses_are_there_in_inference_mode_too() -> None:
    """Lightning validates in it."""
    net = build(loss="brier").eval()
    with torch.no_grad():
        expected = net(nets.images(), nets.labels())
    with torch.inference_mode():
        found = net(nets.images(), nets.labels())
    torch.testing.assert_close(found.total, expected.total)
    assert found.side.keys() == expected.side.keys() != set()


def test_a_replica_of_a_thread_is_refused_by_name() -> None:
    net = build(loss="brier")
    replica = net._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="must be trained by one thread a GPU, but is in torch's DataParallel"):
        replica(nets.images(), nets.labels())


# ---- copies and checkpoints -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"])
def test_a_copy_reads_its_own_layers(how: Callable[[IMacHSR], IMacHSR]) -> None:
    net = build(loss=InfoNCE(anchors=8))
    net(nets.images(), nets.labels())
    twin = how(net)
    ours, theirs = net(nets.images(), nets.labels()), twin(nets.images(), nets.labels())
    assert torch.equal(ours.total, theirs.total)
    theirs.total.backward()
    assert all(grad is None for grad in gradients(net).values())
    assert all(grad is not None for grad in gradients(twin).values())


def test_a_state_dict_restores_the_weights_and_the_sampling_of_pixels() -> None:
    def steps(net: IMacHSR, count: int) -> list[float]:
        return [net(nets.images(), nets.labels()).total.item() for _ in range(count)]

    net, fresh = build(loss=InfoNCE(anchors=8)), build(loss=InfoNCE(anchors=8))
    begin = steps(net, 2)
    assert begin[0] != begin[1]  # each step samples other pixels
    fresh.load_state_dict(net.state_dict())
    assert steps(fresh, 2) == steps(net, 2)
    assert steps(build(loss=InfoNCE(anchors=8)), 2) == begin


def test_evaluation_does_not_move_the_sampling_of_pixels() -> None:
    net, other = build(loss=InfoNCE(anchors=8)), build(loss=InfoNCE(anchors=8))
    net.eval()(nets.images(), nets.labels())
    assert torch.equal(net.train()(nets.images(), nets.labels()).total, other(nets.images(), nets.labels()).total)


def test_a_model_may_be_wrapped_twice() -> None:
    model = nets.Encoder()
    first, second = build(model), build(model, standard=ExplicitStandard(layers=("stage2",)))
    assert list(first(nets.images(), nets.labels()).side) == ["stage1", "stage2"]
    assert list(second(nets.images(), nets.labels()).side) == ["stage2"]


@pytest.fixture
def _compiler() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        torch._dynamo.reset()
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("what", [pytest.param("net", marks=pytest.mark.slow), "backbone"])
def test_taps_fire_in_a_compiled_model(what: str) -> None:
    plain, compiled = build(), build()
    if what == "net":
        run: Any = torch.compile(compiled, backend="eager")
    else:
        run = compiled
        compiled.backbone.compile(backend="eager")
    for _ in range(2):
        ours, theirs = run(nets.images(), nets.labels()), plain(nets.images(), nets.labels())
        assert list(ours.side) == ["stage1", "stage2"]
        torch.testing.assert_close(ours.total, theirs.total)
    ours.total.backward()
    theirs.total.backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(compiled)[name], grad)


# ---- what the caller brings -----------------------------------------------------------------------------------------------------------------


class Plain:
    """A side loss that is not hashable."""

    family: ClassVar[str] = "log_score"
    __hash__ = None  # type: ignore[assignment]

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        return MiVariational().make_adapter(channels, num_classes, generator)

    def __call__(self, z: Tensor, labels: Any) -> Tensor:
        return MiVariational()(z, labels)


def test_any_object_of_the_right_form_is_a_side_loss() -> None:
    ours = build(loss=Plain(), heterogeneity="off")(nets.images(), nets.labels())
    assert torch.equal(ours.total, build(loss="mi_variational", heterogeneity="off")(nets.images(), nets.labels()).total)


def test_the_initial_score_of_equal_shares_is_what_theory_says() -> None:
    net = build(loss="mi_variational", heterogeneity="off", beta=0.0)
    with torch.no_grad():
        for adapter in net.adapters:
            adapter.weight.zero_()
    for value in net(nets.images(), nets.labels(void=0.3)).side.values():
        assert value.item() == pytest.approx(math.log(3), rel=1e-5)


# ---- all losses and regularizers ------------------------------------------------------------------------------------------------------------


every_loss = pytest.mark.parametrize("member", get_args(SideLoss), ids=lambda member: member.kind)
every_regularizer = pytest.mark.parametrize("member", get_args(Regularizer), ids=lambda member: member.kind)


@every_loss
def test_every_loss_trains_every_adapter_and_the_layers_before_its_tap(member: Any) -> None:
    net = build(loss=member(), beta=0.0, heterogeneity="off")
    losses = net(nets.images(), nets.labels(void=0.1))
    sum(losses.side.values()).backward()
    assert list(losses.side) == ["stage1", "stage2"]
    assert all(bool(torch.isfinite(value)) for value in losses.side.values())
    assert all(bool(parameter.grad.any()) for parameter in net.adapters.parameters() if parameter.ndim > 1)
    assert bool(net.backbone.stem.conv.weight.grad.any())
    assert net.backbone.head.weight.grad is None


def test_a_loss_that_reads_the_output_gets_its_scores_at_the_taps_size_without_their_gradient() -> None:
    net = build(loss="synergy", beta=0.0)
    seen: list[Tensor | None] = []

    class Seen:
        family, needs_output = "seen", True

        def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
            return MiVariational().make_adapter(channels, num_classes, generator)

        def __call__(self, z: Tensor, labels: Any) -> Tensor:
            seen.append(labels.output)
            return z.square().mean()

    net = build(loss=Seen(), beta=0.0)
    losses = net(nets.images(), nets.labels())
    for given, size in zip(seen, (16, 8), strict=True):
        assert given is not None
        assert not given.requires_grad
        cells = losses.prediction.unflatten(2, (size, -1)).unflatten(4, (size, -1))
        torch.testing.assert_close(given, cells.mean((3, 5)))
    sum(losses.side.values()).backward()
    assert net.backbone.head.weight.grad is None
    plain = build(loss="dice", beta=0.0)
    plain.losses = (Seen(), Dice())
    seen.clear()
    plain(nets.images(), nets.labels())
    assert len(seen) == 1


# ---- classifiers and volumes ----------------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.pool, self.head = nets.Block(3, 8, 2), nets.Block(8, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(self.stem(x))).flatten(1))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.head = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 3, stride=2, padding=1), nn.Conv3d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.down(self.stem(x))), size=x.shape[2:], mode="trilinear")


IMAGE_LABELS = torch.tensor([0, 2, 1, 0, 255, 2])


def classifier(**knobs: Any) -> IMacHSR:
    return build(Classifier(), standard=ExplicitStandard(layers=("stem", "body")), heterogeneity="off", **knobs)


@every_loss
def test_with_one_label_an_image_a_loss_reads_the_pooled_tap_or_refuses(member: Any) -> None:
    net, images = classifier(loss=member(), beta=0.0), nets.images(6)
    if getattr(member, "needs_dense", False):
        with pytest.raises(ValueError, match=rf"the side loss '{member.kind}' must have labels of pixels \[B, H, W\], but got one label an image"):
            net(images, IMAGE_LABELS)
        return
    losses = net(images, IMAGE_LABELS)
    losses.total.backward()
    assert torch.equal(losses.output, F.cross_entropy(losses.prediction, IMAGE_LABELS, ignore_index=255))
    assert losses.prediction.shape == (6, 3)
    assert bool(torch.isfinite(losses.total))
    assert bool(net.backbone.stem.conv.weight.grad.any())
    at = TapLabels(IMAGE_LABELS, 3, 255).at((16, 16))
    assert at.hard.flatten().tolist() == [0, 2, 1, 0, -1, 2]
    at = replace(at, output=losses.prediction[..., None, None])
    pooled = net.backbone.stem(images).mean((2, 3), keepdim=True)
    torch.testing.assert_close(losses.side["stem"], member()(net.adapters[0](pooled), at))


@every_regularizer
def test_the_entropy_of_a_classifiers_taps_is_that_of_all_their_positions(member: Any) -> None:
    net, images = classifier(loss="brier", entropy=member(), beta=0.1), nets.images(6)
    losses = net(images, IMAGE_LABELS)
    losses.total.backward()
    hidden = net.backbone.stem(images).detach()
    if member.kind == "adapter":
        hidden = net.adapters[0](hidden.mean((2, 3), keepdim=True))
    labels = torch.where(IMAGE_LABELS == 255, 255, 0)[:, None, None].expand(-1, *hidden.shape[2:])
    torch.testing.assert_close(losses.entropy["stem"], member()(hidden, TapLabels(labels.contiguous(), 3, 255).at(tuple(hidden.shape[2:]))))


@every_loss
def test_volumes_train_by_their_voxels_or_the_loss_refuses(member: Any) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(2, 1, 8, 16, 12), torch.randint(0, 3, (2, 8, 16, 12))
    labels[:, :2] = 255
    net = build(Volumes(), example=images, standard=ExplicitStandard(layers=("stem", "down")), loss=member(), heterogeneity="off")
    if getattr(member, "needs_dense", False):
        with pytest.raises(ValueError, match=rf"the side loss '{member.kind}' must have labels of pixels \[B, H, W\], but got volumes"):
            net(images, labels)
        return
    losses = net(images, labels)
    losses.total.backward()
    assert bool(torch.isfinite(losses.total))
    assert all(bool(parameter.grad.any()) for parameter in net.adapters.parameters() if parameter.ndim > 1)
    hidden = net.backbone.down(net.backbone.stem(images))
    at = replace(TapLabels(labels, 3, 255).at((4, 8, 6)), output=F.adaptive_avg_pool3d(losses.prediction, (4, 8, 6)).flatten(2, 3))
    torch.testing.assert_close(losses.side["down"], member()(net.adapters[1](hidden.flatten(2, 3)), at))
    torch.testing.assert_close(losses.entropy["down"], net.entropy(hidden.flatten(2, 3), at))  # type: ignore[misc]


# ---- one loss by depth, profiles, schedules ---------------------------------------------------------------------------------------------------


ALL_FOUR = ExplicitStandard(layers=("stem", "stage1.0", "stage1", "stage2"))


@pytest.mark.parametrize(("share", "first"), [(0.5, 2), (0.25, 1), (0.1, 1), (0.75, 3), (0.99, 3)])
def test_a_depth_rule_gives_the_first_taps_one_loss_and_the_others_another(share: float, first: int) -> None:
    net = build(standard=ALL_FOUR, loss=DepthRule(early="brier", late=Dice(), share=share))
    assert [side.kind for side in net.losses] == ["brier"] * first + ["dice"] * (4 - first)
    with pytest.raises(ValueError, match="`0 < share < 1` must hold, but got 1.0"):
        DepthRule(early="brier", late="dice", share=1.0)


def test_both_losses_of_a_depth_rule_are_held_to_their_families() -> None:
    with pytest.raises(ValueError, match="'mi_variational' and 'cross_entropy' are both of family 'log_score'"):
        build(standard=ALL_FOUR, loss=DepthRule(early="dice", late="mi_variational"), heterogeneity="strict")
    with pytest.raises(ValueError, match="nearest: 'brier'"):
        build(standard=ALL_FOUR, loss=DepthRule(early="dice", late="breir"))


def test_a_profile_weighs_the_taps_in_execution_order() -> None:
    losses = build(standard=ALL_FOUR, profile="linear_depth", alpha=1.0, beta=0.5)(nets.images(), nets.labels())
    assert [losses.weights[f"side/{name}"] for name in ("stem", "stage1.0", "stage1", "stage2")] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [losses.weights[f"entropy/{name}"] for name in losses.entropy] == pytest.approx([0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("schedule", [Warmup(), Linear(), Cosine(), StopAt()])
def test_a_schedule_that_changes_asks_for_its_length(schedule: Any) -> None:
    with pytest.raises(ValueError, match=f"`total_steps` must be given for the schedule '{schedule.kind}', but is None"):
        build(schedule=schedule)
    with pytest.raises(ValueError, match="`total_steps >= 1` must hold, but got 0"):
        build(schedule=schedule, total_steps=0)
    build(schedule=Constant())


def weights_over(net: IMacHSR, steps: int) -> list[float]:
    return [float(net(nets.images(), nets.labels()).weights.get("side/stage1", 0.0)) for _ in range(steps)]


@pytest.mark.parametrize("schedule", [Warmup(share=0.5), Linear(end=0.2), Cosine(), StopAt(share=0.5), Constant()])
def test_weights_follow_the_schedule_over_the_steps_and_stay_at_its_end(schedule: Any) -> None:
    expected = [0.2 * float(schedule(torch.tensor(min(1.0, step / 8)))) for step in range(11)]
    assert weights_over(build(alpha=0.4, schedule=schedule, total_steps=8), 11) == pytest.approx(expected, abs=1e-7)


def test_without_a_schedule_the_weights_stay_also_where_the_length_is_known() -> None:
    assert weights_over(build(alpha=0.8, total_steps=8), 9) == [0.4] * 9
    assert weights_over(build(alpha=0.8), 3) == [0.4] * 3


def test_terms_that_are_stopped_are_not_built_and_the_rest_is_plain_training() -> None:
    net = build(schedule=StopAt(share=0.5), total_steps=4)
    for step in range(4):
        net.zero_grad(set_to_none=True)
        losses = net(nets.images(), nets.labels())
        losses.total.backward()
        assert bool(losses.side) == bool(losses.entropy) == (step < 2)
        assert all((parameter.grad is not None) == (step < 2) for parameter in net.adapters.parameters())
    assert torch.equal(losses.total, losses.output)


def test_the_schedule_goes_on_where_a_checkpoint_left_it_and_evaluation_does_not_move_it() -> None:
    make = partial(build, schedule=Linear(), total_steps=10)
    whole, first = weights_over(make(), 10), make()
    weights_over(first, 4)
    first.eval()
    weights_over(first, 3)
    second = make()
    second.load_state_dict(first.state_dict())
    assert (first.num_steps, second.num_steps) == (4, 4)
    assert weights_over(second, 6) == pytest.approx(whole[4:])


# ---- the entropy of an adapter, and features that collapse -------------------------------------------------------------------------------------


def test_only_taps_whose_loss_gives_scores_have_an_adapters_entropy() -> None:
    net = build(loss=["brier", "prototype"], entropy="adapter", beta=0.1)
    losses = net(nets.images(), nets.labels())
    assert list(losses.side) == ["stage1", "stage2"]
    assert list(losses.entropy) == ["stage1"]
    assert list(losses.weights) == ["side/stage1", "entropy/stage1", "side/stage2"]


@pytest.mark.parametrize(("knobs", "named"), [({"loss": "prototype"}, "'prototype', 'prototype'"), ({"alpha": 0.0}, "no side loss")])
def test_an_adapters_entropy_without_scores_is_refused(knobs: dict[str, Any], named: str) -> None:
    model = nets.Encoder()
    with pytest.raises(ValueError, match=rf"`loss` must give class scores \(such as dice or brier\) for the entropy 'adapter', but got {named}"):
        build(model, entropy="adapter", beta=0.1, **knobs)
    assert not any(module._forward_hooks for module in model.modules())


def test_features_that_shrink_to_nothing_are_warned_about_once() -> None:
    net = build()
    net(nets.images(), nets.labels())
    with torch.no_grad():
        net.backbone.stage2[1].norm.weight.mul_(1e-3)
        net.backbone.stage2[1].norm.bias.mul_(1e-3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3 * LOOK_EVERY):
            with torch.no_grad():
                net(nets.images(), nets.labels())
    (one,) = told
    assert re.match(
        r"features of tap 'stage2' must keep their scale, but their standard deviation fell from 0\.\d+ to 0\.000\d+; lower beta, or",
        str(one.message),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (3.0, 1.0), (-50.0, 2.0), (0.0, 1e-4), (0.0, 300.0)])
def test_the_scale_of_features_is_their_standard_deviation(mean: float, spread: float, dtype: torch.dtype) -> None:
    features = (mean + spread * torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert scale_of(features).item() == pytest.approx(features.double().std(unbiased=False).item(), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 7.3, -1e4, 1e8])
def test_the_scale_of_equal_features_is_nothing(value: float) -> None:
    scale = scale_of(torch.full((2, 3, 9, 9), value)).item()
    assert math.isfinite(scale)
    assert 0 <= scale <= 1e-3 * abs(value)


def test_features_that_keep_their_scale_are_not_warned_about() -> None:
    net = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(LOOK_EVERY + 1):
            with torch.no_grad():
                net(nets.images(), nets.labels())
                net.backbone.stage2[1].norm.weight.mul_(0.95)
