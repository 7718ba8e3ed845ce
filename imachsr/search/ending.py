"""Why a search ends before its trials are used up."""

from collections.abc import Collection

from imachsr.search.entry import Entry
from imachsr.search.promise import improvement_probability
from imachsr.search.space import Search

LEAST_INFEASIBLE = 10
"""Infeasible trials that are always borne, however small the budget is."""


def without_promise(search: Search, entries: Collection[Entry]) -> str:
    """Why little is to be expected of the trials left, or ""; asked when a trial has ended.

    Args:
        search: Its ``budget.early_end`` says how little.
        entries: All trials, by number.
    """
    early = search.budget.early_end
    if early is None:
        return ""
    sign = 1 if search.metric.mode == "max" else -1
    sampled = [entry for entry in entries if entry.proposal.arm is None]
    values = [sign * entry.value for entry in sampled if entry.state == "COMPLETE" and entry.value is not None]
    left = search.budget.trials - sum(entry.is_counted for entry in entries)
    if len(values) < early.after or left <= 0:
        return ""
    stopped = sum(entry.state != "RUNNING" for entry in sampled) - len(values)
    chance = improvement_probability(values, stopped=stopped, remaining=left, gain=early.gain)
    if chance >= early.probability:
        return ""
    return (
        f"budget.early_end: one of the {left} trials left is better than the best by {early.gain:g} with a probability of about {chance:.3f}, below "
        f"{early.probability:g} (from the later half of {len(values)} whole trials; {stopped} were stopped)"
    )


def without_room(search: Search, entries: Collection[Entry]) -> str:
    """Why the limits leave too little of the space, or "": an infeasible trial takes none of the budget's, and would be followed by another for ever.

    Args:
        search: Of which as many may be infeasible as there are trials in the budget.
        entries: All trials.
    """
    infeasible = [entry for entry in entries if entry.excess]
    if len(infeasible) < max(LEAST_INFEASIBLE, search.budget.trials):
        return ""
    names = [name for entry in infeasible for name in entry.excess]
    often = max(names, key=names.count)
    return f"limits.{often} must leave room in the space, but {len(infeasible)} of {len(entries)} trials were beyond; raise it, or narrow the space"
