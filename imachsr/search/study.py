"""The Optuna study: what was proposed, and what came out. With trials.jsonl beside it, it is the truth; everything else is derived."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from imachsr.search.database import Direction, close_study, explained, open_study
from imachsr.search.drafts import drafted
from imachsr.search.grid import ExhaustedError
from imachsr.search.samplers import is_control, make_sampler
from imachsr.search.space import Search

Known = Callable[[Mapping[str, Any]], bool]
State = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"]
Origin = Literal["arm", "point", "sampled", "control"]
_PROPOSAL, _OUTCOME, _LEARNT, _SITTINGS = "proposal", "outcome", "learnt", "sittings"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A configuration to run.

    Attributes:
        number: Of the trial, from 0, without a gap.
        arm: Name of the fixed configuration, None for others.
        seed: Of the run.
        values: Dotted settings over the base run.
        origin: Whether it is fixed, was enqueued by the user, proposed by the sampler, or drawn at random for comparison.
        key: Fingerprint of the whole configuration without its seed; equal configurations have equal ones.
    """

    number: int
    arm: str | None
    seed: int
    values: dict[str, Any]
    origin: Origin
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A proposal of which nothing is recorded yet.

    Attributes:
        proposal: What it would be.
        params: As Optuna stores them; {} for an arm, which may lie outside of the space.
        notes: What the sampler wants to find on the trial.
    """

    proposal: Proposal
    params: dict[str, Any]
    notes: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A trial as it stands in the study.

    Attributes:
        proposal: What was to run.
        state: Optuna's.
        curve: Value of the first objective at each epoch; empty with several objectives, which Optuna keeps no curves of.
        values: Of a COMPLETE trial, one an objective.
        outcome: What was noted at its end; of a RUNNING one, when its driver died before the last word.
    """

    proposal: Proposal
    state: State
    curve: dict[int, float]
    values: tuple[float, ...]
    outcome: dict[str, Any]


@dataclass(kw_only=True)
class _Live:
    """A trial that has not ended: its place in the storage, its number there, and the last epoch that was told of it."""

    place: int
    number: int
    last: int = 0


class Study:
    """Ask and tell on a persistent study.

    A trial is written with its parameters and its proposal at once: however a driver dies, there is none without.

    Args:
        folder: Result folder.
        search: What is searched.
        url: See :func:`open_study`.
        read_only: Look at what is there, and change nothing.
        is_known: Whether a configuration is equal to one that was proposed before.

    Raises:
        ConfigError: If the storage cannot be used, or is not the one that the folder's study began in.
    """

    def __init__(
        self, folder: Path, search: Search, *, url: str | None = None, read_only: bool = False, is_known: Known = lambda values: False
    ) -> None:
        self.search, self._folder, self._url, self._is_read_only = search, folder, url, read_only
        directions: list[Direction] = ["maximize" if each.mode == "max" else "minimize" for each in search.objectives]
        self._study = open_study(folder, directions, url=url, read_only=read_only)
        self._live: dict[int, _Live] = {}
        self._counts: dict[str, int] = {}
        self._point = 0
        with explained(folder, url):
            attrs = self._study.user_attrs
            self.sittings: int | None = attrs.get(_SITTINGS, None if "uid" in attrs else 0)
            """How often the search was begun or continued, with this time; None where that was not counted from its beginning on."""
            if "uid" not in attrs and not read_only:
                self._study.set_user_attr("uid", uuid.uuid4().hex[:8])
            if self.sittings is not None and not read_only:
                self.sittings += 1
                self._study.set_user_attr(_SITTINGS, self.sittings)
            self.uid = str(self._study.user_attrs.get("uid", ""))
            """Eight hexadecimal digits of this result folder's own, by which W&B tells its runs from another search's."""
            self._size = offset = len(self._study.get_trials(deepcopy=False))
        if not read_only:
            self._study.sampler = RandomSampler(seed=0)  # nothing is drawn by the study itself
            # A fixed seed would repeat the first proposals whenever a search is continued (optuna#3255).
            self._sampler, self._random = (make_sampler(search, offset, at_random=at_random, is_known=is_known) for at_random in (False, True))

    def records(self) -> list[Record]:
        """All trials that ran or are to run, by number."""
        found = []
        with explained(self._folder, self._url):
            for trial in self._study.get_trials(deepcopy=False):
                if _PROPOSAL in trial.user_attrs:
                    found.append(_record(trial))
                    if trial.state == TrialState.RUNNING and not self._is_read_only:
                        last = max(trial.intermediate_values, default=0)
                        self._live[found[-1].proposal.number] = _Live(place=trial._trial_id, number=trial.number, last=last)
        found.sort(key=lambda record: record.proposal.number)
        self._counts = {}
        for record in found:
            self._count(record.proposal.origin)
        return found

    def _count(self, origin: Origin) -> None:
        self._counts[origin] = self._counts.get(origin, 0) + 1

    def draw(self) -> Offer:
        """The next configuration: the arms first, then the user's points, then what the sampler suggests, or chance.

        Raises:
            ExhaustedError: If nothing is left.
            ConfigError: If the constraints leave nothing.
        """
        number, seed = sum(self._counts.values()), self.search.seeds[0]
        fixed, done = self.search.fixed(), self._counts.get("arm", 0)
        if done < len(fixed):
            arm, seed, values = fixed[done]
            return Offer(proposal=Proposal(number=number, arm=arm, seed=seed, values=values, origin="arm"), params={}, notes={})
        if self._point < len(self.search.points):
            # Those that an earlier driver took come again: they are equal to what ran.
            values = self.search.point_values(self.search.points[self._point])
            self._point += 1
            proposal = Proposal(number=number, arm=None, seed=seed, values=values, origin="point")
            return Offer(proposal=proposal, params=self.search.point_params(values), notes={})
        if not self.search.space:
            raise ExhaustedError("every arm has run, and there is no space")
        origin: Origin = "control" if is_control(self.search, number) else "sampled"
        with explained(self._folder, self._url):
            draft = drafted(self._random if origin == "control" else self._sampler, self._study, self.search, number=self._size)
        proposal = Proposal(number=number, arm=None, seed=seed, values=draft.values, origin=origin)
        return Offer(proposal=proposal, params=draft.params, notes=draft.notes)

    def accept(self, offer: Offer, key: str) -> Proposal:
        """Record that an offer is to run."""
        proposal = replace(offer.proposal, key=key)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=offer.params,
            distributions=self.search.distributions(offer.params),
            user_attrs={_PROPOSAL: {name: getattr(proposal, name) for name in Proposal.__dataclass_fields__}},
            system_attrs=offer.notes,
        )
        with explained(self._folder, self._url):
            # What Study.add_trial does, but it does not say where.
            place = self._study._storage.create_new_trial(self._study._study_id, template_trial=trial)
        self._live[proposal.number] = _Live(place=place, number=self._size)
        self._size += 1
        self._count(proposal.origin)
        return proposal

    def report(self, number: int, epoch: int, value: float) -> None:
        """Record an epoch's value of the first objective, once; Optuna takes none with several."""
        live = self._live[number]
        if len(self.search.objectives) == 1 and epoch > live.last:
            with explained(self._folder, self._url):
                self._study._storage.set_trial_intermediate_value(live.place, epoch, value)
            live.last = epoch

    def end(
        self, number: int, state: State, *, values: Sequence[float] = (), outcome: Mapping[str, Any], constraints: Mapping[str, float] | None = None
    ) -> None:
        """Record the end of a trial.

        Args:
            number: The trial's.
            state: COMPLETE, PRUNED (stopped by the scheduler, its value being that of its last epoch, or infeasible) or FAIL.
            values: The final epoch's, one an objective; only for COMPLETE.
            outcome: Plain values kept beside it.
            constraints: By name how far the trial is beyond a limit, > 0 beyond. Only of PRUNED: the sampler ignores those of failed trials.
        """
        live = self._live[number]
        with explained(self._folder, self._url):
            self._study._storage.set_trial_user_attr(live.place, _OUTCOME, dict(outcome))
            if constraints:
                trial = Trial(self._study, live.place)
                for name in constraints.keys() - trial.constraints.keys():  # some may be there of a driver that died before the last word
                    trial.set_constraint(name, constraints[name])
            self._study.tell(live.number, list(values) if state == "COMPLETE" else None, state=TrialState[state])
        del self._live[number]

    def learn(self, trials: Sequence[FrozenTrial]) -> int:
        """Add trials of older searches for the sampler to learn from, once; how many.

        Args:
            trials: Finished ones, with parameters and distributions of this space.
        """
        with explained(self._folder, self._url):
            if not trials or _LEARNT in self._study.user_attrs:
                return 0
            self._study.add_trials(trials)
            self._size += len(trials)
            self._study.set_user_attr(_LEARNT, len(trials))
        return len(trials)

    def close(self) -> None:
        """Let go of the storage."""
        close_study(self._study)


def _record(trial: FrozenTrial) -> Record:
    attrs = json.loads(json.dumps(trial.user_attrs))
    state: Any = trial.state.name
    return Record(
        proposal=Proposal(**attrs[_PROPOSAL]),
        state=state,
        curve=dict(sorted(trial.intermediate_values.items())),
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else (),
        outcome=attrs.get(_OUTCOME, {}),
    )
