"""Where backbones come from: smp, torchvision and import paths."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import encoders
from torch import nn
from torchvision.models import resnet18

from imachsr.config.load import make_run
from imachsr.config.schema import ConfigError
from imachsr.core.output import logits_of
from imachsr.core.selection import DepthStandard
from imachsr.core.wrapper import IMacHSR
from imachsr.models import ImportedModel, ModelSpec, SmpModel, TorchvisionModel

MODULE = """
from torch import nn

def make(num_classes, width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

def make_nothing(num_classes):
    return "no module"

def make_broken(num_classes):
    return {}["backbone"]

def make_fixed():
    return nn.Identity()
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside_models.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "smp": [{}, {"architecture": "Unet"}, {"architecture": "fpn", "encoder": "mobilenet_v2"}, {"encoder": "tu-mobilenetv3_small_100"}],
    "torchvision": [{"name": "lraspp_mobilenet_v3_large"}, {"name": "deeplabv3_mobilenet_v3_large", "aux_loss": True}],
    "import": [{"path": "outside_models:make"}, {"path": "outside_models:make", "kwargs": {"width": 4}}],
}
MEMBERS = {next(f.default for f in fields(member) if f.name == "kind"): member for member in get_args(ModelSpec)}


def test_every_kind_of_model_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(MEMBERS)


@pytest.mark.parametrize(("kind", "settings"), [(kind, settings) for kind, each in EXAMPLES.items() for settings in each])
def test_every_kind_gives_k_scores_a_pixel_and_takes_taps(kind: str, settings: dict[str, Any], package: Path) -> None:
    torch.manual_seed(0)
    model = MEMBERS[kind](**settings).build(5)
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    net = IMacHSR(model, example=images, num_classes=5, standard=DepthStandard(max_taps=2))
    assert logits_of(net(images)).shape[:2] == (2, 5)
    losses = net(images, labels)
    losses.total.backward()
    assert len(losses.side) == len(net.taps) >= 1
    assert any(p.grad is not None and bool(p.grad.any()) for p in net.backbone.parameters())


@pytest.mark.parametrize(("kind", "settings"), [(kind, each[-1]) for kind, each in EXAMPLES.items()])
def test_weights_come_from_the_global_seed(kind: str, settings: dict[str, Any], package: Path) -> None:
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(torch.cat([p.flatten() for p in MEMBERS[kind](**settings).build(3).parameters()]))
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_an_auxiliary_head_is_built_on_demand_only() -> None:
    for aux_loss in (False, True):
        model = TorchvisionModel(name="deeplabv3_mobilenet_v3_large", aux_loss=aux_loss).build(3).eval()
        assert ("aux" in model(torch.randn(1, 3, 64, 64))) == aux_loss


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SmpModel(architecture="unt"), "`architecture` must be a known name, but got 'unt'; nearest: 'unet'"),
        (SmpModel(architecture="deeplab"), "got 'deeplab'; nearest: 'deeplabv3', 'deeplabv3plus'"),
        (SmpModel(encoder="resnet81"), "`encoder` must be a known name, but got 'resnet81'; nearest: 'resnet18'"),
        (SmpModel(encoder="tu-mobilenetv3_smal_100"), "got 'tu-mobilenetv3_smal_100'; nearest: 'tu-mobilenetv3_small_100'"),
        (TorchvisionModel(name="fcn_resnet5"), "`name` must be a known name, but got 'fcn_resnet5'; nearest: 'fcn_resnet50'"),
        (TorchvisionModel(name="resnet18"), "`name` must be a known name, but got 'resnet18'; nearest: 'fcn_resnet101'"),
    ],
)
def test_an_unknown_name_tells_the_nearest(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec.build(3)


@pytest.mark.parametrize(
    ("architecture", "encoder"), [("unetplusplus", "mit_b0"), ("linknet", "mit_b0"), ("dpt", "resnet18"), ("unet", "tu-vit_tiny_patch16_224")]
)
def test_an_encoder_that_does_not_fit_is_told_with_both_names(architecture: str, encoder: str) -> None:
    with pytest.raises(ValueError, match=f"architecture '{architecture}' with encoder '{encoder}' must build, but: "):
        SmpModel(architecture=architecture, encoder=encoder).build(3)


def test_an_auxiliary_loss_without_its_head_is_refused() -> None:
    with pytest.raises(ValueError, match="`aux_loss` must be false for 'lraspp_mobilenet_v3_large', which has no auxiliary head, but got true"):
        TorchvisionModel(name="lraspp_mobilenet_v3_large", aux_loss=True).build(3)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads on a machine without a network."""
    # The hub's own switch: it fails at once instead of trying for half a minute.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("encoder", "source"),
    [
        ("resnet18", r"model.safetensors of smp-hub/resnet18.imagenet \(revision 3f2325f\)"),
        ("mit_b0", r"model.safetensors of smp-hub/mit_b0.imagenet \(revision 9ce53d1\)"),
        ("tu-resnet18", "model.safetensors of timm/resnet18.a1_in1k"),
    ],
)
def test_weights_that_cannot_be_downloaded_are_told_with_their_file_and_the_ways_out(encoder: str, source: str, hub: Path) -> None:
    told = (
        f"`encoder_weights='imagenet'` must be downloadable, but {source} was not to be had: .*; copy that file .* or use null to train from scratch"
    )
    with pytest.raises(ValueError, match=told):
        SmpModel(encoder=encoder, encoder_weights="imagenet").build(3)


def test_an_encoder_that_cannot_be_downloaded_is_told(hub: Path) -> None:
    with pytest.raises(ValueError, match="`encoder='tu-hf-hub:nobody/nothing'` must be downloadable, but: "):
        SmpModel(encoder="tu-hf-hub:nobody/nothing").build(3)


def test_named_weights_are_those_of_the_cache_and_not_downloaded_again(hub: Path) -> None:
    settings = encoders["resnet18"]["pretrained_settings"]["imagenet"]
    kept = hub / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    there = resnet18().state_dict()
    save_file(there, kept / "model.safetensors")
    scratch, built = seeded(SmpModel()), seeded(SmpModel(encoder_weights="imagenet"))
    assert torch.equal(built["encoder.conv1.weight"], there["conv1.weight"])
    assert not torch.equal(scratch["encoder.conv1.weight"], there["conv1.weight"])
    assert all(torch.equal(built[key], scratch[key]) for key in scratch if not key.startswith("encoder."))


def seeded(spec: SmpModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    state: dict[str, torch.Tensor] = spec.build(3).state_dict()
    return state


def other(encoder: str) -> nn.Module:
    """A model with this encoder, other weights than those of :func:`seeded`, and statistics of batches."""
    torch.manual_seed(8)
    model: nn.Module = SmpModel(encoder=encoder).build(5)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.copy_(torch.rand(buffer.shape) if buffer.is_floating_point() else torch.tensor(3))
    return model


@pytest.mark.parametrize(
    ("file", "of", "wrap", "architecture"),
    [
        ("encoder.pth", "encoder", None, "unet"),
        ("encoder.safetensors", "encoder", None, "deeplabv3plus"),
        ("whole.pt", "", None, "fpn"),
        ("saved.bin", "", "state_dict", "deeplabv3plus"),
        ("saved.pth", "encoder", "model", "fpn"),
    ],
)
def test_weights_of_a_file_are_the_encoders_and_all_else_is_the_seeds(
    file: str, of: str, wrap: str | None, architecture: str, tmp_path: Path
) -> None:
    model = other("resnet18")
    state, path = model.get_submodule(of).state_dict(), tmp_path / file
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    scratch = seeded(SmpModel(architecture=architecture))
    built = seeded(SmpModel(architecture=architecture, encoder_weights=str(path)))
    expected = {f"encoder.{key}": one for key, one in model.get_submodule("encoder").state_dict().items()}
    assert expected.keys() < built.keys() == scratch.keys()
    assert all(torch.equal(built[key], expected.get(key, scratch[key])) for key in built)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_a_file_of_a_whole_network_of_timm_fits_its_encoder(name: str, tmp_path: Path) -> None:
    """convnext_atto's stages have other names in the encoder; both have a head that is left out."""
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    spec = SmpModel(architecture="fpn", encoder=f"tu-{name}", encoder_weights=str(tmp_path / "whole.pth"))
    encoder = spec.build(3).get_submodule("encoder").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = whole.forward_intermediates(images, intermediates_only=True)[-1], encoder(images)[-1]
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_file_of_before_batches_were_counted_loads(tmp_path: Path) -> None:
    state = {key: one for key, one in resnet18().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    built = seeded(SmpModel(encoder_weights=str(tmp_path / "old.pth")))
    assert torch.equal(built["encoder.layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def write_wrong(kind: str, path: Path) -> None:
    state = other("resnet18").get_submodule("encoder").state_dict()
    if kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "text":
        path.write_text("version https://example.org\n")
    elif kind == "truncated.safetensors":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind != "missing":
        things: dict[str, Any] = {
            "module": nn.Conv2d(1, 1, 1),
            "list": [1, 2],
            "empty": {},
            "mixed": {**state, "lr": 0.1},
            "nan": {**state, "conv1.weight": state["conv1.weight"] / 0},
            "lacking": {key: one for key, one in state.items() if not key.startswith("layer4.1.")},
            "more": {**state, "layer5.weight": torch.zeros(1)},
            "shape": {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)},
            "other": SmpModel(encoder="mobilenet_v2").build(3).state_dict(),
        }
        torch.save(things[kind], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"must be a file that exists, but \S+ does not exist"),
        ("truncated", r"must be a whole file of tensors by name, but \S+ \(5000 bytes\) is not: "),
        ("truncated.safetensors", r"must be a whole file of tensors by name, but \S+ \(\d+ bytes\) is not: SafetensorError: "),
        ("text", r"must be a whole file of tensors by name, but \S+ \(28 bytes\) is not: "),
        ("module", r"must be a whole file .* is not: it holds other objects, perhaps a whole module; save model.state_dict\(\)"),
        ("list", r"must be a state dict, tensors by name, but \S+ holds a list"),
        ("empty", r"must be a state dict, tensors by name, but \S+ holds nothing"),
        ("mixed", r"must be a state dict, tensors by name, but \S+ holds 'lr': float"),
        ("nan", r"must be finite, but \S+ holds NaN or infinity in conv1.weight"),
        ("lacking", r"must fit encoder 'resnet18', but \S+ does not: it lacks layer4.1.conv1.weight, layer4.1.bn1.weight, .* and 7 more$"),
        ("more", r"must fit encoder 'resnet18', but \S+ does not: it has also layer5.weight$"),
        ("shape", r"must fit encoder 'resnet18', but \S+ does not: other shapes conv1.weight \[64, 1, 7, 7\] for \[64, 3, 7, 7\]$"),
        ("other", r"must fit encoder 'resnet18', but \S+ does not: it lacks conv1.weight, .*; it has also features.0.0.weight, "),
    ],
)
def test_a_wrong_file_is_told(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / (kind if "." in kind else f"{kind}.pth")
    write_wrong(kind, path)
    with pytest.raises(ValueError, match=f"`encoder_weights` {message}"):
        SmpModel(encoder_weights=str(path)).build(3)


@pytest.mark.parametrize(
    ("encoder", "weights", "message"),
    [
        ("resnet18", "imagnet", "must be one of 'imagenet', 'ssl', 'swsl' or the path of a file .*, but got 'imagnet'; nearest: 'imagenet'"),
        ("mit_b0", "ssl", "must be one of 'imagenet' or the path of a file .*, but got 'ssl'"),
        ("tu-mobilenetv3_small_100", "Imagenet", "must be one of 'imagenet' or .*; nearest: 'imagenet'"),
        ("tu-efficientnet_b6", "imagenet", "must be null, since none are published, or the path of a file"),
    ],
)
def test_weights_of_another_name_are_told_with_the_known_ones(encoder: str, weights: str, message: str, hub: Path) -> None:
    with pytest.raises(ValueError, match=f"`encoder_weights` of encoder '{encoder}' {message}"):
        SmpModel(encoder=encoder, encoder_weights=weights).build(3)


def test_weights_that_an_encoders_name_asks_for_in_vain_are_told_with_the_nearest(hub: Path) -> None:
    with pytest.raises(ValueError, match="`encoder` must be a known name, but got 'tu-vgg19_bn.tv_in2k'; nearest: 'tu-vgg19_bn.tv_in1k'"):
        SmpModel(encoder="tu-vgg19_bn.tv_in2k", encoder_weights="imagenet").build(3)


def test_the_setting_is_found_by_a_shorter_name() -> None:
    with pytest.raises(ConfigError, match="'weights' is no setting of 'smp'; nearest: 'encoder_weights'"):
        make_run({"model": {"kind": "smp", "weights": "imagenet"}})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ImportedModel(path="outside_models:make_nothing"), "'outside_models:make_nothing' must give a torch.nn.Module, but gave str"),
        (ImportedModel(path="outside_models:make_fixed"), r"must take the arguments \(num_classes\), but: .*'num_classes'; its signature is \(\)"),
        (ImportedModel(path="outside_models:make", kwargs={"widht": 3}), "unexpected keyword argument 'widht'"),
        (
            ImportedModel(path="outside_models:make", kwargs={"num_classes": 3}),
            "`num_classes` of 'outside_models:make' must be left to the data set, but got 3",
        ),
        (
            ImportedModel(path="outside_models:make_broken"),
            r"'outside_models:make_broken' must work, but: KeyError: 'backbone' \(outside_models.py:11\)",
        ),
        (ImportedModel(path="outside_models:mak"), "must have 'mak', but has not; nearest: 'make'"),
    ],
)
def test_what_breaks_the_contract_is_told(spec: ImportedModel, message: str, package: Path) -> None:
    with pytest.raises(ValueError, match=message):
        spec.build(3)


def test_arguments_reach_the_factory(package: Path) -> None:
    model = ImportedModel(path="outside_models:make", kwargs={"width": 5}).build(7)
    assert isinstance(model, nn.Sequential)
    assert model[0].weight.shape[0] == 5
    assert model[2].weight.shape[0] == 7


@pytest.mark.long
def test_naming_a_model_imports_no_model_zoo() -> None:
    code = """
        import sys
        from imachsr.models import SmpModel, TorchvisionModel
        SmpModel(), TorchvisionModel(name="fcn_resnet50")
        assert not {"segmentation_models_pytorch", "torchvision", "timm"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
