"""The table of the throughput benchmark, against its definition, and its command."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import throughput

CELL = throughput.Cell(model="unet/resnet18", size="96x128", rounds=3, steps=2, threads=2, workers=1)
SECONDS = {"ours": [1.0, 2.0, 4.0], "plain": [1.0, 2.2, 4.0], "today": [2.0, 4.0, 12.0], "tuned": [1.5, 3.0, 6.0]}


def row(cell: Any = CELL) -> dict[str, Any]:
    return {"cell": asdict(cell), "data": "scenes", "ours": "float32, NHWC", "machine": throughput.machine(), "seconds": SECONDS}


def test_a_ratio_is_that_of_the_same_round_and_a_cell_is_named_by_the_size_that_was_trained() -> None:
    deeplab = throughput.Cell(model="deeplabv3plus/resnet18", size="360x480", rounds=3, steps=2, threads=2, workers=1)
    lines = throughput.table([row(), row(deeplab)]).splitlines()
    # 2 steps of 8 images in the median round of 2 s; ratios 1, 1.1, 1 and 2, 2, 3 and 1.5 always, with the quartiles between them.
    assert lines[2] == "| unet/resnet18 | 96x128 | 8.0 | 1.000 (1.000-1.050) | 2.000 (2.000-2.500) | 1.500 (1.500-1.500) |"
    assert lines[3].startswith("| deeplabv3plus/resnet18 | 368x480 | ")
    assert "* over today: geometric mean 2.000, least 2.000 (bar: above 1 everywhere, geometric mean at least 1.7)" in lines


def test_cells_that_were_measured_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[Any] = []

    def measure(cell: Any, camvid: Path | None) -> dict[str, Any]:
        measured.append(cell)
        return row(cell)

    monkeypatch.setattr(throughput, "measure", measure)
    words = ["throughput.py", "--quick", "--threads", "2", "--workers", "1", "--rows", str(tmp_path / "a/rows"), "--out", str(tmp_path / "table")]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):
        throughput.main()
    assert measured == [CELL]
    assert [json.loads(line)["cell"] for line in (tmp_path / "a/rows").read_text().splitlines()] == [asdict(CELL)]
    assert (tmp_path / "table").read_text() in capsys.readouterr().out
