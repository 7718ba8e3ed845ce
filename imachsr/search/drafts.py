"""What a sampler proposes, before anything of it is recorded."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from imachsr.search.space import Search

_UNRECORDED = -1


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A configuration that may become a trial.

    Attributes:
        values: Of the knobs.
        params: The same as Optuna stores them.
        notes: What the sampler wants to find on the trial later.
    """

    values: dict[str, Any]
    params: dict[str, Any]
    notes: dict[str, Any]


def drafted(sampler: BaseSampler, study: optuna.Study, search: Search, *, number: int) -> Draft:
    """The sampler's next configuration. Nothing is written to the study, so that there is no moment in which a trial is half there.

    Args:
        sampler: What proposes.
        study: What it learns from.
        search: What is searched.
        number: That the trial would have in the study.
    """
    trial = FrozenTrial(
        number=number,
        trial_id=_UNRECORDED,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
    view = _View(study, trial)
    sampler.before_trial(view, trial)
    params = sampler.sample_relative(view, trial, sampler.infer_relative_search_space(view, trial))
    # Samplers note what they drew on the trial, for others to see before it has its parameters: this one has them from the beginning.
    notes = {key: note for key, note in trial.system_attrs.items() if ":relative_params" not in key}
    return Draft(values=search.suggest(FixedTrial(params, number=number)), params=dict(params), notes=notes)


class _View(optuna.Study):
    """A study to which a trial that is not in it seems to belong."""

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.__dict__.update(study.__dict__)
        self._storage: Any = _Storage(study._storage, trial)
        self._thread_local = type(study._thread_local)()  # what it keeps is good for one draft


class _Storage:
    """A storage that keeps what is noted of that trial on it alone."""

    def __init__(self, storage: optuna.storages.BaseStorage, trial: FrozenTrial) -> None:
        self._storage, self._trial = storage, trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id == _UNRECORDED:
            self._trial.system_attrs[key] = value
        else:
            self._storage.set_trial_system_attr(trial_id, key, value)
