"""Where the driver of a search writes which trials of several workers are to stop."""

from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class _Names:
    """The actor."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()

    async def add(self, number: int) -> None:
        self._numbers.add(number)

    async def has(self, number: int) -> bool:
        return number in self._numbers


@dataclass(frozen=True, kw_only=True)
class Board:
    """Handle of the actor.

    Tune stops a trial by killing its process; workers that this one has started would be left behind, with their places. They are asked instead.
    """

    names: ActorHandle

    @classmethod
    def open(cls) -> "Board":
        """On this machine: another one may be lost."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return cls(names=ray.remote(_Names).options(num_cpus=0, scheduling_strategy=here).remote())

    def stop(self, number: int) -> None:
        """Want a trial to end after the step under way."""
        ray.get(self.names.add.remote(number))

    def has(self, number: int) -> bool:
        """Whether a trial is to end."""
        return bool(ray.get(self.names.has.remote(number)))

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.names)
