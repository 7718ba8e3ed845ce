"""YAML and overrides become a checked run, and back; every message names file, key and the nearest name."""

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from imachsr.config.load import dump_yaml, load_run, load_yaml, make_run, merge, nested, parse_overrides, parse_yaml, run_to_dict
from imachsr.config.schema import ByDepth, ConfigError, ImportedPart, Run, validate
from imachsr.core.entropy import Regularizer
from imachsr.core.losses import Brier, Dice, InfoNCE, Prototype, SideLoss
from imachsr.core.output import OutputLoss
from imachsr.core.schedules import Profile, Schedule, StopAt
from imachsr.core.selection import DepthStandard, ResolutionStandard, Standard, UnionStandard
from imachsr.data import Imported, Scenes
from imachsr.models import TorchvisionModel


def run_with(*overrides: str, raw: dict[str, Any] | None = None) -> Run:
    return make_run(raw or {}, parse_overrides(overrides))


def message_of(*overrides: str, raw: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        run_with(*overrides, raw=raw)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


# YAML without its surprises.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2e+2", -200.0),
        ("1.5e-3", 0.0015),
        (".5", 0.5),
        ("5.", 5.0),
        ("3", 3),
        ("-4", -4),
        ("true", True),
        ("False", False),
        ("off", "off"),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("OFF", "OFF"),
        ("null", None),
        ("~", None),
        ("2026-01-02", "2026-01-02"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("0001TP", "0001TP"),
        ("'1e-3'", "1e-3"),
        ("[1e-3, off, 2]", [0.001, "off", 2]),
        ("{a: 1e-3}", {"a": 0.001}),
    ],
)
def test_yaml_values_mean_what_they_look_like(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan_are_numbers() -> None:
    assert parse_yaml(".inf") == float("inf")
    assert parse_yaml("-.inf") == -float("inf")
    assert parse_yaml(".nan") != parse_yaml(".nan")


@pytest.mark.parametrize("value", [1e-3, 1e-12, 1e22, 0.1, "off", "on", "1e-3", "true", "null", None, 3, "a: b", "ü", [], {}, {"a": [{"b": "no"}]}])
def test_dumped_yaml_reads_back(value: Any) -> None:
    found = parse_yaml(dump_yaml(value))
    assert found == value
    assert type(found) is type(value)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be YAML, but: could not determine a constructor"):
        parse_yaml(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [("a: 1\nb: 2\na: 3\n", 3, "'a'"), ("x:\n  lr: 1\n  wd: 2\n  lr: 1\n", 4, "'lr'"), ("- {q: 1, q: 2}", 1, "'q'"), ("1: a\n1: b", 2, "1")],
)
def test_a_key_given_twice_is_refused_with_its_line(text: str, line: int, key: str) -> None:
    with pytest.raises(ConfigError, match=f"line {line}: key {key} must be given once, but is given again"):
        parse_yaml(text)


def test_anchors_and_merge_keys_work_and_are_no_duplicates() -> None:
    assert parse_yaml("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3\n") == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}


@pytest.mark.parametrize("text", ["{[1]: 2}", "? {a: 1}\n: 2"])
def test_a_key_that_is_no_scalar_is_a_message(text: str) -> None:
    with pytest.raises(ConfigError, match="line 1: a key must be a name, but is a structure"):
        parse_yaml(text)


# Files.


def test_a_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("")
    (tmp_path / "two.yml").write_text("")
    (tmp_path / "three.txt").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path / "oen.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/oen.yaml must be a readable file, but: No such file or directory; beside it: {tmp_path}/one.yaml, {tmp_path}/two.yml"
    )


def test_a_missing_folder_and_a_folder_for_a_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none/x.yaml must be a readable file, but: No such file or directory$"):
        load_run(tmp_path / "none" / "x.yaml")
    with pytest.raises(ConfigError, match="must be a readable file, but: Is a directory"):
        load_run(tmp_path)


def test_a_file_of_another_encoding_is_told(file: Path) -> None:
    file.write_bytes("name: B\u00e4r".encode("latin-1"))
    with pytest.raises(ConfigError, match=f"{file} must be UTF-8 text, but: 'utf-8' codec can't decode byte 0xe4 in position 7"):
        load_run(file)


@pytest.mark.parametrize(("text", "kind"), [("- 1\n- 2\n", "list"), ("just text", "str"), ("3", "int")])
def test_a_file_must_hold_a_mapping(file: Path, text: str, kind: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"{file} must hold a mapping of keys to values, but holds {kind}"):
        load_yaml(file)


def test_broken_yaml_is_told_with_file_line_and_column(file: Path) -> None:
    file.write_text("name: x\nmethod: {alpha: 1\n")
    with pytest.raises(ConfigError, match=f"{file}: must be YAML, but: .*line 3, column 1"):
        load_run(file)


def test_a_duplicate_is_told_with_file_and_line(file: Path) -> None:
    file.write_text("name: x\nmethod:\n  alpha: 1\n  alpha: 2\n")
    with pytest.raises(ConfigError, match=f"{file}: line 4: key 'alpha' must be given once"):
        load_run(file)


def test_an_empty_file_may_have_lost_its_settings_but_empty_settings_are_the_defaults(file: Path) -> None:
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=f"{file} must hold settings, but is empty; {{}} stands for the defaults"):
        load_run(file)
    file.write_text("{}\n")
    assert load_run(file) == Run()


def test_every_mistake_has_a_line_with_file_and_key(file: Path) -> None:
    file.write_text("optimizer:\n  lr: 0\n  epochs: 0\nmethd: {}\nmodel: {architecture: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_run(file)
    lines = str(caught.value).splitlines()
    wanted = (
        "2: optimizer.lr: `lr > 0` must",
        "3: optimizer.epochs: `epochs >= 1` must hold, but got 0",
        "4: methd: is no setting",
        "5: model.architec",
    )
    assert len(lines) == 4
    for start in wanted:
        assert any(line.startswith(f"{file}:{start}") for line in lines), start


def test_a_line_is_that_of_the_nearest_key_that_the_file_has(file: Path) -> None:
    file.write_text("# a comment\nmethod:\n\n  loss:\n    - dice\n    - kind: focal\n      gamma: -1\n  standard: explicit\n")
    with pytest.raises(ConfigError) as caught:
        load_run(file)
    starts = [line.split(": ", 2)[:2] for line in str(caught.value).splitlines()]
    # What is missing is told where it would stand; a rule of the loss's own, at the loss.
    assert [f"{file}:6", "method.loss.1"] in starts
    assert [f"{file}:8", "method.standard.layers"] in starts


def test_what_the_command_line_gave_is_in_no_line_of_the_file(file: Path) -> None:
    file.write_text("optimizer: {lr: 1e-3}\n")
    with pytest.raises(ConfigError, match=f"^{file}: optimizer.lr: `lr > 0` must hold, but got 0"):
        load_run(file, ["optimizer.lr=0"])
    with pytest.raises(ConfigError, match=f"^{file}: optimizer.epochs: `epochs >= 1` must hold, but got 0"):
        load_run(file, ["optimizer={epochs: 0}"])


def test_places_of_a_list_are_set_one_by_one() -> None:
    run = run_with("method.loss.1.gamma=3", "method.loss.0=dice", "method.loss.1.kind=focal")
    assert [loss.kind for loss in run.method.loss] == ["dice", "focal"]
    assert run.method.loss[1].gamma == 3
    changed = make_run(run_to_dict(run), {"method.loss.1.gamma": 1, "method.loss.2": "hsic"})
    assert [loss.kind for loss in changed.method.loss] == ["dice", "focal", "hsic"]
    assert changed.method.loss[1].gamma == 1
    many = make_run({}, {f"method.loss.{place}": "dice" for place in reversed(range(12))})
    assert len(many.method.loss) == 12
    assert make_run({}, {"data.size.0": 64}).data.size == (64, 128)


def test_a_list_is_given_in_order() -> None:
    with pytest.raises(ConfigError, match=r"a list must be given in order, but got place 1 of one with 0 \(the first is 0\)"):
        run_with("method.loss.1=dice")


# Round trips.


def test_every_default_is_written_out_and_reads_back() -> None:
    run = Run()
    plain = run_to_dict(run)
    assert make_run(plain) == run
    assert make_run(parse_yaml(dump_yaml(plain))) == run
    assert set(plain) == set(Run.model_fields)
    assert plain["method"]["loss"] == {"kind": "brier"}


FULL: dict[str, dict[str, Any]] = {
    **{kind: {"root": "x"} for kind in ("camvid", "cityscapes", "synthia_sf", "synthia_rand")},
    "folder": {"root": "x", "class_names": ["a", "b"]},
    "explicit": {"layers": ["a"]},
    "torchvision": {"name": "n"},
    "union": {"standards": ["depth", {"kind": "resolution", "max_taps": 2}]},
}
UNIONS: list[tuple[str, Any]] = [
    ("method.standard", Standard),
    ("method.loss", SideLoss),
    ("method.entropy", Regularizer),
    ("method.schedule", Schedule),
    ("output_loss", OutputLoss),
    ("data", Run.model_fields["data"].annotation),
    ("model", Run.model_fields["model"].annotation),
]


def members() -> list[tuple[str, str]]:
    found = []
    for key, union in UNIONS:
        for member in get_args(union):
            kind = next(field.default for name, field in member.__dataclass_fields__.items() if name == "kind")
            if kind != "import":
                found.append((key, kind))
    return found


@pytest.mark.parametrize(("key", "kind"), members())
def test_every_kind_is_reached_by_name_and_round_trips(key: str, kind: str) -> None:
    run = run_with(f"{key}={yaml.safe_dump({'kind': kind, **FULL.get(kind, {})}, default_flow_style=True).strip()}")
    assert make_run(parse_yaml(dump_yaml(run_to_dict(run)))) == run
    part: Any = run_to_dict(run)
    for name in key.split("."):
        part = part[name]
    assert part["kind"] == kind
    if kind not in FULL:
        assert run_with(f"{key}={kind}") == run
    else:  # what is named without its settings is a message, not a traceback
        assert message_of(f"{key}={kind}").startswith(f"{key}")


@pytest.mark.parametrize(("key", "kind"), members())
def test_every_kind_refuses_an_unknown_setting_and_tells_the_known(key: str, kind: str) -> None:
    raw: Any = {"kind": kind, **FULL.get(kind, {}), "zzzz": 1}
    for name in reversed(key.split(".")):
        raw = {name: raw}
    assert message_of(raw=raw).startswith(f"{key}: 'zzzz' is no setting of '{kind}'; known: ")


@pytest.mark.parametrize(
    "raw",
    [
        {"method": {"loss": ["dice", {"kind": "prototype", "temperature": 0.3}]}},
        {"method": {"entropy": None}},
        {"data": {"import": "a.b:c", "root": "/data", "path": "/p", "nested": {"a": [1, 2]}}},
        {"model": {"import": "a.b:c"}},
        {"method": {"loss": {"import": "a.b:c", "depth": 2}, "standard": {"import": "a.b:d"}}, "output_loss": {"import": "a.b:e"}},
        {"output_loss": {"kind": "cross_entropy", "class_weights": [1, 0.5, 2]}},
        {"compute": {"channels_last": "off", "threads": 2}, "optimizer": {"grad_clip": 1.0}},
    ],
)
def test_special_settings_round_trip(raw: dict[str, Any]) -> None:
    run = make_run(raw)
    assert make_run(parse_yaml(dump_yaml(run_to_dict(run)))) == run
    assert make_run(run_to_dict(run), {"name": "other"}).model_copy(update={"name": run.name}) == run


# Unknown names, at any depth.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metod.loss=dice", "metod: is no setting; nearest: 'method'"),
        ("method.los=dice", "method.los: is no setting; nearest: 'loss'"),
        ("optimizer.learning=1", "optimizer.learning: is no setting; known: 'epochs', 'batch_size', 'lr'"),
        ("compute.thread=1", "compute.thread: is no setting; nearest: 'threads'"),
        ("augment.flipp=1", "augment.flipp: is no setting; nearest: 'flip'"),
        (
            "method.loss=dcie",
            "method.loss: `kind` must be one of mi_variational, soft_ce, .*, import, but got 'dcie'; nearest: 'dice'",
        ),
        ("method.loss={kind: infonce, temprature: 1}", "method.loss: 'temprature' is no setting of 'infonce'; nearest: 'temperature'"),
        ("method.loss=[dice, {kind: brier, t: 1}]", "method.loss.1: 't' is no setting of 'brier'; known: 'kind'"),
        ("method.entropy=chanel", "method.entropy: `kind` must be one of channel, channel_norm, .*, but got 'chanel'; nearest: 'channel'"),
        ("method.standard=resolutoin", "method.standard: `kind` must be one of .*; nearest: 'resolution'"),
        ("data.kind=camvod", "data: `kind` must be one of scenes, camvid, .*, folder, import, but got 'camvod'; nearest: 'camvid'"),
        ("data.numtrain=2", "data: 'numtrain' is no setting of 'scenes'; nearest: 'num_train'"),
        ("model=unet", "model: `kind` must be one of smp, torchvision, import, but got 'unet'"),
        ("model.name=x", "model: 'name' is no setting of 'smp'; known: 'kind', 'architecture', 'encoder', 'encoder_weights'"),
        ("output_loss=ohme", "output_loss: `kind` must be one of cross_entropy, ohem, dice, import, but got 'ohme'; nearest: 'ohem'"),
    ],
)
def test_an_unknown_name_tells_key_and_nearest(override: str, message: str) -> None:
    assert re.match(message, message_of(override)), message_of(override)


@pytest.mark.parametrize("kind", ["[1]", "{a: 1}", "3", "null", "true"])
@pytest.mark.parametrize("key", ["method.standard", "method.loss", "data", "model"])
def test_a_kind_that_is_no_name_is_a_message(key: str, kind: str) -> None:
    assert message_of(f"{key}={{kind: {kind}}}").startswith(f"{key}: `kind` must be one of ")


@pytest.mark.parametrize("value", ["null", "3", "[1]", "true"])
@pytest.mark.parametrize("key", ["method", "optimizer", "data", "model", "compute", "augment", "output_loss", "method.standard"])
def test_a_value_of_another_shape_is_a_message(key: str, value: str) -> None:
    assert message_of(f"{key}={value}").startswith(f"{key}")


def test_settings_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ConfigError, match="settings must be a mapping of keys to values, but got list"):
        validate(Run, [1])


# The method's further settings.


def test_a_union_holds_names_mappings_and_standards() -> None:
    run = run_with("method.standard={kind: union, max_taps: 4, standards: [depth, {kind: resolution, max_taps: 1, direction: up}]}")
    assert run.method.standard == UnionStandard(standards=(DepthStandard(), ResolutionStandard(max_taps=1, direction="up")), max_taps=4)
    text = dump_yaml(run_to_dict(run))
    assert make_run(parse_yaml(text)) == run
    assert parse_yaml(text)["method"]["standard"]["standards"][1]["direction"] == "up"


@pytest.mark.parametrize("profile", get_args(Profile))
def test_profiles_are_reached_by_name(profile: str) -> None:
    assert run_with(f"method.profile={profile}").method.profile == profile


def test_schedules_and_balance_round_trip() -> None:
    run = run_with("method.schedule={kind: stop_at, share: 0.25}", "method.grad_ratio=0.5", "method.profile=exp")
    assert run.method.schedule == StopAt(share=0.25)
    assert (run.method.grad_ratio, run.method.profile) == (0.5, "exp")
    assert make_run(parse_yaml(dump_yaml(run_to_dict(run)))) == run
    assert run_with("method.grad_ratio=null").method.grad_ratio is None


def test_losses_by_depth_round_trip() -> None:
    run = run_with("method.loss={kind: by_depth, early: {kind: prototype, temperature: 0.2}, late: dice, share: 0.25}")
    assert run.method.loss == ByDepth(early=Prototype(temperature=0.2), late=Dice(), share=0.25)
    assert make_run(parse_yaml(dump_yaml(run_to_dict(run)))) == run
    run = run_with("method.loss={kind: by_depth, early: brier, late: {import: 'a.b:c', x: 1}}")
    assert run.method.loss == ByDepth(early=Brier(), late=ImportedPart(path="a.b:c", kwargs={"x": 1}))


def test_the_other_name_of_a_loss_works_in_yaml_as_in_python() -> None:
    assert run_with("method.loss=pixel_contrast") == run_with("method.loss=infonce")
    assert run_with("method.loss=[dice, {kind: pixel_contrast, temperature: 0.2}]").method.loss == (Dice(), InfoNCE(temperature=0.2))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "method.schedule=cosin",
            "method.schedule: `kind` must be one of constant, .*, stop_at, but got 'cosin'; nearest: 'cosine'",
        ),
        ("method.schedule={kind: warmup, shar: 0.1}", "method.schedule: 'shar' is no setting of 'warmup'; nearest: 'share'"),
        ("method.schedule={kind: warmup, share: 2}", "method.schedule: `0 < share <= 1` must hold, but got 2"),
        ("method.schedule={kind: linear, end: -1}", "method.schedule: `end >= 0` must hold, but got -1"),
        ("method.profile=flat", "method.profile: .*'uniform', 'exp' or 'linear_depth', but got 'flat'"),
        ("method.grad_ratio=0", "method.grad_ratio: `grad_ratio > 0` must hold, but got 0"),
        ("method.grad_ratio=-1", "method.grad_ratio: `grad_ratio > 0` must hold, but got -1"),
        ("method.grad_ratio=.inf", "method.grad_ratio: .*finite"),
        ("method.loss={kind: by_depth, early: dice}", "method.loss.late: must be given, but is missing"),
        ("method.loss={kind: by_depth, early: dcie, late: dice}", "method.loss.early: `kind` must be one of .*; nearest: 'dice'"),
        ("method.loss={kind: by_depth, early: dice, late: brier, share: 1}", "method.loss.share: `share < 1` must hold, but got 1"),
        ("method.loss={kind: by_depth, early: dice, late: brier, shar: 0.5}", "method.loss.shar: is no setting; nearest: 'share'"),
        ("method.loss=[]", "method.loss: .*at least 1"),
        ("method.standard={kind: union, standards: [depth]}", "method.standard: `standards` must hold at least two standards"),
        ("method.standard={kind: union, standards: [depth, wdith]}", "method.standard: `standard` must be one of .*'wdith'; nearest: 'width'"),
        ("method.standard={kind: union, standards: [depth, {kind: width, growth: 1}]}", "method.standard: `growth > 1` must hold, but got 1"),
        (
            "method.standard={kind: union, standards: [depth, {kind: width, grwth: 2}]}",
            "method.standard: 'grwth' is no setting of 'width'; nearest: 'growth'",
        ),
        (
            "method.standard={kind: union, standards: [depth, {kind: explicit, max_taps: 2}]}",
            "method.standard: 'max_taps' is no setting of 'explicit'",
        ),
        ("method.standard={kind: width, growth: 0.5}", "method.standard: `growth > 1` must hold, but got 0.5"),
        ("method.standard={kind: gradient, take: all}", "method.standard.*take"),
        ("method.standard={kind: probe, batches: 0}", "method.standard: `batches >= 1` must hold, but got 0"),
        ("method.standard={kind: depth, min_stride: 0.5}", "method.standard: `min_stride >= 1` must hold, but got 0.5"),
        ("method.entropy={kind: spatial, temperature: 0}", "method.entropy: `temperature > 0` must hold, but got 0"),
    ],
)
def test_further_settings_that_are_wrong_are_one_message_with_their_key(override: str, message: str) -> None:
    assert re.match(message, message_of(override)), message_of(override)


# A setting of one kind does not survive in another.


def test_a_setting_of_another_kind_is_refused() -> None:
    assert message_of("method.loss=dice", "method.loss.temperature=1") == "method.loss: 'temperature' is no setting of 'dice'; known: 'kind'"


def test_another_kind_begins_with_its_own_defaults() -> None:
    run = run_with("method.loss=infonce", raw={"method": {"loss": {"kind": "prototype", "temperature": 0.9}}})
    assert run.method.loss == InfoNCE()


def test_the_same_kind_keeps_its_settings() -> None:
    raw = {"method": {"loss": {"kind": "prototype", "temperature": 0.9}, "standard": {"kind": "resolution", "max_taps": 5}}}
    run = run_with("method.loss.dimension=8", "method.standard=resolution", raw=raw)
    assert run.method.loss == Prototype(temperature=0.9, dimension=8)
    assert run.method.standard == ResolutionStandard(max_taps=5)


def test_a_list_replaces_a_loss_and_a_loss_a_list() -> None:
    assert run_with("method.loss=[dice, brier]").method.loss == (Dice(), Brier())
    assert run_with("method.loss=dice", raw={"method": {"loss": ["brier", "hsic"]}}).method.loss == Dice()
    assert "method.loss" in message_of("method.loss=[]")


@pytest.mark.parametrize(
    ("base", "new", "merged"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"l": {"kind": "x", "t": 1}}, {"l": "x"}, {"l": {"kind": "x", "t": 1}}),
        ({"l": {"kind": "x", "t": 1}}, {"l": {"t": 2}}, {"l": {"kind": "x", "t": 2}}),
        ({"l": {"kind": "x", "t": 1}}, {"l": "y"}, {"l": {"kind": "y"}}),
        ({"l": {"kind": "x", "t": 1}}, {"l": {"kind": "y", "u": 1}}, {"l": {"kind": "y", "u": 1}}),
        ({"l": "x"}, {"l": {"t": 2}}, {"l": {"kind": "x", "t": 2}}),
        ({"l": "x"}, {"l": {"kind": "y", "u": 2}}, {"l": {"kind": "y", "u": 2}}),
        ({"l": {"kind": "x", "t": 1}}, {"l": {"import": "p:f", "t": 3}}, {"l": {"kind": "import", "path": "p:f", "kwargs": {"t": 3}}}),
        ({"l": {"import": "p:f", "t": 3}}, {"l": {"kind": "x"}}, {"l": {"kind": "x"}}),
        ({"l": {"import": "p:f", "t": 3}}, {"l": {"u": 4}}, {"l": {"kind": "import", "path": "p:f", "kwargs": {"t": 3, "u": 4}}}),
        ({"l": {"import": "p:f", "t": 3}}, {"l": {"import": "p:g"}}, {"l": {"kind": "import", "path": "p:g", "kwargs": {}}}),
        (
            {"l": {"kind": "import", "path": "p:f", "kwargs": {"t": 3, "u": 1}}},
            {"l": {"kwargs": {"t": 4}}},
            {"l": {"kind": "import", "path": "p:f", "kwargs": {"t": 4, "u": 1}}},
        ),
        (
            {"l": {"kind": "import", "path": "p:f", "kwargs": {"path": "/a"}}},
            {"l": {"path": "/b"}},
            {"l": {"kind": "import", "path": "p:f", "kwargs": {"path": "/b"}}},
        ),
    ],
)
def test_merging_goes_key_by_key_within_a_kind(base: Any, new: Any, merged: Any) -> None:
    before = repr((base, new))
    assert merge(base, new) == merged
    assert repr((base, new)) == before, "merging leaves its arguments alone"


# Import paths.


def test_arguments_stand_beside_an_import() -> None:
    run = make_run({"data": {"import": "a.b:c", "root": "/x", "path": "/y", "kwargs": {"z": 1}}})
    assert run.data == Imported(path="a.b:c", kwargs={"root": "/x", "path": "/y", "z": 1})


def test_arguments_of_an_import_can_be_overridden_in_any_order() -> None:
    for overrides in (["data.import=a:b", "data.root=/x"], ["data.root=/x", "data.import=a:b"]):
        run = run_with(*overrides)
        assert run.data == Imported(path="a:b", kwargs={"root": "/x"})
    run = run_with("data.root=/z", "data.kwargs.more=1", raw={"data": {"import": "a:b", "root": "/x", "keep": 2}})
    assert run.data == Imported(path="a:b", kwargs={"root": "/z", "keep": 2, "more": 1})
    assert run_with("data.kind=import", "data.path=a:b").data == Imported(path="a:b")


def test_an_import_beside_another_kind_is_refused() -> None:
    assert message_of(raw={"method": {"loss": {"import": "a:b", "kind": "dice"}}}) == "method.loss: 'import' is no setting of 'dice'; known: 'kind'"


@pytest.mark.parametrize("raw", [{"data": {"import": None}}, {"data": {"kind": "import"}}, {"model": {"import": 3}}])
def test_an_import_needs_a_path(raw: dict[str, Any]) -> None:
    assert ".path: " in message_of(raw=raw)


# Overrides.


@pytest.mark.parametrize("text", ["optimizer.epochs", "=3", "a..b=3", ".a=3", "a.=3", "", " =1"])
def test_an_override_of_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="an override must have the form key=value, as in optimizer.epochs=2, but got "):
        parse_overrides([text])


def test_an_override_holds_any_yaml_and_the_last_of_a_key_wins() -> None:
    texts = ["a.b=1e-3", "c={d: [1, off]}", "e=", "f=x=y", " g =1", "a.b=2"]
    with pytest.warns(UserWarning, match="a.b is given more than once, of which the last holds: a.b=2"):
        assert parse_overrides(texts) == {"a.b": 2, "c": {"d": [1, "off"]}, "e": None, "f": "x=y", "g": 1}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.lr=true", "optimizer.lr"),
        ("optimizer.epochs=true", "optimizer.epochs"),
        ("optimizer.grad_clip=true", "optimizer.grad_clip"),
        ("augment.scale=[true, 1.5]", "augment.scale.0"),
        ("subset.share=true", "subset.share"),
        ("method.loss={kind: infonce, temperature: true}", "method.loss.temperature"),
        ("method.loss=[dice, {kind: infonce, dimension: true}]", "method.loss.1.dimension"),
        ("method.standard={kind: resolution, max_taps: true}", "method.standard.max_taps"),
    ],
)
def test_true_is_no_number(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(key)}: must be a number, but got true$"):
        run_with(override)
    assert run_with("compute.recompute=true").compute.recompute is True


def test_broken_yaml_in_an_override_is_told_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.lr: must be YAML, but: "):
        parse_overrides(["optimizer.lr=[1"])


def test_overrides_go_over_the_file_and_the_file_over_the_defaults(file: Path) -> None:
    file.write_text("name: file\noptimizer: {epochs: 7, lr: 1e-2}\n")
    run = load_run(file, ["optimizer.lr=3e-2", "seed=4"])
    assert (run.name, run.optimizer.epochs, run.optimizer.lr, run.seed) == ("file", 7, 0.03, 4)
    assert run.optimizer.batch_size == Run().optimizer.batch_size


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("method: {alpha: 0, loss: dice}", ["method.loss has no effect while method.alpha is 0"]),
        ("method: {entropy: null, beta: 0.1}", ["method.beta has no effect while method.entropy is null"]),
        ("method: {beta: 0, entropy: channel}", ["method.entropy has no effect while method.beta is 0"]),
        ("optimizer: {warmup_epochs: 5, epochs: 3}", ["optimizer.warmup_epochs is cut to the run's 3 epochs, in which the learning rate only rises"]),
        ("method: {alpha: 0, loss: dice, beta: 0, entropy: channel}", ["method.loss has no effect", "method.entropy has no effect"]),
        ("method: {alpha: 0, beta: 0}", []),
        ("method: {alpha: 0, schedule: cosine}", []),
        ("method: {alpha: 0, grad_ratio: 0.1}", ["method.grad_ratio has no effect while method.alpha is 0"]),
        ("method: {alpha: 0, beta: 0, schedule: cosine}", ["method.schedule has no effect while nothing but the output is supervised"]),
        ("method: {alpha: 0, entropy: null, profile: exp}", ["method.profile has no effect while nothing but the output is supervised"]),
        ("method: {entropy: null}", []),
        ("method: {entropy: null, beta: 0}", []),
        ("method: {alpha: 0.1, loss: dice}", []),
        ("optimizer: {warmup_epochs: 3, epochs: 3}", []),
    ],
)
def test_settings_without_an_effect_are_noted(file: Path, text: str, told: list[str]) -> None:
    file.write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_run(file)
    assert [note.category for note in caught] == [UserWarning] * len(told)
    for note, start in zip(caught, told, strict=True):
        assert str(note.message).startswith(start)
        assert note.filename == __file__, "it is the caller's"


@pytest.mark.long
def test_the_command_line_shows_notes(file: Path) -> None:
    file.write_text("data: {kind: camvid, root: /no/such/folder}\nmethod: {alpha: 0, loss: dice}\n")
    command = [sys.executable, "-m", "imachsr", "train", str(file), "--output", str(file.parent / "out"), "--wandb", "disabled"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.count("note: method.loss has no effect while method.alpha is 0") == 1


def test_kinds_go_first_whatever_the_order_of_the_overrides() -> None:
    run = run_with("model.name=fcn_resnet50", "data.num_train=3", "model.kind=torchvision", "data.kind=scenes")
    assert run.model == TorchvisionModel(name="fcn_resnet50")
    assert run.data == Scenes(num_train=3)
    run = run_with("method.loss.temperature=0.5", "method.loss=infonce")
    assert run.method.loss == InfoNCE(temperature=0.5)
    assert nested({"a.b.c": 1, "a.kind": "k", "a": {}}) == [{"a": {"kind": "k"}}, {"a": {}}, {"a": {"b": {"c": 1}}}]


# Ranges.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed: `seed >= 0` must hold, but got -1"),
        ("seed=4294967296", "seed: `seed < 4294967296` must hold, but got 4294967296"),
        ("name=''", "name: string should have at least 1 character"),
        ("method.alpha=-0.1", "method.alpha: `alpha >= 0` must hold, but got -0.1"),
        ("method.alpha=.nan", "method.alpha: "),
        ("method.beta=.inf", "method.beta: input should be a finite number, but got inf"),
        ("method.heterogeneity=of", "method.heterogeneity: input should be 'strict', 'warn' or 'off', but got 'of'"),
        ("optimizer.epochs=0", "optimizer.epochs: `epochs >= 1` must hold, but got 0"),
        ("optimizer.epochs=2.5", "optimizer.epochs: input should be a valid integer, got a number with a fractional part, but got 2.5"),
        ("optimizer.batch_size=0", "optimizer.batch_size: `batch_size >= 1` must hold, but got 0"),
        ("optimizer.lr=0", "optimizer.lr: `lr > 0` must hold, but got 0"),
        ("optimizer.lr=off", "optimizer.lr: input should be a valid number"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay: `weight_decay >= 0` must hold, but got -1"),
        ("optimizer.warmup_epochs=-1", "optimizer.warmup_epochs: `warmup_epochs >= 0` must hold, but got -1"),
        ("optimizer.grad_clip=0", "optimizer.grad_clip: `grad_clip > 0` must hold, but got 0"),
        ("compute.threads=0", "compute.threads: `threads >= 1` must hold, but got 0"),
        ("compute.device=tpu", "compute.device: input should be 'auto', 'cpu' or 'cuda', but got 'tpu'"),
        ("method.loss={kind: infonce, temperature: 0}", "method.loss: `temperature > 0` must hold, but got 0.0"),
        ("method.standard.max_taps=0", "method.standard: `max_taps >= 1` must hold, but got 0"),
        ("data.num_train=0", "data: `num_train >= 1` must hold, but got 0"),
        ("data.size=[96]", "data.size.1: must be given, but is missing"),
        ("data.size=[16, 64]", "data: `size` must be (height, width) of at least 32 pixels, but got (16, 64)"),
        ("data.domain=night", "data.domain: input should be 'day' or 'shifted', but got 'night'"),
        ("data.kind=camvid", "data.root: must be given, but is missing"),
        ("model.kind=torchvision", "model.name: must be given, but is missing"),
        ("augment.scale=[1, .inf]", "augment: `0 < scale[0] <= scale[1] < inf` must hold, but got (1.0, inf)"),
        ("output_loss={kind: ohem, keep: 2}", "output_loss: `0 < keep <= 1` must hold, but got 2.0"),
        ("output_loss.label_smoothing=1", "output_loss: `0 <= label_smoothing < 1` must hold, but got 1.0"),
    ],
)
def test_a_value_out_of_range_is_told_with_rule_key_and_value(override: str, message: str) -> None:
    assert message_of(override).startswith(message)


def test_a_run_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "is_output_only"),
    [
        ([], False),
        (["method.alpha=0"], False),
        (["method.beta=0"], False),
        (["method.alpha=0", "method.beta=0"], True),
        (["method.alpha=0", "method.entropy=null"], True),
    ],
)
def test_a_run_knows_whether_it_is_output_only(overrides: list[str], is_output_only: bool) -> None:
    assert run_with(*overrides).is_output_only == is_output_only


def test_text_that_yaml_takes_for_a_number_is_told_to_need_quotes() -> None:
    with pytest.raises(
        ConfigError, match=r"""subset.hold_out: .*, but got 1600000.0; text .* in quotes, on a command line as subset.hold_out='"..."'"""
    ):
        make_run(parse_yaml("subset: {hold_out: 0016E5}"))
    assert make_run({}, parse_overrides(['subset.hold_out="0016E5"'])).subset.hold_out == "0016E5"
    with pytest.raises(ConfigError) as told:
        make_run({"subset": {"hold_out": ["a"]}})
    assert "quotes" not in str(told.value)


@pytest.mark.parametrize(
    ("override", "ending"),
    [
        ("optimizer.ema=none", "but got 'none'; write null to have none"),
        ("optimizer.ema=false", "but got False; write null to have none"),
        ("method.entropy=none", "nearest: 'channel'; write null to have none"),
        ("method.grad_ratio=off", "but got 'off'; write null to have none"),
        # Where null is none of the values, it is not proposed.
        ("optimizer.epochs=none", "but got 'none'"),
        ("method.loss=none", "nearest: 'infonce'"),
        ("data.size=96", "must be a list, such as [96, 96], but got 96"),
        ("augment.scale=2", "must be a list, such as [2, 2], but got 2"),
    ],
)
def test_a_value_of_another_kind_is_told_with_one_that_would_do(override: str, ending: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_run({}, parse_overrides([override]))
    assert str(caught.value).endswith(ending)
