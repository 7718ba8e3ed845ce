"""Configurations drawn evenly from a space, without a study."""

import math
import random
from collections.abc import Iterator
from typing import Any

from imachsr.search.space.search import Search


class Chance:
    """Draws each value evenly, or its logarithm; to be given to :meth:`Search.suggest`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer of the range."""
        if log:
            return min(high, max(low, round(math.exp(self._random.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        return self._random.randrange(low, high + 1, step)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        """A number of the range."""
        if step is not None:
            return float(f"{low + step * self._random.randint(0, round((high - low) / step)):.12g}")
        return min(high, max(low, math.exp(self._random.uniform(math.log(low), math.log(high))))) if log else self._random.uniform(low, high)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of the choices."""
        return self._random.choice(choices)


def draws(search: Search, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Without end: a configuration, and by how much it breaks which constraints (see :meth:`Search.excess`)."""
    chance = Chance(seed)
    while True:
        values = search.suggest(chance)
        yield values, search.excess(values)
