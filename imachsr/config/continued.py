"""Which settings may be others where a training is continued, and what data are the same wherever they lie."""

from collections.abc import Mapping
from typing import Any

CHANGEABLE = ("compute", "name", "recovery", "scoring")
"""Settings that may differ when a training is continued: none is part of what is computed."""


def changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Parts of a run's settings that differ from those that a training began with, and decide what is computed.

    Args:
        saved: Plain settings that it began with.
        now: Plain settings that it would go on with.
    """
    before = {key: placeless(value) if key == "data" and isinstance(value, Mapping) else value for key, value in saved.items()}
    return [key for key in now if key not in CHANGEABLE and before.get(key) != (placeless(now[key]) if key == "data" else now[key])]


def placeless(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings of data without where these, and what is kept of them decoded, lie; of data by import path without their ``root``."""
    found = {name: each for name, each in data.items() if name not in ("root", "cache")}
    if isinstance(kwargs := found.get("kwargs"), Mapping):
        found["kwargs"] = {name: each for name, each in kwargs.items() if name != "root"}
    return found
