"""Values of settings as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any


def word(value: Any) -> str:
    """A setting's value in a word: ``infonce (temperature 0.2)`` for a kind with settings of its own, ``dice+hsic`` for a list, ``none`` for null."""
    if isinstance(value, Mapping):
        kind = str(value.get("kind") or value.get("import") or "")
        rest = ", ".join(f"{name} {word(each)}" for name, each in value.items() if name not in ("kind", "import"))
        return f"{kind} ({rest})" if kind and rest else kind or rest
    if isinstance(value, Sequence) and not isinstance(value, str):
        is_numbers = all(isinstance(each, (int, float)) for each in value)
        return f"[{', '.join(map(word, value))}]" if is_numbers else "+".join(map(word, value))
    return "none" if value is None else str(value)
