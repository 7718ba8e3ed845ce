"""Hostile archives: nothing is written outside, and nothing is left of them."""

import io
import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from imachsr.data.archive import BadArchiveError, unpack


def as_zip(path: Path, members: dict[str, str], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = ((stat.S_IFLNK | 0o777) if name == link else (stat.S_IFREG | 0o644)) << 16
            file.writestr(member, text)
    return path


def as_tar(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for member in members:
            member.size = 4 if member.isfile() else 0
            file.addfile(member, io.BytesIO(b"text") if member.isfile() else None)
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


def refused(archive: Path, box: Path, wording: str) -> None:
    before = {path: path.read_bytes() for path in box.parent.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=wording):
        unpack(archive, box / "data")
    assert {path: path.read_bytes() for path in box.parent.rglob("*") if path.is_file()} == before
    assert not list(box.iterdir())


def test_good_archives_are_unpacked_whole(box: Path, tmp_path: Path) -> None:
    unpack(as_zip(tmp_path / "a.zip", {"x/a.txt": "A", "b.txt": "B", "x/..c": "C"}), box / "zip")
    assert {str(path.relative_to(box / "zip")): path.read_text() for path in (box / "zip").rglob("*") if path.is_file()} == {
        "x/a.txt": "A",
        "b.txt": "B",
        "x/..c": "C",
    }
    inside = tar_member("x/link", tarfile.SYMTYPE, "../y/a.txt")
    unpack(as_tar(tmp_path / "a.tgz", tar_member("y/a.txt"), inside), box / "tar")
    assert (box / "tar/x/link").read_text() == "text"
    with pytest.raises(ValueError, match="zip must not exist yet"):
        unpack(tmp_path / "a.zip", box / "zip")


@pytest.mark.parametrize("name", ["../evil", "x/../../evil", "/tmp/evil-of-a-test", "x/..\\..\\evil", "C:\\evil", "\\evil"])
def test_members_outside_are_refused_by_name(name: str, box: Path, tmp_path: Path) -> None:
    refused(as_zip(tmp_path / "a.zip", {"good.txt": "x", name: "x"}), box, r"must keep to its folder, but '.*evil.*' would lie outside")
    refused(as_tar(tmp_path / "a.tar", tar_member("good.txt"), tar_member(name)), box, r"must keep to its folder, but '.*evil.*' would lie outside")


@pytest.mark.parametrize("target", ["../../evil", "/etc/passwd", "x/../../../evil"])
def test_links_outside_are_refused_by_name(target: str, box: Path, tmp_path: Path) -> None:
    refused(as_zip(tmp_path / "a.zip", {"x/link": target}, link="x/link"), box, r"but 'x/link' links to '.*' outside")
    refused(as_tar(tmp_path / "a.tar", tar_member("x/link", tarfile.SYMTYPE, target)), box, r"but 'x/link' links to '.*' outside")


def test_hard_links_devices_and_chains_of_links_are_refused(box: Path, tmp_path: Path) -> None:
    refused(as_tar(tmp_path / "a.tar", tar_member("x", tarfile.LNKTYPE, "../evil")), box, r"'../evil', to which 'x' links, would lie outside")
    refused(as_tar(tmp_path / "a.tar", tar_member("pipe", tarfile.FIFOTYPE)), box, "'pipe' is a device or pipe")
    chain = [tar_member("a", tarfile.DIRTYPE), tar_member("a/b", tarfile.SYMTYPE, "."), tar_member("a/b/c", tarfile.SYMTYPE, "../..")]
    refused(as_tar(tmp_path / "a.tar", *chain, tar_member("a/b/c/evil")), box, "must keep to its folder")


def test_broken_archives_leave_nothing(box: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive")
    refused(tmp_path / "a.zip", box, "a.zip must be a zip or tar archive, but is none")
    whole = as_zip(tmp_path / "b.zip", {"a.txt": "text" * 100}).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole.replace(b"texttext", b"textTEXT", 1))
    refused(tmp_path / "b.zip", box, "b.zip must be a whole archive, but: Bad CRC-32")


FILES = {f"x/{index}.bin": np.random.default_rng(index).bytes(2000) + b"text" * 200 for index in range(5)}


def packed_as(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.mkdir("x")
            for name, data in FILES.items():
                packed.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode={"tar": "w", "tgz": "w:gz", "txz": "w:xz", "tbz": "w:bz2"}[kind]) as file:
            for name, data in FILES.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def outcome(archive: Path, body: bytes, box: Path) -> str:
    """What becomes of damaged bytes: refused by name with nothing left, or unpacked as if nothing were."""
    archive.write_bytes(body)
    told = None
    try:
        unpack(archive, box / "data")
    except ValueError as error:
        told = str(error)
    if told is not None:
        assert str(archive) in told
        assert not list(box.iterdir())
        return "refused"
    found = {str(path.relative_to(box / "data")): path.read_bytes() for path in (box / "data").rglob("*") if path.is_file()}
    folders = [path.name for path in (box / "data").rglob("*") if path.is_dir()]
    shutil.rmtree(box / "data")
    return "whole" if (found, folders) == (FILES, ["x"]) else "wrong"


@pytest.mark.parametrize("kind", ["zip", "tgz", "txz", "tbz"])
def test_a_flipped_bit_is_never_unpacked_as_something_else(kind: str, box: Path, tmp_path: Path) -> None:
    body, random = packed_as(kind), np.random.default_rng(7)
    places = list(random.integers(0, len(body), 120))
    if kind == "zip":  # the list at its end is short, and holds most of what may go wrong
        places += list(range(body.index(b"PK\1\2"), len(body)))
    found = Counter()
    for place in places:
        damaged = bytearray(body)
        damaged[place] ^= 1 << int(random.integers(8))
        found[outcome(tmp_path / f"a.{kind}", bytes(damaged), box)] += 1
    assert not found["wrong"]
    assert found["refused"] > 100


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "txz"])
def test_a_cut_archive_loses_no_file_in_silence(kind: str, box: Path, tmp_path: Path) -> None:
    body, random = packed_as(kind), np.random.default_rng(8)
    places = list(random.integers(1, len(body), 60))
    if kind == "tar":  # between members, where each part looks like an archive
        places += list(range(512, len(body), 512))
    found = Counter(outcome(tmp_path / f"a.{kind}", body[:place], box) for place in places)
    assert not found["wrong"]
    assert found["refused"] > 30


def test_a_tar_file_with_a_broken_header_does_not_end_there(box: Path, tmp_path: Path) -> None:
    body = bytearray(packed_as("tar"))
    body[body.index(b"x/2.bin")] ^= 1
    (tmp_path / "a.tar").write_bytes(body)
    refused(tmp_path / "a.tar", box, "a.tar must be a whole archive, but is cut off or damaged behind 2 members")


def test_what_a_caller_does_not_find_inside_leaves_nothing(box: Path, tmp_path: Path) -> None:
    def check(folder: Path) -> None:
        assert (folder / "a.txt").read_text() == "A"
        raise BadArchiveError("a.zip must hold b.txt")

    with pytest.raises(BadArchiveError, match="must hold b.txt"):
        unpack(as_zip(tmp_path / "a.zip", {"a.txt": "A"}), box / "data", check=check)
    assert not list(box.iterdir())


def test_a_zip_file_must_list_as_many_members_as_it_says(box: Path, tmp_path: Path) -> None:
    body = bytearray(as_zip(tmp_path / "a.zip", {"a.txt": "A", "b.txt": "B"}).read_bytes())
    count = body.rindex(b"PK\5\6") + 10
    body[count] = 3
    (tmp_path / "a.zip").write_bytes(body)
    refused(tmp_path / "a.zip", box, "a.zip must be a whole archive, but lists 2 of its 3 members")
    body[count : count + 2] = b"\xff\xff"  # more than the record can count
    (tmp_path / "a.zip").write_bytes(body)
    unpack(tmp_path / "a.zip", box / "data")
    assert sorted(path.name for path in (box / "data").iterdir()) == ["a.txt", "b.txt"]
