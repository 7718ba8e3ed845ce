from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler

from imachsr.config.load import dump_yaml, parse_yaml
from imachsr.config.schema import ConfigError
from imachsr.search.space import Search, load_search, make_search, search_to_dict

OUTPUT_ONLY = {"method.alpha": 0, "method.beta": 0}


def draws(search: Search, count: int = 200) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    return [search.suggest(study.ask()) for _ in range(count)]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key of the search": ({"budgets": {}}, "budgets: is no setting; nearest: 'budget'"),
    "unknown key of a part": ({"budget": {"trial": 3}}, "budget.trial: is no setting; nearest: 'trials'"),
    "unknown searched key": ({"space": {"method.alfa": {"float": [0.1, 1]}}}, "space.method.alfa: .*is no setting; nearest: 'alpha'"),
    "unknown key of the base run": ({"run": {"optimizr": {}}}, "run: optimizr: is no setting; nearest: 'optimizer'"),
    "unknown key of an arm": (
        {"arms": [{"name": "b", "set": OUTPUT_ONLY}, {"name": "c", "set": {"method.bta": 1}}]},
        r"arms.1 \(c\): method.bta: is no setting; nearest: 'beta'",
    ),
    "unknown form": ({"space": {"method.alpha": {"range": [0, 1]}}}, "space.method.alpha.range: is no setting"),
    "empty range": ({"space": {"method.alpha": {"float": [1, 1]}}}, r"`low < high` must hold, but got \[1.0, 1.0\]"),
    "reversed range": ({"space": {"optimizer.batch_size": {"int": [4, 2]}}}, r"`low < high` must hold, but got \[4, 2\]"),
    "no choice": ({"space": {"method.loss": {"choice": []}}}, "space.method.loss.choice: .*at least 1 item"),
    "same choice twice": ({"space": {"method.loss": {"choice": ["dice", "brier", "dice"]}}}, "choices must differ, but 'dice' is given again"),
    "choices that Python takes for equal": ({"space": {"method.alpha": {"choice": [1, True]}}}, "choices must differ, but True is given again"),
    "log of zero": ({"space": {"method.alpha": {"float": [0, 1], "log": True}}}, r"`log` must go with a range above 0, but got \[0.0, 1.0\]"),
    "log of a choice": ({"space": {"method.loss": {"choice": ["dice"], "log": True}}}, "`log` must go with a range above 0, but got a choice"),
    "two kinds": (
        {"space": {"method.alpha": {"float": [0, 1], "choice": [1]}}},
        "one of choice, int and float must be given, but got choice and float",
    ),
    "no kind": ({"space": {"method.alpha": {"log": False}}}, "one of choice, int and float must be given, but got none"),
    "step with log": (
        {"space": {"optimizer.batch_size": {"int": [1, 9], "step": 2, "log": True}}},
        "`step` must go with a range that is not logarithmic",
    ),
    "step of a choice": ({"space": {"method.alpha": {"choice": [0, 1], "step": 1}}}, "`step` must go with a range that is not logarithmic"),
    "step longer than the range": ({"space": {"method.alpha": {"float": [0, 1], "step": 2}}}, "`high - low` must be a multiple of `step`"),
    "real step that misses the end": (
        {"space": {"method.alpha": {"float": [0, 1], "step": 0.3}}},
        r"`high - low` must be a multiple of `step`, but got \[0.0, 1.0\] and 0.3",
    ),
    "fraction as the step of integers": (
        {"space": {"optimizer.batch_size": {"int": [1, 6], "step": 0.5}}},
        "`step` of an integer range must be an integer, but got 0.5",
    ),
    "step of zero": ({"space": {"method.alpha": {"float": [0, 1], "step": 0}}}, "space.method.alpha.step: `step > 0` must hold, but got 0"),
    "number of values of a choice": ({"space": {"method.alpha": {"choice": [0, 1], "num": 2}}}, "`num` must go with a real range without `step`"),
    "endless range": ({"space": {"method.alpha": {"float": [0, float("inf")]}}}, "a range must be finite"),
    "step that misses the end": (
        {"space": {"optimizer.batch_size": {"int": [1, 6], "step": 2}}},
        r"`high - low` must be a multiple of `step`, but got \[1, 6\] and 2",
    ),
    "value out of its setting's range": (
        {"space": {"method.alpha": {"float": [-1, 1]}}},
        "space.method.alpha: -1.0: .*`alpha >= 0` must hold, but got -1",
    ),
    "choice that the setting does not take": (
        {"space": {"method.loss": {"choice": ["dice", "dise"]}}},
        "space.method.loss: 'dise': .*nearest: 'dice'",
    ),
    "condition on a missing knob": (
        {"space": {"method.alpha": {"float": [0, 1], "when": {"method.los": "dice"}}}},
        "space.method.alpha.when: must name a knob of the space, but got 'method.los'",
    ),
    "conditions in a circle": (
        {
            "space": {
                "method.alpha": {"choice": [0.1, 1.0], "when": {"method.loss": "dice"}},
                "method.loss": {"choice": ["dice", "brier"], "when": {"method.beta": 0.5}},
                "method.beta": {"choice": [0.5, 0.1], "when": {"method.alpha": 1.0}},
            }
        },
        "space: conditions must not go round in a circle, but got method.alpha -> method.loss -> method.beta -> method.alpha",
    ),
    "condition on itself": (
        {"space": {"method.alpha": {"choice": [0.1, 1.0], "when": {"method.alpha": 1.0}}}},
        "conditions must not go round in a circle, but got method.alpha -> method.alpha",
    ),
    "conditions that exclude one another": (
        {
            "space": {
                "method.loss": {"choice": ["dice", "brier"]},
                "method.beta": {"choice": [0.5, 0.1], "when": {"method.loss": "dice"}},
                "method.alpha": {"float": [0.1, 1], "when": {"method.loss": "brier", "method.beta": 0.5}},
            }
        },
        "space.method.alpha.when: must hold for some configuration, but its conditions exclude one another",
    ),
    "condition beyond a range": (
        {"space": {"method.beta": {"float": [0, 1]}, "method.alpha": {"float": [0, 1], "when": {"method.beta": {"at_least": 2}}}}},
        "space.method.alpha.when.method.beta: must be met by one of its values, real from 0 to 1, but got {'at_least': 2}",
    ),
    "condition on no integer of a range": (
        {"space": {"optimizer.batch_size": {"int": [1, 5]}, "method.alpha": {"float": [0, 1], "when": {"optimizer.batch_size": 6}}}},
        "space.method.alpha.when.optimizer.batch_size: must be integer from 1 to 5, but got 6",
    ),
    "condition on no choice": (
        {"space": {"method.loss": {"choice": ["dice", "brier"]}, "method.alpha": {"float": [0, 1], "when": {"method.loss": ["dice", "briar"]}}}},
        "space.method.alpha.when.method.loss: must be one of its choices, but got 'briar'; nearest: 'brier'",
    ),
    "condition on a range": (
        {"space": {"method.beta": {"float": [0, 1]}, "method.alpha": {"float": [0, 1], "when": {"method.beta": 0.5}}}},
        "space.method.alpha.when.method.beta: must be {at_least: ..., at_most: ...}, since a real range hardly ever gives one value, but got 0.5",
    ),
    "forgotten condition": (
        {"space": {"method.loss": {"choice": ["prototype", "dice"]}, "method.loss.temperature": {"float": [0.1, 1]}}},
        "space.method.loss: 'dice' with method.loss.temperature 0.1 .*`when`.*'temperature' is no setting of 'dice'",
    ),
    "forgotten condition, written first": (
        {"space": {"method.loss.temperature": {"float": [0.1, 1]}, "method.loss": {"choice": ["prototype", "dice"]}}},
        "space.method.loss: 'dice' with method.loss.temperature 0.1 .*`when`.*'temperature' is no setting of 'dice'",
    ),
    "no arm": ({"arms": []}, "arms: must begin with the output-only baseline, but is empty"),
    "arms without the baseline": (
        {"arms": [{"name": "full", "set": {"method.alpha": 0.4}}]},
        r"arms.0: must be the output-only baseline \(method.alpha 0 and method.beta 0\), but 'full' supervises more",
    ),
    "entropy in the baseline": ({"arms": [{"name": "b", "set": {"method.alpha": 0}}]}, "arms.0: must be the output-only baseline"),
    "equal names": ({"arms": [{"name": "b", "set": OUTPUT_ONLY}] * 2}, "arms: names must differ, but got b, b"),
    "budget below the arms": ({"seeds": [0, 1, 2], "budget": {"trials": 2}}, r"budget.trials: must cover the 3 arms \(with every seed\), but got 2"),
    "nothing to search": ({"budget": {"trials": 2}, "space": {}}, "space: must name what to search for 2 trials, but is empty and there are 1 arms"),
    "grace as long as a trial": (
        {"run": {"optimizer": {"epochs": 3}}, "scheduler": {"grace": 3}},
        r"scheduler.grace: must be below optimizer.epochs \(3\), but got 3; use kind: none",
    ),
    "grace of zero": ({"scheduler": {"grace": 0}}, "scheduler.grace: `grace >= 1` must hold, but got 0"),
    "reduction of one": ({"scheduler": {"reduction": 1}}, "scheduler.reduction: `reduction >= 2` must hold, but got 1"),
    "no seed": ({"seeds": []}, "seeds: .*at least 1 item"),
    "negative seed": ({"seeds": [-1]}, "seeds.0: .*but got -1"),
    "seed that no generator takes": ({"seeds": [0, 2**32]}, "seeds.1: .*4294967296"),
    "equal seeds": ({"seeds": [1, 1], "budget": {"trials": 4}}, r"seeds: must differ, but got \[1, 1\]"),
    "seed of the base run": ({"run": {"seed": 5}}, r"run.seed: must be one of `seeds` \[0\], .*but got 5"),
    "searched seed": ({"space": {"seed": {"int": [0, 5]}}}, "space.seed: must not be set here"),
    "seed of an arm": ({"arms": [{"name": "b", "set": {**OUTPUT_ONLY, "seed": 3}}]}, "arms.0.set.seed: must not be set here"),
    "scores now and then": (
        {"run": {"scoring": {"every": 5}}},
        "scoring.every: must be 1 in a search, which judges its trials by every epoch, but got 5",
    ),
    "scores now and then by a knob": ({"space": {"scoring.every": {"choice": [1, 5]}}}, "space.scoring.every: 5.*must be 1 in a search"),
    "selection out of range": ({"selection": {"fraction": 1.5}}, "selection: `0 < fraction < 1` must hold, but got 1.5"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_its_key_and_the_way_out(name: str) -> None:
    raw, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        make_search({"space": {"method.alpha": {"float": [0.1, 1]}}, **raw})


def test_the_smallest_search_has_the_output_only_baseline() -> None:
    search = make_search({"space": {"method.alpha": {"float": [0.1, 1]}}})
    ((name, seed, values),) = search.fixed()
    assert (name, seed) == ("baseline", 0)
    assert search.run_of(values, name="x", seed=seed).is_output_only


CONDITIONAL = {
    "space": {
        "method.loss": {"choice": ["dice", "prototype", "infonce"]},
        "method.loss.temperature": {"float": [0.05, 0.5], "log": True, "when": {"method.loss": ["prototype", "infonce"]}},
        "method.entropy": {"choice": ["channel", None], "when": {"method.loss": "prototype"}},
        "method.beta": {"float": [0.01, 0.1], "when": {"method.entropy": "channel"}},
        "optimizer.batch_size": {"int": [2, 8], "step": 3},
    }
}


def test_a_conditional_knob_exists_exactly_when_its_conditions_hold() -> None:
    drawn = draws(make_search(CONDITIONAL))
    for values in drawn:
        assert ("method.loss.temperature" in values) == (values["method.loss"] != "dice")
        assert ("method.entropy" in values) == (values["method.loss"] == "prototype")
        # Its condition's own condition must hold too: no entropy was drawn, so there is none that is "channel".
        assert ("method.beta" in values) == (values.get("method.entropy") == "channel")
    for key, seen in (("method.loss", {"dice", "prototype", "infonce"}), ("optimizer.batch_size", {2, 5, 8})):
        assert {values[key] for values in drawn} == seen
    assert {values.get("method.entropy", "absent") for values in drawn} == {"channel", None, "absent"}
    assert all(0.05 <= values["method.loss.temperature"] <= 0.5 for values in drawn if "method.loss.temperature" in values)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_setting_of_a_part_that_the_base_run_has_not_needs_no_condition_where_every_choice_has_it(is_first: bool) -> None:
    loss = {"method.loss": {"choice": ["prototype", "infonce"]}}
    others = {"method.loss.temperature": {"float": [0.05, 0.5]}, "method.alpha": {"float": [0.1, 1]}}
    for values in draws(make_search({"space": {**loss, **others} if is_first else {**others, **loss}})):
        assert set(values) == {*loss, *others}


def test_every_draw_is_a_run_that_has_the_drawn_values() -> None:
    search = make_search(CONDITIONAL)
    for values in draws(search):
        run = search.run_of(values, name="n", seed=7)
        assert (run.name, run.seed, run.method.loss.kind) == ("n", 7, values["method.loss"])
        assert run.optimizer.batch_size == values["optimizer.batch_size"]
        if "method.loss.temperature" in values:
            assert run.method.loss.temperature == values["method.loss.temperature"]
        if "method.beta" in values:
            assert run.method.beta == values["method.beta"]
        if "method.entropy" in values:
            assert (run.method.entropy and run.method.entropy.kind) == values["method.entropy"]


def test_the_logarithm_of_a_range_is_what_is_drawn_evenly() -> None:
    search = make_search({"space": {"method.alpha": {"float": [1e-4, 1.0], "log": True}}})
    below = sum(values["method.alpha"] < 1e-2 for values in draws(search))
    assert 70 < below < 130  # half of 200; without the logarithm it would be two


def test_choices_may_be_lists_and_mappings() -> None:
    structured = [["dice", "brier"], {"kind": "prototype", "temperature": 0.3}, "hsic"]
    search = make_search({"run": {"method": {"standard": {"kind": "depth", "max_taps": 2}}}, "space": {"method.loss": {"choice": structured}}})
    drawn = draws(search, 60)
    assert all(any(values["method.loss"] == choice for values in drawn) for choice in structured)
    assert all(values["method.loss"] in structured for values in drawn)
    run = search.run_of({"method.loss": structured[0]}, name="x", seed=0)
    assert [loss.kind for loss in run.method.loss] == ["dice", "brier"]
    assert search.run_of({"method.loss": structured[1]}, name="x", seed=0).method.loss.temperature == 0.3


def test_conditions_may_name_structured_choices() -> None:
    space = {
        "method.loss": {"choice": [["dice", "brier"], "hsic"]},
        "method.alpha": {"float": [0.1, 1], "when": {"method.loss": [["dice", "brier"]]}},
    }
    for values in draws(make_search({"space": space}), 60):
        assert ("method.alpha" in values) == (values["method.loss"] == ["dice", "brier"])


@pytest.mark.parametrize(
    "raw",
    [
        {"space": {"method.alpha": {"float": [0.1, 1]}}},
        CONDITIONAL,
        {
            "run": {"method": {"entropy": None}, "data": {"kind": "scenes", "size": [64, 96]}},
            "space": {"method.loss": {"choice": [["dice", "brier", "dice"], {"kind": "prototype"}]}},
            "arms": [{"name": "b", "set": {**OUTPUT_ONLY, "method.entropy": None}}, {"name": "dice", "set": {"method.loss": "dice"}}],
            "seeds": [2, 0],
            "scheduler": {"kind": "none"},
            "metric": {"name": "select/loss", "mode": "min"},
        },
    ],
)
def test_a_search_written_out_is_read_back_the_same(raw: dict[str, Any]) -> None:
    search = make_search(raw)
    again = make_search(parse_yaml(dump_yaml(search_to_dict(search))))
    assert again == search
    assert draws(again, 20) == draws(search, 20)
    assert again.fixed() == search.fixed()


def test_every_arm_runs_with_every_seed_and_the_baseline_is_first() -> None:
    arms = [{"name": "b", "set": OUTPUT_ONLY}, {"name": "c", "set": {"method.alpha": 0.1}}]
    search = make_search({"arms": arms, "seeds": [3, 1], "space": {"method.alpha": {"float": [0.1, 1]}}})
    assert [(name, seed) for name, seed, _ in search.fixed()] == [("b", 3), ("b", 1), ("c", 3), ("c", 1)]


def test_a_file_may_stand_on_a_run_s_file_and_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("optimizer: {epochs: 9, lr: 2e-3}\nmethod: {loss: {kind: prototype, temperature: 0.2}}\n")
    path = tmp_path / "search.yaml"
    path.write_text("base: run.yaml\nrun: {optimizer: {lr: 5e-3}}\nspace: {method.alpha: {float: [0.1, 1]}}\n")
    search = load_search(path, ["budget.trials=5", "run.optimizer.epochs=7", "run.method.loss=dice"])
    run = search.base()
    assert (run.optimizer.epochs, run.optimizer.lr, search.budget.trials, run.method.loss.kind) == (7, 5e-3, 5, "dice")


def test_every_line_of_a_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("budget: {trial: 3}\nmetric: {mode: best}\n")
    with pytest.raises(ConfigError) as caught:
        load_search(path)
    one, two = sorted(str(caught.value).splitlines())
    assert one.startswith(f"{path}:1: budget.trial: is no setting")
    assert two.startswith(f"{path}:2: metric.mode: input should be 'max' or 'min', but got 'best'")


@pytest.mark.parametrize("first", ["method.alfa", "method.alpha"])
def test_a_key_with_a_slip_is_blamed_itself_wherever_it_stands(first: str) -> None:
    keys = dict.fromkeys([first, "method.alfa", "method.alpha"])
    with pytest.raises(ConfigError, match="^space.method.alfa: 0.1: method.alfa: is no setting; nearest: 'alpha'"):
        make_search({"space": {key: {"float": [0.1, 1]} for key in keys}})


def test_the_space_is_set_from_the_command_line_although_its_keys_hold_dots(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("space: {method.alpha: {float: [0.1, 1], log: true}, method.loss: {choice: [dice, brier]}}\n")
    given = ["space.method.alpha.float=[0.2, 0.3]", "space.optimizer.lr={float: [0.1, 1]}", "space.method.beta.float=[0.1,0.2]"]
    found = load_search(path, [*given, "space.method.loss.choice=[dice]"]).space
    assert found["method.alpha"].float_ == (0.2, 0.3)
    assert found["method.alpha"].log
    assert found["optimizer.lr"].float_ == (0.1, 1)
    assert found["method.beta"].float_ == (0.1, 0.2)
    assert found["method.loss"].choice == ("dice",)
    conditional = load_search(path, ["space.method.beta={float: [0.1, 1]}", "space.method.beta.when.method.loss=dice"]).space
    assert conditional["method.beta"].when == {"method.loss": "dice"}
    with pytest.raises(ConfigError, match="space.method.alpha.flaot: is no setting; nearest: 'float'"):
        load_search(path, ["space.method.alpha.flaot=[0, 1]"])
