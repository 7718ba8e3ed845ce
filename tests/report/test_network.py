import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from imachsr.report.html import write_report
from imachsr.report.network import network
from imachsr.report.table import load_summary
from tests.report.folders import BASELINE, make, trial

EVIL = "</svg><script>alert(1)</script><b x='\"&"
SHAPES = [(16, 2), (64, 4), (256, 8), (512, 16), (128, 8), (32, 4)]
"""Channels and stride: down and up again."""


def layer(place: int, channels: int, stride: int) -> dict[str, Any]:
    return {
        "address": f"block{place}",
        "cls": "Conv2d",
        "channels": channels,
        "height": 64 // stride,
        "width": 96 // stride,
        "stride": float(stride),
        "depth": 1,
        "params": 1000 * place + 7,
    }


U = {"name": "Unet", "input_size": [64, 96], "layers": [layer(place, *shape) for place, shape in enumerate(SHAPES)]}
FLAT = {"name": "Flat", "input_size": [64, 96], "layers": [layer(place, 8, 1) for place in range(2)]}


def searched(folder: Path, trials: list[dict[str, Any]], networks: dict[str, Any] | None = None, *, best: int | None = 2) -> Path:
    """A search whose trials name their networks and losses."""
    made = make(folder, [{key: value for key, value in each.items() if key not in ("network", "losses")} for each in trials], best=best)
    summary = json.loads((made / "summary.json").read_text())
    for each, given in zip(summary["trials"], trials, strict=True):
        each |= {key: given[key] for key in ("network", "losses") if key in given}
    (made / "summary.json").write_text(json.dumps(summary))
    (made / "network.json").write_text(json.dumps({"schema": 1, "networks": networks or {"u": U}}))
    return made


def with_taps(number: int, *taps: str, key: str = "u", **more: Any) -> dict[str, Any]:
    return {**trial(number, taps=list(taps), **more), "network": key, "losses": ["dice", "hsic"][: len(taps)]}


BASE = {**BASELINE, "network": None, "losses": []}
TRIALS = [BASE, with_taps(1, "block2", "block4"), with_taps(2, "block1", "block4", value=40.0), with_taps(3, "block4", value=20.0)]


def drawn(folder: Path, curves: dict[int, list[dict[str, Any]]] | None = None) -> tuple[str, str]:
    return network(folder, load_summary(folder), curves or {})


def boxes(text: str) -> list[dict[str, str]]:
    found = re.search(r"<svg id='layers'.*?</svg>", text, re.S)
    assert found is not None
    return [dict(each.attrib) for each in ET.fromstring(found[0]).iter("rect")]


def test_boxes_stand_in_order_the_wider_for_channels_the_higher_and_upper_for_resolution(tmp_path: Path) -> None:
    found = boxes(drawn(searched(tmp_path / "s", TRIALS))[1])
    assert [each["data-words"].split()[0] for each in found] == [f"block{place}" for place in range(len(SHAPES))]
    number = [{key: float(each[key]) for key in ("x", "y", "width", "height")} for each in found]
    assert all(a["x"] + a["width"] <= b["x"] for a, b in pairwise(number))
    for (one, a), (other, b) in ((p, q) for p in zip(SHAPES, number, strict=True) for q in zip(SHAPES, number, strict=True)):
        assert (one[0] < other[0]) == (a["width"] < b["width"])
        assert (one[1] < other[1]) == (a["height"] > b["height"]) == (a["y"] + a["height"] / 2 < b["y"] + b["height"] / 2)


def test_taps_of_the_best_are_numbered_with_their_loss_and_those_of_others_shown(tmp_path: Path) -> None:
    note, text = drawn(searched(tmp_path / "s", TRIALS), {2: [{"tap/block1/side": 9.0}, {"tap/block1/side": 1.25, "tap/block4/side": 0.5}]})
    assert [each["class"] for each in boxes(text)] == ["layer", "layer tap", "layer tried", "layer", "layer tap", "layer"]
    words = [each["data-words"] for each in boxes(text)]
    assert "supervised: dice 1.25" in words[1]
    assert "supervised: hsic 0.5" in words[4]
    assert "64 channels, 16 x 24, stride 4" in words[1]
    assert "1,007 parameters" in words[1]
    assert "supervised in 3 of 3 trials, the best with select/miou 40" in words[4]
    assert "supervised in 0 of 3 trials" in words[0]
    assert re.findall(r"<text class='number'[^>]*>(\d)</text>", text) == ["1", "2"]
    assert "trial 2, the best" in note


def test_a_loss_without_a_value_and_a_tap_without_a_loss_are_told(tmp_path: Path) -> None:
    _, text = drawn(searched(tmp_path / "s", [BASE, TRIALS[1], {**TRIALS[2], "losses": []}]))
    assert "supervised: entropy only" in boxes(text)[1]["data-words"]
    _, text = drawn(searched(tmp_path / "t", TRIALS))
    assert "supervised: dice supervised in 1 of 3 trials" in boxes(text)[1]["data-words"]  # XML makes a space of the end of a line


def test_marks_of_neighbours_do_not_cover_each_other_and_lie_inside(tmp_path: Path) -> None:
    many = {**U, "layers": [layer(place, 8, 1) for place in range(40)]}
    best = with_taps(2, "block3", "block4", "block5", "block6", value=40.0)
    _, text = drawn(searched(tmp_path / "s", [BASE, TRIALS[1], best], {"u": many}))
    discs = [(float(x), float(y)) for x, y in re.findall(r"<circle class='disc' cx='([-.\d]+)' cy='([-.\d]+)'", text)]
    assert len(discs) == 4
    assert all((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 >= 18**2 for a in discs for b in discs if a is not b)
    top = float(re.search(r"viewBox='0 ([-\d]+) ", text)[1])  # type: ignore[index]
    assert all(y - 9 >= top for _, y in discs)


def test_the_network_of_the_best_is_drawn_where_trials_have_several(tmp_path: Path) -> None:
    trials = [BASE, with_taps(1, "block1", key="flat"), with_taps(2, "block1", value=40.0), with_taps(3, "block1", key="flat")]
    folder = searched(tmp_path / "s", trials, {"flat": FLAT, "u": U})
    note, text = drawn(folder)
    assert len(boxes(text)) == len(SHAPES)
    assert "The search trained 2 networks; this is that of the best trial." in note
    assert "supervised in 1 of 1 trials" in boxes(text)[1]["data-words"]


def test_the_best_that_supervises_nothing_has_the_network_of_most_trials(tmp_path: Path) -> None:
    trials = [BASE, with_taps(1, "block1"), with_taps(2, "block1", key="flat"), with_taps(3, "block1")]
    note, text = drawn(searched(tmp_path / "s", trials, {"flat": FLAT, "u": U}, best=0))
    assert [each["class"] for each in boxes(text)] == ["layer", "layer tried", "layer", "layer", "layer", "layer"]
    assert "The best trial, 0, supervises none of them." in note


def test_trials_of_an_older_version_have_the_only_network_if_it_has_their_layers(tmp_path: Path) -> None:
    old = {key: value for key, value in TRIALS[2].items() if key not in ("network", "losses")}
    text = drawn(searched(tmp_path / "s", [BASE, TRIALS[1], old]), {2: [{"tap/block1/side": 1.25}]})[1]
    assert [each["class"] for each in boxes(text)] == ["layer", "layer tap", "layer tried", "layer", "layer tap", "layer"]
    assert "supervised: side loss 1.25 supervised in 1 of 2 trials" in boxes(text)[1]["data-words"]
    for name, other, networks in (("t", old, {"u": U, "flat": FLAT}), ("v", {**old, "taps": ["elsewhere"]}, None)):
        text = drawn(searched(tmp_path / name, [BASE, TRIALS[1], other], networks))[1]
        assert "layer tap" not in {each["class"] for each in boxes(text)}


def test_a_text_says_the_same(tmp_path: Path) -> None:
    text = drawn(searched(tmp_path / "s", TRIALS))[1]
    rows = re.findall(r"<tr><td><code>(.*?)</code><td>Conv2d(.*?)</tr>", text)
    cells = [[name, *re.sub(r"<td[^>]*>", "|", rest).split("|")[1:]] for name, rest in rows]
    assert cells[1] == ["block1", "64", "16 x 24", "4", "1,007", "1", "dice"]
    assert cells[4] == ["block4", "128", "8 x 12", "8", "4,007", "3", "hsic"]
    assert len(cells) == len(SHAPES)


def test_no_name_of_a_layer_becomes_code(tmp_path: Path) -> None:
    net = {"name": EVIL, "input_size": [64, 96], "layers": [{**layer(0, 8, 1), "address": EVIL, "cls": EVIL}, layer(1, 8, 2)]}
    best = {**with_taps(2, EVIL, value=40.0), "losses": [EVIL]}
    folder = searched(tmp_path / "s", [BASE, with_taps(1, "block1"), best], {"u": net})
    text = drawn(folder)[1]
    assert "<script>alert" not in text
    assert "<b x" not in text
    assert EVIL in boxes(text)[0]["data-words"]


def test_a_folder_of_an_older_version_has_no_drawing(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", [BASELINE, trial(1)], best=1)
    assert drawn(folder) == ("", "")
    assert "id='layers'" not in write_report(folder).read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2, "networks": {}}', '{"schema": 1}'])
def test_a_file_of_something_else_is_named(text: str, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s", TRIALS)
    (folder / "network.json").write_text(text)
    with pytest.warns(UserWarning, match=r"network\.json must .*; the page has no drawing of the network"):
        assert "id='layers'" not in write_report(folder).read_text()
