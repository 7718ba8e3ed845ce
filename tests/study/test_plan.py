"""Which runs are wanted, and which can begin."""

from dataclasses import replace

from imachsr.study.plan import equal_epochs, key_of, wanted
from imachsr.study.rows import Known
from tests.study.rows import RAW, filled, row, study

TIMED = [{"name": "small"}, {"name": "timed", "equal": "time", "like": "small"}]


def test_seed_by_seed_so_that_what_is_broken_off_is_balanced() -> None:
    found = wanted(study(seeds=[5, 6]), Known())
    assert [(each.seed, each.cell, each.arm) for each in found] == [
        (seed, cell, arm)
        for seed in (5, 6)
        for cell, arm in [("small", "output_only"), ("small", "homogeneous"), ("small", "full"), ("large", "output_only"), ("large", "full")]
    ]


def test_equal_runs_of_two_cells_are_run_once() -> None:
    twins = study(cells=[{"name": "small"}, {"name": "again", "arms": ["output_only", "full"]}], seeds=[1])
    assert [(each.cell, each.arm) for each in wanted(twins, Known())] == [("small", "output_only"), ("small", "homogeneous"), ("small", "full")]


def test_the_key_knows_neither_seed_nor_place_of_the_data() -> None:
    plan = study()
    run = plan.run_of(plan.cell("small"), "full", 0)
    camvid = run.model_copy(update={"data": __import__("imachsr.data", fromlist=["CamVid"]).CamVid(root="here")})
    assert key_of(run) == key_of(plan.run_of(plan.cell("small"), "full", 9))
    assert key_of(camvid) == key_of(camvid.model_copy(update={"data": replace(camvid.data, root="there")}))
    assert key_of(camvid) != key_of(camvid.model_copy(update={"data": replace(camvid.data, size=(64, 64))}))


def test_times_are_made_equal_once_all_are_measured() -> None:
    plan = study(cells=TIMED, seeds=[0, 1, 2])
    times = {"output_only": (100, 101, 500), "homogeneous": (110, 111, 112), "full": (125, 126, 10)}
    rows = [row(plan, "small", arm, seed, 50.0, time__step_ms=times[arm][seed]) for arm in times for seed in range(3)]
    # Medians: 101, 111 and 125 ms; of 10 epochs 9.1 and 8.08.
    assert equal_epochs(plan, plan.cell("timed"), Known(rows)) == {"output_only": 10, "homogeneous": 9, "full": 8}
    assert equal_epochs(plan, plan.cell("timed"), Known(rows[:-1])) == {}
    before, after = wanted(plan, Known(rows[:-1])), wanted(plan, Known(rows))
    assert [each.cell for each in before if each.run is None] == ["timed"] * 9
    timed = [each for each in after if each.cell == "timed"]
    # The control is the same run, and so is not run again.
    assert {(each.arm, each.run.optimizer.epochs) for each in timed if each.run} == {("homogeneous", 9), ("full", 8)}
    assert len(after) == 9 + 6


def test_times_of_two_machines_are_not_compared() -> None:
    plan = study(cells=TIMED, seeds=[0, 1])
    took = {"output_only": 100, "homogeneous": 125, "full": 200}
    rows = [row(plan, "small", arm, seed, 50.0, time__step_ms=took[arm] / (1 + 3 * seed)) for arm in took for seed in (0, 1)]
    # Seed 1 ran on a machine four times as fast; of the last arm only the control did.
    there = [replace(each, facts={"machine": "fast" if each.seed and each.arm != "full" else "slow"}) for each in rows]
    assert equal_epochs(plan, plan.cell("timed"), Known(there)) == {"output_only": 10, "homogeneous": 8, "full": 5}
    apart = [replace(each, facts={"machine": each.arm}) for each in rows]
    assert equal_epochs(plan, plan.cell("timed"), Known(apart)) == {}


def test_a_cell_by_itself_has_all_its_runs_those_that_another_cell_shares_too() -> None:
    tuned = {"name": "tuned", "of_arm": {"full": {"method.alpha": 0.6}}}
    plan = study(cells=[{"name": "small"}, tuned], seeds=[0])
    assert [(each.cell, each.arm) for each in wanted(plan, Known(), only=["tuned"])] == [
        ("tuned", "output_only"),
        ("tuned", "homogeneous"),
        ("tuned", "full"),
    ]
    assert [(each.cell, each.arm) for each in wanted(plan, Known())][3:] == [("tuned", "full")]


def test_an_arm_that_is_as_fast_as_the_control_is_not_run_again() -> None:
    plan = study(cells=TIMED, seeds=[0])
    rows = [row(plan, "small", arm, 0, 50.0, time__step_ms=100) for arm in ("output_only", "homogeneous", "full")]
    assert not [each for each in wanted(plan, Known(rows)) if each.cell == "timed"]


def test_effects_and_the_control_against_itself_come_last() -> None:
    effect = {"cell": "small", "arm": "full", "key": "method.loss", "values": ["dice", {"kind": "infonce", "temperature": 0.2}], "seeds": [0]}
    plan = study(seeds=[0, 1], effects=[effect], against_itself={"cell": "small", "seeds": [8, 9]})
    last = wanted(plan, Known())[-4:]
    assert [(each.arm, each.seed, each.setting) for each in last] == [
        ("output_only", 8, ""),
        ("output_only", 9, ""),
        ("full", 0, "method.loss=dice"),
        ("full", 0, "method.loss=infonce (temperature 0.2)"),
    ]


def test_what_has_ended_is_found_by_its_settings_whatever_its_cell_was_called() -> None:
    plan = study(seeds=[0])
    renamed = study(seeds=[0], cells=[{"name": "other"}, RAW["cells"][1]], primary=None)
    known = filled(plan, lambda cell, arm, seed: 1.0)
    assert all(known.get(each.key, each.seed) is not None for each in wanted(renamed, known))
