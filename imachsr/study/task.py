"""One run of a study, from its first step to its row; in a process of its own, which knows neither the study nor its driver."""

import datetime
import json
import platform
import shutil
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imachsr.config.continued import changed
from imachsr.config.load import load_yaml, make_run, run_to_dict
from imachsr.config.schema import Run
from imachsr.files import write_text
from imachsr.train import checkpoint
from imachsr.train.device import Machine, decide
from imachsr.train.evaluate import evaluate, trained_model
from imachsr.train.loop import Result, train
from imachsr.train.score import Corrupted, images_at_once, score_corrupted
from imachsr.train.stopping import TrainingStopped

ORIGIN = "data.txt"
"""In a run's folder: the fingerprint of the data that its training began with."""
_MEDIANS = ("time/step_ms", "images_per_s")


def run_to_row(config: Mapping[str, Any], output: str, data: str, scoring: Mapping[str, Any]) -> dict[str, Any]:
    """Train a run, or go on with it, and score what came out.

    Args:
        config: All settings of the run.
        output: Its folder; what was begun there with other settings or other data is begun anew.
        data: Fingerprint of its data.
        scoring: ``corruptions`` (arguments of :class:`Corrupted`, or None) and ``also_on`` (overrides by name).

    Returns:
        ``scores``, ``facts``, ``epochs`` and ``taps`` of a row; or ``error``; or ``stopped``.
    """
    run, folder = make_run(config), Path(output)
    try:
        _make_way(folder, run, data)
        result = train(run, output=folder, resume=True)
        scores = _scores(result, folder) | _beyond(run, folder, scoring)
    except TrainingStopped:
        return {"stopped": True}
    except (ValueError, FloatingPointError, RuntimeError, OSError) as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}", "epochs": _epochs(folder)}
    return {"scores": scores, "facts": facts(run), "epochs": len(result.history), "taps": len(result.taps)}


def _make_way(folder: Path, run: Run, data: str) -> None:
    """Drop a training that was begun with other settings or other data, and note the data of this one.

    Its folder is named after what decides a run's result, which settings without an effect, or files that were replaced in place, do not change.
    """
    settings, origin = folder / "run.yaml", folder / ORIGIN
    has_other_data = origin.exists() and origin.read_text(encoding="utf-8") != data
    if has_other_data or (settings.exists() and changed(load_yaml(settings), run_to_dict(run))):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(origin, data)


def _scores(result: Result, folder: Path) -> dict[str, float]:
    """Of the last epoch, with the medians of times over all epochs and the time of the whole training, seconds."""
    last = {name: value for name, value in result.metrics.items() if name.startswith("val/")}
    medians = {name: statistics.median(row[name] for row in result.history if name in row) for name in _MEDIANS}
    peak = {"memory/peak_mib": max(row.get("memory/peak_mib", 0.0) for row in result.history)}
    wall = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["wall_s"]
    return last | medians | peak | {"wall_s": float(wall)}


def _beyond(run: Run, folder: Path, scoring: Mapping[str, Any]) -> dict[str, float]:
    """Scores on spoilt images and on other data, in percent; of each its mIoU, calibration error, accuracy."""
    found: dict[str, float] = {}
    if (wanted := scoring.get("corruptions")) is not None:
        placement = decide(run.compute, Machine.here())
        model = placement.put_net(trained_model(checkpoint.load(folder), run))
        held_out = run.subset.scored(partial(run.data.load, "train"), partial(run.data.load, "val"))
        found |= score_corrupted(model, held_out, run.data.class_names, Corrupted(**wanted), placement=placement, batch=images_at_once(run))
    for name, overrides in scoring.get("also_on", {}).items():
        given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
        row = evaluate(folder, split="val", overrides=given)
        found |= {f"{name}/{key.removeprefix('val/')}": value for key, value in row.items() if not key.startswith("val/iou/")}
    return found


def _epochs(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def facts(run: Run) -> dict[str, str]:
    """What a run ran on: torch, machine, date (UTC)."""
    device = decide(run.compute, Machine.here()).device
    machine = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"torch": torch.__version__, "machine": machine, "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}


def processor() -> str:
    """Name of the CPU, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
