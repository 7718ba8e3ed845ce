import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from imachsr.config import ConfigError
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
        self._is_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self._is_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in ("script", "style") else self._inside
        self._is_cell = self._is_cell and tag != "table"

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.text += data
            if self._is_cell:
                self.cells[-1][-1] += data


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def drawn(folder: Path) -> dict[str, Any]:
    """What the page's script draws."""
    (text,) = [script for script in page(folder).scripts if script.startswith("{")]
    found: dict[str, Any] = json.loads(text)
    return found


def cells(found: Page) -> list[list[str]]:
    """Of the table of trials."""
    begin = next(place for place, row in enumerate(found.cells) if row[:2] == ["trial", "arm"])
    return [[text.strip() for text in row] for row in found.cells[begin:]]


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    before = {path for path in folder.rglob("*")}
    found = page(folder)
    assert {path for path in folder.rglob("*")} - before == {folder / "report.html"}
    assert [attributes for tag, attributes in found.elements if tag in ("link", "img", "iframe", "base") or "src" in attributes] == []
    assert not re.search(r"@import|url\(", "".join(STYLES.findall((folder / "report.html").read_text())))


STYLES = re.compile(r"<style>(.*?)</style>", re.S)


def test_the_table_holds_every_trial_in_order(tmp_path: Path) -> None:
    head, *lines = cells(page(make(tmp_path / "s", TRIALS, best=2)))
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
    found = {each["number"]: each for each in drawn(make(tmp_path / "s", TRIALS, best=2))["trials"]}
    for each in TRIALS:
        assert found[each["number"]]["curve"] == [[row["epoch"], row["select/miou"]] for row in curve(each)]
    assert [each["state"] for each in found.values()] == ["finished", "stopped", "finished", "failed", "finished"]


def test_classes_are_those_of_the_last_epoch_of_baseline_and_best(tmp_path: Path) -> None:
    lines = page(make(tmp_path / "s", TRIALS, best=2)).cells
    assert ["road", "34.00", "39.00", "+5.00", ""] in lines
    assert ["sky", "38.00", "43.00", "+5.00"] in [line[:4] for line in lines]


def test_the_baseline_as_the_best_is_shown_once(tmp_path: Path) -> None:
    found = page(make(tmp_path / "s", [BASELINE, trial(1, value=20.0)], best=0))
    assert ["road", "34.00"] in found.cells
    assert "Nothing that was tried scored better than the baseline" in found.text


def test_one_seed_is_no_finding(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    text = page(folder).text
    assert "35 against 30, +5.00 of the baseline. One seed: a candidate, not a finding." in text
    assert f"imachsr confirm {folder}" in text


CONFIRMED: dict[str, Any] = {
    "schema": 1,
    "seeds": list(range(1000, 1008)),
    "confirmed": "val/miou",
    "best": "trial-0002",
    "notes": ["A note."],
    "configurations": [
        {"name": "baseline", "trial": None, "verdict": "baseline", "words": "baseline: 30.00 in the mean"},
        {"name": "trial-0002", "trial": 2, "verdict": "better", "words": "trial-0002: better than baseline: +4.00, p 0.0078, adjusted 0.0078"},
    ],
}


@pytest.mark.parametrize("verdict", ["better", "open"])
def test_a_confirmation_says_what_was_found_and_so_does_its_search(verdict: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    own = make(folder / "confirm", TRIALS, best=2)
    base, other = CONFIRMED["configurations"]
    (own / "plan.json").write_text("{}")
    (own / "confirm.json").write_text(json.dumps({**CONFIRMED, "configurations": [base, {**other, "verdict": verdict}]}))
    begins = {"better": "Better than baseline over 8 seeds", "open": "Nothing was found to be better than baseline over 8 seeds"}[verdict]
    for each in (folder, own):
        text = page(each).text
        assert begins in text
        assert "p 0.0078, adjusted" in text
        assert "a candidate, not a finding" not in text


def test_a_confirmation_that_has_not_ended_says_nothing_yet(tmp_path: Path) -> None:
    own = make(tmp_path / "confirm", TRIALS, best=2)
    (own / "plan.json").write_text("{}")
    text = page(own).text
    assert "This confirmation has not ended" in text
    assert "a candidate, not a finding" not in text


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "s", [BASELINE], best=0)

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", denied)
    with pytest.raises(ConfigError, match="must be writable for report.html, but: Permission denied"):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("content", ["{", '{"schema": 2, "trials": []}', '{"schema": 1, "trials": []}', "[]", "\x00"])
def test_what_is_no_search_of_this_version_is_refused_and_nothing_overwritten(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ConfigError, match=r"summary\.json must"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_class_name_that_was_no_utf8_is_shown_with_a_mark(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    with (folder / "trials.jsonl").open("a") as file:
        file.write(json.dumps({"trial": 2, "epoch": 5, "select/miou": 1.0, "select/iou/stra\udcdfe": 1.0}) + "\n")
    assert "stra?e" in page(folder).text


def test_evaluations_that_are_cut_off_are_left_out(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    for name in ("samples.npz", "evaluation.npz"):
        (folder / "trials" / "0000" / name).write_bytes(b"PK\x03\x04half")
    assert "Confusion" not in page(folder).text


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
    assert len(cells(found)) == 1 + len(trials)
    assert f"{len(trials)} trials" in found.text


def test_a_trial_that_began_after_the_last_summary_has_its_curve(tmp_path: Path) -> None:
    """trials.jsonl grows at every epoch, summary.json is written when a trial ends."""
    folder = make(tmp_path / "s", [BASELINE], best=0)
    with (folder / "trials.jsonl").open("a") as file:
        file.write(json.dumps({"trial": 1, "arm": None, "epoch": 1, "select/miou": 11.0}) + "\n")
    assert [(each["number"], each["state"], each["curve"]) for each in drawn(folder)["trials"]][1:] == [(1, "running", [[1, 11.0]])]


@pytest.mark.parametrize("half", ['{"trial": 1, "ar', '{"trial": 1, "arm": "\xc3'], ids=["half a line", "half a character"])
def test_a_line_that_a_crash_cut_off_is_passed_over(half: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    whole = drawn(folder)
    with (folder / "trials.jsonl").open("ab") as file:
        file.write(half.encode("latin-1"))
    assert drawn(folder) == whole


def test_a_folder_without_rows_has_a_page(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    (folder / "trials.jsonl").unlink()
    assert len(cells(page(folder))) == 1 + len(TRIALS)


def test_missing_values_leave_a_gap(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", [BASELINE], best=0)
    (folder / "trials.jsonl").write_text(
        "".join(json.dumps({"trial": 0, "arm": "baseline", "epoch": e, "select/miou": v}) + "\n" for e, v in ((1, 5.0), (2, None)))
    )
    assert drawn(folder)["trials"][0]["curve"] == [[1, 5.0]]


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
    assert (folder / "report.html").read_text() == first


def test_several_seeds_are_told_with_means_and_paired_differences(tmp_path: Path) -> None:
    trials = [
        trial(number, arm=arm, seed=seed, value=value, difference=value - 30.0)
        for number, (arm, seed, value) in enumerate([("b", 0, 30.0), ("b", 7, 30.0), ("<c>", 0, 36.0), ("<c>", 7, 31.0)])
    ]
    text = write_report(make(tmp_path / "s", trials, best=2)).read_text()
    assert "one seed per configuration" not in text
    assert "several seeds an arm" in text
    assert "<td class=n>7<td class=n>31.00" in text
    assert ["<c>", "2", "33.50", "+3.50", "+6.00, +1.00"] in Page(text).cells
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
