"""What the package's name gives beyond what is imported with it."""

import importlib
from typing import Any


def attribute(name: str) -> Any:
    """``imachsr.search`` without an import of its own: Ray and Optuna come with the first call.

    Raises:
        AttributeError: For any other name.
    """
    if name == "search":
        return importlib.import_module("imachsr.search")
    raise AttributeError(f"module 'imachsr' has no attribute {name!r}")
