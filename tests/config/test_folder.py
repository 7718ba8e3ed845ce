import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imachsr.config.folder import check_own, claimed, claimed_new, free, lock
from imachsr.config.schema import ConfigError
from imachsr.files import LOCK

HOLD = (
    "import pathlib, sys, time\nfrom imachsr.config.folder import lock\nheld = lock(pathlib.Path(sys.argv[1]))\n"
    "sys.stdout.write('held\\n')\nsys.stdout.flush()\ntime.sleep(600)"
)


def test_a_lock_is_gone_with_the_process_that_held_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="must not be in use, but another command works in it"):
            lock(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    with lock(tmp_path), pytest.raises(ConfigError, match="must not be in use"):
        lock(tmp_path)
    lock(tmp_path).close()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    real, calls = fcntl.flock, []

    def removed_once(file: int, how: int) -> None:
        real(file, how)
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(how)

    monkeypatch.setattr(fcntl, "flock", removed_once)
    with lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(ConfigError, match="must not be in use"):
            lock(tmp_path)


def test_names_that_are_printed_to_go_on_with_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [free(Path("best"), ".yaml"), free(Path("runs/best"))] == [Path("best.yaml"), Path("runs/best")]
    Path("best.yaml").touch()
    Path("best-2.yaml").touch()
    Path("runs/best").mkdir(parents=True)
    assert [free(Path("best"), ".yaml"), free(Path("runs/best"))] == [Path("best-3.yaml"), Path("runs/best-2")]


def test_a_folder_of_other_things_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    for name in ("d", "run.yaml", "a", "b"):
        (tmp_path / name).write_text(f"mine {name}")
    message = re.escape(f"{tmp_path} must be a new folder, but holds a, b, d; give another --output")
    with pytest.raises(ConfigError, match=message), claimed(tmp_path):
        raise AssertionError("was given")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: f"mine {name}" for name in ("d", "run.yaml", "a", "b")}


def test_a_folder_is_some_commands_once_it_was_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with claimed(folder) as held:
        assert held == folder
        (folder / "run.yaml").touch()
        with pytest.raises(ConfigError, match="must not be in use"), claimed(folder):
            raise AssertionError("was given twice")
    with claimed(folder):
        check_own(folder)
    old = tmp_path / "old"
    old.mkdir()
    (old / "checkpoint.pt").touch()
    with claimed(old, is_known=True):
        (old / "checkpoints").touch()
    check_own(old)


def test_a_folder_in_which_nothing_was_written_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "runs" / "made"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), claimed_new(tmp_path / "runs" / "made"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "own").mkdir()
    with claimed(tmp_path / "own"):
        pass
    (tmp_path / "old").mkdir()
    (tmp_path / "old/checkpoint.pt").touch()
    with claimed(tmp_path / "old", is_known=True):
        pass
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"own", "old", "old/checkpoint.pt"}
    with contextlib.suppress(ZeroDivisionError), claimed(tmp_path / "own"):
        (tmp_path / "own/run.yaml").touch()
        raise ZeroDivisionError
    check_own(tmp_path / "own")
    with claimed(tmp_path / "own"):
        pass
    assert (tmp_path / "own" / LOCK).exists(), "it stays some command's"


def test_each_of_many_at_once_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    ready, done, got = threading.Barrier(8, timeout=60), threading.Barrier(8, timeout=60), []

    def take() -> None:
        ready.wait()
        with claimed_new(tmp_path / "runs" / "name") as folder:
            got.append(folder.name)
            done.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["name", *(f"name-{number}" for number in range(2, 9))]


@pytest.mark.parametrize("path", ["/proc/imachsr", "/sys/imachsr/a"])
def test_a_place_where_nothing_can_be_made_is_told(path: str) -> None:
    with pytest.raises(ConfigError, match=f"{path} must be a folder that can be made, but: "), claimed(Path(path)):
        raise AssertionError("was given")


def test_a_folder_that_cannot_be_written_is_told() -> None:
    with pytest.raises(ConfigError, match="/proc must be a folder that can be written, but: "), claimed(Path("/proc"), is_known=True):
        raise AssertionError("was given")


def test_a_name_that_leads_nowhere_is_taken(tmp_path: Path) -> None:
    (tmp_path / "scenes").symlink_to(tmp_path / "gone")
    with claimed_new(tmp_path / "scenes") as folder:
        assert folder == tmp_path / "scenes-2"
    with pytest.raises(ConfigError, match="scenes must be a folder, or a name that is free, but is a file, or a link that leads nowhere"):
        claimed(tmp_path / "scenes").__enter__()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(ConfigError, match="must be a folder"):
            claimed(path).__enter__()


def test_a_child_does_not_hold_the_folder_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    """As the loaders of batches, which live on for some seconds."""
    child = "import os\nif os.fork() == 0:\n    os.write(1, b'forked\\n')\n    time.sleep(600)\nsys.stdout.write("
    code = HOLD.replace("sys.stdout.write(", child)
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert {holder.stdout.readline(), holder.stdout.readline()} == {"held\n", "forked\n"}  # the child runs, too
        with pytest.raises(ConfigError, match="must not be in use"):
            lock(tmp_path)
        holder.kill()
        holder.wait()
        lock(tmp_path).close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
