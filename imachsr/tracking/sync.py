"""Brings to the W&B server what is not there: files of offline runs, and runs made again from a result folder's own lines."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imachsr.config.schema import ConfigError
from imachsr.tracking import fragments
from imachsr.tracking.fragments import Fragment
from imachsr.tracking.preflight import preflight
from imachsr.tracking.recorded import Recorded, load, whole_id
from imachsr.tracking.wandb import APART, WandbTracker

ASIDE = "wandb-unreadable"
UPLOAD_S = 900
"""Longest upload of one run's file, seconds."""


@dataclass(kw_only=True)
class Report:
    """What a sync did, by run.

    Attributes:
        uploaded: Ids of runs whose file was sent.
        rebuilt: Ids of runs that were made again from the folder's lines.
        already: Ids of runs that the server had.
        failed: Why others are still not there.
        aside: Folders of files that could not be read, where they are now.
        entity: User or team whose project it is, where it is known.
    """

    uploaded: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    aside: list[Path] = field(default_factory=list)
    entity: str = ""

    def __add__(self, other: "Report") -> "Report":
        """Both as one."""
        return Report(
            uploaded=self.uploaded + other.uploaded,
            rebuilt=self.rebuilt + other.rebuilt,
            already=self.already + other.already,
            failed=self.failed | other.failed,
            aside=self.aside + other.aside,
            entity=self.entity or other.entity,
        )


def sync(
    folder: Path, recorded: Sequence[Recorded], *, project: str, is_named: bool = False, say: Callable[[str], object] = lambda line: None
) -> Report:
    """Bring the runs of a result folder to the server; what is there already is left alone.

    A run's file is sent when it is whole and holds every epoch. Otherwise (the driver was killed, the file is damaged, it was continued in another
    one, or nothing was written) the run is made again, under the same id.

    Args:
        folder: Result folder, which nothing else may be writing to.
        recorded: Runs by the folder's own lines.
        project: Of W&B, for runs that are made again.
        is_named: Whether files go there too, in place of the project that they name.
        say: Told of each run.

    Raises:
        ConfigError: If there is no key, or no server that answers.
    """
    found = preflight("auto")
    if found.mode != "online":
        raise ConfigError(f"runs must go to a W&B server that answers, with a key, but: {found.reason}")
    report = Report()
    own: dict[str, list[Fragment]] = {}
    for path in fragments.find(folder):
        if (fragment := fragments.read(path)) is None:
            report.aside.append(_aside(folder, path.parent))
            say(f"{path.parent.name} cannot be read; it was set aside in {report.aside[-1].parent}")
        else:
            own.setdefault(fragment.run_id.removesuffix(APART), []).append(fragment)
    about = load(folder)
    whole = "" if about is None else whole_id(about)
    of_the_whole = own.pop(whole, [])
    again = _bring(own, {each.start.id: each for each in recorded}, report, project if is_named else None, say)
    if not again and not report.uploaded and of_the_whole and of_the_whole[-1].is_synced:
        report.already.append(whole)
        return report
    own[whole] = of_the_whole
    _rebuild(folder, again, own, report, project=project, group=recorded[0].start.group if recorded else "", whole=whole, say=say)
    return report


def _bring(
    own: Mapping[str, list[Fragment]], recorded: Mapping[str, Recorded], report: Report, project: str | None, say: Callable[[str], object]
) -> list[Recorded]:
    """Send what files hold; the runs that must be made again."""
    again, to_send = [], {}
    for run_id in sorted({**own, **recorded}):
        files, lines = own.get(run_id, []), recorded.get(run_id)
        held = frozenset[int]().union(*(each.epochs for each in files))
        has_all = lines is None or lines.epochs <= held
        if files and has_all and all(each.is_synced for each in files):
            report.already.append(run_id)
        elif lines is not None and not (has_all and len(files) == 1 and files[0].is_whole):
            again.append(lines)
        else:
            to_send[run_id] = files[-1]
    for run_id, wrong in _upload(to_send, project).items():
        if wrong:
            report.failed[run_id] = wrong
            say(f"{run_id} could not be sent: {wrong}")
            continue
        for each in own[run_id]:
            each.mark_synced()
        report.uploaded.append(run_id)
        say(f"{run_id} sent")
    return again


def _rebuild(
    folder: Path,
    again: list[Recorded],
    own: Mapping[str, list[Fragment]],
    report: Report,
    *,
    project: str,
    group: str,
    whole: str,
    say: Callable[[str], object],
) -> None:
    """Make runs again from lines, and after them that of the search as a whole, which shows them."""
    if not again and not whole:
        return
    tracker = WandbTracker(folder, project=project, mode="online", is_anew=True)
    for each in again:
        tracker.start(each.start)
        for row in each.rows:
            tracker.log(each.start.id, row)
        if each.state:
            tracker.end(each.start.id, each.state, each.summary)
    if not again:
        tracker.show(group)
    tracker.close()
    report.entity = tracker.entity
    for run_id in [*(each.start.id for each in again), *([whole] if whole else [])]:
        if run_id in tracker.unsent:
            report.failed[run_id] = tracker.preflight.reason
            say(f"{run_id} could not be made again: {tracker.preflight.reason}")
            continue
        for fragment in own.get(run_id, []):
            fragment.mark_synced()
        report.rebuilt.append(run_id)
        say(f"{run_id} made again from the search's lines")


def _upload(files: Mapping[str, Fragment], project: str | None) -> dict[str, str]:
    """Send files by the client's own command; by run why it failed, or "": its exit code is 0 then too, but it leaves no mark."""
    told: dict[str, str] = {}
    to = [] if project is None else ["--project", project]
    if own := [each for run_id, each in files.items() if each.run_id == run_id]:
        told = dict.fromkeys((each.run_id for each in own), _sent([*to, *(str(each.path) for each in own)], runs=len(own)))
    for run_id, each in files.items():
        if each.run_id != run_id:
            told[run_id] = _sent([*to, "--id", run_id, str(each.path)])
    return {run_id: "" if each.is_synced else told[run_id] for run_id, each in files.items()}


def _sent(words: list[str], *, runs: int = 1) -> str:
    """The last line that the command says."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", *words]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=UPLOAD_S * runs, env=environment)
    except subprocess.TimeoutExpired:
        return f"it took more than {UPLOAD_S * runs} s"
    lines = [line for line in (ran.stderr + ran.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"`wandb sync` ended with exit code {ran.returncode} and without a word"


def _aside(folder: Path, run: Path) -> Path:
    target = folder / ASIDE / run.name
    target.parent.mkdir(exist_ok=True)
    shutil.move(run, target)
    return target
