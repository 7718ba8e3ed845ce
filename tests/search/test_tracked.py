from pathlib import Path
from typing import Any

import pytest

from imachsr.config.load import load_yaml, make_run, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.search.space import load_search, make_search
from imachsr.search.tracked import choice, recorded, start_of, sweep_of
from tests.tracking.folders import row, searched

ROOT = Path(__file__).parents[2]


def method(**over: Any) -> dict[str, Any]:
    return run_to_dict(make_run({"method": over}))


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({}, {"standard": "auto", "loss": "brier", "entropy": "channel_norm", "alpha": 1.88, "beta": 0.0708, "max_taps": 7}),
        ({"loss": ["dice", "brier"]}, {"loss": "dice+brier"}),
        ({"loss": {"kind": "by_depth", "early": "dice", "late": "hsic"}}, {"loss": "dice+hsic"}),
        ({"entropy": None, "beta": 0.0}, {"entropy": "none", "beta": 0.0}),
        ({"standard": {"kind": "resolution", "max_taps": 1}}, {"standard": "resolution", "max_taps": 1}),
    ],
)
def test_what_is_compared_is_a_word_or_a_number_each(over: dict[str, Any], expected: dict[str, Any]) -> None:
    found = choice(method(**over))
    assert {name: found[name] for name in expected} == expected
    assert all(isinstance(value, (str, int, float)) for value in found.values())


def test_the_values_of_ones_own_function_have_no_choices() -> None:
    assert choice({"x": 1.0, "seed": 0}) == {}


SPACES = [path for path in sorted((ROOT / "search_spaces").glob("*.yaml")) if "cells" not in load_yaml(path)]


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_is_a_sweep_of_its_knobs(path: Path) -> None:
    search = load_search(path, [])
    found = sweep_of(search)
    assert list(found["parameters"]) == [f"knobs/{name.replace('.', '/')}" for name in search.space]
    for drawn in found["parameters"].values():
        assert drawn.get("values") or drawn["min"] < drawn["max"]


def test_what_is_read_back_is_what_the_driver_told(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    found = recorded(folder)
    assert [each.state for each in found] == ["finished", "finished", "stopped", "failed"]
    assert [each.start.job_type for each in found] == ["baseline", "trial", "trial", "trial"]
    assert [dict(line) for line in found[1].rows] == [row(1, epoch) for epoch in (1, 2, 3)]
    search = make_search(load_yaml(folder / "search.yaml"))
    facts = {"number": 1, "arm": None, "origin": "sampler", "key": "k1", "params": {"method.alpha": 0.1, "method.loss": "dice"}}
    code = {"versions": {"torch": "2.14.1"}, "revisions": {"imachsr": None}, "data": {"train": "abc"}}
    at = folder / "trials/0001"
    assert found[1].start == start_of(search, "u1", facts, load_yaml(at / "run.yaml"), code, at)


def test_a_line_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    lines = (folder / "trials.jsonl").read_text()
    (folder / "trials.jsonl").write_text(lines + lines.splitlines()[0][:20])
    assert [len(each.rows) for each in recorded(folder)] == [3, 3, 1, 1]


def test_a_folder_that_holds_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be the folder of a search of which a trial has ended, or of a training that was tracked"):
        recorded(tmp_path)
