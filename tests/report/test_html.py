import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from imachsr.report.html import write_report
from tests.report.folders import BASELINE, curve, make, trial

TRIALS = [
    BASELINE,
    trial(1, "PRUNED", epochs=2, value=25.0),
    trial(2, value=35.0, difference=5.0, params={"method.loss": "prototype", "method.loss.temperature": 0.25, "method.alpha": 0.5}),
    trial(3, "FAIL", epochs=0, value=None, error="ValueError: no", taps=[]),
    trial(4, value=32.0, difference=2.0, params={"method.loss": "infonce", "method.loss.temperature": 0.45, "method.alpha": 0.25}),
]


class Page(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in ("script", "style") else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.text += data
            if self.cells and self.cells[-1]:
                self.cells[-1][-1] += data


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def figures(folder: Path) -> list[list[dict[str, Any]]]:
    """Traces of every figure, from the page's own scripts."""
    found = []
    for script in page(folder).scripts:
        for match in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*(?=\[)', script):
            found.append(json.JSONDecoder().raw_decode(script, match.end())[0])
    return found


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    before = {path for path in folder.rglob("*")}
    found = page(folder)
    assert {path for path in folder.rglob("*")} - before == {folder / "report.html"}
    assert [attributes for tag, attributes in found.elements if tag in ("link", "img", "iframe", "base") or "src" in attributes] == []
    assert not re.search(r"@import|url\(", "".join(STYLES.findall((folder / "report.html").read_text())))
    # The library itself is in it, once.
    assert sum(len(script) > 1_000_000 for script in found.scripts) == 1


STYLES = re.compile(r"<style>(.*?)</style>", re.S)


def test_the_table_holds_every_trial_in_order(tmp_path: Path) -> None:
    head, *lines = page(make(tmp_path / "s", TRIALS, best=2)).cells
    assert head[:6] == ["trial", "arm", "select/miou", "difference", "epochs", "state"]
    assert [line[:6] for line in lines] == [
        ["0", "baseline", "30.00", "+0.00", "4/4", "finished"],
        ["2", "", "35.00", "+5.00", "4/4", "finished"],
        ["4", "", "32.00", "+2.00", "4/4", "finished"],
        ["1", "", "25.00", "", "2/4", "stopped"],
        ["3", "", "", "", "0/4", "failed"],
    ]
    assert lines[1][6] == "loss prototype, loss.temperature 0.25, alpha 0.5"
    assert lines[4][6] == "ValueError: no"
    assert lines[1][7] == "encoder.layer1encoder.layer2"


def test_the_page_counts_what_happened(tmp_path: Path) -> None:
    text = page(make(tmp_path / "s", TRIALS, best=2, finished=False)).text
    assert "5 trials (3 finished, 1 stopped early, 1 failed), not complete, 1.5 min" in text
    assert "torch 2.14.1" in text


def test_learning_curves_are_the_rows(tmp_path: Path) -> None:
    curves, *_ = figures(make(tmp_path / "s", TRIALS, best=2))
    expected = {each["number"]: curve(each) for each in TRIALS if each["value"] is not None}
    assert len(curves) == len(expected)
    for trace, (number, rows) in zip(curves, sorted(expected.items()), strict=True):
        assert trace["name"].split()[0] == str(number)
        assert trace["x"] == [row["epoch"] for row in rows]
        assert trace["y"] == [row["select/miou"] for row in rows]
    assert [trace["line"].get("dash") for trace in curves] == [None, "dot", "solid", "solid"]


def test_parallel_coordinates_are_the_settings_of_the_sampled_trials(tmp_path: Path) -> None:
    _, (coordinates,), _ = figures(make(tmp_path / "s", TRIALS, best=2))
    axes = {axis["label"]: axis for axis in coordinates["dimensions"]}
    assert list(axes) == ["loss", "alpha", "lr", "loss.temperature", "select/miou"]
    assert axes["select/miou"]["values"] == [25.0, 35.0, 32.0] == coordinates["line"]["color"]
    assert axes["alpha"]["values"] == [0.2, 0.5, 0.25]
    loss = axes["loss"]
    assert [loss["ticktext"][loss["tickvals"].index(value)] for value in loss["values"]] == ["dice", "prototype", "infonce"]


def test_a_setting_that_does_not_exist_lies_below_the_numbers(tmp_path: Path) -> None:
    _, (coordinates,), _ = figures(make(tmp_path / "s", TRIALS, best=2))
    axis = next(axis for axis in coordinates["dimensions"] if axis["label"] == "loss.temperature")
    absent, high, low = axis["values"][1], axis["values"][2], axis["values"][0]
    assert (absent, high) == (0.25, 0.45)
    assert low < 0.25
    assert axis["tickvals"] == [low, 0.25, 0.45]
    assert axis["ticktext"] == ["-", "0.25", "0.45"]


def test_classes_are_those_of_the_last_epoch_of_baseline_and_best(tmp_path: Path) -> None:
    *_, classes = figures(make(tmp_path / "s", TRIALS, best=2))
    assert [(trace["name"], trace["x"], trace["y"]) for trace in classes] == [
        ("trial 0 (baseline)", ["road", "sky"], [34.0, 38.0]),
        ("trial 2", ["road", "sky"], [39.0, 43.0]),
    ]


def test_the_baseline_as_the_best_is_drawn_once(tmp_path: Path) -> None:
    *_, classes = figures(make(tmp_path / "s", [BASELINE, trial(1, value=20.0)], best=0))
    assert [trace["name"] for trace in classes] == ["trial 0 (baseline)"]


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, "RUNNING", arm="baseline", epochs=0, value=None, taps=[])],
        [trial(0, "FAIL", arm="baseline", epochs=0, value=None, error="x"), trial(1, "FAIL", epochs=0, value=None, error="y")],
        [BASELINE],
        [BASELINE, trial(1, "PRUNED", epochs=1)],
    ],
    ids=["none", "running", "all failed", "baseline only", "one stopped"],
)
def test_a_search_without_results_still_has_a_page(trials: list[dict[str, Any]], tmp_path: Path) -> None:
    found = page(make(tmp_path / "s", trials, finished=False))
    assert len(found.cells) == 1 + len(trials)
    assert f"{len(trials)} trials" in found.text


def test_a_trial_that_began_after_the_last_summary_has_its_curve(tmp_path: Path) -> None:
    """trials.jsonl grows at every epoch, summary.json is written when a trial ends."""
    folder = make(tmp_path / "s", [BASELINE], best=0)
    with (folder / "trials.jsonl").open("a") as file:
        file.write(json.dumps({"trial": 1, "arm": None, "epoch": 1, "select/miou": 11.0}) + "\n")
    curves, *_ = figures(folder)
    assert (curves[1]["x"], curves[1]["y"]) == ([1], [11.0])


@pytest.mark.parametrize("half", ['{"trial": 1, "ar', '{"trial": 1, "arm": "\xc3'], ids=["half a line", "half a character"])
def test_a_line_that_a_crash_cut_off_is_passed_over(half: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    whole = figures(folder)
    with (folder / "trials.jsonl").open("ab") as file:
        file.write(half.encode("latin-1"))
    assert figures(folder) == whole


def test_a_folder_without_rows_has_a_page(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    (folder / "trials.jsonl").unlink()
    assert len(page(folder).cells) == 1 + len(TRIALS)


def test_missing_values_leave_a_gap(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", [BASELINE], best=0)
    (folder / "trials.jsonl").write_text(
        "".join(json.dumps({"trial": 0, "arm": "baseline", "epoch": e, "select/miou": v}) + "\n" for e, v in ((1, 5.0), (2, None)))
    )
    (curves,) = figures(folder)
    assert curves[0]["y"] == [5.0, None]


EVIL = "</script><script>alert(1)</script><b x='\"&"


def test_no_name_becomes_code(tmp_path: Path) -> None:
    trials = [
        {**BASELINE, "arm": EVIL},
        {**trial(1, "FAIL", value=None), "error": EVIL},
        {**trial(2), "taps": [EVIL]},
        trial(3),
    ]
    folder = make(tmp_path / "s", trials, best=2, name=EVIL)
    summary = json.loads((folder / "summary.json").read_text())
    for each in summary["trials"][2:]:
        each["params"] = {"method.loss": EVIL, EVIL: 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "trials.jsonl").open("a") as file:
        file.write(json.dumps({"trial": 2, "arm": None, "epoch": 5, "select/miou": 1.0, f"select/iou/{EVIL}": 1.0}) + "\n")
    found = page(folder)
    assert "<script>alert" not in (folder / "report.html").read_text()
    assert [script for script in found.scripts if script.strip().startswith("alert")] == []
    assert "b" not in [tag for tag, _ in found.elements]
    # Shown as it is: title, heading, arm, error, tap and twice the settings.
    assert found.text.count(EVIL) >= 6


def test_a_page_is_written_anew(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    first = write_report(folder).read_text()
    assert write_report(folder) == folder / "report.html"
    again = (folder / "report.html").read_text()
    ids = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
    assert ids.sub("", again) == ids.sub("", first)


def test_several_seeds_are_told_with_means_and_paired_differences(tmp_path: Path) -> None:
    trials = [
        trial(number, arm=arm, seed=seed, value=value, difference=value - 30.0)
        for number, (arm, seed, value) in enumerate([("b", 0, 30.0), ("b", 7, 30.0), ("<c>", 0, 36.0), ("<c>", 7, 31.0)])
    ]
    text = write_report(make(tmp_path / "s", trials, best=2)).read_text()
    assert "one seed per configuration" not in text
    assert "several seeds an arm" in text
    assert "<td class=n>7<td class=n>31.00" in text
    assert "<td>&lt;c&gt;<td class=n>2<td class=n>33.50<td class=n>+3.50<td>+6.00, +1.00</tr>" in text
    alone = write_report(make(tmp_path / "t", [BASELINE, trial(1)], best=0)).read_text()
    assert "one seed per configuration" in alone
    assert "Arms over their seeds" not in alone


def test_a_report_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "s", [BASELINE], best=0)
    (folder / "report.html").write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "old"
