"""Small image files that the tests of this folder write."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 50)) -> Path:
    """A smooth picture, so that lossy formats keep it nearly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.stack([(3 * y + 20 * seed) % 200, 2 * x, (x + y + 40 * seed) % 180], -1).astype(np.uint8)
    Image.fromarray(picture).save(path)
    return path


def write_mask(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def mask(classes: int, seed: int = 0, size: tuple[int, int] = (40, 50), dtype: type = np.uint8) -> np.ndarray:
    """Blocks of 10 pixels, so that resizing by the nearest pixel can be foretold."""
    coarse = np.random.default_rng(seed).integers(0, classes, (size[0] // 10, size[1] // 10))
    return np.kron(coarse, np.ones((10, 10))).astype(dtype)


def write_png16(path: Path, values: np.ndarray) -> Path:
    """A PNG with three channels (or two: grey and alpha) of 16 bits, ``[H, W, 3]``, which Pillow cannot write."""
    height, _, channels = values.shape
    rows = values.astype(">u2")
    # Every second row as differences from the one above it: filter 2 of the format.
    above = rows[:-1].view(np.uint8).reshape(height - 1, -1)
    plain = rows.view(np.uint8).reshape(height, -1)
    lines = [b"\0" + plain[y].tobytes() if y % 2 == 0 else b"\2" + (plain[y] - above[y - 1]).tobytes() for y in range(height)]
    return _write_png(path, values.shape[:2], bits=16, colour=2 if channels == 3 else 4, lines=lines)


def write_png_of_few_bits(path: Path, values: np.ndarray, bits: int) -> Path:
    """A grey PNG with 1, 2 or 4 bits a pixel, ``[H, W]``, several of which are in a byte."""
    lines = []
    for row in values.astype(int).tolist():
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        lines.append(b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big"))
    return _write_png(path, values.shape, bits=bits, colour=0, lines=lines)


def _write_png(path: Path, size: tuple[int, ...], *, bits: int, colour: int, lines: list[bytes]) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b""))
    return path
