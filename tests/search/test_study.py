from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from imachsr.search.space import Search, make_search
from imachsr.search.study import FILE, Proposal, Study

ALPHA_BETA = {"method.alpha": {"float": [0.0, 1.0]}, "method.beta": {"float": [0.0, 1.0]}}


def search_of(**parts: Any) -> Search:
    return make_search({"space": ALPHA_BETA, "budget": {"trials": 8}, **parts})


def finish(study: Study, proposal: Proposal, value: float = 1.0) -> None:
    study.report(proposal.number, 1, value)
    study.end(proposal.number, "COMPLETE", value=value, note={})


def proposed(study: Study) -> Proposal:
    proposal = study.propose()
    assert proposal is not None
    return proposal


def all_proposals(study: Study) -> list[Proposal]:
    found = []
    while (proposal := study.propose()) is not None:
        found.append(proposal)
        finish(study, proposal, value=float(proposal.number))
    return found


def opened(folder: Path) -> optuna.Study:
    """As any Optuna tool opens it."""
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder / FILE}")


def test_arms_come_first_with_every_seed_and_trial_0_is_the_baseline(tmp_path: Path) -> None:
    arms = [{"name": "output_only", "set": {"method.alpha": 0, "method.beta": 0}}, {"name": "dice", "set": {"method.loss": "dice"}}]
    search = search_of(arms=arms, seeds=[4, 2])
    found = all_proposals(Study(tmp_path, search))
    assert [proposal.number for proposal in found] == list(range(8))
    assert [(p.arm, p.seed) for p in found] == [("output_only", 4), ("output_only", 2), ("dice", 4), ("dice", 2), *[(None, 4)] * 4]
    assert found[0].values == {"method.alpha": 0, "method.beta": 0}
    assert found[2].values == {"method.loss": "dice"}
    assert all(p.values.keys() == ALPHA_BETA.keys() for p in found[4:])


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_seed_gives_the_same_proposals_and_another_one_others(tmp_path: Path, kind: str) -> None:
    def values(name: str, seed: int) -> list[dict[str, Any]]:
        (tmp_path / name).mkdir()
        return [p.values for p in all_proposals(Study(tmp_path / name, search_of(sampler={"kind": kind, "seed": seed, "startup_trials": 2})))]

    assert values("one", 0) == values("two", 0)
    assert values("three", 1)[1:] != values("four", 0)[1:]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_study_opened_again_with_the_same_seed_repeats_no_proposal(tmp_path: Path, kind: str) -> None:
    search, seen = search_of(sampler={"kind": kind}), []
    for _ in range(8):  # a driver that dies after every trial
        study = Study(tmp_path, search)
        proposal = proposed(study)
        finish(study, proposal)
        seen.append(tuple(sorted(proposal.values.items())))
    assert Study(tmp_path, search).propose() is None
    assert len(set(seen)) == 8


def test_how_trials_ended_is_what_any_optuna_tool_reads(tmp_path: Path) -> None:
    study = Study(tmp_path, search_of())
    complete, pruned, failed, running = (proposed(study) for _ in range(4))
    for epoch, value in enumerate([10.0, 30.0, 20.0], 1):
        study.report(complete.number, epoch, value)
        study.report(complete.number, epoch, 99.0)  # a second report changes nothing
    study.end(complete.number, "COMPLETE", value=20.0, note={"wall_s": 1.5})
    study.report(pruned.number, 1, 5.0)
    study.report(pruned.number, 2, 7.0)
    study.end(pruned.number, "PRUNED", value=7.0, note={})
    study.report(failed.number, 1, 3.0)
    study.end(failed.number, "FAIL", value=3.0, note={"error": "it broke"})
    trials = opened(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert trials[0].value == 20.0  # the final epoch's, not the best one's
    assert trials[0].intermediate_values == {1: 10.0, 2: 30.0, 3: 20.0}
    assert trials[0].user_attrs["wall_s"] == 1.5
    assert trials[1].intermediate_values == {1: 5.0, 2: 7.0}
    assert trials[2].value is None
    assert trials[2].user_attrs["error"] == "it broke"
    assert trials[3].params == running.values == trials[3].user_attrs["values"]


@pytest.mark.parametrize(("mode", "best"), [("max", 7), ("min", 0)])
def test_the_direction_is_the_metric_s(tmp_path: Path, mode: str, best: int) -> None:
    all_proposals(Study(tmp_path, search_of(metric={"mode": mode})))
    assert opened(tmp_path).best_trial.number == best


def test_a_trial_that_a_dead_driver_left_is_continued_under_its_number_and_values(tmp_path: Path) -> None:
    search = search_of()
    dead = Study(tmp_path, search)
    first, second = proposed(dead), proposed(dead)
    dead.report(second.number, 1, 5.0)
    alive = Study(tmp_path, search)
    assert alive.unfinished() == [first, second]
    assert alive.unfinished() == []  # once
    finish(alive, first)
    alive.report(second.number, 2, 6.0)
    alive.end(second.number, "COMPLETE", value=6.0, note={})
    third = proposed(alive)
    assert third.number == 2
    assert third.arm is None
    assert opened(tmp_path).trials[1].intermediate_values == {1: 5.0, 2: 6.0}


@pytest.mark.parametrize("finished", [0, 3])
def test_a_trial_whose_driver_died_before_recording_what_it_runs_is_filled_in(tmp_path: Path, finished: int) -> None:
    search = search_of()
    dead = Study(tmp_path, search)
    for _ in range(finished):
        finish(dead, proposed(dead))
    opened(tmp_path).ask()  # what is on disk when it dies right after asking
    alive = Study(tmp_path, search)
    (found,) = alive.unfinished()
    assert found.number == finished
    assert (found.arm == "baseline") == (finished == 0)  # so trial 0 is the baseline all the same
    finish(alive, found)
    rest = all_proposals(alive)
    assert [p.number for p in rest] == list(range(finished + 1, 8))
    assert all(p.arm is None for p in rest)
    assert all(trial.state == TrialState.COMPLETE for trial in opened(tmp_path).trials)


def test_the_id_of_a_study_stays_and_is_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = Study(tmp_path / "one", search_of()).uid, Study(tmp_path / "two", search_of()).uid
    assert one != two
    assert Study(tmp_path / "one", search_of()).uid == one


def test_tpe_models_conditional_settings_jointly(tmp_path: Path) -> None:
    # Good where alpha = beta, inside one branch: neither alone says anything, and only a joint (multivariate) model
    # that knows of branches (group) can follow the diagonal.
    space = {
        "method.entropy": {"choice": ["channel", "channel_norm"]},
        "method.alpha": {"float": [0.0, 1.0], "when": {"method.entropy": "channel"}},
        "method.beta": {"float": [0.0, 1.0], "when": {"method.entropy": "channel"}},
    }
    study = Study(tmp_path, make_search({"space": space, "sampler": {"startup_trials": 10}, "budget": {"trials": 100}}))
    generator = np.random.default_rng(0)
    unit = FloatDistribution(0.0, 1.0)
    kinds = {"method.entropy": CategoricalDistribution(["channel", "channel_norm"])}
    known = []
    for alpha, beta in generator.random((40, 2)).tolist():
        inside = {"method.entropy": "channel", "method.alpha": alpha, "method.beta": beta}
        known.append(create_trial(params=inside, distributions={**kinds, "method.alpha": unit, "method.beta": unit}, value=-abs(alpha - beta)))
    known += [create_trial(params={"method.entropy": "channel_norm"}, distributions=kinds, value=-1.0)] * 10
    opened(tmp_path).add_trials(known)
    points = []
    for _ in range(40):
        proposal = proposed(study)
        values = proposal.values
        inside = proposal.arm is None and values["method.entropy"] == "channel"
        finish(study, proposal, -abs(values["method.alpha"] - values["method.beta"]) if inside else -1.0)
        if inside:
            points.append((values["method.alpha"], values["method.beta"]))
    assert len(points) > 20
    assert np.corrcoef(np.array(points).T)[0, 1] > 0.5
