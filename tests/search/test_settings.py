from typing import Any, get_args

import pytest

from imachsr.config.load import dump_yaml, make_run, parse_yaml, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.core.entropy import Regularizer
from imachsr.search.settings import Setting, settings
from imachsr.search.space import Search, make_search, search_to_dict
from imachsr.study.schema import StudyPlan


def leaves(tree: Any, above: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree and not above.startswith("run."):
        return {key: value for name, part in tree.items() for key, value in leaves(part, f"{above}{name}.").items()}
    return {above.rstrip("."): tree}


DEFAULT_KINDS = {"auto", "brier", "channel_norm", "cross_entropy", "smp", "scenes", "constant"}


def of(name: str) -> dict[str, Setting]:
    """By key; where kinds have defaults of their own, those of the kinds that are the default come last, and win."""
    found = [each for each in settings() if each.of == name and (not each.only_with or "import" not in each.only_with)]
    return {each.key: each for each in sorted(found, key=lambda each: bool(DEFAULT_KINDS & set(each.only_with)))}


@pytest.mark.parametrize(("name", "plain"), [("run", run_to_dict(Run())), ("search", search_to_dict(Search()))])
def test_every_setting_is_listed_with_its_default(name: str, plain: dict[str, Any]) -> None:
    listed = of(name)
    found = {key.removesuffix(".kind") if key.removesuffix(".kind") in listed else key: value for key, value in leaves(plain).items()}
    for key, value in found.items():
        if key in ("arms", "run", "space"):
            continue
        # As YAML reads it, since that is where it is written.
        assert parse_yaml(listed[key].default) == parse_yaml(dump_yaml(value)), key


def test_the_list_knows_kinds_bounds_units_and_what_must_be_given() -> None:
    found = {(each.key, each.only_with): each for each in settings()}
    assert found["optimizer.epochs", ()].values == "integer >= 1"
    assert found["optimizer.grad_clip", ()].values == "number > 0, or null"
    assert found["method.loss.temperature", ("prototype",)].default == "0.1"
    assert found["data.root", ("camvid",)].default == "must be given"
    assert found["compute.device", ()].values == "auto, cpu, cuda"
    assert found["method.entropy", ()].values == ", ".join(member.kind for member in get_args(Regularizer)) + ", or null"
    assert "pixels" in found["data.size", ("scenes", "camvid", "folder")].meaning
    assert found["budget.gpus_per_trial", ()].meaning == "GPUs of each worker, >= 0; fractions share one."
    assert found["budget.hours", ()].values == "number > 0, or null"
    assert found["limits.memory_mib", ()].values == "auto or number, or null"  # whose bound it would be is not known
    assert found["space", ()].values == "mapping to mapping (choice, int, float, step, log, num, when, sets)"


def test_what_is_listed_can_be_set() -> None:
    """A key that the schema does not know would be refused."""
    for each in of("run").values():
        kind = each.only_with[0] if each.only_with else None
        part = each.key.rpartition(".")[0]
        if each.default not in ("must be given", '""') and (kind in (None, "scenes", "smp", "prototype", "cross_entropy", "resolution")):
            make_run({}, {**({f"{part}.kind": kind} if kind else {}), each.key: parse_yaml(each.default)})
    listed = of("search")
    for each in listed.values():
        # What lies in something that is null or a list by default stands there only together with the rest of it.
        if each.key not in ("arms", "run", "space") and not any(each.key.startswith(f"{key}.") for key in listed):
            tree: Any = parse_yaml(each.default)
            for name in reversed(each.key.split(".")):
                tree = {name: tree}
            make_search({"space": {"method.alpha": {"float": [0.1, 1]}}, **tree})


@pytest.mark.parametrize(
    ("prefix", "count"),
    [("optimizer", 12), ("run.optimizer", 12), ("optimizer.lr", 1), ("budget", 15), ("method.loss", 14), ("run.budget", None), ("optim", None)],
)
def test_a_prefix_is_whole_parts_of_a_key(prefix: str, count: int | None) -> None:
    if count is None:
        with pytest.raises(ConfigError, match=f"but got '{prefix}'; "):
            settings(prefix)
        return
    assert len(settings(prefix)) == count
    assert all(each.key.startswith(prefix.removeprefix("run.")) for each in settings(prefix))


def test_a_slip_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest: 'optimizer'"):
        settings("optimiser")


def test_what_lies_in_lists_and_mappings_is_listed_too() -> None:
    found = {each.key: each for each in settings(beside={"study": StudyPlan})}
    assert found["cells.N.equal"].values == "epochs, time"
    assert found["space.NAME.choice"].of == "search"
    assert found["primary.arm"].default == "must be given"
    assert {"cells.N.set", "arms.N.set"} <= set(found)  # as in YAML, not as in Python
    assert [each.key for each in settings("charts", beside={"study": StudyPlan})] == ["charts", "charts.N.over", "charts.N.cells"]
