"""A server on this machine that speaks as much of the hub's protocol as single downloads need."""

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = "/datasets/allenai/objaverse/resolve/main/"


class Hub:
    """What the server offers and what it was asked for.

    Args:
        files: content by name.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.answers: dict[str, list[bytes | int]] = defaultdict(list)
        self.downloads: Counter[str] = Counter()
        self.endpoint = ""

    def answer(self, name: str) -> bytes | int:
        """Return the next body or HTTP status of a file: `answers` first, then what it is."""
        self.downloads[name] += 1
        if self.answers[name]:
            return self.answers[name].pop(0)
        return self.files.get(name, 404)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a server until the end of the block."""
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            name = self.path.removeprefix(PREFIX)
            body = next((a for a in hub.answers[name] if isinstance(a, bytes)), None)
            body = hub.files.get(name) if body is None else body
            self._reply(404 if body is None else body, lambda content: None)

        def do_GET(self) -> None:
            self._reply(hub.answer(self.path.removeprefix(PREFIX)), self.wfile.write)

        def _reply(self, answer: bytes | int, send: Callable[[bytes], object]) -> None:
            if isinstance(answer, int):
                self.send_response(answer)
                if answer == 404:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("ETag", f'"{hashlib.sha256(answer).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            send(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
