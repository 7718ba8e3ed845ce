"""A finished search as Markdown: its table, and the learning curve of its baseline.

python benchmarks/search_table.py runs/camvid
"""

import argparse
import json
from pathlib import Path
from typing import Any

from imachsr.config.schema import ConfigError
from imachsr.report.table import load_summary, rows


def search_table(folder: Path) -> str:
    summary: dict[str, Any] = load_summary(folder)
    metric = summary["metric"]
    lines = [f"| trial | {metric} | difference | epochs | state | configuration |", "|---|---|---|---|---|---|"]
    for row in rows(summary):
        value = "" if row.value is None else f"{row.value:.2f}"
        difference = "" if row.difference is None else f"{row.difference:+.2f}"
        what = ": ".join(part for part in (row.arm, row.settings) if part)
        lines.append(f"| {row.number} | {value} | {difference} | {row.epochs} | {row.state} | {row.error or what} |")
    curve = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    values = [f"{row[metric]:.2f}" for row in sorted(curve, key=lambda row: row["epoch"]) if row["trial"] == summary["baseline"]]
    lines += ["", f"Baseline, {metric} after each epoch: {', '.join(values)}."]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines += ["", f"{summary['wall_s'] / 60:.1f} minutes; {versions}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --output folder of a search that has ended")
    try:
        print(search_table(parser.parse_args().folder))
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
