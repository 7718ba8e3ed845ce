import dataclasses
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imachsr.config.schema import ConfigError
from imachsr.train import checkpoint
from imachsr.train.checkpoint import DiskFullError
from imachsr.train.manifest import Manifest, read_manifest


def state(value: float = 1.0, numbers: int = 50) -> dict[str, Any]:
    return {**dict.fromkeys(checkpoint.KEYS), "net": {"w": torch.full((numbers,), float(value))}, "run": "{}"}


def save(folder: Path, step: int, score: float | None = None, keep: int = 9, **options: Any) -> Manifest:
    """A checkpoint whose weights are its step."""
    return checkpoint.save(folder, state(step, **options), step=step, score=score, keep=keep)


def loaded(folder: Path, which: Any = "latest") -> int:
    return int(checkpoint.load(folder, which)["net"]["w"][0])


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoints"))


def steps(folder: Path) -> list[int]:
    return [int(name[:8]) for name in names(folder) if name.endswith(".json")]


# ---- what is saved ----------------------------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_beside_its_manifest(tmp_path: Path) -> None:
    given = {**state(), "net": {"w": torch.arange(50.0), "half": torch.ones(3, dtype=torch.bfloat16)}, "more": [1, {"x": (2.5, "text", None, True)}]}
    assert not checkpoint.exists(tmp_path)
    checkpoint.save(tmp_path, given, step=120, score=41.25)
    assert names(tmp_path) == ["00000120.json", "00000120.pt"]
    assert checkpoint.exists(tmp_path)
    back = checkpoint.load(tmp_path)
    assert back.keys() == given.keys()
    for key, tensor in given["net"].items():
        assert torch.equal(back["net"][key], tensor)
        assert back["net"][key].dtype == tensor.dtype
    assert back["more"] == given["more"]
    content = (tmp_path / "checkpoints/00000120.pt").read_bytes()
    found = json.loads((tmp_path / "checkpoints/00000120.json").read_text())
    assert {
        "schema": 2,
        "step": 120,
        "score": 41.25,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }.items() <= found.items()
    assert found["torch"] == torch.__version__
    assert {"time", "imachsr"} <= found.keys()


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        checkpoint.save(tmp_path, state(value), step=7)
        assert loaded(tmp_path) == value
        assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("seed", range(6))
def test_the_newest_and_the_best_are_kept_and_nothing_else(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    keep = generator.randint(1, 3)
    saved: list[tuple[int, float | None]] = []
    for step in generator.sample(range(100), 9):  # the order of saving counts: a training that went back is saved with lower steps
        score = generator.choice([None, float("nan"), 1.0, 2.0, 3.0])
        save(tmp_path, step, score, keep)
        saved.append((step, score if score and score == score else None))
        kept = {step for step, _ in saved[-keep:]}
        scores = [score for _, score in saved if score is not None]
        if scores:
            best = [step for step, score in saved if score == max(scores)][-1]
            kept.add(best)
            assert loaded(tmp_path, "best") == best
        assert steps(tmp_path) == sorted(kept)
        assert len(names(tmp_path)) == 2 * len(kept)
        assert loaded(tmp_path) == step
        # One that left the kept ones while another was best never comes back.
        saved = [each for each in saved if each[0] in kept]


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, keep=3)
    os.truncate(tmp_path / "checkpoints/00000030.pt", 100)
    (tmp_path / "checkpoints/00000020.json").write_text("{")
    save(tmp_path, 15, keep=2)  # a training that goes on from step 10
    assert steps(tmp_path) == [10, 15]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    theirs = {"notes.json": "x", "model.pt": "y", "00000001.txt": "z", "1.pt": "", "00000001.pt.bak": ""}
    for name, content in theirs.items():
        (tmp_path / "checkpoints" / name).write_text(content)
    for step in (1, 2):
        save(tmp_path, step, keep=1)
    assert set(names(tmp_path)) == {*theirs, "00000002.pt", "00000002.json"}
    assert not checkpoint.exists(tmp_path.parent)


def test_all_are_removed_when_asked(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    (tmp_path / "metrics.jsonl").write_text("x")
    checkpoint.remove(tmp_path)
    checkpoint.remove(tmp_path)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1}, r"`step >= 0` and `keep >= 1` must hold, but got -1 and 2"),
        ({"step": 1, "keep": 0}, r"`step >= 0` and `keep >= 1` must hold, but got 1 and 0"),
    ],
)
def test_an_argument_out_of_range_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint.save(tmp_path, state(), **options)
    with pytest.raises(ValueError, match="must have the keys .*, but lacks net"):
        checkpoint.save(tmp_path, {key: None for key in checkpoint.KEYS if key != "net"}, step=1)
    assert not list(tmp_path.iterdir())


class Named:
    """An object that a user's module may keep as its extra state."""


@pytest.mark.parametrize(
    ("thing", "message"), [(Named(), "but would hold: tests.train.test_checkpoint.Named"), (threading.Lock(), "cannot pickle"), (lambda: 0, "pickle")]
)
def test_what_could_not_be_loaded_is_refused_when_it_is_saved(tmp_path: Path, thing: Any, message: str) -> None:
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match=rf"must hold tensors and plain values only, .*{message}.*; let get_extra_state\(\)"):
        checkpoint.save(tmp_path, {**state(), "thing": thing}, step=2)
    assert names(tmp_path) == ["00000001.json", "00000001.pt"]
    assert loaded(tmp_path) == 1


# ---- damage -----------------------------------------------------------------------------------------------------------------------------------


def falls_back(folder: Path, file: str, reason: str) -> None:
    with pytest.warns(UserWarning, match=rf"checkpoints/{file} {reason}.*; the checkpoint of step 1 is used instead") as caught:
        assert loaded(folder) == 1
    assert len(caught) == 1


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    save(tmp_path, 1, score=1.0)
    save(tmp_path, 2, score=2.0)
    return tmp_path


def test_a_truncated_checkpoint_is_passed_over_wherever_it_ends(two: Path) -> None:
    path = two / "checkpoints/00000002.pt"
    whole = path.read_bytes()
    for part in range(12):
        path.write_bytes(whole[: len(whole) * part // 12])
        falls_back(two, "00000002.pt", rf"has [\d,]+ bytes instead of {len(whole):,}")
    path.write_bytes(whole + b"\0")
    falls_back(two, "00000002.pt", "has")
    path.unlink()
    falls_back(two, "00000002.pt", "is missing")
    path.mkdir()
    falls_back(two, "00000002.pt", "cannot be read: .*Is a directory")
    path.rmdir()
    path.write_bytes(whole)
    assert loaded(two) == 2


def test_any_flipped_bit_of_a_checkpoint_is_noticed(two: Path) -> None:
    path, generator = two / "checkpoints/00000002.pt", random.Random(0)
    whole = path.read_bytes()
    for place in generator.sample(range(8 * len(whole)), 60):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        falls_back(two, "00000002.pt", "has another content than was written")


def test_any_flipped_bit_of_a_manifest_is_noticed(two: Path) -> None:
    path, generator = two / "checkpoints/00000002.json", random.Random(0)
    whole = path.read_bytes()
    start = whole.index(b"file") - 2  # before it stands the schema: another one is not damage
    for place in range(start, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert loaded(two, "best") == (1 if caught else 2)
        assert caught or json.loads(flipped) == json.loads(whole), flipped


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b"\xff\xfe", b'{"schema": 2}', b'{"schema": "x"}', b"[" * 100_000], ids=repr)
def test_a_foreign_manifest_is_passed_over(two: Path, content: bytes) -> None:
    (two / "checkpoints/00000002.json").write_bytes(content)
    falls_back(two, "00000002.json", "is not (JSON|a manifest)")


def test_a_manifest_under_another_name_is_passed_over(two: Path) -> None:
    shutil.copy(two / "checkpoints/00000002.json", two / "checkpoints/00000003.json")
    with pytest.warns(UserWarning, match="00000003.json is the manifest of step 2 under another name; the checkpoint of step 2 is used instead"):
        assert loaded(two) == 2


def forge(folder: Path, content: bytes) -> None:
    """Put other content under a manifest that fits it."""
    path = folder / "checkpoints/00000002.json"
    (folder / "checkpoints/00000002.pt").write_bytes(content)
    fitting = dataclasses.replace(read_manifest(path), size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    path.write_bytes(fitting.to_bytes())


class Bomb:
    """A pickle of this runs a command when it is read naively."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(two: Path, form: str) -> None:
    marker, path = two / "ran", two / "armed"
    armed = {**state(), "bomb": Bomb(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(armed))
    else:
        torch.save(armed, path, _use_new_zipfile_serialization=form == "torch")
    forge(two, path.read_bytes())
    falls_back(two, "00000002.pt", "cannot be read: ")
    assert not marker.exists()


def test_a_foreign_checkpoint_is_passed_over_whatever_it_holds(two: Path) -> None:
    generator = random.Random(0)
    foreign = [generator.randbytes(200) for _ in range(30)]
    foreign += [pickle.dumps(list(range(30)))[:cut] for cut in range(1, 60, 3)]
    foreign += [b"", b"PK\x03\x04" + generator.randbytes(90), b"text of another program\n", b"a" * 300]
    for content in foreign:
        forge(two, content)
        falls_back(two, "00000002.pt", "cannot be read: .")
    for content, reason in ((torch.zeros(3), "holds a Tensor instead of a state"), ({"model": 1}, "lacks run, num_classes")):
        torch.save(content, two / "foreign")
        forge(two, (two / "foreign").read_bytes())
        falls_back(two, "00000002.pt", reason)


def test_when_none_is_whole_all_are_named_with_what_to_do(two: Path) -> None:
    save(two, 3)
    (two / "checkpoints/00000001.pt").unlink()
    os.truncate(two / "checkpoints/00000002.pt", 0)
    (two / "checkpoints/00000003.json").write_text("x")
    wanted = r"must hold a whole checkpoint, but 00000003.json is not JSON; 00000002.pt has 0 bytes .*; 00000001.pt is missing; put a copy back"
    with pytest.raises(ConfigError, match=wanted):
        checkpoint.load(two)
    assert checkpoint.exists(two)


def test_without_a_whole_scored_one_the_best_is_not_replaced_by_another(two: Path) -> None:
    save(two, 3)
    assert loaded(two, "best") == 2
    (two / "checkpoints/00000002.pt").unlink()
    with pytest.warns(UserWarning, match="00000002.pt is missing; the checkpoint of step 1 is used instead"):
        assert loaded(two, "best") == 1
    (two / "checkpoints/00000001.pt").unlink()
    with pytest.raises(ConfigError, match="must hold a whole, scored checkpoint, but 00000002.pt is missing; 00000001.pt is missing"):
        checkpoint.load(two, "best")
    assert loaded(two) == 3


@pytest.mark.parametrize("schema", [1, 3, 99])
def test_another_schema_is_told_with_both_numbers_and_nothing_is_deleted(two: Path, schema: int) -> None:
    path = two / "checkpoints/00000001.json"
    path.write_text(path.read_text().replace('"schema": 2', f'"schema": {schema}'))
    before = names(two)
    for action in (lambda: checkpoint.load(two), lambda: save(two, 3, keep=1)):
        with pytest.raises(ConfigError, match=rf"00000001.json must have schema 2, which this version of imachsr reads, but has schema {schema}"):
            action()
    assert names(two) == before


def test_the_layout_before_manifests_is_told_apart(tmp_path: Path) -> None:
    torch.save({"schema": 1, "run": "{}", "num_classes": 3, "net": {}, "optimizer": {}, "scheduler": {}, "history": "[]"}, tmp_path / "checkpoint.pt")
    assert checkpoint.exists(tmp_path)  # so that no other training is mixed in
    with pytest.raises(ConfigError, match=r"must hold checkpoints of schema 2, but holds checkpoint.pt of schema 1, made by an older imachsr; train"):
        checkpoint.load(tmp_path)


def test_a_folder_without_checkpoints_is_told_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "search").mkdir()
    (tmp_path / "search/study.sqlite3").write_text("x")
    (tmp_path / "orphan/checkpoints").mkdir(parents=True)
    (tmp_path / "orphan/checkpoints/00000001.pt").write_text("x")  # never committed
    for name, message in (
        ("nowhere", "nowhere must hold a checkpoint, but does not; give the --output folder of a training"),
        ("orphan", "must hold a checkpoint, but does not"),
        ("file", "file must be the --output folder of a training, but is a file"),
        ("search", "search must be the folder of a training, but holds a search; one trial's is .*search/trials/0000"),
    ):
        with pytest.raises(ConfigError, match=message):
            checkpoint.load(tmp_path / name)
        assert not checkpoint.exists(tmp_path / name)
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match="must have a score to be the best one, but none has; use the latest"):
        checkpoint.load(tmp_path, "best")
    with pytest.raises(ConfigError, match="`which` must be one of latest, best, but got 'lates'; nearest: 'latest'"):
        checkpoint.load(tmp_path, "lates")  # type: ignore[arg-type]


# ---- full disks -------------------------------------------------------------------------------------------------------------------------------

PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={128 * PAGE}", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_the_previous_checkpoint_stays_and_no_part_of_another(small_disk: Path) -> None:
    folder = small_disk / "run"
    save(folder, 1, numbers=25_000)
    save(folder, 2, numbers=25_000)
    before = names(folder)
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(
        DiskFullError, match=r"^checkpoint of 1\.2 MB must fit on the disk of .*disk/run, but No space left on device; 0\.3 MB are free$"
    ) as caught:
        save(folder, 3, numbers=300_000)
    assert names(folder) == before
    assert shutil.disk_usage(small_disk).free == free
    assert loaded(folder) == 2
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # Ray sends it
    save(folder, 4, numbers=25_000)
    assert loaded(folder) == 4


def test_wherever_the_disk_ends_a_save_is_whole_or_absent(small_disk: Path) -> None:
    folder, numbers = small_disk / "run", 5 * PAGE
    save(folder, 1, numbers=numbers)
    outcomes = []
    for room in range(26):  # pages; the checkpoint takes 21, its manifest another
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - room * PAGE))
        try:
            save(folder, 2 + room, numbers=numbers, keep=1)
            outcomes.append(True)
        except DiskFullError:
            outcomes.append(False)
            assert len(names(folder)) == 2
        filler.unlink()
        assert loaded(folder) == (2 + room if outcomes[-1] else 1)
        if outcomes[-1]:
            break
    assert outcomes == [*[False] * (len(outcomes) - 1), True]
    assert len(outcomes) > 20


def test_a_limit_on_the_size_of_files_is_told_too(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(DiskFullError, match=r"checkpoint of 0\.4 MB must fit on the disk of .*, but File too large; "):
            save(tmp_path, 2, numbers=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["00000001.json", "00000001.pt"]


# ---- other processes --------------------------------------------------------------------------------------------------------------------------


def savers(mode: str, folder: Path, count: int) -> dict[str, int]:
    """What tests/train/savers.py found in a process of its own."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.savers", mode, str(folder), str(count)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.long
@pytest.mark.parametrize("stride", [251, pytest.param(5, marks=pytest.mark.slow)])
def test_a_save_killed_at_any_call_leaves_the_old_checkpoint_or_the_new(tmp_path: Path, stride: int) -> None:
    found = savers("everywhere", tmp_path, stride)
    assert found["kills"] > 2000 // stride
    assert found["old"] > 5
    assert found["new"] > 5


@pytest.mark.long
@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_what_was_saved_outlives_a_kill_at_any_time(tmp_path: Path, rounds: int) -> None:
    found = savers("anywhere", tmp_path, rounds)
    assert found["kills"] == rounds
    assert found["saves"] >= rounds


@pytest.mark.long
def test_a_reader_beside_a_training_always_gets_a_whole_one(tmp_path: Path) -> None:
    found = savers("read_beside", tmp_path, 80)
    assert found["reads"] > 20
    assert found["different"] > 5
