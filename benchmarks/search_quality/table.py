"""The table: every configuration of a full factorial, trained with several seeds, with all its epochs.

    python -m benchmarks.search_quality.table build --out rows.jsonl --seeds 0,1 --shard 1/2   # goes on where it ended
    python -m benchmarks.search_quality.table pack rows.jsonl [more.jsonl ...]                 # table.json.gz, as it is shipped
    python -m benchmarks.search_quality.table show                                             # spread over configurations and over seeds

Each row is one call of `imachsr.train.loop.train`, scored on `select`; times are CPU seconds of its process, which a busy machine does not stretch
as it does the wall's. Seeds come in order: a table that was ended early holds whole seeds.
"""

import argparse
import functools
import gzip
import itertools
import json
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("table.json.gz")
METRIC = "select/miou"
EPOCHS = 9
AXES: dict[str, tuple[Any, ...]] = {
    "output_loss": ("cross_entropy", "dice"),
    "augmentation": ("weak", "strong"),
    "optimizer.batch_size": (4, 8, 16),
    "optimizer.lr": (1e-3, 3e-3, 1e-2, 3e-2),
    "method.loss": ("prototype", "infonce", "dice"),
    "method.alpha": (0.1, 2.0, 40.0),
}
# What the values of a knob that is no setting itself stand for.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "augmentation": {
        "weak": {"augment.scale": [1.0, 1.0], "augment.jitter": 0.0},
        "strong": {"augment.scale": [0.75, 1.5], "augment.jitter": 0.2},
    }
}
BASE: dict[str, Any] = {
    "data": {"kind": "scenes", "size": [48, 64], "num_train": 96, "num_val": 1, "num_test": 1},
    "model": {"import": "benchmarks.search_quality.net:TinyUNet"},
    "method": {"standard": {"kind": "stage", "max_taps": 3}, "beta": 0.0, "heterogeneity": "off"},
    "optimizer": {"epochs": EPOCHS},
    "compute": {"device": "cpu", "threads": 1, "loader_workers": 0},
}
SELECTION: dict[str, Any] = {"fraction": 0.5, "blocks": 1, "guard": 0}
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration.

    Attributes:
        values: Dotted settings.
        curves: Of each seed, the metric by epoch (percent); shorter than the others' where the training diverged.
        epoch_s: Of each seed, CPU seconds by epoch; the first one's hold the building of the net.
    """

    values: Values
    curves: tuple[tuple[float, ...], ...]
    epoch_s: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All cells, in the order of :func:`grid`, and what they were measured with."""

    axes: dict[str, tuple[Any, ...]]
    epochs: int
    cells: tuple[Cell, ...]
    about: dict[str, Any]


def grid(axes: Mapping[str, Sequence[Any]] | None = None) -> list[Values]:
    """Every combination; of the benchmark's own axes by default."""
    axes = AXES if axes is None else axes
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def settings(values: Values) -> dict[str, Any]:
    """Dotted settings of a configuration."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= SETTINGS[key][value] if key in SETTINGS else {key: value}
    return found


def run_row(number: int, values: Values, seed: int) -> dict[str, Any]:
    """Train one configuration with one seed."""
    from imachsr.config.load import make_run
    from imachsr.data.splits import Selection
    from imachsr.train.loop import train

    run = make_run({"seed": seed, **BASE}, settings(values))
    began, marks, scores = time.process_time(), [], []

    def report(row: Mapping[str, Any]) -> None:
        marks.append(time.process_time())
        scores.append(round(float(row[METRIC]), 3))

    taps: tuple[str, ...] = ()
    error = None
    try:
        taps = train(run, evaluate_on="select", selection=Selection(**SELECTION), report=report).taps
    except FloatingPointError as found:
        error = str(found)
    seconds = [round(after - before, 4) for before, after in zip([began, *marks], marks, strict=False)]
    return {"cell": number, "seed": seed, "values": values, "curve": scores, "epoch_s": seconds, "taps": taps, "error": error}


def build(path: Path, *, seeds: Sequence[int], shard: tuple[int, int], until: float) -> None:
    """Append the rows that neither this file nor another one beside it holds, those of the first seed first.

    Args:
        path: JSON lines.
        seeds: In this order.
        shard: (I, N), 1-based: of each seed, this process begins with every N-th row, and then helps with what is left.
        until: Time, seconds since the epoch, after which no further row begins.
    """
    import torch

    from imachsr.data.scenes import Scenes

    torch.set_num_threads(1)
    Scenes.load = functools.cache(Scenes.load)  # type: ignore[method-assign]  # drawn once, not for every row
    index, count = shard
    configurations = list(enumerate(grid()))
    own, others = configurations[index - 1 :: count], [each for each in configurations if each[0] % count != index - 1]
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(text and not text.endswith("\n")))
        for seed, (number, values) in itertools.product(seeds, own + others):
            done = {(row["cell"], row["seed"]) for row in read_rows(sorted(path.parent.glob("*.jsonl")))}
            if (number, seed) in done:
                continue
            if time.time() > until:
                return
            row = run_row(number, values, seed)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{len(done) + 1} rows; cell {number} seed {seed}: {row['curve'][-1:]} {sum(row['epoch_s']):.1f} s", flush=True)


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of all files, the first of each (cell, seed); a last line that was cut off is left out."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            found.setdefault((row["cell"], row["seed"]), row)
    return list(found.values())


def pack(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write the rows of the seeds that all configurations have, as one compressed file that is the same byte for byte for the same rows."""
    import torch

    by_key = {(row["cell"], row["seed"]): row for row in rows}
    wanted = grid()
    seeds = [seed for seed in sorted({seed for _, seed in by_key}) if all((number, seed) in by_key for number in range(len(wanted)))]
    if not seeds:
        raise SystemExit(f"one seed must be whole, but the rows hold {len(by_key)} of {len(wanted)} configurations")
    kept = [[by_key[number, seed] for seed in seeds] for number in range(len(wanted))]
    for number, group in enumerate(kept):
        for row in group:
            if row["values"] != wanted[number]:
                raise SystemExit(f"row of cell {number} must be of {wanted[number]}, but is of {row['values']}; it was built with other axes")
    about = {"base": BASE, "selection": SELECTION, "metric": METRIC, "seeds": seeds, "torch": torch.__version__, "machine": platform.machine()}
    content = {
        "about": about,
        "epochs": EPOCHS,
        "axes": AXES,
        "curves": [[row["curve"] for row in group] for group in kept],
        "epoch_s": [[row["epoch_s"] for row in group] for group in kept],
        "taps": [group[0]["taps"] for group in kept],
    }
    target.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 9, mtime=0))


def load(path: Path = FILE) -> Table:
    """The table that was shipped."""
    content = json.loads(gzip.decompress(path.read_bytes()))
    axes = {key: tuple(values) for key, values in content["axes"].items()}
    cells = [
        Cell(values=values, curves=tuple(map(tuple, curves)), epoch_s=tuple(map(tuple, seconds)))
        for values, curves, seconds in zip(grid(axes), content["curves"], content["epoch_s"], strict=True)
    ]
    return Table(axes=axes, epochs=content["epochs"], cells=tuple(cells), about=content["about"])


def spread(rows: Sequence[tuple[Values, Sequence[float]]], axes: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Standard deviations of the last epoch's value: over seeds (pooled), over configurations' means, and each axis's main effect."""
    means = [(values, statistics.mean(last)) for values, last in rows]
    found = {
        "seeds": statistics.mean([statistics.variance(last) for _, last in rows if len(last) > 1] or [0.0]) ** 0.5,
        "configurations": statistics.pstdev([mean for _, mean in means]),
    }
    for key, choices in axes.items():
        groups = [[mean for values, mean in means if values[key] == choice] for choice in choices]
        found[key] = statistics.pstdev([statistics.mean(group) for group in groups if group])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("--out", type=Path, required=True)
    building.add_argument("--seeds", default="0,1")
    building.add_argument("--shard", default="1/1", help="I/N")
    building.add_argument("--hours", type=float, default=24.0, help="no row begins later")
    packing = commands.add_parser("pack")
    packing.add_argument("rows", type=Path, nargs="+")
    packing.add_argument("--to", type=Path, default=FILE)
    commands.add_parser("show")
    arguments = parser.parse_args()
    if arguments.command == "build":
        index, _, count = arguments.shard.partition("/")
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        build(arguments.out, seeds=seeds, shard=(int(index), int(count)), until=time.time() + 3600 * arguments.hours)
    elif arguments.command == "pack":
        pack(read_rows(arguments.rows), arguments.to)
    else:
        table = load()
        rows = [(cell.values, [curve[-1] for curve in cell.curves if len(curve) == table.epochs]) for cell in table.cells]
        for name, value in spread([row for row in rows if row[1]], table.axes).items():
            print(f"{name:28} {value:.2f}")


if __name__ == "__main__":
    main()
