"""What a study's folder keeps, and what of a training that was broken off is gone on with."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imachsr.config.continued import changed
from imachsr.config.load import run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.study.document import document
from imachsr.study.driver import Held, fingerprints, rehearse
from imachsr.study.findings import find
from imachsr.study.folder import Study, holds
from imachsr.study.plan import scoring_key, wanted
from imachsr.study.rows import FILE, Known, read
from imachsr.study.schema import StudyPlan
from imachsr.study.task import run_to_row
from imachsr.train import checkpoint
from tests.study.rows import RAW, row, study

TINY = {"data": {"kind": "scenes", "size": [32, 32], "num_train": 4, "num_val": 2}, "optimizer": {"epochs": 1, "batch_size": 2}}
NOTHING: dict[str, Any] = {"corruptions": None, "also_on": {}}


def config(**further: Any) -> dict[str, Any]:
    plan = study(run=TINY)
    return run_to_dict(plan.run_of(plan.cell("small"), "output_only", 0, further))


def begun(folder: Path, plan: StudyPlan) -> None:
    """A folder in which a run of the study has ended."""
    with Study(plan=plan, folder=folder) as held:
        each = held.todo()[0]
        assert held.note(each, {"scores": {"val/miou": 40.0}, "epochs": 1}, "data") is not None


def test_a_row_says_how_it_was_scored_and_the_checkpoint_goes_once_it_is_there(tmp_path: Path) -> None:
    plan = study(run=TINY)
    with Study(plan=plan, folder=tmp_path / "s") as held:
        each = held.todo()[0]
        given = run_to_row(run_to_dict(each.run), str(held.output(each)), "data", NOTHING)  # type: ignore[arg-type]
        assert checkpoint.exists(held.output(each)), "a driver that dies now finds what was trained"
        held.note(each, given, "data")
        assert not checkpoint.exists(held.output(each))
    assert len(read(tmp_path / "s" / FILE)[0].facts["scoring"]) == 16


def test_checkpoints_that_a_killed_driver_left_beside_a_row_go_when_the_folder_is_opened_again(tmp_path: Path) -> None:
    plan = study(run=TINY)
    with Study(plan=plan, folder=tmp_path / "s") as held:
        ended, running = held.todo()[:2]
        given = run_to_row(run_to_dict(ended.run), str(held.output(ended)), "data", NOTHING)  # type: ignore[arg-type]
        shutil.copytree(held.output(ended), tmp_path / "left")
        held.note(ended, given, "data")
    shutil.copytree(tmp_path / "left", held.output(ended), dirs_exist_ok=True)  # as if it had died between the row and their removal
    shutil.copytree(tmp_path / "left", held.output(running))
    with Study(plan=plan, folder=tmp_path / "s"):
        assert not checkpoint.exists(held.output(ended))
        assert checkpoint.exists(held.output(running)), "what has no row goes on from there"


@pytest.mark.long
def test_what_was_begun_goes_on_unless_its_data_or_settings_are_others(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run_to_row(config(), str(folder), "one", NOTHING)
    (folder / "mark").touch()
    again = run_to_row(config(), str(folder), "one", NOTHING)
    assert again["scores"]["val/miou"] == first["scores"]["val/miou"]
    assert (folder / "mark").exists(), "it was trained already"
    for further, data in (({}, "two"), ({"method.loss": "dice"}, "two")):
        found = run_to_row(config(**further), str(folder), data, NOTHING)
        assert "error" not in found
        assert found["scores"]["val/miou"] == first["scores"]["val/miou"]
        assert not (folder / "mark").exists()
        (folder / "mark").touch()


def test_data_that_were_moved_are_the_same_settings() -> None:
    def at(root: str, **further: Any) -> dict[str, Any]:
        return {"data": {"kind": "folder", "root": root, **further}, "seed": 1, "name": root}

    assert changed(at("here"), at("there", cache=False)) == []
    assert changed(at("here"), {**at("there"), "seed": 2}) == ["seed"]
    assert changed(at("here"), at("here", size=[32, 32])) == ["data"]
    mine = [{"data": {"kind": "import", "path": "a:b", "kwargs": {"root": root, "fold": 1}}} for root in ("here", "there")]
    assert changed(*mine) == []
    assert changed(mine[0], {"data": {**mine[0]["data"], "kwargs": {"root": "here", "fold": 2}}}) == ["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"primary": {"cell": "large", "arm": "full"}},
            "primary: must stay what it was before a run had ended, cell small, arm full, but got cell large, arm full",
        ),
        ({"metric": "val/ece"}, "metric: must stay what it was before a run had ended, val/miou, but got val/ece; give another --output"),
        ({"corruptions": {"severities": [3]}}, "corruptions and also_on: must be those with which the rows that are there were scored"),
    ],
)
def test_what_is_declared_is_not_changed_after_results(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    begun(tmp_path / "s", study(run=TINY))
    before = (tmp_path / "s/study.yaml").read_text()
    with pytest.raises(ConfigError, match=message), Study(plan=study(run=TINY, **changes), folder=tmp_path / "s"):
        pass
    assert (tmp_path / "s/study.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrasts": []}, "comparisons may be added once a run has ended, not taken away, but full against homogeneous in small is gone"),
        ({"cells": [{**RAW["cells"][0], "family": "other"}, RAW["cells"][1]]}, "cells.0.family: must stay what it was before a run had ended, all"),
        (
            {"seeds": [1, 2, 3]},
            "runs that have ended must stay a part of the study, but 1 is none of it any more, such as small, output_only",
        ),
        ({"run": {**TINY, "optimizer": {"epochs": 2, "batch_size": 2}}}, "runs that have ended must stay a part of the study"),
    ],
)
def test_nothing_that_has_results_is_taken_away_in_its_folder(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    begun(tmp_path / "s", study(run=TINY))
    with pytest.raises(ConfigError, match=message), Study(plan=study(**{"run": TINY, **changes}), folder=tmp_path / "s"):
        pass
    with Study(plan=study(**{"run": TINY, **changes}), folder=tmp_path / "elsewhere", published=read(tmp_path / "s" / FILE)) as held:
        assert held.told()
        dropped = find(held.plan, held.known).strangers
        assert bool(dropped) == ("stay a part" in message), "what is left out is told"
        assert ("is not of this study as it stands, and counted nowhere: small, output_only (0)" in document(find(held.plan, held.known))) == bool(
            dropped
        )


def exchanged(arms: list[dict[str, Any]], one: int, other: int) -> list[dict[str, Any]]:
    """Arms of which two have one another's settings."""
    found = [dict(arm) for arm in arms]
    found[one]["set"], found[other]["set"] = arms[other]["set"], arms[one]["set"]
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": exchanged(RAW["arms"], 1, 2)}, "primary: must stay what it was .*, cell small, arm full, but got cell small, arm full with other"),
        ({"arms": exchanged(RAW["arms"], 0, 1)}, "primary: must stay what it was before a run had ended"),
        ({"arms": exchanged(RAW["arms"], 0, 1), "primary": None}, "comparisons may be added .* but homogeneous against output_only in small is gone"),
        ({"arms": [RAW["arms"][1], RAW["arms"][0], RAW["arms"][2]], "contrasts": [], "cells": [{"name": "small"}]}, "primary: must stay"),
        (
            {"arms": [RAW["arms"][1], RAW["arms"][0], RAW["arms"][2]], "contrasts": [], "cells": [{"name": "small"}], "primary": None},
            "homogeneous against output_only in small is gone",
        ),
        ({"cells": RAW["cells"][:1]}, "comparisons may be added once a run has ended, not taken away, but full against output_only in large is gone"),
        ({"cells": [RAW["cells"][0], {**RAW["cells"][1], "set": {"optimizer.lr": 4e-3}}]}, ""),
        ({"arms": [*RAW["arms"], {"name": "more", "set": {"method.loss": "dice"}}]}, ""),
        (
            {"arms": [*RAW["arms"][:2], {**RAW["arms"][2], "name": "whole"}], "contrasts": [["whole", "homogeneous"]]}
            | {"primary": {"cell": "small", "arm": "whole"}, "cells": [RAW["cells"][0], {**RAW["cells"][1], "arms": ["output_only", "whole"]}]},
            "",
        ),
    ],
)
def test_what_was_said_stays_by_its_settings_whatever_it_is_called(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    plan = study(run=TINY)
    with Study(plan=plan, folder=tmp_path / "s") as held:
        for each in [each for each in held.todo() if each.cell == "small"][:3]:
            held.note(each, {"scores": {"val/miou": 40.0}, "epochs": 1}, "data")
    if not message:
        with Study(plan=study(run=TINY, **changes), folder=tmp_path / "s") as held:
            assert len(held.own) == 3
        return
    with pytest.raises(ConfigError, match=message), Study(plan=study(run=TINY, **changes), folder=tmp_path / "s"):
        pass


def test_what_failed_is_no_result_that_must_stay(tmp_path: Path) -> None:
    with Study(plan=study(run=TINY), folder=tmp_path / "s") as held:
        first, second = held.todo()[:2]
        held.note(first, {"error": "no such thing"}, "data")
        held.note(second, {"error": "no such thing"}, "data")
    mended = study(run={**TINY, "optimizer": {"epochs": 2, "batch_size": 2}}, primary=None, metric="val/ece")
    with Study(plan=mended, folder=tmp_path / "s") as held:
        assert held.told() == ["2 failed runs are forgotten, whose settings the study has no more"]
        assert not held.own
        held.note(held.todo()[0], {"error": "again"}, "data")
    with Study(plan=mended, folder=tmp_path / "s") as held:
        assert [row.error for row in held.own] == ["again"]


def test_the_declared_comparison_may_be_mended_until_both_of_its_arms_have_results(tmp_path: Path) -> None:
    def ended(held: Study, arm: str, given: dict[str, Any]) -> None:
        held.note(next(each for each in held.todo() if (each.cell, each.arm) == ("small", arm)), given, "data")

    finished = {"scores": {"val/miou": 40.0}, "epochs": 1}
    with Study(plan=study(run=TINY), folder=tmp_path / "s") as held:
        ended(held, "output_only", finished)
        ended(held, "full", {"error": "not finite"})
    mended = study(run=TINY, arms=[*RAW["arms"][:2], {"name": "full", "set": {"method.loss": "dice"}}])
    with Study(plan=mended, folder=tmp_path / "s") as held:
        assert len(held.own) == 1
        ended(held, "full", finished)
    with pytest.raises(ConfigError, match="runs that have ended must stay a part"), Study(plan=study(run=TINY), folder=tmp_path / "s"):
        pass


def test_what_failed_and_is_left_out_is_not_forgotten(tmp_path: Path) -> None:
    with Study(plan=study(run=TINY), folder=tmp_path / "s") as held:
        each = next(each for each in held.todo() if each.seed == 7)
        held.note(each, {"error": "no"}, "data")
    fewer = study(run=TINY, seeds=list(range(7)))
    with Study(plan=fewer, folder=tmp_path / "s") as held:
        assert [row.seed for row in held.own] == [7]
        assert "1 run that has ended is not of this study as it stands" in document(find(fewer, held.known))


def test_rows_of_elsewhere_are_counted_whenever_they_come_and_while_they_stand(tmp_path: Path) -> None:
    plan = study(run=TINY)
    begun(tmp_path / "s", plan)
    rows = [row(plan, "small", "full", seed, 40.0) for seed in (5, 6)] + [replace(row(plan, "small", "full", 7, 0.0), state="failed", scores={})]
    for count in (2, 3):
        with Study(plan=plan, folder=tmp_path / "s", published=rows[:count]) as held:
            assert held.provisos()[0].startswith(f"{count} rows were made elsewhere")
    with Study(plan=plan, folder=tmp_path / "s") as held:
        assert held.forget_failed() == 1
        held.note(
            next(each for each in held.todo() if (each.cell, each.arm, each.seed) == ("small", "full", 7)), {"scores": {"val/miou": 1.0}}, "data"
        )
        assert held.provisos()[0].startswith("2 rows were made elsewhere")


def test_a_folder_in_which_a_user_keeps_a_study_s_file_is_not_a_study_s(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("# mine\nname: toy\n")
    with pytest.raises(ConfigError, match=r"must be a new folder, but holds study\.yaml"), Study(plan=study(run=TINY), folder=tmp_path):
        pass
    assert not holds(tmp_path, "toy")
    assert (tmp_path / "study.yaml").read_text() == "# mine\nname: toy\n"
    begun(tmp_path / "s", study(run=TINY))
    assert holds(tmp_path / "s", "toy")
    assert not holds(tmp_path / "s", "other")


def test_only_what_is_run_is_tried_again(tmp_path: Path) -> None:
    plan = study(run=TINY)
    with Study(plan=plan, folder=tmp_path / "s") as held:
        for cell in ("small", "large"):
            held.note(next(each for each in held.todo() if each.cell == cell), {"error": "no"}, "data")
    with Study(plan=plan, folder=tmp_path / "s", only=["large"]) as held:
        assert held.forget_failed() == 1
        assert [row.cell for row in held.own] == ["small"]


@pytest.mark.long
def test_a_net_that_cannot_be_built_is_told_before_anything_runs() -> None:
    said: list[str] = []
    wrong = study(run={**TINY, "model": {"architecture": "unet", "encoder": "resnet999", "encoder_weights": None}})
    with pytest.raises(ConfigError, match=r"small, output_only: .*resnet999"):
        rehearse(wanted(wrong, Known()), [], Held(), said.append)
    layer = [*RAW["arms"][:2], {"name": "full", "set": {"method.standard": {"kind": "explicit", "layers": ["nowhere.3"]}}}]
    with pytest.raises(ConfigError, match=r"small, full: .*nowhere\.3"):
        rehearse(wanted(study(run=TINY, arms=layer), Known()), [], Held(), said.append)
    every = wanted(study(run=TINY, arms=layer), Known())
    said.clear()
    # `large` has another rate alone, so that its nets are those of `small`.
    rehearse([each for each in every if each.arm != "full"], [each for each in every if each.arm == "full"], Held(), said.append)
    assert said == ["building each of 2 nets once, since a mistake is better known before the first run"]
    rehearse(every, [each for each in every if each.arm == "full" and each.cell == "large"], Held(), said.append)


def test_rows_from_elsewhere_become_rows_of_the_folder(tmp_path: Path) -> None:
    plan = study(run=TINY)
    rows = [row(plan, "small", "full", 0, 40.0), replace(row(plan, "small", "full", 1, 41.0), key="of another study")]
    with Study(plan=plan, folder=tmp_path / "s", published=rows) as held:
        assert held.told()[0] == "1 of the 2 rows that were given are of this study"
        told = "1 row was made elsewhere: that `primary` was declared before is the word of the study's file alone"
        assert held.told()[1:] == held.provisos() == [told]
    assert read(tmp_path / "s" / FILE) == rows[:1]
    with Study(plan=plan, folder=tmp_path / "s") as held:
        assert len(held.todo()) == 8 * 5 - 1
        assert held.told() == held.provisos() == [told], "it stays true"
        assert f"\n* {told}.\n" in document(find(held.plan, held.known), provisos=held.provisos())
    other = study(run=TINY, primary={"cell": "small", "arm": "homogeneous"})
    with pytest.raises(ConfigError, match="primary: must stay what it was"), Study(plan=other, folder=tmp_path / "s"):
        pass


def test_what_was_trained_and_could_not_be_scored_is_not_trained_again(tmp_path: Path) -> None:
    plan = study(run=TINY)
    with Study(plan=plan, folder=tmp_path / "s") as held:
        each = held.todo()[0]
        config = run_to_dict(each.run)  # type: ignore[arg-type]
        gone = {"corruptions": None, "also_on": {"there": {"data.kind": "camvid", "data.root": str(tmp_path / "none")}}}
        assert "error" in (given := run_to_row(config, str(held.output(each)), "data", gone))
        held.note(each, given, "data")
        assert checkpoint.exists(held.output(each))
        assert held.forget_failed() == 1
        (held.output(each) / "mark").touch()
        held.note(each, run_to_row(config, str(held.output(each)), "data", NOTHING), "data")
        assert (held.output(each) / "mark").exists()
        assert not checkpoint.exists(held.output(each))
    assert [each.state for each in read(tmp_path / "s" / FILE)] == ["finished"]


def test_further_data_are_looked_at_before_anything_is_trained(tmp_path: Path) -> None:
    run = study(run=TINY).run_of(study(run=TINY).cells[0], "full", 0)
    with pytest.raises(ConfigError, match="also_on.there: .*none"):
        fingerprints([("k", run)], {"there": {"data.kind": "camvid", "data.root": str(tmp_path / "none")}})
    letters = {"data": {"kind": "folder", "root": str(tmp_path), "class_names": ["alpha", "beta"]}}
    with pytest.raises(ConfigError, match="also_on.letters: the data must have the .* classes that the model was trained for"):
        fingerprints([("k", run)], {"letters": letters})
    plain, further = fingerprints([("k", run)], {}), [fingerprints([("k", run)], {"n": {"data.domain": d}})["k"] for d in ("shifted", "day")]
    assert len({plain["k"], *further}) == 3, "their content is a part of what a row is of"


def test_further_data_may_be_moved() -> None:
    at = [study(run=TINY, also_on={"cv": {"data.kind": "camvid", "data.root": root}}) for root in ("here", "there")]
    assert scoring_key(at[0]) == scoring_key(at[1])
    assert scoring_key(at[0]) != scoring_key(study(run=TINY, also_on={"cv": {"data.kind": "camvid", "data.root": "here", "data.size": [32, 32]}}))


def test_a_declaration_can_be_taken_back_and_not_made_again(tmp_path: Path) -> None:
    begun(tmp_path / "s", study(run=TINY))
    with Study(plan=study(run=TINY, primary=None), folder=tmp_path / "s"):
        pass
    with (
        pytest.raises(ConfigError, match="primary: must stay what it was before a run had ended, none"),
        Study(plan=study(run=TINY), folder=tmp_path / "s"),
    ):
        pass


def test_cells_and_seeds_may_be_added(tmp_path: Path) -> None:
    begun(tmp_path / "s", study(run=TINY))
    more = study(run=TINY, cells=[*RAW["cells"], {"name": "third", "set": {"optimizer.epochs": 2}}], seeds=list(range(9)))
    with Study(plan=more, folder=tmp_path / "s") as held:
        assert len(held.todo()) == 9 * 8 - 1


def test_seeds_of_what_was_judged_stay(tmp_path: Path) -> None:
    plan = study(run=TINY, contrasts=[])
    with Study(plan=plan, folder=tmp_path / "s") as held:
        for each in held.todo():
            if each.cell == "large":
                held.note(each, {"scores": {"val/miou": 40.0}, "epochs": 1}, "data")
    with (
        pytest.raises(ConfigError, match=r"cells.1.seeds: must stay .* wins of chance, but for full against output_only in large 2 are added to 8"),
        Study(plan=study(run=TINY, contrasts=[], seeds=list(range(10))), folder=tmp_path / "s"),
    ):
        pass
    # The other cell is not judged yet.
    cells = [RAW["cells"][0] | {"seeds": list(range(10))}, RAW["cells"][1]]
    with Study(plan=study(run=TINY, contrasts=[], cells=cells), folder=tmp_path / "s") as held:
        assert len(held.todo()) == 10 * 3


def test_rows_of_other_data_are_refused_before_anything_runs(tmp_path: Path) -> None:
    plan = study(run=TINY)
    rows = [replace(row(plan, "small", arm, 0, 40.0), data=arm) for arm in ("output_only", "full")]
    with pytest.raises(ConfigError, match="must be of the same data"), Study(plan=plan, folder=tmp_path / "s", published=rows):
        pass
    assert Known(rows)
