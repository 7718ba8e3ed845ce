"""A study of two cells, and rows as its runs would give them."""

from collections.abc import Callable
from typing import Any

from imachsr.study.load import make_study
from imachsr.study.plan import key_of
from imachsr.study.rows import Known, Row
from imachsr.study.schema import StudyPlan

RAW: dict[str, Any] = {
    "name": "toy",
    "run": {"data": {"kind": "scenes", "size": [64, 64], "num_train": 4, "num_val": 2}, "optimizer": {"epochs": 10, "batch_size": 2}},
    "arms": [
        {"name": "output_only", "set": {"method.alpha": 0, "method.beta": 0}},
        {"name": "homogeneous", "set": {"method.loss": "mi_variational", "method.heterogeneity": "off", "method.beta": 0}},
        {"name": "full", "set": {"method.loss": "prototype"}},
    ],
    "cells": [{"name": "small"}, {"name": "large", "set": {"optimizer.lr": 3e-3}, "arms": ["output_only", "full"]}],
    "seeds": list(range(8)),
    "primary": {"cell": "small", "arm": "full"},
    "contrasts": [["full", "homogeneous"]],
}


def study(**changes: Any) -> StudyPlan:
    return make_study({**RAW, **changes})


def row(plan: StudyPlan, cell: str, arm: str, seed: int, value: float, further: dict[str, Any] | None = None, **scores: float) -> Row:
    run = plan.run_of(plan.cell(cell), arm, seed, further or {})
    told = {"val/miou": value, **{name.replace("__", "/"): each for name, each in scores.items()}}
    return Row(cell=cell, arm=arm, seed=seed, key=key_of(run), epochs=run.optimizer.epochs, scores=told)


def filled(plan: StudyPlan, value: Callable[[str, str, int], float]) -> Known:
    """Rows of every cell of equal epochs."""
    cells = [cell for cell in plan.cells if cell.equal == "epochs"]
    return Known(row(plan, c.name, arm, seed, value(c.name, arm, seed)) for c in cells for arm in plan.arms_of(c) for seed in plan.seeds_of(c))
