"""A loopback stand-in for the W&B server: just enough for the real client to run online."""

import gzip
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Serves until :meth:`stop`; remembers what clients sent.

    Attributes:
        runs: Variables of the last UpsertBucket of each run.
        history: Rows of each run, as they were streamed.
        summary: Last summary of each run.
        exits: Exit code of each run that finished.
        unknown: GraphQL operations that were not understood.
        keys: Authorization headers seen.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = defaultdict(dict)
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.summary: dict[str, dict[str, Any]] = {}
        self.exits: dict[str, int] = {}
        self.unknown: list[str] = []
        self.keys: set[str] = set()
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._httpd.daemon_threads = True
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def stop(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _body(self) -> bytes:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

            def do_GET(self) -> None:
                self._answer({})

            def do_PUT(self) -> None:
                self._body()
                self._answer({})

            def do_POST(self) -> None:
                body = self._body()
                server.keys.add(self.headers.get("Authorization") or "")
                if self.path == "/graphql":
                    self._answer({"data": server._graphql(json.loads(body))})
                elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                    server._stream(stream[1], json.loads(body))
                    self._answer({"exitcode": None, "limits": {}})
                else:
                    self._answer({})

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        self.history[run] += [json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", [])]
        for line in files.get("wandb-summary.json", {}).get("content", [])[-1:]:
            self.summary[run] = json.loads(line)
        if sent.get("complete"):
            self.exits[run] = sent["exitcode"]

    def _graphql(self, sent: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
        name, given = found[1] if found else "", sent.get("variables") or {}
        project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "tester"}}
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}}
        if name == "UpsertBucket":
            self.runs[given["name"]].update({key: value for key, value in given.items() if value is not None})
            bucket = {"id": given["name"], "name": given["name"], "displayName": given.get("displayName"), "config": given.get("config") or "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "sweepName": None, "historyLineCount": 0, "project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in given.get("files", [])]
            return {"createRunFiles": {"runID": given.get("run"), "uploadHeaders": [], "files": files}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": None}}
        if name == "OrganizationCoreWeaveOrganizationID":
            return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
        self.unknown.append(name)
        return {}
