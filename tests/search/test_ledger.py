import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from imachsr.config.schema import ConfigError
from imachsr.search.ledger import FILE, Ledger


def line(trial: int, epoch: int, **more: Any) -> dict[str, Any]:
    return {"trial": trial, "epoch": epoch, "objectives": [0.5], "held_s": 1.0, "wall_s": 2.0, **more}


def written(folder: Path, *rows: dict[str, Any]) -> str:
    ledger = Ledger(folder, {row["trial"] for row in rows})
    for row in rows:
        ledger.add(row)
    ledger.close()
    return (folder / FILE).read_text()


def test_what_was_added_is_there_again_in_its_order(tmp_path: Path) -> None:
    rows = [line(1, 1, **{"tap/a/std": 1.0, "tap/b/std": 2.0, "select/loss": 0.25}), line(0, 1), line(1, 2, objectives=[1, 2.5])]
    text = written(tmp_path, *rows)
    assert [json.loads(each) for each in text.splitlines()] == rows
    found = Ledger(tmp_path, {0, 1}, loss="select/loss").lines
    assert [(each.trial, each.epoch, each.objectives, each.loss) for each in found] == [
        (1, 1, (0.5,), 0.25),
        (0, 1, (0.5,), None),
        (1, 2, (1, 2.5), None),
    ]
    assert found[0].taps == ("a", "b")
    assert (found[0].held_s, found[0].wall_s) == (1.0, 2.0)
    assert (tmp_path / FILE).read_text() == text


def test_a_line_is_on_the_disk_when_it_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append((tmp_path / FILE).read_text()), fsync(number)))
    ledger = Ledger(tmp_path, {0})
    ledger.add(line(0, 1))
    assert json.loads(synced[-1]) == line(0, 1)


@pytest.mark.parametrize("cut", [1, 7, 30, -1])
def test_what_a_crash_left_half_written_is_dropped_and_can_be_written_again(tmp_path: Path, cut: int) -> None:
    whole = written(tmp_path, line(0, 1), line(0, 2))
    (tmp_path / FILE).write_text(whole + json.dumps(line(0, 3))[:cut])
    ledger = Ledger(tmp_path, {0})
    assert [each.epoch for each in ledger.lines] == [1, 2]
    ledger.add(line(0, 3))
    ledger.close()
    assert [json.loads(each)["epoch"] for each in (tmp_path / FILE).read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    "broken", [b"\0" * 512 + b"\n", b"\xff\xfe\n", b"[1, 2]\n", b'"text"\n', b'{"epoch": 1}\n', b'{"trial": "x", "epoch": 1}\n', b"\n"]
)
def test_broken_lines_in_the_middle_take_no_other_with_them(tmp_path: Path, broken: bytes) -> None:
    first, second = written(tmp_path, line(0, 1), line(0, 2)).splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(first.encode() + broken + second.encode())
    assert [each.epoch for each in Ledger(tmp_path, {0}).lines] == [1, 2]
    assert (tmp_path / FILE).read_text() == first + second


def test_of_two_lines_of_an_epoch_the_first_stands(tmp_path: Path) -> None:
    written(tmp_path, line(0, 1, objectives=[1.0]), line(1, 1), line(0, 1, objectives=[2.0]))
    assert [(each.trial, each.objectives) for each in Ledger(tmp_path, {0, 1}).lines] == [(0, (1.0,)), (1, (0.5,))]
    assert len((tmp_path / FILE).read_text().splitlines()) == 2


def test_lines_of_trials_that_the_study_does_not_have_are_dropped(tmp_path: Path) -> None:
    written(tmp_path, line(0, 1), line(5, 1))
    assert [each.trial for each in Ledger(tmp_path, {0, 1}).lines] == [0]
    assert [json.loads(each)["trial"] for each in (tmp_path / FILE).read_text().splitlines()] == [0]


def test_lines_of_another_version_are_told_and_left_alone(tmp_path: Path) -> None:
    old = json.dumps(line(0, 1)) + "\n" + json.dumps({"trial": 0, "arm": None, "epoch": 2, "select/miou": 3.0}) + "\n"
    (tmp_path / FILE).write_text(old)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / FILE}:2: must have the key objectives, but has not")):
        Ledger(tmp_path, {0})
    assert (tmp_path / FILE).read_text() == old


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    text = written(tmp_path, line(0, 1, **{"train/loss": float("nan"), "x": [float("inf"), 1.0]}))
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["train/loss"], found["x"]) == (None, [None, 1.0])
