"""The Optuna study in the result folder: what was proposed, and what came out. It is the truth; everything else is derived."""

import json
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from imachsr.search.space import Search

FILE = "study.sqlite3"
State = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A configuration to run.

    Attributes:
        number: Of the trial, from 0.
        arm: Name of the fixed configuration, None for a sampled one.
        seed: Of the run.
        values: Dotted settings over the base run.
    """

    number: int
    arm: str | None
    seed: int
    values: dict[str, Any]


class Study:
    """Ask and tell on a persistent study.

    Args:
        folder: Result folder; the study is ``study.sqlite3`` in it, readable by any Optuna tool.
        search: What is searched.
    """

    def __init__(self, folder: Path, search: Search) -> None:
        self.search = search
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / FILE}", engine_kwargs={"connect_args": {"timeout": 60}})
        is_max = search.metric.mode == "max"
        self._study = optuna.create_study(storage=storage, study_name="search", direction="maximize" if is_max else "minimize", load_if_exists=True)
        # A fixed seed would repeat the first proposals whenever a search is continued (optuna#3255).
        self._study.sampler = _sampler(search, offset=len(self._study.trials))
        self._live: dict[int, Trial] = {}
        if "uid" not in self._study.user_attrs:
            self._study.set_user_attr("uid", uuid.uuid4().hex[:8])

    @property
    def uid(self) -> str:
        """Eight hexadecimal digits of this result folder's own, by which W&B tells its runs from another search's."""
        return str(self._study.user_attrs["uid"])

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    def unfinished(self) -> list[Proposal]:
        """Trials that a dead driver left running, to be continued under their own numbers."""
        found = []
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and trial.number not in self._live:
                live = Trial(self._study, trial._trial_id)
                if "values" in trial.user_attrs:
                    self._live[trial.number] = live
                    found.append(proposal_of(trial))
                else:  # died between asking and recording
                    found.append(self._fill(live))
        return found

    def propose(self) -> Proposal | None:
        """The next configuration: the arms first, then what Optuna suggests; None when the budget is spent."""
        if sum("values" in trial.user_attrs for trial in self.trials) >= self.search.budget.trials:
            return None
        return self._fill(self._study.ask())

    def _fill(self, trial: Trial) -> Proposal:
        """Decide what a trial runs, and record it."""
        done = sum(other.user_attrs["arm"] is not None for other in self.trials if "values" in other.user_attrs)
        fixed = self.search.fixed()
        arm, seed, values = fixed[done] if done < len(fixed) else (None, self.search.seeds[0], self.search.suggest(trial))
        trial.set_user_attr("arm", arm)
        trial.set_user_attr("seed", seed)
        trial.set_user_attr("values", values)
        self._live[trial.number] = trial
        return Proposal(number=trial.number, arm=arm, seed=seed, values=values)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Record an epoch's value; one that is there already stays."""
        trial = self._live[number]
        if epoch not in self._study.trials[number].intermediate_values:
            trial.report(value, epoch)

    def note(self, number: int, key: str, item: Any) -> None:
        """Keep a plain value beside a running trial."""
        self._live[number].set_user_attr(key, item)

    def end(self, number: int, state: State, *, value: float | None, note: dict[str, Any]) -> None:
        """Record the end of a trial.

        Args:
            number: The trial's.
            state: COMPLETE, PRUNED (stopped by the scheduler: its value is that of its last epoch, and the sampler knows that) or FAIL.
            value: The final epoch's; only for COMPLETE.
            note: Plain values kept beside it.
        """
        trial = self._live.pop(number)
        for key, item in note.items():
            trial.set_user_attr(key, item)
        self._study.tell(trial, value if state == "COMPLETE" else None, state=TrialState[state])


def proposal_of(trial: FrozenTrial) -> Proposal:
    """What was proposed as this trial."""
    attrs = trial.user_attrs
    return Proposal(number=trial.number, arm=attrs["arm"], seed=attrs["seed"], values=json.loads(json.dumps(attrs["values"])))


def _sampler(search: Search, offset: int) -> BaseSampler:
    seed = search.sampler.seed + 1_000_003 * offset
    if search.sampler.kind == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # both options have been experimental since 2021
        # group: conditional settings are modelled jointly within their branch; without it they would be drawn independently.
        return TPESampler(multivariate=True, group=True, n_startup_trials=search.sampler.startup_trials + len(search.fixed()), seed=seed)
