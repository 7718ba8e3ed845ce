"""When a knob exists: conditions on other knobs, as data."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from imachsr.config.schema import normalized

BOUNDS = ("at_least", "at_most")


class Part(BaseModel):
    """Settings of a search: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def is_bounds(wanted: Any) -> bool:
    """Whether a condition is a range of numbers: ``{at_least: ..., at_most: ...}``, or one of both."""
    return isinstance(wanted, Mapping) and bool(wanted) and all(key in BOUNDS for key in wanted)


def is_number(value: Any) -> bool:
    """Whether a value can be compared with bounds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def meets(value: Any, wanted: Any) -> bool:
    """Whether a value is one of those that a condition names.

    Args:
        value: Of a knob or of a setting; a part of a run may be written out as a mapping with ``kind``.
        wanted: A value, a list of values, or ``{at_least, at_most}``. A kind stands for all of that kind, and a mapping for all that agree with it.
    """
    if is_bounds(wanted):
        return is_number(value) and wanted.get("at_least", value) <= value <= wanted.get("at_most", value)
    return any(_agrees(value, each) for each in alternatives(wanted))


def alternatives(wanted: Any) -> Sequence[Any]:
    """The values that a condition names, each of which will do."""
    return wanted if isinstance(wanted, (list, tuple)) else (wanted,)


def _agrees(value: Any, wanted: Any) -> bool:
    if isinstance(value, Mapping):
        wanted = normalized(wanted)
        return isinstance(wanted, Mapping) and all(key in value and _agrees(value[key], each) for key, each in wanted.items())
    if isinstance(value, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(value) == len(wanted) and all(map(_agrees, value, wanted))
    return bool(value == wanted)


def words(conditions: Mapping[str, Any], joint: str = ", ") -> str:
    """Conditions in words."""
    return joint.join(f"{key} {_wanted(wanted)}" for key, wanted in conditions.items())


def _wanted(wanted: Any) -> str:
    if is_bounds(wanted):
        return " and ".join(f"{sign} {wanted[name]:g}" for name, sign in zip(BOUNDS, (">=", "<="), strict=True) if name in wanted)
    return " or ".join(each if isinstance(each, str) else json.dumps(each) for each in alternatives(wanted))
