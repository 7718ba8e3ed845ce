"""Result folders of searches, made by hand."""

import json
from pathlib import Path
from typing import Any

from imachsr.config import load_run, run_to_dict
from imachsr.config.load import dump_yaml, make_run


def trial(number: int, state: str = "COMPLETE", **given: Any) -> dict[str, Any]:
    whole = {
        "number": number,
        "arm": None,
        "state": state,
        "epochs": 4,
        "value": 30.0 + number,
        "difference": None,
        "params": {"method.loss": "dice", "method.alpha": 0.1 * (number + 1), "optimizer.lr": 1e-3},
        "wall_s": 12.5,
        "error": None,
        "taps": ["encoder.layer1", "encoder.layer2"],
        "seed": 0,
    }
    assert set(given) <= set(whole)
    return {**whole, **given}


BASELINE = trial(0, arm="baseline", value=30.0, difference=0.0, params={"method.alpha": 0, "method.beta": 0}, taps=[])


def make(folder: Path, trials: list[dict[str, Any]], *, best: int | None = None, **given: Any) -> Path:
    """A folder as a search leaves it: summary.json, trials.jsonl and the run of each trial."""
    summary = {
        "schema": 1,
        "name": "streets",
        "metric": "select/miou",
        "mode": "max",
        "max_epochs": 4,
        "rungs": [1, 2],
        "baseline": 0,
        "budget": len(trials),
        "finished": True,
        "wall_s": 90.0,
        "versions": {"imachsr": "0.1.0", "torch": "2.14.1"},
        "trials": trials,
        "best": best,
        **given,
    }
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "search.yaml").write_text("name: streets\n")
    lines = [{"trial": each["number"], "arm": each["arm"], **row} for each in trials for row in curve(each)]
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for each in trials:
        at = folder / "trials" / f"{each['number']:04d}"
        at.mkdir(parents=True)
        run = make_run({}, {**each["params"], "name": f"streets-{each['number']:04d}", "seed": each["seed"], "compute.threads": 2})
        (at / "run.yaml").write_text(dump_yaml(run_to_dict(run)))
        assert load_run(at / "run.yaml") == run
    return folder


def curve(each: dict[str, Any]) -> list[dict[str, float]]:
    """Rows that end at the trial's value."""
    if each["value"] is None:
        return []
    return [
        {
            "epoch": epoch,
            "select/miou": each["value"] - 2.0 * (each["epochs"] - epoch),
            "select/iou/road": each["value"] + epoch,
            "select/iou/sky": each["value"] + 2 * epoch,
            "select/loss": 1.0 / epoch,
        }
        for epoch in range(1, each["epochs"] + 1)
    ]
