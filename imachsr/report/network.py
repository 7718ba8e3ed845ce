"""The network as a drawing: its candidate layers in execution order, and those that were supervised."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imachsr.config.schema import ConfigError

FILE, SCHEMA = "network.json", 1
Summary = Mapping[str, Any]
Layer = Mapping[str, Any]
_LEFT, _GAP, _TOP, _LEVEL = 74.0, 2.0, 6.0, 30.0
_HALVING = 8.0
"""Pixels by which a box is higher than one of half its resolution."""
_THIN, _LEAST, _MOST = 3.0, 4.0, 24.0
"""Width of the box with the fewest channels; least and most by which that with the most is wider."""
_SPACE = 1060.0
"""What all boxes together take where they can: the width of the page beside the names of the levels."""
_MARK = 9.0


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where a layer is drawn.

    Attributes:
        layer: Of network.json.
        x: Left side.
        y: Upper side.
        width: Of the box.
        height: Of the box.
    """

    layer: Layer
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A layer that the drawn trial supervises.

    Attributes:
        place: Number in the drawing, from 1 in the order of the taps.
        loss: Kind of the side loss, "" where it is not known, or there is none.
        value: Of the side loss, unweighted, at the last epoch; None likewise.
    """

    place: int
    loss: str
    value: float | None


def load_networks(folder: Path) -> dict[str, Any]:
    """Networks by key; {} for a search that wrote none.

    Raises:
        ConfigError: If network.json is broken, or of another version.
    """
    path = folder / FILE
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ConfigError(f"{path} must be JSON, but: {error}") from None
    found = held.get("schema") if isinstance(held, dict) else type(held).__name__
    if not isinstance(held, dict) or held.get("schema") != SCHEMA or not isinstance(held.get("networks"), dict):
        raise ConfigError(f"{path} must have schema {SCHEMA}, but has {found!r}; it was written by something else, or another version of imachsr")
    return dict(held["networks"])


def network(folder: Path, summary: Summary, curves: Mapping[int, Sequence[Mapping[str, Any]]]) -> tuple[str, str]:
    """A note and the drawing, of the network of the best trial; two empty texts for a search that wrote none.

    Raises:
        ConfigError: As :func:`load_networks`.
    """
    networks = load_networks(folder)
    by_number = {trial["number"]: trial for trial in summary["trials"]}
    best = by_number.get(summary["best"])
    key = _key_of(summary, best, networks)
    if key is None:
        return "", ""
    found = networks[key]
    same = [trial for trial in summary["trials"] if _own_key(trial, networks) == key and trial["taps"]]
    taps = _supervised(best, curves) if best is not None and _own_key(best, networks) == key else {}
    boxes = _boxes(found["layers"])
    tried = {str(layer["address"]): [trial for trial in same if layer["address"] in trial["taps"]] for layer in found["layers"]}
    note = _note(summary, found, best, taps, others=len({_own_key(trial, networks) for trial in summary["trials"]} - {None, key}))
    return html.escape(note), _key(bool(taps)) + _svg(found, boxes, taps, tried, len(same), summary) + _list(found, taps) + _table(found, taps, tried)


def _key_of(summary: Summary, best: Mapping[str, Any] | None, networks: Mapping[str, Any]) -> str | None:
    """Of the best trial's network; where that supervises nothing, or is not there, the one that most trials have."""
    if best is not None and (own := _own_key(best, networks)) is not None:
        return own
    keys = [key for trial in summary["trials"] if (key := _own_key(trial, networks)) is not None]
    return max(keys, key=keys.count, default=None)


def _own_key(trial: Mapping[str, Any], networks: Mapping[str, Any]) -> str | None:
    """Of a trial's network; of a trial that an older version ran, the only one there is, if it has the layers."""
    if trial.get("network") in networks:
        return str(trial["network"])
    if trial.get("network") is not None or not trial["taps"] or len(networks) != 1:
        return None
    ((key, found),) = networks.items()
    return str(key) if set(trial["taps"]) <= {layer["address"] for layer in found["layers"]} else None


def _supervised(trial: Mapping[str, Any], curves: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Supervised]:
    losses, last = trial.get("losses") or [], (curves.get(trial["number"]) or [{}])[-1]
    found = {}
    for place, address in enumerate(trial["taps"]):
        value = last.get(f"tap/{address}/side")
        found[address] = Supervised(
            place=place + 1, loss=losses[place] if place < len(losses) else "", value=float(value) if isinstance(value, (int, float)) else None
        )
    return found


def _note(summary: Summary, found: Mapping[str, Any], best: Mapping[str, Any] | None, taps: Mapping[str, Supervised], *, others: int) -> str:
    size = "x".join(map(str, found["input_size"]))
    text = (
        f"{found['name']} at {size}: the {len(found['layers'])} layers that can be supervised, in the order in which they run. The higher a box, the "
        "finer its resolution; the wider, the more channels; it lies the lower, the coarser it is."
    )
    if taps and best is not None:
        text += f" Numbered: what trial {best['number']}, the best, supervises."
    elif best is not None and not best["taps"]:
        text += f" The best trial, {best['number']}, supervises none of them."
    if others:
        text += f" The search trained {others + 1} networks; this is that of {'the best trial' if taps else 'most trials'}."
    return text


def _boxes(layers: Sequence[Layer]) -> list[Box]:
    """From left to right; the level is the stride, in halvings of the resolution."""
    channels = [math.log2(max(1, layer["channels"])) for layer in layers]
    levels = [math.log2(max(1.0, float(layer["stride"]))) for layer in layers]
    least, most, low, deep = min(channels), max(channels), min(levels), max(levels)
    shares = [(wide - least) / (most - least) if most > least else 0.5 for wide in channels]
    more = min(_MOST, max(_LEAST, (_SPACE - len(layers) * (_THIN + _GAP)) / max(1.0, sum(shares))))
    boxes, x = [], _LEFT
    for layer, share, level in zip(layers, shares, levels, strict=True):
        width = _THIN + more * share
        height = 10.0 + _HALVING * (deep - level)
        middle = _TOP + (10.0 + _HALVING * (deep - low)) / 2 + _LEVEL * (level - low)
        boxes.append(Box(layer=layer, x=x, y=middle - height / 2, width=width, height=height))
        x += width + _GAP
    return boxes


def _svg(
    found: Mapping[str, Any],
    boxes: Sequence[Box],
    taps: Mapping[str, Supervised],
    tried: Mapping[str, Sequence[Mapping[str, Any]]],
    count: int,
    summary: Summary,
) -> str:
    width, height = boxes[-1].x + boxes[-1].width + 12, max(box.y + box.height for box in boxes) + 10
    line = " ".join(f"{box.x + box.width / 2:.1f},{box.y + box.height / 2:.1f}" for box in boxes)
    parts = [*_levels(boxes, width), f"<polyline class='axis' points='{line}'/>"]
    for place, box in enumerate(boxes):
        address = str(box.layer["address"])
        tap = taps.get(address)
        kind = "layer tap" if tap else "layer tried" if tried[address] else "layer"
        words = html.escape(_words(box.layer, tap, tried[address], count, summary), quote=True)
        parts.append(
            f"<rect class='{kind}' data-layer='{place}' data-words='{words}' x='{box.x:.1f}' y='{box.y:.1f}' width='{box.width:.1f}' "
            f"height='{box.height:.1f}' rx='1.5'/>"
        )
    marks, top = _marks(boxes, taps)
    parts += marks
    label = f"{found['name']}: {len(boxes)} layers, {len(taps)} of them supervised, as in the table below. Arrow keys go from layer to layer"
    label = html.escape(label, quote=True)
    size = f"width='{width:.0f}' height='{height - top:.0f}' viewBox='0 {top:.0f} {width:.0f} {height - top:.0f}'"
    return (
        f"<div class='wide'><svg id='layers' tabindex='0' role='img' aria-label='{label}' {size}>{''.join(parts)}</svg></div>"
        "<p id='layer-words' class='note' aria-live='polite'></p>"
    )


def _levels(boxes: Sequence[Box], width: float) -> list[str]:
    """A line and the resolution for each that several layers share."""
    found, last = [], -math.inf
    rows = {(box.layer["height"], box.layer["width"]): box.y + box.height / 2 for box in reversed(boxes)}
    for (high, wide), y in sorted(rows.items(), key=lambda row: row[1]):
        if y - last < 14:
            continue
        last = y
        found.append(f"<path class='axis stopped' d='M{_LEFT - 6:.0f},{y:.1f}H{width:.0f}'/><text x='2' y='{y + 4:.1f}'>{high} x {wide}</text>")
    return found


def _marks(boxes: Sequence[Box], taps: Mapping[str, Supervised]) -> tuple[list[str], float]:
    """A numbered disc above each supervised layer, one that would cover another going higher; and where the drawing begins."""
    found: list[str] = []
    placed: list[tuple[float, float]] = []
    for box in boxes:
        tap = taps.get(str(box.layer["address"]))
        if tap is None:
            continue
        x, y = box.x + box.width / 2, box.y - _MARK - 3
        while any(abs(x - a) < 2 * _MARK + 1 and abs(y - b) < 2 * _MARK + 1 for a, b in placed):
            y -= 2 * _MARK + 2
        placed.append((x, y))
        found.append(
            f"<path class='stem' d='M{x:.1f},{y:.1f}V{box.y:.1f}'/><circle class='disc' cx='{x:.1f}' cy='{y:.1f}' r='{_MARK}'/>"
            f"<text class='number' x='{x:.1f}' y='{y + 4:.1f}' text-anchor='middle'>{tap.place}</text>"
        )
    return found, min([0.0, *(y - _MARK - 4 for _, y in placed)])


def _words(layer: Layer, tap: Supervised | None, tried: Sequence[Mapping[str, Any]], count: int, summary: Summary) -> str:
    lines = [
        f"{layer['address']} ({layer['cls']})",
        f"{layer['channels']} channels, {layer['height']} x {layer['width']}, stride {layer['stride']:.3g}",
        f"{layer['params']:,} parameters",
    ]
    if tap is not None:
        lines.append(f"supervised: {_loss(tap)}")
    values = [trial["value"] for trial in tried if trial["state"] == "COMPLETE" and trial["value"] is not None]
    best = (max if summary["mode"] == "max" else min)(values, default=None)
    if count:
        lines.append(f"supervised in {len(tried)} of {count} trials" + ("" if best is None else f", the best with {summary['metric']} {best:.4g}"))
    return "\n".join(lines)


def _loss(tap: Supervised) -> str:
    if tap.value is None:
        return tap.loss or "entropy only"
    return f"{tap.loss or 'side loss'} {tap.value:.3g}"


def _key(has_taps: bool) -> str:
    others = [("tried", "by other trials" if has_taps else "supervised by some trial"), ("never", "by none")]
    kinds = [("tap", "supervised by the best"), *others] if has_taps else others
    spans = [f"<span><span class='swatch {kind}'></span>{text}</span>" for kind, text in kinds]
    return f"<p class='key'>{''.join(spans)}</p>"


def _list(found: Mapping[str, Any], taps: Mapping[str, Supervised]) -> str:
    layers = {layer["address"]: layer for layer in found["layers"]}
    lines = [
        f"<li><code>{html.escape(address)}</code> {html.escape(_loss(tap))}, {layer['channels']} channels at {layer['height']} x {layer['width']}"
        for address, tap in taps.items()
        if (layer := layers.get(address)) is not None
    ]
    return f"<ol class='taps'>{''.join(lines)}</ol><p class='note'>Losses of the last epoch, not weighted.</p>" if lines else ""


def _table(found: Mapping[str, Any], taps: Mapping[str, Supervised], tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The same as text."""
    lines = []
    for layer in found["layers"]:
        address = str(layer["address"])
        numbers = (layer["channels"], f"{layer['height']} x {layer['width']}", f"{layer['stride']:.3g}", f"{layer['params']:,}", len(tried[address]))
        cells = "".join(f"<td class=n>{each}" for each in numbers)
        supervised = html.escape(_loss(taps[address])) if address in taps else ""
        lines.append(f"<tr><td><code>{html.escape(address)}</code><td>{html.escape(str(layer['cls']))}{cells}<td>{supervised}</tr>")
    head = "<th>layer<th>class" + "".join(f"<th class=n>{each}" for each in ("channels", "h x w", "stride", "parameters", "trials"))
    return (
        f"<details><summary>The layers as a table</summary><div class='wide tall'><table><thead><tr>{head}<th>best trial</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )
