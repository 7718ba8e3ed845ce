"""Relations between settings: their meaning against a plain reading of it, and what becomes of those that are broken."""

from itertools import islice
from typing import Any

import pytest

from imachsr.config.schema import ConfigError
from imachsr.search.space import Constraint, Search, draws, make_search
from imachsr.search.space.constraints import MISSING

SPACE = {
    "method.alpha": {"float": [0.0, 1.0]},
    "method.beta": {"float": [0.0, 1.0]},
    "method.standard": {"choice": ["depth", "stage"]},
    "method.standard.max_taps": {"int": [1, 6]},
}


def search_of(*constraints: dict[str, Any], space: dict[str, Any] = SPACE, **parts: Any) -> Search:
    return make_search({"space": space, "constraints": list(constraints), **parts})


def excess(constraint: dict[str, Any], **values: Any) -> float:
    return Constraint.model_validate(constraint).excess(lambda key: values.get(key, MISSING))


@pytest.mark.parametrize(
    ("constraint", "kept"),
    [
        ({"sum": ["method.alpha", "method.beta"], "at_most": 1.0}, lambda a, b, s, m: a + b <= 1),
        ({"sum": ["method.alpha", "method.beta"], "at_least": 0.5, "at_most": 1.0}, lambda a, b, s, m: 0.5 <= a + b <= 1),
        ({"product": ["method.alpha", "method.standard.max_taps"], "at_least": 1}, lambda a, b, s, m: a * m >= 1),
        ({"less": ["method.beta", "method.alpha"]}, lambda a, b, s, m: b < a),
        ({"forbid": {"method.standard": "depth", "method.standard.max_taps": [5, 6]}}, lambda a, b, s, m: not (s == "depth" and m in (5, 6))),
        ({"forbid": {"method.standard.max_taps": {"at_least": 3}, "method.alpha": {"at_most": 0.5}}}, lambda a, b, s, m: not (m >= 3 and a <= 0.5)),
        ({"less": ["method.beta", "method.alpha"], "when": {"method.standard": "stage"}}, lambda a, b, s, m: s != "stage" or b < a),
    ],
)
def test_a_relation_is_broken_exactly_where_it_reads_so(constraint: dict[str, Any], kept: Any) -> None:
    search = search_of(constraint)
    seen = set()
    for values, found in islice(draws(search, 1), 400):
        wanted = kept(*values.values())
        assert (found == {}) == wanted, (constraint, values, found)
        assert all(amount > 0 for amount in found.values())
        seen.add(wanted)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("constraint", "values", "amount"),
    [
        ({"sum": ["a", "b", "c"], "at_most": 0.6}, {"a": 0.1, "b": 0.2, "c": 0.3}, 0.0),  # 0.6000000000000001 as floats add up
        ({"sum": ["a", "b"], "at_most": 1}, {"a": 0.75, "b": 0.75}, 0.5),
        ({"sum": ["a", "b"], "at_least": 2}, {"a": 0.75, "b": 0.75}, 0.5),
        ({"sum": ["a", "b"], "at_most": 1}, {"a": 5.0}, 0.0),  # b does not exist
        ({"sum": ["a"], "at_most": 1}, {"a": "auto"}, 0.0),
        ({"product": ["a", "b"], "at_most": 8}, {"a": 4, "b": 3}, 4.0),
        ({"less": ["a", "b", "c"]}, {"a": 1, "b": 3, "c": 2}, 1.0),
        ({"differ": ["a", "b", "c"]}, {"a": "dice", "b": "hsic", "c": "dice"}, 1.0),
        ({"differ": ["a", "b"]}, {"a": {"kind": "dice"}, "b": {"kind": "focal"}}, 0.0),
        ({"forbid": {"a": {"kind": "prototype", "temperature": 1}}}, {"a": {"kind": "prototype", "temperature": 1.0, "dimension": 32}}, 1.0),
        ({"forbid": {"a": "prototype"}}, {"a": {"kind": "dice"}}, 0.0),
    ],
)
def test_how_far_beyond(constraint: dict[str, Any], values: dict[str, Any], amount: float) -> None:
    assert max(0.0, excess(constraint, **values)) == pytest.approx(amount, abs=1e-12)


def test_two_equal_numbers_are_not_one_below_the_other() -> None:
    assert excess({"less": ["a", "b"]}, a=1, b=1.0) > 0


def test_a_relation_reads_what_is_not_searched_too() -> None:
    search = search_of(
        {"sum": ["method.alpha", "method.beta"], "at_most": 0.5}, space={"method.alpha": {"float": [0.1, 1]}}, run={"method": {"beta": 0.3}}
    )
    for values, found in islice(draws(search, 0), 100):
        assert (found == {}) == (values["method.alpha"] + 0.3 <= 0.5)


def test_a_relation_reads_through_knobs_that_stand_for_settings() -> None:
    space = {"recipe": {"choice": {"a": {"method.alpha": 0.9}, "b": {"method.alpha": 0.1}}}, "method.beta": {"choice": [0.05, 0.5]}}
    search = search_of({"sum": ["method.alpha", "method.beta"], "at_most": 1}, {"forbid": {"recipe": "b", "method.beta": 0.5}}, space=space)
    kept = {tuple(values.values()) for values, found in islice(draws(search, 0), 60) if not found}
    assert kept == {("a", 0.05), ("b", 0.05)}


def test_losses_of_taps_may_have_to_differ() -> None:
    space = {f"method.loss.{place}": {"choice": ["dice", "hsic", "brier"]} for place in range(2)}
    search = search_of({"differ": ["method.loss.0", "method.loss.1"]}, space=space, run={"method": {"standard": {"kind": "depth", "max_taps": 2}}})
    for values, found in islice(draws(search, 0), 60):
        assert (found == {}) == (values["method.loss.0"] != values["method.loss.1"])


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no relation": ({"when": {"method.standard": "depth"}}, "constraints.0: one of sum, product, less, differ, forbid must be given, but got none"),
    "two relations": ({"less": ["method.alpha", "method.beta"], "forbid": {"method.alpha": 1}}, "but got less and forbid"),
    "sum without a bound": ({"sum": ["method.alpha"]}, "`at_least` or `at_most` must go with sum and product, but neither is given"),
    "bound without a sum": ({"less": ["method.alpha", "method.beta"], "at_most": 1}, "`at_least` or `at_most` must go with sum and product"),
    "bounds that cross": ({"sum": ["method.alpha"], "at_least": 2, "at_most": 1}, "`at_least <= at_most` must hold, but got 2 and 1"),
    "unknown key": ({"sums": ["method.alpha"]}, "constraints.0.sums: is no setting; nearest: 'sum'"),
    "setting that there is not": (
        {"less": ["method.alfa", "method.beta"]},
        "constraints.0: must name knobs or settings .* got 'method.alfa'; .*'method.alpha'",
    ),
    "value that there is not": (
        {"forbid": {"method.standard": "dept"}},
        "constraints.0.forbid.method.standard: must be one of its choices, but got 'dept'; nearest: 'depth'",
    ),
    "relation that nothing keeps": (
        {"sum": ["method.alpha", "method.beta"], "at_least": 3},
        "constraints: must leave room in the space, but all of 5,000",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_its_key(name: str) -> None:
    constraint, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        search_of(constraint)
