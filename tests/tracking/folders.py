"""A search's result folder as the tracker sees it, made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from imachsr.config import run_to_dict
from imachsr.config.load import dump_yaml, make_run

METRIC, CLASSES, SIZE = "select/miou", ["road", "sky", "car"], (16, 24)
STATES = ("COMPLETE", "COMPLETE", "PRUNED", "FAIL")


def row(number: int, epoch: int) -> dict[str, float]:
    """A trial's row of an epoch."""
    return {"epoch": epoch, METRIC: 20.5 + number + 2 * epoch, "select/iou/road": 50.25, "tap/encoder.layer1.0/std": 0.5, "time/step_ms": 12.5}


def epochs(number: int) -> int:
    return 3 if STATES[number] == "COMPLETE" else 1


def searched(folder: Path) -> Path:
    """Four trials: the baseline, one that ran whole, one that was stopped, one that failed."""
    folder.mkdir(parents=True)
    trials: list[dict[str, Any]] = []
    lines = []
    for number, state in enumerate(STATES):
        values = {} if number == 0 else {"method.alpha": 0.1 * number, "method.loss": "dice"}
        ended = {"value": row(number, epochs(number))[METRIC], "epochs": epochs(number), "wall_s": 12.5, "seed": 7, "key": f"k{number}"}
        difference = {0: 0.0, 1: 1.0}.get(number)
        told = {"error": "ValueError: odd" if state == "FAIL" else None, "why": "stopped by the scheduler" if state == "PRUNED" else ""}
        about = {"number": number, "arm": None if number else "baseline", "origin": "sampler" if number else "arm", "state": state}
        trials.append({**about, **ended, **told, "difference": difference, "params": values, "taps": ["a", "b"][:number], "footprint": None})
        lines += [
            {**row(number, epoch), "trial": number, "arm": about["arm"], "objectives": [1.0], "held_s": 1.0, "wall_s": 1.0}
            for epoch in range(1, epochs(number) + 1)
        ]
        at = folder / "trials" / f"{number:04d}"
        at.mkdir(parents=True)
        (at / "run.yaml").write_text(dump_yaml(run_to_dict(make_run({}, {**values, "name": f"streets-{number:04d}", "seed": 7}))))
        gallery(at, epoch=epochs(number), has_samples=state == "COMPLETE")
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        **{"schema": 1, "uid": "u1", "name": "streets", "metric": METRIC, "mode": "max", "baseline": 0, "best": 1, "finished": True},
        **{"versions": {"torch": "2.14.1"}, "revisions": {"imachsr": None}, "data": {"train": "abc"}, "trials": trials},
        **{"max_epochs": 4, "wall_s": 90.0, "budget": len(trials)},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "search.yaml").write_text(
        "name: streets\nrun: {data: {kind: scenes}}\nspace: {method.alpha: {float: [0.01, 1.0]}, method.loss: {choice: [dice, brier]}}\n"
    )
    return folder


def gallery(at: Path, *, epoch: int, has_samples: bool = True) -> None:
    """What a training keeps for its pictures: predictions of its own, images that are every training's."""
    same = np.random.default_rng(0)
    images, labels = same.integers(0, 255, (2, 3, *SIZE), dtype=np.uint8), same.integers(0, 3, (2, *SIZE), dtype=np.uint8)
    labels[:, 0] = 255
    if has_samples:
        np.savez(at / "samples.npz", images=images, labels=labels, index=[0, 1], names=["first", "second"], class_names=CLASSES)
    for place, name in enumerate(("evaluation.npz", "evaluation_best.npz")):
        own = np.random.default_rng([epoch, place])
        np.savez(at / name, predicted=own.integers(0, 3, (2, *SIZE), dtype=np.uint8), epoch=epoch - place, score=31.5 + place)
