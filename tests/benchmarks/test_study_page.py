"""A published page follows from its rows, and from nothing else."""

from pathlib import Path

import pytest

from benchmarks.study_page import MARK, findings_of, page
from imachsr.config.load import dump_yaml
from imachsr.study.rows import write
from tests.study.rows import RAW, filled, study

HEAD = "# A study\n\nWhat a person wrote.\n\n"


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, Path]:
    """A study's file, and rows of all its runs."""
    (tmp_path / "study.yaml").write_text(dump_yaml(RAW))
    rows = filled(study(), lambda cell, arm, seed: 30.0 + seed + 2 * (arm == "full")).all()
    write(tmp_path / "rows.csv", rows)
    return tmp_path / "study.yaml", tmp_path / "rows.csv"


def test_a_page_is_made_again_behind_its_line_alone(given: tuple[Path, Path], tmp_path: Path) -> None:
    once = page(findings_of(*given), f"{HEAD}{MARK}\nold", tmp_path / "pictures", "pictures")
    assert once.startswith(HEAD + MARK)
    assert "old" not in once
    assert "(pictures/differences.svg)" in once
    assert (tmp_path / "pictures/differences.svg").exists()
    assert page(findings_of(*given), once, tmp_path / "pictures", "pictures") == once


def test_a_changed_row_changes_the_page(given: tuple[Path, Path], tmp_path: Path) -> None:
    once = page(findings_of(*given), HEAD + MARK, tmp_path / "pictures", "pictures")
    given[1].write_text(given[1].read_text().replace(",32,", ",39,", 1))
    assert page(findings_of(*given), once, tmp_path / "pictures", "pictures") != once


def test_a_page_without_the_line_is_refused(given: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the page must hold the line"):
        page(findings_of(*given), HEAD, tmp_path / "pictures", "pictures")
