"""What the rows say, against statistics computed another way."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from imachsr.config.schema import ConfigError
from imachsr.search.paired import wilcoxon
from imachsr.search.space.rules import is_higher_better
from imachsr.study.comparisons import pairs_of
from imachsr.study.document import document, table, words
from imachsr.study.findings import find
from imachsr.study.pairings import false_rate
from imachsr.study.plan import scoring_key
from imachsr.study.plots import _differences, plot
from imachsr.study.rows import DIGITS, Known, read, write
from imachsr.tracking.events import finite
from tests.study.rows import RAW, filled, row, study

GAIN = {"output_only": 0.0, "homogeneous": 0.3, "full": 1.5}


def value(cell: str, arm: str, seed: int) -> float:
    noise = np.random.default_rng([seed, *arm.encode(), *cell.encode()]).normal()
    return round(40 + seed + GAIN[arm] + 0.2 * float(noise), DIGITS)


def exact_p(differences: list[float]) -> float:
    """All sign patterns, one by one."""
    seen = abs(sum(differences))
    sums = [abs(sum(sign * each for sign, each in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=len(differences))]
    return sum(each >= seen - 1e-9 for each in sums) / len(sums)


def test_comparisons_are_paired_tested_and_adjusted() -> None:
    plan = study()
    found = find(plan, filled(plan, value))
    by = {(each.cell, each.arm, each.other): each for each in found.comparisons}
    assert set(by) == {
        ("small", "homogeneous", "output_only"),
        ("small", "full", "output_only"),
        ("small", "full", "homogeneous"),
        ("large", "full", "output_only"),
    }
    for (cell, arm, other), each in by.items():
        differences = [value(cell, arm, seed) - value(cell, other, seed) for seed in range(8)]
        assert list(each.differences.values()) == pytest.approx(differences)
        assert each.difference == pytest.approx(math.fsum(differences) / 8)
        assert each.relative == pytest.approx(100 * each.difference / np.mean([value(cell, other, seed) for seed in range(8)]))
        assert each.p == pytest.approx(exact_p(differences))
        assert each.p_wilcoxon == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
        assert each.interval is not None
        assert each.interval[0] < each.difference < each.interval[1]
    family = sorted((each for each in by.values() if not each.is_primary), key=lambda each: each.p or 1)
    assert len(family) == 3
    largest = 0.0
    for rank, each in enumerate(family):
        largest = max(largest, min(1.0, (3 - rank) * each.p))  # type: ignore[operator]
        assert each.p_holm == pytest.approx(largest)
    primary = by[("small", "full", "output_only")]
    assert primary.is_primary
    assert primary.p_holm == primary.p == pytest.approx(2 / 2**8)
    assert primary.verdict == "better"
    assert found.families == ({"name": "all", "comparisons": 3, "smallest": pytest.approx(3 * 2 / 2**8)},)
    assert (found.done, found.total) == (40, 40)


def test_each_family_is_adjusted_by_itself() -> None:
    cells = [{"name": "small"}, {"name": "large", "set": {"optimizer.lr": 3e-3}, "arms": ["output_only", "full"], "family": "size"}]
    plan = study(cells=cells)
    found = find(plan, filled(plan, value))
    assert [(each["name"], each["comparisons"], each["smallest"]) for each in found.families] == [("all", 2, 2 * 2 / 2**8), ("size", 1, 2 / 2**8)]
    alone = next(each for each in found.comparisons if each.cell == "large")
    assert alone.p_holm == alone.p
    others = sorted((each.p, each.p_holm) for each in found.comparisons if each.cell == "small" and not each.is_primary)
    assert others[0][1] == pytest.approx(min(1.0, 2 * (others[0][0] or 1)))
    text = document(found)
    assert "smallest adjusted p that their seeds allow: all 2, 0.016; size 1, 0.0078." in text
    ps = sorted(each.p or 1 for each in found.comparisons if not each.is_primary)
    kept = next((index for index, p in enumerate(ps) if (3 - index) * p >= 0.05), 3)
    judged = sum(each.verdict == "better" for each in found.comparisons if not each.is_primary)
    assert f"One adjustment over all 3 comparisons of all families would leave {kept} of the {judged} that are better or worse." in text


def test_verdicts_of_many_families_may_not_stand_one_adjustment_over_all() -> None:
    cells = [
        {"name": f"c{each}", "set": {"optimizer.lr": 1e-3 * (each + 1)}, "arms": ["output_only", "full"], "family": f"f{each}"} for each in range(7)
    ]
    plan = study(cells=cells, arms=[RAW["arms"][0], RAW["arms"][2]], primary=None, contrasts=[])
    found = find(plan, filled(plan, lambda cell, arm, seed: 40 + 0.1 * seed + (arm == "full") * (1 + 0.01 * seed)))
    assert {each.verdict for each in found.comparisons} == {"better"}
    (line,) = [line for line in document(found).splitlines() if "One adjustment" in line]
    assert "over all 7 comparisons of all families would leave 0 of the 7 that are better or worse; with these seeds it could leave none" in line
    assert line.endswith("since no adjusted p would be below 0.055.")


def test_less_of_an_error_is_better() -> None:
    plan = study(metric="val/ece")
    rows = [
        row(plan, cell.name, arm, seed, 0.0, val__ece=10 - GAIN[arm] + 0.01 * seed)
        for cell in plan.cells
        for arm in plan.arms_of(cell)
        for seed in range(8)
    ]
    found = find(plan, Known(rows))
    assert {each.verdict for each in found.comparisons if each.arm == "full"} == {"better"}
    assert all(each.difference < 0 for each in found.comparisons if each.difference is not None)


def test_nothing_is_judged_before_all_its_runs_have_ended_and_it_counts_in_the_family() -> None:
    plan = study()
    whole = filled(plan, value).all()
    found = find(plan, Known(each for each in whole if not (each.cell == "large" and each.seed == 7 and each.arm == "full")))
    part = next(each for each in found.comparisons if each.cell == "large")
    assert (part.verdict, part.p, part.missing, part.pairs) == ("incomplete", None, (7,), 7)
    rest = [each for each in found.comparisons if not each.is_primary and each is not part]
    whole_rest = [each for each in find(plan, Known(whole)).comparisons if not each.is_primary and each.cell == "small"]
    assert [each.p_holm for each in rest] == [each.p_holm for each in whole_rest]
    assert found.done == 39
    assert words(found)[0] == "39 of 40 runs have ended: what follows is not complete."


def test_a_run_that_failed_is_not_left_out() -> None:
    plan = study()
    rows = [each for each in filled(plan, value).all() if not (each.cell == "small" and each.seed == 3 and each.arm == "full")]
    gone = row(plan, "small", "full", 3, 0.0)
    broken = Known([*rows, type(gone)(cell="small", arm="full", seed=3, key=gone.key, state="failed", error="FloatingPointError: loss")])
    found = find(plan, broken)
    assert [(each.verdict, each.p) for each in found.comparisons if each.cell == "small" and each.arm == "full"] == [("failed", None)] * 2
    assert any("full failed in small with seed 3: FloatingPointError: loss" in line for line in words(found))


def test_an_arm_that_failed_with_every_seed_is_told_as_failed_and_not_as_waiting() -> None:
    plan = study()
    rows = [replace(each, state="failed", scores={}) if each.arm == "homogeneous" else each for each in filled(plan, value).all()]
    found = find(plan, Known(rows))
    assert "small: homogeneous against output_only: not judged, since a run failed with 8 of the seeds, and no pair is left." in words(found)
    assert "| small | homogeneous | output_only | 0 |" in document(found)
    assert "No pair of runs has ended yet" not in document(found)


def test_rows_of_different_data_are_not_compared() -> None:
    plan = study()
    rows = [replace(each, data="one") for each in filled(plan, value).all()]
    find(plan, Known(rows))
    rows[-1] = replace(rows[-1], data="two")
    with pytest.raises(
        ConfigError, match="must be of the same data, but that of large, output_only, seed 7 has the fingerprint one, and that of large, full"
    ):
        find(plan, Known(rows))


@pytest.mark.parametrize("of", ["an effect", "the control against itself"])
@pytest.mark.parametrize("by", ["data", "scoring"])
def test_rows_of_other_data_or_scoring_are_not_compared_beside_the_cells_either(of: str, by: str) -> None:
    effect = {"cell": "small", "arm": "full", "key": "method.loss", "values": ["dice"], "seeds": [0, 1]}
    plan = study(effects=[effect], against_itself={"cell": "small", "seeds": list(range(20, 28))})
    rows = [replace(each, data="one") for each in filled(plan, value).all()]
    further = [row(plan, "small", "full", seed, 41.0, {"method.loss": "dice"}) for seed in (0, 1)]
    if of != "an effect":
        further = [row(plan, "small", "output_only", seed, 40.0) for seed in range(20, 28)]
    same = [replace(each, data="one") for each in further]
    find(plan, Known([*rows, *same]))
    other = [replace(each, data="two") if by == "data" else replace(each, data="one", facts={"scoring": "another"}) for each in further]
    with pytest.raises(
        ConfigError, match="must be of the same data" if by == "data" else "must be those with which the rows that are there were scored"
    ):
        find(plan, Known([*rows, *other]))


def test_differences_that_are_equal_in_the_rows_are_ties() -> None:
    plan = study(seeds=list(range(8)))
    differences = [0.1, 0.1, -0.1, 0.1, 0.1, 0.2, 0.1, -0.1]
    known = filled(plan, lambda cell, arm, seed: round(40.0 + 3.3 * seed + (differences[seed] if arm == "full" else 0.0), 6))
    (found,) = (each for each in find(plan, known).comparisons if (each.cell, each.arm, each.other) == ("small", "full", "output_only"))
    assert list(found.differences.values()) == differences
    assert found.p_wilcoxon == wilcoxon(differences).p


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("val/ece", False), ("corrupted/nll", False), ("time/step_ms", False), ("val/miou", True), ("val/iou/floss", True), ("val/iou/ece", True)],
)
def test_the_direction_of_a_metric_is_not_read_from_the_name_of_a_class(metric: str, expected: bool) -> None:
    assert is_higher_better(metric) is expected


def test_rows_that_were_scored_otherwise_are_not_compared() -> None:
    plan = study(corruptions={"severities": [1, 3]})
    own = scoring_key(plan)
    rows = [replace(each, facts={"scoring": own} if each.seed else {}) for each in filled(plan, value).all()]
    find(plan, Known(rows))
    with pytest.raises(
        ConfigError, match="corruptions and also_on: must be those with which the rows that are there were scored, but that of small, output_only"
    ):
        find(study(corruptions={"severities": [3]}), Known(rows))


def test_what_could_not_win_is_told() -> None:
    assert find(study(), Known()).primary_smallest == pytest.approx(2 / 2**8)
    few = study(seeds=[0, 1, 2, 3, 4])
    assert "The comparison that was declared beforehand could not win: with so few seeds no p is below 0.062." in document(find(few, Known()))


def test_a_null_result_is_told_as_one() -> None:
    plan = study()
    found = find(plan, filled(plan, lambda cell, arm, seed: 40 + float(np.random.default_rng([seed, *arm.encode()]).normal())))
    assert {each.verdict for each in found.comparisons} == {"open"}
    assert all("no difference that these runs can show" in line for line in words(found))


def test_the_test_finds_differences_between_equal_runs_as_rarely_as_it_says() -> None:
    values = list(np.random.default_rng(0).normal(size=16))
    rate = false_rate(values)
    assert 0.02 < rate <= 0.06
    # Runs that are not exchangeable within one draw cannot exceed it by much either; with 4 pairs nothing can win.
    assert false_rate(values[:8]) == 0
    plan = study(against_itself={"cell": "small", "seeds": list(range(100, 108))})
    known = filled(plan, value)
    for seed, each in enumerate(values[:8], 100):
        known.add(row(plan, "small", "output_only", seed, 44 + each))
    found = find(plan, known).against_itself
    assert found is not None
    assert found["runs"] == found["of"] == 16
    assert found["rate"] < 0.07
    half = find(plan, filled(plan, value)).against_itself
    assert half is not None
    assert (half["runs"], half["of"], half["rate"]) == (8, 16, None)


def test_with_many_pairs_the_rate_is_estimated() -> None:
    values = list(np.random.default_rng(1).normal(size=56))
    assert 0.02 < false_rate(values, pairings=500) < 0.09


def test_what_two_cells_share_is_compared_once() -> None:
    twice = [*RAW["cells"], {"name": "tuned", "of_arm": {"full": {"optimizer.lr": 5e-3}}}]
    plan = study(cells=twice)
    pairs = [(cell.name, arm, other) for cell, arm, other, _ in pairs_of(plan)]
    assert ("tuned", "full", "output_only") in pairs
    assert ("tuned", "full", "homogeneous") in pairs
    assert ("tuned", "homogeneous", "output_only") not in pairs, "small has it, of the same runs"
    assert ("small", "homogeneous", "output_only") in pairs
    declared = study(cells=[{"name": "first", "arms": ["output_only", "full"]}, *RAW["cells"]])
    assert [(cell.name, arm) for cell, arm, _, is_primary in pairs_of(declared) if is_primary] == [("small", "full")]
    assert ("first", "full") not in [(cell.name, arm) for cell, arm, *_ in pairs_of(declared)], "or it would be in Holm's family too"


def test_effects_are_shown_without_tests() -> None:
    effect = {"cell": "small", "arm": "full", "key": "method.loss", "values": ["dice", "hsic"], "seeds": [0, 1]}
    plan = study(effects=[effect])
    known = filled(plan, value)
    for seed in (0, 1):
        known.add(row(plan, "small", "full", seed, value("small", "output_only", seed) + 2, {"method.loss": "dice"}))
    found = find(plan, known).effects[0]
    assert [(each["value"], each["pairs"]) for each in found["values"]] == [("dice", 2), ("hsic", 0)]
    assert found["values"][0]["difference"] == pytest.approx(2)
    assert "| dice | 2 |" in document(find(plan, known))


def test_charts_read_their_place_from_the_runs(tmp_path: Path) -> None:
    cells = [{"name": f"n{epochs}", "set": {"optimizer.epochs": epochs}} for epochs in (4, 8)]
    plan = study(cells=cells, primary=None, charts=[{"over": "optimizer.epochs", "cells": ["n4", "n8"]}])
    found = find(plan, filled(plan, value))
    points = found.charts[0]["points"]
    assert {(point["cell"], point["at"]) for point in points} == {("n4", 4), ("n8", 8)}
    assert {point["arm"] for point in points} == {"homogeneous", "full"}
    drawn = plot(found, tmp_path)
    assert drawn == ["differences.svg", "gain_over_optimizer_epochs.svg"]
    for name in drawn:
        ElementTree.parse(tmp_path / name)
    first = (tmp_path / drawn[0]).read_bytes()
    plot(found, tmp_path)
    assert (tmp_path / drawn[0]).read_bytes() == first


@pytest.mark.parametrize("differences", [[0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, -1]])
def test_an_interval_without_a_bound_is_drawn_as_far_as_its_pairs(differences: list[float]) -> None:
    plan = study(cells=[{"name": "n4"}], arms=[RAW["arms"][0], RAW["arms"][2]], primary=None, contrasts=[])
    found = find(plan, filled(plan, lambda cell, arm, seed: 40.0 + differences[seed] * (arm == "full")))
    (only,) = found.comparisons
    assert only.interval is not None
    assert not all(map(math.isfinite, only.interval))
    drawn = [line.get_xdata() for line in _differences(found).axes[0].lines]
    bounds = next([float(x) for x in xs] for xs in drawn if len(xs) == 2 and xs[0] != xs[1])
    assert all(map(math.isfinite, bounds))
    assert (max(bounds) == 1) == (differences[-1] > 0)
    assert (min(bounds) == -1) == (differences[-1] < 0)


def test_two_charts_over_one_setting_are_two_pictures(tmp_path: Path) -> None:
    cells = [{"name": f"n{epochs}", "set": {"optimizer.epochs": epochs}} for epochs in (4, 8, 16)]
    charts = [{"over": "optimizer.epochs", "cells": ["n4", "n8"]}, {"over": "optimizer.epochs", "cells": ["n8", "n16"]}]
    plan = study(cells=cells, primary=None, charts=charts)
    assert plot(find(plan, filled(plan, value)), tmp_path)[1:] == ["gain_over_optimizer_epochs.svg", "gain_over_optimizer_epochs-2.svg"]


def test_the_document_holds_every_number_and_no_cell_breaks_its_table() -> None:
    arms = [RAW["arms"][0], {"name": "a|b", "set": {}}]
    plan = study(arms=arms, cells=[{"name": "c"}], primary=None, contrasts=[])
    found = find(plan, filled(plan, lambda cell, arm, seed: 40.0 + (arm != "output_only") * (1 + 0.1 * seed)))
    text = document(found)
    assert "+1.35" in text
    assert "a\\|b" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines[:3]}) == 1
    json.dumps(finite(found.to_dict()))


def test_classes_have_a_table_of_their_own_in_the_order_of_the_data() -> None:
    plan = study(cells=[{"name": "small"}], seeds=[0, 1])
    iou = {"val__iou__road": 90.0, "val__iou__car": 40.0}
    rows = [row(plan, "small", arm, seed, 50.0, **{name: each + seed for name, each in iou.items()}) for arm in GAIN for seed in (0, 1)]
    text = document(find(plan, Known(rows)))
    assert "| cell | arm | road | car |" in text
    assert "| small | full | 90.50 | 40.50 |" in text
    assert "iou/road" not in text


def test_runs_that_have_just_ended_and_rows_of_a_file_give_the_same_bytes(tmp_path: Path) -> None:
    plan = study(cells=[{"name": "small"}], seeds=[0, 1])
    # A run's own times come before what is scored behind it; a file's columns have them last.
    more = {"val__iou__road": 90.0, "time__step_ms": 20.0, "wall_s": 60.0, "corrupted__miou": 30.0}
    rows = [row(plan, "small", arm, seed, 50.0 + seed, **more) for arm in GAIN for seed in (0, 1)]
    write(tmp_path / "runs.csv", rows)
    as_they_are, as_read = (json.dumps(finite(find(plan, Known(each)).to_dict())) for each in (rows, read(tmp_path / "runs.csv")))
    assert as_they_are == as_read


def test_a_table_of_markdown() -> None:
    assert table(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def test_a_study_without_a_run_says_so() -> None:
    found = find(study(), Known())
    assert found.done == 0
    assert words(found)[1:] == ["No pair of runs has ended yet: small; large."]
    assert "|" not in document(found)


def test_what_has_not_begun_is_one_line_and_in_no_table() -> None:
    rows = filled(study(), lambda cell, arm, seed: 40.0 + (arm == "full") * (1 + 0.1 * seed)).all()
    text = document(find(study(), Known(row for row in rows if row.cell == "small")))
    assert "* No pair of runs has ended yet: large.\n" in text
    some = document(find(study(), Known(row for row in rows if row.cell == "small" and row.arm != "homogeneous")))
    assert "* No pair of runs has ended yet: small (homogeneous against output_only, full against homogeneous); large.\n" in some
    assert "| small |" in text
    assert "| large |" not in text
