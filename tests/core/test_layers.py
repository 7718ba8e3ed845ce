from collections import Counter
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr import IMacHSR, trace
from imachsr.core.layers import Trace
from imachsr.core.layout import to_nchw
from imachsr.core.tracing import named_tensors
from tests.core import nets

ARCHITECTURES = [
    ("Unet", "resnet18"),
    ("FPN", "resnet18"),
    ("DeepLabV3Plus", "resnet18"),
    ("PSPNet", "mobilenet_v2"),
    ("Segformer", "mit_b0"),
    ("Linknet", "mobilenet_v2"),
]


def addresses(model: nn.Module, height: int = 32, width: int = 32) -> list[str]:
    return [layer.address for layer in trace(model, nets.images(1, height, width)).layers]


def caught(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every tensor of every call by address, read without the tracer, and the output."""
    found: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            counts[name] += 1
            nth = f"#{counts[name]}" if counts[name] > 1 else ""
            for key, tensor in named_tensors(output):
                found[name + nth + (f"[{key}]" if key is not None else "")] = tensor

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]
    output = model.train()(images)
    for handle in handles:
        handle.remove()
    return found, output


def test_a_norm_is_rewritten_by_the_in_place_activation_behind_it_which_stands_for_both() -> None:
    assert addresses(nets.Norm(inplace=True)) == ["conv", "act"]
    assert addresses(nets.Norm(inplace=False)) == ["conv", "norm", "act"]


def test_an_output_that_is_rewritten_later_is_no_candidate() -> None:
    assert addresses(nets.Norm(inplace=False, rewrites=True)) == ["conv", "act"]


def test_an_output_that_is_rewritten_through_a_view_after_it_was_given_up_is_no_candidate() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.next, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.body(x).flatten(2)
            rows.relu_()
            return self.head(self.next(rows.unflatten(2, x.shape[2:])))

    assert addresses(Model()) == ["next"]


def test_each_call_of_a_reused_module_has_its_own_address() -> None:
    assert addresses(nets.Reused()) == ["first", "act", "second", "act#2", "third", "act#3"]


@pytest.mark.parametrize(("kind", "small", "big"), [("tuple", "0", "1"), ("list", "0", "1"), ("dict", "small", "big"), ("dataclass", "small", "big")])
def test_every_feature_map_of_a_structured_output_is_a_layer(kind: str, small: str, big: str) -> None:
    layers = trace(nets.Structured(kind), nets.images()).layers
    assert [layer.address for layer in layers] == ["stem", f"fork[{small}]", f"fork[{big}]"]
    assert [(layer.key, layer.channels, layer.height) for layer in layers[1:]] == [(small, 8, 16), (big, 8, 32)]
    assert layers[1].order == layers[2].order


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "dataclass"])
def test_taps_read_inside_a_structured_output(kind: str) -> None:
    torch.manual_seed(0)
    net = IMacHSR(
        nets.Structured(kind),
        example=nets.images(),
        num_classes=3,
        standard=lambda found: [layer.address for layer in found.layers[1:]],
        loss="brier",
    )
    losses = net(nets.images(), nets.labels())
    tensors, _ = caught(net.backbone, nets.images())
    assert len(losses.side) == 2
    for address in losses.side:
        spread = tensors[address].detach().std(unbiased=False)
        torch.testing.assert_close(losses.scale[address], spread)


def test_of_modules_that_give_one_tensor_the_outermost_stands() -> None:
    body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3))), nn.Identity())
    assert addresses(nn.Sequential(body, nn.Conv2d(8, 3, 1))) == ["0.0.0", "0"]


def test_an_encoder_that_returns_its_stages_adds_no_candidate() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            one = self.one(x)
            return [x, one, self.two(one)]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Encoder(), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            _, one, two = self.encoder(x)
            return self.head(one + nn.functional.interpolate(two, scale_factor=2))

    assert addresses(Model()) == ["encoder.one", "encoder.two"]


def test_two_tensors_of_one_operation_are_two_layers() -> None:
    class Chunk(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.chunk(2, 1)

    class Take(nn.Module):
        def forward(self, pair: tuple[Tensor, ...]) -> Tensor:
            return pair[1]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.chunk, self.take, self.head = nn.Conv2d(3, 8, 1), Chunk(), Take(), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            pair = self.chunk(self.body(x))
            return self.head(self.take(pair) * pair[0])

    assert addresses(Model()) == ["body", "chunk[0]", "take"]  # what is taken is chunk[1]


@pytest.mark.parametrize("channels", [3, 8, 24])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (24, 32)])
def test_channels_last_layers_are_told_by_their_axes_at_any_size(channels: int, height: int, width: int) -> None:
    # 32x32 with 8 channels: [B, 8, 8, 8] is told from [B, C, h, w] by no shape of one size.
    layers = {layer.address: layer for layer in trace(nets.ChannelsLast(channels), nets.images(2, height, width)).layers}
    assert {name: layer.layout for name, layer in layers.items()} == {"patch": "NCHW", "norm": "NHWC", "mlp": "NHWC"}
    assert {(layer.channels, layer.height, layer.width) for layer in layers.values()} == {(channels, height // 4, width // 4)}


def test_half_as_many_channels_as_rows_are_no_rows() -> None:
    # MobileNetV2 gives [B, 32, 64, 128] at 512x1024; here all is 8 times smaller.
    (layer,) = trace(nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 3, 1)), nets.images(1, 64, 128)).layers
    assert (layer.layout, layer.channels, layer.height, layer.width) == ("NCHW", 4, 8, 16)


def test_a_model_of_one_input_size_is_traced_at_that_size() -> None:
    layers = trace(nets.OneSize(), nets.images(1, 32, 64)).layers
    assert [(layer.address, layer.layout, layer.channels, layer.height, layer.width) for layer in layers] == [
        ("body", "NCHW", 8, 16, 32),
        ("act", "NCHW", 8, 16, 32),
    ]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (48, 64)])
def test_tokens_form_the_grid_of_the_image_behind_their_prefix(prefix: int, height: int, width: int) -> None:
    layers = trace(nets.Vit(prefix=prefix, blocks=2), nets.images(1, height, width)).layers
    tokens = [layer for layer in layers if layer.layout == "BNC"]
    # The attention map [B, heads, N, N] is no image, the last linear layer gives the output.
    assert [layer.address for layer in tokens] == [
        f"blocks.{block}{part}" for block in (0, 1) for part in (".norm", ".attention.qkv", ".attention", "")
    ]
    assert {layer.address for layer in layers if layer.layout != "BNC"} == {"patch"}
    assert {(layer.channels, layer.height, layer.width) for layer in tokens} == {(c, height // 8, width // 8) for c in (8, 24)}


def test_tokens_in_front_of_the_batch_are_told_apart() -> None:
    layers = trace(nets.Vit(batch_first=False), nets.images(1, 32, 64)).layers
    assert {layer.address: layer.layout for layer in layers}["outer.0"] == "NBC"


def test_windows_folded_into_the_batch_are_no_candidate() -> None:
    assert addresses(nets.Windowed()) == ["stem"]


class _Attention(nn.Module):
    """Gives its weights too, ``[B, heads, N, N]``."""

    def __init__(self, dropout: float, axis: int) -> None:
        super().__init__()
        self.qkv, self.softmax, self.dropout = nn.Linear(8, 24), nn.Softmax(dim=axis), nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = self.dropout(self.softmax(query @ key.transpose(-1, -2)))
        return (weights @ value).transpose(1, 2).flatten(2), weights


class _OneSizeTransformer(nn.Module):
    """Takes images of 64x64 only, whose 64 tokens give an attention of as many rows and columns as the image has."""

    def __init__(self, dropout: float, axis: int) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 8, 8, stride=8), nn.Parameter(torch.zeros(64, 8))
        self.attention, self.head = _Attention(dropout, axis), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        features, _ = self.attention(self.patch(x).flatten(2).transpose(1, 2) + self.position)
        scores: Tensor = self.head(features.transpose(1, 2).unflatten(2, (8, 8)))
        return F.interpolate(scores, scale_factor=8.0)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("axis", [-1, 3, -2])
def test_the_weights_of_an_attention_are_no_feature_map(dropout: float, axis: int) -> None:
    assert addresses(_OneSizeTransformer(dropout, axis), 64, 64) == ["patch", "attention.qkv", "attention[0]"]


@pytest.mark.parametrize("axis", [1, -3])
def test_a_softmax_along_the_channels_gives_a_feature_map(axis: int) -> None:
    assert addresses(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(dim=axis), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1))) == ["0", "1", "2"]


def test_a_branch_without_a_gradient_path_to_the_output_is_no_candidate() -> None:
    assert addresses(nets.DeadBranch()) == ["alive"]


@pytest.mark.parametrize("how", ["plain", "up", "interpolate", "softmax", "shuffle", "crop", "dict", "namespace"])
def test_neither_the_output_nor_its_resize_nor_dropout_is_a_candidate(how: str) -> None:
    # `inner` gives what its dropout gives, a tensor of its own.
    assert addresses(nets.Wrapped(how)) == ["body", "inner"]


def test_frozen_layers_are_no_candidates() -> None:
    model = nets.Encoder()
    model.stem.requires_grad_(False)
    model.stage1.requires_grad_(False)
    found = addresses(model)
    assert found
    assert not [name for name in found if name.startswith(("stem", "stage1"))]


def test_same_model_and_shape_give_the_same_layers_whatever_the_random_state() -> None:
    model = nets.LayerDrop()
    found: set[tuple[Any, ...]] = set()
    for seed in range(6):
        torch.manual_seed(seed)
        found.add(trace(model, nets.images(2, seed=seed)).layers)
    assert len(found) == 1


@pytest.mark.parametrize("mode", ["no_grad", "eval", "train"])
def test_candidates_do_not_depend_on_the_mode_in_which_the_model_is_found(mode: str) -> None:
    model = nets.Norm(inplace=False).train(mode == "train")
    with torch.set_grad_enabled(mode != "no_grad"):
        assert addresses(model) == ["conv", "norm", "act"]


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 3), (0, 3, 32, 32), (0, 3, 8, 8, 8), (1, 3, 2, 8, 8, 8)])
def test_an_example_of_another_rank_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`example` must be images \[B, C, H, W\] or volumes \[B, C, D, H, W\], but got a tensor of shape"):
        trace(nets.Encoder(), torch.zeros(shape))


def test_a_model_without_a_layer_to_supervise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the model must have a layer to supervise, but none of its 1 module calls .*: Sequential at 32x32"):
        trace(nn.Sequential(nn.Conv2d(3, 3, 1)), nets.images())


def test_a_model_that_gives_no_scores_is_refused() -> None:
    with pytest.raises(TypeError, match=r"the model's output must be .*but got SimpleNamespace"):
        trace(nets.Wrapped("number"), nets.images())


@pytest.fixture(scope="module", params=ARCHITECTURES, ids="-".join)
def traced(request: pytest.FixtureRequest) -> tuple[nn.Module, Trace]:
    architecture, encoder = request.param
    torch.manual_seed(0)
    model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=3)
    return model, trace(model, nets.images(1, 64, 64))


def test_what_a_candidate_tells_is_true_of_its_tensor(traced: tuple[nn.Module, Trace]) -> None:
    model, found = traced
    tensors, _ = caught(model, nets.images(2, 64, 64))
    assert len(found.layers) >= 10
    modules = dict(model.named_modules())
    for layer in found.layers:
        image = to_nchw(tensors[layer.address], layer.layout, (64, 64))
        assert tuple(image.shape) == (2, layer.channels, layer.height, layer.width), layer.address
        assert layer.stride == 64 / layer.width
        assert layer.cls == type(modules[layer.module]).__name__
        assert layer.params == sum(p.numel() for p in modules[layer.module].parameters())
        assert tensors[layer.address].requires_grad
    assert [layer.order for layer in found.layers] == sorted({layer.order for layer in found.layers})


def test_no_two_candidates_are_one_tensor(traced: tuple[nn.Module, Trace]) -> None:
    model, found = traced
    tensors, _ = caught(model, nets.images(2, 64, 64))
    assert len({(tensors[layer.address].data_ptr(), tensors[layer.address].shape) for layer in found.layers}) == len(found.layers)


def test_every_candidate_reaches_the_output(traced: tuple[nn.Module, Trace]) -> None:
    model, found = traced
    tensors, output = caught(model, nets.images(2, 64, 64))
    grads = torch.autograd.grad(output.square().sum(), [tensors[layer.address] for layer in found.layers], allow_unused=True)
    assert [layer.address for layer, grad in zip(found.layers, grads, strict=True) if grad is None] == []


@pytest.mark.parametrize("loss", ["infonce", "prototype", "dice"])
def test_a_train_step_is_finite_and_reaches_every_adapter(traced: tuple[nn.Module, Trace], loss: str) -> None:
    net = IMacHSR(traced[0], example=nets.images(1, 64, 64), num_classes=3, loss=loss)
    losses = net(nets.images(2, 64, 64), nets.labels(2, 64, 64))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert len(losses.side) == len(losses.entropy) == len(net.taps) >= 3
    for adapter in net.adapters:
        assert float(adapter.weight.grad.abs().sum()) > 0


class Volumes(nn.Module):
    """A classifier of voxels, with a stage that is coarser along the depth than in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 3, stride=(4, 2, 2), padding=1)
        self.head = nn.Conv3d(6, nets.NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        return nn.functional.interpolate(self.head(self.down(self.stem(x))), size=size, mode="trilinear")


def test_the_slices_of_a_volume_lie_below_each_other() -> None:
    found = trace(Volumes(), torch.randn(1, 1, 8, 16, 32))
    assert found.input_size == (8, 16, 32)
    assert [(layer.address, layer.layout, layer.channels, layer.height, layer.width, layer.stride) for layer in found.layers] == [
        ("stem", "NCDHW", 4, 8 * 16, 32, 1.0),
        ("down", "NCDHW", 6, 2 * 8, 16, 2.0),
    ]


def test_a_classifier_has_candidates_up_to_its_pooling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    assert addresses(model) == ["0", "1", "2"]


def test_the_block_of_an_output_is_that_of_the_innermost_module_that_is_one() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(nets.Block(3, 8, 1), nets.Block(8, 8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    layers = trace(nn.Sequential(Body(), nn.Conv2d(8, 3, 1)), nets.images()).layers
    assert [(layer.address, layer.container, layer.block_cls) for layer in layers if layer.container] == [
        ("0.blocks.0", "0.blocks", "Block"),
        ("0", "0.blocks", "Block"),  # the body's output is its last block's: the outermost names it, the block says what it is
    ]
