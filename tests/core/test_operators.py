"""FLOPs, receptive fields, attention and fusion, as the trace sees them in the operators of one forward."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from imachsr import trace
from imachsr.core.types import LayerInfo, Site
from tests.core import nets


def fields(model: nn.Module, height: int = 32, width: int = 32) -> dict[str, float]:
    return {layer.address: layer.receptive_field for layer in trace(model, nets.images(1, height, width)).layers}


def layer_of(model: nn.Module, address: str) -> LayerInfo:
    return next(layer for layer in trace(model, nets.images()).layers if layer.address == address)


# ---- FLOPs ----------------------------------------------------------------------------------------------------------------------------------


class Widths(nn.Module):
    """Grouped, depthwise, dilated and transposed convolutions, and linear layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4)
        self.depthwise, self.up = nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.ConvTranspose2d(16, 8, 2, 2)
        self.linear, self.head = nn.Linear(8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.depthwise(self.grouped(self.stem(x))))
        return self.head(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


COUNTED: dict[str, Callable[[], nn.Module]] = {
    "widths": Widths,
    "vit": lambda: nets.Vit(blocks=3),
    "unet": partial(smp.Unet, "resnet18", encoder_weights=None, classes=3),
    "deeplabv3plus": partial(smp.DeepLabV3Plus, "mobilenet_v2", encoder_weights=None, classes=3),
    "segformer": partial(smp.Segformer, "mit_b0", encoder_weights=None, classes=3),
}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_are_those_of_pytorchs_counter(name: str) -> None:
    model = COUNTED[name]().train()
    found = trace(model, nets.images(1, 64, 64))
    with FlopCounterMode(display=False) as counter:
        model(nets.images(2, 64, 64))
    assert found.flops > 0
    assert found.flops * 2 == counter.get_total_flops()
    spent = [layer.flops for layer in found.layers]
    assert spent == sorted(spent)
    assert 0 < spent[0] <= spent[-1] <= found.flops


def test_each_call_of_a_reused_module_is_counted_by_itself() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.stem(x))
            return self.head(self.conv(F.avg_pool2d(x, 2)))

    layers = {layer.address: layer for layer in trace(Loop(), nets.images(1, 8, 16)).layers}
    stem, conv, smaller = 2 * 3 * 4 * 8 * 16, 2 * 4 * 4 * 9 * 8 * 16, 2 * 4 * 4 * 9 * 4 * 8
    assert [layer.flops for layer in layers.values()] == [stem, stem + conv, stem + conv + smaller]
    assert list(layers) == ["stem", "conv", "conv#2"]


def test_attention_by_one_operator_costs_its_two_products() -> None:
    found = trace(Attending("sdpa"), nets.images(1, 32, 64))
    tokens, width = 4 * 8, 8
    assert found.flops == 2 * 3 * 64 * 8 * tokens + 2 * tokens * width * 3 * width + 2 * 2 * tokens * tokens * width + 2 * width * 3 * tokens


def test_parameters_are_counted_at_their_first_use() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two, self.unused = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 9)
            self.two.weight = self.one.weight
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.one(self.two(self.one(self.stem(x)))))

    found = trace(Shared(), nets.images())
    stem, one, bias = 3 * 4 + 4, 4 * 4 + 4, 4
    assert [(layer.address, layer.params_used) for layer in found.layers] == [
        ("stem", stem),
        ("one", stem + one),
        ("two", stem + one + bias),
        ("one#2", stem + one + bias),
    ]
    assert found.params == stem + one + bias + 4 * 3 + 3


# ---- receptive fields -----------------------------------------------------------------------------------------------------------------------

Spec = tuple[str, int, int, int]
"""What, kernel, stride, dilation."""
CHAINS: list[list[Spec]] = [
    [("conv", 3, 1, 1), ("conv", 3, 1, 1), ("conv", 5, 1, 1)],
    [("conv", 7, 2, 1), ("max", 3, 2, 1), ("conv", 3, 1, 1), ("conv", 3, 2, 1), ("conv", 1, 1, 1)],
    [("conv", 3, 2, 1), ("conv", 3, 1, 2), ("conv", 3, 1, 4), ("avg", 2, 2, 1), ("conv", 3, 1, 1)],
    [("avg", 2, 2, 1), ("conv", 3, 1, 1), ("max", 2, 2, 1), ("conv", 3, 1, 3)],
]


def chain(specs: list[Spec]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 1)]
    for what, kernel, stride, dilation in specs:
        pad = dilation * (kernel - 1) // 2
        if what == "conv":
            layers.append(nn.Conv2d(4, 4, kernel, stride, pad, dilation))
        elif what == "up":
            layers.append(nn.ConvTranspose2d(4, 4, kernel, stride, (kernel - stride) // 2))
        else:
            layers.append(nn.MaxPool2d(kernel, stride, pad) if what == "max" else nn.AvgPool2d(kernel, stride))
    return nn.Sequential(*layers, nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize("specs", CHAINS, ids=range(len(CHAINS)))
def test_receptive_fields_of_chains_follow_the_closed_formula(specs: list[Spec]) -> None:
    """r = 1 + sum_l d_l (k_l - 1) prod_{i < l} s_i (Araujo et al. 2019)."""
    expected, jump, field = [1.0], 1, 1.0
    for _, kernel, stride, dilation in specs:
        field += dilation * (kernel - 1) * jump
        jump *= stride
        expected.append(field)
    assert list(fields(chain(specs), 128, 128).values()) == expected


def measured(model: nn.Module, address: str, size: int = 128) -> int:
    """Widest run of pixels that a position of the layer depends on; all weights are positive, so that nothing cancels."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    caught: list[Tensor] = []
    handle = model.get_submodule(address).register_forward_hook(lambda _m, _a, out: caught.append(out))
    images = torch.ones(1, 3, 8, size, requires_grad=True)
    model(images)
    handle.remove()
    widest, line = 0, caught[0][0, :, caught[0].shape[2] // 2].sum(0)
    for position in range(line.shape[0] // 4, 3 * line.shape[0] // 4):
        (grad,) = torch.autograd.grad(line[position], images, retain_graph=True)
        columns = grad.abs().sum((0, 1, 2)).nonzero().flatten()
        widest = max(widest, int(columns[-1] - columns[0]) + 1)
    return widest


class Resizing(nn.Module):
    def __init__(self, resize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.down, self.last, self.head = nn.Conv2d(3, 4, 3, (1, 4), 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.resize(self.down(x))))


def flat(specs: list[Spec]) -> nn.Sequential:
    """The chain along the width alone: images of 8 rows keep them."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 1)]
    for what, kernel, stride, dilation in specs:
        pad = (0, dilation * (kernel - 1) // 2)
        if what == "conv":
            layers.append(nn.Conv2d(4, 4, (1, kernel), (1, stride), pad, (1, dilation)))
        elif what == "up":
            layers.append(nn.ConvTranspose2d(4, 4, (1, kernel), (1, stride)))
        else:
            layers.append(nn.AvgPool2d((1, kernel), (1, stride)))
    return nn.Sequential(*layers, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize(
    "specs",
    [
        [("conv", 3, 1, 1), ("conv", 5, 2, 1), ("conv", 3, 1, 2)],
        [("conv", 3, 2, 1), ("avg", 2, 2, 1), ("conv", 3, 1, 1)],
        [("conv", 3, 2, 1), ("up", 2, 2, 1)],
        [("conv", 3, 2, 1), ("up", 4, 2, 1)],
        [("conv", 3, 2, 1), ("up", 3, 2, 1)],
        [("conv", 3, 2, 1), ("conv", 3, 2, 1), ("up", 2, 2, 1), ("conv", 3, 1, 1)],
    ],
    ids=str,
)
def test_receptive_fields_are_those_that_gradients_show(specs: list[Spec]) -> None:
    model = flat(specs)
    last = str(len(specs) + 1)
    assert operators_field(model, last) == measured(model, last)


@pytest.mark.parametrize(
    "resize",
    [
        partial(F.interpolate, scale_factor=(1, 2), mode="nearest"),
        partial(F.interpolate, scale_factor=(1, 2), mode="bilinear"),
        partial(F.interpolate, scale_factor=(1, 0.5), mode="bilinear"),
        partial(F.interpolate, scale_factor=(1, 0.25), mode="nearest"),
        partial(F.interpolate, scale_factor=(1, 1), mode="bilinear"),
        partial(F.adaptive_avg_pool2d, output_size=(None, 8)),
        partial(F.adaptive_avg_pool2d, output_size=(None, 16)),
        lambda x: x - x.mean(1, keepdim=True) / 8,
    ],
    ids=["nearest up", "bilinear up", "bilinear down", "nearest down", "same", "adaptive 4", "adaptive 2", "channel mean"],
)
def test_receptive_fields_of_resizes_are_those_that_gradients_show(resize: Callable[[Tensor], Tensor]) -> None:
    model = Resizing(resize)
    assert operators_field(model, "last") == measured(model, "last")


def operators_field(model: nn.Module, name: str) -> float:
    """The field of a module's output, whether or not it is a candidate (images of 8 x 128 with strides along the width only give none)."""
    from imachsr.core.tracing import run

    return next(call.outputs[0].step.field for call in run(model, torch.ones(2, 3, 8, 128)).calls if call.name == name)


def test_after_global_pooling_nothing_is_left_to_see() -> None:
    class Context(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.join, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            context = F.interpolate(F.adaptive_avg_pool2d(x, 1), size=x.shape[-2:])
            return self.head(self.join(torch.cat([x, context], 1)))

    assert fields(Context(), 32, 32) == {"stem": 3.0, "join": 3.0 + 31 + 2}


def test_fields_end_where_a_corner_sees_the_opposite_one() -> None:
    model = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 7, padding=3) for i in range(12)), nn.Conv2d(4, 3, 1))
    assert list(fields(model, 16, 24).values()) == [min(2.0 * 24 - 1, 1 + 6 * n) for n in range(1, 13)]


def test_a_position_that_attends_sees_everything() -> None:
    found = fields(Attending("sdpa"), 32, 64)
    assert found["stem"] == 8
    assert found["last"] == 2 * 64 - 1


def test_the_gate_of_squeeze_and_excitation_is_no_sight() -> None:
    assert fields(Residual("gate"), 32, 32)["mix"] == fields(Residual("plain"), 32, 32)["mix"] == 5


# ---- attention ------------------------------------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """Tokens that attend to each other, in one of the ways in which people write it; a convolution before and after."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem, self.last, self.head = how, nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Conv2d(8, 3, 1)
        if how.startswith("mha"):
            self.attention: nn.Module = nn.MultiheadAttention(8, 2, dropout=0.0 if how == "mha" else 0.1, batch_first=True)
        else:
            self.attention = ByHand(how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        if self.how.startswith("mha"):
            tokens, _ = self.attention(tokens, tokens, tokens, need_weights=self.how == "mha with weights")
        else:
            tokens = self.attention(tokens)
        return F.interpolate(self.head(self.last(tokens.transpose(1, 2).unflatten(2, x.shape[-2:]))), scale_factor=8)


class ByHand(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv = how, nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)
        scores = q @ k.transpose(1, 2) / 8**0.5
        if self.how == "matmul":
            return F.dropout(scores.softmax(-1), 0.1) @ v
        if self.how == "heads":
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
            return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        if self.how == "turned":  # as in DANet: values times transposed weights
            return torch.bmm(v.transpose(1, 2), scores.softmax(-1).transpose(1, 2)).transpose(1, 2)
        if self.how == "einsum":
            return torch.einsum("bij,bjd->bid", scores.softmax(-1), v)
        if self.how == "sigmoid":
            return scores.sigmoid() @ v
        return scores @ v  # neither softmax


def sites(model: nn.Module, kind: str, height: int = 32, width: int = 64) -> list[Site]:
    return [site for site in trace(model, nets.images(1, height, width)).sites if site.kind == kind]


@pytest.mark.parametrize("how", ["mha", "mha with weights", "mha with dropout", "sdpa", "matmul", "heads", "turned", "einsum"])
def test_attention_is_found_however_it_is_written(how: str) -> None:
    (site,) = sites(Attending(how), "attention")
    assert site.module == "attention"
    assert (site.before, site.after) == ("stem", "attention[0]" if how.startswith("mha") else "attention")
    assert ("scaled_dot_product" in site.detail) == (how in ("mha", "sdpa"))


@pytest.mark.parametrize("how", ["sigmoid", "linear"])
def test_a_product_without_softmax_is_no_attention(how: str) -> None:
    assert not sites(Attending(how), "attention")


@pytest.mark.parametrize("model", [nets.Encoder(), nets.Wrapped("softmax")])
def test_a_convolutional_net_has_no_attention(model: nn.Module) -> None:
    assert not sites(model, "attention", 32, 32)


class WindowAttention(nn.Module):
    """Attention within windows that are folded into the batch, inside a block that unfolds them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(8), ByHand("sdpa")

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x = x, self.norm(x)
        b, c, h, w = x.shape
        windows = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = self.inner(windows).reshape(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return x + shortcut


def test_of_attention_in_windows_the_next_module_around_it_is_taken() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), WindowAttention(), nn.ReLU(), nn.Conv2d(8, 3, 1))
    (site,) = sites(model, "attention", 32, 32)
    # What comes before is before the whole block: its norm lies inside.
    assert (site.module, site.before, site.after) == ("1.inner", "0", "1")


def test_attention_in_the_models_own_forward_has_a_before_only() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            t = x.flatten(2).transpose(1, 2).unsqueeze(1)
            t = F.scaled_dot_product_attention(t, t, t).squeeze(1)
            return F.interpolate(self.head(t.transpose(1, 2).unflatten(2, x.shape[-2:])), scale_factor=8)

    (site,) = sites(Bare(), "attention")
    assert (site.module, site.before, site.after) == ("", "stem", None)


# ---- fusion ---------------------------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual block in one of its forms; none of them fuses."""

    def __init__(self, how: str) -> None:
        super().__init__()
        stride = 2 if "strided" in how or how == "pooled shortcut" else 1
        self.how, self.stem = how, nn.Conv2d(3, 8, 3, padding=1)
        self.conv, self.mix = nn.Conv2d(8, 8, 3, stride, 1), nn.ReLU()
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(8, 8, 1)) if how == "pooled shortcut" else nn.Conv2d(8, 8, 1, stride)
        self.squeeze, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = self.stem(x)
        y = self.conv(x)
        if "gate" in self.how:
            y = y * self.squeeze(F.adaptive_avg_pool2d(y, 1)).sigmoid()
        if "mean" in self.how:
            y = y * y.mean((2, 3), keepdim=True).sigmoid()
        skip = self.shortcut(x) if y.shape[-1] != x.shape[-1] else x
        y = y.add_(skip) if self.how == "in place" else y + skip
        return F.interpolate(self.head(self.mix(y)), size=size)


@pytest.mark.parametrize("how", ["plain", "in place", "strided", "pooled shortcut", "gate", "strided gate", "mean gate"])
def test_a_residual_sum_is_no_fusion(how: str) -> None:
    assert not sites(Residual(how), "fusion", 32, 32)


@pytest.mark.parametrize("encoder", ["resnet18", "se_resnet50", "mobilenet_v2", "efficientnet-b0"])
def test_the_blocks_of_known_encoders_fuse_nothing(encoder: str) -> None:
    model = smp.FPN(encoder, encoder_weights=None, classes=3)
    assert not [site for site in sites(model, "fusion", 64, 64) if site.module.startswith("encoder")]


class Pyramid(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.fine, self.coarse = how, nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.lateral, self.smooth = nn.Conv2d(8, 8, 1), nn.Conv2d(16 if how == "cat" else 8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        up, side = F.interpolate(self.coarse(fine), scale_factor=2), self.lateral(fine)
        if self.how == "cat":
            x = torch.cat([up, side], 1)
        elif self.how == "add":
            x = up + side
        elif self.how == "in place":
            x = up.add_(side)
        else:
            x = self.lateral(fine) + side
        return F.interpolate(self.head(self.smooth(x)), scale_factor=2)


@pytest.mark.parametrize(("how", "detail"), [("cat", "cat"), ("add", "add"), ("in place", "add")])
def test_features_of_two_resolutions_fuse_in_a_concatenation_or_a_sum(how: str, detail: str) -> None:
    (site,) = sites(Pyramid(how), "fusion", 32, 32)
    assert (site.detail, site.module, site.before, site.after) == (detail, "", "lateral", "smooth")


def test_a_sum_of_one_resolution_is_no_fusion() -> None:
    assert not sites(Pyramid("lateral"), "fusion", 32, 32)


def test_known_decoders_fuse_where_their_papers_say() -> None:
    unet = sites(smp.Unet("resnet18", encoder_weights=None, classes=3), "fusion", 64, 64)
    assert [(site.detail, site.module) for site in unet] == [("cat", f"decoder.blocks.{index}") for index in range(4)]
    fpn = sites(smp.FPN("resnet18", encoder_weights=None, classes=3), "fusion", 64, 64)
    assert [(site.detail, site.module) for site in fpn][:3] == [("add", f"decoder.p{level}") for level in (4, 3, 2)]


def test_tokens_behind_a_class_token_are_no_fusion() -> None:
    assert not sites(nets.Vit(prefix=1), "fusion", 32, 32)


def test_the_fields_of_what_does_not_come_from_the_images_are_zero() -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid, self.mix = nn.Parameter(torch.randn(1, 4, 32, 32)), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Any:
            return self.mix(self.grid.expand(len(x), -1, -1, x.shape[-1]))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position, self.stem, self.head = Position(), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) + self.position(x))

    assert fields(Model()) == {"position": 0.0, "stem": 3.0}
