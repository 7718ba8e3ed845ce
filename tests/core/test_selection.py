import random
import warnings
from collections.abc import Sequence
from itertools import groupby
from math import ceil
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch

from imachsr import AutoStandard, DepthStandard, ExplicitStandard, ResolutionStandard, StageStandard, trace
from imachsr.core.layers import Trace
from imachsr.core.selection import Placement, Standard, parse_standard, select
from imachsr.core.types import LayerInfo, Tap
from tests.core import nets

RULES = [member for member in get_args(Standard) if member is not ExplicitStandard]
rule = pytest.mark.parametrize("member", RULES, ids=lambda member: member.kind)


def made(sizes: Sequence[tuple[int, int]], containers: Sequence[str] | None = None, blocks: Sequence[str] | None = None) -> Trace:
    """A trace of layers ``l0, l1, ...`` of these (h, w)."""
    layers = [
        LayerInfo(
            address=f"l{index}",
            module=f"l{index}",
            nth=1,
            num_calls=1,
            key=None,
            order=index,
            depth=1,
            cls="Conv2d",
            layout="NCHW",
            channels=8,
            height=h,
            width=w,
            stride=64 / h,
            dtype="float32",
            params=0,
            signature="",
            container=containers[index] if containers else "",
            block_cls=blocks[index] if blocks else "Block" if containers else "",
        )
        for index, (h, w) in enumerate(sizes)
    ]
    return Trace(layers=tuple(layers), num_calls=len(layers), input_size=(64, 64), module_names=tuple(layer.module for layer in layers))


def chosen(standard: Any, found: Trace) -> list[int]:
    """Positions of the taps; fewer than asked for is fine here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taps = select(standard, found)
    return [found.layers.index(tap.layer) for tap in taps]


FLAT = [made([(16, 16)] * total) for total in range(1, 30)]
HOURGLASS = made([(64, 64), (32, 32), (32, 32), (16, 16), (16, 16), (16, 16), (32, 32), (64, 64)])


@pytest.mark.parametrize("wanted", [1, 2, 3, 5])
@pytest.mark.parametrize("found", FLAT, ids=lambda found: len(found.layers))
def test_depth_takes_equal_steps(found: Trace, wanted: int) -> None:
    total = len(found.layers)
    formula = {ceil(m * total / (wanted + 1)) for m in range(1, wanted + 1)}
    assert [index + 1 for index in chosen(DepthStandard(max_taps=wanted), found)] == sorted(formula)


@pytest.mark.parametrize("found", FLAT[1:], ids=lambda found: len(found.layers))
def test_early_and_late_depth_use_one_half_of_the_net(found: Trace) -> None:
    total = len(found.layers)
    early, late = (chosen(DepthStandard(max_taps=3, placement=placement), found) for placement in ("early", "late"))
    assert max(early) < ceil(total / 2)
    assert min(late) >= total // 2
    assert len(early) == len(late)


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("direction", ["down", "up", "both"])
@pytest.mark.parametrize("seed", range(8))
def test_resolution_takes_the_ends_of_runs_of_equal_size(direction: str, side: str, seed: int) -> None:
    rng = random.Random(seed)
    sizes = [(size, size * 2) for size in (rng.choice((8, 16, 32)) for _ in range(24))]
    runs = [list(run) for _, run in groupby(range(24), key=lambda index: sizes[index])]
    expected = []
    for run, following in zip(runs, runs[1:], strict=False):
        change = "down" if sizes[following[0]] < sizes[run[0]] else "up"
        if direction in (change, "both"):
            expected.append(run[-1] if side == "before" else following[0])
    assert expected
    assert chosen(ResolutionStandard(direction=direction, side=side, max_taps=24), made(sizes)) == expected


def test_a_change_of_shape_at_equal_area_counts_in_both_directions_only() -> None:
    found = made([(8, 4), (8, 4), (4, 8), (2, 4)])
    assert chosen(ResolutionStandard(direction="both"), found) == [1, 2]
    assert chosen(ResolutionStandard(direction="down"), found) == [2]


def test_resolution_says_where_the_size_changes() -> None:
    taps = select(ResolutionStandard(direction="up", max_taps=2, side="after"), HOURGLASS)
    assert [tap.reason for tap in taps] == ["resolution: after 16x16 -> 32x32", "resolution: after 32x32 -> 64x64"]


def test_stages_end_where_the_blocks_of_a_resnet_end() -> None:
    model = smp.Unet("resnet18", encoder_weights=None, classes=3)
    taps = select(StageStandard(max_taps=4, placement="early"), trace(model, torch.zeros(2, 3, 64, 64)))
    # layer1 is two blocks of one kind; in the later stages the first block has a stride and a projection, but gives the same size.
    assert [tap.layer.address for tap in taps] == ["encoder.layer1", "encoder.layer2", "encoder.layer3", "encoder.layer4"]
    assert taps[0].reason == "stage: end of 2 x BasicBlock in encoder.layer1"


@pytest.mark.parametrize("break_by", ["container", "class", "size"])
def test_a_run_of_blocks_ends_where_container_class_or_size_changes(break_by: str) -> None:
    containers = ["a", "a", "b", "b"] if break_by == "container" else ["a"] * 4
    blocks = ["X", "X", "Y", "Y"] if break_by == "class" else ["X"] * 4
    sizes = [(8, 8), (8, 8), (4, 4), (4, 4)] if break_by == "size" else [(8, 8)] * 4
    assert chosen(StageStandard(max_taps=2), made(sizes, containers, blocks)) == [1, 3]


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_a_single_run_that_spans_the_net_is_split_in_equal_parts(parts: int) -> None:
    taps = select(StageStandard(max_taps=parts), trace(nets.Vit(blocks=6), nets.images()))
    assert [tap.layer.address for tap in taps] == [f"blocks.{6 * part // parts - 1}" for part in range(1, parts + 1)]


@pytest.mark.parametrize(("standard", "why"), [(ResolutionStandard(), "no change of resolution"), (StageStandard(), "no run of blocks")])
def test_a_rule_that_offers_nothing_falls_back_to_depth_and_says_so(standard: Any, why: str) -> None:
    assert chosen(standard, FLAT[10]) == chosen(DepthStandard(), FLAT[10])
    assert all(tap.reason.endswith(f"({why})") for tap in select(standard, FLAT[10]))


def test_auto_takes_resolution_then_stage_then_depth() -> None:
    blocks = made([(16, 16)] * 12, ["a"] * 12)
    both = made([(64, 64), (32, 32), (32, 32), (16, 16), (16, 16)], ["a", "b", "", "", "c"])
    assert chosen(StageStandard(), both) != chosen(ResolutionStandard(), both)
    for found, standard in ((both, ResolutionStandard()), (blocks, StageStandard()), (FLAT[11], DepthStandard())):
        assert chosen(AutoStandard(), found) == chosen(standard, found)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert {tap.reason.split(":")[0] for tap in select("auto", found)} == {standard.kind}


@rule
@pytest.mark.parametrize("placement", get_args(Placement))
@pytest.mark.parametrize("min_gap", [0, 1, 4])
@pytest.mark.parametrize("max_taps", [1, 3, 7])
def test_limits_hold_for_every_rule(member: Any, placement: Placement, min_gap: int, max_taps: int) -> None:
    rng = random.Random(0)
    for _ in range(10):
        total = rng.randint(2, 40)
        found = made([(rng.choice((8, 16)),) * 2 for _ in range(total)], [rng.choice(("", "a", "b")) for _ in range(total)])
        standard = member(max_taps=max_taps, min_gap=min_gap, placement=placement)
        picks = chosen(standard, found)
        assert picks == sorted(set(picks))
        assert 1 <= len(picks) <= max_taps
        assert set(picks) <= {index for index, _ in standard.pick(found.layers)}
        assert all(after - here - 1 >= min_gap for here, after in zip(picks, picks[1:], strict=False))


def test_placement_keeps_the_first_the_last_or_an_even_share() -> None:
    found = made([(64, 64), (32, 32)] * 10)  # offers every second layer: 10 of them
    offered = [index for index, _ in ResolutionStandard().pick(found.layers)]
    assert len(offered) == 10
    picks = {placement: chosen(ResolutionStandard(placement=placement), found) for placement in get_args(Placement)}
    assert picks["early"] == offered[:3]
    assert picks["late"] == offered[-3:]
    assert picks["uniform"] == [offered[ceil(m * 10 / 4) - 1] for m in (1, 2, 3)]


def test_a_gap_is_kept_from_the_side_at_which_the_placement_begins() -> None:
    found = made([(64, 64), (32, 32)] * 4)
    assert chosen(ResolutionStandard(placement="early", min_gap=2), found) == [0, 4]
    assert chosen(ResolutionStandard(placement="late", min_gap=2), found) == [2, 6]


@rule
def test_fewer_than_asked_for_warns_and_strict_raises(member: Any) -> None:
    with pytest.warns(UserWarning, match=r"50 taps were asked for, but this model and rule offer \d+$"):
        taps = select(member(max_taps=50), HOURGLASS)
    with pytest.raises(ValueError, match=rf"50 taps were asked for, .* offer {len(taps)}; lower `max_taps` or `min_gap`"):
        select(member(max_taps=50, strict=True), HOURGLASS)


@rule
@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"max_taps": 0}, "`max_taps >= 1` must hold, but got 0"),
        ({"min_gap": -1}, "`min_gap >= 0` must hold, but got -1"),
        ({"placement": "middle"}, r"`placement` must be one of \('early', 'uniform', 'late'\), but got 'middle'"),
    ],
)
def test_limits_out_of_range_are_refused(member: Any, knob: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        member(**knob)


@rule
def test_the_same_trace_gives_the_same_taps_by_object_and_by_name(member: Any) -> None:
    def taps(standard: Any) -> tuple[Tap, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return select(standard, HOURGLASS)

    assert taps(member()) == taps(member()) == taps(member.kind) == taps(parse_standard(member.kind))


@pytest.fixture(scope="module")
def reused() -> Trace:
    return trace(nets.Reused(), nets.images())


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("act",), ["act"]),
        (("third", "act#2", "first"), ["first", "act#2", "third"]),
        (("act*",), ["act", "act#2", "act#3"]),
        (("act#?", "second"), ["second", "act#2", "act#3"]),
        (("re:d$",), ["second", "third"]),
        (("re:^(f|act#)",), ["first", "act#2", "act#3"]),
        (("act", "act", "re:^act$"), ["act"]),
    ],
)
def test_explicit_layers_by_address_glob_and_expression_in_execution_order(reused: Trace, patterns: tuple[str, ...], expected: list[str]) -> None:
    assert [tap.layer.address for tap in select(ExplicitStandard(layers=patterns), reused)] == expected


def test_an_explicit_layer_names_the_pattern_that_chose_it_first(reused: Trace) -> None:
    assert [tap.reason for tap in select(ExplicitStandard(layers=("act#2", "re:act")), reused)] == [
        "explicit: re:act",
        "explicit: act#2",
        "explicit: re:act",
    ]


def test_a_key_is_part_of_the_address() -> None:
    found = trace(nets.Structured("dict"), nets.images())
    (tap,) = select(ExplicitStandard(layers=("fork[big]",)), found)
    assert tap.layer.key == "big"
    with pytest.raises(ValueError, match=r"'fork' is a module, but no candidate .*; nearest: 'fork\[big\]'"):
        select(ExplicitStandard(layers=("fork",)), found)


def test_an_unknown_layer_is_refused_with_the_nearest_names(reused: Trace) -> None:
    with pytest.raises(ValueError, match=r"`layers` must name candidates, but 'secnd' is no layer of this model; nearest: 'second'"):
        select(ExplicitStandard(layers=("first", "secnd")), reused)


def test_a_module_that_is_no_candidate_is_told_apart_from_an_unknown_one(reused: Trace) -> None:
    with pytest.raises(ValueError, match=r"'head' is a module, but no candidate \(.*or the output\)"):
        select(ExplicitStandard(layers=("head",)), reused)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "`layers` must name at least one layer, but got none"),
        ("stem", r"`layers` must be a sequence of names, but got the string 'stem'; write \('stem',\)"),
        (("re:lay(er",), "must hold regular expressions after 're:', but 're:lay\\(er' is none"),
    ],
)
def test_explicit_layers_of_another_form_are_refused(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExplicitStandard(layers=layers)


def test_a_callable_names_the_layers_from_the_trace(reused: Trace) -> None:
    taps = select(lambda found: [layer.address for layer in found.layers if layer.cls == "ReLU"], reused)
    assert [tap.layer.address for tap in taps] == ["act", "act#2", "act#3"]
    with pytest.raises(ValueError, match="must be a sequence of names, but got the string 'act'"):
        select(lambda _: "act", reused)
    with pytest.raises(ValueError, match="'nothing' is no layer of this model"):
        select(lambda _: ["nothing"], reused)


def test_an_unknown_standard_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"`standard` must be one of \['auto', .*\], but got 'resolutoin'; nearest: 'resolution'"):
        select("resolutoin", HOURGLASS)


def test_what_is_no_standard_is_refused() -> None:
    with pytest.raises(TypeError, match="`standard` must be a name, a standard or a callable, but got int"):
        select(3, HOURGLASS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`standard` must be a standard, but got its class; write DepthStandard\(\)"):
        select(DepthStandard, HOURGLASS)  # type: ignore[arg-type]
