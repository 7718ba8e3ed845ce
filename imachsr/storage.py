"""A folder of an object storage, by way of pyarrow; the standard library and pyarrow only, so that it runs where nothing else is installed.

Run as a program it serves one storage to the process that started it: a server that hangs then hangs a process that can be ended at any time.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

ANSWER_S = 60.0
"""Longest silence of a server in the middle of a transfer, seconds."""
PROBE_S = 10.0
"""The same when it is only asked whether it is there."""
CONNECT_S = 5.0
"""Longest wait for a connection, seconds."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables that name another server than Amazon's; the first one that is set counts. pyarrow does not read the first."""
PLACES = (*ENDPOINTS, "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that say where a storage is, and hold no secret."""
PIECE_BYTES = 8 * 2**20
LONGEST = 400
"""Characters of what a library says; Google's says everything twice."""

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "abfs": "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or the machine's identity",
}
_SECRETS = re.compile(r"ACCESS_KEY|SECRET|SESSION_TOKEN|PASSWORD|CREDENTIALS|_SAS|CONNECTION_STRING")
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|CREDENTIAL|UNAUTH|FORBIDDEN|EXPIRED|TOKEN|HTTP status 40[13]|PERMISSION_DENIED", re.I
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|bucket does not exist|Bucket '[^']*' not found|HTTP status 404|ContainerNotFound|HeadBucket", re.I)
_NETWORK = re.compile(r"NETWORK_CONNECTION|REQUEST_TIMEOUT|curlCode|resolve host|UNAVAILABLE|timed? ?out", re.I)


def address(text: str) -> str:
    """The address of a storage: itself, or file:// for a path.

    Args:
        text: Such as s3://BUCKET/FOLDER?region=eu-central-1, gs://BUCKET/FOLDER, or the path of a folder.

    Raises:
        ValueError: If it is none, or holds credentials, which would stand in logs and lists of processes.
    """
    rule = "a storage must be an address such as s3://BUCKET/FOLDER or gs://BUCKET/FOLDER, or a folder, but got"
    if "://" not in text:
        if not text or re.match(r"[A-Za-z][\w+.-]+:", text):
            raise ValueError(f"{rule} {text!r}")
        return Path(text).expanduser().absolute().as_uri()
    parts = urlsplit(text)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    is_user_a_place = parts.scheme in ("abfs", "abfss")  # CONTAINER@ACCOUNT
    given = [key for key, _ in parse_qsl(parts.query) if re.search(r"key|secret|token|password|credential|sas", key, re.I)]
    if given or parts.password is not None or (parts.username and not is_user_a_place):
        raise ValueError(f"a storage's address must hold no credentials, but that of {shown} does; give {_credentials(parts.scheme)} instead")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ValueError(f"{rule} {shown}; a folder is file:///PATH")
    elif not parts.netloc:
        raise ValueError(f"{rule} {shown}, which names no bucket")
    if parts.scheme == "s3" and (strange := sorted(dict(parse_qsl(parts.query)).keys() - {"region", "scheme", "endpoint_override"})):
        raise ValueError(f"an s3:// address takes region, scheme and endpoint_override, but got {strange[0]!r}")
    return text.rstrip("/") if not parts.query else text


def _credentials(scheme: str) -> str:
    return _CREDENTIALS.get({"gcs": "gs", "abfss": "abfs"}.get(scheme, scheme), "credentials by the environment")


class Storage:
    """One folder of a storage; names are relative to it. Every call waits for the server, and raises OSError when that fails.

    Args:
        uri: As :func:`address` gives it.
        answer_s: Longest silence of the server, seconds.
        attempts: How often a request is sent, >= 1.

    Raises:
        ValueError: If pyarrow knows no such storage.
    """

    def __init__(self, uri: str, *, answer_s: float = ANSWER_S, attempts: int = 3) -> None:
        from pyarrow import fs

        parts = urlsplit(uri)
        self._is_local = parts.scheme == "file"
        if self._is_local:
            self._files, root = fs.LocalFileSystem(), unquote(parts.path)
        elif parts.scheme == "s3":
            root = parts.netloc + unquote(parts.path)
            query = dict(parse_qsl(parts.query))
            endpoint = query.get("endpoint_override") or next(filter(None, map(os.environ.get, ENDPOINTS)), None)
            region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            if region is None:
                region = "us-east-1" if endpoint else fs.resolve_s3_region(parts.netloc)
            options = {"endpoint_override": endpoint, "scheme": query.get("scheme")}
            self._files = fs.S3FileSystem(
                region=region,
                request_timeout=answer_s,
                connect_timeout=CONNECT_S,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
                allow_delayed_open=True,  # what is small is one request then, which is whole or absent
                **{name: value for name, value in options.items() if value},
            )
        else:
            # Google's client would go on asking for a quarter of an hour.
            limit = f"{'&' if parts.query else '?'}retry_limit_seconds={answer_s:g}" if parts.scheme in ("gs", "gcs") else ""
            self._files, root = fs.FileSystem.from_uri(uri + limit)
        self._root = root.rstrip("/")

    def write(self, name: str, text: str) -> None:
        """Write a small file, whole or not at all."""
        self._stream(name, lambda out: out.write(text.encode()))

    def put(self, name: str, path: str) -> None:
        """Copy a file there; a reader may see a part of it when that is broken off."""
        with open(path, "rb") as file:

            def copy(out: Any) -> None:
                while piece := file.read(PIECE_BYTES):
                    out.write(piece)

            self._stream(name, copy)

    def read(self, name: str) -> str:
        """A small file's text, with what is not UTF-8 replaced.

        Raises:
            FileNotFoundError: If there is none.
        """
        with self._files.open_input_stream(f"{self._root}/{name}") as file:
            return bytes(file.read()).decode(errors="replace")

    def fetch(self, name: str, path: str) -> None:
        """Copy a file from there.

        Raises:
            FileNotFoundError: If there is none.
        """
        with self._files.open_input_stream(f"{self._root}/{name}") as file, open(path, "wb") as out:
            while piece := file.read(PIECE_BYTES):
                out.write(piece)

    def names(self, folder: str = "") -> dict[str, int]:
        """Names of the files in a folder, and their sizes in bytes; empty when there is no such folder."""
        from pyarrow import fs

        found = self._files.get_file_info(fs.FileSelector(f"{self._root}/{folder}".rstrip("/"), allow_not_found=True))
        return {each.base_name: each.size for each in found if each.type == fs.FileType.File}

    def delete(self, name: str) -> None:
        """Delete a file that may be gone."""
        try:
            self._files.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return

    def _stream(self, name: str, fill: Callable[[Any], object]) -> None:
        path = f"{self._root}/{name}"
        if not self._is_local:
            with self._files.open_output_stream(path) as out:
                fill(out)
            return
        self._files.create_dir(path.rpartition("/")[0])
        temporary = f"{path}.{os.getpid()}.tmp"  # a file of a disk shows while it grows
        with self._files.open_output_stream(temporary) as out:
            fill(out)
        self._files.move(temporary, path)


def reason(error: BaseException, uri: str) -> tuple[str, str]:
    """What failed, as a kind and in one line without secrets, with what to check."""
    text = re.sub(r"\s*\(Request ID: [^)]*\)", "", " ".join(str(error).split())) or type(error).__name__
    for name, value in os.environ.items():
        if len(value) >= 4 and _SECRETS.search(name):
            text = text.replace(value, f"${name}")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ..."
    if not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    scheme = urlsplit(uri).scheme
    if scheme == "file":
        return f"errno {getattr(error, 'errno', None)}", text
    if _REFUSED.search(text):
        return "refused", f"{text}; check the credentials there: {_credentials(scheme)}"
    if _NETWORK.search(text):
        return "network", f"{text}; check the network{f' and {ENDPOINTS[0]} or {ENDPOINTS[1]}' if scheme == 's3' else ''}"
    if _NO_BUCKET.search(text):
        return "bucket", f"{text}; check the bucket's name and region, or create it"
    return (found[1] if (found := re.search(r"AWS Error (\w+)", text)) else type(error).__name__), text


def reach(uri: str, word: str) -> str:
    """Write a file with a name that nobody else uses, read it back and delete it; "" when that worked, else what did not, in words."""
    name = f".imachsr-probe-{word}"
    try:
        storage = Storage(uri, answer_s=PROBE_S, attempts=1)
        storage.write(name, word)
        try:
            found = storage.read(name)
        finally:
            storage.delete(name)
    except Exception as error:  # whatever a storage raises is the finding
        return reason(error, uri)[1]
    return "" if found == word else f"what was written is not what is read ({len(found)} characters instead of {len(word)})"


def serve(uri: str) -> None:
    """Answer questions on stdin, one a line of JSON, on stdout, until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which a group of processes gets at once; the one that asks decides
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    storage: Storage | None = None
    for line in sys.stdin:
        do, *args = json.loads(line)
        answer: dict[str, Any]
        try:
            if do == "reach":
                answer = {"value": reach(uri, *args)}
            else:
                storage = storage or Storage(uri)
                answer = {"value": getattr(storage, do)(*args)}
        except Exception as error:  # told to the one that asked
            answer = {"is_missing": isinstance(error, FileNotFoundError), "why": reason(error, uri)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
