"""Whether W&B can be reached, found out before anything is asked of the client."""

import netrc
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["auto", "online", "offline", "disabled"]
KEY = "WANDB_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found before the first run; the client cannot change its mind later (an offline run after a failed online one collides).

    Attributes:
        mode: online, offline or disabled.
        reason: For the user.
    """

    mode: Literal["online", "offline", "disabled"]
    reason: str


def preflight(mode: Mode, *, timeout: float = 3.0) -> Preflight:
    """Decide whether runs go to the server or to disk.

    Args:
        mode: As asked for; auto takes WANDB_MODE, else online when there is a key and the server answers.
        timeout: Of the server, seconds.
    """
    if mode == "disabled":
        return Preflight(mode=mode, reason=f"{mode} was asked for")
    if wrong := _drop_wrong_settings():
        return Preflight(mode="offline", reason=wrong)
    wished: Any = os.environ.get("WANDB_MODE")
    wished = {"dryrun": "offline", "run": "online"}.get(wished, wished)  # wandb's older names
    if mode == "auto" and wished in ("online", "offline", "disabled"):
        return Preflight(mode=wished, reason=f"WANDB_MODE is {wished}")
    if mode != "auto":
        return Preflight(mode=mode, reason=f"{mode} was asked for")
    import wandb

    url = wandb.setup().settings.base_url
    if not (os.environ.get(KEY) or _has_netrc_key(url)):
        return Preflight(mode="offline", reason="no key was found (run `wandb login`, or set WANDB_API_KEY)")
    try:
        urllib.request.urlopen(url, timeout=timeout)  # the user's own server
    except urllib.error.HTTPError:
        pass  # any answer is an answer
    except OSError as error:
        return Preflight(mode="offline", reason=f"{url} does not answer ({error})")
    return Preflight(mode="online", reason="a key was found and the server answers")


def _drop_wrong_settings() -> str:
    """Take out of the environment what the client would refuse to start with, even offline; says what, or is empty."""
    import wandb

    if key := os.environ.get(KEY):
        os.environ[KEY] = key.strip()  # a secret's file often ends with a line break, for which the client would end the program
    wrong = []
    while True:
        try:
            wandb.setup(wandb.Settings(silent=True))
        except ValueError as error:  # pydantic's
            told = error.errors() if hasattr(error, "errors") else []
            names = {f"WANDB_{str(item['loc'][0]).upper()}": item["msg"] for item in told if item["loc"]}
            if not (there := names.keys() & os.environ.keys()):
                return f"the client's settings are wrong ({' '.join(str(error).split())})"
            wrong += [f"{name} is {os.environ.pop(name)!r}: {names[name]}" for name in sorted(there)]
        else:
            return "; ".join(wrong)


def _has_netrc_key(url: str) -> bool:
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(urlsplit(url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def entity() -> str:
    """User or team that runs go to when none is named.

    Raises:
        RuntimeError: If the server does not tell.
    """
    import wandb

    try:
        return str(wandb.setup().settings.entity or wandb.Api().default_entity or "")
    except Exception as error:
        raise RuntimeError(f"the W&B server does not tell whose key it is: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
