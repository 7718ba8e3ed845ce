"""Knobs that stand for several settings, places of lists, halves by depth, conditions of any form."""

from itertools import islice
from typing import Any

import pytest

from imachsr.config.load import dump_yaml, parse_yaml
from imachsr.config.schema import ConfigError
from imachsr.core.objective import Objective
from imachsr.search.space import Search, draws, make_search, search_to_dict
from imachsr.search.space.knobs import contexts

RECIPE = {"choice": {"light": {"method.alpha": 0.1, "method.beta": 0}, "strong": {"method.alpha": 1.0, "optimizer.lr": 5e-4}}}
TAPS = {
    "run": {"method": {"standard": {"kind": "depth"}}},
    "space": {
        "method.standard.max_taps": {"int": [1, 3]},
        "method.loss.0": {"choice": ["dice", "prototype"]},
        "method.loss.0.temperature": {"float": [0.1, 1], "when": {"method.loss.0": "prototype"}},
        "method.loss.1": {"choice": ["hsic", "brier"], "when": {"method.standard.max_taps": {"at_least": 2}}},
        "method.loss.2": {"choice": ["focal"], "when": {"method.standard.max_taps": 3}},
    },
}


def some(search: Search, count: int = 200) -> list[dict[str, Any]]:
    return [values for values, _ in islice(draws(search, 0), count)]


def test_a_named_choice_sets_all_its_settings() -> None:
    search = make_search({"space": {"recipe": RECIPE}})
    light, strong = (search.run_of({"recipe": name}, name="x", seed=0) for name in ("light", "strong"))
    assert (light.method.alpha, light.method.beta, light.optimizer.lr) == (0.1, 0, 1e-3)
    assert (strong.method.alpha, strong.method.beta, strong.optimizer.lr) == (1.0, Objective.beta, 5e-4)
    assert {values["recipe"] for values in some(search, 50)} == {"light", "strong"}
    assert make_search(parse_yaml(dump_yaml(search_to_dict(search)))) == search


def test_an_arm_and_a_condition_may_name_such_a_knob() -> None:
    space = {"recipe": RECIPE, "optimizer.weight_decay": {"float": [0.01, 0.1], "when": {"recipe": "strong"}}}
    arms = [{"name": "b", "set": {"method.alpha": 0, "method.beta": 0}}, {"name": "light", "set": {"recipe": "light"}}]
    search = make_search({"space": space, "arms": arms})
    assert all(("optimizer.weight_decay" in values) == (values["recipe"] == "strong") for values in some(search))
    assert search.run_of(search.fixed()[1][2], name="x", seed=0).method.alpha == 0.1


def test_one_range_sets_several_settings_by_their_factors() -> None:
    search = make_search({"space": {"strength": {"float": [0.1, 1], "sets": {"method.alpha": 1, "method.beta": 0.1}}}})
    for values in some(search, 20):
        run = search.run_of(values, name="x", seed=0)
        assert run.method.alpha == values["strength"]
        assert run.method.beta == pytest.approx(0.1 * run.method.alpha)
    tied = make_search(
        {
            "run": {"method": {"loss": {"kind": "by_depth", "early": "dice", "late": "brier"}}},
            "space": {"both": {"choice": ["prototype", "infonce"], "sets": ["method.loss.early", "method.loss.late"]}},
        }
    )
    run = tied.run_of({"both": "infonce"}, name="x", seed=0)
    assert (run.method.loss.early.kind, run.method.loss.late.kind) == ("infonce", "infonce")


def test_each_tap_has_its_own_loss_and_the_list_is_as_long_as_the_taps() -> None:
    search = make_search(TAPS)
    drawn = some(search)
    assert {values["method.standard.max_taps"] for values in drawn} == {1, 2, 3}
    for values in drawn:
        run = search.run_of(values, name="x", seed=0)
        assert len(run.method.loss) == run.method.standard.max_taps
        assert run.method.loss[0].kind == values["method.loss.0"]
        if values["method.loss.0"] == "prototype":
            assert run.method.loss[0].temperature == values["method.loss.0.temperature"]
        assert [loss.kind for loss in run.method.loss[1:]] == [values[key] for key in ("method.loss.1", "method.loss.2") if key in values]


def test_halves_by_depth_have_knobs_of_their_own() -> None:
    search = make_search(
        {
            "run": {"method": {"loss": {"kind": "by_depth", "early": "dice", "late": "hsic"}}},
            "space": {
                "method.loss.early": {"choice": ["dice", "prototype"]},
                "method.loss.early.temperature": {"float": [0.1, 1], "when": {"method.loss.early": "prototype"}},
                "method.loss.late": {"choice": ["brier", {"kind": "prototype", "temperature": 0.7}]},
                "method.loss.share": {"float": [0.2, 0.8], "step": 0.2},
            },
        }
    )
    for values in some(search, 50):
        loss = search.run_of(values, name="x", seed=0).method.loss
        assert loss.early.kind == values["method.loss.early"]
        assert loss.late.temperature == 0.7 if loss.late.kind == "prototype" else loss.late.kind == "brier"
        assert round(loss.share * 5) in (1, 2, 3, 4)


def test_a_condition_may_name_a_knob_below_it_and_the_kind_of_a_structure() -> None:
    search = make_search(
        {
            "space": {
                "method.alpha": {"float": [0.1, 1], "when": {"method.loss": "prototype", "optimizer.lr": {"at_most": 1e-3}}},
                "method.loss": {"choice": ["dice", {"kind": "prototype", "temperature": 0.7}]},
                "optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
            }
        }
    )
    assert search.order == ("method.loss", "optimizer.lr", "method.alpha")
    drawn = some(search)
    for values in drawn:
        assert ("method.alpha" in values) == (values["method.loss"] != "dice" and values["optimizer.lr"] <= 1e-3)
    assert {"method.alpha" in values for values in drawn} == {True, False}


def test_every_way_to_meet_conditions_is_tried() -> None:
    """A value that only one of the ways refuses is found before anything runs."""
    space = {
        "method.standard": {"choice": ["depth", "resolution", "union"]},
        "method.standard.direction": {"choice": ["up", "down"], "when": {"method.standard": ["resolution", "depth"]}},
    }
    with pytest.raises(ConfigError, match="'direction' is no setting of 'depth'"):
        make_search({"space": {**space, "method.standard": {"choice": ["depth", "resolution"]}}})
    search = make_search(TAPS)
    assert [each["method.standard.max_taps"] for each in contexts(search, "method.loss.1")] == [3, 2]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "name of a setting": ({"method.alpha": {"choice": {"a": {"method.alpha": 1}}}}, "space.method.alpha: must have a name of its own"),
    "unknown setting of a choice": (
        {"recipe": {"choice": {"a": {"method.alfa": 1}}}},
        "space.recipe: 'a': method.alfa: is no setting; nearest: 'alpha'",
    ),
    "choice that is no mapping": ({"recipe": {"choice": {"a": 3}}}, "space.recipe.choice: must give each name a mapping of settings, but got 'a': 3"),
    "the same setting twice": (
        {"recipe": RECIPE, "method.beta": {"float": [0.1, 1]}},
        "space.method.beta: must not set method.beta, which recipe sets at the same time",
    ),
    "factors of a choice": ({"s": {"choice": [1, 2], "sets": {"method.alpha": 1}}}, "`sets` with factors must go with a range"),
    "factor that is none": ({"s": {"float": [1, 2], "sets": {"method.alpha": "x"}}}, "must give each setting a factor, but got 'method.alpha': 'x'"),
    "text as sets": ({"s": {"float": [1, 2], "sets": "method.alpha"}}, "must be a list of settings, or a mapping"),
    "sets of named settings": ({"s": {**RECIPE, "sets": ["method.alpha"]}}, "`sets` must not go with choices that name their settings"),
    "seed among the settings": ({"s": {"choice": {"a": {"seed": 3}}}}, "space.s.seed: must not be set here"),
    "text that is another choice's own": ({"method.loss": {"choice": [["dice"], '["dice"]']}}, "choices must differ"),
    "choice that is no list": ({"method.loss": {"choice": "dice"}}, "must be a list of values, or a mapping of names to settings, but got 'dice'"),
    "a place without the one before": ({"method.loss.1": {"choice": ["dice"]}}, "space.method.loss.1: 'dice': a list must be given in order"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_its_key(name: str) -> None:
    space, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        make_search({"space": space})


def test_two_knobs_may_set_the_same_where_conditions_keep_them_apart() -> None:
    space = {
        "method.loss": {"choice": ["dice", "brier"]},
        "low": {"float": [0.1, 0.2], "sets": ["method.alpha"], "when": {"method.loss": "dice"}},
        "high": {"float": [1, 2], "sets": ["method.alpha"], "when": {"method.loss": ["brier"]}},
    }
    search = make_search({"space": space})
    assert all((search.run_of(values, name="x", seed=0).method.alpha < 1) == (values["method.loss"] == "dice") for values in some(search, 50))
