"""Decoding ahead: the same arrays as a load makes, continued after a kill, and nothing half-written that is taken for whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imachsr.data import images as decoding
from imachsr.data import prepare as preparing
from imachsr.data.camvid import CamVid
from imachsr.data.cityscapes import Cityscapes
from imachsr.data.coding import Coding
from imachsr.data.images import entry_of
from imachsr.data.prepare import prepare
from tests.data.files import mask, write_image, write_mask

SIZE = (32, 48)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(12):
        write_image(tmp_path / "camvid/train" / f"a_{index:02d}.png", index)
        write_mask(tmp_path / "camvid/trainannot" / f"a_{index:02d}.png", mask(12, index))
    return tmp_path / "camvid"


def made(root: Path, cache: Path) -> CamVid:
    return CamVid(root=str(root), size=SIZE, cache=str(cache))


def test_a_training_maps_what_was_prepared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made(root, tmp_path / "loaded").load("train")
    ahead = made(root, tmp_path / "ahead")
    found = prepare(ahead.source("train"), size=SIZE, cache=ahead.cache)
    assert (found.num_samples, found.num_decoded, found.size_bytes) == (12, 12, 12 * 4 * 32 * 48)
    assert prepare(ahead.source("train"), size=SIZE, cache=ahead.cache).num_decoded == 0

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(decoding, "open_image", refuse)
    samples = ahead.load("train")
    assert samples.names == expected.names
    assert torch.equal(samples.images, expected.images)
    assert torch.equal(samples.labels, expected.labels)
    assert samples.fingerprint() == expected.fingerprint()
    assert sorted(path.suffix for path in (tmp_path / "ahead").iterdir()) == [".npy", ".npy"]
    assert sum(path.stat().st_size for path in (tmp_path / "ahead").iterdir()) == found.size_bytes + 2 * 128


def test_other_codings_have_arrays_of_their_own(tmp_path: Path) -> None:
    for what, classes in (("labelIds", 34), ("labelTrainIds", 19)):
        write_mask(tmp_path / f"gtFine/train/ulm/ulm_0_1_gtFine_{what}.png", mask(classes, 1))
    write_image(tmp_path / "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png")
    data = Cityscapes(root=str(tmp_path), size=SIZE, cache=str(tmp_path / "cache"))
    prepare(data.source("train"), size=SIZE, cache=data.cache)
    first = data.load("train").labels
    (tmp_path / "gtFine/train/ulm/ulm_0_1_gtFine_labelTrainIds.png").unlink()
    assert prepare(data.source("train"), size=SIZE, cache=data.cache).num_decoded == 1
    assert not torch.equal(first, data.load("train").labels)


def test_the_same_files_read_in_another_way_are_decoded_again(root: Path, tmp_path: Path) -> None:
    pairs = made(root, tmp_path).source("train").pairs
    ways = [{}, {"is_closed": True}, {"channel": 0}, {"colours": (((1, 2, 3), 0),)}]
    keys = {entry_of(tmp_path, pairs, SIZE, Coding(num_classes=2, replace=((0, 1),), **way)).key for way in ways}  # type: ignore[arg-type]
    assert len(keys) == len(ways)


def test_it_continues_where_it_was_killed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle: a training does not take the parts for arrays, and the next run decodes only what is missing."""
    code = """
import sys, time
from imachsr.data import prepare
from imachsr.data.camvid import CamVid
prepare.CHUNK = 4
data = CamVid(root=sys.argv[1], size=(32, 48), cache=sys.argv[2])
def slow(done, total):
    if done == 6:
        print("six", flush=True)
        time.sleep(60)
prepare.prepare(data.source("train"), size=(32, 48), cache=data.cache, progress=slow)
"""
    killed = subprocess.Popen([sys.executable, "-c", code, root, tmp_path / "ahead"], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "six\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not list((tmp_path / "ahead").glob("*.npy"))
    seen: list[Path] = []
    real = decoding.open_image
    monkeypatch.setattr(decoding, "open_image", lambda path: (seen.append(path), real(path))[1])
    data = made(root, tmp_path / "ahead")
    assert prepare(data.source("train"), size=SIZE, cache=data.cache).num_decoded == 8
    assert {path.stem for path in seen} == {f"a_{index:02d}" for index in range(4, 12)}
    assert torch.equal(data.load("train").images, made(root, tmp_path / "loaded").load("train").images)


@pytest.mark.long
def test_a_full_disk_is_told_first_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
from imachsr import cli
sys.argv = ["imachsr", "data", "prepare", "camvid", sys.argv[1], "--size", "32", "48", "--out", sys.argv[2], "--split", "train"]
cli.main()
"""
    ran = subprocess.run([sys.executable, "-c", code, root, tmp_path / "ahead"], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert "must take 0.1 MB, but: File too large; make room, or give another folder by --out" in ran.stderr
    assert not list((tmp_path / "ahead").iterdir())


def test_a_broken_file_is_named_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    (root / "train/a_07.png").write_bytes((root / "train/a_07.png").read_bytes()[:100])
    data = made(root, tmp_path / "ahead")
    with pytest.raises(ValueError, match="a_07.png must be a readable image"):
        prepare(data.source("train"), size=SIZE, cache=data.cache)
    assert not list((tmp_path / "ahead").iterdir())


def test_two_at_once_do_not_write_into_each_other(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(root, tmp_path / "ahead")
    messages = []

    def other(done: int, _: int) -> None:
        if done == 1:
            with pytest.raises(ValueError, match="only one process must prepare the same split") as error:
                prepare(data.source("train"), size=SIZE, cache=data.cache)
            messages.append(str(error.value))

    started = time.monotonic()
    prepare(data.source("train"), size=SIZE, cache=data.cache, progress=other)
    assert len(messages) == 1
    assert time.monotonic() - started < 30
    monkeypatch.setattr(preparing, "CHUNK", 5)
    assert prepare(data.source("train"), size=SIZE, cache=data.cache).num_decoded == 0
