"""Reads run-*.wandb files: LevelDB's log format around protocol buffers."""

import json
import zlib
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32768


def records(path: Path) -> list[Record]:
    """Every record of a file, its checksums verified."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, parts, at = [], b"", HEADER
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # no room for another header: padding
            at += BLOCK - at % BLOCK
            continue
        checksum, size, kind = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = data[at + HEADER : at + HEADER + size]
        assert zlib.crc32(bytes([kind]) + part) == checksum
        parts, at = parts + part, at + HEADER + size
        if kind in (1, 4):  # whole, or last
            found.append(Record.FromString(parts))
            parts = b""
    return found


def of(found: list[Record], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def rows(found: list[Record]) -> list[dict[str, Any]]:
    """Rows of numbers, without what the client adds (keys with an underscore); images are rows of their own."""
    kept = [{key: value for key, value in _items(history.item).items() if not key.startswith("_")} for history in of(found, "history")]
    return [row for row in kept if not any(key.startswith("images/") for key in row)]


def config(found: list[Record]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for run in of(found, "run"):
        merged |= _items(run.config.update)
    return merged


def summary(found: list[Record]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for each in of(found, "summary"):
        merged |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.update}
    return merged
