import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imachsr.config import ConfigError
from imachsr.config.folder import lock
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


def confirmed(folder: Path, *, verdict: str = "better", **more: Any) -> Path:
    """A confirmation that has ended."""
    own = make(folder, TRIALS, best=2)
    base, other = CONFIRMED["configurations"]
    (own / "plan.json").write_text("{}")
    (own / "confirm.json").write_text(json.dumps({**CONFIRMED, "configurations": [base, {**other, "verdict": verdict}], **more}))
    return own


@pytest.mark.parametrize("verdict", ["better", "open"])
def test_a_confirmation_says_what_was_found_and_so_does_its_search(verdict: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    own = confirmed(folder / "confirm", verdict=verdict)
    begins = {"better": "Better than baseline over 8 seeds", "open": "Nothing was found to be better than baseline over 8 seeds"}[verdict]
    for each in (folder, own):
        text = page(each).text
        assert begins in text
        assert "p 0.0078, adjusted" in text
        assert "a candidate, not a finding" not in text


def test_a_confirmation_says_the_same_wherever_its_folder_lies(tmp_path: Path) -> None:
    """Beside another search, whose own confirmation says something else."""
    other = make(tmp_path / "other", TRIALS, best=2)
    confirmed(other / "confirm", verdict="open")
    for own in (confirmed(tmp_path / "moved"), confirmed(other / "confirm-old")):
        text = page(own).text
        assert "Better than baseline over 8 seeds" in text
        assert "imachsr export SEARCH" in text
        assert "first move this folder back" in text
    text = page(other / "confirm").text
    assert "Nothing was found to be better" in text
    assert f"imachsr export {other} --out best.yaml" in text
    assert "move this folder back" not in text


def test_a_confirmation_at_the_working_folder_names_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = confirmed(make(tmp_path / "s", TRIALS, best=2) / "confirm")
    monkeypatch.chdir(own)
    assert f"imachsr export {tmp_path / 's'} --out" in page(Path()).text


def test_a_search_shows_what_its_confirmation_prefers_and_says_so(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    base, other = CONFIRMED["configurations"]
    preferred = {**other, "name": "trial-0004", "trial": 4}
    confirmed(folder / "confirm", configurations=[base, other, preferred], best="trial-0004")
    for number in (0, 2, 4):
        counts = np.full((2, 2), number + 1)
        np.savez(folder / "trials" / f"{number:04d}" / "evaluation.npz", confusion=counts + np.eye(2, dtype=int) * number)
    found = page(folder)
    assert "The confirmation prefers trial 4 to the search's best, trial 2" in found.text
    assert ["road", "34.00", "36.00", "+2.00", ""] in found.cells  # trial 2 has 39
    assert drawn(folder)["best"] == 4
    shares = [row for row in found.cells if row[0] == "0" and len(row) == 3]
    assert shares == [["0", "50", "50"], ["0", "64", "36"]]  # 9 of 14


def test_a_confirmation_has_numbers_of_its_own(tmp_path: Path) -> None:
    """Trial 2 of the search is not trial 2 of the confirmation, which has an arm for each configuration, and a trial for each seed."""
    runs = [("baseline", 1), ("trial-0002", 1), ("baseline", 2), ("trial-0002", 2), ("fails", 1)]
    trials = [trial(number, arm=arm, seed=seed) for number, (arm, seed) in enumerate(runs)]
    own = make(tmp_path / "confirm", trials, best=1)
    (own / "plan.json").write_text("{}")
    (own / "confirm.json").write_text(json.dumps(CONFIRMED))
    found = page(own)
    assert drawn(own)["best"] == 1
    assert "wherever this page shows the best" not in found.text.lower()
    summary = json.loads((own / "summary.json").read_text())
    (own / "summary.json").write_text(json.dumps({**summary, "best": 4}))
    assert drawn(own)["best"] == 1
    assert "Wherever this page shows the best, it is trial-0002" in page(own).text


def test_the_confirmation_is_drawn_on_its_own_page_and_on_its_search_s(tmp_path: Path) -> None:
    base, other = CONFIRMED["configurations"]
    more = {"difference": 4.0, "interval": [3.0, 5.0], "differences": {"1000": 4.0}, "p": 0.0078, "p_holm": 0.0078}
    folder = make(tmp_path / "s", TRIALS, best=2)
    own = confirmed(folder / "confirm", configurations=[base, {**other, **more}])
    for each in (folder, own):
        found = page(each)
        assert [row for row in found.cells if row[0] == "trial-0002"] == [
            ["trial-0002", "", "", "", "+4.00", "+3.00 to +5.00", "0.0078", "0.0078", "better"]
        ]
        assert "forest" in [attributes.get("class") for _, attributes in found.elements]


@pytest.mark.parametrize(
    ("troubles", "sittings", "expected"),
    [
        ([None, None, None], None, [["", "not recorded"]] * 4),
        ([(0, 0, 0), (2, 1, 1), (1, 1, 0)], 3, [["3", ""], ["2", ""], ["1", ""], ["2", ""]]),
        (
            [None, (2, 1, 0), (0, 0, 0)],
            None,
            [["2", "1 trials not recorded"], ["1", "1 trials not recorded"], ["0", "1 trials not recorded"], ["", "not recorded"]],
        ),
    ],
    ids=["older version", "counted", "continued from an older version"],
)
def test_lost_and_resumed_trials_are_counted_where_they_were_recorded(
    troubles: list[Any], sittings: int | None, expected: list[list[str]], tmp_path: Path
) -> None:
    folder = make(tmp_path / "s", [BASELINE, trial(1), trial(2)], best=2, **({} if sittings is None else {"sittings": sittings}))
    summary = json.loads((folder / "summary.json").read_text())
    for each, counts in zip(summary["trials"], troubles, strict=True):
        each |= {} if counts is None else {"troubles": dict(zip(("restarts", "lost", "resumed"), counts, strict=True))}
    (folder / "summary.json").write_text(json.dumps(summary))
    begins = ("restarts of trials", "trials lost", "trials continued", "times the search was resumed")
    assert [next(row for row in page(folder).cells if row[0].startswith(each))[1:] for each in begins] == expected


def test_no_two_elements_have_one_id(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    summary = json.loads((folder / "summary.json").read_text())
    summary["trials"][2]["network"] = "u"
    (folder / "summary.json").write_text(json.dumps(summary))
    layers = [{"address": "a", "cls": "Conv2d", "channels": 8, "height": 4, "width": 4, "stride": 2.0, "depth": 1, "params": 9}]
    (folder / "network.json").write_text(json.dumps({"schema": 1, "networks": {"u": {"name": "Net", "input_size": [8, 8], "layers": layers}}}))
    confirmed(folder / "confirm")
    found = [attributes["id"] for _, attributes in page(folder).elements if "id" in attributes]
    assert {"network", "trials", "rungs", "settings"} <= set(found)
    assert len(set(found)) == len(found)


def test_rungs_are_counted_for_the_drawing_as_in_the_table(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    assert drawn(folder)["rungs"] == [{"epoch": 1, "came": 3, "stopped": 0}, {"epoch": 2, "came": 3, "stopped": 1}]
    assert ["2", "3", "2", "1"] in [row[:4] for row in page(folder).cells]


def test_the_page_s_style_and_script_are_in_an_installed_package(tmp_path: Path) -> None:
    """A wheel holds only those files of a package that its settings name."""
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["imachsr"]
    inside = {path.relative_to(root / "imachsr").as_posix() for path in (root / "imachsr/report").iterdir() if path.suffix in (".css", ".js")}
    assert inside == {name for name in settings if name.startswith("report/")}


@pytest.mark.slow
def test_a_report_can_be_written_from_a_wheel(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    source = tmp_path / "source"
    shutil.copytree(root / "imachsr", source / "imachsr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(tmp_path / "wheels"), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    folder = make(tmp_path / "s", TRIALS, best=2)
    code = "import sys, pathlib, imachsr, imachsr.report.html as h; print(imachsr.__file__); h.write_report(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.startswith(str(tmp_path / "installed"))
    assert (folder / "report.html").read_text() == write_report(folder).read_text()


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
    with pytest.warns(UserWarning, match=r"0000/(samples|evaluation)\.npz cannot be read, and what it would show is left out: BadZipFile"):
        assert "Confusion" not in page(folder).text


def test_lines_that_cannot_be_read_are_counted_but_for_one_that_a_crash_cut_off(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    rows = (folder / "trials.jsonl").read_text()
    (folder / "trials.jsonl").write_text(rows + '{"trial": 1, "epo')
    page(folder)
    (folder / "trials.jsonl").write_text("half\n" + '{"trial": "x"}\n' + rows)
    with pytest.warns(UserWarning, match=r"trials\.jsonl: 2 lines cannot be read, and are left out, the first of them line 1"):
        page(folder)


def test_a_metric_that_no_row_has_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2)
    rows = (folder / "trials.jsonl").read_text()
    assert "No row of trials.jsonl" not in page(folder).text
    (folder / "trials.jsonl").write_text(rows.replace("select/miou", "select/other"))
    assert "No row of trials.jsonl has select/miou." in page(folder).text


def test_a_finished_trial_without_a_value_is_no_result(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", [BASELINE, trial(1, value=None)])
    with pytest.raises(ConfigError, match="trial 1 is COMPLETE and has no value"):
        write_report(folder)


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
    with lock(folder):
        assert [(each["number"], each["state"], each["curve"]) for each in drawn(folder)["trials"]][1:] == [(1, "running", [[1, 11.0]])]
    assert [each["state"] for each in drawn(folder)["trials"]] == ["finished", "broken off"]


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


def test_an_epoch_without_a_value_has_no_point_in_its_curve(tmp_path: Path) -> None:
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


def test_settings_that_are_mappings_are_drawn_as_words(tmp_path: Path) -> None:
    loss = {"kind": "infonce", "temperature": 0.2}
    folder = make(tmp_path / "s", [BASELINE, trial(1, params={"method.loss": loss, "method.alpha": 0.5, "method.entropy": None})], best=1)
    assert drawn(folder)["trials"][1]["params"] == {"method.loss": "infonce (temperature 0.2)", "method.alpha": 0.5, "method.entropy": None}
    assert "{'kind'" not in page(folder).text
