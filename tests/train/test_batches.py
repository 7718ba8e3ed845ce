import pytest
import torch

from imachsr.config.schema import ConfigError, Run
from imachsr.data.transforms import normalize
from imachsr.train.batches import batch_size, batches
from tests.train.toys import Bands, toy_run

SAMPLES = Bands(count=12).load("train")
PLAIN = {"augment__flip": 0, "augment__scale": [1, 1], "augment__jitter": 0}


def drawn(run: Run, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Which samples the batches hold, told by their pixels."""
    known = normalize(SAMPLES.images)
    return [
        [int((known - image).abs().amax((1, 2, 3)).argmin()) for image in images]
        for images, _ in batches(SAMPLES, run, epoch=epoch, rank=rank, world=world)
    ]


def test_an_epoch_shows_each_sample_once_in_an_order_of_seed_and_epoch() -> None:
    run = toy_run(**PLAIN)
    first = drawn(run, 1)
    assert [len(batch) for batch in first] == [4, 4, 4]
    assert sorted(sum(first, [])) == list(range(12))
    assert drawn(run, 1) == first
    assert drawn(run, 2) != first
    assert drawn(toy_run(**PLAIN, seed=1), 1) != first
    # Neighbouring seeds do not share orders at neighbouring epochs.
    assert drawn(toy_run(**PLAIN, seed=1), 1) != drawn(run, 2)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_part_every_global_batch(world: int) -> None:
    run = toy_run(**PLAIN)
    shares = [drawn(run, 3, rank, world) for rank in range(world)]
    for step, whole in enumerate(drawn(run, 3)):
        parts = [share[step] for share in shares]
        assert {len(part) for part in parts} == {4 // world}
        assert sorted(sum(parts, [])) == sorted(whole)


def test_augmentation_of_a_sample_does_not_depend_on_the_number_of_ranks() -> None:
    run = toy_run(augment__flip=0.5)
    (images, labels), *_ = batches(SAMPLES, run, epoch=2)
    for rank in range(2):
        (part, part_labels), *_ = batches(SAMPLES, run, epoch=2, rank=rank, world=2)
        torch.testing.assert_close(part, images[rank::2])
        assert torch.equal(part_labels, labels[rank::2])


def test_samples_that_fill_no_batch_are_left_out_and_are_others_in_another_epoch() -> None:
    run = toy_run(**PLAIN, optimizer__batch_size=5)
    left = [frozenset(range(12)) - {i for batch in drawn(run, epoch) for i in batch} for epoch in range(1, 6)]
    assert {len(rest) for rest in left} == {2}
    assert len(set(left)) > 1


def test_a_batch_larger_than_the_data_is_all_of_them() -> None:
    run = toy_run(**PLAIN, optimizer__batch_size=100)
    assert batch_size(run, 12, 1) == 12
    assert [sorted(batch) for batch in drawn(run, 1)] == [list(range(12))]


@pytest.mark.parametrize(("size", "count", "world", "got"), [(4, 12, 3, 4), (8, 7, 2, 7)])
def test_a_batch_that_the_ranks_cannot_share_equally_is_refused(size: int, count: int, world: int, got: int) -> None:
    with pytest.raises(ConfigError, match=f"`optimizer.batch_size` .* must be a multiple of the {world} workers, but got {got}"):
        batch_size(toy_run(optimizer__batch_size=size), count, world)
