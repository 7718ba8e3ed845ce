import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from imachsr.config.schema import ConfigError
from imachsr.search import database
from imachsr.search.database import FILE, URL_FILE
from imachsr.search.grid import ExhaustedError
from imachsr.search.space import Search, make_search
from imachsr.search.study import Proposal, Study

ALPHA_BETA = {"method.alpha": {"float": [0.0, 1.0]}, "method.beta": {"float": [0.0, 1.0]}}


def search_of(**parts: Any) -> Search:
    return make_search({"space": ALPHA_BETA, "budget": {"trials": 8}, **parts})


def proposed(study: Study) -> Proposal:
    offer = study.draw()
    return study.accept(offer, key=str(sorted(offer.proposal.values.items())))


def finish(study: Study, proposal: Proposal, value: float = 1.0) -> None:
    study.report(proposal.number, 1, value)
    study.end(proposal.number, "COMPLETE", values=[value], outcome={})


def run(study: Study, count: int) -> list[Proposal]:
    found = []
    for _ in range(count):
        found.append(proposed(study))
        finish(study, found[-1], value=float(found[-1].number))
    return found


def opened(folder: Path) -> optuna.Study:
    """As any Optuna tool opens it."""
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder / FILE}")


def folders(at: Path, *names: str) -> list[Path]:
    for name in names:
        (at / name).mkdir()
    return [at / name for name in names]


def test_arms_come_first_with_every_seed_then_the_points_then_the_sampler(tmp_path: Path) -> None:
    arms = [{"name": "output_only", "set": {"method.alpha": 0, "method.beta": 0}}, {"name": "dice", "set": {"method.loss": "dice"}}]
    points = [{"method.alpha": 0.25, "method.beta": 0.5}, {"method.alpha": 0.75, "method.beta": 0.125}]
    study = Study(tmp_path, search_of(arms=arms, seeds=[4, 2], points=points))
    found = run(study, 8)
    assert [proposal.number for proposal in found] == list(range(8))
    assert [(p.arm, p.seed) for p in found] == [("output_only", 4), ("output_only", 2), ("dice", 4), ("dice", 2), *[(None, 4)] * 4]
    assert [p.origin for p in found] == ["arm"] * 4 + ["point"] * 2 + ["sampled"] * 2
    assert found[0].values == {"method.alpha": 0, "method.beta": 0}
    assert found[2].values == {"method.loss": "dice"}
    assert [p.values for p in found[4:6]] == points
    trials = opened(tmp_path).trials
    # An arm may lie outside of the space: the sampler is not told where it is.
    assert [trial.params for trial in trials[:4]] == [{}] * 4
    assert [trial.params for trial in trials[4:]] == [p.values for p in found[4:]]


def test_a_search_of_arms_alone_has_nothing_to_draw_behind_them(tmp_path: Path) -> None:
    """An arm that turned out infeasible does not count; what would come in its place is no trial that anyone asked for."""
    study = Study(tmp_path, search_of(space={}, budget={"trials": 1}))
    run(study, 1)
    with pytest.raises(ExhaustedError, match="every arm has run"):
        study.draw()


def test_what_is_drawn_and_not_accepted_leaves_nothing(tmp_path: Path) -> None:
    study = Study(tmp_path, search_of(sampler={"startup_trials": 1}))
    run(study, 3)
    for _ in range(5):
        study.draw()
    assert len(opened(tmp_path).trials) == 3
    assert proposed(study).number == 3


@pytest.mark.parametrize("kind", ["tpe", "random", "gp", "cmaes", "nsga2"])
def test_a_trial_is_whole_in_the_storage_from_its_first_moment(tmp_path: Path, kind: str) -> None:
    study = Study(tmp_path, search_of(sampler={"kind": kind, "startup_trials": 2}))
    run(study, 4)
    seen = []

    def look(connection: Any) -> None:
        with sqlite3.connect(tmp_path / FILE) as other:
            params = "(SELECT count(*) FROM trial_params p WHERE p.trial_id = t.trial_id)"
            attrs = "(SELECT count(*) FROM trial_user_attributes a WHERE a.trial_id = t.trial_id AND a.key = 'proposal')"
            seen.append(other.execute(f"SELECT number, state, {params}, {attrs} FROM trials t ORDER BY number").fetchall())

    engine = study._study._storage._backend.engine  # type: ignore[attr-defined]
    database.sqlalchemy.event.listen(engine, "commit", look)  # called before a commit
    proposed(study)
    look(None)
    assert seen[-1][-1] == (4, "RUNNING", 2, 1)
    assert {len(rows) for rows in seen} == {4, 5}
    assert all(rows[4:] in ([], [(4, "RUNNING", 2, 1)]) for rows in seen)


@pytest.mark.parametrize("kind", ["tpe", "gp", "cmaes", "nsga2"])
def test_a_model_draws_as_it_does_for_optuna_itself(tmp_path: Path, kind: str) -> None:
    """Beside a study of Optuna's own, asked and told of the same."""
    from imachsr.search.samplers import make_sampler

    search = search_of(sampler={"kind": kind, "startup_trials": 3, **({"population": 5} if kind in ("cmaes", "nsga2") else {})})
    study = Study(tmp_path, search)
    finish(study, proposed(study))
    theirs = optuna.create_study(direction="maximize", sampler=make_sampler(search, 0))
    theirs.add_trial(create_trial(value=1.0, intermediate_values={1: 1.0}))
    for _ in range(14 if kind != "gp" else 6):
        mine, trial = proposed(study), theirs.ask()
        values = search.suggest(trial)
        assert mine.values == values
        value = -abs(values["method.alpha"] - 0.3) - values["method.beta"]
        finish(study, mine, value)
        trial.report(value, 1)
        theirs.tell(trial, value)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_seed_gives_the_same_proposals_and_another_one_others(tmp_path: Path, kind: str) -> None:
    def values(folder: Path, seed: int) -> list[dict[str, Any]]:
        return [p.values for p in run(Study(folder, search_of(sampler={"kind": kind, "seed": seed, "startup_trials": 2})), 8)]

    one, two, three = folders(tmp_path, "one", "two", "three")
    first = values(one, 0)
    assert first == values(two, 0)
    assert first[1:] != values(three, 1)[1:]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_study_opened_again_with_the_same_seed_repeats_no_proposal(tmp_path: Path, kind: str) -> None:
    search, seen = search_of(sampler={"kind": kind}), []
    for number in range(8):  # a driver that dies after every trial
        study = Study(tmp_path, search)
        assert len(study.records()) == number
        (proposal,) = run(study, 1)
        seen.append(tuple(sorted(proposal.values.items())))
    assert len(set(seen)) == 8


def test_how_trials_ended_is_what_any_optuna_tool_reads(tmp_path: Path) -> None:
    study = Study(tmp_path, search_of())
    complete, pruned, failed, infeasible, running = (proposed(study) for _ in range(5))
    for epoch, value in enumerate([10.0, 30.0, 20.0], 1):
        study.report(complete.number, epoch, value)
        study.report(complete.number, epoch, 99.0)  # a second report changes nothing
    study.end(complete.number, "COMPLETE", values=[20.0], outcome={"held_s": 1.5})
    study.report(pruned.number, 1, 5.0)
    study.report(pruned.number, 2, 7.0)
    study.end(pruned.number, "PRUNED", outcome={"why": "stopped"})
    study.report(failed.number, 1, 3.0)
    study.end(failed.number, "FAIL", outcome={"error": "it broke"})
    study.end(infeasible.number, "PRUNED", outcome={}, constraints={"memory_mib": 0.5})
    trials = opened(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL", "PRUNED", "RUNNING"]
    assert trials[0].value == 20.0  # the final epoch's, not the best one's
    assert trials[0].intermediate_values == {1: 10.0, 2: 30.0, 3: 20.0}
    assert trials[0].user_attrs["outcome"] == {"held_s": 1.5}
    assert trials[1].intermediate_values == {1: 5.0, 2: 7.0}
    assert trials[2].value is None
    assert trials[2].user_attrs["outcome"] == {"error": "it broke"}
    assert [trial.constraints for trial in trials] == [{}, {}, {}, {"memory_mib": 0.5}, {}]
    assert trials[4].params == running.values == trials[4].user_attrs["proposal"]["values"]


def test_several_objectives_are_told_at_the_end_and_make_a_front(tmp_path: Path) -> None:
    study = Study(tmp_path, search_of(also=[{"name": "time/step_ms", "mode": "min"}]))
    for values in ([50.0, 9.0], [60.0, 5.0], [40.0, 3.0], [30.0, 4.0]):
        proposal = proposed(study)
        study.report(proposal.number, 1, values[0])  # Optuna refuses it
        study.end(proposal.number, "COMPLETE", values=values, outcome={})
    stopped = proposed(study)
    study.end(stopped.number, "PRUNED", outcome={})
    found = opened(tmp_path)
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert sorted(trial.number for trial in found.best_trials) == [1, 2]
    assert found.trials[-1].state == TrialState.PRUNED
    assert [record.values for record in Study(tmp_path, study.search).records()] == [(50, 9), (60, 5), (40, 3), (30, 4), ()]


@pytest.mark.parametrize(("metric", "best"), [("select/miou", 7), ("select/loss", 0)])
def test_the_direction_is_the_metric_s(tmp_path: Path, metric: str, best: int) -> None:
    run(Study(tmp_path, search_of(metric={"name": metric})), 8)
    assert opened(tmp_path).best_trial.number == best


def test_a_trial_that_a_dead_driver_left_is_continued_under_its_number_and_values(tmp_path: Path) -> None:
    search = search_of()
    dead = Study(tmp_path, search)
    first, second = proposed(dead), proposed(dead)
    dead.report(second.number, 1, 5.0)
    alive = Study(tmp_path, search)
    records = alive.records()
    assert [record.proposal for record in records] == [first, second]
    assert [(record.state, record.curve) for record in records] == [("RUNNING", {}), ("RUNNING", {1: 5.0})]
    finish(alive, first)
    alive.report(second.number, 1, 9.0)  # known: the first one stands, and Optuna does not warn
    alive.report(second.number, 2, 6.0)
    alive.end(second.number, "COMPLETE", values=[6.0], outcome={})
    third = proposed(alive)
    assert (third.number, third.arm) == (2, None)
    assert opened(tmp_path).trials[1].intermediate_values == {1: 5.0, 2: 6.0}


def test_the_id_of_a_study_stays_and_is_its_own(tmp_path: Path) -> None:
    one, two = folders(tmp_path, "one", "two")
    first = Study(one, search_of()).uid
    assert first != Study(two, search_of()).uid
    assert Study(one, search_of()).uid == first


def infeasible(folder: Path, seed: int, *, is_told: bool) -> float:
    """Share of the later proposals that do not fit, where the best that fits lies at the edge; told with how far beyond they are, or as failures."""
    space = {"method.alpha": {"float": [0.0, 1.0]}}
    search = search_of(space=space, sampler={"startup_trials": 8, "seed": seed}, budget={"trials": 61})
    study, found = Study(folder, search), []
    finish(study, proposed(study), 0.0)
    for _ in range(60):
        proposal = proposed(study)
        alpha = proposal.values["method.alpha"]
        found.append(alpha > 0.5)
        if alpha <= 0.5:
            finish(study, proposal, alpha)
        elif is_told:
            study.end(proposal.number, "PRUNED", outcome={}, constraints={"memory_mib": alpha / 0.5 - 1})
        else:
            study.end(proposal.number, "FAIL", outcome={})
    return sum(found[20:]) / 40


@pytest.mark.long
def test_tpe_keeps_out_of_what_it_was_told_does_not_fit(tmp_path: Path) -> None:
    seeds = range(3)
    told = [infeasible(folder, seed, is_told=True) for seed, folder in zip(seeds, folders(tmp_path, "a", "b", "c"), strict=True)]
    failed = [infeasible(folder, seed, is_told=False) for seed, folder in zip(seeds, folders(tmp_path, "d", "e", "f"), strict=True)]
    assert np.mean(told) < 0.6
    assert np.mean(failed) > 0.85


@pytest.mark.long
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
    assert study.learn(known) == 50
    assert study.learn(known) == 0  # once
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
    assert [record.proposal.number for record in study.records()] == list(range(40))  # what was learnt is no trial of this search


def one_line(error: pytest.ExceptionInfo[ConfigError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert f"the study {path} must be usable, but" in text
    return text


def test_a_file_that_is_no_database_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all, but text" * 100)
    with pytest.raises(ConfigError) as error:
        Study(tmp_path, search_of())
    assert "file is not a database" in one_line(error, tmp_path / FILE)


def test_a_truncated_database_is_told_in_a_line(tmp_path: Path) -> None:
    study = Study(tmp_path, search_of())
    run(study, 8)
    study.close()
    path = tmp_path / FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError) as error:
        Study(tmp_path, search_of()).records()
    assert "malformed" in one_line(error, path)


def test_a_storage_of_another_version_is_told_in_a_line(tmp_path: Path) -> None:
    Study(tmp_path, search_of()).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(ConfigError) as error:
        Study(tmp_path, search_of())
    assert "does not read its version" in one_line(error, tmp_path / FILE)
    assert "optuna storage upgrade" in str(error.value)


def test_a_storage_that_another_process_holds_is_told_in_a_line_also_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCKED_S", 0.05)
    study = Study(tmp_path, search_of())
    (proposal,) = [proposed(study)]
    holder = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError) as middle:
        study.report(proposal.number, 1, 5.0)
    with pytest.raises(ConfigError) as start:
        Study(tmp_path, search_of())
    for error in (middle, start):
        assert "another process holds it locked; end that, and go on with --resume" in one_line(error, tmp_path / FILE)
    holder.execute("ROLLBACK")
    holder.close()
    study.report(proposal.number, 1, 5.0)
    assert opened(tmp_path).trials[0].intermediate_values == {1: 5.0}


def test_a_database_may_hold_the_studies_of_many_folders(tmp_path: Path) -> None:
    one, two = folders(tmp_path, "one", "two")
    url = f"sqlite:///{tmp_path / 'all.db'}"
    first, second = Study(one, search_of(), url=url), Study(two, search_of(), url=url)
    run(first, 3)
    run(second, 2)
    assert not (one / FILE).exists()
    assert len(Study(one, search_of(), url=url).records()) == 3
    assert len(Study(two, search_of(), url=url).records()) == 2
    assert len(optuna.get_all_study_names(url)) == 2
    with pytest.raises(ConfigError, match=f"the study of {one} is in a database: give --study with its URL, {url} with the password"):
        Study(one, search_of())
    with pytest.raises(ConfigError, match=r"--study must be the database that the search began in, .*all.db, but got .*other.db"):
        Study(one, search_of(), url=f"sqlite:///{tmp_path / 'other.db'}")
    in_folder = folders(tmp_path, "three")[0]
    Study(in_folder, search_of())
    with pytest.raises(ConfigError, match="the study of .*three is in .*study.sqlite3, but --study names .*all.db; leave it out"):
        Study(in_folder, search_of(), url=url)


def test_a_password_is_neither_written_nor_told_and_a_database_that_does_not_answer_leaves_the_folder_new(tmp_path: Path) -> None:
    url = "postgresql://me:secret-word@127.0.0.1:1/optuna"
    with pytest.raises(ConfigError) as error:
        Study(tmp_path, search_of(), url=url)
    assert "secret-word" not in str(error.value)
    assert "postgresql://me@127.0.0.1:1/optuna" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="--study must be a URL such as"):
        Study(tmp_path, search_of(), url="not a url, secret-word")


def test_the_password_of_a_database_that_answers_is_not_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Any database will do: what is looked at is what the folder keeps of its URL.
    monkeypatch.setattr(database, "_storage", lambda folder, url: optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'db'}"))
    (folder,) = folders(tmp_path, "result")
    url = "postgresql://me:secret-word@host:5432/optuna?sslpassword=secret-word&sslmode=require"
    run(Study(folder, search_of(), url=url), 1)
    assert (folder / URL_FILE).read_text().startswith("postgresql://me@host:5432/optuna?sslmode=require search-")
    assert all(b"secret-word" not in path.read_bytes() for path in folder.iterdir())
    assert len(Study(folder, search_of(), url=url).records()) == 1


def test_a_study_that_is_only_read_is_not_changed(tmp_path: Path) -> None:
    study = Study(tmp_path, search_of())
    run(study, 2)
    proposed(study)
    study.close()
    before = (tmp_path / FILE).read_bytes()
    looking = Study(tmp_path, search_of(), read_only=True)
    assert [record.state for record in looking.records()] == ["COMPLETE", "COMPLETE", "RUNNING"]
    looking.close()
    assert (tmp_path / FILE).read_bytes() == before
    (tmp_path / FILE).unlink()
    with pytest.raises(ConfigError, match="must hold a study 'search', but holds none"):
        Study(tmp_path, search_of(), read_only=True)
