"""A published study, made again from its rows alone: the part of its page behind the line that names this program, and its pictures.

python benchmarks/study_page.py search_spaces/camvid_study.yaml ROWS.csv PAGE.md
"""

import sys
from pathlib import Path

from imachsr.files import write_text
from imachsr.study.document import document
from imachsr.study.findings import Findings, find
from imachsr.study.load import load_study
from imachsr.study.plots import plot
from imachsr.study.rows import Known, read

MARK = "<!-- from here on made by benchmarks/study_page.py -->"


def findings_of(study: Path, rows: Path) -> Findings:
    return find(load_study(study), Known(read(rows)))


def page(findings: Findings, before: str, folder: Path, place: str) -> str:
    """The page anew, and its pictures in a folder.

    Args:
        findings: Of the rows.
        before: The page as it is; what a person wrote stands before the line.
        folder: Of the pictures.
        place: The folder as the page names it.
    """
    if MARK not in before:
        raise ValueError(f"the page must hold the line {MARK!r}, but does not")
    folder.mkdir(exist_ok=True)
    made = document(findings, plots=[f"{place}/{name}" for name in plot(findings, folder)])
    return before[: before.index(MARK)] + MARK + "\n\n" + made.split("\n", 2)[2]


if __name__ == "__main__":
    study, rows, target = map(Path, sys.argv[1:])
    pictures = target.with_suffix("")
    write_text(target, page(findings_of(study, rows), target.read_text(encoding="utf-8"), pictures, pictures.name))
