"""How trials are called where they are tracked."""

from imachsr.search.entry import Entry
from imachsr.search.space import Search
from imachsr.tracking.events import TrialStart


def trial_id(uid: str, number: int) -> str:
    """The same whenever a search is continued, and no other search's.

    Args:
        uid: Of the study.
        number: Of the trial.
    """
    return f"{uid}-{number:04d}"


def trial_start(search: Search, uid: str, entry: Entry) -> TrialStart:
    """What is told of a trial when it begins."""
    proposal = entry.proposal
    is_baseline = proposal.arm is not None and proposal.arm == search.arms[0].name
    return TrialStart(
        id=trial_id(uid, proposal.number),
        name=f"{proposal.number:04d}" + (f"-{proposal.arm}" if proposal.arm else ""),
        group=f"{search.name}-{uid}",
        job_type="confirm" if search.score_on == "val" else "baseline" if is_baseline else "trial",
        config={**entry.config, "trial": proposal.number, "arm": proposal.arm, "origin": proposal.origin, "key": proposal.key},
        tags=(proposal.arm,) if proposal.arm else (),
    )
