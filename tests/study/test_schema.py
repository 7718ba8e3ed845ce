"""What a study's file says, and what is told of mistakes in it."""

from pathlib import Path
from typing import Any

import pytest

from imachsr.config.schema import ConfigError
from imachsr.study.load import load_study, make_study, study_to_dict
from imachsr.study.schema import is_higher_better
from tests.study.rows import RAW, study

CAMVID = {"data": {"kind": "camvid", "root": "camvid", "size": [64, 64]}}
TIME = {"name": "timed", "equal": "time", "like": "small"}


def test_a_study_round_trips() -> None:
    plan = study(cells=[*RAW["cells"], TIME], effects=[{"cell": "small", "arm": "full", "key": "method.alpha", "values": [0.1], "seeds": [0]}])
    assert make_study(study_to_dict(plan)) == plan


def test_settings_are_laid_over_each_other_from_the_base_to_the_arm_in_its_cell() -> None:
    own = {
        "name": "c",
        "set": {"optimizer.lr": 5e-3, "model.architecture": "fpn"},
        "of_arm": {"full": {"method.alpha": 0.7, "method.loss.temperature": 0.3}},
    }
    plan = study(cells=[own], primary=None)
    run, other = plan.run_of(plan.cells[0], "full", 3), plan.run_of(plan.cells[0], "output_only", 3)
    assert (run.optimizer.lr, run.model.architecture, run.method.alpha, run.method.loss.temperature, run.seed) == (5e-3, "fpn", 0.7, 0.3, 3)  # type: ignore[union-attr]
    assert (other.optimizer.lr, other.method.alpha, other.optimizer.epochs) == (5e-3, 0, 10)
    assert plan.run_of(plan.cells[0], "full", 3, {"method.loss": "dice"}).method.loss.kind == "dice"  # type: ignore[union-attr]


def test_a_cell_of_equal_time_is_as_the_cell_that_it_names() -> None:
    arms = [RAW["arms"][0], RAW["arms"][2]]
    plan = study(
        arms=arms, contrasts=[], cells=[{"name": "small", "set": {"optimizer.lr": 7e-3}, "arms": ["output_only", "full"], "seeds": [1, 2]}, TIME]
    )
    timed = plan.cell("timed")
    assert plan.arms_of(timed) == ("output_only", "full")
    assert plan.seeds_of(timed) == (1, 2)
    assert plan.run_of(timed, "full", 1).optimizer.lr == 7e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": RAW["arms"][:1]}, "arms"),
        ({"arms": [RAW["arms"][0], RAW["arms"][0]]}, r"arms: each must have a name of its own, but 'output_only' is there twice"),
        (
            {"arms": [*RAW["arms"], {"name": "same", "set": {"method.loss": {"kind": "prototype"}}}]},
            r"cells.0.arms: arms must differ in what they train, but full and same do not",
        ),
        (
            {"arms": [*RAW["arms"], {"name": "longer", "set": {"optimizer.epochs": 30}}]},
            "cells.0.arms: arms must see the same data as often, but `optimizer.epochs` of output_only is 10, and of longer 30; `equal: time` is for",
        ),
        (
            {"arms": [*RAW["arms"], {"name": "other", "set": {"data.num_train": 80}}]},
            "cells.0.arms: arms must see the same data as often, but `data` of output_only",
        ),
        (
            {"cells": [{"name": "small", "of_arm": {"full": {"optimizer.batch_size": 1}}}]},
            "cells.0.arms: .* `optimizer.batch_size` of output_only is 2, and of full 1",
        ),
        (
            {"arms": [*RAW["arms"], {"name": "other", "set": {"seed": 3}}]},
            "arms.3.set: seed: must be left out, since every run has one",
        ),
        ({"run": {**RAW["run"], "name": "mine"}}, "run: name: must be left out"),
        ({"cells": [{"name": "small", "arms": ["output_only", "full", "full"]}]}, "cells.0.arms: each must be there once"),
        ({"cells": [], "primary": None}, "cells: must name at least one"),
        ({"contrasts": [["full", "full"]]}, "contrasts.0: must be two arms, but got full and itself"),
        ({"contrasts": [["full", "output_only"]]}, "contrasts.0: must be without the control output_only"),
        ({"contrasts": [["full", "homogeneous"], ["homogeneous", "full"]]}, "contrasts.1: each pair must be there once"),
        ({"metric": "val/iou/raod"}, "metric: must be a key of a run's row, but got 'val/iou/raod'; nearest: 'val/iou/road'"),
        (
            {"metric": "corrupted/fogg/miou", "corruptions": {"severities": [3]}},
            "metric: must be a key of a run's row, but got 'corrupted/fogg/miou'; nearest: 'corrupted/fog/miou'",
        ),
        (
            {"charts": [{"over": "optimizer.epochs", "cells": ["small", "large"]}]},
            "charts.0.cells: must differ in optimizer.epochs, but small and",
        ),
        ({"charts": [{"over": "optimizer.lr", "cells": ["small", "small"]}]}, "charts.0.cells: must differ in optimizer.lr, but small and small"),
        (
            {"cells": [*RAW["cells"], TIME], "charts": [{"over": "optimizer.epochs", "cells": ["small", "timed"]}]},
            "charts.0.cells: must be of equal epochs",
        ),
        (
            {"effects": [{"cell": "small", "arm": "full", "key": "optimizer.epochs", "values": [20, 40], "seeds": [0]}]},
            "effects.0.key: must leave `optimizer.epochs` as it is, which the control of small would not share, but got optimizer.epochs",
        ),
        (
            {"cells": [*RAW["cells"], TIME], "effects": [{"cell": "timed", "arm": "full", "key": "method.alpha", "values": [1], "seeds": [0]}]},
            "effects.0.cell: must be a cell of equal epochs",
        ),
        (
            {"effects": [{"cell": "large", "arm": "homogeneous", "key": "method.alpha", "values": [1], "seeds": [0]}]},
            "effects.0.arm: must be an arm of large",
        ),
        ({"effects": [{"cell": "small", "arm": "full", "key": "seed", "values": [1], "seeds": [0]}]}, "effects.0.key: seed: must be left out"),
        ({"seeds": [-1]}, "seeds.0: `seeds >= 0` must hold, but got -1"),
        ({"seeds": 8}, r"seeds: must be a list, such as \[8\], but got 8"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, r"seeds: each must be there once, but got \[1, 1\]"),
        ({"primary": {"cell": "smal", "arm": "full"}}, "primary.cell: must name one that is there, but got 'smal'; nearest: 'small'"),
        ({"primary": {"cell": "small", "arm": "output_only"}}, "primary.arm: must be an arm of small other than the control"),
        ({"primary": {"cell": "large", "arm": "homogeneous"}}, "primary.arm: must be an arm of large other than the control"),
        ({"contrasts": [["full", "homogenous"]]}, "contrasts: must name one that is there, but got 'homogenous'; nearest: 'homogeneous'"),
        ({"cells": [{"name": "small", "arms": ["full"]}]}, r"cells.0.arms: must hold the control 'output_only'"),
        ({"cells": [*RAW["cells"], {"name": "t", "equal": "time"}]}, "`like` must name the cell"),
        ({"cells": [*RAW["cells"], {"name": "t", "like": "small"}]}, "`like` must name the cell"),
        ({"cells": [*RAW["cells"], {**TIME, "set": {"optimizer.lr": 1}}]}, "must be left out with `equal: time`"),
        ({"cells": [*RAW["cells"], {**TIME, "seeds": [99]}]}, "seeds and arms must be among those of 'small'"),
        ({"cells": [*RAW["cells"], TIME, {"name": "u", "equal": "time", "like": "timed"}]}, "must name a cell of equal epochs"),
        (
            {"cells": [{"name": "small", "set": {"optimizer.lrr": 1}}]},
            r"cells.0: with the arm output_only: optimizer.lrr: is no setting; nearest: 'lr'",
        ),
        ({"cells": [{**RAW["cells"][1], "name": "small", "of_arm": {"homogeneous": {}}}]}, "'homogeneous' does not run in it"),
        ({"effects": [{"cell": "small", "arm": "full", "key": "method.loss", "values": ["dise"], "seeds": [0]}]}, "effects.0: .*'dice'"),
        ({"against_itself": {"cell": "small", "seeds": [100]}}, "against_itself.seeds: must be 8 seeds that small has not"),
        ({"against_itself": {"cell": "small", "seeds": [7, 8, 9, 10, 11, 12, 13, 14]}}, "against_itself.seeds"),
        ({"against_itself": {"cell": "small", "seeds": [100, 100, 101, 102, 103, 104, 105, 106]}}, "against_itself.seeds"),
        (
            {"effects": [{"cell": "small", "arm": "full", "key": "method.loss", "values": ["dice"], "seeds": [0, 0]}]},
            "effects.0.seeds: each must be there once",
        ),
        ({"corruptions": {"severities": [6]}}, "severities"),
        (
            {"charts": [{"over": "optimizer.epoch", "cells": ["small", "large"]}]},
            "charts.0.over: must name a setting that is a number.*nearest: 'epochs'",
        ),
        (
            {"charts": [{"over": "optimizer.ema", "cells": ["small", "large"]}]},
            "charts.0.over: must name a setting that is a number, but optimizer.ema is",
        ),
        ({"charts": [{"over": "data.kind.x", "cells": ["small", "large"]}]}, "charts.0.over: must name a setting"),
        ({"metric": "val/mIoU"}, "metric: must be a key of a run's row, but got 'val/mIoU'; nearest: 'val/miou'"),
        ({"metric": "corrupted/miou"}, "metric: must be a key of a run's row"),
        ({"also_on": {"val": {"data.domain": "shifted"}}}, "also_on: names must be without / and none of val"),
        ({"also_on": {"night": {"optimizer.lr": 1}}}, "also_on.night: keys must begin with data, compute, output_loss"),
        ({"also_on": {"night": {"data.domain": "nigth"}}}, "also_on.night: data.domain: .*'nigth'"),
        (
            {"run": CAMVID, "also_on": {"night": {"data.domain": "shifted"}}},
            "cells.0: with the arm output_only: also_on.night: data: 'domain' is no setting of 'camvid'",
        ),
        (
            {"run": CAMVID, "cells": [{"name": "small", "set": {"data.root": "a"}}, {"name": "large", "set": {"data.root": "b"}}]},
            "cells.1: with the arm output_only: data that differ must differ in more than their place, but b and a do not",
        ),
        (
            {"effects": [{"cell": "small", "arm": "full", "key": "method.beta", "values": [1, 0.5, 1.0], "seeds": [0]}]},
            "effects.0.values: must each train something else, but 1 and 1.0 train the same",
        ),
        (
            {"effects": [{"cell": "small", "arm": "output_only", "key": "method.loss", "values": ["dice", "brier"], "seeds": [0]}]},
            "effects.0.values: must each train something else, but dice and brier train the same",
        ),
        (
            {"cells": [{"name": "small", "arms": ["output_only", "full"]}], "contrasts": []},
            "arms.1: must run in a cell, but homogeneous is in the `arms` of none",
        ),
        (
            {
                "cells": [
                    {"name": name, "set": {"optimizer.lr": lr}, "arms": ["output_only", name]} for name, lr in (("full", 1e-3), ("homogeneous", 2e-3))
                ],
                "primary": None,
            },
            "contrasts.0: must be two arms that run in one cell, but full and homogeneous do so in none",
        ),
        (
            {"cells": [*RAW["cells"], {"name": "alone", "set": {"optimizer.lr": 2e-3}, "arms": ["output_only"]}]},
            "cells.2.arms: must hold an arm to compare with the control, but got output_only alone",
        ),
        ({"sedes": [1]}, "sedes: is no setting; nearest: 'seeds'"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_study({**RAW, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "val/iou/road"},
        {"metric": "time/step_ms"},
        {"metric": "night/ece", "also_on": {"night": {"data.domain": "shifted"}}},
        {"metric": "corrupted/fog/3/miou", "corruptions": {"severities": [3]}},
        {"run": CAMVID, "also_on": {"streets": {"data.kind": "cityscapes", "data.root": "there"}}},
        {"also_on": None},
    ],
)
def test_what_a_row_will_have_can_be_tested(changes: dict[str, Any]) -> None:
    plan = make_study({**RAW, **changes})
    assert make_study(study_to_dict(plan)) == plan


def test_a_cell_of_the_control_alone_may_be_what_it_is_compared_with_itself_in() -> None:
    alone = {"name": "alone", "set": {"optimizer.lr": 2e-3}, "arms": ["output_only"]}
    again = {"cell": "alone", "seeds": list(range(100, 108))}
    assert make_study({**RAW, "cells": [*RAW["cells"], alone], "against_itself": again}).cells[2].arms == ("output_only",)


def test_mistakes_in_a_file_are_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "seeds: [1, 2]\narms:\n  - {name: a}\n  - {name: b, set: {method.alpha: 1}}\ncells:\n  - name: c\n    set: {optimizer.epoch: 3}\n"
    )
    with pytest.raises(ConfigError, match=r"s.yaml:6: cells.0: with the arm a: optimizer.epoch: is no setting"):
        load_study(path)
    assert load_study(path, ["cells=[{name: c}]", "seeds=[5]"]).seeds == (5,)
    path.write_text("seeds: [1]\nrun:\n  optimizer:\n    epoch: 3\narms:\n  - {name: a}\n  - name: b\n    set:\n      method.los: dice\n")
    with pytest.raises(ConfigError, match=r"s.yaml:4: run: optimizer.epoch: is no setting"):
        load_study(path)
    path.write_text(path.read_text().replace("epoch:", "epochs:"))
    with pytest.raises(ConfigError, match=r"s.yaml:9: arms.1: method.los: is no setting"):
        load_study(path)


@pytest.mark.parametrize(
    ("metric", "expected"), [("val/miou", True), ("val/ece", False), ("val/nll", False), ("corrupted/miou", True), ("val/loss", False)]
)
def test_which_way_is_better(metric: str, expected: bool) -> None:
    assert is_higher_better(metric) == expected
