"""Each sampler on a space with branches, constraints and arms: what it proposes, what it models, and what it refuses."""

import sys
import types
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from imachsr.config.schema import ConfigError
from imachsr.core.objective import Objective
from imachsr.search.samplers import ExhaustedError, independent, is_control, make_sampler, notes
from imachsr.search.space import Constraint, Search, draws, make_search
from imachsr.search.space.reach import grid, grid_size, ungridded

MODELS = ["tpe", "gp", "cmaes", "nsga2"]
BRANCHES = {
    "method.loss": {"choice": ["dice", "prototype"]},
    "method.loss.temperature": {"float": [0.05, 0.5], "when": {"method.loss": "prototype"}},
    "method.alpha": {"float": [0.0, 1.0]},
    "method.beta": {"float": [0.0, 1.0]},
    "optimizer.batch_size": {"int": [1, 8]},
}
CONSTRAINTS = [{"sum": ["method.alpha", "method.beta"], "at_most": 1.0}, {"forbid": {"method.loss": "dice", "optimizer.batch_size": {"at_least": 6}}}]


def search_of(kind: str, *, space: dict[str, Any] = BRANCHES, trials: int = 200, **parts: Any) -> Search:
    sampler = {"kind": kind, **parts.pop("sampler", {})}
    return make_search({"space": space, "sampler": sampler, "budget": {"trials": trials}, "scheduler": {"kind": "none"}, **parts})


def study_of(search: Search, sampler: BaseSampler | None = None) -> optuna.Study:
    """With one finished arm, which has no parameters."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler or make_sampler(search, 0), direction="maximize")
    study.tell(study.ask(), 0.5)
    return study


def run(study: optuna.Study, search: Search, count: int, score: Callable[[dict[str, Any]], float] = lambda values: 0.0) -> list[dict[str, Any]]:
    found = []
    for _ in range(count):
        trial = study.ask()
        values = search.suggest(trial)
        assert values.keys() == trial.params.keys()
        found.append(values)
        study.tell(trial, score(values))
    return found


def peak(values: dict[str, Any]) -> float:
    return -((values["method.alpha"] - 0.7) ** 2) - (values["method.beta"] - 0.2) ** 2


@pytest.mark.parametrize("kind", [*MODELS, "random"])
def test_every_proposal_keeps_the_constraints_and_costs_one_trial(kind: str) -> None:
    search = search_of(
        kind, constraints=CONSTRAINTS, sampler={} if kind == "random" else {"population": 6} if kind == "nsga2" else {"startup_trials": 5}
    )
    study = study_of(search)
    proposed = run(study, search, 9 if kind == "gp" else 40, peak)
    for values in proposed:
        assert search.excess(values) == {}
        assert ("method.loss.temperature" in values) == (values["method.loss"] == "prototype")
    assert len(study.trials) == 1 + len(proposed)
    assert {values["method.loss"] for values in proposed} == {"dice", "prototype"}


def test_tpe_learns_where_constraints_are_from_what_it_drafted_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """It expects most where it has seen nothing, so without that it drafts what breaks a constraint again and again: 10 to 17 times a proposal."""
    search = search_of("tpe", constraints=CONSTRAINTS, sampler={"startup_trials": 8})
    study, drafts, original = study_of(search), 0, Search.excess

    def counted(self: Search, values: dict[str, Any]) -> dict[str, float]:
        nonlocal drafts
        drafts += 1
        return original(self, values)

    run(study, search, 10, peak)
    monkeypatch.setattr(Search, "excess", counted)
    run(study, search, 40, peak)
    assert drafts < 40 * 4


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_what_is_known_is_not_proposed_again_and_the_end_of_a_space_is_told(kind: str) -> None:
    search = search_of(kind, space={"method.loss": {"choice": ["dice", "brier"]}, "optimizer.batch_size": {"int": [1, 4]}}, trials=9)
    seen: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []

    def is_known(values: Mapping[str, Any]) -> bool:
        asked.append(dict(values))
        return asked[-1] in seen

    study = study_of(search, make_sampler(search, 0, is_known=is_known))
    for _ in range(8):
        seen += run(study, search, 1, lambda values: values["optimizer.batch_size"])
    assert sorted(map(str, seen)) == sorted(map(str, grid(search)))
    with pytest.raises(ExhaustedError):
        search.suggest(study.ask())
    assert len(asked) <= 2 * 8  # a run is built to answer: of no configuration more than when it was new, and once when it was equal


REPEATING = {
    "method.loss": {"choice": ["dice", "brier", "js"]},
    "optimizer.batch_size": {"int": [1, 6]},
    "method.alpha": {"choice": [0.1, 0.2, 0.3, 0.4], "when": {"method.loss": "dice"}},
    "method.beta": {"choice": [0.1, 0.2, 0.3]},
}


def recorded(monkeypatch: pytest.MonkeyPatch, cls: type[BaseSampler], method: str) -> list[tuple[Any, Any]]:
    """Arguments and result of each call of a sampler's method from now on."""
    calls: list[tuple[Any, Any]] = []
    original = getattr(cls, method)

    def call(self: Any, *given: Any) -> Any:
        result = original(self, *given)
        calls.append((given, result))
        return result

    monkeypatch.setattr(cls, method, call)
    return calls


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """Knobs that differ, without the one that another one switches on or off."""
    is_switched = ("method.alpha" in before) != ("method.alpha" in after)
    return sum(before.get(key) != after.get(key) for key in {*before, *after}) - is_switched


def test_a_model_that_repeats_itself_is_answered_with_a_neighbour_of_what_it_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_of("tpe", space=REPEATING, sampler={"startup_trials": 4})
    seen: list[dict[str, Any]] = []
    study = study_of(search, make_sampler(search, 0, is_known=lambda values: dict(values) in seen))
    drafts, found, nearest = recorded(monkeypatch, TPESampler, "sample_relative"), [], []
    for _ in range(60):
        drafts.clear()
        (drawn,) = run(study, search, 1, lambda values: values["optimizer.batch_size"] + 10 * values["method.beta"])
        assert drawn not in seen
        last = {key: value for key, value in drafts[-1][1].items() if key != "method.alpha" or drafts[-1][1]["method.loss"] == "dice"}
        if last in seen:
            found.append(changes(last, drawn))
            nearest.append(min(changes(last, each) for each in grid(search) if each not in seen))
        seen.append(drawn)
    assert len(found) > 10, "the model must have repeated itself"
    # They are drawn, not counted off: a last one may be missed.
    assert np.mean(np.array(found) == nearest) > 0.8
    assert set(nearest) >= {1, 2}


def test_neighbours_of_ranges_keep_constraints_and_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that rounds to the same counts as equal, so that the model repeats itself on ranges too."""
    search = search_of("tpe", constraints=CONSTRAINTS, sampler={"startup_trials": 5})
    seen: set[tuple[Any, ...]] = set()

    def cell(values: Mapping[str, Any]) -> tuple[Any, ...]:
        return (values["method.loss"], round(3 * values["method.alpha"]), round(3 * values["method.beta"]), values["optimizer.batch_size"] // 4)

    study = study_of(search, make_sampler(search, 0, is_known=lambda values: cell(values) in seen))
    drafts, repeating = recorded(monkeypatch, TPESampler, "sample_relative"), 0
    for _ in range(40):
        (drawn,) = run(study, search, 1, peak)
        assert search.excess(drawn) == {}
        assert ("method.loss.temperature" in drawn) == (drawn["method.loss"] == "prototype")
        assert cell(drawn) not in seen
        seen.add(cell(drawn))
        repeating += drafts[-1][1] != {key: value for key, value in drawn.items() if key in drafts[-1][1]}
    assert repeating > 3


def test_a_draw_by_chance_is_whole_also_when_most_of_the_space_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control trial that were a neighbour of what was tried would be no control."""
    search = search_of("tpe", space={key: value for key, value in REPEATING.items() if key != "method.alpha"})
    seen: list[dict[str, Any]] = []
    study = study_of(search, make_sampler(search, 0, at_random=True, is_known=lambda values: dict(values) in seen))
    draws_, most = recorded(monkeypatch, RandomSampler, "sample_independent"), 0
    for _ in range(50):
        draws_.clear()
        (drawn,) = run(study, search, 1)
        seen.append(drawn)
        most = max(most, len(draws_))
        assert [given[2] for given, _ in draws_] == list(search.order) * (len(draws_) // 3)
    assert most > 10 * 3


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_finds_the_peak_although_an_arm_has_no_parameters(kind: str) -> None:
    """Optuna's own inference gives these samplers nothing to model as soon as a finished trial has no parameters."""
    search = search_of(kind, sampler={"population": 8} if kind in ("nsga2", "cmaes") else {"startup_trials": 8})
    count = {"gp": 16, "nsga2": 120}.get(kind, 80)
    last = run(study_of(search), search, count, peak)[-count // 4 :]
    by_chance = np.mean([peak(values) for values, _ in islice(draws(search, 0), 500)])
    assert np.mean([peak(values) for values in last]) > 0.4 * by_chance  # both are below 0


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_listed_as_independent_is_what_is_drawn_by_itself(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_of(kind, sampler={"population": 6} if kind == "nsga2" else {"startup_trials": 4})
    study = study_of(search)
    run(study, search, 8 if kind == "gp" else 24, peak)
    drawn: list[str] = []
    for cls in (RandomSampler, TPESampler):
        original = cls.sample_independent

        def recorded(self: Any, study: Any, trial: Any, name: str, distribution: Any, original: Any = original) -> Any:
            drawn.append(name)
            return original(self, study, trial, name, distribution)

        monkeypatch.setattr(cls, "sample_independent", recorded)
    run(study, search, 4 if kind == "gp" else 12, peak)
    if kind == "nsga2":  # a mutation is an independent draw, of some knobs now and then
        assert set(independent(search)) == {"method.loss.temperature"}
        assert drawn.count("method.alpha") < 10
    else:
        assert set(drawn) == set(independent(search))
    assert set(independent(search)) == {"tpe": set(), "cmaes": {"method.loss", "method.loss.temperature"}}.get(kind, {"method.loss.temperature"})


@pytest.mark.parametrize("kind", ["gp", "nsga2", "cmaes"])
def test_the_user_is_told_what_a_sampler_does_not_do(kind: str) -> None:
    search = make_search({"space": BRANCHES, "sampler": {"kind": kind}, "budget": {"trials": 12}})
    lines = "\n".join(notes(search))
    assert "draws these at random, each by itself: " in lines
    assert ("not from those that asha stops" in lines) == (kind != "cmaes")
    assert ("until 50 trials have ended whole, and at most 11 are sampled" in lines) == (kind == "nsga2")
    assert notes(search_of("tpe")) == []


def test_cmaes_learns_from_stopped_trials_too() -> None:
    search = search_of("cmaes", sampler={"population": 6, "startup_trials": 1})
    study = study_of(search)
    for _ in range(60):
        trial = study.ask()
        trial.report(peak(search.suggest(trial)), 1)
        study.tell(trial, state=TrialState.PRUNED)
    late = np.mean([abs(trial.params["method.alpha"] - 0.7) for trial in study.trials[-15:]])
    assert late < 0.15  # 0.29 by chance


@pytest.mark.parametrize("kind", [*MODELS, "random"])
def test_the_same_seed_and_number_of_trials_give_the_same_proposals(kind: str) -> None:
    def proposals(offset: int, seed: int) -> list[dict[str, Any]]:
        search = search_of(kind, constraints=CONSTRAINTS[1:], sampler={"seed": seed})
        return run(study_of(search, make_sampler(search, offset)), search, 6, peak)

    assert proposals(0, 1) == proposals(0, 1)
    assert proposals(0, 1)[0] != proposals(3, 1)[0]
    assert proposals(0, 1)[0] != proposals(0, 2)[0]


def test_a_seed_stays_in_its_range_after_any_number_of_trials() -> None:
    search = search_of("random")
    run(study_of(search, make_sampler(search, 10**9)), search, 1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"sampler": {"kind": "tqe"}}, "sampler.kind: .*'tpe'.*'grid'.*but got 'tqe'"),
        (
            {"sampler": {"kind": "cmaes"}, "space": {"method.alpha": {"float": [0, 1]}}},
            r"sampler.kind: cmaes must have two ranges or more .*has \['method.alpha",
        ),
        (
            {"sampler": {"kind": "cmaes"}, "also": [{"name": "time/step_ms", "mode": "min"}]},
            "sampler.kind: must not be cmaes with several objectives",
        ),
        ({"sampler": {"kind": "grid"}}, "space.method.loss.temperature: must have `step` or `num` for a grid"),
        ({"sampler": {"kind": "tpe", "control": 1.0}}, "sampler.control: `control < 1` must hold, but got 1.0"),
        ({"sampler": {"kind": "nsga2", "population": 1}}, "sampler.population: `population >= 5` must hold, but got 1"),
        (
            {"sampler": {"kind": "grid"}, "space": {key: {"int": [1, 999]} for key in ("optimizer.batch_size", "optimizer.accumulate")}},
            "space: must have at most 100,000 configurations for a grid, but has 998,001",
        ),
        (
            {"sampler": {"kind": "grid"}, "space": {"optimizer.batch_size": {"int": [1, 4]}}, "budget": {"trials": 6}},
            r"budget.trials: must be at most 5 \(1 fixed and 4 of the grid\), but got 6",
        ),
    ],
)
def test_a_sampler_that_cannot_do_it_is_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_search({"space": BRANCHES, **raw})


GRID = {
    "method.loss": {"choice": ["dice", "prototype"]},
    "method.loss.temperature": {"float": [0.1, 0.4], "log": True, "num": 3, "when": {"method.loss": "prototype"}},
    "method.alpha": {"float": [0.1, 0.4], "step": 0.1},
    "optimizer.batch_size": {"int": [2, 8], "step": 3},
}


def test_the_size_of_a_grid_counts_each_branch() -> None:
    search = search_of("grid", space=GRID, trials=40)
    assert grid_size(search) == (1 + 3) * 4 * 3 == len(list(grid(search)))
    assert grid_size(search_of("tpe")) is None
    assert ungridded(search_of("tpe")) == ["method.loss.temperature", "method.alpha", "method.beta"]


def test_the_values_of_a_range_on_a_grid() -> None:
    values = {key: parameter.values for key, parameter in search_of("grid", space=GRID, trials=40).space.items()}
    assert values["method.loss.temperature"] == (0.1, 0.2, 0.4)
    assert values["method.alpha"] == (0.1, 0.2, 0.3, 0.4)
    assert values["optimizer.batch_size"] == (2, 5, 8)


def test_a_grid_runs_each_configuration_that_keeps_the_constraints_once_through_interruptions() -> None:
    constraints = [{"forbid": {"method.loss": "dice", "optimizer.batch_size": 8}}]
    search = search_of("grid", space=GRID, trials=40, constraints=constraints)
    wanted = [values for values in grid(search) if not search.excess(values)]
    assert len(wanted) == 48 - 4
    study = study_of(search)
    seen = run(study, search, 20)
    search.suggest(study.ask())  # still running
    broken_off = study.ask()
    lost = search.suggest(broken_off)
    study.tell(broken_off, state=TrialState.FAIL)  # before anything was recorded of it
    study.sampler = make_sampler(search, len(study.trials))
    rest = run(study, search, len(wanted) - 21)
    assert lost in rest
    told = sorted(map(str, [*seen, *rest, study.trials[21].params]))
    assert told == sorted(map(str, wanted))
    with pytest.raises(ExhaustedError, match="all 48 configurations of the grid are there"):
        search.suggest(study.ask())


def test_a_grid_is_in_no_order_so_that_its_beginning_is_spread_over_it() -> None:
    search = search_of("grid", space=GRID, trials=40)
    first = run(study_of(search), search, 12)
    assert first != list(islice(grid(search), 12))
    assert {values["method.loss"] for values in first} == {"dice", "prototype"}


def test_a_control_arm_is_the_share_that_was_asked_for_evenly_spread() -> None:
    search = search_of("tpe", sampler={"control": 0.2})
    chosen = [number for number in range(1000) if is_control(search, number)]
    assert len(chosen) == 200
    assert set(np.diff(chosen)) == {5}
    other, random = search_of("tpe", sampler={"control": 0.3}), search_of("random")
    assert sum(is_control(other, number) for number in range(3000)) == 900
    assert not any(is_control(random, number) for number in range(50))


def test_a_control_is_drawn_at_random_whatever_was_learnt() -> None:
    search = search_of("tpe", sampler={"startup_trials": 5}, constraints=CONSTRAINTS)
    study = study_of(search)
    run(study, search, 60, peak)
    study.sampler = make_sampler(search, len(study.trials), at_random=True)
    found = [values["method.alpha"] for values in run(study, search, 80, peak)]
    even = [values["method.alpha"] for values, excess in islice(draws(search, 0), 1000) if not excess]
    assert abs(np.mean(found) - np.mean(even)) < 0.1  # the model is at 0.7, chance under the constraints at 0.33
    assert all(search.excess(values) == {} for values in (trial.params for trial in study.trials[1:]))


def test_a_space_that_constraints_leave_nothing_of_ends_in_a_clear_error() -> None:
    search = search_of("tpe", sampler={"startup_trials": 1})
    nothing = search.model_copy(update={"constraints": (Constraint(sum=("method.alpha", "method.beta"), at_least=2.5),)})
    study = study_of(nothing)
    with pytest.raises(
        ConfigError, match=r"constraints: must leave room .* in a row broke one; most often constraints.0 \(method.alpha \+ method.beta >= 2.5\)"
    ):
        nothing.suggest(study.ask())


def test_a_point_is_told_as_it_is() -> None:
    search = search_of("tpe", points=[{"method.loss": "prototype", "method.loss.temperature": 0.25, "method.alpha": 0.5, "optimizer.batch_size": 3}])
    study = study_of(search)
    study.enqueue_trial(search.point_params(search.points[0]))
    trial = study.ask()
    assert search.suggest(trial) == {**search.points[0], "method.beta": Objective.beta}
    assert trial.params == search.point_params(search.points[0])


def test_auto_needs_its_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_of("auto")
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(ConfigError, match="sampler.kind: auto needs the package optunahub: pip install optunahub; or take tpe"):
        make_sampler(search, 0)
    hub = types.ModuleType("optunahub")

    def load_module(name: str) -> Any:
        raise OSError("no route\n  to host")

    hub.load_module = load_module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optunahub", hub)
    with pytest.raises(ConfigError, match="sampler.kind: auto is fetched by optunahub, but: OSError: no route to host; or take tpe"):
        make_sampler(search, 0)
    hub.load_module = lambda name: types.SimpleNamespace(AutoSampler=RandomSampler)  # type: ignore[attr-defined]
    assert len(run(study_of(search), search, 5, peak)) == 5
