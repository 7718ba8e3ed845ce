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
