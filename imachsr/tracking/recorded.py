"""Runs as the files of a result folder have them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imachsr.files import write_text
from imachsr.tracking.events import TrialStart

PLACE = "wandb-place.json"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A run as the result folder's own lines have it.

    Attributes:
        start: What it is.
        rows: One an epoch.
        state: "finished", "stopped" or "failed"; "" while it has not ended.
        summary: Of its end.
    """

    start: TrialStart
    rows: Sequence[Mapping[str, float]]
    state: str
    summary: Mapping[str, Any]

    @property
    def epochs(self) -> frozenset[int]:
        """That rows have."""
        return frozenset(int(row["epoch"]) for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the runs of a result folder are in W&B; kept in the folder.

    Attributes:
        entity: User or team; "" while that is not known.
        project: Their project.
        is_online: Whether the server has all of them.
    """

    entity: str
    project: str
    is_online: bool

    @classmethod
    def of(cls, folder: Path) -> "Place | None":
        """What the folder says; None when nothing was tracked."""
        try:
            held: Any = json.loads((folder / PLACE).read_text(encoding="utf-8"))
            return cls(entity=held["entity"], project=held["project"], is_online=held["is_online"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it."""
        write_text(folder / PLACE, json.dumps(asdict(self)) + "\n")


def load(folder: Path) -> dict[str, Any] | None:
    """summary.json of a search's result folder; None where there is none, or a training's."""
    try:
        held: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) and isinstance(held.get("trials"), list) else None


def whole_id(held: Mapping[str, Any]) -> str:
    """Id of the run of a search as a whole, whose summary.json this is."""
    return f"{held['uid']}-search"
