"""Storages that tests can break: a server that speaks S3, in a process of its own."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

PROGRAM = Path(__file__).with_name("s3_server.py")
BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "key-of-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests", "AWS_EC2_METADATA_DISABLED": "true"}


class Server:
    """S3 at ``endpoint``; what it holds is lost when it is killed."""

    def __init__(self) -> None:
        self._command = [sys.executable, str(PROGRAM), "127.0.0.1"]
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> Mapping[str, str]:
        """What a process needs to use it."""
        return {**KEYS, "AWS_ENDPOINT_URL_S3": self.endpoint}

    def start(self) -> None:
        """Start, at the same port as before, with an empty bucket."""
        environment = {**os.environ, "PYTHONPATH": ""}
        self._process = subprocess.Popen(
            [*self._command, str(self.port), BUCKET], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)

    def ensure(self) -> None:
        """Start again where a test has killed it, and mend what it broke."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        self.fault("none")

    def fault(self, kind: str, value: object = 0) -> None:
        self.put(f"/-/{kind}/{value}")

    def put(self, path: str, data: bytes = b"") -> None:
        """Write as another program would."""
        asked = urllib.request.Request(f"{self.endpoint}{path}", data=data, method="PUT", headers={"Content-Type": "application/octet-stream"})
        with urllib.request.urlopen(asked, timeout=30):
            pass
