"""The selection split: neighbouring video frames are never on both sides."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from imachsr.data.camvid import CamVid
from imachsr.data.samples import Samples
from imachsr.data.splits import Selection, block_split, sequences_of


def sequence_of(name: str) -> str:
    return name.rpartition("_")[0]


def frames(**counts: int) -> list[str]:
    return [f"{name}_{index:05d}" for name, count in counts.items() for index in range(count)]


def positions(names: list[str] | tuple[str, ...], chosen: list[int]) -> dict[str, list[int]]:
    """Place of every chosen frame within its sequence."""
    seen: dict[str, int] = defaultdict(int)
    found: dict[str, list[int]] = defaultdict(list)
    members = set(chosen)
    for index, name in enumerate(names):
        if index in members:
            found[sequence_of(name)].append(seen[sequence_of(name)])
        seen[sequence_of(name)] += 1
    return found


def runs(places: list[int]) -> int:
    return sum(1 for here, before in zip(places, [-2, *places], strict=False) if here != before + 1)


def drawn(seed: int) -> tuple[list[str], float, int, int]:
    draw = random.Random(seed)
    names = frames(**{f"s{i}": draw.randint(1, 120) for i in range(draw.randint(1, 4))})
    if draw.random() < 0.3:
        names.sort(key=lambda name: name.split("_")[1])  # sequences interleaved, each in order of time
    return names, draw.uniform(0.05, 0.95), draw.randint(1, 7), draw.randint(0, 4)


@pytest.mark.parametrize("seed", range(150))
def test_properties_hold_for_drawn_settings(seed: int) -> None:
    names, fraction, blocks, guard = drawn(seed)
    try:
        train, select = block_split(names, fraction=fraction, blocks=blocks, guard=guard)
    except ValueError as error:
        assert "both sides must keep samples" in str(error)  # noqa: PT017
        return
    assert train == sorted(set(train))
    assert select == sorted(set(select))
    assert set(train).isdisjoint(select)
    assert set(train) | set(select) <= set(range(len(names)))
    trained, selected = positions(names, train), positions(names, select)
    counts = {sequence: sum(sequence_of(name) == sequence for name in names) for sequence in map(sequence_of, names)}
    for sequence, count in counts.items():
        wanted = round(count * fraction)
        if count in (len(trained[sequence]), len(selected[sequence])):  # kept whole, which only those may be that its blocks and guards could fill
            assert wanted == 0 or count <= wanted + 2 * guard * min(blocks, wanted)
            continue
        assert len(selected[sequence]) == wanted
        assert runs(selected[sequence]) <= min(blocks, wanted)
        distance = min((abs(a - b) for a in trained[sequence] for b in selected[sequence]), default=guard + 1)
        assert distance > guard
        dropped = count - len(trained[sequence]) - len(selected[sequence])
        assert dropped <= 2 * guard * min(blocks, wanted)


def test_blocks_are_spread_over_the_sequence() -> None:
    train, select = block_split(frames(a=100), fraction=0.2, blocks=4, guard=0)
    assert select == [*range(10, 15), *range(35, 40), *range(60, 65), *range(85, 90)]
    assert len(train) == 80


def test_a_guard_drops_frames_on_either_side() -> None:
    train, select = block_split(frames(a=20), fraction=0.2, blocks=1, guard=2)
    assert select == [8, 9, 10, 11]
    assert train == [*range(6), *range(14, 20)]


def test_a_guard_does_not_reach_into_another_sequence() -> None:
    # Two frames of b are too few for a block; the block of a lies around them in the list.
    names = ["a_0", "a_1", "a_2", "b_0", "a_3", "b_1", "a_4", "a_5", "a_6", "a_7"]
    train, select = block_split(names, fraction=0.25, blocks=1, guard=2)
    assert [names[index] for index in select] == ["a_3", "a_4"]
    assert [names[index] for index in train] == ["a_0", "b_0", "b_1", "a_7"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "`0 < fraction < 1` must hold, but got 0.0"),
        ({"fraction": 1.0}, "`0 < fraction < 1` must hold, but got 1.0"),
        ({"fraction": float("nan")}, "`0 < fraction < 1` must hold, but got nan"),
        ({"blocks": 0}, "`blocks >= 1` and `guard >= 0` must hold, but got 0 and 2"),
        ({"guard": -1}, "`blocks >= 1` and `guard >= 0` must hold, but got 4 and -1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_split(frames(a=50), **settings)
    with pytest.raises(ValueError, match=message):
        Selection(**settings)


def test_one_frame_sequences_are_selected_whole_and_evenly() -> None:
    # Cityscapes: CITY_SEQUENCE_FRAME_KIND, of which each is a sequence of its own.
    names = [f"city_{index:06d}_000019_leftImg8bit" for index in range(40)]
    train, select = block_split(names, fraction=0.25)
    assert sorted(train + select) == list(range(40))
    assert len(select) == 10
    assert {after - before for before, after in zip(select, select[1:], strict=False)} == {4}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_short_sequences_are_never_divided_and_give_their_share(length: int, fraction: float) -> None:
    names = frames(**{f"s{index:03d}": length for index in range(60)})
    train, select = block_split(names, fraction=fraction, blocks=4, guard=2)
    assert sorted(train + select) == list(range(len(names)))
    assert {sequence_of(names[index]) for index in train}.isdisjoint(sequence_of(names[index]) for index in select)
    assert abs(len(select) - fraction * len(names)) <= length
    halves = [sum(index < len(names) / 2 for index in select), sum(index >= len(names) / 2 for index in select)]
    assert abs(halves[0] - halves[1]) <= length


def test_short_sequences_beside_long_ones_leave_those_as_they_are() -> None:
    alone = block_split(frames(a=100))
    train, select = block_split([*frames(a=100), *(f"s{index}_0" for index in range(20))])
    assert [index for index in train if index < 100] == alone[0]
    assert [index for index in select if index < 100] == alone[1]
    assert len([index for index in select if index >= 100]) == 5


def test_the_rule_for_sequences_is_told_when_a_side_is_empty() -> None:
    with pytest.raises(ValueError, match="names that are equal up to the last underscore are one sequence, and these make 1"):
        block_split(["001", "002"], fraction=0.1)


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_in_time_stay_apart_however_they_are_listed_and_called(seed: int) -> None:
    draw = random.Random(seed)
    kind = draw.choice(["", "_rgb", "_leftImg8bit", "_raw_v2"])
    width = draw.choice([1, 6])  # 1: frame_9 and frame_10
    names = [f"{street}_{index:0{width}d}{kind}" for street in ("north", "south_2") for index in range(60)]
    draw.shuffle(names)
    train, select = block_split(names, fraction=0.25, blocks=2, guard=2)
    assert len(select) == 30
    assert len(train) == 120 - 30 - 2 * 2 * 4

    def places(chosen: list[int], street: str) -> list[int]:
        return [int(names[index].removesuffix(kind).rpartition("_")[2]) for index in chosen if names[index].startswith(street)]

    for street in ("north", "south"):
        assert min(abs(a - b) for a in places(train, street) for b in places(select, street)) > 2


def test_a_sequence_is_what_is_equal_up_to_the_frame() -> None:
    assert sequences_of(["a_2", "a_10", "b_1", "a_1"]) == {"a": [3, 0, 1], "b": [2]}
    assert sequences_of(["a_1_rgb", "a_0_rgb"]) == {"a": [1, 0]}
    assert sequences_of(["Seq05VD_f00030", "Seq05VD_f00000"]) == {"Seq05VD": [1, 0]}
    # The 19th frame of each of Cityscapes' sequences: a number is no kind.
    assert list(sequences_of(["aachen_000000_000019", "aachen_000001_000019"])) == ["aachen_000000", "aachen_000001"]
    assert sequences_of(["rgb", "rgb"]) == {"": [0, 1]}
    assert sequences_of(["frame-10", "frame-9"]) == {"": [1, 0]}
    assert sequences_of([]) == {}


@pytest.mark.parametrize(("count", "guard", "sides"), [(1, 0, "1 to train on and 0"), (8, 5, "8 to train on and 0"), (0, 0, "0 to train on and 0")])
def test_an_empty_side_is_refused_and_told(count: int, guard: int, sides: str) -> None:
    with pytest.raises(ValueError, match=f"both sides must keep samples, but {count} samples .* leave {sides}"):
        block_split(frames(a=count), guard=guard)


def test_a_selection_keeps_image_label_and_name_together() -> None:
    count = 24
    numbers = torch.arange(count, dtype=torch.uint8)
    samples = Samples(
        images=numbers.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous(),
        labels=numbers.view(-1, 1, 1).expand(-1, 32, 32).contiguous(),
        names=tuple(frames(a=count)),
    )
    sides = Selection(fraction=0.25, blocks=2, guard=1).split(samples)
    assert sum(map(len, sides)) == count - 4
    for side in sides:
        for image, labels, name in zip(side.images, side.labels, side.names, strict=True):
            assert image.unique().tolist() == labels.unique().tolist() == [int(name.split("_")[1])]


@pytest.mark.parametrize("guard", [1, 2, 3])
def test_on_real_video_no_selected_frame_has_a_training_neighbour(camvid: Path, guard: int) -> None:
    names = CamVid(root=str(camvid)).load("train").names
    train, select = block_split(names, guard=guard)
    trained, selected = positions(names, train), positions(names, select)
    assert set(trained) == set(selected) == {"0001TP", "0006R0", "0016E5"}
    for sequence in selected:
        assert min(abs(a - b) for a in trained[sequence] for b in selected[sequence]) > guard
        order = [int(name.rpartition("_")[2].lstrip("f")) for name in names if sequence_of(name) == sequence]
        assert order == sorted(order), "neighbours in the list are neighbours in time"
    assert 0.2 < len(select) / len(names) < 0.3


def test_real_video_is_cut_as_in_published_results(camvid: Path) -> None:
    names = CamVid(root=str(camvid)).load("train").names
    train, select = block_split(names)
    assert (len(names), len(train), len(select)) == (367, 227, 92)
    # Four blocks a sequence: first and last frame of each.
    edges = [(6, 9), (21, 24), (37, 40), (52, 55), (72, 77), (96, 101), (122, 127), (146, 152), (182, 193), (232, 244), (284, 296), (335, 347)]
    assert select == [index for first, last in edges for index in range(first, last + 1)]
    near = {index for first, last in edges for index in range(first - 2, last + 3)}
    assert train == [index for index in range(367) if index not in near]
