"""Where a mistake stands: file and line of everything that a search's file can get wrong, and points."""

from pathlib import Path
from typing import Any

import pytest

from imachsr.config.schema import ConfigError
from imachsr.search.space import load_search, make_search, search_to_dict

FILE = """\
# a comment
base: run.yaml
run:
  optimizer: {epochs: 6}
space:
  method.loss:
    choice: [dice, prototype]
  method.loss.temperature:
    float: [0.1, 1]
    when:
      method.loss: prototype
  method.alpha: {float: [0.1, 1]}
constraints:
  - {sum: [method.alpha, method.beta], at_most: 1.5}
points:
  - {method.loss: dice, method.alpha: 0.5}
arms:
  - {name: baseline, set: {method.alpha: 0, method.beta: 0}}
  - name: dice
    set:
      method.loss: dice
budget: {trials: 8}
metric: {name: select/miou}
"""
RUN = "method:\n  beta: 0.2\noptimizer:\n  lr: 1e-3\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


def message_of(folder: Path, old: str, new: str, *overrides: str) -> str:
    assert old in FILE + RUN
    path = folder / "search.yaml"
    path.write_text(FILE.replace(old, new))
    (folder / "run.yaml").write_text(RUN.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_search(path, overrides)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("choice: [dice, prototype]", "choice: [dice, prototip]", "search.yaml:6: space.method.loss: 'prototip': "),
        ("float: [0.1, 1]\n    when", "flaot: [0.1, 1]\n    when", "search.yaml:9: space.method.loss.temperature.flaot: is no setting"),
        ("method.loss: prototype", "method.loss: prototip", "search.yaml:11: space.method.loss.temperature.when.method.loss: must be one of"),
        ("method.loss: prototype", "method.los: prototype", "search.yaml:10: space.method.loss.temperature.when: must name a knob of the space"),
        ("method.alpha: {float: [0.1, 1]}", "method.alpha: {float: [1, 1]}", "search.yaml:12: space.method.alpha: `low < high` must hold"),
        ("at_most: 1.5", "at_mots: 1.5", "search.yaml:14: constraints.0.at_mots: is no setting"),
        ("sum: [method.alpha, m", "sum: [method.alfa, m", "search.yaml:14: constraints.0: must name knobs or settings"),
        ("method.alpha: 0.5", "method.alpha: 5", "search.yaml:16: points.0.method.alpha: must be real from 0.1 to 1, but got 5"),
        ("method.loss: dice, m", "method.los: dice, m", "search.yaml:16: points.0.method.los: is no knob of the space; nearest: 'method.loss'"),
        ("      method.loss: dice", "      method.los: dice", "search.yaml:21: arms.1 (dice): method.los: is no setting"),
        (
            "- name: dice\n    set:\n      method.loss: dice",
            "- {name: none, set: {method.alpha: 0, method.beta: 0, method.loss: dice}}",
            "search.yaml:19: arms.1: arms must differ in what they train, but baseline and none do not (a mapping is laid over",
        ),
        ("trials: 8", "trials: 0", "search.yaml:22: budget.trials: `trials >= 1` must hold, but got 0"),
        ("trials: 8", "trials: 2", "search.yaml:22: budget.trials: must cover the 2 arms (with every seed) and 1 points, but got 2"),
        (
            "select/miou",
            "select/miuo",
            "search.yaml:23: metric.name: must be a key of every trial's rows, but got 'select/miuo'; nearest: 'select/miou'",
        ),
        (
            "{name: select/miou}",
            "{name: select/ece, mode: max}",
            "search.yaml:23: metric.mode: must be min for select/ece, but got max; leave it out",
        ),
        (
            "{name: select/miou}",
            "{name: select/miou}\nalso: [{name: select/ece}, {name: select/miou}]",
            "search.yaml:24: also: each objective must be there once, but select/miou is twice",
        ),
        ("    set:\n      method.loss: dice", "    sets:\n      method.loss: dice", "search.yaml:20: arms.1.sets: is no setting; nearest: 'set'"),
        ("epochs: 6", "epochs: 0", "search.yaml:4: run: optimizer.epochs: `epochs >= 1` must hold, but got 0"),
        ("optimizer: {epochs: 6}", "optimiser: {epochs: 6}", "search.yaml:4: run: optimiser: is no setting"),
        ("lr: 1e-3", "lr: 0", "run.yaml:4: run: optimizer.lr: `lr > 0` must hold, but got 0"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(folder: Path, old: str, new: str, start: str) -> None:
    message = message_of(folder, old, new)
    assert message.startswith(start)


@pytest.mark.parametrize(("name", "mode"), [("select/ece", "min"), ("select/loss", "min"), ("time/step_ms", "min"), ("select/accuracy", "max")])
def test_the_direction_of_an_objective_follows_from_its_name(name: str, mode: str) -> None:
    search = make_search({"space": {"method.alpha": {"float": [0.1, 1]}}, "metric": {"name": name}})
    assert search.metric.mode == mode


def test_what_the_command_line_gave_is_in_no_line_of_the_file(folder: Path) -> None:
    assert message_of(folder, "trials: 8", "trials: 8", "budget.trials=0").startswith("search.yaml: budget.trials: `trials >= 1` must hold")


def test_the_file_as_it_stands_is_right(folder: Path) -> None:
    path = folder / "search.yaml"
    path.write_text(FILE)
    assert load_search(path).points == ({"method.loss": "dice", "method.alpha": 0.5},)


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["sampler.population=8"], "sampler.population has no effect with sampler.kind tpe"),
        (["scheduler.kind=none", "scheduler.grace=4"], "scheduler.grace has no effect with scheduler.kind none"),
        (["space.method.alpha.num=4"], "space.method.alpha.num has no effect with sampler.kind tpe"),
    ],
)
def test_a_setting_without_an_effect_warns(folder: Path, overrides: list[str], warning: str) -> None:
    path = folder / "search.yaml"
    path.write_text(FILE)
    with pytest.warns(UserWarning, match=warning):
        load_search(path, overrides)


SPACE = {
    "method.loss": {"choice": ["dice", ["hsic", "brier"], {"kind": "prototype", "temperature": 0.1}]},
    "method.loss.temperature": {"float": [0.05, 1.0], "step": 0.05, "when": {"method.loss": [{"kind": "prototype"}]}},
    "method.standard.max_taps": {"int": [1, 4]},
    "optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
}


def test_a_point_is_told_to_the_sampler_whole_with_the_base_run_s_values() -> None:
    search = make_search({"space": SPACE, "run": {"method": {"standard": "depth", "loss": "prototype"}}})
    # prototype at its default temperature is the base run's loss
    assert search.point_params({"optimizer.lr": 5e-3}) == {
        "method.loss": '{"kind": "prototype", "temperature": 0.1}',
        "method.loss.temperature": 0.1,
        "method.standard.max_taps": 3,
        "optimizer.lr": 5e-3,
    }
    assert search.point_params({"method.loss": ["hsic", "brier"], "method.standard.max_taps": 2}) == {
        "method.loss": '["hsic", "brier"]',
        "method.standard.max_taps": 2,
        "optimizer.lr": 1e-3,
    }


def test_a_point_trains_what_the_sampler_is_told_also_where_it_replaces_what_a_knob_is_part_of() -> None:
    space = {"method.standard": {"choice": ["resolution", "depth"]}, "method.standard.max_taps": {"int": [1, 6]}}
    search = make_search({"space": space, "run": {"method": {"standard": {"kind": "resolution", "max_taps": 6}}}})
    values = search.point_values({"method.standard": "depth"})
    standard = search.run_of(values, name="x", seed=0).method.standard
    assert (standard.kind, standard.max_taps) == ("depth", 6)  # type: ignore[union-attr]
    assert search.point_params({"method.standard": "depth"})["method.standard.max_taps"] == 6


def test_a_limit_that_was_lifted_stays_lifted() -> None:
    assert make_search(search_to_dict(make_search({"space": SPACE, "limits": {"memory_mib": None}}))).limits.memory_mib is None
    assert make_search(search_to_dict(make_search({"space": SPACE}))).limits.memory_mib == "auto"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"method.loss": "hsic"}, "points.0.method.loss: must be one of dice"),
        (
            {"method.loss": "dice", "method.loss.temperature": 0.1},
            "points.0.method.loss.temperature: does not exist beside the others, by its `when`",
        ),
        ({"method.loss.temperature": 0.07}, "points.0.method.loss.temperature: must be real from 0.05 to 1, in steps of 0.05, but got 0.07"),
        ({"method.standard.max_taps": 2.5}, "points.0.method.standard.max_taps: must be integer from 1 to 4, but got 2.5"),
        ({"method.standard.max_taps": True}, "points.0.method.standard.max_taps: must be integer from 1 to 4, but got True"),
        ({"optimizer.lr": "fast"}, "points.0.optimizer.lr: must be real from 0.0001 to 0.01, logarithmic, but got 'fast'"),
        ({"method.beta": 0.1}, "points.0.method.beta: is no knob of the space"),
        ({"method.loss": "dice", "optimizer.lr": 9e-3}, r"points.0: must keep the constraints, but breaks constraints.0 \(not method.loss dice with"),
    ],
)
def test_a_point_outside_of_the_space_is_refused(point: dict[str, Any], message: str) -> None:
    constraints = [{"forbid": {"method.loss": "dice", "optimizer.lr": {"at_least": 5e-3}}}]
    raw = {"space": SPACE, "points": [point], "constraints": constraints, "run": {"method": {"standard": "depth", "loss": "prototype"}}}
    with pytest.raises(ConfigError, match=message):
        make_search(raw)


def test_the_knobs_of_the_user_s_own_function_are_no_settings_of_a_run() -> None:
    raw: dict[str, Any] = {
        "function": "mine.train:train",
        "metric": {"name": "score"},
        "space": {"width": {"int": [1, 8]}, "rate": {"float": [0.1, 1]}, "pair": {"choice": {"a": {"x": 1, "y": 2}, "b": {"x": 5, "y": 1}}}},
        "constraints": [{"product": ["width", "rate"], "at_most": 2}, {"less": ["x", "y"]}],
        "points": [{"width": 1, "rate": 0.5, "pair": "a"}],
        "arms": [{"name": "plain", "set": {"width": 1, "rate": 0.1, "pair": "a"}}],
    }
    search = make_search(raw)
    assert search.excess({"width": 2, "rate": 1.0, "pair": "a"}) == {}
    assert search.excess({"width": 3, "rate": 1.0, "pair": "b"}).keys() == {"constraints.0", "constraints.1"}
    with pytest.raises(ConfigError, match="points.0.rate: must be given"):
        make_search({**raw, "points": [{"width": 1, "pair": "a"}]})
    with pytest.raises(ConfigError, match="constraints.0: must name knobs or settings .* got 'widht'; nearest: 'width'"):
        make_search({**raw, "constraints": [{"sum": ["widht"], "at_most": 2}]})
