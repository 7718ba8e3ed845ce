"""Weights & Biases, written by the driver; the only file that imports wandb."""

import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from imachsr.tracking.events import TrialStart, finite

Mode = Literal["auto", "online", "offline", "disabled"]


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
    if mode == "auto" and os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        wished: Any = os.environ["WANDB_MODE"]
        return Preflight(mode=wished, reason=f"WANDB_MODE is {wished}")
    if mode != "auto":
        return Preflight(mode=mode, reason="asked for")
    import wandb

    url = wandb.setup().settings.base_url
    if not (os.environ.get("WANDB_API_KEY") or _has_netrc_key(url)):
        return Preflight(mode="offline", reason="no key was found (run `wandb login`, or set WANDB_API_KEY)")
    try:
        urllib.request.urlopen(url, timeout=timeout)  # noqa: S310  (the user's own server)
    except urllib.error.HTTPError:
        pass  # any answer is an answer
    except OSError as error:
        return Preflight(mode="offline", reason=f"{url} does not answer ({error})")
    return Preflight(mode="online", reason="a key was found and the server answers")


def _has_netrc_key(url: str) -> bool:
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(urlsplit(url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbTracker:
    """One run a trial, grouped by search; the step axis is the epoch.

    Args:
        folder: Result folder; runs are kept in ``folder/wandb``.
        project: Of W&B.
        mode: See :func:`preflight`.
    """

    def __init__(self, folder: Path, *, project: str = "imachsr", mode: Mode = "auto") -> None:
        self._folder = folder.absolute()
        self._project = project
        self.preflight = preflight(mode)
        self._runs: dict[str, Any] = {}
        self._url: str | None = None

    def start(self, trial: TrialStart) -> None:
        """Begin a run, or go on with it when a search is continued."""
        if self.preflight.mode == "disabled":
            return
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=20,
            finish_timeout=30,
            x_disable_stats=True,  # they would describe the driver, not the trial
            x_transaction_log_flush_interval=1.0,  # a killed driver loses a second, not fifteen
        )
        run = wandb.init(
            project=self._project,
            dir=str(self._folder),
            id=trial.id,
            name=trial.name,
            group=trial.group,
            job_type=trial.job_type,
            config=trial.config,
            tags=list(trial.tags),
            mode=self.preflight.mode,
            resume="allow" if self.preflight.mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        self._runs[trial.id] = run
        self._url = run.project_url if self.preflight.mode == "online" else None

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Record an epoch."""
        if trial_id in self._runs:
            self._runs[trial_id].log(dict(row))

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """End a run; one that failed ends with exit code 1."""
        run = self._runs.pop(trial_id, None)
        if run is not None:
            run.summary.update({f"trial/{key}": value for key, value in finite({**summary, "state": state}).items()})
            run.finish(exit_code=1 if state == "failed" else 0)

    def close(self) -> list[str]:
        """End what is open (a search that was interrupted), and say where the runs are."""
        for run in self._runs.values():
            run.finish(exit_code=1)
        self._runs.clear()
        if self.preflight.mode == "disabled":
            return []
        if self._url:
            return [f"W&B: {self._url}"]
        return [f"W&B: runs were written offline: {self.preflight.reason}", f"wandb sync {self._folder}/wandb/offline-run-*"]
