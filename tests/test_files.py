"""Files that are whole or absent; a writer that is killed is in tests/train/test_checkpoint.py and tests/data/test_images.py."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from imachsr.files import write_atomic, write_text


def test_a_writer_that_raises_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(file: Any) -> None:
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_text_is_utf8_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("\u00e4 \u20ac\n", ""):
        write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    # Temporary files are the owner's alone; results on a shared folder are for all.
    write_text(tmp_path / "file", "x")
    assert stat.S_IMODE(os.stat(tmp_path / "file").st_mode) == 0o644


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a power cut leaves cannot be tried here; the order of these calls is what POSIX asks for.
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(number: int) -> None:
        calls.append(f"fsync {'folder' if stat.S_ISDIR(os.fstat(number).st_mode) else 'file'}")
        fsync(number)

    def watched_replace(source: Any, target: Any) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_text(tmp_path / "file", "x")
    assert calls == ["fsync file", "rename", "fsync folder"]


def test_a_name_that_cannot_be_taken_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "taken/inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "taken", "x")
    assert [found.name for found in tmp_path.iterdir()] == ["taken"]
