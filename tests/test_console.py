import contextlib
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from imachsr import console
from imachsr.console import Bar, Progress, search_table
from tests.report.folders import BASELINE, trial

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def shown(trials: list[dict[str, Any]], width: int = 200, **given: Any) -> str:
    out = io.StringIO()
    summary = {"trials": trials, "mode": "max", "baseline": 0, "max_epochs": 4, "metric": "select/miou", **given}
    quiet = Console(file=out, width=width, markup=console.plain._markup, emoji=console.plain._emoji)
    quiet.print(search_table(summary))
    return out.getvalue()


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│┃ \n").replace("┃", "│").split("│")] for line in text.splitlines() if line[:1] in "│┃"]


def test_the_table_has_a_line_for_each_trial() -> None:
    trials = [
        BASELINE,
        trial(1, "PRUNED", epochs=2, value=25.0),
        trial(2, value=35.0, difference=5.0),
        trial(3, "FAIL", epochs=0, value=None, error="no"),
    ]
    assert cells(shown(trials)) == [
        ["trial", "mIoU", "difference", "epochs", "state", "configuration"],
        ["0", "30.00", "+0.00", "4/4", "finished", "baseline: alpha 0, beta 0"],
        ["2", "35.00", "+5.00", "4/4", "finished", "loss dice, alpha 0.3, lr 0.001"],
        ["1", "25.00", "", "2/4", "stopped", "loss dice, alpha 0.2, lr 0.001"],
        ["3", "", "", "0/4", "failed", "no"],
    ]


@pytest.mark.parametrize(
    ("metric", "title"), [("select/miou", "select/miou of the last epoch, percent"), ("select/loss", "select/loss of the last epoch")]
)
def test_only_percentages_are_called_percent(metric: str, title: str) -> None:
    assert shown([BASELINE], metric=metric).splitlines()[0].strip() == title


@pytest.mark.parametrize("text", ["[/mnt/data] is no folder", "[bold]x", "got [b, h, w]", ":car: :smile:", "[link=x]y[/link]"])
def test_what_a_text_says_is_shown_as_it_is(text: str) -> None:
    assert text in shown([trial(0, "FAIL", value=None, error=text)])


@pytest.mark.parametrize("text", ["[/mnt/data] is no folder", "[red]x[/red]", ":car:"])
def test_messages_are_shown_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.people.print(text)
    console.plain.print(text)
    out, err = capsys.readouterr()
    assert (out, err) == (text + "\n", text + "\n")


def test_long_settings_are_folded_not_cut() -> None:
    params = {f"method.{name}": name * 5 for name in ("alpha", "beta", "gamma", "delta", "loss", "standard")}
    text = "".join(line[-1] for line in cells(shown([trial(0, params=params)], width=80))[1:])
    for value in params.values():
        assert value in text.replace(" ", "")


def test_without_a_terminal_every_change_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("select/miou", "max", 4, style="lines")
    running = trial(0, "RUNNING", arm="baseline", epochs=0, value=None)
    with progress:
        progress.update([running])
        progress.update([running])
        progress.update([{**running, "epochs": 1, "value": 12.25}])
        progress.update([{**running, "epochs": 1, "value": 12.25}, trial(1, "FAIL", epochs=0, value=None, error="[/x] no")])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "trial 0 (baseline): running, epoch 0/4",
        "trial 0 (baseline): running, epoch 1/4  select/miou 12.25",
        "trial 1: failed, epoch 0/4  [/x] no",
    ]


def test_for_machines_every_change_is_an_object_on_what_was_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("select/miou", "max", 4, style="json")
    running = trial(0, "RUNNING", arm="baseline", epochs=0, value=None)
    with contextlib.redirect_stdout(io.StringIO()):
        progress.update([running])
        progress.update([running])
        progress.update([{**running, "epochs": 1, "value": float("nan")}])
    out, err = capsys.readouterr()
    told = {"event": "trial", "number": 0, "arm": "baseline", "seed": 0, "state": "RUNNING", "epochs": 0, "value": None, "error": None}
    assert [json.loads(line) for line in out.splitlines()] == [told, {**told, "epochs": 1}]
    assert err == ""


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("select/miou", "max", 4, style="quiet").update([BASELINE])
    assert capsys.readouterr() == ("", "")


def test_an_overview_says_where_a_search_stands_and_fits_the_terminal() -> None:
    running = [trial(number, "RUNNING", epochs=number % 4, value=20.0 + number) for number in range(1, 40)]
    ended = [BASELINE, trial(40, value=36.0, difference=6.0), trial(41, "FAIL", value=None, error="no")]
    summary = {"trials": [*ended, *running], "mode": "max", "baseline": 0, "max_epochs": 4, "metric": "select/miou", "budget": 60}
    out = io.StringIO()
    Console(file=out, width=120, markup=False).print(console.overview({**summary, "left_s": 5400.0, "spent": {"hours": 0.5}}, height=30))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[:3] == [
        "3 of 60 trials ended: 2 finished, 1 failed, 39 running",
        "best so far: trial 40, select/miou 36.00, +6.00 against the baseline's 30.00",
        "about 1.5 h left, 30.0 min spent",
    ]
    assert len(lines) <= 30
    assert "and 29 more" in out.getvalue()
    assert re.search(r"trial 3 +[━╸ ]+ 3/4 +23\.00", out.getvalue())


def test_on_a_terminal_the_table_lives_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "people", Console(file=out, force_terminal=True, width=120, markup=False))
    with Progress("select/miou", "max", 4, style="live") as progress:
        progress.update([BASELINE])
    assert "baseline: alpha 0, beta 0" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[2K")  # the last thing is erasing


def test_a_live_table_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "people", Console(file=out, force_terminal=True, width=120))

    def fail() -> None:
        with Progress("select/miou", "max", 4, style="live") as progress:
            progress.update([BASELINE])
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert "\x1b[?25h" in out.getvalue()  # the cursor is shown again


def test_a_pipe_is_wide_enough_for_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns would break settings and layer names into pieces."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console._console(stderr=False).width == 160


def test_seeds_are_a_column_where_there_are_several_and_arms_have_means() -> None:
    trials = [
        trial(number, arm=arm, seed=seed, value=value, difference=value - 30.0)
        for number, (arm, seed, value) in enumerate([("b", 0, 30.0), ("b", 1, 30.0), ("c", 0, 36.0), ("c", 1, 31.0)])
    ]
    assert [line[:4] for line in cells(shown(trials))[:2]] == [["trial", "seed", "mIoU", "difference"], ["0", "0", "30.00", "+0.00"]]
    out = io.StringIO()
    Console(file=out, width=120).print(console.arms_table({"trials": trials, "mode": "max", "baseline": 0}))
    assert cells(out.getvalue())[1:] == [["b", "2", "30.00", "+0.00", "+0.00, +0.00"], ["c", "2", "33.50", "+3.50", "+6.00, +1.00"]]
    assert console.arms_table({"trials": trials[::2], "mode": "max", "baseline": 0}) is None


@pytest.mark.parametrize(("is_terminal", "after_s", "is_shown"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)])
def test_a_bar_is_shown_on_a_terminal_when_the_work_takes_a_while(
    is_terminal: bool, after_s: float, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "people", Console(file=out, force_terminal=is_terminal, width=80))
    monkeypatch.setattr(console, "BAR_AFTER_S", after_s)
    with Bar("decoding val") as bar:
        for done in range(1, 4):
            bar.update(done, 3)
    if is_shown:
        assert re.search(r"decoding val .*1/3", out.getvalue())
    else:
        assert out.getvalue() == ""


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_bar_leaves_the_terminal_as_it_was(is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "people", Console(file=out, force_terminal=True, width=80))
    monkeypatch.setattr(console, "BAR_AFTER_S", 0.0)
    with contextlib.suppress(ValueError), Bar("decoding val") as bar:
        bar.update(1, 2)
        assert HIDE in out.getvalue()
        if not is_whole:
            raise ValueError
        bar.update(2, 2)
        assert out.getvalue().rfind(SHOW) > out.getvalue().rfind(HIDE)  # what comes after may take as long as it wants
    assert out.getvalue().rfind(SHOW) > out.getvalue().rfind(HIDE)
