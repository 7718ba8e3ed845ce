"""Which faults are worth a retry, and which of two workers hangs: real stacks of real processes that wait for each other."""

import multiprocessing
import time
from pathlib import Path

import pytest
import ray.exceptions
import torch
import torch.distributed as dist

from imachsr.config.schema import ConfigError
from imachsr.train.checkpoint import DiskFullError
from imachsr.train.faults import for_the_driver, hang_guard, hung, is_worth_a_retry, stacks


@pytest.mark.parametrize(
    ("error", "is_worth"),
    [
        # The machine, the network, another worker.
        (ConnectionResetError("reset by peer"), True),
        (TimeoutError("timed out"), True),
        (OSError(5, "Input/output error"), True),
        (OSError(116, "Stale file handle"), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (dist.DistNetworkError("Failed to recv, got 0 bytes"), True),
        (dist.DistStoreError("wait timeout after 60000ms"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4321"), True),
        (RuntimeError("Timed out waiting 60000ms for recv operation to complete"), True),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("a process that prepares batches must live, but: it was lost"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (ray.exceptions.ActorDiedError(), True),
        # The program, its settings, the folder.
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (NotImplementedError("no kernel"), False),
        (PermissionError(13, "Permission denied"), False),
        (FileNotFoundError(2, "No such file or directory"), False),
        (NotADirectoryError(20, "Not a directory"), False),
        (IsADirectoryError(21, "Is a directory"), False),
        (DiskFullError("no room"), False),
        (ConfigError("`a` must hold"), False),
        (KeyError("x"), False),
        (MemoryError(), False),
    ],
    ids=lambda value: f"{type(value).__name__}: {str(value)[:30]}" if isinstance(value, Exception) else str(value),
)
def test_only_what_the_machine_or_the_network_may_have_done_is_tried_again(error: Exception, is_worth: bool) -> None:
    assert is_worth_a_retry(error) is is_worth


def test_memory_that_runs_out_is_told_with_the_settings_that_need_less() -> None:
    try:
        raise torch.OutOfMemoryError("CUDA out of memory")
    except torch.OutOfMemoryError as error:
        told = str(for_the_driver(error))
    assert told.startswith("OutOfMemoryError: CUDA out of memory (test_faults.py:")
    assert told.endswith("; set optimizer.accumulate, compute.recompute=true or a smaller optimizer.batch_size")


def hang(rank: int, folder: Path, where: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    with hang_guard(0.02, folder, rank):
        if rank == 0 and where == "collective":
            dist.all_reduce(torch.zeros(1))
        if rank == 0 and where == "backward":
            net(torch.ones(1, 2)).sum().backward()
        time.sleep(60)


@pytest.mark.parametrize(("where", "named"), [("collective", [1]), ("backward", [1]), ("nowhere", [0, 1])])
def test_the_worker_that_hangs_is_told_from_those_that_wait_for_it(where: str, named: list[int], tmp_path: Path) -> None:
    before = stacks(tmp_path)
    both = [multiprocessing.get_context("fork").Process(target=hang, args=(rank, tmp_path, where)) for rank in (0, 1)]
    for process in both:
        process.start()
    try:
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [1, 1]
    finally:
        for process in both:
            process.kill()
    assert hung(tmp_path, before) == [tmp_path / f"hang-worker{rank}.txt" for rank in named]
    assert hung(tmp_path, stacks(tmp_path)) == []


def test_workers_that_all_wait_are_all_told_and_what_was_there_before_is_not_looked_at(tmp_path: Path) -> None:
    files = [tmp_path / f"hang-worker{rank}.txt" for rank in (0, 1)]
    files[0].write_text('  File "model.py", line 1 in forward\n')
    files[1].write_text("")
    before = stacks(tmp_path)
    for file in files:
        with file.open("a") as opened:
            opened.write('  File "/site-packages/torch/distributed/distributed_c10d.py", line 3 in all_reduce\n')
    assert hung(tmp_path, before) == files
