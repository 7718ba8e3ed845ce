"""Where the workers and the driver of a distributed training leave word for each other."""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class _Tray:
    """The actor: one for all that is exchanged, since each process of Ray's takes half a percent of a core even when it is idle."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._mistake: Exception | None = None
        self._is_stop_asked = False

    async def tell(self, kind: str, value: Any) -> None:
        self._words.put_nowait((kind, value))

    async def hear(self, timeout_s: float) -> tuple[str, Any] | None:
        try:
            return await asyncio.wait_for(self._words.get(), timeout_s)
        except TimeoutError:
            return None

    async def blame(self, error: Exception) -> None:
        self._mistake = self._mistake or error

    async def mistake(self) -> tuple[Exception | None]:
        return (self._mistake,)  # an exception by itself would be raised

    async def ask_stop(self) -> None:
        self._is_stop_asked = True

    async def is_stop_asked(self) -> bool:
        return self._is_stop_asked


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Handle of the actor, which any process of the training can have; every call waits until it is done."""

    tray: ActorHandle

    @classmethod
    def open(cls) -> "Desk":
        """On this machine: another one may be lost."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return cls(tray=ray.remote(_Tray).options(num_cpus=0, scheduling_strategy=here).remote())

    def tell(self, kind: str, value: Any) -> None:
        """Leave word for the driver."""
        ray.get(self.tray.tell.remote(kind, value))

    def hear(self, timeout_s: float) -> tuple[str, Any] | None:
        """The oldest word that was not heard yet, once there is one; None when none came in time."""
        heard: tuple[str, Any] | None = ray.get(self.tray.hear.remote(timeout_s))
        return heard

    def blame(self, error: Exception) -> None:
        """Tell of a mistake, which workers that are started again would only repeat; the first one counts."""
        ray.get(self.tray.blame.remote(error))

    @property
    def mistake(self) -> Exception | None:
        """What was told by :meth:`blame`."""
        (error,) = ray.get(self.tray.mistake.remote())
        return error if isinstance(error, Exception) else None

    def ask_stop(self) -> None:
        """Want the workers to end with a checkpoint."""
        ray.get(self.tray.ask_stop.remote())

    @property
    def is_stop_asked(self) -> bool:
        """Whether they shall."""
        return bool(ray.get(self.tray.is_stop_asked.remote()))

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.tray)
