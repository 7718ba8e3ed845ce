"""A server on this machine that fails in the ways of real ones."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server gives, and what it was asked.

    Attributes:
        body: Of the one file.
        cuts: Bytes after which each answer breaks off, the first for the first answer; none left: whole answers.
        has_ranges: Whether it knows the header Range.
        status: Of all answers, in place of 200 and 206.
        asked: The Range of each request.
    """

    body: bytes
    cuts: list[int] = field(default_factory=list)
    has_ranges: bool = True
    status: int | None = None
    tag: str = '"one"'
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serving(site: Site, name: str) -> Iterator[Site]:
    """The site at ``site.url``, whose file has this name."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append(wanted)
            begin = 0
            if site.status is not None:
                return self.send_error(site.status)
            is_same = self.headers.get("If-Range") in (None, site.tag)
            if wanted and site.has_ranges and is_same:
                begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                if begin >= len(site.body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(site.body)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{len(site.body) - 1}/{len(site.body)}")
            else:
                self.send_response(200)
            self.send_header("ETag", site.tag)
            self.send_header("Content-Length", str(len(site.body) - begin))
            self.end_headers()
            rest = site.body[begin:]
            self.wfile.write(rest[: site.cuts.pop(0)] if site.cuts else rest)
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
