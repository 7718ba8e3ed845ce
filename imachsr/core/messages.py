"""Wording that errors share."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Phrase that names what the user may have meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.4) or known[:count]
    return "nearest: " + ", ".join(repr(item) for item in close)


def require(condition: bool, rule: str, got: object) -> None:
    """Raise ValueError unless the rule holds."""
    if not condition:
        raise ValueError(f"`{rule}` must hold, but got {got}")


def by_name(setting: str, name: str, union: Any) -> Any:
    """The member of a union whose ``kind`` the name is, with its defaults; raises ValueError with the nearest names for another."""
    known = {member.kind: member for member in get_args(union)}
    if name not in known:
        raise ValueError(f"`{setting}` must be one of {sorted(known)}, but got {name!r}; {nearest(name, known)}")
    return known[name]()
