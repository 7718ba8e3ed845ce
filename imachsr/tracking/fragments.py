"""Reads the client's own files, run-ID.wandb: whether they are whole, and which epochs they hold.

The format is LevelDB's log (blocks of 32 KiB, records of a checksum, a length, a kind and bytes, split at the blocks' ends) after a header of seven
bytes, around the client's protocol buffers.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYNCED = ".synced"
"""Behind the name of a run's file when the server has all of it; the client's own mark."""
_HEADER, _BLOCK = 7, 32_768
_WHOLE, _LAST = 1, 4


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A file of a run; one that was continued offline has several.

    Attributes:
        path: Of the file.
        run_id: Of the run.
        epochs: That its rows have.
        is_whole: Whether it can be read to its end, and tells how the run ended.
    """

    path: Path
    run_id: str
    epochs: frozenset[int]
    is_whole: bool

    @property
    def is_synced(self) -> bool:
        """Whether the server has it."""
        return _mark(self.path).exists()

    def mark_synced(self) -> None:
        """Note that the server has it."""
        _mark(self.path).touch()


def _mark(path: Path) -> Path:
    return path.with_name(path.name + SYNCED)


def find(folder: Path) -> list[Path]:
    """Files of runs in a result folder, in the order in which they were begun."""
    return sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.parent.name.removeprefix("offline-"))


def read(path: Path) -> Fragment | None:
    """What a file holds; None when not even the run that it is of can be read."""
    from wandb.proto.wandb_internal_pb2 import Record

    run_id, epochs, is_ended = "", set(), False
    parts = _parts(path.read_bytes())
    is_readable = True
    while True:
        try:
            record = Record.FromString(next(parts))
        except StopIteration:
            break
        except Exception:  # a checksum, a length, or what the client's decoder raises: nothing behind it can be trusted
            is_readable = False
            break
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run_id = run_id or record.run.run_id
        elif kind == "history":
            epochs |= {int(float(item.value_json)) for item in record.history.item if (item.key or "/".join(item.nested_key)) == "epoch"}
        elif kind == "exit":
            is_ended = True
    if not run_id:
        return None
    return Fragment(path=path, run_id=run_id, epochs=frozenset(epochs), is_whole=is_readable and is_ended)


def _parts(data: bytes) -> Iterator[bytes]:
    """Bytes of each record.

    Raises:
        ValueError: At the first one that is damaged or cut off.
    """
    parts, at = b"", _HEADER
    while at + _HEADER <= len(data):
        if (room := _BLOCK - at % _BLOCK) < _HEADER:  # padding
            at += room
            continue
        checksum, size, kind = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = data[at + _HEADER : at + _HEADER + size]
        if len(part) < size or zlib.crc32(bytes([kind]) + part) != checksum:
            raise ValueError(f"damaged at byte {at}")
        at += _HEADER + size
        parts += part
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
    if parts or at < len(data):
        raise ValueError(f"cut off at byte {at}")
