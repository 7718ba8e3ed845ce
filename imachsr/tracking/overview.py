"""A search as a whole in W&B: the table over its trials, the paired differences, and its files."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = ("search.yaml", "summary.json", "trials.jsonl")
TABLE, DIFFERENCES = "search/trials", "search/differences"
_COLUMNS = ("number", "arm", "origin", "state", "epochs", "value", "difference", "seed", "wall_s", "why", "error")


def rows(held: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Names of columns, and a row of plain values a trial: what it was and brought, its taps, and the value of every knob."""
    knobs = sorted({name for trial in held["trials"] for name in trial["params"]})
    columns = [held["metric"] if name == "value" else name for name in _COLUMNS]
    found = []
    for trial in held["trials"]:
        own = [_plain(trial["params"].get(name)) for name in knobs]
        found.append([*(trial[name] for name in _COLUMNS), ", ".join(trial["taps"]), *own])
    return [*columns, "taps", *knobs], found


def differences(held: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Mean difference from the baseline of the same seed, by arm or sampled trial, from the largest down; whole trials only, without the baseline."""
    baseline = next((trial["arm"] for trial in held["trials"] if trial["number"] == held["baseline"]), None)
    found: dict[str, list[float]] = {}
    for trial in held["trials"]:
        if trial["difference"] is not None and (trial["arm"] is None or trial["arm"] != baseline):
            found.setdefault(trial["arm"] or f"trial {trial['number']:04d}", []).append(trial["difference"])
    return sorted(((name, statistics.fmean(values)) for name, values in found.items()), key=lambda pair: -pair[1])


def log(run: Any, folder: Path, held: Mapping[str, Any]) -> None:
    """Give a run the table, the differences as bars, what was best, and the search's files as an artifact."""
    import wandb

    columns, found = rows(held)
    shown: dict[str, Any] = {TABLE: wandb.Table(columns=columns, data=found, allow_mixed_types=True)}
    if pairs := differences(held):
        table = wandb.Table(columns=["configuration", "difference"], data=[list(pair) for pair in pairs])
        title = f"{held['metric']} against the baseline of the same seed"
        shown[DIFFERENCES] = wandb.plot.bar(table, "configuration", "difference", title=title)
    run.log(shown)
    best = next((trial for trial in held["trials"] if trial["number"] == held["best"]), None)
    told = {"best/trial": held["best"], "best/value": best and best["value"], "best/difference": best and best["difference"]}
    run.summary.update({**told, "finished": held["finished"], "trials": len(held["trials"])})
    artifact = wandb.Artifact(f"search-{held['uid']}", type="search", metadata={"name": held["name"], "metric": held["metric"]})
    for name in FILES:
        if (folder / name).exists():
            artifact.add_file(str(folder / name))
    run.log_artifact(artifact)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)
