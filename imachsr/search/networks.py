"""The networks that a search trains, each written once, for the report to draw."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imachsr.files import write_text
from imachsr.search.canonical import fingerprint_of

FILE = "network.json"
SCHEMA = 1


class Networks:
    """``network.json``: by key the candidate layers of every network, in execution order.

    The file grows with the networks that differ, not with the trials. It is derived: one that cannot be read is begun anew.

    Args:
        folder: Result folder of the search.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._known: dict[str, Any] = _read(self._path)

    def add(self, network: object) -> str | None:
        """Write down a network that is not known yet; its key, None for what is no network.

        Args:
            network: As in :func:`imachsr.train.applied.live`.
        """
        if not isinstance(network, Mapping) or not network.get("layers"):
            return None
        key = fingerprint_of(dict(network))
        if key not in self._known:
            self._known[key] = dict(network)
            write_text(self._path, json.dumps({"schema": SCHEMA, "networks": self._known}, separators=(",", ":")) + "\n")
        return key


def _read(path: Path) -> dict[str, Any]:
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(held["networks"]) if isinstance(held, dict) and held.get("schema") == SCHEMA else {}
