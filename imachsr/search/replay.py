"""Trials as the study and the ledger have them, for a driver to go on from."""

from collections.abc import Callable, Iterable, Mapping

from imachsr.search.budget import Meter
from imachsr.search.entry import Entry
from imachsr.search.ledger import Line
from imachsr.search.scheduler import Rule
from imachsr.search.space.rules import Budget
from imachsr.search.study import Record
from imachsr.search.task import Config, Task

STOPPED = "stopped by the scheduler"
_OF_THE_END = ("error", "why", "taps", "max_epochs", "excess")


def by_trial(lines: Iterable[Line]) -> dict[int, list[Line]]:
    """Each trial's own lines."""
    own: dict[int, list[Line]] = {}
    for line in lines:
        own.setdefault(line.trial, []).append(line)
    return own


def meter_of(budget: Budget, entries: Mapping[int, Entry], lines: Iterable[Line], earlier_s: float, clock: Callable[[], float]) -> Meter:
    """What was spent so far, to be added to.

    Args:
        budget: Of the search.
        entries: All trials.
        lines: All lines.
        earlier_s: Wall time of the earlier sittings as far as summary.json told it, seconds.
        clock: Seconds, ascending.
    """
    held = {number: float(entry.facts.get("held_s", 0.0)) for number, entry in entries.items()}
    return Meter(budget=budget, earlier_s=max([earlier_s, *(line.wall_s for line in lines)]), held_s=held, clock=clock)


def entry_of(record: Record, lines: Iterable[Line], task: Task, config: Config) -> Entry:
    """A trial from what is recorded of it.

    Args:
        record: In the study.
        lines: Its own in the ledger, which is the truth of its curve.
        task: What a trial does.
        config: Everything that its worker is given; {} for one that has ended.
    """
    curve, losses, taps, held_s = {}, {}, [], 0.0
    for line in lines:
        curve[line.epoch], losses[line.epoch] = line.objectives, line.loss
        taps, held_s = list(line.taps), line.held_s
    outcome = record.outcome
    max_epochs = task.epochs(config) if record.state == "RUNNING" else int(outcome.get("max_epochs", 0))
    if record.state != "RUNNING":  # the study still has what was lost with a line
        curve = {epoch: (value,) for epoch, value in record.curve.items()} | curve
        if record.values:
            curve.setdefault(max_epochs, record.values)
    entry = Entry(
        proposal=record.proposal,
        config=config,
        max_epochs=max_epochs,
        state=record.state,
        curve=dict(sorted(curve.items())),
        losses=losses,
        taps=outcome.get("taps") or taps,
        why=outcome.get("why", ""),
        excess=outcome.get("excess", {}),
        facts={"held_s": held_s, **{key: fact for key, fact in outcome.items() if key not in _OF_THE_END}},
    )
    if error := outcome.get("error"):
        entry.error = (error, error)
    return entry


def is_stop(rule: Rule, entry: Entry, epoch: int, value: float) -> bool:
    """Record a value in the rungs; whether its trial is to be stopped there.

    An arm is compared with others, so it runs whole; its values still stand in the rungs for others to be measured by.
    """
    return rule.arrive(entry.proposal.number, epoch, value) and entry.proposal.arm is None and epoch < entry.max_epochs


def refill(rule: Rule, entries: dict[int, Entry], lines: Iterable[Line]) -> None:
    """Fill the rungs again.

    The lines come in the order in which they came to the driver that died, so that the rule decides as it did: a trial that it had stopped, and that
    had not ended yet, is stopped again.
    """
    for line in lines:
        entry = entries[line.trial]
        if is_stop(rule, entry, line.epoch, line.objectives[0]) and entry.state == "RUNNING" and line.epoch == entry.epochs:
            entry.why = entry.why or STOPPED
