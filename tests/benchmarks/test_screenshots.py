"""Pictures of the README: what they show, their size, and what is missing."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import screenshots
from imachsr.config import ConfigError
from tests.report.folders import BASELINE, make, trial
from tests.report.test_browser import searched

needs_browser = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or not any(map(shutil.which, screenshots.BROWSERS)), reason="needs Playwright and Chromium"
)


@pytest.mark.long
@needs_browser
def test_the_top_is_taken_in_every_view_and_every_part_in_one(tmp_path: Path) -> None:
    written = screenshots.take(searched(tmp_path / "s"), tmp_path / "out")
    assert {path.name for path in written} == {"report.png", "report_dark.png", "report_390.png", "pictures.png"}
    assert sum(path.stat().st_size for path in written) < screenshots.MOST_BYTES
    means, coloured = {}, {}
    for path in written:
        with Image.open(path) as image:
            assert image.width == (390 if "390" in path.name else 1280)
            means[path.stem] = np.asarray(image.convert("L"), dtype=float).mean()
            coloured[path.stem] = (np.ptp(np.asarray(image.convert("RGB"), dtype=float), axis=-1) > 60).mean()
    assert means["report_dark"] < 100 < 200 < means["report"]
    assert coloured["pictures"] > 0.15, "the masks are in it"


@needs_browser
def test_a_part_that_the_report_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "s", [BASELINE, trial(1)], best=1)
    monkeypatch.setattr(sys, "argv", ["screenshots.py", str(folder), "--out", str(tmp_path / "out")])
    screenshots.main()
    assert "no pictures.png: the report has no section pictures" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("pictures*"))
    assert (tmp_path / "out/report_390.png").exists()


def test_pictures_lose_colours_until_they_are_small_enough() -> None:
    draw = np.random.default_rng(0)
    images = {"a": Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8))}
    large = len(screenshots.encoded(images)["a"])
    small = screenshots.encoded(images, most=large * 2 // 3)["a"]
    assert len(small) <= large * 2 // 3
    with pytest.raises(ConfigError, match="must have 100 bytes at most, but have"):
        screenshots.encoded(images, most=100)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="must be on the PATH, but none is; apt-get install chromium"):
        screenshots.take(make(tmp_path / "s", [BASELINE], best=0), tmp_path / "out")
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/false")
    with pytest.raises(ConfigError, match="must be the --output folder of a search"):
        screenshots.take(tmp_path, tmp_path / "out")
