"""A part of the training samples."""

import pytest
import torch

from imachsr.data.samples import Samples
from imachsr.data.splits import Selection
from imachsr.data.subset import Subset


def sequence_of(name: str) -> str:
    return name.rpartition("_")[0]


def samples(**counts: int) -> Samples:
    names = tuple(f"{sequence}_{frame:03d}" for sequence, count in counts.items() for frame in range(count))
    marks = torch.arange(len(names), dtype=torch.uint8)
    return Samples(images=marks.view(-1, 1, 1, 1).expand(-1, 3, 32, 32), labels=marks.view(-1, 1, 1).expand(-1, 32, 32), names=names)


VAL = samples(v=3)


def never() -> Samples:
    raise AssertionError("val must not be loaded")


def test_by_default_everything_is_trained_on_and_val_scored_on() -> None:
    train = samples(a=5)
    assert Subset().split(train, lambda: VAL) == (train, VAL)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 20), (0.25, 10), (0.125, 5)])
def test_a_share_is_spread_over_every_sequence(share: float, expected: int) -> None:
    train, held_out = Subset(share=share).split(samples(a=24, b=16), lambda: VAL)
    frames = {name: [int(each.rpartition("_")[2]) for each in train.names if sequence_of(each) == name] for name in "ab"}
    assert held_out is VAL
    assert len(train) == expected
    for sequence, count in (("a", 24), ("b", 16)):
        steps = {after - before for before, after in zip(frames[sequence], frames[sequence][1:], strict=False)}
        assert len(frames[sequence]) == count * share
        assert steps <= {round(1 / share)}
    # What belongs together stays together.
    assert torch.equal(train.images[:, 0, 0, 0], train.labels[:, 0, 0])


@pytest.mark.parametrize(("share", "expected"), [(0.25, 10), (0.6, 24)])
def test_single_frames_are_shared_as_if_they_were_one_sequence(share: float, expected: int) -> None:
    """As those of Cityscapes, most of which are sequences of one frame by their names."""
    names = {f"{city}_{number:06d}": 1 for city in ("aachen", "bochum") for number in range(20)}
    train, _ = Subset(share=share).split(samples(**names), lambda: VAL)
    cities = [name.partition("_")[0] for name in train.names]
    assert cities == ["aachen"] * (expected // 2) + ["bochum"] * (expected // 2)
    mixed, _ = Subset(share=share).split(samples(**names, long=40), lambda: VAL)
    assert mixed.names == (*train.names, *(f"long_{frame:03d}" for frame in range(40) if f"long_{frame:03d}" in mixed.names))
    assert len(mixed) == 2 * expected


@pytest.mark.parametrize("length", [2, 3, 5, 7])
@pytest.mark.parametrize("share", [0.125, 0.3, 0.5, 0.9])
def test_many_short_sequences_give_their_share_and_no_more(length: int, share: float) -> None:
    train, _ = Subset(share=share).split(samples(**{f"s{number:02d}": length for number in range(40)}), lambda: VAL)
    assert len(train) == round(40 * length * share)


def test_frames_are_shared_in_order_of_time_however_they_are_listed() -> None:
    train = samples(a=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    mixed, _ = Subset(share=0.25).split(train.subset(order), lambda: VAL)
    assert sorted(mixed.names) == list(Subset(share=0.25).split(train, lambda: VAL)[0].names)


def test_a_held_out_sequence_is_scored_on_and_never_trained_on() -> None:
    train, held_out = Subset(hold_out="b", share=0.5).split(samples(a=8, b=4, c=2), never)
    assert {sequence_of(name) for name in train.names} == {"a", "c"}
    assert held_out.names == tuple(f"b_{frame:03d}" for frame in range(4))
    assert len(train) == 5


def test_a_search_on_a_subset_sees_neither_val_nor_the_held_out_sequence() -> None:
    selection = Selection(fraction=0.25, blocks=1, guard=0)
    train, select = Subset(hold_out="b", share=0.5).split(samples(a=8, b=4), never, selection=selection)
    assert {sequence_of(name) for name in (*train.names, *select.names)} == {"a"}
    assert (len(train), len(select)) == (3, 2)
    assert not set(train.names) & set(select.names)


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ({"share": 0}, r"`0 < share <= 1` must hold, but got 0"),
        ({"share": 1.5}, r"`0 < share <= 1` must hold, but got 1.5"),
    ],
)
def test_what_is_out_of_range_is_refused(subset: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subset(**subset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (Subset(hold_out="c"), "must be one of several sequences of train, but got 'c'; train has a, b"),
        (Subset(share=0.01), "must leave something to train on, but 0.01 of 8 samples is nothing"),
    ],
)
def test_what_leaves_nothing_is_refused(subset: Subset, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subset.split(samples(a=4, b=4), never)


def test_the_only_sequence_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="one of several sequences"):
        Subset(hold_out="a").split(samples(a=4), never)
