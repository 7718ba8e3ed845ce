"""Unpack zip and tar archives of strangers into a folder that is whole or absent."""

import errno
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

_PIECE = 1 << 20
_MANY = 0xFFFF
_MOST_BEHIND = 22 + 0xFFFF  # the record at the end of a zip file, with its longest comment
# What zipfile and tarfile raise of damaged bytes. RuntimeError: they ask for a password; NotImplementedError: they want another packer.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


class BadArchiveError(ValueError):
    """The archive itself is of no use, whatever the disk is like."""


def unpack(archive: Path, folder: Path, *, check: Callable[[Path], object] | None = None) -> None:
    """Unpack everything into a new folder.

    Compressed archives and zip files have checksums of their contents, all of which are checked; a plain tar file has them of its names and sizes
    only, so that there it is checked that all members are there.

    Args:
        archive: A zip or tar file.
        folder: Must not exist; its parent must.
        check: Called with the folder that holds what was unpacked, before it gets its name; a :class:`BadArchiveError` of it leaves nothing.

    Raises:
        BadArchiveError: If the archive is none or broken, or a member would lie outside of the folder, or links there, or is a device; names it.
            Nothing is left then.
        ValueError: If the disk cannot take it. Nothing is left either.
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
            raise BadArchiveError(f"{archive} must be a zip or tar archive, but is none")
        work.chmod(0o755)
        if check is not None:
            check(work)
        work.rename(folder)
    except _DAMAGE as error:
        raise BadArchiveError(f"{archive} must be a whole archive, but: {error}") from None
    except OSError as error:
        if error.errno in _OF_THE_DISK:
            raise ValueError(f"{folder.parent} must take what {archive} holds, but: {error.strerror}") from None
        raise BadArchiveError(f"{archive} must be a whole archive, but: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack_zip(archive: Path, work: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        if (told := _told_members(archive)) not in (len(members) & _MANY, _MANY):
            raise BadArchiveError(f"{archive} must be a whole archive, but lists {len(members)} of its {told} members")
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_name(archive, member.filename)
            if kind == stat.S_IFLNK:  # zipfile would write a file that holds the target
                _check_target(archive, member.filename, file.read(member).decode("utf-8", "replace"))
            if member.is_dir():  # extractall makes the folder without looking at what the member itself says
                file.open(member).close()
        _check_room(archive, work, sum(member.file_size for member in members))
        file.extractall(work, members)  # by themselves: of two with one name it would take the last one twice


def _told_members(archive: Path) -> int:
    """The number of members that a zip file says it has (65535: that many or more; some writers keep its last 16 bits), which zipfile ignores."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - _MOST_BEHIND))
        end = file.read()
    record = end[end.rfind(b"PK\5\6") :]
    return int.from_bytes(record[10:12], "little")


def _unpack_tar(archive: Path, work: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        _check_end(archive, file)
        for member in members:
            _check_name(archive, member.name)
            if member.issym():
                _check_target(archive, member.name, member.linkname)
            elif member.islnk():
                _check_name(archive, member.linkname, f", to which {member.name!r} links,")
            elif not (member.isfile() or member.isdir()):
                raise BadArchiveError(f"{archive} must hold files and folders only, but {member.name!r} is a device or pipe; nothing was unpacked")
        _check_room(archive, work, sum(member.size for member in members))
        try:
            file.extractall(work, filter="data")
        except tarfile.FilterError as error:  # a link to a link that leads out
            raise BadArchiveError(f"{archive} must keep to its folder, but: {error}; nothing was unpacked") from None
        assert file.fileobj is not None
        while file.fileobj.read(_PIECE):  # the checksum of a compressed stream stands at its end, which tarfile does not read
            pass


def _check_end(archive: Path, file: tarfile.TarFile) -> None:
    """Raise where no block of zeros ends the members: a broken header, or a cut between two members, is the end for tarfile."""
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise BadArchiveError(f"{archive} must be a whole archive, but is cut off or damaged behind {len(file.getmembers())} members")


def _check_name(archive: Path, name: str, what: str = "") -> None:
    windows = PureWindowsPath(name)
    if name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts:
        raise BadArchiveError(f"{archive} must keep to its folder, but {name!r}{what} would lie outside; nothing was unpacked")


def _check_target(archive: Path, name: str, target: str) -> None:
    depth = len(PurePosixPath(name).parts) - 1
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if part == "/" or depth < 0:
            raise BadArchiveError(f"{archive} must keep to its folder, but {name!r} links to {target!r} outside; nothing was unpacked")


def _check_room(archive: Path, work: Path, need: int) -> None:
    free = shutil.disk_usage(work).free
    if need > free:
        raise ValueError(f"{work.parent} must have room for the {need / 1e6:.0f} MB that {archive} unpacks to, but has {free / 1e6:.0f} MB")
