import contextlib
import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from functools import partial
from itertools import combinations, groupby, pairwise
from math import ceil
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from imachsr import (
    AttentionStandard,
    AutoStandard,
    BottleneckStandard,
    DepthStandard,
    ExplicitStandard,
    FlopsStandard,
    FusionStandard,
    GradientStandard,
    ParamsStandard,
    ProbeStandard,
    ReceptiveFieldStandard,
    ResolutionStandard,
    StageStandard,
    UnionStandard,
    WidthStandard,
    trace,
)
from imachsr.core.calibration import Calibration
from imachsr.core.layers import Trace
from imachsr.core.selection import Standard, parse_standard, select
from imachsr.core.selection.measured import MeasuredStandard
from imachsr.core.selection.rule import Placement, Rule, apart, room
from imachsr.core.types import LayerInfo, Site, Tap
from tests.core import nets

RULES = [member for member in get_args(Standard) if member not in (ExplicitStandard, UnionStandard)]
rule = pytest.mark.parametrize("member", RULES, ids=lambda member: member.kind)


class Measured(Calibration):
    """Data are not what these tests are about: the measurements are drawn, the same for the same layers."""

    def __init__(self) -> None:
        pass

    def _drawn(self, layers: Sequence[LayerInfo], batches: int) -> list[float]:
        rng = random.Random(len(layers))
        return [rng.random() for _ in layers]

    gradient_ratios = channel_entropies = probe_information = _drawn


def made(
    sizes: Sequence[tuple[int, int]],
    containers: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
    *,
    channels: Sequence[int] | None = None,
    flops: Sequence[int] | None = None,
    params: Sequence[int] | None = None,
    fields: Sequence[float] | None = None,
    sites: Sequence[Site] = (),
    totals: tuple[int, int] | None = None,
) -> Trace:
    """A trace of layers ``l0, l1, ...`` of these (h, w)."""
    total = len(sizes)
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
            channels=channels[index] if channels else 8,
            height=h,
            width=w,
            stride=64 / h,
            dtype="float32",
            params=0,
            signature="",
            container=containers[index] if containers else "",
            block_cls=blocks[index] if blocks else "Block" if containers else "",
            flops=flops[index] if flops else 100 * (index + 1),
            params_used=params[index] if params else 10 * (index + 1),
            receptive_field=fields[index] if fields else 1.0 + 2 * index,
        )
        for index, (h, w) in enumerate(sizes)
    ]
    spent = totals or (layers[-1].flops, layers[-1].params_used)
    return Trace(
        layers=tuple(layers),
        sites=tuple(sites),
        flops=spent[0],
        params=spent[1],
        num_calls=total,
        input_size=(64, 64),
        module_names=tuple(layer.module for layer in layers),
    )


def site(kind: str, before: int | None, after: int | None, detail: str = "cat", module: str = "") -> Site:
    named = [None if index is None else f"l{index}" for index in (before, after)]
    return Site(kind=kind, detail=detail, module=module, before=named[0], after=named[1])


def chosen(standard: Any, found: Trace) -> list[int]:
    """Positions of the taps; fewer than asked for is fine here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taps = select(standard, found, Measured())
    return [found.layers.index(tap.layer) for tap in taps]


def reasons(standard: Any, found: Trace) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [tap.reason for tap in select(standard, found, Measured())]


FLAT = [made([(16, 16)] * total) for total in range(1, 30)]
HOURGLASS = made(
    [(64, 64), (32, 32), (32, 32), (16, 16), (16, 16), (16, 16), (32, 32), (64, 64)],
    channels=[4, 4, 8, 8, 8, 8, 8, 8],
    sites=[site("attention", 2, 3), site("attention", 4, 5), site("fusion", 5, 6), site("fusion", 6, 7)],
)


def nearest(ideals: Sequence[int], free: Sequence[int], gap: int) -> list[int]:
    """By trying all: as many as the ideals, more than the gap apart, least in sum of distances, then earliest."""
    ways = [way for way in combinations(free, len(ideals)) if all(b - a > gap for a, b in pairwise(way))]
    return list(min(ways, key=lambda way: (sum(abs(p - ideal) for p, ideal in zip(way, ideals, strict=True)), way)))


def most(free: Sequence[int], gap: int, wanted: int) -> int:
    """The largest number of taps up to the wanted one that fit, by trying all."""
    return next(count for count in range(wanted, 0, -1) if any(all(b - a > gap for a, b in pairwise(way)) for way in combinations(free, count)))


@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_taps_are_told_apart_with_the_least_shift(seed: int, gap: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        free = sorted(rng.sample(range(14), rng.randint(1, 9)))
        count = most(free, gap, 4)
        assert room(free, gap) == most(free, gap, 14)
        ideals = sorted(rng.choice(free) for _ in range(count))
        assert apart(ideals, free, gap) == nearest(ideals, free, gap)


@pytest.mark.parametrize("wanted", [1, 2, 3, 5])
@pytest.mark.parametrize("found", FLAT, ids=lambda found: len(found.layers))
def test_depth_takes_equal_steps(found: Trace, wanted: int) -> None:
    total = len(found.layers)
    formula = {ceil(m * total / (wanted + 1)) for m in range(1, wanted + 1)}
    assert [index + 1 for index in chosen(DepthStandard(max_taps=wanted), found)] == sorted(formula)


@pytest.mark.parametrize("found", FLAT[1:], ids=lambda found: len(found.layers))
def test_early_and_late_depth_use_one_half_of_the_net_where_it_has_room(found: Trace) -> None:
    total = len(found.layers)
    early, late = (chosen(DepthStandard(max_taps=3, placement=placement), found) for placement in ("early", "late"))
    assert len(early) == len(late) == min(3, total)
    assert max(early) < max(3, ceil(total / 2))
    assert min(late) >= min(total - 3, total // 2)


QUANTILES = [DepthStandard, FlopsStandard, ParamsStandard, ReceptiveFieldStandard, ProbeStandard, partial(GradientStandard, take="quantiles")]


@pytest.mark.parametrize("member", QUANTILES, ids=["depth", "flops", "params", "receptive_field", "probe", "gradient"])
@pytest.mark.parametrize("placement", get_args(Placement))
def test_equal_parts_are_as_many_taps_as_fit_whatever_the_layers_hold(member: Any, placement: Placement) -> None:
    rng = random.Random(5)
    for _ in range(40):
        total = rng.randint(1, 10)
        # Most of it in a few layers, so that several targets fall on one.
        steps = [rng.choice((0, 0, 1, 50)) for _ in range(total)]
        grown = [1 + sum(steps[: index + 1]) for index in range(total)]
        sizes = [(rng.choice((4, 8, 16)),) * 2 for _ in range(total)]
        found = made(sizes, flops=grown, params=grown, fields=[float(value) for value in grown])
        wanted, gap, stride = rng.randint(1, 4), rng.choice((0, 0, 1, 2)), rng.choice((1, 1, 8))
        free = [index for index, layer in enumerate(found.layers) if layer.stride >= stride] or list(range(total))
        picks = chosen(member(max_taps=wanted, min_gap=gap, placement=placement, min_stride=stride), found)
        assert len(picks) == most(free, gap, wanted)
        assert set(picks) <= set(free)
        assert all(b - a > gap for a, b in pairwise(picks))


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


@pytest.mark.filterwarnings("ignore:7 taps were asked for")
@pytest.mark.parametrize("standard", [StageStandard(max_taps=7), AutoStandard(min_stride=1.0)])
@pytest.mark.parametrize("blocks", [3, 6])
def test_each_block_of_a_single_run_is_a_stage_where_fewer_are_there_than_wanted(standard: Any, blocks: int) -> None:
    # Steps in depth would lie within the blocks.
    taps = select(standard, trace(nets.Vit(blocks=blocks), nets.images()))
    assert [tap.layer.address for tap in taps] == [f"blocks.{index}" for index in range(blocks)]
    assert taps[0].reason == f"stage: part 1 of {blocks} of blocks"


@pytest.mark.parametrize(
    ("standard", "found", "why"),
    [
        (ResolutionStandard(), FLAT[10], "no change of resolution"),
        (StageStandard(), FLAT[10], "no change of resolution"),
        (BottleneckStandard(), FLAT[10], "no bottleneck"),
        (WidthStandard(), FLAT[10], "no growth of channels"),
        (FlopsStandard(), made([(16, 16)] * 10, flops=[0] * 10), "no FLOPs were counted"),
        (FlopsStandard(), made([(16, 16)] * 10, flops=[1] * 10, totals=(1000, 1)), "all FLOPs come after the candidates"),
        (ParamsStandard(), made([(16, 16)] * 10, params=[0] * 10), "no parameters"),
        (ParamsStandard(), made([(16, 16)] * 10, params=[1] * 10, totals=(1, 1000)), "all parameters come after the candidates"),
        (ReceptiveFieldStandard(), made([(16, 16)] * 10, fields=[5.0] * 10), "one receptive field"),
    ],
)
def test_a_rule_that_offers_nothing_falls_back_to_depth_and_says_so(standard: Any, found: Trace, why: str) -> None:
    assert chosen(standard, found) == chosen(DepthStandard(), found)
    assert all(reason.startswith("depth: candidate ") and reason.endswith(f"({why})") for reason in reasons(standard, found))


def test_auto_takes_the_first_of_stage_resolution_and_depth_that_offers_enough() -> None:
    both = ResolutionStandard(max_taps=7, direction="both")
    blocks = made([(16, 16)] * 12, ["a"] * 12)
    # Changes up count as those down do, and all of five are taken.
    hourglass = made([(16, 16), (8, 8), (4, 4), (4, 4), (2, 2), (4, 4), (8, 8), (16, 16)][1:])
    # Two stages and three changes of resolution: the changes are enough.
    down = made([(16, 16), (8, 8), (8, 8), (4, 4), (4, 4), (2, 2), (2, 2)], ["a", "b", "", "", "", "", ""])
    # Four stages and two changes: the stages come first, and would with five changes.
    stages = made([(16, 16), (16, 16), (8, 8), (8, 8), (4, 4), (4, 4)], ["a", "a", "b", "c", "d", "d"])
    changing = made([(16, 16), (8, 8), (4, 4), (2, 2), (4, 4), (8, 8)], ["a", "", "b", "", "c", ""])
    # Two changes, and nothing else of its own: the steps in depth are enough.
    short = made([(16, 16)] * 4 + [(8, 8)] * 4 + [(4, 4)] * 4)
    assert chosen(both, hourglass) == [0, 2, 3, 4, 5]
    cases = (
        (hourglass, both),
        (down, both),
        (blocks, StageStandard(max_taps=7)),
        (stages, StageStandard(max_taps=7)),
        (changing, StageStandard(max_taps=7)),
        (short, DepthStandard(max_taps=7)),
    )
    for found, standard in cases:
        auto = AutoStandard(min_stride=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = chosen(standard, found)
        assert chosen(auto, found) == expected
        assert {reason.split(":")[0] for reason in reasons(auto, found)} == {standard.kind}


def test_auto_takes_what_there_is_when_nothing_is_enough() -> None:
    # Nothing offers three: the changes of resolution, as the first, are taken, and too few are told.
    found = made([(16, 16), (8, 8)])
    with pytest.warns(UserWarning, match="3 taps were asked for, but this model and rule offer 1"):
        assert [tap.layer.address for tap in select(AutoStandard(min_stride=1.0), found)] == ["l0"]
    # Three of five are no shortage, unless it is strict.
    enough = made([(16, 16), (8, 8), (4, 4), (2, 2)])
    assert chosen(AutoStandard(min_stride=1.0), enough) == [0, 1, 2]
    with pytest.raises(ValueError, match="7 taps were asked for, but this model and rule offer 3"):
        select(AutoStandard(min_stride=1.0, strict=True), enough)


def test_auto_leaves_out_what_is_finer_than_its_stride_allows() -> None:
    sizes = [(64, 64)] * 6 + [(32, 32)] * 6 + [(16, 16)] * 3 + [(8, 8)] * 3 + [(4, 4)] * 3 + [(2, 2)] * 3
    found, auto = made(sizes), partial(AutoStandard, max_taps=3)
    assert chosen(auto(min_stride=4.0), found) == [14, 17, 20]
    assert chosen(auto(), found) == [17, 19, 21]  # two changes of resolution are too few: steps in depth among the coarse
    assert chosen(auto(min_stride=1.0, placement="early"), found) == chosen(ResolutionStandard(placement="early"), found)
    # Resolution offers enough, but all of it too fine: the steps in depth are among the coarse ones.
    fine = made([(64, 64), (56, 56), (48, 48), (32, 32)] + [(16, 16)] * 12)
    assert chosen(auto(min_stride=4.0), fine) == [4 + ceil(m * 12 / 4) - 1 for m in (1, 2, 3)]
    # Nothing is coarse: then nothing is left out.
    shallow = made([(64, 64), (56, 56), (48, 48), (32, 32)])
    assert chosen(auto(min_stride=4.0), shallow) == chosen(ResolutionStandard(), shallow) == [0, 1, 2]


@rule
def test_layers_finer_than_min_stride_are_left_out_where_the_rule_offers_others(member: Any) -> None:
    rng = random.Random(1)
    seen = 0
    for _ in range(20):
        found = offering(rng, rng.randint(8, 30))
        coarse = member(max_taps=30, min_stride=8.0)
        offered = [index for index, _ in coarse.pick(found, Measured())]
        wanted = [index for index in offered if found.layers[index].stride >= 8] or offered
        assert chosen(coarse, found) == wanted
        seen += len(wanted) < len(offered)
    assert seen or member not in (ResolutionStandard, StageStandard, WidthStandard, AttentionStandard, FusionStandard)  # the others look for more


def offering(rng: random.Random, total: int) -> Trace:
    """A trace in which every rule has something to offer."""
    kinds = [(kind, rng.randrange(1, total)) for kind in ("attention", "fusion") for _ in range(6)]
    return made(
        [(rng.choice((4, 8, 16)),) * 2 for _ in range(total)],
        [rng.choice(("", "a", "b")) for _ in range(total)],
        channels=[rng.choice((4, 8, 16)) for _ in range(total)],
        sites=[site(kind, index - 1, index) for kind, index in kinds],
    )


@rule
@pytest.mark.parametrize("placement", get_args(Placement))
@pytest.mark.parametrize("min_gap", [0, 1, 4])
@pytest.mark.parametrize("max_taps", [1, 3, 7])
def test_limits_hold_for_every_rule(member: Any, placement: Placement, min_gap: int, max_taps: int) -> None:
    rng = random.Random(0)
    for _ in range(10):
        found = offering(rng, rng.randint(2, 40))
        standard = member(max_taps=max_taps, min_gap=min_gap, placement=placement)
        picks = chosen(standard, found)
        assert picks == sorted(set(picks))
        assert 1 <= len(picks) <= max_taps
        assert set(picks) <= {index for index, _ in standard.pick(found, Measured())}
        assert all(after - here - 1 >= min_gap for here, after in zip(picks, picks[1:], strict=False))


def test_placement_keeps_the_first_the_last_or_an_even_share() -> None:
    found = made([(64, 64), (32, 32)] * 10)  # offers every second layer: 10 of them
    offered = [index for index, _ in ResolutionStandard().pick(found, None)]
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
    # `auto` takes what a network has, and tells of fewer than three alone.
    with contextlib.nullcontext() if member is AutoStandard else pytest.warns(UserWarning, match=r"50 taps were asked for, but .* offer \d+$"):
        taps = select(member(max_taps=50), HOURGLASS, Measured())
    with pytest.raises(ValueError, match=rf"50 taps were asked for, .* offer {len(taps)}; lower `max_taps` or `min_gap`"):
        select(member(max_taps=50, strict=True), HOURGLASS, Measured())


@rule
@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"max_taps": 0}, "`max_taps >= 1` must hold, but got 0"),
        ({"min_gap": -1}, "`min_gap >= 0` must hold, but got -1"),
        ({"min_stride": 0.5}, "`min_stride >= 1` must hold, but got 0.5"),
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
            return select(standard, HOURGLASS, Measured())

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
    for key in ("small", "big"):
        (tap,) = select(ExplicitStandard(layers=(f"fork[{key}]",)), found)
        assert tap.layer.key == key
    with pytest.raises(ValueError, match=r"'fork' is a module, but no candidate .*; nearest: .*'fork\[big\]'"):
        select(ExplicitStandard(layers=("fork",)), found)


def test_an_unknown_layer_is_refused_with_the_nearest_names(reused: Trace) -> None:
    with pytest.raises(ValueError, match=r"`layers` must name candidates, but 'secnd' is no layer of this model; nearest: 'second'"):
        select(ExplicitStandard(layers=("first", "secnd")), reused)


def test_a_module_that_is_no_candidate_is_told_apart_from_an_unknown_one(reused: Trace) -> None:
    with pytest.raises(ValueError, match=r"'head' is a module, but no candidate \(.*or the output\)"):
        select(ExplicitStandard(layers=("head",)), reused)


def test_a_module_that_is_never_called_is_told_as_such() -> None:
    model = nets.Reused()
    model.spare = nn.Conv2d(3, 8, 1)
    with pytest.raises(ValueError, match=r"`layers` must name candidates, but 'spare' is a module that the forward does not call; nearest: '"):
        select(ExplicitStandard(layers=("spare",)), trace(model, nets.images()))


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
    assert select(lambda found: [layer for layer in found.layers if layer.cls == "ReLU"], reused) == taps  # a candidate stands for its address
    with pytest.raises(ValueError, match="must be a sequence of names, but got the string 'act'"):
        select(lambda _: "act", reused)
    with pytest.raises(ValueError, match="'nothing' is no layer of this model"):
        select(lambda _: ["nothing"], reused)


def test_a_strict_union_must_offer_its_whole_number() -> None:
    members = (ResolutionStandard(max_taps=2), DepthStandard(max_taps=2))
    with pytest.raises(ValueError, match="9 taps were asked for, but this model and rule offer"):
        select(UnionStandard(standards=members, max_taps=9, strict=True), HOURGLASS)
    assert 2 <= len(select(UnionStandard(standards=members, max_taps=9), HOURGLASS)) < 9


def test_an_unknown_standard_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"`standard` must be one of \['attention', .*\], but got 'resolutoin'; nearest: 'resolution'"):
        select("resolutoin", HOURGLASS)


def test_what_is_no_standard_is_refused() -> None:
    with pytest.raises(TypeError, match="`standard` must be a name, a standard or a callable, but got int"):
        select(3, HOURGLASS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`standard` must be a standard, but got its class; write DepthStandard\(\)"):
        select(DepthStandard, HOURGLASS)  # type: ignore[arg-type]


# ---- bottleneck and width ----------------------------------------------------------------------------------------------------------------------


def deepest_minima(sizes: list[int], count: int) -> list[int]:
    """By looking left and right from each layer, past its equals."""
    found = []
    for index, size in enumerate(sizes):
        if index + 1 < len(sizes) and sizes[index + 1] == size:
            continue  # not the last of its plateau
        left = next((other for other in reversed(sizes[:index]) if other != size), None)
        right = next((other for other in sizes[index + 1 :] if other != size), None)
        if left is not None and right is not None and left > size < right:
            found.append((math.log(left * right / size**2), index))
    return sorted(index for _, index in sorted(found, key=lambda pair: (-pair[0], pair[1]))[:count])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("max_taps", [1, 2, 9])
def test_bottlenecks_are_the_deepest_minima_of_the_feature_size(seed: int, max_taps: int) -> None:
    rng = random.Random(seed)
    sizes, channels = [(rng.choice((8, 16)),) * 2 for _ in range(24)], [rng.choice((4, 8, 16, 32)) for _ in range(24)]
    found = made(sizes, channels=channels)
    expected = deepest_minima([c * h * w for c, (h, w) in zip(channels, sizes, strict=True)], max_taps)
    assert expected
    assert chosen(BottleneckStandard(max_taps=max_taps), found) == expected


def test_a_bottleneck_tells_its_sizes_and_the_ends_of_the_net_are_none() -> None:
    found = made([(8, 8)] * 7, channels=[2, 16, 4, 4, 8, 8, 2])
    assert chosen(BottleneckStandard(), found) == [3]
    assert reasons(BottleneckStandard(), found) == ["bottleneck: 256 values between 1,024 and 512"]


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.narrow = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 2, 1)
        self.wide, self.head = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.wide(self.narrow(self.down(x)))), scale_factor=2)


def test_the_code_of_an_auto_encoder_is_its_bottleneck() -> None:
    (tap,) = select(BottleneckStandard(max_taps=1), trace(AutoEncoder(), nets.images()))
    assert tap.layer.address == "narrow"


@pytest.mark.parametrize("growth", [1.25, 1.5, 2.0, 4.0])
def test_width_is_the_last_layer_before_the_channels_grow(growth: float) -> None:
    rng = random.Random(3)
    channels = [rng.choice((4, 5, 6, 8, 12, 16)) for _ in range(40)]
    found = made([(8, 8)] * 40, channels=channels)
    expected = [index for index in range(39) if channels[index + 1] >= growth * channels[index]]
    assert expected
    assert chosen(WidthStandard(growth=growth, max_taps=40), found) == expected
    first = expected[0]
    assert reasons(WidthStandard(growth=growth, max_taps=40), found)[0] == f"width: before {channels[first]} -> {channels[first + 1]} channels"


def test_width_goes_from_block_to_block_where_there_are_blocks() -> None:
    # Inside its blocks a bottleneck net grows and shrinks; what counts is what the blocks give.
    channels = [8, 32, 8, 8, 32, 8, 16, 64, 16]
    found = made([(8, 8)] * 9, ["", "", "a", "", "", "a", "", "", "b"], channels=channels)
    assert chosen(WidthStandard(), found) == [5]
    assert chosen(WidthStandard(), made([(8, 8)] * 9, channels=channels)) != [5]


def test_the_width_of_a_resnet_grows_at_its_stages() -> None:
    found = trace(smp.Unet("resnet18", encoder_weights=None, classes=3), torch.zeros(2, 3, 64, 64))
    taps = select(WidthStandard(), found)
    assert [(tap.layer.address, tap.reason) for tap in taps] == [
        ("encoder.layer1", "width: before 64 -> 128 channels"),
        ("encoder.layer2", "width: before 128 -> 256 channels"),
        ("encoder.layer3", "width: before 256 -> 512 channels"),
    ]


@pytest.mark.parametrize("growth", [1.0, 0.5, float("nan")])
def test_a_growth_that_is_none_is_refused(growth: float) -> None:
    with pytest.raises(ValueError, match=f"`growth > 1` must hold, but got {growth}"):
        WidthStandard(growth=growth)


# ---- dips ----------------------------------------------------------------------------------------------------------------------------------------


def nested(sizes: Sequence[int], names: Sequence[str]) -> Trace:
    found = made([(size, size) for size in sizes])
    layers = tuple(replace(layer, address=name, module=name) for layer, name in zip(found.layers, names, strict=True))
    return replace(found, layers=layers)


def test_an_attention_that_looks_at_a_coarser_map_and_comes_back_is_no_change_of_resolution() -> None:
    found = nested([16, 16, 4, 4, 16, 8, 8], ["stem", "block.q", "block.reduce", "block.kv", "block", "down", "end"])
    assert chosen(ResolutionStandard(direction="both"), found) == [4]
    assert chosen(ResolutionStandard(side="after"), found) == [5]


def test_a_net_inside_a_net_that_has_several_resolutions_is_no_dip() -> None:
    names = ["stem", "unet.a", "unet.b", "unet.c", "unet", "down"]
    assert chosen(ResolutionStandard(), nested([16, 8, 4, 8, 16, 8], names)) == [0, 1, 4]


def test_segformers_attention_does_not_count_as_down_sampling() -> None:
    found = trace(smp.Segformer("mit_b0", encoder_weights=None, classes=3), torch.zeros(2, 3, 64, 64))
    assert any(layer.address == "encoder.block1.0.attn.sr" and layer.stride == 32 for layer in found.layers)
    picked = [found.layers[index] for index in chosen(ResolutionStandard(max_taps=9), found)]
    assert [layer.stride for layer in picked][:3] == [4, 8, 16]
    assert not [layer.address for layer in picked if ".attn" in layer.address]


# ---- attention and fusion ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [AttentionStandard, FusionStandard])
def test_sites_are_taken_once_on_the_side_that_is_asked_for(member: Any) -> None:
    kind, other = (member.kind, "fusion" if member is AttentionStandard else "attention")
    sites = [site(kind, 1, 2, "one", "m"), site(kind, 1, 3, "two"), site(other, 4, 5), site(kind, 6, 3), site(kind, None, 0), site(kind, 7, None)]
    found = made([(8, 8)] * 9, sites=sites)
    assert chosen(member(max_taps=9), found) == [0, 2, 3]
    assert chosen(member(max_taps=9, side="before"), found) == [1, 6, 7]
    assert reasons(member(max_taps=9), found)[1:] == [f"{kind}: after one in m", f"{kind}: after two"]


@pytest.mark.parametrize("name", ["attention", "fusion"])
def test_a_net_without_a_site_is_warned_about_and_then_refused_with_other_standards(name: str) -> None:
    found = trace(nets.Encoder(), nets.images())
    with (
        pytest.warns(UserWarning, match=f"this model has no {name} that a candidate lies after of: standard '{name}' chooses no layer"),
        pytest.warns(UserWarning, match="3 taps were asked for, but this model and rule offer 0"),
        pytest.raises(ValueError, match=f"`standard` must choose at least one layer, but '{name}' chose none; take auto or depth"),
    ):
        select(name, found)


@pytest.mark.parametrize("member", [AttentionStandard, FusionStandard, ResolutionStandard])
def test_an_unknown_side_is_refused(member: Any) -> None:
    with pytest.raises(ValueError, match=r"`side` must be one of \('before', 'after'\), but got 'left'"):
        member(side="left")


def test_every_block_of_a_vision_transformer_attends() -> None:
    found = trace(nets.Vit(blocks=3), nets.images())
    after, before = (select(AttentionStandard(side=side), found) for side in ("after", "before"))
    assert [tap.layer.address for tap in after] == [f"blocks.{index}.attention" for index in range(3)]
    assert [tap.layer.address for tap in before] == [f"blocks.{index}.norm" for index in range(3)]
    assert after[0].reason == "attention: after bmm in blocks.0.attention"


# ---- cost and receptive field -----------------------------------------------------------------------------------------------------------------


def parts_at(values: Sequence[float], targets: Sequence[float]) -> list[int]:
    """The first to reach each target, or the last; told apart."""
    ideals = [next((index for index, value in enumerate(values) if value >= target), len(values) - 1) for target in targets]
    return nearest(ideals, range(len(values)), 0)


@pytest.mark.parametrize("placement", get_args(Placement))
@pytest.mark.parametrize("max_taps", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_cost_is_spent_in_equal_parts(seed: int, max_taps: int, placement: Placement) -> None:
    rng = random.Random(seed)
    flops, params, run = [], [], [0, 0]
    for _ in range(14):
        run = [run[0] + rng.choice((0, 10, 300)), run[1] + rng.choice((0, 7, 90))]
        flops.append(run[0] + 1)
        params.append(run[1] + 1)
    total = int(1.2 * flops[-1]), int(1.5 * params[-1])
    found = made([(8, 8)] * 14, flops=flops, params=params, totals=total)
    start, span = {"early": (0.0, 0.5), "uniform": (0.0, 1.0), "late": (0.5, 0.5)}[placement]
    parts = [start + span * m / (max_taps + 1) for m in range(1, max_taps + 1)]
    for member, spent, whole in ((FlopsStandard, flops, total[0]), (ParamsStandard, params, total[1])):
        if spent[-1] >= parts[0] * whole:
            expected = parts_at(spent, [part * whole for part in parts])
            assert chosen(member(max_taps=max_taps, placement=placement), found) == expected


def test_cost_tells_total_target_and_what_was_reached() -> None:
    found = made([(8, 8)] * 4, flops=[10, 40, 60, 100], params=[5, 5, 50, 100], totals=(2_000_000_000, 100))
    found = replace(found, layers=tuple(replace(layer, flops=layer.flops * 20_000_000) for layer in found.layers))
    assert reasons("flops", found) == [
        "flops of 2 G: first candidate with 25% (40% reached)",
        "flops of 2 G: first candidate with 50% (60% reached)",
        "flops of 2 G: first candidate with 75% (100% reached)",
    ]
    assert reasons(ParamsStandard(max_taps=1), found) == ["params of 0.0001 M: first candidate with 50% (50% reached)"]


def test_a_target_that_another_tap_has_says_so() -> None:
    found = made([(8, 8)] * 4, flops=[10, 90, 95, 100])
    assert reasons(FlopsStandard(max_taps=2), found) == [
        "flops of 1e-07 G: nearest other candidate to the first with 33% (10% reached)",
        "flops of 1e-07 G: first candidate with 67% (90% reached)",
    ]


@pytest.mark.parametrize("max_taps", [1, 2, 4])
def test_receptive_fields_grow_by_equal_factors(max_taps: int) -> None:
    rng = random.Random(max_taps)
    fields: list[float] = [3.0]
    for _ in range(14):
        fields.append(max(1.0, fields[-1] + rng.choice((0, 2, 8, 16, -4))))
    low, high = min(fields), max(fields)
    highest = [max(fields[: index + 1]) for index in range(len(fields))]
    expected = parts_at(highest, [low * (high / low) ** (m / (max_taps + 1)) * (1 - 1e-12) for m in range(1, max_taps + 1)])
    found = made([(8, 8)] * len(fields), fields=fields)
    assert chosen(ReceptiveFieldStandard(max_taps=max_taps), found) == expected
    assert all(f"from {low:g} to {high:g} pixels" in reason for reason in reasons(ReceptiveFieldStandard(max_taps=max_taps), found))


# ---- union -----------------------------------------------------------------------------------------------------------------------------------------


def test_a_union_takes_what_its_members_choose_each_within_its_own_limits() -> None:
    members = (DepthStandard(max_taps=2), {"kind": "resolution", "max_taps": 1, "direction": "up"}, "width")
    union = UnionStandard(standards=members)
    expected = {*chosen(DepthStandard(max_taps=2), HOURGLASS), *chosen(ResolutionStandard(max_taps=1, direction="up"), HOURGLASS)}
    expected |= set(chosen("width", HOURGLASS))
    assert chosen(union, HOURGLASS) == sorted(expected)
    assert chosen({"kind": "union", "standards": list(members)}, HOURGLASS) == sorted(expected)


def test_a_layer_that_two_members_choose_is_taken_once_with_both_reasons() -> None:
    union = UnionStandard(standards=("width", ExplicitStandard(layers=("l1", "l7"))))
    assert chosen(union, HOURGLASS) == [1, 7]
    assert reasons(union, HOURGLASS) == ["width: before 4 -> 8 channels; explicit: l1", "explicit: l7"]


def test_a_union_keeps_its_own_limits_too() -> None:
    parts = (ExplicitStandard(layers=("l0", "l1", "l2")), ExplicitStandard(layers=("l4", "l6")))
    assert chosen(UnionStandard(standards=parts), HOURGLASS) == [0, 1, 2, 4, 6]
    assert chosen(UnionStandard(standards=parts, max_taps=2, placement="late"), HOURGLASS) == [4, 6]
    assert chosen(UnionStandard(standards=parts, min_gap=2), HOURGLASS) == [0, 4]
    assert chosen(UnionStandard(standards=parts, min_stride=2), HOURGLASS) == [1, 2, 4, 6]


def test_a_union_may_be_smaller_than_its_limit_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(select(UnionStandard(standards=(ExplicitStandard(layers=("l3",)), ExplicitStandard(layers=("l1",)))), HOURGLASS)) == 2


@pytest.mark.parametrize(
    ("standards", "message"),
    [
        ((), r"`standards` must hold at least two standards, but got \(\)"),
        (("depth",), "`standards` must hold at least two standards"),
        ("depth", "`standards` must hold at least two standards, but got 'depth'"),
        (("depth", "wdith"), "but got 'wdith'; nearest: 'width'"),
        (("depth", {"kind": "depht"}), "but got 'depht'; nearest: 'depth'"),
        (("depth", "explicit"), "but got 'explicit'"),
        (("depth", {"kind": "width", "grwoth": 2}), "'grwoth' is no setting of 'width'; nearest: 'growth'"),
    ],
)
def test_unions_of_another_form_are_refused(standards: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnionStandard(standards=standards)


# ---- all of them on real nets ------------------------------------------------------------------------------------------------------------------


def test_standards_that_look_at_data_ask_for_them() -> None:
    for member in get_args(MeasuredStandard):
        with pytest.raises(ValueError, match=rf"`calibration` must give batches \(images, labels\) for the standard '{member.kind}', but is None"):
            select(member(), HOURGLASS)
        with pytest.raises(ValueError, match="`batches >= 1` must hold, but got 0"):
            member(batches=0)


@pytest.fixture(scope="module", params=["Unet-resnet18", "Segformer-mit_b0"])
def twice(request: pytest.FixtureRequest) -> list[tuple[Trace, Calibration]]:
    """One model, built, traced and measured twice."""
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        architecture, encoder = request.param.split("-")
        model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=nets.NUM_CLASSES)
        batches = [(nets.images(2, 64, 64), nets.labels(2, 64, 64, void=0.1))]
        torch.manual_seed(len(found))
        found.append((trace(model, nets.images(1, 64, 64, seed=len(found))), Calibration(model, batches, nets.NUM_CLASSES, 255)))
    return found


@rule
def test_every_rule_gives_the_same_named_layers_of_two_builds(member: Any, twice: list[tuple[Trace, Calibration]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if member is AttentionStandard and not any(site.kind == "attention" for site in twice[0][0].sites):
            return
        first, second = ([(tap.layer.address, tap.reason) for tap in select(member(), *both)] for both in twice)
    assert first == second
    assert 1 <= len(first) <= member().max_taps
    for _, reason in first:
        assert reason.startswith((member.kind.replace("_", " "), "resolution", "stage"))
        assert member in (AttentionStandard, FusionStandard) or any(character.isdigit() for character in reason)


def test_any_rule_is_a_frozen_value() -> None:
    for member in RULES:
        assert issubclass(member, Rule)
        assert member() == member()
        assert hash(member()) == hash(member())
        with pytest.raises(FrozenInstanceError):
            member().max_taps = 5


@pytest.mark.parametrize(
    ("architecture", "encoder", "expected"),
    [
        ("unet", "resnet18", ["encoder.layer2", "encoder.layer3", "encoder.layer4", "decoder.blocks.0", "decoder.blocks.1"]),
        ("deeplabv3plus", "resnet18", ["encoder.layer2", "encoder.layer3", "encoder.layer4", "decoder.aspp.0", "decoder.aspp.1"]),
        (
            "segformer",
            "mit_b0",
            ["encoder.block2", "encoder.block3", "encoder.block4", "decoder.mlp_stage.0", "decoder.mlp_stage.1", "decoder.mlp_stage.2"],
        ),
        # Eight stages, of which seven are taken.
        ("unet", "mobilenet_v2", [*(f"encoder.features.{i}" for i in (6, 10, 13, 16, 17, 18)), "decoder.blocks.0"]),
    ],
)
def test_the_default_takes_the_ends_of_stages_from_an_eighth_of_the_input_on(architecture: str, encoder: str, expected: list[str]) -> None:
    model = smp.create_model(architecture, encoder, encoder_weights=None, classes=3)
    taps = select("auto", trace(model, torch.randn(2, 3, 64, 64)))
    assert [tap.layer.address for tap in taps] == expected
    assert min(tap.layer.stride for tap in taps) == 8
