"""Options that several commands have, and what is made of their values."""

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

WANDB, PROJECT = "auto", "imachsr"
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout, for machines.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as optimizer.epochs=2 or method.loss=dice.", show_default=False)
]
Wandb = Annotated[str, typer.Option("--wandb", help="auto (online with a key and an answering server, else offline), online, offline or disabled.")]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster, or auto for the one of this machine; RAY_ADDRESS does the same.", show_default=False)
]
Project = Annotated[str, typer.Option("--wandb-project", help="Project in W&B.")]


def local(context: typer.Context, parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse an address: a path of it would be a new folder with a colon in its name."""
    from imachsr.config.schema import ConfigError

    if path is not None and (found := re.match(r"([A-Za-z][\w+.-]+):/+", str(path))):
        given = f"{found[1]}://{str(path)[found.end() :]}"
        takes_address = parameter.name == "output" and any(each.name == "storage" for each in context.command.params)
        other = ", or give the address to --storage" if takes_address else ""
        raise ConfigError(
            f"`{parameter.opts[0]}` must be a folder, but got {given}; mount it (mount-s3, gcsfuse, rclone mount) and give the folder's path{other}"
        )
    return path


def join(address: str | None, *, has_workers: bool = True) -> None:
    """Say to Ray which cluster is meant."""
    from imachsr.config.schema import ConfigError

    if address is not None and not has_workers:
        raise ConfigError("`--address` must come with `--workers`, since a training without workers stays in this process")
    if has_workers and (address := address or os.environ.get("RAY_ADDRESS")):
        from imachsr.train.capacity import check_address

        check_address(address)
        os.environ["RAY_ADDRESS"] = address


def result_folder(output: Path | None, name: str, *, resume: bool, foreign: tuple[str, ...], is_stored: bool = False) -> Path:
    """Where results go; refused when one of ``foreign`` shows that it holds a result of another kind, which would be overwritten.

    With ``is_stored`` a storage may hold what is resumed, and the folder be missing.
    """
    from imachsr.config.folder import free
    from imachsr.config.schema import ConfigError

    folder = output or (default_folder(name) if resume else free(default_folder(name)))
    if resume and not is_stored and not folder.is_dir():
        raise ConfigError(f"--resume must go with a folder to continue in, but {folder} is none; name it with --output")
    if found := [name for name in foreign if (folder / name).exists()]:
        raise ConfigError(f"{folder} must be a new folder, but holds another kind of result ({found[0]}); give another --output")
    return folder_to_be(folder)


def default_folder(name: str) -> Path:
    """Where results of this name go by themselves.

    Raises:
        ConfigError: If that would be elsewhere than among the others.
    """
    from imachsr.config.schema import ConfigError

    if name in (".", "..") or any(part in name for part in "/\\\0"):
        raise ConfigError(f"`name` must be a folder's name, where results go to runs/NAME, but got {name!r}; or name a folder with --output")
    return Path("runs") / name


def folder_to_be(path: Path) -> Path:
    """The path, if it is a folder or can become one."""
    from imachsr.config.schema import ConfigError

    part = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not part.is_dir():
        raise ConfigError(f"--output must be a folder, but {part} is a file")
    return path


def again(command: str, config: Path, given: list[str], folder: Path, *, wandb: str, project: str) -> str:
    """The command that continues what was broken off; settings must be those that it began with."""
    tracking = tracking_options(wandb, project)
    return shlex.join(["imachsr", command, str(config), *given, *tracking, "--output", str(folder), "--resume"])


def tracking_options(wandb: str, project: str) -> list[str]:
    """The options about W&B that were given."""
    return [*(["--wandb", wandb] if wandb != WANDB else []), *(["--wandb-project", project] if project != PROJECT else [])]


@contextlib.contextmanager
def about_data(data: Path | None, key: str) -> Iterator[None]:
    """Name the option when what it sets is refused."""
    from imachsr.config.schema import ConfigError

    try:
        yield
    except ConfigError as error:
        if data is None or "'root' is no setting" not in str(error):
            raise
        hint = f"--data sets {key}.root: leave it out, or choose a data set that is read from a folder, by {key}.kind"
        raise ConfigError(f"{error}\n{hint}") from None


def yaml_path(path: Path) -> str:
    """The path as a YAML text, absolute: workers and later commands may run in another folder; in quotes where YAML would read something else."""
    text = str(path.expanduser().absolute())
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    return json.dumps(text, ensure_ascii=False)  # YAML reads an escaped pair of surrogates as two characters
