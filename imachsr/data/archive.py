"""Unpack zip and tar archives of strangers into a folder that is whole or absent."""

import shutil
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath


def unpack(archive: Path, folder: Path) -> None:
    """Unpack everything into a new folder.

    Args:
        archive: A zip or tar file.
        folder: Must not exist; its parent must.

    Raises:
        ValueError: If the archive is none or broken, the disk is too small, or a member would lie outside of the folder, or links there, or is a
            device; names it. Nothing is left then.
    """
    if folder.exists():
        raise ValueError(f"{folder} must not exist yet")
    # Beside the folder, for one rename; private until then.
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, work)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, work)
        else:
            raise ValueError(f"{archive} must be a zip or tar archive, but is none")
        work.chmod(0o755)
        work.rename(folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive} must be a whole archive, but: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack_zip(archive: Path, work: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_name(archive, member.filename)
            if kind == stat.S_IFLNK:  # zipfile would write a file that holds the target
                _check_target(archive, member.filename, file.read(member).decode("utf-8", "replace"))
        _check_room(archive, work, sum(member.file_size for member in members))
        file.extractall(work)


def _unpack_tar(archive: Path, work: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        for member in members:
            _check_name(archive, member.name)
            if member.issym():
                _check_target(archive, member.name, member.linkname)
            elif member.islnk():
                _check_name(archive, member.linkname, f", to which {member.name!r} links,")
            elif not (member.isfile() or member.isdir()):
                raise ValueError(f"{archive} must hold files and folders only, but {member.name!r} is a device or pipe; nothing was unpacked")
        _check_room(archive, work, sum(member.size for member in members))
        try:
            file.extractall(work, filter="data")
        except tarfile.FilterError as error:  # a link to a link that leads out
            raise ValueError(f"{archive} must keep to its folder, but: {error}; nothing was unpacked") from None


def _check_name(archive: Path, name: str, what: str = "") -> None:
    windows = PureWindowsPath(name)
    if name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts:
        raise ValueError(f"{archive} must keep to its folder, but {name!r}{what} would lie outside; nothing was unpacked")


def _check_target(archive: Path, name: str, target: str) -> None:
    depth = len(PurePosixPath(name).parts) - 1
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if part == "/" or depth < 0:
            raise ValueError(f"{archive} must keep to its folder, but {name!r} links to {target!r} outside; nothing was unpacked")


def _check_room(archive: Path, work: Path, need: int) -> None:
    free = shutil.disk_usage(work).free
    if need > free:
        raise ValueError(f"{work.parent} must have room for the {need / 1e6:.0f} MB that {archive} unpacks to, but has {free / 1e6:.0f} MB")
