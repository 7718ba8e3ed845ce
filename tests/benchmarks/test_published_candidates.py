"""The published comparison of candidates follows from its rows by plain arithmetic."""

import csv
import re
import statistics
from pathlib import Path

ROWS = Path(__file__).parent.parent.parent / "benchmarks/camvid_candidates.csv"
(PAGE,) = ROWS.parent.glob("camvid_candidates_*.md")
SEARCHES = {
    "20 epochs, three seeds": ("camvid_candidates",),
    "45 epochs, two seeds": ("camvid_candidates_long",),
    "Another network": ("camvid_candidates_segformer",),
    "SegFormer at the rate of its own search": ("camvid_pull",),
    "A larger weight than the defaults' on the U-Net": ("camvid_weight_unet",),
    "A larger weight than the defaults' on the SegFormer": ("camvid_weight_segformer",),
}


def scores(searches: tuple[str, ...]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    with ROWS.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["search"] in searches:
                found.setdefault(row["arm"], {})[int(row["seed"])] = float(row["select/miou"])
    return found


def test_every_line_of_the_tables_is_that_of_the_rows() -> None:
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    for title, searches in SEARCHES.items():
        section = next(part for part in sections if part.startswith(title))
        given = scores(searches)
        control = given.pop("output_only")
        expected = {f"{statistics.fmean(control.values()):.2f} | |"}
        for own in given.values():
            pairs = [own[seed] - control[seed] for seed in sorted(own)]
            expected.add(f"{statistics.fmean(own.values()):.2f} | {statistics.fmean(pairs):+.2f} | {', '.join(f'{each:+.2f}' for each in pairs)}")
        assert set(re.findall(r"^\| [^|]+ \| (\d.*) \|$", section, re.MULTILINE)) == expected, title
