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
import torch
from torch import nn

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


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0"])
def test_weights_that_cannot_be_downloaded_are_told_with_the_way_out(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hub's own switch for a machine without a network: it fails at once instead of trying for half a minute.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="`encoder_weights='imagenet'` must be downloadable, but: .*; use null to train from scratch"):
        SmpModel(encoder=encoder, encoder_weights="imagenet").build(3)


def test_weights_of_another_name_are_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Wrong pretrained weights `imagnet` .* Available options are: .*imagenet"):
        SmpModel(encoder_weights="imagnet").build(3)


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


def test_naming_a_model_imports_no_model_zoo() -> None:
    code = """
        import sys
        from imachsr.models import SmpModel, TorchvisionModel
        SmpModel(), TorchvisionModel(name="fcn_resnet50")
        assert not {"segmentation_models_pytorch", "torchvision", "timm"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
