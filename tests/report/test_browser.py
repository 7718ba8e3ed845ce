"""The page in a real browser: what its script draws, and how it answers."""

import importlib.util
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from imachsr.report.html import write_report
from tests.report.folders import BASELINE, make, trial
from tests.report.test_network import SHAPES, TRIALS
from tests.report.test_network import searched as with_network

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
pytestmark = [
    pytest.mark.skipif(not HAS_PLAYWRIGHT, reason="needs Playwright: pip install playwright"),
    pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium: apt-get install chromium"),
]
EVIL = "</script><script>document.title='taken'</script><b x='\"&"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Any]:
    opened = []

    def go(path: Path, *, width: int = 1280, dark: bool = False) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        page = context.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        opened.append((context, problems))
        return page

    yield go
    for context, problems in opened:
        context.close()
        assert problems == []


def searched(folder: Path, *, count: int = 12) -> Path:
    draw = random.Random(3)
    trials = [BASELINE]
    for number in range(1, count):
        params = {
            "method.loss": draw.choice(["dice", "prototype", "brier"]),
            "method.alpha": draw.uniform(0.1, 1),
            "optimizer.lr": 10 ** draw.uniform(-4, -2),
        }
        whole = number % 4 != 0
        value = 25 + 10 * params["method.alpha"] + draw.random()
        more: dict[str, Any] = {"difference": value - 30} if whole else {"epochs": 2}
        trials.append(trial(number, "COMPLETE" if whole else "PRUNED", value=value, params=params, **more))
    best = max((each for each in trials if each["state"] == "COMPLETE"), key=lambda each: each["value"])
    made = make(folder, trials, best=best["number"])
    for number in (0, best["number"]):
        keep(made / "trials" / f"{number:04d}", seed=number)
    return made


def keep(at: Path, *, seed: int) -> None:
    """What a training keeps of its evaluation."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (2, 3, 24, 32), dtype=np.uint8), draw.integers(0, 3, (2, 24, 32), dtype=np.uint8)
    predicted = np.where(np.random.default_rng(seed).random(labels.shape) < 0.6, labels, (labels + 1) % 3).astype(np.uint8)
    confusion = np.array([[np.sum((labels == a) & (predicted == b)) for b in range(3)] for a in range(3)])
    pixels = np.full(15, 10.0)
    confidence = (np.arange(15) + 0.5) / 15 * pixels
    np.savez_compressed(at / "samples.npz", images=images, labels=labels, index=[0, 5], names=["a", "b"], class_names=["road", "sky", "<car>"])
    sums = np.stack([pixels, confidence, confidence * 0.9])
    np.savez_compressed(at / "evaluation.npz", predicted=predicted, confusion=confusion, reliability=sums, epoch=4, score=30.0)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(width: int, dark: bool, tmp_path: Path, open_page: Any) -> None:
    page = open_page(write_report(searched(tmp_path / "s")), width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    dim, bright = sorted(sum(map(int, each[4:-1].split(","))) for each in colours)
    assert (dim < 150, bright > 600) == (True, True)
    assert (colours[0] == "rgb(255, 255, 255)") is not dark


def test_a_range_on_an_axis_filters_the_table_and_a_click_lets_go(tmp_path: Path, open_page: Any) -> None:
    folder = searched(tmp_path / "s")
    page = open_page(write_report(folder))
    rows = page.locator("#trials tbody tr:visible")
    assert rows.count() == 12
    grip = page.locator("[data-draw=coordinates] g", has_text="alpha").locator(".grip")
    grip.scroll_into_view_if_needed()
    box = grip.bounding_box()
    page.mouse.move(box["x"] + 16, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 16, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    alphas = page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).trials.filter(t => t.arm === null).map(t => [t.number, t.params['method.alpha']])"
    )
    middle = (min(a for _, a in alphas) + max(a for _, a in alphas)) / 2
    kept = {int(row.get_attribute("data-n")) for row in rows.all()}
    assert kept == {number for number, alpha in alphas if alpha >= middle}
    assert 0 < len(kept) < 11
    page.mouse.click(box["x"] + 16, box["y"] + box["height"] / 2)
    assert rows.count() == 12


def test_the_keyboard_filters_sorts_and_opens(tmp_path: Path, open_page: Any) -> None:
    page = open_page(write_report(searched(tmp_path / "s")))
    axis = page.locator("[data-draw=coordinates] g[role=slider]").last
    axis.focus()
    for _ in range(10):
        page.keyboard.press("ArrowUp")
    assert 0 < page.locator("#trials tbody tr:visible").count() < 11
    page.keyboard.press("Escape")
    page.locator("#trials th button", has_text="select/miou").focus()
    page.keyboard.press("Enter")
    values = [float(row.locator("td").nth(2).inner_text()) for row in page.locator("#trials tbody tr").all()]
    assert values == sorted(values, reverse=True)
    page.keyboard.press("Enter")
    values = [float(row.locator("td").nth(2).inner_text()) for row in page.locator("#trials tbody tr").all()]
    assert values == sorted(values)
    first = page.locator("#trials tbody tr").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#details").is_visible()
    assert page.locator("#details-text").inner_text().startswith(f"trial {first.get_attribute('data-n')}")
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()


def test_the_table_is_one_stop_for_the_tab_key_and_arrows_go_through_its_rows(tmp_path: Path, open_page: Any) -> None:
    page = open_page(write_report(searched(tmp_path / "s")))
    focused = "document.activeElement.closest('tr')?.dataset.n ?? null"
    page.locator("#trials th button").last.focus()
    shown = [row.get_attribute("data-n") for row in page.locator("#trials tbody tr").all()]
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == shown[0]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == shown[2]
    page.keyboard.press("Tab")
    assert page.evaluate(focused) is None
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == shown[2]
    page.locator("#trials th button", has_text="select/miou").click()
    page.locator("#trials th button").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == page.locator("#trials tbody tr").first.get_attribute("data-n")


def test_a_point_of_a_curve_tells_its_configuration(tmp_path: Path, open_page: Any) -> None:
    page = open_page(write_report(searched(tmp_path / "s")))
    line = page.locator("[data-draw=curves] polyline.best")
    line.scroll_into_view_if_needed()
    number = line.get_attribute("data-n")
    svg = page.locator("[data-draw=curves] svg").bounding_box()
    x, y = map(float, line.get_attribute("points").split()[-1].split(","))
    page.mouse.move(svg["x"] + x, svg["y"] + y)
    tip = page.locator("#tip").inner_text()
    assert tip.startswith(f"trial {number}: finished, 4 epochs")
    assert "alpha" in tip
    page.mouse.click(svg["x"] + x, svg["y"] + y)
    assert page.locator("#details-text").inner_text().startswith(f"trial {number}")


def test_no_name_becomes_code(tmp_path: Path, open_page: Any) -> None:
    folder = make(tmp_path / "s", [{**BASELINE, "arm": EVIL}, *(trial(n, taps=[EVIL], error=EVIL) for n in (1, 2, 3))], best=3, name=EVIL)
    summary = json.loads((folder / "summary.json").read_text())
    for each in summary["trials"][1:]:
        each["params"] = {EVIL: each["number"], "method.loss": EVIL}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = open_page(write_report(folder))
    assert page.title() == EVIL
    assert page.locator("b").count() == 0
    assert page.locator("script").count() == 2


@pytest.mark.long
def test_five_hundred_trials_open_within_three_seconds(tmp_path: Path, open_page: Any) -> None:
    folder = searched(tmp_path / "s", count=500)
    lines = "".join(
        f'{{"trial": {number}, "arm": null, "epoch": {epoch}, "select/miou": {20 + number / 50 + epoch / 30}}}\n'
        for number in range(500)
        for epoch in range(1, 101)
    )
    (folder / "trials.jsonl").write_text(lines)
    path = write_report(folder)
    assert path.stat().st_size < 10_000_000
    begin = time.perf_counter()
    page = open_page(path)
    assert time.perf_counter() - begin < 3
    assert page.locator("[data-draw=curves] polyline").count() == 500


def test_rungs_show_who_went_on_and_who_was_stopped(tmp_path: Path, open_page: Any) -> None:
    folder = searched(tmp_path / "s")
    page = open_page(write_report(folder))
    stopped = {each["number"] for each in json.loads((folder / "summary.json").read_text())["trials"] if each["state"] == "PRUNED"}
    chart = page.locator("[data-draw=rungs] svg")
    ended = chart.locator("circle.ended")
    assert {int(each.get_attribute("data-n")) for each in ended.all()} == stopped != set()
    assert chart.locator("path.cross").count() == len(stopped)
    assert chart.locator("circle").count() == 2 * 12
    places = {float(each.get_attribute("cx")) for each in ended.all()}
    assert places == {max(float(each.get_attribute("cx")) for each in chart.locator("circle").all())}  # at the second of two rungs
    texts = chart.locator("text").all_text_contents()
    assert "epoch 1: 11 of 11 went on" in texts
    assert f"epoch 2: {11 - len(stopped)} of 11 went on" in texts


def test_layers_of_the_network_tell_of_themselves(tmp_path: Path, open_page: Any) -> None:
    page = open_page(write_report(with_network(tmp_path / "s", TRIALS)))
    tapped = page.locator("#layers .layer.tap").first
    tapped.scroll_into_view_if_needed()
    tapped.hover()
    assert page.locator("#tip").inner_text().splitlines()[:3] == ["block1 (Conv2d)", "64 channels, 16 x 24, stride 4", "1,007 parameters"]
    page.mouse.move(0, 0)
    assert not page.locator("#tip").is_visible()
    page.locator("#layers").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.locator("#layer-words").inner_text().startswith("block1 (Conv2d); 64 channels")
    assert page.locator("#layers .layer.on").get_attribute("data-layer") == "1"
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.locator("#layers .layer.on").get_attribute("data-layer") == str(len(SHAPES) - 1)
    page.keyboard.press("Escape")
    assert page.locator("#layer-words").inner_text() == ""


def test_a_large_network_scrolls_inside_of_its_own_box(tmp_path: Path, open_page: Any) -> None:
    page = open_page(write_report(with_network(tmp_path / "s", TRIALS)), width=390)
    page.locator("#layers").evaluate("svg => svg.setAttribute('width', 2000)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#layers").evaluate("svg => svg.parentElement.scrollWidth > svg.parentElement.clientWidth")
