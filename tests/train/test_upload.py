"""A training's folder in a storage: what is there is whole at any moment, and the training does not feel it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imachsr import storage
from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.train import checkpoint, upload
from imachsr.train.courier import Courier, RemoteError, connect
from imachsr.train.loop import train
from imachsr.train.stored import prepare, pull
from imachsr.train.upload import Mirror, remote_name
from tests.stores import BUCKET, Server
from tests.train.savers import state, value_of
from tests.train.toys import toy_run, without_clock
from tests.train.wounds import wait_until


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    running.ensure()
    for name, value in running.variables.items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return storage.address(str(tmp_path / "store"))
    return str(request.getfixturevalue("s3_uri"))


@pytest.fixture
def s3_uri(s3: Server, tmp_path: Path) -> str:
    return f"s3://{BUCKET}/runs/{tmp_path.name}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "WAIT_S", (0.2, 1.0))


def save(folder: Path, value: int, score: float | None = None, keep: int = 2) -> None:
    checkpoint.save(folder, state(value), step=value, score=score, keep=keep)


def mirrored(uri: str, folder: Path, said: list[str] | None = None, **options: Any) -> Mirror:
    return Mirror(Courier(uri), folder, say=(said if said is not None else []).append, **{"end_s": 30, "stop_s": 5, **options})


def fetched(uri: str, folder: Path) -> int:
    """The value of the checkpoint that a machine with an empty disk gets."""
    courier = Courier(uri)
    try:
        pull(courier, folder)
    finally:
        courier.close()
    return value_of(checkpoint.load(folder))


def steps_there(uri: str) -> list[int]:
    courier = Courier(uri)
    try:
        manifests, damaged = courier.manifests()
        assert damaged == {}
        # Nothing but what manifests name.
        data = {name for name in courier.ask("names", "checkpoints") if name.endswith(".pt")}
        assert data == {manifest.file for manifest in manifests}
    finally:
        courier.close()
    return sorted(manifest.step for manifest in manifests)


def test_the_newest_and_the_best_are_there_in_the_end_and_nothing_else(uri: str, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    with mirrored(uri, folder, said) as mirror:
        for step, score in ((1, 9.0), (2, 1.0), (3, 2.0), (4, None), (5, 3.0)):
            save(folder, step, score)
            (folder / "metrics.jsonl").write_text(f"{step}\n")
            mirror.wake()
            wait_until(lambda: not mirror.stored.missing, seconds=20, what="the upload")
    assert said == []
    assert mirror.stored.step == 5
    assert str(mirror.stored) == f"{uri} holds the checkpoint of step 5, and all files"
    assert steps_there(uri) == [1, 4, 5]
    assert fetched(uri, tmp_path / "elsewhere") == 5
    assert (tmp_path / "elsewhere" / "metrics.jsonl").read_text() == "5\n"
    assert value_of(checkpoint.load(tmp_path / "elsewhere", "best")) == 1
    # A training that goes on there saves what is newer.
    save(tmp_path / "elsewhere", 6)
    assert checkpoint.committed(tmp_path / "elsewhere")[-1].serial == 6


def test_a_best_one_that_is_only_there_does_not_have_the_best_one_here_sent_without_end(uri: str, tmp_path: Path) -> None:
    """As on a machine that could not bring the best one when it went on."""
    folder = tmp_path / "run"
    save(folder, 1, 50.0)
    with mirrored(uri, folder, keep=2):
        pass
    there = checkpoint.committed(folder)[0]
    with mirrored(uri, folder, keep=2) as mirror:
        for step, score in ((2, 45.0), (3, 40.0), (4, 41.0), (5, 42.0)):
            save(folder, step, score)
            for name in (there.file, there.name):
                (folder / "checkpoints" / name).unlink(missing_ok=True)
            mirror.wake()
            wait_until(lambda: not mirror.stored.missing, seconds=20, what="the upload")
    assert steps_there(uri) == [1, 2, 4, 5]


@pytest.mark.long
def test_a_step_that_is_saved_again_and_again_never_overwrites_what_a_manifest_names(uri: str, tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", set[int]()
    with mirrored(uri, folder) as mirror:
        for value in range(1, 8):
            checkpoint.save(folder, state(value), step=3, keep=1)
            mirror.wake()
            if value > 1:
                seen.add(fetched(uri, tmp_path / f"at{value}"))
            else:
                wait_until(lambda: not mirror.stored.missing, seconds=20, what="the upload")
    assert seen <= set(range(1, 8))
    assert fetched(uri, tmp_path / "end") == 7
    assert steps_there(uri) == [3]


def test_checkpoints_that_were_replaced_before_their_turn_are_left_out(s3: Server, s3_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    s3.fault("slow", 0.5)
    with mirrored(s3_uri, folder) as mirror:
        for step in range(1, 9):
            save(folder, step)
            mirror.wake()
            time.sleep(0.3)
        s3.fault("none")
    assert mirror.stored.step == 8
    serials = [manifest.serial for manifest in mirror._there]
    assert serials[-1] == 8
    assert len(serials) <= 2


@pytest.mark.long
def test_a_server_that_is_gone_and_comes_back_is_told_once_and_caught_up_with(s3: Server, s3_uri: str, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    with mirrored(s3_uri, folder, said, end_s=60) as mirror:
        save(folder, 1)
        mirror.wake()
        wait_until(lambda: not mirror.stored.missing, seconds=20, what="the upload")
        s3.kill()
        for step in (2, 3):
            save(folder, step)
            mirror.wake()
            wait_until(lambda: said, seconds=60, what="word of it")
            time.sleep(1.5)
        (line,) = said
        assert line.startswith(f"an upload failed and is tried again while the training goes on: {s3_uri} holds the checkpoint of step 1, but not ")
        assert "check the network" in line
        s3.start()
        wait_until(lambda: len(said) == 2, seconds=60, what="word of the end")
    assert said[1] == f"uploads work again: {s3_uri} holds the checkpoint of step 3, and all files"
    assert fetched(s3_uri, tmp_path / "elsewhere") == 3


def test_a_server_that_fails_with_500_is_told_and_waited_for_no_longer_than_is_allowed(s3: Server, s3_uri: str, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    save(folder, 1)
    s3.fault("error")
    with mirrored(s3_uri, folder, said, end_s=3, stop_s=1) as mirror:
        wait_until(lambda: said, seconds=60, what="word of it")
        started = time.monotonic()
    assert time.monotonic() - started < 8
    assert len(said) == 1
    assert mirror.stored.missing == ("that of step 1",)
    assert str(mirror.stored).startswith(f"{s3_uri} holds no checkpoint, but not that of step 1: ")
    s3.fault("none")
    with mirrored(s3_uri, folder):
        pass
    assert fetched(s3_uri, tmp_path / "elsewhere") == 1


def test_a_server_that_hangs_keeps_neither_the_end_nor_a_stop(s3: Server, s3_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(folder, 1)
    s3.fault("slow", 600)
    started = time.monotonic()
    with pytest.raises(KeyError), mirrored(s3_uri, folder, stop_s=1):  # noqa: PT012
        time.sleep(1)
        raise KeyError
    assert time.monotonic() - started < 10


def test_the_training_does_not_wait_for_a_storage_that_takes_five_seconds_a_file(
    s3: Server, s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, took = tmp_path / "run", list[float]()
    folder.mkdir()
    s3.fault("slow", 5)
    with mirrored(s3_uri, folder, end_s=0.1, stop_s=0.1) as mirror:
        for step in range(1, 21):
            save(folder, step)
            started = time.perf_counter()
            mirror.wake()
            took.append(time.perf_counter() - started)
    assert sum(took) < 0.2
    with capsys.disabled():
        print(f"\n20 checkpoints to a storage that takes 5 s a file: {1e3 * max(took):.2f} ms at most in the training's thread")


@pytest.mark.long
def test_a_reader_sees_a_whole_checkpoint_whenever_it_looks(uri: str, tmp_path: Path) -> None:
    folder, last = tmp_path / "run", 0
    with mirrored(uri, folder) as mirror:
        save(folder, 1, keep=1)
        mirror.wake()
        wait_until(lambda: not mirror.stored.missing, seconds=20, what="the upload")
        for step in range(2, 12):
            save(folder, step, keep=1)
            mirror.wake()
            now = fetched(uri, tmp_path / f"reader{step}")
            assert last <= now <= step
            last = now


def test_a_truncated_object_is_told_and_the_checkpoint_before_it_is_taken(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for step in (1, 2):
        save(folder, step)
        with mirrored(uri, folder):
            pass
    name = remote_name(checkpoint.committed(folder)[-1])
    whole = (folder / "checkpoints" / "00000002.pt").read_bytes()
    (tmp_path / "part").write_bytes(whole[:1000])
    storage.Storage(uri).put(f"checkpoints/{name}", str(tmp_path / "part"))
    with pytest.warns(UserWarning, match=f"{name} has 1,000 bytes instead of {len(whole):,}; the checkpoint of step 1 is used instead"):
        assert fetched(uri, tmp_path / "elsewhere") == 1
    for path in ("checkpoints/" + remote_name(checkpoint.committed(folder)[0]),):
        courier = Courier(uri)
        courier.ask("delete", path)
        courier.close()
    with pytest.raises(ConfigError, match="must hold a whole checkpoint, but all of them are damaged"):
        fetched(uri, tmp_path / "nowhere")


def test_what_is_here_and_as_new_is_not_fetched_and_what_is_damaged_here_is(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(folder, 1)
    with mirrored(uri, folder):
        pass
    save(folder, 2)
    assert fetched(uri, folder) == 2
    assert [manifest.step for manifest in checkpoint.committed(folder)] == [1, 2]
    for step in (1, 2):
        path = folder / "checkpoints" / f"{step:08d}.pt"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="has another content than was written"):
        assert fetched(uri, folder) == 1


def test_a_process_that_was_replaced_uploads_nothing_more(uri: str, tmp_path: Path) -> None:
    said = list[str]()
    save(tmp_path / "old", 1)
    with mirrored(uri, tmp_path / "old", said) as old:
        wait_until(lambda: not old.stored.missing, seconds=20, what="the upload")
        assert fetched(uri, tmp_path / "new") == 1
        save(tmp_path / "new", 5)
        with mirrored(uri, tmp_path / "new"):
            pass
        save(tmp_path / "old", 2)
        old.wake()
        wait_until(lambda: said, seconds=20, what="word of it")
    assert "is not tried again" in said[0]
    assert "another process uploads to it now" in said[0]
    assert fetched(uri, tmp_path / "reader") == 5


def test_a_courier_that_is_killed_is_started_again(uri: str, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    with mirrored(uri, folder, said) as mirror:
        save(folder, 1)
        mirror.wake()
        wait_until(lambda: not mirror.stored.missing, seconds=20, what="the upload")
        assert mirror.courier._process is not None
        mirror.courier._process.kill()
        save(folder, 2)
        mirror.wake()
    assert mirror.stored.step == 2
    assert fetched(uri, tmp_path / "elsewhere") == 2


def test_a_new_training_is_refused_where_one_is_and_another_one_is_not_continued(uri: str, tmp_path: Path) -> None:
    run, folder = toy_run(), tmp_path / "run"
    save(folder, 1)
    (folder / "run.yaml").write_text(dump_yaml(run_to_dict(run)))
    with mirrored(uri, folder):
        pass
    courier = connect(uri)
    try:
        with pytest.raises(ConfigError, match="must be a new folder, but holds a training; give another --storage, or continue it with --resume"):
            prepare(courier, tmp_path / "new", run, resume=False)
        with pytest.raises(ConfigError, match=r"must hold the training that is continued, but holds one with other settings \(optimizer\)"):
            prepare(courier, tmp_path / "new", toy_run(optimizer__lr=0.5), resume=True)
        prepare(courier, tmp_path / "new", toy_run(compute__threads=2), resume=True)
    finally:
        courier.close()
    assert value_of(checkpoint.load(tmp_path / "new")) == 1


def test_nothing_to_resume_is_told(uri: str, tmp_path: Path) -> None:
    courier = connect(uri)
    with pytest.raises(ConfigError, match="--resume must go with a training to continue, but neither .* nor .* holds a checkpoint"):
        prepare(courier, tmp_path / "none", toy_run(), resume=True)
    courier.close()


def test_a_storage_that_cannot_be_used_is_refused_in_one_line(s3: Server) -> None:
    with pytest.raises(
        ConfigError, match="--storage must be a place to write to and to read from, but on this machine s3://nowhere/x is not: .*bucket"
    ) as found:
        connect("s3://nowhere/x")
    assert "\n" not in str(found.value)
    with pytest.raises(ConfigError, match="--storage: a storage's address must hold no credentials"):
        connect("s3://key:hush@bucket/x")


def test_an_unreachable_storage_does_not_keep_a_training_that_is_here(s3: Server, s3_uri: str, tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    s3.fault("error")
    courier = Courier(s3_uri)
    with pytest.warns(UserWarning, match=r"cannot be read, and .* is used as it is \(step 1\)"):
        pull(courier, tmp_path / "run")
    with pytest.raises(RemoteError):
        pull(courier, tmp_path / "none")
    courier.close()


def trained(run: Run, folder: Path, uri: str | None, **options: Any) -> tuple[Any, ...]:
    if uri is None:
        return train(run, output=folder, **options).history
    with mirrored(uri, folder) as mirror:
        return train(run, output=folder, mirror=mirror, **options).history


def test_a_training_that_goes_on_from_the_storage_is_bitwise_the_one_that_was_never_broken(uri: str, tmp_path: Path) -> None:
    run = toy_run(recovery__checkpoint_steps=1)
    unbroken = trained(run, tmp_path / "unbroken", None)

    class Lost(Exception):  # noqa: N818 - the machine, not the program
        pass

    def lose(step: int, steps: int) -> None:
        if step == steps - 2:
            raise Lost

    with pytest.raises(Lost):
        trained(run, tmp_path / "lost", uri, on_step=lose)
    courier = Courier(uri)
    prepare(courier, tmp_path / "new", run, resume=True)
    courier.close()
    history = trained(run, tmp_path / "new", uri, resume=True)
    assert [without_clock(row) for row in history] == [without_clock(row) for row in unbroken]
    assert fetched_equal(uri, tmp_path / "there", tmp_path / "unbroken")
    assert json.loads((tmp_path / "there" / "summary.json").read_text())["epochs"] == 3


def fetched_equal(uri: str, there: Path, folder: Path) -> bool:
    courier = Courier(uri)
    pull(courier, there)
    courier.close()
    one, other = checkpoint.load(there)["net"], checkpoint.load(folder)["net"]
    return all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


@pytest.mark.long
def test_a_training_killed_in_the_middle_of_uploads_leaves_a_storage_that_loads(s3: Server, s3_uri: str, tmp_path: Path, root: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.train.savers import state; from imachsr.train import checkpoint\n"
        "from imachsr.train.courier import Courier; from imachsr.train.upload import Mirror\n"
        "folder = Path(sys.argv[1])\n"
        "with Mirror(Courier(sys.argv[2]), folder) as mirror:\n"
        "    for step in range(int(sys.argv[3]), 10**6):\n"
        "        checkpoint.save(folder, state(step), step=step, keep=1); mirror.wake(); print(step, flush=True); time.sleep(0.05)\n"
    )
    last, first = 0, 1
    for number in range(3):
        command = [sys.executable, "-c", program, str(tmp_path / "run"), s3_uri, str(first)]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as saving:
            assert saving.stdout is not None
            saving.stdout.readline()
            courier = Courier(s3_uri)

            def has_newer(courier: Courier = courier, last: int = last) -> bool:
                try:
                    return any(manifest.step > last for manifest in courier.manifests()[0])
                except RemoteError:  # the server here may break off what is written anew while it is read
                    return False

            wait_until(has_newer, seconds=60, what="an upload")
            courier.close()
            time.sleep(0.05 + 0.03 * number)
            os.kill(saving.pid, signal.SIGKILL)
            saving.wait()
        first = checkpoint.committed(tmp_path / "run")[-1].step + 1
        now = fetched(s3_uri, tmp_path / f"reader{number}")
        assert last < now < first
        last = now


def test_the_cost_of_a_checkpoint_to_the_training_is_the_same_with_and_without(
    s3: Server, s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_run(recovery__checkpoint_steps=1)
    seconds = dict[bool, list[float]]({False: [], True: []})
    for number in range(3):
        for is_stored in (False, True):
            started = time.perf_counter()
            folder = tmp_path / f"{is_stored}{number}"
            if is_stored:
                mirror = mirrored(s3_uri, folder, end_s=0, stop_s=0)
                s3.fault("none")
                mirror.courier.ask("names")  # its process starts before the training, which tries the storage first
                s3.fault("slow", 5)
                with mirror:
                    started = time.perf_counter()
                    train(run, output=folder, mirror=mirror)
                    seconds[True].append(time.perf_counter() - started)
            else:
                train(run, output=folder)
                seconds[False].append(time.perf_counter() - started)
    added = min(seconds[True]) - min(seconds[False])
    with capsys.disabled():
        print(
            f"\na training with a checkpoint a step: {1e3 * min(seconds[False]):.0f} ms; with a storage that takes 5 s a file {1e3 * added:+.0f} ms"
        )
    assert added < 0.2
