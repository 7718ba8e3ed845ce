"""A training that is taken up from a storage."""

import contextlib
import time
import warnings
from pathlib import Path
from typing import Any

from imachsr.config.continued import CHANGEABLE, changed
from imachsr.config.load import parse_yaml, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.files import write_text
from imachsr.train import checkpoint
from imachsr.train.checkpoint import FOLDER
from imachsr.train.courier import Courier, MissingError, RemoteError
from imachsr.train.manifest import Manifest
from imachsr.train.parallel import from_rank, gathered, rank_and_world
from imachsr.train.state_file import DamagedError
from imachsr.train.upload import RESULT, TOLD

BEGUN = "begun.txt"
"""On a worker's own disk: the word of the start that its checkpoints are of."""
AGAIN_S = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Waits between attempts to read a storage that is needed to go on, seconds."""


def prepare(courier: Courier, folder: Path, run: Run, *, resume: bool) -> None:
    """See to it before a training that the storage fits it, and bring what is there and not here.

    Raises:
        ConfigError: If the storage holds a training where a new one is meant, or another one than is resumed, or none.
        RemoteError: If it cannot be read.
    """
    manifests, damaged = courier.manifests()
    if not resume:
        if manifests or damaged:
            way = "give another --storage, or continue it with --resume"
            raise ConfigError(f"{courier.uri} must be a new folder, but holds a training; {way}")
        return
    if differing := _changed(courier, run):
        raise ConfigError(
            f"{courier.uri} must hold the training that is continued, but holds one with other settings ({', '.join(differing)}); see run.yaml there"
        )
    if not manifests and not damaged and not checkpoint.exists(folder):
        raise ConfigError(f"--resume must go with a training to continue, but neither {folder} nor {courier.uri} holds a checkpoint")
    pull(courier, folder, names=(*RESULT, *TOLD))


def _changed(courier: Courier, run: Run) -> list[str]:
    """The settings by which the training in a storage is another one."""
    try:
        saved: Any = parse_yaml(courier.ask("read", "run.yaml"))
    except MissingError:
        return []
    except ConfigError:
        saved = None
    now = run_to_dict(run)
    return changed(saved, now) if isinstance(saved, dict) else [key for key in now if key not in CHANGEABLE]


def pull(courier: Courier, folder: Path, *, names: tuple[str, ...] = RESULT) -> Manifest | None:
    """Bring the newest whole checkpoint of a storage, the best one and small files, unless what is here is as new.

    Args:
        courier: To the storage.
        folder: The training's ``--output``.
        names: Of the small files.

    Returns:
        The manifest of the newest checkpoint here, afterwards.

    Raises:
        ConfigError: If neither side holds a whole one, but damaged ones.
        RemoteError: If the storage cannot be read, and nothing is here.
    """
    here = checkpoint.newest_whole(folder)
    try:
        while True:
            manifests, damaged = courier.manifests()
            newer = [manifest for manifest in manifests if here is None or manifest.serial > here.serial]
            try:
                found = _newest(courier, folder, newer[::-1], damaged)
            except _RetiredError:
                continue
            break
        if found is not None:
            _bring_best(courier, folder, manifests)
            _bring_files(courier, folder, names)
    except RemoteError as error:
        if here is None:
            raise
        warnings.warn(f"{courier.uri} cannot be read, and {folder} is used as it is (step {here.step}): {error}", stacklevel=2)
        return here
    if found is None and here is None and (manifests or damaged):
        raise ConfigError(f"{courier.uri} must hold a whole checkpoint, but all of them are damaged; put a copy back, or train again elsewhere")
    return found or here


class _RetiredError(Exception):
    """A training that goes on has deleted a checkpoint while it was read, so that there is a newer one."""


def _newest(courier: Courier, folder: Path, newer: list[Manifest], damaged: dict[str, str]) -> Manifest | None:
    wrong = dict(damaged)
    for manifest in newer:
        try:
            found = _bring(courier, folder, manifest)
        except DamagedError as error:
            if manifest not in courier.manifests()[0]:
                raise _RetiredError from None
            wrong[manifest.file] = str(error)
            continue
        for name, reason in wrong.items():
            warnings.warn(f"{courier.uri}/{FOLDER}/{name} {reason}; the checkpoint of step {found.step} is used instead", stacklevel=3)
        return found
    return None


def _bring(courier: Courier, folder: Path, manifest: Manifest) -> Manifest:
    def fetch(path: Path) -> None:
        try:
            courier.ask("fetch", f"{FOLDER}/{manifest.file}", str(path))
        except MissingError:
            raise DamagedError("is missing") from None

    return checkpoint.adopt(folder, manifest, fetch)


def _bring_best(courier: Courier, folder: Path, manifests: list[Manifest]) -> None:
    best = checkpoint.best_of(manifests)
    if best is None or any(each.sha256 == best.sha256 for each in checkpoint.committed(folder)):
        return
    try:
        _bring(courier, folder, best)
    except DamagedError as error:
        warnings.warn(f"{courier.uri}/{FOLDER}/{best.file} {error}; it was the best checkpoint", stacklevel=3)


def _bring_files(courier: Courier, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        temporary = folder / f"{name}.fetched.tmp"
        with contextlib.suppress(MissingError):
            courier.ask("fetch", name, str(temporary))
            temporary.replace(folder / name)
        temporary.unlink(missing_ok=True)


def clear_of_others(folder: Path, word: str) -> None:
    """Drop what an older training has left on a worker's own disk, when a new one begins there; a group that is started again keeps its own.

    Args:
        folder: The training's ``--output``.
        word: Of this start of the training, the same for all its groups of workers.
    """
    mark = folder / BEGUN
    if not mark.exists() or mark.read_text(encoding="utf-8") != word:
        checkpoint.remove(folder)
        write_text(mark, word)


def bring_home(courier: Courier, folder: Path) -> None:
    """Bring what another machine has made of the training, as far as the storage holds it; a warning tells what keeps it away."""
    try:
        pull(courier, folder)
    except (ConfigError, OSError) as error:
        warnings.warn(f"{courier.uri} cannot be read, and {folder} may lack what is there: {error}", stacklevel=2)


def newest_apart(courier: Courier, output: Path, *, keep: int) -> dict[str, Any] | None:
    """The newest checkpoint of all ranks' disks, which are not shared, and of a storage; on all ranks, and on the disk of rank 0.

    Raises:
        ConfigError: If there are only damaged ones.
        RemoteError: If the storage cannot be read, and no rank has a checkpoint.
    """
    rank, _ = rank_and_world()
    own = checkpoint.newest_whole(output)
    is_anywhere = any(gathered(own is not None))
    from_rank(0, lambda: _pull_patiently(courier, output, is_needed=not is_anywhere))
    own = checkpoint.newest_whole(output)
    serials = [int(str(serial)) for serial in gathered(0 if own is None else own.serial)]
    source = serials.index(max(serials))
    if not serials[source]:
        return None
    score = gathered(None if own is None else own.score)[source]
    state = from_rank(source, lambda: checkpoint.load(output))
    if source != 0 and rank == 0 and state is not None:
        # The storage had not got it yet.
        kept = score if isinstance(score, float) else None
        checkpoint.save(output, state, step=state["step"], score=kept, keep=keep, after=serials[source] - 1)
    return state


def _pull_patiently(courier: Courier, output: Path, *, is_needed: bool) -> None:
    for wait_s in (*AGAIN_S, None):
        try:
            pull(courier, output)
        except RemoteError as error:
            if not is_needed:
                warnings.warn(f"{courier.uri} cannot be read: {error}", stacklevel=2)
                return
            if wait_s is None:
                raise
            time.sleep(wait_s)
        else:
            return
