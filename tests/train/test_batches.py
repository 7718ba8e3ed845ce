import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from imachsr.config.plan import Plan
from imachsr.config.schema import ConfigError, Run
from imachsr.config.training import Compute
from imachsr.data.transforms import normalize
from imachsr.train.batches import Batch, Batches, batch_size, batches, explained, loader_workers
from tests.train.toys import Bands, toy_run

SAMPLES = Bands(count=12).load("train")
PLAIN = {"augment__flip": 0, "augment__scale": [1, 1], "augment__jitter": 0}


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
    with pytest.warns(
        UserWarning, match="`optimizer.batch_size` must be at most 12, the number of training samples, but got 100; a step takes all 12"
    ):
        assert [sorted(batch) for batch in drawn(run, 1)] == [list(range(12))]
    assert len(drawn(run, 1, rank=1, world=2)[0]) == 6  # one rank tells


@pytest.mark.parametrize(("size", "count", "world", "got"), [(4, 12, 5, 4), (8, 3, 4, 3)])
def test_a_batch_without_a_sample_for_each_rank_is_refused(size: int, count: int, world: int, got: int) -> None:
    message = f"`optimizer.batch_size` and the number of training samples must be at least {world}, one a worker, but the smaller is {got}"
    with pytest.raises(ConfigError, match=message):
        batch_size(toy_run(optimizer__batch_size=size), count, world)


@pytest.mark.parametrize(("size", "world", "shares"), [(5, 2, [3, 2]), (4, 3, [2, 1, 1]), (7, 4, [2, 2, 2, 1])])
def test_ranks_share_a_batch_that_they_do_not_divide(size: int, world: int, shares: list[int]) -> None:
    run = toy_run(**PLAIN, optimizer__batch_size=size)
    parts = [drawn(run, 2, rank, world) for rank in range(world)]
    whole = drawn(run, 2)
    assert {len(part) for part in parts} == {len(whole)}
    for step, samples in enumerate(whole):
        assert [len(part[step]) for part in parts] == shares
        for rank, part in enumerate(parts):
            assert part[step] == samples[rank::world]


def same(left: list[Batch], right: list[Batch]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) and torch.equal(c, d) and a.stride() == b.stride() for (a, c), (b, d) in pairs)


@pytest.mark.parametrize("start", range(4))
def test_the_rest_of_an_epoch_is_what_it_would_have_been(start: int) -> None:
    run = toy_run()
    whole = list(batches(SAMPLES, run, epoch=2))
    assert same(list(batches(SAMPLES, run, epoch=2, start=start)), whole[start:])


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_of_the_epoch_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match=f"`0 <= start <= 3` must hold, but got {start}"):
        next(batches(SAMPLES, toy_run(), epoch=1, start=start))


@pytest.mark.parametrize("layout", ["on", "off"])
def test_images_come_in_the_layout_of_the_step(layout: str) -> None:
    images, _ = next(batches(SAMPLES, toy_run(compute__channels_last=layout), epoch=1))
    assert images.is_contiguous(memory_format=torch.channels_last if layout == "on" else torch.contiguous_format)


# Processes that prepare batches


def with_workers(count: int) -> Run:
    return toy_run(compute__loader_workers=count)


@pytest.mark.parametrize(
    ("setting", "device", "cores", "ranks", "expected"),
    [
        ("auto", "cpu", 64, 1, 0),
        ("auto", "cuda", 64, 8, 7),
        ("auto", "cuda", 96, 4, 8),
        ("auto", "cuda", 8, 2, 3),
        ("auto", "cuda", 2, 2, 0),
        ("auto", "cuda", 2, 4, 0),
        (0, "cuda", 64, 1, 0),
        (3, "cpu", 1, 1, 3),
        (20, "cuda", 4, 4, 20),
    ],
)
def test_the_number_of_processes_is_what_is_set_or_fits_the_machine(setting: int | str, device: str, cores: int, ranks: int, expected: int) -> None:
    assert loader_workers(Compute(loader_workers=setting), device=device, cores=cores, ranks=ranks) == expected


@pytest.mark.parametrize(("threads", "device", "expected"), [(2, "cuda", 2), (32, "cuda", 8), (2, "cpu", 0)])
def test_what_a_trial_reserved_is_all_that_prepares_its_batches(threads: int, device: str, expected: int) -> None:
    assert loader_workers(Compute(threads=threads), device=device, cores=96, ranks=1) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_batches_and_the_global_random_state_do_not_depend_on_the_number_of_processes() -> None:
    expected = [list(Batches(SAMPLES, with_workers(0)).epoch(epoch)) for epoch in (1, 2, 3)]
    for count in (1, 3):
        prepared = Batches(SAMPLES, with_workers(count))
        state = torch.get_rng_state()
        assert same(list(prepared.epoch(1)), expected[0])
        left_early = prepared.epoch(2)
        next(left_early)
        assert same(list(prepared.epoch(3, start=1)), expected[2][1:])
        assert same(list(prepared.epoch(2)), expected[1])
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_processes_live_from_epoch_to_epoch_and_end_with_their_owner() -> None:
    before = set(children())
    prepared = Batches(SAMPLES, with_workers(2))
    assert set(children()) == before
    list(prepared.epoch(1))
    started = set(children()) - before
    assert len(started) == 2
    list(prepared.epoch(2))
    assert set(children()) - before == started
    del prepared
    gc.collect()
    assert set(children()) == before


def _kill_and_go_on(worker: int, epoch: Iterator[Batch]) -> None:
    os.kill(worker, signal.SIGKILL)
    list(epoch)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_killed_process_is_told_with_the_way_out() -> None:
    prepared = Batches(Bands(count=80).load("train"), with_workers(1))
    before = set(children())
    epoch = prepared.epoch(1)
    next(epoch)
    (worker,) = set(children()) - before
    message = r"a process that prepares batches must live, but: .*; set compute.loader_workers=0 to do without"
    # torch raises in the main thread as soon as it hears of it, wherever that is: between two batches too.
    with pytest.raises(RuntimeError, match=message), explained():
        _kill_and_go_on(worker, epoch)


SIGNALLED = """
    import multiprocessing, subprocess
    from tests.train.test_batches import SAMPLES, Batches, with_workers
    prepared = Batches(SAMPLES, with_workers(1))
    epoch = prepared.epoch(1)
    next(epoch)
    (worker,) = multiprocessing.active_children()
    for number in ("INT", "TERM"):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    assert len(list(epoch)) == 2
    assert len(list(prepared.epoch(2))) == 3
    worker.terminate()  # as torch and multiprocessing do, and wait for it
    worker.join(timeout=10)
    assert worker.exitcode == 0, worker.exitcode
"""


@pytest.mark.long
def test_a_process_leaves_signals_to_its_owner_but_for_those_that_it_sends(root: Path) -> None:
    # In an interpreter of its own, as a training has it: threads that a library starts again after a fork (gRPC's, of Ray) block no signals.
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SIGNALLED)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


PARENT = """
    import time
    from tests.train.test_batches import Bands, Batches, children, with_workers
    batches = Batches(Bands(count=80).load("train"), with_workers(2)).epoch(1)
    next(batches)
    print(*children(), flush=True)
    time.sleep(600)
"""


@pytest.mark.long
def test_processes_die_with_their_parent(root: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PARENT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(is_alive(pid) for pid in workers)
        parent.kill()
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("of", ["data", "resolution"])
def test_a_training_that_begins_with_less_has_fewer_steps_or_smaller_images_and_the_same_share_on_every_rank(of: str) -> None:
    run = toy_run(optimizer__epochs=3, optimizer__progressive={"of": of, "until": [1], "shares": [0.5]})
    whole = [list(batches(SAMPLES, toy_run(optimizer__epochs=3), epoch=epoch)) for epoch in (1, 2)]
    small = [list(batches(SAMPLES, run, epoch=epoch)) for epoch in (1, 2)]
    assert same(small[1], whole[1])
    if of == "data":
        assert len(small[0]) == round(len(whole[0]) / 2)
        assert same(small[0], whole[0][: len(small[0])])  # the first of the same order
    else:
        assert len(small[0]) == len(whole[0])
        expected = Plan(run=run, full=1).size(1, *SAMPLES.labels.shape[-2:])
        for (images, labels), (big, _) in zip(small[0], whole[0], strict=True):
            assert tuple(images.shape[-2:]) == tuple(labels.shape[-2:]) == expected
            assert float(images.mean()) == pytest.approx(float(big.mean()), abs=0.2)
            assert labels.dtype == torch.int64
