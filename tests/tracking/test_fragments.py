"""The reader of the client's files, against files that the real client wrote."""

from pathlib import Path

import pytest
import wandb

from imachsr.tracking import TrialStart, fragments
from imachsr.tracking.wandb import WandbTracker
from tests.tracking import records

pytestmark = pytest.mark.usefixtures("own_wandb")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A run of 300 epochs with wide rows: several blocks of 32 KiB, records across their ends."""
    tracker = WandbTracker(tmp_path, mode="offline")
    tracker.start(TrialStart(id="u1-0003", name="x", group="g"))
    for epoch in range(1, 301):
        tracker.log("u1-0003", {"epoch": epoch, **{f"value/{number:03d}": number / epoch for number in range(20)}})
    tracker.end("u1-0003", "finished", {})
    wandb.teardown()
    (path,) = fragments.find(tmp_path)
    assert path.stat().st_size > 4 * 32768
    return path


def test_a_whole_file_is_read_as_an_independent_reader_reads_it(written: Path) -> None:
    found = fragments.read(written)
    assert found is not None
    assert (found.run_id, found.is_whole, found.is_synced) == ("u1-0003", True, False)
    assert found.epochs == {row["epoch"] for row in records.rows(records.records(written))} == set(range(1, 301))
    found.mark_synced()
    assert found.is_synced


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_of_a_file_that_is_cut_off_what_is_left_is_read(share: float, written: Path) -> None:
    data = written.read_bytes()
    written.write_bytes(data[: int(len(data) * share)])
    found = fragments.read(written)
    assert found is not None
    assert not found.is_whole
    assert found.epochs == set(range(1, len(found.epochs) + 1))
    assert abs(len(found.epochs) - 300 * share) < 30


def test_nothing_behind_a_damaged_record_is_believed(written: Path) -> None:
    data = bytearray(written.read_bytes())
    data[len(data) // 2] ^= 0xFF
    written.write_bytes(data)
    found = fragments.read(written)
    assert found is not None
    assert not found.is_whole
    assert 100 < len(found.epochs) < 200


@pytest.mark.parametrize("content", [b"", b":W&B\x00\x00\x00", b"no file of the client's at all " * 20])
def test_what_is_no_run_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(content)
    assert fragments.read(path) is None
