"""What makes the package itself callable."""

from types import ModuleType
from typing import Any


class Package(ModuleType):
    """Ray and Optuna are imported when it is called, not when it is imported."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As :func:`imachsr.search.function.search_function`."""
        from imachsr.search.function import search_function

        return search_function(*arguments, **options)
