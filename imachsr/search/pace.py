"""How often something may be done that takes longer the more there is."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(kw_only=True)
class Pace:
    """Does something again after a pause, and after twenty times what it took, so that it costs a twentieth of the time at most.

    Args:
        least_s: The pause, seconds.
        clock: Seconds, ascending.
    """

    least_s: float
    clock: Callable[[], float] = time.monotonic
    _next: float = 0.0

    def when_due(self, work: Callable[[], object]) -> None:
        """Do it, unless it is too early."""
        began = self.clock()
        if began >= self._next:
            work()
            ended = self.clock()
            self._next = ended + max(self.least_s, 20 * (ended - began))
