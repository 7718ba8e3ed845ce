"""Three small panels of how a ratio grows, as SVG, over logarithmic axes: written by `step_cost.py --growth --out FOLDER`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, TOP = 300, 220, 66, 34


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: where, its median and its quartiles."""

    x: float  # > 0
    low: float
    middle: float
    high: float


def figure(panels: dict[str, Sequence[Point]], title: str) -> str:
    """Panels side by side on one scale: a dot and a line at the medians, a bar from quartile to quartile, a dashed line at 1."""
    values = [value for points in panels.values() for point in points for value in (point.low, point.high)]
    bottom, top = min(1.0, *values), max(1.0, *values)
    margin = 0.05 * (top - bottom) or 0.05
    scale = bottom - margin, top + margin
    wide, high = LEFT + WIDTH * len(panels), TOP + HEIGHT + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        f'<text x="{wide / 2:.0f}" y="18" text-anchor="middle" font-size="13">{title}</text>',
        f'<text transform="translate(14 {TOP + HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">time of a step, ratio to output only</text>',
    ]
    for index, (name, points) in enumerate(panels.items()):
        parts += _panel(name, sorted(points, key=lambda point: point.x), LEFT + index * WIDTH, scale, is_first=index == 0)
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, points: Sequence[Point], left: float, scale: tuple[float, float], *, is_first: bool) -> list[str]:
    inner, low, high = WIDTH - 24, *scale
    first, last = points[0].x, points[-1].x

    def across(x: float) -> float:
        return left + 16 + (inner - 32) * (math.log(x / first) / math.log(last / first) if last > first else 0.5)

    def up(y: float) -> float:
        return TOP + HEIGHT * (high - y) / (high - low)

    parts = [
        f'<rect x="{left}" y="{TOP}" width="{inner}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<line x1="{left}" x2="{left + inner}" y1="{up(1):.1f}" y2="{up(1):.1f}" stroke="#999" stroke-dasharray="4 3"/>',
        f'<text x="{left + inner / 2:.0f}" y="{TOP + HEIGHT + 36}" text-anchor="middle">{name}</text>',
    ]
    if is_first:
        for step in range(5):
            y = low + (high - low) * step / 4
            parts.append(f'<text x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end" font-size="11">{y:.3f}</text>')
    path = " ".join(f"{across(point.x):.1f},{up(point.middle):.1f}" for point in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="#1f5fa8"/>')
    for point in points:
        x = f"{across(point.x):.1f}"
        parts.append(f'<line x1="{x}" x2="{x}" y1="{up(point.low):.1f}" y2="{up(point.high):.1f}" stroke="#1f5fa8" stroke-width="5" opacity="0.3"/>')
        parts.append(f'<circle cx="{x}" cy="{up(point.middle):.1f}" r="3" fill="#1f5fa8"/>')
        parts.append(f'<text x="{x}" y="{TOP + HEIGHT + 16}" text-anchor="middle" font-size="11">{point.x:g}</text>')
    return parts
