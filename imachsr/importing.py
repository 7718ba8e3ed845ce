"""The user's own objects by import path, the only code that a YAML names."""

import difflib
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def import_object(path: str) -> Any:
    """The object at ``package.module:name``.

    Raises:
        ValueError: If the path has another form, the module is not found or fails, or it has no such name; names the nearest ones.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ValueError(f"an import path must have the form 'package.module:name', but got {path!r}")
    try:
        found = importlib.util.find_spec(module_name)
        module = importlib.import_module(module_name) if found is not None else None
    except Exception as error:
        # The parent package is not there, or the user's code fails, perhaps since something that it imports is not.
        if not isinstance(error, ModuleNotFoundError) or error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"module {module_name!r} of import path {path!r} must import, but: {reason(error, path)}") from error
        module = None
    if module is None:
        raise ValueError(
            f"module {module_name!r} of import path {path!r} must be importable, but was not found; install its package or set PYTHONPATH"
        )
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise ValueError(f"module {module_name!r} must have {name!r}, but has not; nearest: {', '.join(map(repr, near)) or 'nothing public'}")
    return getattr(module, name)


def call_object(path: str, arguments: Mapping[str, Any]) -> Any:
    """What the class or function at ``package.module:name`` gives for keyword arguments.

    Raises:
        ValueError: As :func:`import_object`, or if the object takes other arguments, or fails; says which, or where.
    """
    found = import_object(path)
    if not callable(found):
        raise ValueError(f"{path!r} must be a class or function, but is a {type(found).__name__}")
    check_arguments(path, found, arguments)
    with blaming(f"{path!r}", path):
        return found(**arguments)


@contextmanager
def blaming(what: str, path: str) -> Iterator[None]:
    """Make any error of the user's code behind an import path a ValueError: "WHAT must work, but: KeyError: 'images' (mydata.py:7)"."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} must work, but: {reason(error, path)}") from error


def reason(error: Exception, *paths: str) -> str:
    """The error in words, with the last place at which it passed the packages of these import paths."""
    tops = {path.partition(":")[0].partition(".")[0] for path in paths}
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] in tops
    ]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 0))
        error = SyntaxError(error.msg)
    if not places and isinstance(error, (ValueError, TypeError, RuntimeError, IndexError)):  # ours or a library's, which speak for themselves
        return str(error)
    place = f" ({Path(places[-1][0]).name}:{places[-1][1]})" if places else ""
    return f"{type(error).__name__}: {error}{place}"


def check_arguments(path: str, found: Any, arguments: Mapping[str, Any], *, positional: int = 0) -> None:
    """Raise ValueError unless ``found`` takes these keyword arguments behind so many positional ones."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # built in C
        return
    try:
        signature.bind(*[None] * positional, **arguments)
    except TypeError as error:
        raise ValueError(f"{path!r} must take the arguments ({', '.join(arguments)}), but: {error}; its signature is {signature}") from None
