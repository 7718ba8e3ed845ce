"""Regret against time as SVG: a line at the interquartile mean, a band over its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, TOP, LEGEND = 620, 340, 60, 34, 250
COLOURS = ("#777777", "#c77c11", "#8a3fb0", "#2b8a3e", "#1f5fa8", "#c2255c", "#0b7285", "#5c940d")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One contestant's line and band."""

    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def figure(times: Sequence[float], lines: Mapping[str, Line], title: str) -> str:
    """Lines over the time in parts of its end, on a logarithmic scale of regret whose floor is a hundredth of a point."""
    values = [max(value, 0.01) for line in lines.values() for value in (*line.low, *line.high)]
    low, high = math.log10(min(values)), math.log10(max(values))
    span = max(high - low, 1e-6)

    def across(time: float) -> float:
        return LEFT + WIDTH * time / times[-1]

    def up(value: float) -> float:
        return TOP + HEIGHT * (high - math.log10(max(value, 0.01))) / span

    wide, tall = LEFT + WIDTH + LEGEND, TOP + HEIGHT + 48
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{tall}" fill="white"/>',
        f'<text x="{LEFT + WIDTH / 2:.0f}" y="18" text-anchor="middle" font-size="13">{title}</text>',
        f'<text transform="translate(14 {TOP + HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">regret, points of mIoU</text>',
        f'<text x="{LEFT + WIDTH / 2:.0f}" y="{TOP + HEIGHT + 38}" text-anchor="middle">simulated time, share of the budget of random search</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
    ]
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        if low <= math.log10(tick) <= high:
            parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end" font-size="11">{tick:g}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = across(share * times[-1])
        parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="11">{share:g}</text>')
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        upper = [f"{across(time):.1f},{up(value):.1f}" for time, value in zip(times, line.high, strict=True)]
        lower = [f"{across(time):.1f},{up(value):.1f}" for time, value in zip(times, line.low, strict=True)]
        middle = " ".join(f"{across(time):.1f},{up(value):.1f}" for time, value in zip(times, line.middle, strict=True))
        parts.append(f'<polygon points="{" ".join([*upper, *lower[::-1]])}" fill="{colour}" opacity="0.12"/>')
        parts.append(f'<polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        y = TOP + 14 + 20 * index
        x = LEFT + WIDTH + 14
        parts.append(f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
