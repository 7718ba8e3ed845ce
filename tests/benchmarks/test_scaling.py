"""The parts of the scaling benchmark that need no second process."""

import sys

import pytest

from benchmarks import scaling


def test_the_computed_table_has_a_row_for_each_model_and_number_of_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--paper"])
    scaling.main()
    out = capsys.readouterr().out
    _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("| ")]
    assert [row[3] for row in rows] == ["1", "8", "64", "512"] * 3
    for first, *others in (rows[start : start + 4] for start in (0, 4, 8)):
        # One GPU exchanges nothing; more of them do more, and none better than alone.
        assert (first[5], first[8], first[4]) == ("0.00", "1.00", first[6])
        efficiencies, speeds = [float(row[8]) for row in [first, *others]], [float(row[7]) for row in [first, *others]]
        assert efficiencies == sorted(efficiencies, reverse=True)
        assert speeds == sorted(speeds)
        assert all(float(row[7]) == pytest.approx(int(row[3]) * float(row[8]) * speeds[0], rel=0.02) for row in others)


@pytest.mark.parametrize(
    ("options", "called"),
    [
        (["--side", "torchrun"], [("plain_loop", 64)]),
        (["--side", "ray", "--quick"], [("ours", 16)]),
        (["--allreduce"], [("allreduce", 64)]),
        (["--quick"], [("compare", 16), ("ray_cost", 3), ("allreduce", 16)]),
    ],
)
def test_options_choose_what_is_measured(monkeypatch: pytest.MonkeyPatch, options: list[str], called: list[tuple[str, int]]) -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str) -> None:
        monkeypatch.setattr(scaling, name, lambda given: seen.append((name, getattr(given, "samples", given))))

    for name in ("plain_loop", "ours", "allreduce", "compare", "ray_cost"):
        note(name)
    monkeypatch.setattr(sys, "argv", ["scaling.py", *options])
    scaling.main()
    assert seen == called
