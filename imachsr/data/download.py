"""Fetch an archive: continued after a cut, checked, and whole or absent."""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imachsr.data.samples import Progress, untold
from imachsr.files import sync_folder, write_text

TRIES = 5
_PIECE = 1 << 18
_TIMEOUT_S = 30.0


class CutOffError(RuntimeError):
    """The connection ended before the file did."""


def fetch(url: str, folder: Path, *, sha256: str | None = None, progress: Progress = untold, pause_s: float = 1.0) -> tuple[Path, str]:
    """The archive behind an address, and its SHA-256; nothing is fetched where it is there already.

    What was fetched of it lies in NAME.part until it is whole, for the next try to continue. Where :func:`pin` has kept its checksum in NAME.sha256,
    it must be the same whenever it is fetched again.

    Args:
        url: http or https.
        folder: Where it goes.
        sha256: 64 hexadecimal digits that its checksum must be; without it the one of an earlier time, or any.
        progress: Called with the bytes that are there, and the number of all where the server tells.
        pause_s: Before the second try; doubled before each later one.

    Raises:
        ValueError: If an argument is no address or checksum, the server refuses, or the file has another checksum.
        RuntimeError: If the connection fails each time.
    """
    archive = archive_at(url, folder)
    if sha256 is not None and (len(sha256) != 64 or not all(digit in "0123456789abcdefABCDEF" for digit in sha256)):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits, but got {sha256!r}")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sha256.lower() if sha256 else _pinned(pin_of(archive))
    source = pin_of(archive) if wanted is not None and not sha256 else None
    if not archive.exists():
        part = folder / f"{archive.name}.part"
        for number in range(1, TRIES + 1):
            try:
                _continue(url, part, progress)
                break
            except (OSError, http.client.HTTPException, CutOffError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise ValueError(f"{url} must be an address that answers, but: {error.code} {error.reason}") from None
                if isinstance(error, OSError) and error.errno in (28, 122):  # no space, quota
                    raise
                if number == TRIES:
                    have = part.stat().st_size if part.exists() else 0
                    raise RuntimeError(
                        f"{url} could not be fetched in {TRIES} tries: {error}; {have} bytes are kept, run the command again to go on"
                    ) from None
                time.sleep(pause_s * 2 ** (number - 1))
        _check(part, wanted, url, source, "what was fetched is removed")
        part.replace(archive)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)
        sync_folder(folder)
        digest = digest_of(archive)
    else:
        digest = _check(archive, wanted, url, source, None)
    return archive, digest


def pin(archive: Path, digest: str) -> None:
    """Keep the checksum of an archive that was found to be good; of any other the first answer of a server would be the truth for ever."""
    write_text(pin_of(archive), f"{digest}  {archive.name}\n")


def pin_of(archive: Path) -> Path:
    """Where the checksum of an archive is kept."""
    return archive.with_name(f"{archive.name}.sha256")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def archive_at(url: str, folder: Path) -> Path:
    """Where the file behind an address goes; raises ValueError if it is none."""
    parsed = urllib.parse.urlsplit(url)
    name = Path(urllib.parse.unquote(parsed.path)).name
    if parsed.scheme not in ("http", "https") or not parsed.netloc or not name:
        raise ValueError(f"`url` must be the http or https address of a file, but got {url!r}")
    return folder / name


def _pinned(pin: Path) -> str | None:
    try:
        return pin.read_text().split()[0]
    except (OSError, IndexError):
        return None


def _check(path: Path, wanted: str | None, url: str, source: Path | None, removed: str | None) -> str:
    digest = digest_of(path)
    if wanted is not None and digest != wanted:
        if removed is not None:
            path.unlink()
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)
        what = removed or f"delete {path} to fetch it again"
        by = "" if source is None else f" (as {source} keeps it of an earlier time)"
        also = "" if source is None else f"; where another file is right by now, delete {source} too"
        raise ValueError(f"sha256 of {url} must be {wanted}{by}, but is {digest}; {what}{also}")
    return digest


def _continue(url: str, part: Path, progress: Progress) -> None:
    """Fetch what is missing of the file; all of it where the server knows no ranges, or has another file by now."""
    note = part.with_name(f"{part.name}.json")
    known = _noted(note)
    have = part.stat().st_size if part.exists() and known.get("url") == url else 0
    request = urllib.request.Request(url, headers={"User-Agent": "imachsr", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known.get("tag"):
            request.add_header("If-Range", known["tag"])
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if error.code == 416 and whole == str(have):
            return  # all of it was there
        if error.code == 416:
            part.unlink()
            raise CutOffError(f"the server has {whole or 'no'} bytes, not the {have} that were there") from None
        raise
    with answer:
        begin = _begin(answer) if answer.status == 206 else 0
        if begin not in (0, have):
            raise CutOffError(f"the server answered from byte {begin}, not {have}")
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length else 0
        write_text(note, json.dumps({"url": url, "tag": _strong(answer.headers.get("ETag")) or answer.headers.get("Last-Modified")}))
        with part.open("r+b" if begin else "wb") as file:
            file.seek(begin)
            while piece := answer.read(_PIECE):
                file.write(piece)
                progress(file.tell(), max(total, file.tell()))
            if total and file.tell() != total:
                raise CutOffError(f"the connection was cut after {file.tell()} of {total} bytes")


def _strong(tag: str | None) -> str | None:
    """If-Range knows no weak tags."""
    return None if tag is None or tag.startswith("W/") else tag


def _begin(answer: Any) -> int:
    found = str(answer.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    return int(found) if found.isdigit() else -1


def _noted(note: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
