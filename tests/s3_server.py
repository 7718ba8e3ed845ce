"""moto's S3 that tests can break: ``python tests/s3_server.py HOST PORT BUCKET...``; PUT /-/KIND/VALUE sets a fault, /-/none/0 mends all.

Faults: error (status 500), slow (seconds before each answer), locked (403 for all but the access key VALUE).
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import Client

REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Gate:
    def __init__(self) -> None:
        self.behind = DomainDispatcherApplication(create_backend_app)
        self.faults: dict[str, str] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].split("/")
        if path[1] == "-":
            self.faults = {} if path[2] == "none" else {**self.faults, path[2]: path[3]}
            start_response("200 OK", [("Content-Length", "0")])
            return [b""]
        if "slow" in self.faults:
            time.sleep(float(self.faults["slow"]))
        if "error" in self.faults or (
            "locked" in self.faults and f"Credential={self.faults['locked']}/" not in environ.get("HTTP_AUTHORIZATION", "")
        ):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, body = ("500 Internal Server Error", b"") if "error" in self.faults else ("403 Forbidden", REFUSAL)
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        answer: Iterable[bytes] = self.behind(environ, start_response)
        return answer


class Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        pass


if __name__ == "__main__":
    gate = Gate()
    for bucket in sys.argv[3:]:
        assert Client(gate).put(f"/{bucket}").status_code == 200, bucket
    server = make_server(sys.argv[1], int(sys.argv[2]), gate, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()
