"""What is taken out of imachsr runs without it, and gives the numbers of the model that was trained."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imachsr.config.build import build_net
from imachsr.config.load import run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.data.transforms import normalize
from imachsr.train import checkpoint
from imachsr.train.evaluate import evaluate
from imachsr.train.export_model import ExportedModel, export_model
from tests.train.toys import Bands, Tiny, toy_run

UNET = {"model": {"kind": "smp", "architecture": "unet", "encoder": "resnet18"}}
HERE = "tests.train.test_export_model"


def train(folder: Path, run: Run, *, step: int = 7, score: float | None = 2.5, ema: bool = False) -> nn.Module:
    """A training of one step with taps, saved; gives the backbone as it was left, in eval mode, and its exponential mean too where asked."""
    data = Bands().load("train")
    net = build_net(run, num_classes=3, size=(32, 32))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(normalize(data.images), data.labels.long()).total.backward()
    optimizer.step()
    state = {**dict.fromkeys(checkpoint.KEYS), "run": json.dumps(run_to_dict(run)), "num_classes": 3, "net": net.state_dict()}
    if ema:
        state["ema"] = {key: value * 0.5 if value.is_floating_point() else value for key, value in net.backbone.state_dict().items()}
    checkpoint.save(folder, state, step=step, score=score)
    return net.backbone.eval()


def bare(model: nn.Module) -> nn.Module:
    """A model of the same kind that imachsr has never seen, with its weights."""
    twin = Tiny(3)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def images(count: int = 4) -> Tensor:
    return normalize(Bands().load("val").images)[:count]


WITHOUT_IMACHSR = """
import sys
sys.modules["imachsr"] = None  # an import of it fails
import numpy, onnxruntime, torch
import segmentation_models_pytorch as smp
torch.set_num_threads(1)
images = numpy.load("images.npy")
model = smp.Unet("resnet18", encoder_weights=None, classes=3)
model.load_state_dict(torch.load("model.pt", weights_only=True))
gives = {"state-dict": model.eval()(torch.from_numpy(images)).detach().numpy()}
gives["exported"] = torch.export.load("model.pt2").module()(torch.from_numpy(images)).detach().numpy()
gives["onnx"] = onnxruntime.InferenceSession("model.onnx").run(["logits"], {"images": images})[0]
numpy.savez("gives.npz", **gives)
assert not [name for name in sys.modules if name.startswith("imachsr.")]
"""
KINDS: dict[Any, str] = {"state-dict": ".pt", "exported": ".pt2", "onnx": ".onnx"}


def miou(logits: Tensor) -> float:
    """Of the toy's val split, percent, written out."""
    labels, predicted = Bands().load("val").labels.numpy(), logits.argmax(1).numpy()
    pairs = [((predicted == k) & (labels == k), (predicted == k) | (labels == k)) for k in range(3)]
    return float(np.mean([100 * both.sum() / either.sum() for both, either in pairs]))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("unet")
    return folder, train(folder, toy_run(**UNET))


@pytest.mark.long
def test_a_process_without_imachsr_gets_the_trained_models_numbers(
    unet: tuple[Path, nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, model = unet
    for kind, suffix in KINDS.items():
        found = export_model(folder, tmp_path / f"model{suffix}", format=kind, is_dynamic_batch=kind != "state-dict")
        assert (found.num_classes, found.input_size, found.step, found.score) == (3, (32, 32), 7, 2.5)
        assert found.size_bytes == (tmp_path / f"model{suffix}").stat().st_size
    assert capfd.readouterr() == ("", "")  # what the libraries have to say is not for the user
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.pt", "model.pt2"]
    np.save(tmp_path / "images.npy", images().numpy())
    done = subprocess.run([sys.executable, "-c", WITHOUT_IMACHSR], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    gives = {kind: torch.from_numpy(array) for kind, array in np.load(tmp_path / "gives.npz").items()}
    assert gives.keys() == KINDS.keys()
    with torch.no_grad():
        wanted = model(images())
    for scores in gives.values():
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)
        assert miou(scores) == pytest.approx(evaluate(folder)["val/miou"], abs=1e-6)


def test_the_state_dict_has_the_models_own_keys(tmp_path: Path) -> None:
    model = train(tmp_path, toy_run())
    assert any(module._forward_hooks for module in model.modules())  # the taps, which nothing of may be left
    export_model(tmp_path, tmp_path / "model.pt")
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(weights) == list(Tiny(3).state_dict())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_the_program_is_that_of_a_model_without_taps(tmp_path: Path) -> None:
    model = train(tmp_path, toy_run())
    found = export_model(tmp_path, tmp_path / "model.pt2", format="exported")
    ours, theirs = torch.export.load(tmp_path / "model.pt2"), torch.export.export(bare(model), (images(1),))
    assert [(node.op, str(node.target)) for node in ours.graph.nodes] == [(node.op, str(node.target)) for node in theirs.graph.nodes]
    assert torch.equal(ours.module()(images(1)), bare(model)(images(1)))
    assert found == ExportedModel(
        out=str(tmp_path / "model.pt2"),
        format="exported",
        size_bytes=(tmp_path / "model.pt2").stat().st_size,
        step=7,
        score=2.5,
        is_ema=False,
        num_classes=3,
        input_size=(32, 32),
        is_dynamic_batch=False,
        difference=0.0,
    )


def test_size_and_number_of_images_are_as_asked(tmp_path: Path) -> None:
    model = train(tmp_path, toy_run())
    export_model(tmp_path, tmp_path / "one.pt2", format="exported", size=(48, 64))
    export_model(tmp_path, tmp_path / "any.pt2", format="exported", size=(48, 64), is_dynamic_batch=True)
    one, any_number = (torch.export.load(tmp_path / name).module() for name in ("one.pt2", "any.pt2"))
    for count in (1, 2, 5):
        given = torch.randn(count, 3, 48, 64, generator=torch.Generator().manual_seed(count))
        torch.testing.assert_close(any_number(given), model(given))
        if count > 1:
            with pytest.raises(AssertionError, match="Guard failed"):
                one(given)
    with pytest.raises(AssertionError, match="Guard failed"):
        any_number(torch.randn(1, 3, 32, 32))
    with pytest.warns(UserWarning, match="--size and --dynamic-batch change nothing in a state dict"):
        export_model(tmp_path, tmp_path / "model.pt", size=(48, 64))
    with pytest.raises(ValueError, match="must be .* at least 32 pixels, but got"):
        export_model(tmp_path, tmp_path / "small.pt2", format="exported", size=(8, 64))


def test_the_checkpoint_is_the_one_asked_for(tmp_path: Path) -> None:
    for step, score in ((1, 9.0), (2, 1.0)):
        train(tmp_path, toy_run(seed=step), step=step, score=score)
    latest, best = export_model(tmp_path, tmp_path / "latest.pt", which="latest"), export_model(tmp_path, tmp_path / "best.pt", which="best")
    assert [(each.step, each.score) for each in (latest, best)] == [(2, 1.0), (1, 9.0)]
    weights = [torch.load(tmp_path / f"{which}.pt", weights_only=True) for which in ("latest", "best")]
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    assert evaluate(tmp_path, which="best") != evaluate(tmp_path)


def test_the_mean_of_the_weights_is_taken_where_there_is_one(tmp_path: Path) -> None:
    model = train(tmp_path, toy_run(), ema=True)
    mean, last = (export_model(tmp_path, tmp_path / f"{use}.pt", use_ema=use) for use in (True, False))
    assert (mean.is_ema, last.is_ema) == (True, False)
    weights = {use: torch.load(tmp_path / f"{use}.pt", weights_only=True) for use in (True, False)}
    for name, value in model.state_dict().items():
        assert torch.equal(weights[False][name], value)
        assert torch.equal(weights[True][name], 0.5 * value)
    # Scores are those of the same weights.
    assert evaluate(tmp_path)["val/loss"] != evaluate(tmp_path, use_ema=False)["val/loss"]
    halved = bare(model)
    halved.load_state_dict(weights[True])
    assert evaluate(tmp_path)["val/miou"] == pytest.approx(miou(halved(images()).detach()), abs=1e-6)
    train(tmp_path, toy_run(), step=8)
    with pytest.warns(UserWarning, match="kept no mean of its weights .*, so that --no-ema changes nothing"):
        export_model(tmp_path, tmp_path / "plain.pt", use_ema=False)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        train(tmp_path, toy_run(), step=step)
    (tmp_path / "checkpoints/00000002.pt").write_bytes(b"x")
    with pytest.warns(UserWarning, match="00000002.pt has 1 bytes instead of .*; the checkpoint of step 1 is used instead"):
        assert export_model(tmp_path, tmp_path / "model.pt").step == 1


def test_pretrained_weights_are_not_fetched_to_be_overwritten(tmp_path: Path, unet: tuple[Path, nn.Module]) -> None:
    state = checkpoint.load(unet[0])
    run = json.loads(state["run"])
    run["model"]["encoder_weights"] = "imagenet"  # tests have no network: fetching would be an error
    checkpoint.save(tmp_path, {**state, "run": json.dumps(run)}, step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_model(tmp_path, tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == unet[1].state_dict().keys()


def test_where_the_data_cannot_be_read_the_size_is_asked_for(tmp_path: Path) -> None:
    train(tmp_path, toy_run(data={"import": "tests.train.toys:HereOnly", "pid": 1, "log": str(tmp_path / "log")}))
    assert export_model(tmp_path, tmp_path / "model.pt").input_size is None
    with pytest.raises(ConfigError, match="--size must be given where the training's data cannot be read, .*no such folder on this machine"):
        export_model(tmp_path, tmp_path / "model.pt2", format="exported")
    assert export_model(tmp_path, tmp_path / "model.pt2", format="exported", size=(32, 32)).input_size == (32, 32)


class Noisy(Tiny):
    """Gives other numbers each time."""

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = super().forward(images)
        return scores if self.training else scores + torch.rand_like(scores)


class Branching(Tiny):
    """Looks at the values of its images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


class Picky(Tiny):
    """Takes only some sizes."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2] % 32 or images.shape[-1] % 32:
            raise RuntimeError("height and width in 32s, please\nand more")
        return super().forward(images)


@pytest.mark.parametrize(("kind", "suffix"), [("exported", ".pt2"), ("onnx", ".onnx")])
def test_a_file_that_gives_other_numbers_is_not_written(tmp_path: Path, kind: Any, suffix: str) -> None:
    train(tmp_path / "run", toy_run(model={"import": f"{HERE}:Noisy"}))
    with pytest.raises(RuntimeError, match=r"outputs must differ from the model's by 0\.0001 .* at most, but do by .*; nothing was written"):
        export_model(tmp_path / "run", tmp_path / f"model{suffix}", format=kind)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("is_dynamic", "hint"), [(False, "--format state-dict works for every model$"), (True, "and leaving --dynamic-batch out for more$")]
)
def test_a_model_that_cannot_be_exported_is_told_with_what_works(tmp_path: Path, is_dynamic: bool, hint: str) -> None:
    train(tmp_path / "run", toy_run(model={"import": f"{HERE}:Branching"}))
    with pytest.raises(ConfigError, match=f"must be one that torch.export can export, but: .*; .*{hint}") as caught:
        export_model(tmp_path / "run", tmp_path / "model.pt2", format="exported", is_dynamic_batch=is_dynamic)
    assert "\n" not in str(caught.value)
    export_model(tmp_path / "run", tmp_path / "model.pt")
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "run"]


def test_a_size_that_the_model_does_not_take_is_told(tmp_path: Path) -> None:
    train(tmp_path, toy_run(model={"import": f"{HERE}:Picky"}))
    with pytest.raises(ConfigError, match="the model must take images of 40 x 72, but: height and width in 32s, please; give another --size"):
        export_model(tmp_path, tmp_path / "model.pt2", format="exported", size=(40, 72))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onyx"}, "--format must be one of state-dict, exported, onnx, but got 'onyx'; nearest: 'onnx'"),
        ({"format": "onnx"}, r"--out must end in \.onnx for --format onnx, but got .*model\.pt; or is --format state-dict meant\?"),
        ({"which": "newest"}, "`which` must be one of latest, best"),
        ({"out": "taken.pt"}, "taken.pt must not exist yet, but does; give another --out"),
        ({"out": "taken.pt/model.pt"}, "--out must be a file that can be written, but .*taken.pt/model.pt: "),
        ({"folder": "nowhere"}, "nowhere must hold a checkpoint, but does not; give the --output folder of a training"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    train(tmp_path / "run", toy_run())
    (tmp_path / "taken.pt").write_text("x")
    folder, out = (tmp_path / options.pop(key, default) for key, default in (("folder", "run"), ("out", "model.pt")))
    with pytest.raises(ConfigError, match=message):
        export_model(folder, out, **options)
    assert sorted(os.listdir(tmp_path)) == ["run", "taken.pt"]


def test_packages_that_are_missing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, toy_run())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it fails, and it is not found
    with pytest.warns(UserWarning, match="was not checked against the model, since onnxruntime is not installed; pip install onnx"):
        assert export_model(tmp_path, tmp_path / "unchecked.onnx", format="onnx").difference is None
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="must have the packages onnx and onnxscript, but onnxscript is not installed; pip install onnx"):
        export_model(tmp_path, tmp_path / "model.onnx", format="onnx")
