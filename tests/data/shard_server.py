"""A web server on the loopback address whose transfers drop, stall and end too early when they are told to."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ShardServer:
    """Serves ``folder`` at ``address``. ``faults`` are those of the next transfers of a file, by its name; "always" is
    the last one's for good. ``given`` counts the transfers of each file that began."""

    def __init__(self, folder: Path) -> None:
        self.faults: dict[str, list[str]] = {}
        self.given: Counter[str] = Counter()
        self.queries: set[str] = set()
        self.listing = True
        self.closed = threading.Event()
        handler = partial(_Handler, self, directory=str(folder))
        self.http = _Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # connections that wait: what asks is quicker than threads start


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, server: ShardServer, *arguments: object, **options: object) -> None:
        self.of = server
        super().__init__(*arguments, **options)

    def log_message(self, *_: object) -> None:
        pass

    def list_directory(self, path):
        if not self.of.listing:
            self.send_error(403)
            return None
        return super().list_directory(path)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        self.of.queries.add(query)
        self.of.given[name] += 1
        coming = self.of.faults.get(name, [])
        fault = (coming[0] if coming[1:] == ["always"] else coming.pop(0)) if coming else ""
        if not fault:
            super().do_GET()
            return
        if fault == "refuse":
            self.send_error(503)
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        half = content[: len(content) // 2]
        if fault != "drop":
            self.send_response(200)
            self.send_header("Content-Length", str(len(half if fault == "short" else content)))
            self.end_headers()
            self.wfile.write(half)
            self.wfile.flush()
        if fault == "stall":
            self.of.closed.wait(20)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)
