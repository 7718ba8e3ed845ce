"""The examples, run as people run them, and what they promise."""

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch


def loaded(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their libraries
        spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here(root: Path) -> None:
    assert {path.stem for path in (root / "examples").glob("*.py")} == {"tour", "with_lightning", "with_transformers"}


@pytest.mark.long
def test_the_tour_runs_and_learns_something(root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, root / "examples/tour.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "16 street scenes of (64, 96) pixels, 9 classes"
    assert len([line for line in lines if ": stage: end of" in line]) == 5
    first, last = map(float, re.search(r"loss of the output ([\d.]+) -> ([\d.]+)", done.stdout).groups())  # type: ignore[union-attr]
    assert last < 0.8 * first
    assert int(re.search(r"(\d+)% of the pixels are right", done.stdout)[1]) > 25  # type: ignore[index]


@pytest.mark.slow
def test_lightning_trains_the_model_and_logs_the_side_losses(root: Path) -> None:
    module = loaded(root, "with_lightning")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained, trainer = module.main(epochs=1)
        again, _ = module.main(epochs=0)
    before, after = again.net.backbone.state_dict(), trained.net.backbone.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("decoder"))
    layers = ["decoder.blocks.0", "decoder.blocks.1", "encoder.layer2", "encoder.layer3", "encoder.layer4"]
    assert sorted(trainer.callback_metrics) == [*(f"side/{layer}" for layer in layers), "train/output"]
    assert all(bool(torch.isfinite(value)) for value in trainer.callback_metrics.values())


@pytest.mark.slow
def test_the_hugging_face_trainer_trains_the_model_and_logs_the_side_losses(root: Path, tmp_path: Path) -> None:
    module = loaded(root, "with_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, history = module.main(steps=4)
    outputs = [row["output"] for row in history if "output" in row]
    assert len(outputs) == 4
    assert outputs[-1] < outputs[0]
    assert {key for row in history for key in row if key.startswith("side/")} == {
        "side/segformer.stages.1",
        "side/segformer.stages.2",
        "side/segformer.stages.3",
        "side/decode_head.linear_projections.1",
        "side/decode_head.linear_projections.2",
    }
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
