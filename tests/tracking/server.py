"""A loopback stand-in for the W&B server: just enough for the real client to run online."""

import gzip
import json
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Httpd(ThreadingHTTPServer):
    request_queue_size = 128  # more connect at once than the 5 of the standard library; the rest would wait for seconds

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server's."""


class Server:
    """Serves until :meth:`stop`; remembers what clients sent.

    Attributes:
        runs: Variables of the last UpsertBucket of each run.
        history: Rows of each run, as they were streamed.
        summary: Last summary of each run.
        exits: Exit code of each run that finished.
        begun: UpsertBucket calls of each run that named its group: how often it began or was continued.
        files: Bytes of each file that was uploaded, by run and name.
        artifacts: Name of each committed artifact's collection, with its type and manifest.
        views: Variables of each saved view.
        sweeps: Variables of each sweep that was made.
        unknown: GraphQL operations that were not understood.
        keys: Authorization headers seen.
        fault: "500" (every answer), "malformed" (every answer is no JSON), or "".
        delay_s: Before every answer, seconds.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = defaultdict(dict)
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.summary: dict[str, dict[str, Any]] = {}
        self.exits: dict[str, int] = {}
        self.begun: dict[str, int] = defaultdict(int)
        self.files: dict[str, bytes] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.views: list[dict[str, Any]] = []
        self.sweeps: list[dict[str, Any]] = []
        self.fault, self.delay_s = "", 0.0
        self._offered: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        self.keys: set[str] = set()
        self._httpd = _Httpd(("127.0.0.1", 0), self._handler())
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
                time.sleep(server.delay_s)
                data = b"{ this is no JSON" if server.fault == "malformed" else json.dumps(body).encode()
                self.send_response(500 if server.fault == "500" else 200)
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
                server.files[self.path.removeprefix("/upload/")] = self._body()
                self._answer({})

            def do_POST(self) -> None:
                body = self._body()
                server.keys.add(self.headers.get("Authorization") or "")
                if server.fault:
                    self._answer({})
                elif self.path == "/graphql":
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
        if (rows := files.get("wandb-history.jsonl")) is not None:
            # As the server does: what is sent again, from a line on, stands where it stood.
            self.history[run][rows["offset"] :] = [json.loads(line) for line in rows["content"]]
        for line in files.get("wandb-summary.json", {}).get("content", [])[-1:]:
            self.summary[run] = json.loads(line)
        if sent.get("complete"):
            self.exits[run] = sent["exitcode"]

    def _graphql(self, sent: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
        name, given = found[1] if found else "", sent.get("variables") or {}
        project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "tester"}}
        if name in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "u", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}}
        if name == "UpsertBucket":
            self.begun[given["name"]] += given.get("groupName") is not None
            self.runs[given["name"]].update({key: value for key, value in given.items() if value is not None})
            bucket = {"id": given["name"], "name": given["name"], "displayName": given.get("displayName"), "config": given.get("config") or "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "sweepName": None, "historyLineCount": 0, "project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in given.get("files", [])]
            return {"createRunFiles": {"runID": given.get("run"), "uploadHeaders": [], "files": files}}
        if name == "UpsertView2":
            self.views.append(given)
            return {"upsertView": {"view": {"id": f"view-{len(self.views)}", "name": given["name"]}, "inserted": "id" not in given}}
        if name == "UpsertSweep":
            self.sweeps.append(given)
            return {"upsertSweep": {"sweep": {"name": "sweep1", "project": project}, "configValidationWarnings": []}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._bucket(given["name"]) if given["name"] in self.runs else None}}
        if name == "OrganizationCoreWeaveOrganizationID":
            return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
        if "rtifact" in name:
            return self._artifact(name, given)
        self.unknown.append(name)
        return {}

    def _bucket(self, run: str) -> dict[str, Any]:
        """What a client needs that goes on with a run."""
        rows = self.history[run]
        known = self.runs[run]
        return {
            "id": run,
            "name": run,
            "displayName": known.get("displayName"),
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(self.summary.get(run, {})),
            "config": known.get("config") or "{}",
            "tags": known.get("tags") or [],
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _artifact(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        asked = given.get("input") or {}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            key = f"artifact-{len(self._offered)}"
            self._offered[key] = asked
            return {"createArtifact": {"artifact": {"id": key, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}}}
        if name == "CreateArtifactManifest":
            file = {"id": "f", "name": given["name"], "displayName": given["name"], "uploadUrl": f"{self.url}/upload/{given['artifactID']}/manifest"}
            return {"createArtifactManifest": {"artifactManifest": {"id": f"{given['artifactID']}-manifest", "file": {**file, "uploadHeaders": []}}}}
        if name == "CreateArtifactFiles":
            edges: list[dict[str, Any]] = [
                {"node": {"storagePath": None, "uploadUrl": self._offer(each), "uploadHeaders": [], "artifact": {"id": each["artifactID"]}}}
                for each in given["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if name == "UpdateArtifactManifest":
            file = {"uploadUrl": f"{self.url}/upload/{given['artifactManifestID'].removesuffix('-manifest')}/manifest", "uploadHeaders": []}
            return {"updateArtifactManifest": {"artifactManifest": {"id": given["artifactManifestID"], "file": {"id": "f", **file}}}}
        if name == "CommitArtifact":
            created = self._offered[given["artifactID"]]
            manifest = json.loads(self.files[f"{given['artifactID']}/manifest"])
            self.artifacts[created["artifactCollectionName"]] = {"type": created["artifactTypeName"], "manifest": manifest}
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": created["digest"]}}}
        self.unknown.append(name)
        return {}

    def _offer(self, file: dict[str, Any]) -> str:
        return f"{self.url}/upload/{file['artifactID']}/{file['name']}"
