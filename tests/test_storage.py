"""The program that speaks with a storage: what it writes is whole, and what fails is told in one line without secrets."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imachsr import storage
from tests.stores import BUCKET, KEYS, Server


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    running.ensure()
    for name, value in running.variables.items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return storage.address(str(tmp_path / "a folder"))
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/runs/{tmp_path.name}"


def test_what_is_written_is_read_listed_and_deleted(uri: str, tmp_path: Path) -> None:
    there, big = storage.Storage(uri), tmp_path / "big"
    big.write_bytes(os.urandom(3 * storage.PIECE_BYTES + 1))
    assert there.names("checkpoints") == {}
    there.write("note", "é\n")
    there.put("checkpoints/big", str(big))
    there.put("checkpoints/big", str(big))
    assert there.names() == {"note": 3}
    assert there.names("checkpoints") == {"big": big.stat().st_size}
    assert there.read("note") == "é\n"
    there.fetch("checkpoints/big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    there.delete("note")
    there.delete("note")
    with pytest.raises(FileNotFoundError):
        there.read("note")


def test_a_storage_that_works_passes_the_probe_and_keeps_nothing_of_it(uri: str) -> None:
    assert storage.reach(uri, "word") == ""
    assert storage.Storage(uri).names() == {}


@pytest.mark.parametrize(
    ("fault", "bucket", "message"),
    [
        ("locked", BUCKET, "ACCESS_DENIED .*; check the credentials there: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine"),
        ("none", "no-such-bucket", "check the bucket's name and region, or create it"),
        ("error", BUCKET, "."),
    ],
)
def test_a_storage_that_does_not_work_is_told_with_what_to_check(s3: Server, fault: str, bucket: str, message: str) -> None:
    s3.fault(fault, "another-key")
    assert re.search(message, found := storage.reach(f"s3://{bucket}/x", "word")), found
    assert not any(value in found for value in ("key-of-tests", "secret-of-tests"))


def test_no_credentials_are_told_as_such(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3.fault("locked", KEYS["AWS_ACCESS_KEY_ID"])
    assert storage.reach(f"s3://{BUCKET}/x", "word") == ""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "check the credentials there: AWS_ACCESS_KEY_ID" in storage.reach(f"s3://{BUCKET}/x", "word")


def test_nobody_at_the_endpoint_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    started = time.monotonic()
    assert "check the network and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL" in storage.reach("s3://bucket/x", "word")
    assert time.monotonic() - started < 30


def test_a_secret_in_what_a_library_says_is_replaced_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    assert storage.reason(OSError("the key hush-hush is wrong"), "s3://b/x")[1].startswith("the key $AWS_SECRET_ACCESS_KEY is wrong")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://AKIA:hush@bucket/x", "must hold no credentials, but that of s3://bucket/x does"),
        ("s3://bucket/x?secret_key=hush", "must hold no credentials"),
        ("s3:bucket/x", "must be an address such as"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/x?regoin=eu", "takes region, scheme and endpoint_override, but got 'regoin'"),
        ("", "must be an address"),
        ("file://host/x", "a folder is file:///PATH"),
    ],
)
def test_what_is_no_address_is_refused_without_showing_secrets(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        storage.address(text)
    assert "hush" not in str(found.value)


def test_a_path_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.address("a b") == (tmp_path / "a b").as_uri()
    assert storage.address("s3://bucket/runs/x/") == "s3://bucket/runs/x"


def test_the_program_imports_neither_torch_nor_what_lies_beside_it() -> None:
    code = f"import runpy, sys; runpy.run_path({storage.__file__!r}); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "imachsr", "pydantic"} & set(loaded)
