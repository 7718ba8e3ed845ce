"""What one machine of a cluster can tell about itself; it runs where the standard library alone is installed."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imachsr.storage import reach

SIOCGIFADDR = 0x8915  # Linux: the address of an interface
PATIENCE_S = 5.0  # longest wait for a new file to appear on a network file system, seconds


@dataclass(frozen=True, kw_only=True)
class Check:
    """Attributes: name: What was looked at. state: ok, warning (works, but) or error. finding: In words, with what to do."""

    name: str
    state: Literal["ok", "warning", "error"]
    finding: str


def versions() -> dict[str, str | None]:
    """Versions of Python and of what a worker imports; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "ray"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    # The package may run from a folder without being installed; importing it would import torch.
    spec = importlib.util.find_spec("imachsr")
    found["imachsr"] = runpy.run_path(str(Path(spec.origin).parent / "version.py"))["__version__"] if spec and spec.origin else None
    return found


def interfaces() -> dict[str, str]:
    """IPv4 address of each network interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def network() -> dict[str, Any]:
    """Where gloo would listen: the interfaces of GLOO_SOCKET_IFNAME, else the address that the host's own name has.

    Returns:
        host: The machine's name. named: GLOO_SOCKET_IFNAME. nccl: NCCL_SOCKET_IFNAME. address: What the name resolves to, or None.
        interfaces: As in :func:`interfaces`. seconds: Time that the resolution took.
    """
    started = time.monotonic()
    host = socket.gethostname()
    try:
        address: str | None = str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError:
        address = None
    named = {"named": os.environ.get("GLOO_SOCKET_IFNAME", ""), "nccl": os.environ.get("NCCL_SOCKET_IFNAME", "")}
    return {"host": host, **named, "address": address, "interfaces": interfaces(), "seconds": time.monotonic() - started}


def meet(folder: str, word: str, own: str) -> str:
    """Read the file named like ``word`` that another machine wrote, and write one of our own beside it.

    Args:
        folder: An existing folder, as seen by the other machine.
        word: A name that nobody else uses; the file holds it too.
        own: Name of the file to write, which holds ``word`` as well.

    Returns:
        "" when both worked, else what did not, in words.
    """
    place = Path(folder)
    if not place.is_dir():
        return f"{folder} does not exist there"
    try:
        if not appears(place / word, word):
            return f"{folder} is another folder there: a file written here does not appear"
    except OSError as error:
        return f"{folder} cannot be read there ({error.strerror})"
    try:
        (place / own).write_text(word)
    except OSError as error:
        return f"{folder} cannot be written there ({error.strerror})"
    return ""


def appears(path: Path, text: str) -> bool:
    """Whether a file with this text is there, or comes within the time that a network file system may need to show it."""
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return path.read_text() == text


def remove(path: str) -> None:
    """Take a file away that may be gone."""
    Path(path).unlink(missing_ok=True)


def listing(folder: str) -> str:
    """A digest of the names in a folder, "" when there is no such folder, or "!" and the reason when it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"!{error.strerror}"
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


class Probe:
    """The functions above, to be called on another machine."""

    def ask(self, name: str, *args: str) -> Any:
        """The result of one of them."""
        known: dict[str, Callable[..., Any]] = {
            "versions": versions,
            "network": network,
            "meet": meet,
            "remove": remove,
            "listing": listing,
            "reach": reach,
            "clock": time.time,
        }
        return known[name](*args)
