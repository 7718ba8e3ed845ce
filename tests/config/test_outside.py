"""A user's own package, outside the project, reached from YAML alone: data, model, standard, side loss and output loss."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imachsr.config.build import build_net, output_loss, selection_standard
from imachsr.config.load import load_run, make_run
from imachsr.config.schema import ConfigError, Run
from imachsr.core.wrapper import IMacHSR
from imachsr.train.loop import train

DATA = '''
import torch
from imachsr.data import Samples

class Bars:
    """Two classes: dark on the left, bright on the right, and the border moves."""
    num_classes = 2
    class_names = ("dark", "bright")

    def __init__(self, root, count=8, size=(32, 32)):
        if not root.startswith("/"):
            raise ValueError("root must be absolute")
        self.count, self.size = count, tuple(size)

    def load(self, split):
        labels = torch.zeros(self.count, *self.size, dtype=torch.uint8)
        for index in range(self.count):
            labels[index, :, 8 + 2 * index :] = 1
        images = (60 + 130 * labels).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
        return Samples(images=images, labels=labels, names=tuple(f"bar_{i}" for i in range(self.count)))

def make_dataset(root, **options):
    return Bars(root, **options)
'''
MODELS = """
from torch import nn

def make_model(num_classes, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(width, num_classes, 1), nn.Upsample(scale_factor=2),
    )

def make_deaf(num_classes):
    return make_model(num_classes + 3)

def make_flat(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

def make_shy(num_classes):
    class Shy(nn.Module):
        def forward(self, images):
            return {"boxes": images, "masks": images}
    return Shy()

def make_failing(num_classes, error):
    class Failing(nn.Module):
        def forward(self, images):
            if error == "torch":
                return images @ images.flatten()[:7]
            raise {"key": KeyError, "attribute": AttributeError, "assertion": AssertionError, "value": ValueError}[error]("boxes")
    return Failing()
"""
# One file with a new standard and a new loss: nothing else is touched.
PARTS = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from torch.nn import functional as F

def widest(trace, count=1):
    ordered = sorted(trace.layers, key=lambda layer: -layer.channels)
    return [layer.address for layer in ordered[:count]]

@dataclass(frozen=True, kw_only=True)
class EveryOther:
    step: int = 2
    def __call__(self, trace):
        return [layer.address for layer in trace.layers[:: self.step]]

@dataclass(frozen=True, kw_only=True)
class Margin:
    margin: float = 1.0
    family: ClassVar[str] = "margin"
    def make_adapter(self, channels, num_classes, generator):
        return nn.Conv2d(channels, num_classes, 1)
    def __call__(self, z, labels):
        keep = labels.hard >= 0
        if not keep.any():
            return z.sum() * 0
        return F.multi_margin_loss(z.float().permute(0, 2, 3, 1)[keep], labels.hard[keep], margin=self.margin)

def make_margin(margin):
    return Margin(margin=margin)

@dataclass(frozen=True, kw_only=True)
class Confused:
    # A standard that looks at data: layers of the lowest entropy.
    count: int = 1
    def select(self, trace, calibration=None):
        from imachsr import Tap
        entropies = calibration.channel_entropies(trace.layers, 1)
        lowest = sorted(range(len(entropies)), key=entropies.__getitem__)[: self.count]
        return tuple(Tap(layer=trace.layers[index], reason=f"confused: {entropies[index]:.3f}") for index in sorted(lowest))

ready = Margin(margin=3.0)

def focal(output, labels, *, ignore_index, gamma=2.0):
    each = F.cross_entropy(output.float(), labels, ignore_index=ignore_index, reduction="none")
    return ((1 - torch.exp(-each)) ** gamma * each).mean()

focal.family = "log_score"

class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by
    def forward(self, output, labels, ignore_index):
        return self.by * F.cross_entropy(output, labels, ignore_index=ignore_index)

def without_ignore(output, labels):
    return output.sum()

number = 3

def no_loss():
    return object()
"""
YAML = """
name: outside
data: {import: "outside_pack.data:make_dataset", root: /data, count: 6}
model: {import: "outside_pack.models:make_model", width: 6}
method:
  standard: {import: "outside_pack.parts:widest", count: 2}
  loss: {import: "outside_pack.parts:Margin", margin: 0.5}
  entropy: channel_norm
output_loss: {import: "outside_pack.parts:focal", gamma: 1.5}
optimizer: {epochs: 1, batch_size: 3}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside_pack").mkdir()
    for name, text in (("__init__", ""), ("data", DATA), ("models", MODELS), ("parts", PARTS)):
        (folder / "outside_pack" / f"{name}.py").write_text(text)
    (folder / "run.yaml").write_text(YAML)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def run_with(**method: Any) -> Run:
    raw: dict[str, Any] = {
        "data": {"import": "outside_pack.data:make_dataset", "root": "/data"},
        "model": {"import": "outside_pack.models:make_model"},
        "method": {"standard": {"kind": "depth", "max_taps": 2}, "loss": "dice"},
    }
    raw["output_loss"] = method.pop("output_loss", "cross_entropy")
    raw["model"] = method.pop("model", raw["model"])
    raw["method"] |= method
    return make_run(raw)


def net_of(run: Run) -> IMacHSR:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return build_net(run, num_classes=2, size=(32, 32))


def test_everything_from_outside_trains(package: Path) -> None:
    run = load_run(package / "run.yaml")
    result = train(run)
    assert len(result.history) == 1
    assert len(result.taps) == 2
    row = result.metrics
    assert {"val/iou/dark", "val/iou/bright"} <= set(row)
    assert all(f"tap/{address}/{term}" in row for address in result.taps for term in ("side", "entropy"))
    assert row["train/side"] > 0


@pytest.mark.long
def test_the_command_line_finds_a_package_on_the_python_path(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "imachsr", "train", str(package / "run.yaml"), "--output", str(tmp_path / "out"), "--wandb", "disabled"]
    places = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out" / "checkpoints").glob("*.pt"))


def test_arguments_reach_a_standard_that_is_a_function_or_a_class(package: Path) -> None:
    layers = {len(net_of(run_with(standard={"import": "outside_pack.parts:widest", "count": count})).taps) for count in (1, 2, 3)}
    assert layers == {1, 2, 3}
    every = net_of(run_with(standard={"import": "outside_pack.parts:EveryOther", "step": 1})).taps
    other = net_of(run_with(standard={"import": "outside_pack.parts:EveryOther"})).taps
    assert [tap.layer.address for tap in other] == [tap.layer.address for tap in every][::2]


@pytest.mark.parametrize(
    ("loss", "margin"),
    [
        ({"import": "outside_pack.parts:Margin"}, 1.0),
        ({"import": "outside_pack.parts:Margin", "margin": 0.5}, 0.5),
        ({"import": "outside_pack.parts:make_margin", "margin": 2}, 2),
        ({"import": "outside_pack.parts:ready"}, 3.0),
    ],
)
def test_a_side_loss_may_be_a_class_a_factory_or_an_object(package: Path, loss: dict[str, Any], margin: float) -> None:
    losses: Any = net_of(run_with(loss=loss)).losses
    assert [side.margin for side in losses] == [margin, margin]


def test_an_own_standard_may_look_at_data(package: Path) -> None:
    run = load_run(package / "run.yaml", ["method.standard={import: 'outside_pack.parts:Confused', count: 2}"])
    net = build_net(run, num_classes=2, size=(32, 32), samples=run.data.load("train"))
    assert len(net.taps) == 2
    assert all(tap.reason.startswith("confused: ") for tap in net.taps)


def test_an_own_side_loss_may_be_that_of_the_early_or_the_late_taps(package: Path) -> None:
    own = {"import": "outside_pack.parts:Margin", "margin": 7}
    for loss, families in (
        ({"kind": "by_depth", "early": own, "late": "dice"}, ["margin", "overlap"]),
        ({"kind": "by_depth", "early": "dice", "late": own, "share": 0.3}, ["overlap", "margin"]),
    ):
        assert [side.family for side in net_of(run_with(loss=loss)).losses] == families


def test_own_and_shipped_side_losses_mix_in_a_list(package: Path) -> None:
    net = net_of(run_with(loss=["dice", {"import": "outside_pack.parts:Margin", "margin": 7}]))
    assert [side.family for side in net.losses] == ["overlap", "margin"]


def test_an_own_output_loss_is_what_is_minimised(package: Path) -> None:
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    losses = net_of(run_with(alpha=0, beta=0, output_loss={"import": "outside_pack.parts:focal", "gamma": 1.5}))(images, labels)
    each = torch.nn.functional.cross_entropy(losses.prediction, labels, reduction="none")
    torch.testing.assert_close(losses.total.detach(), ((1 - torch.exp(-each)) ** 1.5 * each).mean())
    losses = net_of(run_with(alpha=0, beta=0, output_loss={"import": "outside_pack.parts:Scaled", "by": 10}))(images, labels)
    torch.testing.assert_close(losses.total.detach(), 10 * torch.nn.functional.cross_entropy(losses.prediction, labels))


def test_the_family_of_an_own_output_loss_counts_with_and_without_arguments(package: Path) -> None:
    for loss in ({"import": "outside_pack.parts:focal"}, {"import": "outside_pack.parts:focal", "gamma": 1}):
        run = run_with(loss="mi_variational", output_loss=loss, heterogeneity="strict")
        with pytest.raises(ConfigError, match="are both of family 'log_score'"):
            net_of(run)
        net_of(run_with(loss="dice", output_loss=loss, heterogeneity="strict"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"loss": {"import": "outside_pack.parts:Margi"}},
            "method.loss: module .* must have 'Margi', but has not; nearest: 'Margin'",
        ),
        ({"loss": {"import": "outside_pack.parts:Margin", "margn": 1}}, "method.loss: .*unexpected keyword argument 'margn'"),
        ({"loss": {"import": "outside_pack.parts:ready", "margin": 1}}, "method.loss: .*parts:ready' must take the arguments"),
        ({"loss": {"import": "outside_pack.parts:no_loss"}}, "`loss` must have `family`, `make_adapter` and `__call__`, but got object"),
        ({"loss": {"import": "outside_pack.parts:number"}}, "method.loss: .*must be a class or function, but is a int"),
        ({"loss": {"import": "outside_pack"}}, "method.loss: an import path must have the form 'package.module:name', but got 'outside_pack'"),
        ({"standard": {"import": "outside_pack.prats:widest"}}, "method.standard: module 'outside_pack.prats' .* was not found"),
        ({"standard": {"import": "outside_pack.parts:widest", "cuont": 2}}, "method.standard: .*unexpected keyword argument 'cuont'"),
        ({"standard": {"import": "outside_pack.parts:number"}}, "method.standard: .*must be callable, but is a int"),
        ({"output_loss": {"import": "outside_pack.parts:without_ignore"}}, "output_loss: .*unexpected keyword argument 'ignore_index'"),
        ({"output_loss": {"import": "outside_pack.parts:focal", "gama": 2}}, "output_loss: .*unexpected keyword argument 'gama'"),
        ({"output_loss": {"import": "outside_pack.parts:Scaled"}}, "output_loss: .*missing a required argument: 'by'"),
        ({"model": {"import": "outside_pack.models:make_deaf"}}, r"the model's output must be \[2, 2, h, w\] for 2 classes, but is \[2, 5, 32, 32\]"),
        ({"model": {"import": "outside_pack.models:make_flat"}}, r"the model's output must be \[2, 2, h, w\] for 2 classes, but is \[2, 2\]"),
        (
            {"model": {"import": "outside_pack.models:make_shy"}},
            r"the model's output must be a tensor, .*, but got dict with the keys boxes, masks",
        ),
        ({"model": {"import": "outside_pack.models:make_model", "widht": 1}}, "model: .*unexpected keyword argument 'widht'"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_breaks_a_contract_is_one_message_with_its_key(package: Path, method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        net_of(run_with(**method))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("key", "KeyError: 'boxes'"),
        ("attribute", "AttributeError: boxes"),
        ("assertion", "AssertionError: boxes"),
        ("value", "ValueError: boxes"),
        ("torch", "RuntimeError: .*"),
    ],
)
def test_an_error_in_the_users_forward_is_told_with_its_place(package: Path, error: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"data, model and method must fit, but: {why} \(models.py:\d+\)$"):
        net_of(run_with(model={"import": "outside_pack.models:make_failing", "error": error}))


def test_the_users_own_check_of_an_argument_is_passed_on(package: Path) -> None:
    run = load_run(package / "run.yaml", ["data.root=relative"])
    with pytest.raises(ValueError, match=r"'outside_pack.data:make_dataset' must work, but: ValueError: .*root must be absolute.* \(data.py:\d+\)$"):
        train(run)


def test_parts_with_and_without_arguments_are_callables(package: Path) -> None:
    run = run_with(standard={"import": "outside_pack.parts:widest"}, output_loss={"import": "outside_pack.parts:focal"})
    assert selection_standard(run).__name__ == "widest"
    assert output_loss(run).__name__ == "focal"
    assert output_loss(run_with(output_loss={"import": "outside_pack.parts:focal", "gamma": 1})).__name__ == "focal"
