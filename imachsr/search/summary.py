"""What summary.json tells of a search: derived, and written anew whenever something has changed."""

import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from imachsr.config.schema import ConfigError
from imachsr.files import write_text
from imachsr.revision import revisions
from imachsr.search.budget import Meter
from imachsr.search.entry import Entry
from imachsr.search.space import Search
from imachsr.tracking.events import finite

Trials = list[dict[str, Any]]
FILE = "summary.json"
VERSIONED = ("imachsr", "torch", "ray", "optuna", "segmentation-models-pytorch")
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of one search.

    Args:
        folder: Result folder.
        search: What is searched.
        uid: Of the study.
        levels: Epochs at which trials may be stopped.
        max_epochs: Of a whole trial.
        data: Fingerprints of the data by split.
        sittings: How often the search was begun or continued; None where an older version began it and did not count.
    """

    folder: Path
    search: Search
    uid: str
    levels: tuple[int, ...]
    max_epochs: int
    data: Mapping[str, str] = field(default_factory=dict)
    sittings: int | None = None

    @cached_property
    def code(self) -> dict[str, Any]:
        """What ran on what, looked up once: data, versions, revisions."""
        return {"data": dict(self.data), "versions": versions(), "revisions": earlier_revisions(self.folder) or revisions()}

    def trials(self, entries: Mapping[int, Entry], meter: Meter) -> Trials:
        """A mapping of plain values a trial, by number."""
        first = self.search.arms[0].name if self.search.arms else None
        whole = [entry for entry in entries.values() if entry.state == "COMPLETE"]
        baselines = {entry.proposal.seed: entry.value for entry in whole if entry.proposal.arm is not None and entry.proposal.arm == first}
        return [self._line(entries[number], baselines, meter) for number in sorted(entries)]

    def _line(self, entry: Entry, baselines: Mapping[int, float | None], meter: Meter) -> dict[str, Any]:
        proposal, value, base = entry.proposal, entry.value, baselines.get(entry.proposal.seed)
        is_whole = entry.state == "COMPLETE"
        names = [metric.name for metric in self.search.objectives]
        return {
            "number": proposal.number,
            "arm": proposal.arm,
            "origin": proposal.origin,
            "state": entry.state,
            "epochs": entry.epochs,
            "max_epochs": entry.max_epochs,
            "value": value,
            "values": dict(zip(names, entry.values, strict=False)),
            "difference": value - base if is_whole and base is not None and value is not None else None,
            "params": proposal.values,
            "wall_s": round(meter.seconds(proposal.number), 3),
            "cost": {name: round(each, _DIGITS) for name, each in asdict(meter.cost(proposal.number)).items()},
            "error": entry.error[0] if entry.error else None,
            "why": entry.why,
            "feasible": not entry.excess,
            "footprint": entry.facts.get("footprint"),
            "taps": entry.taps,
            "losses": entry.facts.get("losses", []),
            "network": entry.facts.get("network"),
            "troubles": entry.facts.get("troubles"),
            "seed": proposal.seed,
            "key": proposal.key,
        }

    def write(self, entries: Mapping[int, Entry], meter: Meter, *, remaining: int, ended_early: str, concurrency: int) -> dict[str, Any]:
        """Write summary.json; its content."""
        trials = self.trials(entries, meter)
        ended = [entry for entry in entries.values() if entry.state != "RUNNING" and entry.is_counted and not entry.error]
        trial_s = math.fsum(meter.seconds(entry.proposal.number) for entry in ended) / len(ended) if ended else None
        left_s = 0.0 if not remaining else meter.left_s(remaining=remaining, trial_s=trial_s, concurrency=concurrency)
        summary = {
            "schema": 1,
            "name": self.search.name,
            "uid": self.uid,
            "metric": self.search.metric.name,
            "mode": self.search.metric.mode,
            "objectives": [metric.model_dump() for metric in self.search.objectives],
            "max_epochs": self.max_epochs,
            "rungs": self.levels,
            "baseline": 0 if self.search.arms else None,
            "budget": self.search.budget.trials,
            "finished": remaining == 0,
            "ended_early": ended_early,
            "spent": {name: round(each, _DIGITS) for name, each in asdict(meter.spent()).items()},
            "sittings": self.sittings,
            "left_s": None if left_s is None else round(left_s, 1),
            "wall_s": round(meter.wall_s, 3),
            **self.code,
            "trials": trials,
            "best": self._best(trials),
            "front": self._front(trials),
            "alarms": alarms(entries),
        }
        write_text(self.folder / FILE, json.dumps(finite(summary), indent=1) + "\n")
        return summary

    def _best(self, trials: Trials) -> int | None:
        """The best finished trial: an arm counts with the mean over its seeds, and is named by the first of them."""
        groups: dict[Any, Trials] = {}
        for trial in trials:
            if trial["state"] == "COMPLETE" and trial["value"] is not None:
                groups.setdefault(trial["arm"] or trial["number"], []).append(trial)
        sign = 1 if self.search.metric.mode == "max" else -1
        means = {group[0]["number"]: sign * math.fsum(trial["value"] for trial in group) / len(group) for group in groups.values()}
        return max(means, key=lambda number: means[number], default=None)

    def _front(self, trials: Trials) -> list[int]:
        """Finished trials that none other is as good as in all objectives, and better in one, by number; [] with one objective."""
        metrics = self.search.objectives
        if len(metrics) == 1:
            return []
        signs = {metric.name: 1 if metric.mode == "max" else -1 for metric in metrics}
        whole = [trial for trial in trials if trial["state"] == "COMPLETE" and len(trial["values"]) == len(metrics)]
        points = {trial["number"]: tuple(sign * trial["values"][name] for name, sign in signs.items()) for trial in whole}
        front: dict[int, tuple[float, ...]] = {}
        # From the best first objective down, whatever dominates a point has come before it, and what that is dominated by dominates the point too.
        for number in sorted(points, key=lambda each: points[each], reverse=True):
            if not any(_dominates(other, points[number]) for other in front.values()):
                front[number] = points[number]
        return sorted(front)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def alarms(entries: Mapping[int, Entry]) -> list[str]:
    """Different configurations with equal curves, bit by bit: what differs between them was not applied, or has no effect."""
    found: dict[Any, list[Entry]] = {}
    for entry in entries.values():
        if entry.curve and entry.epochs >= entry.max_epochs:
            curve = tuple((epoch, *entry.curve[epoch], entry.losses.get(epoch)) for epoch in sorted(entry.curve))
            found.setdefault((entry.proposal.seed, curve), []).append(entry)
    lines = []
    for same in found.values():
        first = same[0].proposal
        for other in (entry.proposal for entry in same[1:]):
            if other.key != first.key:
                keys = sorted(key for key in {*first.values, *other.values} if first.values.get(key) != other.values.get(key))
                what = ", ".join(keys) or "their configurations"
                lines.append(f"trials {first.number} and {other.number} have equal curves, bit by bit, although {what} differ: that had no effect")
    return lines


def versions() -> dict[str, str]:
    """Of what results depend on."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def earlier_s(folder: Path) -> float:
    """Wall time of a folder's earlier sittings, seconds."""
    found = _earlier(folder, "wall_s")
    return float(found) if isinstance(found, (int, float)) else 0.0


def earlier_revisions(folder: Path) -> dict[str, str | None] | None:
    """Of the code that a folder's search began with; None for a new one."""
    found = _earlier(folder, "revisions")
    return found if isinstance(found, dict) else None


def check_data(folder: Path, data: Mapping[str, str]) -> None:
    """Raise ConfigError where a folder's search began with other data than these fingerprints are of."""
    before = _earlier(folder, "data")
    for split, found in data.items():
        if isinstance(before, dict) and before.get(split, found) != found:
            rule = f"the data must be those that the search in {folder} began with"
            raise ConfigError(f"{rule}, but {split} has the fingerprint {found} and had {before[split]}; put them back, or begin anew elsewhere")


def _earlier(folder: Path, key: str) -> Any:
    try:
        return json.loads((folder / FILE).read_text())[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
