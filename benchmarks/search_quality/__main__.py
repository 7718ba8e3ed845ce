"""Quality of the search, replayed on the table.

    python -m benchmarks.search_quality                     # all of it: about ten minutes on one core
    python -m benchmarks.search_quality --repeats 6         # for a look
    python -m benchmarks.search_quality --only random,ours  # some contestants
    python -m benchmarks.search_quality --draws search      # one of the table's seeds for all trials of a search, instead of one a trial
    python -m benchmarks.search_quality --null              # only how often a confirmation calls a difference where there is none

Writes search_quality.svg and prints tables. The table of trainings is shipped; benchmarks/search_quality/table.py builds another.
"""

import argparse
import time
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.search_quality import measures, null
from benchmarks.search_quality.contestants import ENTRIES, GRACE, REDUCTION
from benchmarks.search_quality.plot import Line, figure
from benchmarks.search_quality.simulate import Draws, Problem, Replay, describe, replay
from benchmarks.search_quality.table import FILE, load


def number(estimate: measures.Estimate, digits: int = 2) -> str:
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def compare(found: dict[str, list[Replay]], problem: Problem, *, reference: str = "random", ours: str = "ours") -> tuple[str, str]:
    """Tables in Markdown, and the plot."""
    grid = measures.grid_of(found[reference])
    regrets = {name: measures.regrets_on(each, problem, grid) for name, each in found.items()}
    third = len(grid) // 3 - 1
    lines = [
        "| search | final regret | regret at a third | time to random's final best: speed-up | missed, % | reaches its repeat's, %; median ratio |"
        " trials, whole, repeated |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in regrets.items():
        faster = measures.speedup(each, regrets[reference], grid)
        median, share = measures.reached(each, regrets[reference], grid)
        counts = describe(found[name])
        at_third = measures.final(each[:, : third + 1])
        lines.append(
            f"| {ENTRIES[name].title} | {number(measures.final(each))} | {number(at_third)} | {number(faster.ratio)} | {100 * faster.missed:.0f} | "
            f"{100 * share:.0f}; {median:.1f} | {counts['trials']:g}, {counts['whole']:g}, {counts['repeated']:g} |"
        )
    if ours in regrets:
        lines += ["", f"| P({ENTRIES[ours].title} beats ...) | at a third of the time | at the end |", "|---|---|---|"]
        for name, each in regrets.items():
            if name != ours:
                early, late = measures.beats(regrets[ours], each, third), measures.beats(regrets[ours], each)
                lines.append(f"| {ENTRIES[name].title} | {number(early)} | {number(late)} |")
    drawn = {}
    for name, each in regrets.items():
        middle, low, high = measures.curve(each)
        drawn[ENTRIES[name].title] = Line(middle=list(middle), low=list(low), high=list(high))
    return "\n".join(lines), figure(list(grid), drawn, f"Interquartile mean of {len(found[reference])} searches, band: bootstrap 95 %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=FILE)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--budget", type=float, default=0.1, help="share of all cells, in epochs")
    parser.add_argument("--startup", type=float, default=None, help="seconds before a trial's first epoch; the table's median by default")
    parser.add_argument("--only", default=",".join(ENTRIES), help="some of " + ", ".join(ENTRIES))
    parser.add_argument("--draws", choices=get_args(Draws), default="trial", help="what draws one of the table's seeds")
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--null", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1])
    arguments = parser.parse_args()
    table = load(arguments.table)
    if not arguments.null:
        problem = Problem(table, startup_s=arguments.startup)
        budget = problem.budget(arguments.budget)
        print(
            f"{len(table.cells)} configurations, {len(table.cells[0].curves)} seeds, {table.epochs} epochs; budget {budget} epochs, "
            f"{arguments.workers} workers, start-up {problem.startup_s:.2f} s, epoch {np.median(problem.epoch_s):.2f} s, "
            f"{arguments.repeats} repeats, rungs from epoch {GRACE} by {REDUCTION}\n"
        )
        found: dict[str, list[Replay]] = {}
        for name in arguments.only.split(","):
            began = time.perf_counter()
            makes = [ENTRIES[name].make(table, seed) for seed in range(arguments.repeats)]
            found[name] = [
                replay(make, problem, budget=budget, workers=arguments.workers, seed=seed, draws=arguments.draws) for seed, make in enumerate(makes)
            ]
            print(f"{name}: {(time.perf_counter() - began) / arguments.repeats:.2f} s a search", flush=True)
        text, drawn = compare(found, problem)
        print(f"\n{text}\n")
        if arguments.draws == "trial":
            (arguments.out / "search_quality.svg").write_text(drawn, encoding="utf-8")
    if arguments.null or arguments.draws == "trial":
        print(null.report(table, studies=arguments.studies))


if __name__ == "__main__":
    main()
