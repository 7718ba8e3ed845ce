"""Weights & Biases, written by the driver; the only file that imports wandb."""

import netrc
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from imachsr.tracking.events import TrialStart, finite

Mode = Literal["auto", "online", "offline", "disabled"]
HEADER_BYTES, ASIDE = 7, "wandb-empty"
INIT_S, FINISH_S = 20, 10  # longest waits for the server at a run's start and end, seconds


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
        return Preflight(mode=mode, reason="asked for")
    if wrong := _drop_wrong_settings():
        return Preflight(mode="offline", reason=wrong)
    wished: Any = os.environ.get("WANDB_MODE")
    wished = {"dryrun": "offline", "run": "online"}.get(wished, wished)  # wandb's older names
    if mode == "auto" and wished in ("online", "offline", "disabled"):
        return Preflight(mode=wished, reason=f"WANDB_MODE is {wished}")
    if mode != "auto":
        return Preflight(mode=mode, reason="asked for")
    import wandb

    url = wandb.setup().settings.base_url
    if not (os.environ.get("WANDB_API_KEY") or _has_netrc_key(url)):
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

    wrong = []
    while True:
        try:
            wandb.setup()
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


class WandbTracker:
    """One run a trial, grouped by search; the step axis is the epoch.

    When the server stops answering, later runs are written offline: it costs seconds, never a training.

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
        self._online: set[str] = set()
        self._own: set[str] = set()  # names of files that the client may not have written yet
        self._url: str | None = None
        self._to_sync: dict[str, None] = {}

    def start(self, trial: TrialStart) -> None:
        """Begin a run, or go on with it when a search is continued."""
        if self.preflight.mode == "disabled":
            return
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            run = self._init(trial, trial.id)
        except wandb.Error as error:
            if self.preflight.mode != "online":
                raise
            self._go_offline(str(error).splitlines()[0])
            run = self._init(trial, f"{trial.id}-offline")  # the client holds on to the id of a run that failed
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        self._runs[trial.id] = run
        if self.preflight.mode == "online":
            self._online.add(trial.id)
            self._url = run.project_url
        else:
            self._to_sync["offline-run-*"] = None

    def _init(self, trial: TrialStart, run_id: str) -> Any:
        import wandb

        self._own.add(f"run-{run_id}.wandb")
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_S,
            finish_timeout=FINISH_S,
            x_disable_stats=True,  # they would describe the driver, not the trial
            x_transaction_log_flush_interval=1.0,  # a killed driver loses a second, not fifteen
        )
        return wandb.init(
            project=self._project,
            dir=str(self._folder),
            id=run_id,
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

    def _go_offline(self, reason: str) -> None:
        self.preflight = Preflight(mode="offline", reason=f"the server failed ({reason})")

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Record an epoch."""
        if trial_id in self._runs:
            self._runs[trial_id].log(dict(row))

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """End a run; one that failed ends with exit code 1."""
        run = self._runs.get(trial_id)
        if run is not None:
            run.summary.update({f"trial/{key}": value for key, value in finite({**summary, "state": state}).items()})
            self._finish(trial_id, exit_code=1 if state == "failed" else 0)

    def _finish(self, trial_id: str, *, exit_code: int) -> None:
        started = time.monotonic()
        self._runs.pop(trial_id).finish(exit_code=exit_code)
        # The client gives up in silence; its own file holds every row.
        if trial_id in self._online and time.monotonic() - started >= FINISH_S:
            self._to_sync["run-*"] = None
            if self.preflight.mode == "online":
                self._go_offline("it no longer answers")

    def close(self) -> list[str]:
        """End what is open (a search that was interrupted), and say where the runs are."""
        for trial_id in tuple(self._runs):
            self._finish(trial_id, exit_code=1)
        lines = [f"W&B: {self._url}"] if self._url else []
        if count := self._set_aside():
            lines.append(f"W&B: {count} runs that were killed before their first record were set aside in {self._folder / ASIDE}")
        if self._to_sync:
            paths = " ".join(f"{shlex.quote(str(self._folder))}/wandb/{name}" for name in self._to_sync)
            lines += [f"W&B: runs were written offline: {self.preflight.reason}", f"wandb sync {paths}"]
        return lines

    def _set_aside(self) -> int:
        """Move files that hold a header only, as a killed driver leaves them: beside one, `wandb sync` uploads nothing and says nothing."""
        files = [path for path in sorted(self._folder.glob("wandb/*run-*/run-*.wandb")) if path.name not in self._own]
        empty = [path.parent for path in files if path.stat().st_size <= HEADER_BYTES]
        for folder in empty:
            (self._folder / ASIDE).mkdir(exist_ok=True)
            folder.rename(self._folder / ASIDE / folder.name)
        return len(empty)
