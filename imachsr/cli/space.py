"""The command that shows a search's space: its knobs, its size, and samples of it."""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from imachsr.cli.kinds import check_kind
from imachsr.cli.options import Json
from imachsr.console import plain, print_json

if TYPE_CHECKING:
    from imachsr.search.space import Search

# So many random configurations tell a share of a half to two points.
_DRAWN = 2000


def space(
    config: Annotated[Path, typer.Argument(help="YAML file of a search, such as search_spaces/quickstart.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value, such as sampler.kind=gp.", show_default=False)] = None,
    sample: Annotated[int, typer.Option(help="Configurations to draw, >= 0.", min=0)] = 5,
    seed: Annotated[int, typer.Option(help="Of the configurations that are drawn, >= 0.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Check a search's space, and show its knobs, its size, what constraints leave of it, and random samples.

    Neither data nor Ray are needed.
    """
    from imachsr.search.space import load_search

    check_kind(config, "search")
    found = described(load_search(config, overrides or []), sample=sample, seed=seed)
    if as_json:
        return print_json(found)
    table = Table("knob", Column("values", overflow="fold"), Column("exists when", overflow="fold"), "drawn")
    for knob in found["knobs"]:
        table.add_row(knob["key"], knob["values"], knob["when"] or "always", "by itself" if knob["independent"] else "")
    plain.print(table)
    for line in _lines(found):
        plain.print(line, soft_wrap=True)
    if found["sample"]:
        plain.print(_sample_table(found))
    return None


def described(search: "Search", *, sample: int, seed: int) -> dict[str, Any]:
    """What there is to tell of a space, as plain values."""
    from imachsr.search.samplers import independent, notes
    from imachsr.search.space import draws
    from imachsr.search.space.conditions import words
    from imachsr.search.space.reach import grid_size, ungridded

    alone = independent(search)
    drawn = list(itertools.islice(draws(search, seed), max(_DRAWN, sample))) if search.space else []
    kept = [values for values, excess in drawn if not excess]
    broken = [key for _, excess in drawn for key in excess]
    return {
        "name": search.name,
        "sampler": search.sampler.kind,
        "knobs": [
            {
                "key": key,
                "values": parameter.domain,
                "when": words(parameter.when),
                "sets": sorted({target for settings in parameter.targets(key) for target in settings}) if parameter.is_alias else [],
                "independent": key in alone,
            }
            for key in search.order
            for parameter in [search.space[key]]
        ],
        "constraints": [constraint.words for constraint in search.constraints],
        "arms": [arm.name for arm in search.arms],
        "points": len(search.points),
        "most_at_once": max(map(len, kept), default=0),
        "endless": ungridded(search),
        "grid": grid_size(search) if search.space else 0,
        "drawn": len(drawn),
        "rejected": round(1 - len(kept) / len(drawn), 4) if drawn else 0.0,
        "rejected_by": {key: broken.count(key) for key in dict.fromkeys(broken)},
        "notes": notes(search),
        "sample": kept[:sample],
    }


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _lines(found: dict[str, Any]) -> list[str]:
    """What the table of knobs does not say."""
    endless = len(found["endless"])
    size = f"{found['grid']:,} configurations" if found["grid"] is not None else f"infinite, {endless} real range{'s' if endless > 1 else ''}"
    lines = [f"{len(found['knobs'])} knobs, at most {found['most_at_once']} at once; {size}"]
    lines.append(f"before anything is sampled: {', '.join([*found['arms'], *([f'{count} points'] if (count := found['points']) else [])])}")
    lines += [f"constraints.{index}: {words}" for index, words in enumerate(found["constraints"])]
    if found["rejected"]:
        by = ", ".join(f"{key} {count / found['drawn']:.1%}" for key, count in found["rejected_by"].items())
        lines.append(f"{found['rejected']:.1%} of {found['drawn']:,} random configurations break a constraint and are drawn again ({by})")
    return [*lines, *found["notes"]]


def _sample_table(found: dict[str, Any]) -> Table:
    keys = [knob["key"] for knob in found["knobs"]]
    table = Table(*(Column(key.removeprefix("method."), overflow="fold") for key in keys), title=f"{len(found['sample'])} random samples")
    for values in found["sample"]:
        table.add_row(*(_value(values[key]) if key in values else "" for key in keys))
    return table
