"""A published study, made again from its rows alone: the part of its page behind the line that names this program, and its pictures.

python benchmarks/study_page.py search_spaces/camvid_study.yaml ROWS.csv PAGE.md
"""

import argparse
from pathlib import Path

from imachsr.config.schema import ConfigError
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
        raise ConfigError(f"the page must hold the line {MARK!r}, but does not")
    folder.mkdir(exist_ok=True)
    made = document(findings, plots=[f"{place}/{name}" for name in plot(findings, folder)])
    return before[: before.index(MARK)] + MARK + "\n\n" + made.split("\n", 2)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="file of the study")
    parser.add_argument("rows", type=Path, help="CSV file of its runs")
    parser.add_argument("page", type=Path, help="what is made anew; its pictures are in a folder of the same name")
    given = parser.parse_args()
    for path in (given.rows, given.page):
        if not path.is_file():
            parser.error(f"{path} must be a file, but there is none")
    pictures = given.page.with_suffix("")
    try:
        made = page(findings_of(given.study, given.rows), given.page.read_text(encoding="utf-8"), pictures, pictures.name)
    except ConfigError as error:
        parser.error(str(error))
    write_text(given.page, made)


if __name__ == "__main__":
    main()
