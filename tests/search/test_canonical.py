"""Equal configurations have one hash, however they are written; others have another; and what counts as equal trains the same."""

import json
import random
from typing import Any, get_args

import pytest
import torch

from imachsr.config.build import build_model, build_net, calibrate
from imachsr.config.load import make_run, parse_yaml, run_to_dict
from imachsr.config.schema import Run
from imachsr.core.layers import trace
from imachsr.core.losses import SideLoss
from imachsr.core.selection import Standard, select
from imachsr.search.canonical import canonical, fingerprint, fingerprint_of
from imachsr.search.settings import Setting, settings

# What results do not depend on, by the documentation of each.
NO_RESULT = {"name", "seed", "compute.threads", "compute.loader_workers", "data.cache", "scoring.every", "scoring.batch_size"}
NO_RESULT |= {f"recovery.{name}" for name in ("checkpoint_steps", "checkpoint_minutes", "keep", "hang_minutes", "max_restarts", "wait_minutes")}
PROGRESSIVE: dict[str, Any] = {"of": "data", "until": [2], "shares": [0.5]}
# Settings that live beside another value than the default one.
BESIDE: dict[str, dict[str, Any]] = {
    "recovery.max_nonfinite": {"recovery.nonfinite": "skip"},
    "method.heterogeneity": {},
    **{f"optimizer.progressive.{name}": {"optimizer.progressive": PROGRESSIVE} for name in PROGRESSIVE},
}
REQUIRED: dict[str, Any] = {
    "data.root": "somewhere",
    "data.class_names": ["road", "sky"],
    "data.import": "torch:nn",
    "model.import": "torch:nn",
    "model.name": "fcn_resnet50",
    "method.standard.layers": ["encoder.layer1"],
    "method.standard.standards": ["depth", "stage"],
    "method.standard.import": "torch:nn",
    "method.loss.import": "torch:nn",
    "output_loss.import": "torch:nn",
    **{f"optimizer.progressive.{name}": value for name, value in PROGRESSIVE.items()},
}
CHANGED: dict[str, Any] = {
    **REQUIRED,
    "data": {"kind": "camvid", "root": "somewhere"},
    "model": {"kind": "torchvision", "name": "fcn_resnet50"},
    "optimizer.progressive": PROGRESSIVE,
    "optimizer.progressive.of": "resolution",
    "optimizer.progressive.until": [3],
    "optimizer.progressive.shares": [0.25],
    "compute.loader_workers": 2,
    "data.root": "elsewhere",
    "data.class_names": ["road", "trees"],
    "data.val_sequences": ["SEQ5"],
    "data.test_sequences": ["SEQ4"],
    "model.name": "deeplabv3_resnet50",
    "model.architecture": "fpn",
    "model.encoder": "resnet34",
    "model.encoder_weights": "imagenet",
    "data.size": [64, 64],
    "data.ignore": [7],
    "data.mask_suffix": "_mask",
    "data.domain": "shifted",
    "data.on_error": "skip",
    "method.standard.layers": ["encoder.layer2"],
    "method.standard.standards": ["depth", "width"],
    "method.heterogeneity": "strict",
    "output_loss.class_weights": [1.0, 2.0],
    "output_loss.label_smoothing": 0.1,
    "augment.scale": [0.9, 1.1],
    "subset.share": 0.5,
    "optimizer.grad_clip": 1.0,
    "optimizer.ema": 0.9,
    "method.grad_ratio": 0.5,
}


def shuffled(tree: Any, generator: random.Random) -> Any:
    if isinstance(tree, dict):
        items = list(tree.items())
        generator.shuffle(items)
        return {key: shuffled(value, generator) for key, value in items}
    return [shuffled(value, generator) for value in tree] if isinstance(tree, list) else tree


def other_numbers(tree: Any) -> Any:
    """1.0 for 1, and 1 for 1.0, where the schema takes both."""
    if isinstance(tree, dict):
        return {key: other_numbers(value) for key, value in tree.items()}
    if isinstance(tree, float) and tree.is_integer():
        return int(tree)
    return tree


def members(key: str) -> list[str]:
    listed = next(each for each in settings() if each.of == "run" and each.key == key)
    return [kind for kind in listed.values.replace(", or a list of them", "").replace(", or null", "").split(", ") if kind != "import"]


def values_of(each: Setting) -> tuple[Any, Any]:
    """The default of a setting, or a value, and another one."""
    default = parse_yaml(each.default) if each.default != "must be given" else REQUIRED[each.key]
    if each.key in CHANGED and (CHANGED[each.key] != default or each.default == "must be given"):
        if CHANGED[each.key] == default:
            return default, "os:path" if each.key.endswith("import") else None
        return default, CHANGED[each.key]
    if isinstance(default, bool):
        return default, not default
    if isinstance(default, (int, float)):
        return default, default + 1 if isinstance(default, int) or default >= 1 else default / 2 if default else 0.25
    choices = [part.strip() for part in each.values.replace(" or integer", "").replace(", or null", "").split(",")]
    if default is None:
        return default, 3 if "integer" in each.values else 2.5 if "number" in each.values else "text"
    return default, next(choice for choice in choices if choice not in (default, "import"))


RUN_SETTINGS = [each for each in settings() if each.of == "run"]


def around(each: Setting, kind: str | None) -> dict[str, Any]:
    """Settings beside which this one exists."""
    beside: dict[str, Any] = dict(BESIDE.get(each.key, {}))
    if kind is None:
        return beside
    part = each.key.rpartition(".")[0]
    if kind == "import":
        return {**beside, f"{part}.import": REQUIRED[f"{part}.import"]}
    needs = {other.key: REQUIRED[other.key] for other in RUN_SETTINGS if other.default == "must be given" and kind in other.only_with}
    own = {key: value for key, value in needs.items() if key.rpartition(".")[0] == part}
    return {**beside, f"{part}.kind": kind, **own}


CASES = [(each, kind) for each in RUN_SETTINGS for kind in (each.only_with or (None,))]


@pytest.mark.parametrize(("each", "kind"), CASES, ids=[f"{each.key}-{kind}" for each, kind in CASES])
def test_every_setting_changes_the_hash_if_results_depend_on_it(each: Setting, kind: str | None) -> None:
    beside = around(each, kind)
    before, after = values_of(each)
    if kind == "import" and not each.key.endswith("import"):
        pytest.skip("arguments of the user's own")
    one = fingerprint(make_run({}, {**beside, each.key: before}))
    two = fingerprint(make_run({}, {**beside, each.key: after}))
    is_dead = each.key in NO_RESULT
    is_dead |= each.key == "method.standard.placement" and kind in ("entropy", "gradient")
    assert (one == two) == is_dead, (before, after)


def random_run(generator: random.Random) -> dict[str, Any]:
    """Dotted settings, some of which are the defaults."""
    found: dict[str, Any] = {"method.standard.kind": generator.choice(members("method.standard")[:8])}
    found["method.loss"] = generator.choice([*members("method.loss")[:8], ["dice", "hsic", "brier"]])
    for key in ("method.alpha", "method.beta", "optimizer.weight_decay", "optimizer.warmup_epochs"):
        found[key] = generator.choice([0, 1, 2, 0.5])
    found["method.schedule"] = generator.choice(["constant", {"kind": "linear", "end": 1}, {"kind": "warmup", "share": 1}])
    found["optimizer.epochs"] = generator.choice([1, 30])
    found["method.entropy"] = generator.choice([None, "channel_norm", "spatial"])
    return {key: value for key, value in found.items() if generator.random() < 0.8}


@pytest.mark.parametrize("seed", range(30))
def test_a_configuration_has_one_hash_however_it_is_written(seed: int) -> None:
    generator = random.Random(seed)
    values = random_run(generator)
    run = make_run({}, values)
    written = run_to_dict(run)
    assert fingerprint(make_run(written)) == fingerprint(run)  # with every default
    assert fingerprint(make_run(shuffled(written, generator))) == fingerprint(run)
    assert fingerprint(make_run(other_numbers(written))) == fingerprint(run)
    assert fingerprint(make_run({}, shuffled(values, generator))) == fingerprint(run)
    assert fingerprint(make_run({**written, "name": "other", "seed": 9})) == fingerprint(run)
    assert json.loads(json.dumps(canonical(run))) == canonical(run)


def test_plain_values_have_one_hash_too() -> None:
    assert fingerprint_of({"a": 1, "b": [0.1 * 3, -0.0]}) == fingerprint_of({"b": [0.3, 0], "a": 1.0})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": True})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": "1"})
    assert fingerprint_of({"a": 0.3}) != fingerprint_of({"a": 0.3000001})


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    """Results of older searches are found by it: a change here makes them unknown, and must be meant."""
    assert fingerprint_of({"b": [1.0, None, "x"], "a": {"k": 2.5}}) == "78e9ef7a7af11628"


DEPTH2 = {"method.standard": {"kind": "depth", "max_taps": 2}}
DEPTH1 = {"method.standard": {"kind": "depth", "max_taps": 1}}
HALVES = {"kind": "by_depth", "early": "dice", "late": "brier"}
# Two ways to write what trains the same.
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing supervised": (
        {"method.alpha": 0, "method.beta": 0},
        {"method.alpha": 0, "method.entropy": None, "method.loss": "dice", "method.profile": "exp"},
    ),
    "loss without a weight": (
        {"method.alpha": 0},
        {"method.alpha": 0, "method.loss": "hsic", "method.grad_ratio": 0.5, "method.heterogeneity": "strict"},
    ),
    "entropy without a weight": ({"method.beta": 0}, {"method.beta": 0, "method.entropy": "spatial"}),
    "weight without an entropy": ({"method.beta": 0}, {"method.beta": 1, "method.entropy": None}),
    "schedule from 1 to 1": ({}, {"method.schedule": {"kind": "linear", "end": 1}}),
    "cosine from 1 to 1": ({}, {"method.schedule": {"kind": "cosine", "end": 1.0}}),
    "stop at the end": ({}, {"method.schedule": {"kind": "stop_at", "share": 1}}),
    "shares of one tap": (DEPTH1, {**DEPTH1, "method.profile": "exp"}),
    "shares of one named tap": (
        {"method.standard": {"kind": "explicit", "layers": ["encoder.layer2"]}},
        {"method.standard": {"kind": "explicit", "layers": ["encoder.layer2", "encoder.layer2"]}, "method.profile": "linear_depth"},
    ),
    "named taps in any order": (
        {"method.standard": {"kind": "explicit", "layers": ["encoder.layer2", "encoder.layer3"]}},
        {"method.standard": {"kind": "explicit", "layers": ["encoder.layer3", "encoder.layer2"]}},
    ),
    "a list for one tap": ({**DEPTH1, "method.loss": "dice"}, {**DEPTH1, "method.loss": ["dice"]}),
    "halves of one tap": ({**DEPTH1, "method.loss": "dice"}, {**DEPTH1, "method.loss": HALVES}),
    "equal halves": ({**DEPTH2, "method.loss": "dice"}, {**DEPTH2, "method.loss": {**HALVES, "late": "dice"}}),
    "shares that part two taps alike": ({**DEPTH2, "method.loss": HALVES}, {**DEPTH2, "method.loss": {**HALVES, "share": 0.9}}),
    "warn and off": ({"method.loss": "dice"}, {"method.loss": "dice", "method.heterogeneity": "off"}),
    "union in any order": (
        {"method.standard": {"kind": "union", "standards": ["depth", {"kind": "stage", "max_taps": 2}]}},
        {"method.standard": {"kind": "union", "standards": [{"kind": "stage", "max_taps": 2, "min_gap": 0}, "depth", "depth"]}},
    ),
    **{
        f"gap beside the one tap of {kind}": (
            {"method.standard": {"kind": kind, "max_taps": 1}},
            {"method.standard": {"kind": kind, "max_taps": 1, "min_gap": 4}},
        )
        for kind in ("depth", "flops", "params", "receptive_field", "bottleneck")
    },
}
DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shares of two taps": (DEPTH2, {**DEPTH2, "method.profile": "exp"}),
    "order of losses": ({**DEPTH2, "method.loss": ["dice", "brier"]}, {**DEPTH2, "method.loss": ["brier", "dice"]}),
    "halves the other way": ({**DEPTH2, "method.loss": HALVES}, {**DEPTH2, "method.loss": {"kind": "by_depth", "early": "brier", "late": "dice"}}),
    "shares that part four taps otherwise": (
        {"method.standard": {"kind": "depth", "max_taps": 4}, "method.loss": HALVES},
        {"method.standard": {"kind": "depth", "max_taps": 4}, "method.loss": {**HALVES, "share": 0.8}},
    ),
    "schedule that acts": ({}, {"method.schedule": {"kind": "linear", "end": 0.99}}),
    "gap of resolution": (
        {"method.standard": {"kind": "resolution", "max_taps": 2, "min_gap": 0}},
        {"method.standard": {"kind": "resolution", "max_taps": 2, "min_gap": 25}},
    ),
    "placement of depth": (DEPTH1, {"method.standard": {"kind": "depth", "max_taps": 1, "placement": "late"}}),
    "both terms": ({"method.alpha": 0}, {"method.beta": 0}),
}


def small(values: dict[str, Any]) -> Run:
    return make_run({"data": {"kind": "scenes", "size": [32, 32]}, "model": {"encoder": "resnet18"}, "method": {"schedule": "constant"}}, values)


def terms(run: Run) -> dict[str, float]:
    """Weighted losses of each tap at the middle of the training."""
    net = build_net(run, num_classes=4, size=(32, 32), steps_per_epoch=2)
    net._steps.fill_((net.total_steps or 0) // 2)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 4, (2, 32, 32), generator=generator)
    losses = net(images, labels)
    return {
        "total": float(losses.total.detach()),
        **{name: float(losses.weights[name]) * float(value.detach()) for name, value in losses.terms.items()},
    }


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.* taps were asked for, but this model and rule offer")
@pytest.mark.filterwarnings("ignore:a side loss must differ")
@pytest.mark.parametrize("name", SAME)
def test_what_has_one_hash_trains_the_same(name: str) -> None:
    one, two = map(small, SAME[name])
    assert one != two
    assert fingerprint(one) == fingerprint(two)
    assert terms(one) == terms(two)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.* taps were asked for, but this model and rule offer")
@pytest.mark.parametrize("name", DIFFERENT)
def test_what_trains_otherwise_has_another_hash(name: str) -> None:
    one, two = map(small, DIFFERENT[name])
    assert fingerprint(one) != fingerprint(two)
    assert terms(one) != terms(two)


@pytest.mark.parametrize("kind", ["entropy", "gradient"])
@pytest.mark.filterwarnings("ignore:.* taps were asked for, but this model and rule offer")
def test_a_ranking_has_no_placement(kind: str) -> None:
    """Standards that look at data: their picks are compared with the same data."""
    run = make_run({"data": {"kind": "scenes", "size": [32, 32], "num_train": 4}})
    model = build_model(run, 11)
    traced = trace(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for gap in (0, 3):
        for count in (1, 3, 40):
            chosen = []
            for placement in ("early", "uniform", "late"):
                made = make_run({}, {"method.standard": {"kind": kind, "max_taps": count, "min_gap": gap, "placement": placement}})
                rule: Any = made.method.standard
                chosen.append([tap.layer.address for tap in select(rule, traced, calibrate(run, model, 11))])
                assert fingerprint(made) == fingerprint(make_run({}, {"method.standard": {"kind": kind, "max_taps": count, "min_gap": gap}}))
            assert chosen[0] == chosen[1] == chosen[2]


def test_the_unions_are_all_covered() -> None:
    assert {member.kind for member in get_args(SideLoss)} == set(members("method.loss"))
    assert {member.kind for member in get_args(Standard)} == set(members("method.standard"))
