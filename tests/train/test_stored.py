"""A training that two machines take up, each with a disk of its own."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from imachsr import storage
from imachsr.train import checkpoint
from imachsr.train.courier import Courier
from imachsr.train.stored import clear_of_others, newest_apart
from imachsr.train.upload import Mirror
from tests.processes import leave
from tests.train.savers import state, value_of


def save(folder: Path, value: int, score: float | None = None) -> None:
    checkpoint.save(folder, {**state(value), "step": value}, step=value, score=score, keep=2)


def take_up(rank: int, folder: str, uri: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = newest_apart(Courier(uri), Path(folder) / str(rank), keep=2)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(None if found is None else value_of(found)))
    leave()


def test_what_an_older_training_left_on_a_workers_disk_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    save(tmp_path, 7)
    clear_of_others(tmp_path, "second")
    assert checkpoint.newest_whole(tmp_path) is None
    save(tmp_path, 1)
    clear_of_others(tmp_path, "second")  # its group was started again
    assert value_of(checkpoint.load(tmp_path)) == 1
    clear_of_others(tmp_path, "third")
    assert checkpoint.newest_whole(tmp_path) is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("stored", "disks", "newest"),
    [
        ([1], ([1], [1, 2, 3]), 3),  # the first worker was replaced by another machine's before its uploads were through
        ([1, 2, 3], ([], [1]), 3),
        ([1, 2], ([1, 2, 3], []), 3),
        ([], ([], []), None),
        ([], ([], [1, 2]), 2),
    ],
)
def test_the_newest_checkpoint_of_all_disks_and_the_storage_is_taken_up_by_all(
    tmp_path: Path, stored: list[int], disks: tuple[list[int], list[int]], newest: int | None
) -> None:
    uri = storage.address(str(tmp_path / "store_of_all"))
    if stored:
        with Mirror(Courier(uri), tmp_path / "first", say=lambda line: None, end_s=30, stop_s=5) as mirror:
            for value in stored:
                save(tmp_path / "first", value, score=value / 10)
            mirror.wake()
    for rank, values in enumerate(disks):
        for value in values:
            save(tmp_path / str(rank), value, score=value / 10)
    mp.spawn(take_up, args=(str(tmp_path), uri), nprocs=2)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [newest, newest]
    # What the first worker uploads from now on follows what was found.
    own = checkpoint.newest_whole(tmp_path / "0")
    if newest is None:
        assert own is None
    else:
        assert own is not None
        assert (own.step, own.serial, own.score) == (newest, newest, newest / 10)
        assert value_of(checkpoint.load(tmp_path / "0")) == newest
