"""Pictures of a search's report for the README, made with Chromium.

Command:  python benchmarks/screenshots.py runs/NAME [--out benchmarks/screenshots]
Cost:     20 s on one core.
Result:   report.png (the page's top), network.png and pictures.png, 1280 pixels wide; the top also in dark
          (report_dark.png) and 390 wide (report_390.png); 600 KB at most together.
"""

import argparse
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from imachsr.config import ConfigError
from imachsr.files import write_atomic
from imachsr.report.html import write_report

VIEWS = {"": (1280, "light"), "_dark": (1280, "dark"), "_390": (390, "light")}
PARTS = ("network", "pictures")
"""Sections of the page; those that a report lacks are left out."""
MOST_BYTES = 600_000
COLOURS = (256, 128, 64, 32)
TOP = 800
"""Height of the picture of the page's beginning, and the least number of pixels that a window is high."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def shots(page: Path, executable: str) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of the page's top in each view, and of each part that it has in the first one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            for view, (width, scheme) in VIEWS.items():
                context = browser.new_context(viewport={"width": width, "height": TOP}, color_scheme=scheme)
                opened = context.new_page()
                opened.goto(page.resolve().as_uri())
                opened.wait_for_selector("html[data-ready=yes]", state="attached")
                yield f"report{view}", _image(opened.screenshot())
                for part in PARTS if view == "" else ():
                    if (clip := _box(opened, part, width)) is not None:
                        yield f"{part}{view}", _image(opened.screenshot(full_page=True, clip=clip))
                context.close()
        finally:
            browser.close()


def _box(page: Any, section: str, width: int) -> dict[str, float] | None:
    """Around a section that is there, as wide as the window."""
    found = page.locator(f"section#{section}")
    box = found.bounding_box() if found.count() else None
    return None if box is None else {"x": 0, "y": max(0, box["y"] - 12), "width": width, "height": box["height"] + 24}


def _image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def encoded(images: dict[str, Image.Image], *, most: int = MOST_BYTES) -> dict[str, bytes]:
    """PNGs with as many colours as let all of them together keep the limit.

    Raises:
        ConfigError: If they are too large in the fewest colours, too.
    """
    for colours in COLOURS:
        found = {name: _png(image, colours) for name, image in images.items()}
        if (total := sum(map(len, found.values()))) <= most:
            return found
    raise ConfigError(f"all pictures together must have {most} bytes at most, but have {total}; take a search with smaller, or fewer, pictures")


def _png(image: Image.Image, colours: int) -> bytes:
    target = io.BytesIO()
    image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    return target.getvalue()


def take(folder: Path, out: Path) -> list[Path]:
    """Write the report of a result folder anew, and its pictures.

    Raises:
        ConfigError: If the folder holds no search, a browser or its driver is missing, or the pictures are too large.
    """
    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        raise ConfigError(f"one of {', '.join(BROWSERS)} must be on the PATH, but none is; apt-get install chromium")
    page = write_report(folder)
    try:
        images = dict(shots(page, executable))
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} must be installed, but is not; pip install playwright") from None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--out must be a folder, but {out} is a file") from None
    written = []
    for name, data in encoded(images).items():
        path = out / f"{name}.png"
        write_atomic(path, lambda file, data=data: file.write(data))
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="result folder of a search")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/screenshots"), help="folder of the pictures (benchmarks/screenshots)")
    arguments = parser.parse_args()
    try:
        written = take(arguments.folder, arguments.out)
    except ConfigError as error:
        parser.exit(2, f"{error}\n")
    for path in written:
        print(f"{path}  {path.stat().st_size / 1000:.0f} KB")
    taken = {path.stem.partition("_")[0] for path in written}
    for part in PARTS:
        if part not in taken:
            print(f"no {part}.png: the report has no section {part}")


if __name__ == "__main__":
    main()
