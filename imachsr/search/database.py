"""Where a search's study is kept: in its result folder, or in a database of the user's."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import optuna
import sqlalchemy

from imachsr.config.schema import ConfigError
from imachsr.files import write_text

FILE = "study.sqlite3"
URL_FILE = "study-url"
NAME = "search"
LOCKED_S = 60.0
"""Longest wait for another process that holds study.sqlite3, such as a tool that looks at it, seconds."""

Direction = Literal["maximize", "minimize"]


def open_study(folder: Path, directions: Sequence[Direction], *, url: str | None = None, read_only: bool = False) -> optuna.Study:
    """The study of a result folder, made where there is none.

    Args:
        folder: Result folder; the study is ``study.sqlite3`` in it, readable by any Optuna tool.
        directions: Of each objective.
        url: Of a database to keep it in instead, as SQLAlchemy writes it; kept in the folder without its password, in ``study-url``.
        read_only: Make nothing.

    Raises:
        ConfigError: If the storage cannot be used, is not the one that the folder's study began in, or holds no study to be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name, is_new = _study_name(folder, url)
    with explained(folder, url):
        try:
            storage = _storage(folder, url)
            if read_only:
                study = optuna.load_study(storage=storage, study_name=name)
            else:
                study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        except KeyError:
            raise ConfigError(f"the study {where(folder, url)} must hold a study {name!r}, but holds none") from None
        except RuntimeError as error:  # of the schema's version
            why = " ".join(str(error).split())
            raise ConfigError(
                f"the study {where(folder, url)} must be usable, but Optuna {optuna.__version__} does not read its version ({why}); "
                "use the Optuna that wrote it, or bring it up to date: optuna storage upgrade --storage URL"
            ) from None
    if is_new and url is not None:  # last, so that a folder whose database did not answer is still new
        write_text(folder / URL_FILE, f"{without_password(url)} {name}\n")
    return study


def close_study(study: optuna.Study) -> None:
    """Let go of its storage: connections and files."""
    study._storage.remove_session()
    backend = getattr(study._storage, "_backend", study._storage)
    if isinstance(backend, optuna.storages.RDBStorage):
        backend.engine.dispose()


@contextlib.contextmanager
def explained(folder: Path, url: str | None) -> Iterator[None]:
    """Turn what a storage raises into a line for the user."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        if "locked" in str(error.__cause__ or error):
            why = "another process holds it locked; end that, and go on with --resume"
        else:
            why = " ".join(str(error.__cause__ or error).split())[:300]
        if url is not None and (password := sqlalchemy.engine.make_url(url).password):
            why = why.replace(str(password), "***")
        raise ConfigError(f"the study {where(folder, url)} must be usable, but: {why}") from None


def where(folder: Path, url: str | None) -> str:
    """Where a folder's study is, without a password."""
    return str(folder / FILE) if url is None else without_password(url)


def _storage(folder: Path, url: str | None) -> optuna.storages.RDBStorage:
    if url is not None:
        return optuna.storages.RDBStorage(url)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / FILE}", engine_kwargs={"connect_args": {"timeout": LOCKED_S}})
    # A commit then waits for the disk once, not twice; a power cut may take the last of what was told, which trials.jsonl has, but never the study.
    sqlalchemy.event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    storage.engine.dispose()
    return storage


def _study_name(folder: Path, url: str | None) -> tuple[str, bool]:
    """In the folder there is one study; a database may hold those of many folders. And whether it is yet to be made."""
    path = folder / URL_FILE
    if url is None:
        if path.exists():
            told = path.read_text().split()[0]
            raise ConfigError(f"the study of {folder} is in a database: give --study with its URL, {told} with the password")
        return NAME, not (folder / FILE).exists()
    bare = without_password(url)
    if (folder / FILE).exists():
        raise ConfigError(f"the study of {folder} is in {folder / FILE}, but --study names {bare}; leave it out")
    if not path.exists():
        return f"{NAME}-{uuid.uuid4().hex[:12]}", True
    before, name = path.read_text().split()
    if before != bare:
        raise ConfigError(f"--study must be the database that the search began in, {before}, but got {bare}")
    return name, False


def without_password(url: str) -> str:
    """A database's URL as it may be shown and kept.

    Raises:
        ConfigError: If it is none.
    """
    try:
        bare = sqlalchemy.engine.make_url(url)._replace(password=None)  # `set` takes None for unchanged
        return bare.difference_update_query([key for key in bare.query if "password" in key.lower()]).render_as_string()
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError("--study must be a URL such as postgresql://USER:PASSWORD@HOST/NAME, but what was given is none") from None
