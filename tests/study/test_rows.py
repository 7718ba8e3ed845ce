"""The raw numbers, written and read back."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from imachsr.config.schema import ConfigError
from imachsr.study.rows import Known, Row, check_same, read, text_of, write

ONE = Row(
    cell="a",
    arm="b",
    seed=1,
    key="k",
    data="d",
    epochs=3,
    taps=2,
    scores={"val/miou": 41.25, "val/iou/road": 90.0, "wall_s": 12.5},
    facts={"torch": "2"},
)
FAILED = Row(cell="a", arm='c, "d"', seed=2, key="l", state="failed", error="loss must be finite,\nbut got nan")


def test_rows_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", [ONE, FAILED])
    one, failed = read(tmp_path / "r.csv")
    assert one == ONE
    assert (failed.arm, failed.error, failed.is_finished, failed.scores) == (FAILED.arm, FAILED.error, False, {})
    assert text_of([one, failed]) == (tmp_path / "r.csv").read_text()


def test_every_line_has_all_columns_and_what_is_missing_is_empty() -> None:
    lines = list(csv.DictReader(text_of([FAILED, ONE]).splitlines(keepends=True)))
    assert lines[0]["val/miou"] == ""
    assert lines[1]["val/miou"] == "41.25"
    assert lines[1]["wall_s"] == "12.5"


def test_a_number_that_is_not_finite_is_missing() -> None:
    assert "nan" not in text_of([Row(cell="a", arm="b", seed=1, key="k", scores={"val/miou": float("nan")})]).splitlines()[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cell,arm\na,b\n", r":1 must name the columns cell, arm, setting, .*, but setting, seed, key"),
        (text_of([ONE]).replace("41.25", "much"), r":2 must hold numbers, but: .*much"),
        (text_of([ONE]).replace("finished", "done"), r":2: `state` must be finished or failed, but got 'done'"),
        (text_of([ONE]).replace("41.25", "nan"), r":2: `val/miou` must be finite, or empty for what a run has not, but got nan"),
        (text_of([ONE]).replace("12.5", "inf"), r":2: `wall_s` must be finite"),
        (text_of([ONE]) + "a,b\n", r":3 must have a cell for each column, but has 2"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "r.csv")


def test_no_file_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a CSV file of a study's runs"):
        read(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="must be a CSV file of a study's runs"):
        read(tmp_path / "b.csv")


def test_a_finished_run_counts_before_a_failed_one_and_the_first_before_the_second() -> None:
    again = Row(cell="x", arm="y", seed=2, key="l", scores={"val/miou": 1.0})
    known = Known([FAILED, ONE, again, Row(cell="x", arm="y", seed=1, key="k")])
    assert known.get("l", 2) == again
    assert known.get("k", 1) == ONE
    assert known.get("k", 2) is None
    assert len(known.all()) == 2


def test_a_mark_that_spreadsheets_put_before_the_text_is_no_column(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"\xef\xbb\xbf" + text_of([ONE]).encode())
    assert read(tmp_path / "r.csv") == [ONE]


def test_rows_of_one_run_say_the_same_or_are_refused() -> None:
    slower = replace(ONE, scores={**ONE.scores, "wall_s": 99.0}, facts={})
    failed = replace(ONE, state="failed", scores={})
    check_same([ONE, slower, failed, replace(ONE, seed=2, scores={"val/miou": 1.0})])
    with pytest.raises(ConfigError, match=r"val/miou of a, b, seed 1 is 41.25 in one and 42 in another"):
        check_same([ONE, replace(ONE, scores={"val/miou": 42.0})])
