"""A trial as the driver of a search knows it."""

from dataclasses import dataclass, field
from typing import Any

from imachsr.search.study import Proposal, State

Values = tuple[float, ...]


@dataclass(kw_only=True)
class Entry:
    """One trial.

    Attributes:
        proposal: What is to run.
        config: Everything that its worker is given; {} for one that ended in an earlier sitting.
        max_epochs: Rows of the whole trial.
        state: Of the study; RUNNING from the proposal on.
        curve: Objectives by epoch.
        losses: On what is scored, by epoch; {} where rows have none.
        taps: Addresses of the supervised layers.
        error: Why it fails, in a line and in full (a traceback); None while it does not.
        why: Why it is to end early, in words; "" while it is not.
        is_proven: Whether its worker has shown that it trains what was proposed.
        excess: By limit how far it is beyond, as a share of the limit; {} for a feasible one.
        facts: What else is known: footprint, live objects, seconds.
    """

    proposal: Proposal
    config: dict[str, Any] = field(default_factory=dict)
    max_epochs: int
    state: State = "RUNNING"
    curve: dict[int, Values] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)
    taps: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None
    why: str = ""
    is_proven: bool = False
    excess: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """That were reported."""
        return max(self.curve, default=0)

    @property
    def values(self) -> Values:
        """Objectives of the last epoch; () before the first."""
        return self.curve.get(self.epochs, ())

    @property
    def value(self) -> float | None:
        """First objective of the last epoch."""
        return self.values[0] if self.values else None

    @property
    def is_to_end(self) -> bool:
        """Whether no further epoch is wanted: it fails, is to be stopped, or is whole."""
        return self.error is not None or bool(self.why) or (self.epochs > 0 and self.epochs >= self.max_epochs)

    @property
    def is_counted(self) -> bool:
        """Whether it takes one of the budget's trials: one that is infeasible has cost seconds."""
        return not self.excess

    def outcome(self) -> dict[str, Any]:
        """What the study keeps of its end."""
        error = self.error[0] if self.error else None
        return {"error": error, "why": self.why, "taps": self.taps, "max_epochs": self.max_epochs, "excess": self.excess, **self.facts}
