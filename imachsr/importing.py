"""The user's own objects by import path, the only code that a YAML names."""

import difflib
import importlib
import importlib.util
from typing import Any


def import_object(path: str) -> Any:
    """The object at ``package.module:name``.

    Raises:
        ValueError: If the path has another form, the module is not found, or it has no such name; names the nearest ones.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise ValueError(f"an import path must have the form 'package.module:name', but got {path!r}")
    try:
        found = importlib.util.find_spec(module_name)
    except (ModuleNotFoundError, ValueError):
        found = None
    if found is None:
        raise ValueError(
            f"module {module_name!r} of import path {path!r} must be importable, but was not found; install its package or set PYTHONPATH"
        )
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise ValueError(f"module {module_name!r} must have {name!r}, but has not; nearest: {', '.join(map(repr, near)) or 'nothing public'}")
    return getattr(module, name)
